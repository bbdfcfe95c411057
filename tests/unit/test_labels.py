"""What counts as a label, and which number it gets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpiae.core.errors import DataError, UsageError
from rpiae.data.labels import check_classes, read_labels, unique_names


@pytest.mark.parametrize(
    ("values", "numbers", "names"),
    [
        ([2, 0, 1], [2, 0, 1], ()),
        ([2, None, -1], [2, -1, -1], ()),
        ([2.0, float("nan"), 0.0], [2, -1, 0], ()),
        ([True, False], [1, 0], ("false", "true")),
        (["dog", "cat", "dog"], [1, 0, 1], ("cat", "dog")),
        (["dog", "", None], [0, -1, -1], ("dog",)),
        (["10", "9"], [10, 9], ()),
        (["10", "-1"], [10, -1], ()),
        (["10", "9", "x"], [0, 1, 2], ("10", "9", "x")),
        ([], [], ()),
        ([None, None], [-1, -1], ()),
    ],
)
def test_values_become_labels(values: list[Any], numbers: list[int], names: Any) -> None:
    found = read_labels(values, "column 'label'")
    assert found.numbers.tolist() == numbers
    assert found.names == names
    assert any("have no label" in text for text in found.notices) is (-1 in numbers)


def test_classes_can_be_listed() -> None:
    found = read_labels(["dog", "cat"], "x", classes=("elk", "dog", "cat"))
    assert found.numbers.tolist() == [1, 2]
    assert found.names == ("elk", "dog", "cat")
    assert found.notices == ()
    assert read_labels([0, 2], "x", classes=("elk", "dog", "cat")).names == ("elk", "dog", "cat")
    with pytest.raises(DataError, match=r"x holds 'dog', which data\.classes lacks"):
        read_labels(["dog", "cat"], "x", classes=("cat",))
    with pytest.raises(DataError, match="x holds 3, and there are 3 classes: 0 to 2"):
        read_labels([0, 3], "x", classes=("elk", "dog", "cat"))
    for wrong, reason in ((("a", "a"), "'a' twice"), (("a", ""), "an empty name")):
        with pytest.raises(UsageError, match=rf"data\.classes has {reason}"):
            check_classes(wrong)


def test_digits_that_are_names_of_classes_are_looked_up() -> None:
    found = read_labels(["0", "1", "2", "0", ""], "x", classes=("2", "1", "0"))
    assert found.numbers.tolist() == [2, 1, 0, 2, -1]
    assert found.names == ("2", "1", "0")
    with pytest.raises(DataError, match=r"x holds '0', which data\.classes lacks"):
        read_labels(["0", "1"], "x", classes=("7", "1"))
    assert read_labels(["1", "0"], "x", classes=("cat", "dog")).numbers.tolist() == [1, 0]


def test_numbers_that_the_source_names_are_those_of_their_names() -> None:
    found = read_labels([0, 1, -1], "x", names=("cat", "dog"), classes=("elk", "dog", "cat"))
    assert found.numbers.tolist() == [2, 1, -1]
    assert found.names == ("elk", "dog", "cat")
    with pytest.raises(DataError, match=r"x holds 'cat', which data\.classes lacks"):
        read_labels([0, 1], "x", names=("cat", "dog"), classes=("elk", "dog"))
    with pytest.raises(DataError, match="x holds 2, and the source names 2 classes"):
        read_labels([2], "x", names=("cat", "dog"), classes=("cat", "dog", "elk"))


def test_text_is_said_to_be_numbered() -> None:
    (told,) = read_labels(["b", "a"], "column 'label'").notices
    assert "column 'label' holds text: its 2 different values are the classes" in told
    assert "(a, b)" in told
    assert "data.classes" in told


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0.5], r"holds 0\.5"),
        (["a", 1], "texts as well as numbers"),
        ([[1]], "holds a list"),
        ([{}], "holds a dict"),
        ([2**40], "too large for a label"),
        (["9999999999"], "too large for a label"),
    ],
)
def test_what_is_no_label_is_said(values: list[Any], reason: str) -> None:
    with pytest.raises(DataError, match=rf"column 'x' .*{reason}|column 'x' {reason}"):
        read_labels(values, "column 'x'")


def test_captions_are_no_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpiae.data.labels.MOST_CLASSES", 10)
    assert len(read_labels(map(str, range(1000)), "x").names) == 0
    with pytest.raises(DataError, match="more than 10 different texts"):
        read_labels((f"a photo of {i}" for i in range(11)), "x")


@given(st.lists(st.text(st.characters(), max_size=3), max_size=30, unique=True))
def test_printed_names_stay_different(names: list[str]) -> None:
    found = unique_names(names)
    assert len(set(found)) == len(names)
    assert all(name.isprintable() or "\n" not in name for name in found)
    "".join(found).encode()
