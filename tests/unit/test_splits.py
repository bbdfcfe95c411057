"""Which split a name belongs to, and that several are never mixed unasked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpiae.core.errors import DataError, UsageError
from rpiae.data.splits import WORDS, chosen, layout_of_files, layout_of_images, split_of


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("training", "train"), ("Train", "train"), ("TRAIN.tar", "train"),
        ("train-00000-of-00002.parquet", "train"), ("imagenet-train-000123.tar", "train"),
        ("val", "validation"), ("valid", "validation"), ("validation", "validation"),
        ("dev", "validation"), ("val2017", "validation"), ("DIV2K_valid_HR", "validation"),
        ("test", "test"), ("testing", "test"), ("eval", "test"), ("evaluation.parquet", "test"),
        ("my test.parquet", "test"), ("train-val-0.tar", "train+validation"),
        ("trainstation", ""), ("latest.tar", ""), ("data-00000-of-00001.parquet", ""), ("", ""),
        ("devil", ""), ("contest", ""), ("value", ""), ("constraint", ""), ("Contest", ""),
        ("trainA", "train"), ("testB", "test"), ("TrainImages", "train"), ("imagesTest", "test"),
        ("trainval", "trainval"), ("holdout", "holdout"), ("unlabelled", "unlabeled"),
    ],
)  # fmt: skip
def test_a_split_is_a_word_of_the_name(name: str, split: str) -> None:
    assert split_of(name) == split


@given(
    st.sampled_from(sorted(WORDS)), st.text("-._ 0123456789", max_size=4),
    st.sampled_from(["", "x-", "imagenet_", "ILSVRC2012_img_"]),
)  # fmt: skip
def test_a_word_counts_wherever_signs_set_it_off(word: str, after: str, before: str) -> None:
    assert split_of(f"{before}{word}{after}") == WORDS[word]
    assert split_of(f"{before}{word}x{after}") == ""


FILES = {
    "shards of the hub": (
        ["data/test-00000-of-00001.parquet", "data/train-00000-of-00002.parquet",
         "data/train-00001-of-00002.parquet", "data/validation-00000-of-00001.parquet"],
        {"test": 1, "train": 2, "validation": 1},
    ),
    "folders": (["train/0.tar", "train/1.tar", "val/0.tar"], {"train": 2, "validation": 1}),
    "names of shards": (["in-train-0.tar", "in-train-1.tar", "in-val-0.tar"],
                        {"train": 2, "validation": 1}),
    "a split of its own name": (["train-00000-of-00001.parquet", "extra-00000-of-00001.parquet"],
                                {"train": 1, "extra": 1}),
    "one without a split": (["a.parquet", "test.parquet"], {"": 1, "test": 1}),
    "no splits": (["a-00000-of-00001.parquet", "b-00000-of-00001.parquet"], {"": 2}),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_files_are_told_apart(case: str) -> None:
    names, splits = FILES[case]
    layout = layout_of_files(names)
    assert {split: len(found) for split, found in layout.splits.items()} == splits
    if len(splits) == 1:
        assert chosen(layout, "", "data") == sorted(names)
    else:
        with pytest.raises(UsageError, match=r"data has several splits: .*--set data\.split="):
            chosen(layout, "", "data")


IMAGES = {
    "classes below splits": (
        ["train/cat/0.png", "train/dog/0.png", "val/cat/1.png"], {"train": 2, "validation": 1}, 1,
    ),
    "deeper": (["images/train/0.png", "images/val/0.png"], {"train": 1, "validation": 1}, 2),
    "called otherwise": (["DIV2K_train_HR/0.png", "DIV2K_valid_HR/0.png"],
                         {"train": 1, "validation": 1}, 1),
    "with a further one": (["train/0.png", "val/0.png", "extra/0.png"],
                           {"train": 1, "validation": 1, "extra": 1}, 1),
    "with images beside": (["train/0.png", "val/0.png", "logo.png"],
                           {"train": 1, "validation": 1, "": 1}, 1),
    "one split": (["train/cat/0.png", "train/dog/0.png"], {"train": 2}, 1),
    "a class called test": (["cat/0.png", "dog/0.png", "test/0.png"], {"": 3}, 0),
    "a class called train": (["bus/0.png", "train/0.png", "car/0.png"], {"": 3}, 0),
    "classes with such words": (
        ["bullet_train/0.png", "test_tube/0.png", "cat/0.png"], {"": 3}, 0,
    ),
    "splits in classes": (
        ["cat/train/0.png", "cat/test/1.png", "dog/train/0.png", "dog/test/1.png"],
        {"train": 2, "test": 2}, 0,
    ),
    "splits in classes, and masks": (
        ["cat/train/good/0.png", "cat/test/bad/1.png", "cat/ground_truth/bad/1.png"],
        {"train": 1, "test": 1, "ground_truth": 1}, 2,
    ),
    "one split in classes": (["cat/train/0.png", "dog/train/0.png"], {"train": 2}, 0),
    "splits of two kinds of images": (
        ["left/train/a/0.png", "left/val/a/1.png", "gt/train/a/0.png", "gt/val/a/1.png"],
        {"train": 2, "validation": 2}, 0,
    ),
    "an image beside the folder of splits": (
        ["logo.png", "data/train/0.png", "data/test/1.png"], {"": 1, "train": 1, "test": 1}, 2,
    ),
    "images beside one split": (["a.png", "b.png", "test/c.png"], {"": 2, "test": 1}, 1),
    "held out": (["train/0.png", "holdout/0.png"], {"train": 1, "holdout": 1}, 1),
    "without labels": (["train/cat/0.png", "unlabeled/0.png"], {"train": 1, "unlabeled": 1}, 1),
    "with a common word": (
        ["seg_train/a/0.png", "seg_test/a/1.png", "seg_pred/2.png"],
        {"train": 1, "test": 1, "pred": 1}, 1,
    ),
    "with a common word, and others": (
        ["box_train/0.png", "box_test/1.png", "query/2.png"], {"train": 1, "test": 1, "query": 1}, 1,
    ),
    "of two domains": (
        ["trainA/0.png", "trainB/0.png", "testA/1.png", "testB/1.png"], {"train": 2, "test": 2}, 1,
    ),
    "of two domains, and others": (
        ["trainA/0.png", "testA/1.png", "samples/1.png"], {"train": 1, "test": 1, "samples": 1}, 1,
    ),
    "in capitals": (["TrainImages/0.png", "TestImages/1.png"], {"train": 1, "test": 1}, 1),
    "deep classes with such words": (
        ["cars/bullet_train/0.png", "lab/test_tube/0.png", "lab/flask/0.png"], {"": 3}, 0,
    ),
    "one class": (["cats/0.png", "cats/1.png"], {"": 2}, 0),
    "files": (["train_0.png", "train_1.png", "test_0.png"], {"train": 2, "test": 1}, 0),
    "two of many files": (["test.png", "val.png", "a.png", "b.png", "c.png"], {"": 5}, 0),
}  # fmt: skip


@pytest.mark.parametrize("case", IMAGES)
def test_images_are_told_apart(case: str) -> None:
    names, splits, depth = IMAGES[case]
    layout = layout_of_images(names)
    assert {split: len(found) for split, found in layout.splits.items()} == splits
    assert layout.depth == depth


def test_listed_classes_are_no_splits() -> None:
    names = ["test/0.png", "train/0.png"]
    assert set(layout_of_images(names).splits) == {"test", "train"}
    assert set(layout_of_images(names, ("train", "test", "bus")).splits) == {""}


def test_a_split_is_chosen_by_any_of_its_names_or_by_a_pattern() -> None:
    layout = layout_of_files(["train-0.tar", "train-1.tar", "val-0.tar", "more.tar"])
    assert chosen(layout, "val", "x") == chosen(layout, "validation", "x") == ["val-0.tar"]
    assert chosen(layout, "training", "x") == ["train-0.tar", "train-1.tar"]
    assert chosen(layout, "*-0.tar", "x") == ["train-0.tar", "val-0.tar"]
    assert chosen(layout, "*", "x") == ["more.tar", "train-0.tar", "train-1.tar", "val-0.tar"]
    for wrong in ("test", "other", "x*"):
        with pytest.raises(DataError, match=r"has no split .*train \(2\), validation \(1\), 1 of"):
            chosen(layout, wrong, "x")
    with pytest.raises(DataError, match="no name in it is one of a split"):
        chosen(layout_of_files(["a.tar"]), "train", "x")
