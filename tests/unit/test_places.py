"""Which folder a word means: of this machine, of the package, of the hub; and what the hub may answer."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file

import rpiae
from rpiae.core.errors import CheckpointError, FetchError, RpiaeError, UsageError
from rpiae.core.model import shipped
from rpiae.core.model.folders import load_tokenizer, save_tokenizer, tokenizer_folder
from rpiae.core.model.places import (
    hub_place,
    is_borrowed,
    lasting_name,
    lasting_word,
    named_place,
    pinned_word,
)
from rpiae.core.runtime import download
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
    with monkeypatch.context() as inside, hub_at_work(tmp_path / "cache") as made:
        (tmp_path / "work").mkdir()
        inside.chdir(tmp_path / "work")
        yield made


@pytest.fixture
def there(hub: Hub, made: Path) -> Repository:
    """A repository with a tokenizer at its top."""
    repository = hub.create(NAME)
    repository.add(made / "0")
    return repository


def same(model: rpiae.RPiAE, folder: Path) -> bool:
    own, other = model.state_dict(), load_file(folder / "model.safetensors")
    return own.keys() == other.keys() and all(torch.equal(own[n], other[n]) for n in own)


def changed(folder: Path, target: Path, state: dict[str, torch.Tensor]) -> Path:
    """A copy of a tokenizer with other tensors, without the digests that would tell."""
    target.mkdir()
    config = json.loads((folder / "config.json").read_text())
    rest = {name: value for name, value in config.items() if "sha256" not in name}
    (target / "config.json").write_text(json.dumps(rest))
    save_file(state, target / "model.safetensors")
    return target


def in_shards(folder: Path, target: Path) -> list[Path]:
    """A copy of a tokenizer whose weights huggingface_hub has split; its shards."""
    target.mkdir()
    state = load_file(folder / "model.safetensors")
    split = split_torch_state_dict_into_shards(state, max_shard_size=40_000)
    for name, tensors in split.filename_to_tensors.items():
        save_file({each: state[each] for each in tensors}, target / name)
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(folder / "config.json", target)
    return sorted(target / name for name in split.filename_to_tensors)


# The hub


def test_a_tokenizer_of_the_hub_is_that_of_its_folder(there: Repository, made: Path) -> None:
    assert same(rpiae.load(NAME), made / "0")
    assert same(rpiae.from_pretrained(NAME, revision="main"), made / "0")
    half = rpiae.load(NAME, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert not half.training


def test_revisions_and_subfolders(there: Repository, made: Path) -> None:
    old = there.branches["main"]
    there.add(made / "1", branch="a/b")
    there.add(made / "1", below="models/b")
    for word, revision, subfolder, wanted in (
        (NAME, "", "", "0"),
        (NAME, "a/b", "", "1"),
        (NAME, old, "", "0"),
        (NAME, "", "models/b", "1"),
        (f"{NAME}@a/b", "", "", "1"),
        (f"{NAME}@main:models/b", "", "", "1"),
        (f"{NAME}:models/b", "main", "", "1"),
    ):
        assert same(rpiae.load(word, revision=revision, subfolder=subfolder), made / wanted)
    with pytest.raises(UsageError, match="two revisions"):
        rpiae.load(f"{NAME}@{old}", revision="a/b")


def test_all_files_are_of_one_commit(hub: Hub, there: Repository, made: Path) -> None:
    hub.moves = [lambda: None, lambda: there.add(made / "1")]  # once config.json was answered for
    assert same(rpiae.load(NAME), made / "0")
    assert same(rpiae.load(NAME), made / "1")


def test_a_word_is_pinned_to_its_commit(there: Repository, made: Path) -> None:
    old = there.branches["main"]
    word = pinned_word(NAME, "tokenizer")
    assert word == f"{NAME}@{old}" == lasting_name(tokenizer_folder(NAME)) == lasting_word(word)
    there.add(made / "1")
    assert same(load_tokenizer(word), made / "0")
    assert is_borrowed(tokenizer_folder(word))


def test_shards_are_read_from_the_hub(hub: Hub, made: Path, tmp_path: Path) -> None:
    assert len(in_shards(made / "0", tmp_path / "shards")) > 2
    hub.create(NAME).add(tmp_path / "shards", below="deep/down")
    assert same(rpiae.load(NAME, subfolder="deep/down"), made / "0")


def test_a_generator_comes_with_its_tokenizer(hub: Hub, made: Path) -> None:
    hub.create(NAME).add(made / "run")
    here = rpiae.load_generator(made / "run").sample([0], steps=1)
    assert torch.equal(rpiae.load_generator(NAME).sample([0], steps=1), here)
    assert same(rpiae.load(NAME), made / "run" / "tokenizer")  # as of the run's folder
    hub.create("somebody/half").add(made / "run" / "generator", below="generator")
    generator = rpiae.load_generator("somebody/half", tokenizer=NAME)
    assert torch.equal(generator.sample([0], steps=1), here)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (f"{NAME}@nope", "it has no revision 'nope': name a branch, tag or commit"),
        ("somebody/none", "there is no such repository, or it is private"),
        ("somebody/private", "there is no such repository, or it is private"),
        ("somebody/gated", "it is gated: ask for access on its page"),
        ("somebody/empty", "the repository has none of config.json, tokenizer/config.json"),
        (f"{NAME}:below", "none of below/config.json, below/tokenizer/config.json"),
        ("somebody/bare", "none of model.safetensors, model.safetensors.index.json"),
    ],
)
def test_the_hub_s_refusals_are_sentences(
    word: str, said: str, hub: Hub, there: Repository
) -> None:
    hub.create("somebody/private", private=True)
    hub.create("somebody/gated", gated=True)
    hub.create("somebody/empty")
    hub.create("somebody/bare").commit({"config.json": there.files["config.json"]})
    with pytest.raises(FetchError, match=said) as caught:
        rpiae.load(word)
    assert "\n" not in str(caught.value)
    assert not list(Path().iterdir())


def test_a_token_opens_what_is_private(
    hub: Hub, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create(NAME, private=True).add(made / "0")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert same(rpiae.load(NAME), made / "0")


def test_what_is_no_model_of_ours_is_not_downloaded(hub: Hub, made: Path) -> None:
    foreign = {"config.json": b'{"model_type": "vit"}', "model.safetensors": b"large"}
    hub.create("somebody/vit").commit(foreign)
    with pytest.raises(
        CheckpointError, match=r"is not of a model that rpiae saved\. `rpiae import`"
    ):
        rpiae.load("somebody/vit")
    hub.create("somebody/generator").add(made / "run" / "generator")
    with pytest.raises(CheckpointError, match="holds a generator, and a tokenizer is wanted"):
        rpiae.load("somebody/generator")
    assert not [each for each in hub.asked if "model.safetensors" in each]


def test_a_renamed_key_and_a_wrong_shape_are_errors(hub: Hub, made: Path, tmp_path: Path) -> None:
    state = load_file(made / "0" / "model.safetensors")
    name = "decoder.blocks.0.attn.qkv.weight"
    renamed = {"decoder.other" if n == name else n: t for n, t in state.items()}
    hub.create(NAME).add(changed(made / "0", tmp_path / "renamed", renamed))
    with pytest.raises(CheckpointError, match=rf"1 tensors missing, 1 tensors unknown \({name}"):
        rpiae.load(NAME)
    cut = state | {name: state[name].flatten()[:-1].clone()}
    hub.create(NAME).add(changed(made / "0", tmp_path / "cut", cut))
    with pytest.raises(CheckpointError, match=f"{name} is .* there and .* here"):
        rpiae.load(NAME)


def test_a_half_precision_model_stays_one(hub: Hub, made: Path, tmp_path: Path) -> None:
    save_tokenizer(toy_tokenizer().to(torch.bfloat16), tmp_path / "half")
    hub.create(NAME).add(tmp_path / "half")
    assert {p.dtype for p in rpiae.load(NAME).parameters()} == {torch.bfloat16}


# Without the hub


def test_the_cache_serves_offline(
    there: Repository, hub: Hub, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rpiae.load(NAME)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.asked.clear()
    assert same(rpiae.load(NAME), made / "0")
    with pytest.raises(FetchError, match=r"not in the cache, and HF_HUB_OFFLINE is set.*Ways out"):
        rpiae.load("somebody/else")
    assert not hub.asked


def test_what_a_repository_lacks_is_known_offline(
    hub: Hub, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create(NAME).add(made / "run" / "generator", below="generator")
    named_place(NAME, "generator")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert (named_place(NAME, "generator") / "generator").is_dir()


def test_a_cache_that_cannot_be_written_is_done_without(
    there: Repository, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    download.temporary_cache.cache_clear()
    with caplog.at_level(logging.WARNING, logger="rpiae"):
        assert same(rpiae.load(NAME), made / "0")
    assert "Set HF_HOME to a folder that can be written" in caplog.text


def test_a_user_without_a_home_has_a_cache_for_the_process(
    there: Repository, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "~nobody-of-that-name/hub")
    assert same(rpiae.load(NAME), made / "0")
    assert not list(Path().iterdir())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchError, match="HF_HUB_OFFLINE is set"):
        rpiae.load("somebody/else")


# This machine


def test_a_path_never_leads_to_the_hub(hub: Hub, made: Path) -> None:
    hub.create(NAME).add(made / "1")
    shutil.copytree(made / "0", NAME)
    assert same(rpiae.load(NAME), made / "0")
    for word in (
        "somebody/missing", "./nobody/toy", "../nobody/toy", "/nobody/toy", "~/toy", "a/b/c",
        "nobody\\toy", "nobody/toy/", ".hidden/toy", Path("nobody/toy"),
    ):  # fmt: skip
        assert hub_place(word) is None
        with pytest.raises(CheckpointError, match="does not exist"):
            rpiae.load(word)
    with pytest.raises(
        UsageError, match="no repository of the hub, user/name, and only these have revisions"
    ):
        rpiae.load(NAME, revision="main")
    assert not hub.asked


def test_a_subfolder_stays_below(hub: Hub, made: Path) -> None:
    assert same(rpiae.load(made, subfolder="1"), made / "1")
    for subfolder in ("../0", "/0", "a\\b"):
        for word in (made, NAME):
            with pytest.raises(UsageError, match="leads elsewhere"):
                rpiae.load(word, subfolder=subfolder)
    for word in (f"{NAME}@", f"{NAME}@main:", f"{NAME}@a b", f"{NAME}@../x"):
        with pytest.raises(UsageError):
            rpiae.load(word)
    assert not hub.asked


def test_models_that_ship_go_by_their_names(
    hub: Hub, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package" / "pretrained"
    shutil.copytree(made / "0", package / "small-one")
    shutil.copytree(made / "run", package / "whole")
    monkeypatch.setattr(shipped.importlib.resources, "files", lambda _: package.parent)
    assert same(rpiae.load("small-one"), made / "0")
    assert rpiae.load_generator("whole").model.num_classes == 3
    assert lasting_word("small-one") == lasting_name(package / "small-one") == "small-one"
    assert is_borrowed(tokenizer_folder("whole"))
    with pytest.raises(CheckpointError, match=r"\(small-one, whole\)\. Did you mean 'small-one'"):
        rpiae.load("small-on")
    with pytest.raises(CheckpointError, match="does not exist") as refused:
        rpiae.load("small-one", subfolder="there")
    assert "Did you mean" not in str(refused.value)
    shutil.copytree(made / "1", "small-one")
    assert same(rpiae.load("small-one"), made / "1")


def test_weights_in_shards(made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = in_shards(made / "0", tmp_path / "shards")
    with caplog.at_level(logging.WARNING, logger="rpiae"):
        assert same(rpiae.load(tmp_path / "shards"), made / "0")
    assert "has its weights in shards" in caplog.text
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=f"{shards[1].name} cannot be read"):
        rpiae.load(tmp_path / "shards")
    shards[1].write_bytes(shards[2].read_bytes())
    with pytest.raises(CheckpointError, match="its shards and its index are not of one model"):
        rpiae.load(tmp_path / "shards")
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"{shards[1].name} cannot be read"):
        rpiae.load(tmp_path / "shards")
    shards[1].write_bytes(content)
    index = shards[0].with_name("model.safetensors.index.json")
    where = json.loads(index.read_text())["weight_map"]
    for broken, said in (
        ({"weight_map": {n: f"../{f}" for n, f in where.items()}}, "shards lie beside the index"),
        (
            {"weight_map": {f"x.{n}": f for n, f in where.items()}},
            "is in its index alone|not in its",
        ),
        ([], "no index of shards"),
    ):
        index.write_text(json.dumps(broken))
        with pytest.raises(RpiaeError, match=said):
            rpiae.load(tmp_path / "shards")


def test_the_index_is_not_looked_at_beside_a_file(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "0", tmp_path / "both")
    (tmp_path / "both" / "model.safetensors.index.json").write_text("no index")
    assert same(rpiae.load(tmp_path / "both"), made / "0")
