"""What is kept of earlier evaluations, and what is said of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rpiae.core.errors import CheckpointError, RunError
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.evaluation.records import (
    add_evaluation,
    measured_as,
    printable_tree,
    read_evaluations,
)
from rpiae.evaluation.subjects import evaluation_address

RULE = "ADM: to 32, centre crop 32×32"


def record(
    address: str, numbers: dict[str, float], *, weights: str = "w", **protocol: Any
) -> dict[str, Any]:
    """An evaluation as it is stored."""
    conditions = {"crop": RULE, "count": 8, "images_sha256": "i", "precision": "fp32"}
    return {
        "address": address,
        "tokenizer_sha256": weights,
        "config": {"metrics": sorted(numbers)},
        "metrics": numbers,
        "details": {name: {"each": [value]} for name, value in numbers.items()},
        "protocol": conditions | {"round": "nearest", "metrics": {}} | protocol,
        "warnings": [],
        "skipped": [],
        "seconds": 1.0,
    }


def stored(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "evaluation.json"


def test_an_evaluation_adds_to_earlier_ones(path: Path) -> None:
    assert add_evaluation(path, record("a", {"psnr": 20.0})) == []
    assert add_evaluation(path, record("b", {"ssim": 0.5}, crop="other", count=3)) == []
    found = stored(path)
    assert found["metrics"] == {"psnr": 20.0, "ssim": 0.5}
    assert found["details"].keys() == {"psnr", "ssim"}
    assert found["address"] == "b"
    assert found["protocol"]["crop"] == "other"
    assert found["protocol"]["metrics"]["psnr"]["crop"] == RULE, "its own, not the newest one's"
    assert [each["address"] for each in found["evaluations"]] == ["a", "b"]
    assert found["evaluations"][0]["metrics"] == {"psnr": 20.0}


def test_a_number_measured_alike_is_replaced_without_a_word(path: Path) -> None:
    add_evaluation(path, record("a", {"psnr": 20.0, "ssim": 0.5}))
    assert add_evaluation(path, record("b", {"psnr": 20.1}, software={"torch": "3"})) == []
    assert stored(path)["metrics"] == {"psnr": 20.1, "ssim": 0.5}
    add_evaluation(path, record("b", {"psnr": 20.2}))
    assert len(read_evaluations(path)) == 2, "the same evaluation once more"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"crop": "centre crop 32×32"}, f"crop: {RULE} and centre crop 32×32"),
        ({"count": 9}, "count: 8 and 9"),
        ({"images_sha256": "j"}, "images_sha256: i and j"),
        ({"precision": "bf16"}, "precision: fp32 and bf16"),
        ({"round": "truncate"}, "round: nearest and truncate"),
        ({"metrics": {"psnr": {"extractor": {"layer": "x"}}}}, "extractor: None and"),
    ],
)
def test_a_number_measured_differently_is_replaced_and_said(
    path: Path, changed: dict[str, Any], said: str
) -> None:
    add_evaluation(path, record("a", {"psnr": 20.0, "ssim": 0.5}))
    (notice,) = add_evaluation(path, record("b", {"psnr": 21.0}, **changed))
    assert notice.startswith("replaces psnr = 20 by 21, which was measured differently before: ")
    assert said in notice
    assert stored(path)["metrics"] == {"psnr": 21.0, "ssim": 0.5}
    assert read_evaluations(path)[0]["metrics"]["psnr"] == 20.0


def test_numbers_of_other_weights_are_kept_apart(path: Path) -> None:
    add_evaluation(path, record("a", {"psnr": 20.0, "ssim": 0.5}, weights="old"))
    (notice,) = add_evaluation(path, record("b", {"psnr": 21.0}))
    assert "other weights" in notice
    assert stored(path)["metrics"] == {"psnr": 21.0}
    assert [each["tokenizer_sha256"] for each in read_evaluations(path)] == ["old", "w"]


def test_the_file_of_an_earlier_version_is_an_evaluation(path: Path) -> None:
    old = {"format": 1, **record("a", {"psnr": 20.0})}
    del old["tokenizer_sha256"]
    path.write_text(json.dumps(old))
    assert "other weights" in add_evaluation(path, record("b", {"ssim": 0.5}))[0]
    assert [each["address"] for each in read_evaluations(path)] == ["a", "b"]


@pytest.mark.parametrize(
    "content",
    [
        b"{", b"[]", b"7", b"\xff", b'{"metrics": 3}', b'{"evaluations": [1]}',
        b'{"metrics": {"psnr": "20"}, "protocol": {}}',
        b'{"metrics": {}, "protocol": {"metrics": {"psnr": 3}}}', b"[" * 100_000,
        b'{"metrics": {"psnr": NaN}, "protocol": {}}', b'{"metrics": {"psnr": 1e999}, "protocol": {}}',
        b'{"metrics": {"psnr": ' + b"9" * 5000 + b'}, "protocol": {}}',
        b'{"metrics": {"psnr": ' + b"9" * 400 + b'}, "protocol": {}}',
    ],
)  # fmt: skip
def test_a_file_that_is_none_of_ours_is_kept_aside(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    (notice,) = add_evaluation(path, record("a", {"psnr": 20.0}))
    assert "it is kept as evaluation.json.damaged" in notice
    assert path.with_name("evaluation.json.damaged").read_bytes() == content
    assert stored(path)["metrics"] == {"psnr": 20.0}


def test_what_cannot_be_read_is_not_written_over(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(RunError, match=r"cannot read .*a FIFO"):
        add_evaluation(path, record("a", {"psnr": 20.0}))
    assert path.is_fifo()


def test_a_tokenizer_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"cannot be read: it is a FIFO"):
        evaluation_address(tmp_path, EvaluationConfig())


def test_names_that_are_no_text_are_stored_as_text(path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n.png")
    made = record("a", {"psnr": 20.0}, location=f"/x/{name}") | {"skipped": [f"{name}: damaged"]}
    made["config"] = {"data": f"folder:{name}"}
    add_evaluation(path, made)
    found = stored(path)
    json.dumps(found, ensure_ascii=False).encode("utf-8")
    assert found["protocol"]["location"] == "/x/caf\\xe9\\x0a.png"
    assert measured_as(read_evaluations(path), made["config"]) is not None
    assert printable_tree({name: [1, None, True]}) == {"caf\\xe9\\x0a.png": [1, None, True]}
