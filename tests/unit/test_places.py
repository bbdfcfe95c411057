"""Which folder a word means: of this machine, of the package, of the hub; and what the hub may answer."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import rpiae
from rpiae.core.errors import CheckpointError, FetchError, UsageError
from rpiae.core.model import places
from rpiae.core.model.folders import load_tokenizer, save_tokenizer, tokenizer_folder
from rpiae.core.model.places import hub_place, is_borrowed, lasting_name, named_place, pinned_word
from rpiae.core.runtime import download
from tests.commands import rpiae as command
from tests.hub import TOKEN, Hub, Repository, hub_at_work
from tests.toy_generators import toy_tokenizer, write_run

NAME = "somebody/toy"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two toy tokenizers of equal architecture, and a generator's run."""
    folder = tmp_path_factory.mktemp("made")
    for seed in (0, 1):
        save_tokenizer(toy_tokenizer(seed), folder / f"{seed}")
    return write_run(folder / "run").parent


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    try:
        with hub_at_work(tmp_path / "cache") as made:
            yield made
    finally:
        monkeypatch.undo()


@pytest.fixture
def there(hub: Hub, made: Path) -> Repository:
    """A repository with a tokenizer at its top."""
    repository = hub.create(NAME)
    repository.add(made / "0")
    return repository


def same(model: rpiae.RPiAE, folder: Path) -> bool:
    own, other = model.state_dict(), load_file(folder / "model.safetensors")
    return own.keys() == other.keys() and all(torch.equal(own[n], other[n]) for n in own)


# The hub


def test_a_tokenizer_of_the_hub_is_that_of_its_folder(there: Repository, made: Path) -> None:
    model = rpiae.load(NAME, dtype=torch.float64)
    assert next(model.parameters()).dtype == torch.float64
    assert not model.training
    assert same(rpiae.load(NAME), made / "0")


def test_revisions_and_subfolders(there: Repository, made: Path) -> None:
    old = there.branches["main"]
    there.add(made / "1", branch="next")
    there.add(made / "1", below="models/b")
    for word, revision, subfolder, wanted in (
        (NAME, "", "", "0"),
        (NAME, "next", "", "1"),
        (NAME, old, "", "0"),
        (NAME, "", "models/b", "1"),
        (f"{NAME}@next", "", "", "1"),
        (f"{NAME}@main:models/b", "", "", "1"),
        (f"{NAME}:models/b", "main", "", "1"),
    ):
        assert same(rpiae.load(word, revision=revision, subfolder=subfolder), made / wanted)


def test_two_files_are_of_one_commit(there: Repository, made: Path) -> None:
    def moves() -> None:
        there.add(made / "1")

    server_moves = [lambda: None, moves]  # after config.json was answered for
    there_hub = Hub.__dict__  # noqa: F841
    del there_hub
    _hub_of(there).moves = server_moves
    assert same(rpiae.load(NAME), made / "0")
    assert same(rpiae.load(NAME), made / "1")
