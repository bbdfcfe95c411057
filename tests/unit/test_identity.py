"""What tells one config from another: fields, the files that they name, and nothing else on the disk."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from rpiae import runs
from rpiae.core.config.fields import names_file
from rpiae.core.config.generation import FlowConfig, GeneratorRunConfig
from rpiae.core.config.identity import identity, pinned, unpinned
from rpiae.core.config.parts import DatasetConfig, PartConfig
from rpiae.core.config.recipe import (
    AdaptiveConfig,
    OptimiserConfig,
    RecipeConfig,
    RunConfig,
    SpikeGuardConfig,
    StageConfig,
    TermConfig,
)
from rpiae.core.config.tree import Tree, unparse
from rpiae.core.errors import DataError
from rpiae.core.model.resolve import part_config
from rpiae.core.registry.registry import registry
from rpiae.core.runtime.processes import Runtime
from rpiae.data.configs import MixtureSourceConfig
from rpiae.data.fingerprint import data_fingerprint
from rpiae.losses.configs import L1LossConfig
from rpiae.runs.resolving import settled
from rpiae.runs.stages import run_address
from tests.short_run import short_run, write_images

FAMILIES = ("encoders", "bridges", "decoders", "losses", "critics", "datasets", "metrics")

#: Fields that no result depends on, beside every part's ``preset``; a new one belongs here on purpose.
WITHOUT_EFFECT = {
    "RunConfig": {"out", "device", "wandb_project", "requires", "imports"},
    "RecipeConfig": {
        "summary", "recompute", "evaluate_every", "checkpoint_every", "read_every", "keep_checkpoints", "metrics",
        "default_data", "default_resize", "default_positions",
    },
    "StageConfig": {"best", "without_init", "more_ema"},
    "GeneratorRunConfig": {
        "latents", "tokenizer", "workers", "out", "device", "wandb_project", "requires", "imports",
    },
    "datasets": {"workers"},
}  # fmt: skip


#: Fields that a resume may change although results depend on them.
ROUNDING = {
    "RunConfig": {"precision", "compile"}, "GeneratorRunConfig": {"precision", "compile"},
    "RecipeConfig": {"accumulate"},
}  # fmt: skip
LOADED = {"weights", "weights_key", "hub_id", "revision", "url"}


def declared(cls: Any, effect: str) -> set[str]:
    """Fields of a class with that effect; each says why."""
    found = {a.name: a.metadata for a in attrs.fields(cls) if a.metadata.get("affects") == effect}
    assert all(metadata["reason"] for metadata in found.values())
    return set(found)


def built_in_configs() -> list[type[PartConfig]]:
    entries = [e for f in FAMILIES for e in registry(f).entries() if e.distribution == "rpiae"]
    return list(dict.fromkeys(entry.config_class() for entry in entries))


CLASSES: list[Any] = [
    *built_in_configs(), StageConfig, TermConfig, AdaptiveConfig, OptimiserConfig, RecipeConfig, RunConfig,
    MixtureSourceConfig, GeneratorRunConfig, FlowConfig, SpikeGuardConfig,
]  # fmt: skip


def plain(cls: Any) -> Any:
    """A config of a class with something in every field that has no default."""
    needed = {a.name: f"given {a.name}" for a in attrs.fields(cls) if a.default is attrs.NOTHING}
    return cls(**needed)


def another(value: Any) -> Any:
    """A value that is not this one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return f"{value}other"
    if isinstance(value, tuple):
        return (*value, "other")
    if isinstance(value, dict):
        return value | {"other": 1}
    return "other"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_field_counts_or_is_declared_to_have_no_effect(
    cls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if issubclass(cls, DatasetConfig):
        monkeypatch.setattr(cls, "files", lambda self: None)  # of its files, see below
    if hasattr(cls, "__attrs_post_init__"):  # whatever the value, it has to count
        monkeypatch.setattr(cls, "__attrs_post_init__", lambda self: None)
    free, family = declared(cls, "nothing"), getattr(cls, "family", "")
    expected = {"preset"} if issubclass(cls, PartConfig) else set()
    expected |= WITHOUT_EFFECT.get(cls.__name__, set())
    assert free - expected <= WITHOUT_EFFECT.get(family, set())
    assert declared(cls, "rounding") == ROUNDING.get(cls.__name__, set())
    assert declared(cls, "start") <= (LOADED if family == "encoders" else set())
    config = plain(cls)
    before = json.dumps(identity(config), sort_keys=True)
    for a in attrs.fields(cls):
        changed = evolve(config, **{a.name: another(getattr(config, a.name))})
        after = json.dumps(identity(changed), sort_keys=True)
        assert (after == before) == (a.name in free), a.name


#: Another value for every field of a run and its recipe.
CHANGES: dict[str, Tree | str] = {
    "encoder": {"encoder": {"name": "vit", "width": 48, "depth": 1, "num_heads": 2}},
    "bridge": {"bridge": "vb8"},
    "decoder": "decoder.depth=2",
    "recipe": "recipe.stages[0].noise=0.3",
    "data": "data.image_size=24",
    "seed": {"seed": 4},
    "precision": {"precision": "bf16"},
    "compile": {"compile": True},
    "recipe.stages": "recipe.stages[2].optimiser.clip=1.5",
    "recipe.batch_size": "recipe.batch_size=2",
    "recipe.max_steps": "recipe.max_steps=3",
    "recipe.accumulate": "recipe.accumulate=2",
    "out": "out='elsewhere'",
    "device": {"device": "auto"},
    "wandb_project": "wandb_project='mine'",
    "requires": "requires=['pip']",
    "imports": "imports=['json']",
    "recipe.summary": "recipe.summary='other'",
    "recipe.recompute": "recipe.recompute=true",
    "recipe.evaluate_every": "recipe.evaluate_every=1",
    "recipe.checkpoint_every": "recipe.checkpoint_every=1",
    "recipe.keep_checkpoints": "recipe.keep_checkpoints=3",
    "recipe.read_every": "recipe.read_every=3",
    "recipe.spike_guard": "recipe.spike_guard={factor=9.0}",
    "recipe.metrics": "recipe.metrics=['psnr']",
    "recipe.default_data": "recipe.default_data='sample'",
}

#: What a run starts from has tests of its own; the others choose or fill in what counts.
ELSEWHERE = {
    "init", "init_parts", "recipe.name", "recipe.default_resize", "recipe.default_positions",
    "recipe.preset",
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("identity") / "images", count=6)


def address(images: Path, *changes: Tree | str) -> str:
    tree = short_run(images, Path("out"))
    overrides = tuple(change for change in changes if isinstance(change, str))
    for change in changes:
        tree |= change if isinstance(change, dict) else {}
    return run_address(runs.resolve(tree, overrides=overrides).config)


@pytest.mark.parametrize("field", CHANGES)
def test_a_runs_address(images: Path, field: str) -> None:
    cls: Any = RecipeConfig if field.startswith("recipe.") else RunConfig
    free = field.rpartition(".")[2] in declared(cls, "nothing")
    assert (address(images, CHANGES[field]) == address(images)) == free


def test_no_field_of_a_run_is_forgotten() -> None:
    known = {a.name for a in attrs.fields(RunConfig)}
    known |= {f"recipe.{a.name}" for a in attrs.fields(RecipeConfig)}
    assert known == CHANGES.keys() | ELSEWHERE


def dataset(name: str, path: str | Path, **fields: Any) -> DatasetConfig:
    made = part_config("datasets", {"name": name, "path": str(path), **fields})
    assert isinstance(made, DatasetConfig)
    return made


def fingerprint(data: DatasetConfig) -> str:
    data_fingerprint.cache_clear()
    return data_fingerprint(data)


REMOTE = [
    ("hf", "owner/a", "owner/b", {}),
    ("webdataset", "https://h/a-{0000..0001}.tar", "https://h/b-{0000..0001}.tar", {"streaming": True}),
    ("webdataset", "https://h/a-{0000..0001}.tar", "https://h/a-{0000..0002}.tar", {"streaming": True}),
    ("webdataset", "gs://bucket/a.tar", "gs://bucket/b.tar", {"streaming": True}),
    ("webdataset", "pipe:cat a.tar", "pipe:cat b.tar", {"streaming": True}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "one", "other", "fields"), REMOTE)
def test_what_is_not_on_a_disk_counts_by_its_name(
    name: str, one: str, other: str, fields: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RPIAE_ALLOW_PIPE", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert fingerprint(dataset(name, one, **fields)) != fingerprint(dataset(name, other, **fields))
    assert fingerprint(dataset(name, one, **fields)) == fingerprint(dataset(name, one, **fields))


def test_the_revision_of_a_hubs_dataset_counts() -> None:
    one, other = (dataset("hf", "owner/a", revision=revision) for revision in ("", "v2"))
    assert fingerprint(one) != fingerprint(other)


def cached(hub: Path, repository: str, commit: str, *, kind: str = "models") -> None:
    """A repository in the hub's cache, as a download of its main branch leaves it."""
    reference = hub / f"{kind}--{repository.replace('/', '--')}" / "refs" / "main"
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)


ONE, OTHER = "1" * 40, "2" * 40


def test_a_branch_of_the_hub_counts_by_the_commit_that_the_cache_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    given: Tree = {"name": "timm", "model": "m", "hub_id": "owner/a", "revision": "main"}
    encoder = part_config("encoders", given)
    backbone = part_config("critics", {"name": "dino", "backbone": "dino-s8"})
    data = dataset("hf", "owner/a")
    unknown = [identity(each) for each in (encoder, backbone, data)]
    assert unpinned((encoder, data)) == [encoder, data]
    cached(tmp_path, "owner/a", ONE)
    cached(tmp_path, "timm/vit_small_patch8_224.dino", ONE)
    cached(tmp_path, "owner/a", ONE, kind="datasets")
    assert unpinned((encoder, data)) == []
    for before, each in zip(unknown, (encoder, backbone, data), strict=True):
        assert identity(each) != before
        assert identity(each) == identity(pinned(each))
    written = pinned(encoder)
    assert written == part_config("encoders", given | {"revision": ONE})
    cached(tmp_path, "owner/a", OTHER)
    assert identity(encoder) != identity(written) == identity(pinned(written))


def test_a_model_that_its_library_finds_is_pinned_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    encoder: Any = part_config("encoders", "timm:vit_tiny_patch16_224")
    cached(tmp_path, encoder.repository(), ONE)
    assert encoder.repository().startswith("timm/vit_tiny_patch16_224")
    assert pinned(encoder) == evolve(encoder, revision=ONE)
    assert identity(pinned(encoder)) == identity(encoder)


def test_a_run_writes_down_the_commits_that_it_loads_and_the_plan_names_unknown_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    tree = {"encoder": "dinov2-s", "recipe": "quick", "data": "hf:owner/a", "precision": "fp32"}
    resolved = runs.resolve(tree)
    assert any("which commit of owner/a is taken" in notice for notice in resolved.notices)
    encoder = resolved.config.encoder
    cached(tmp_path, encoder.repository(), ONE)
    cached(tmp_path, "owner/a", OTHER, kind="datasets")
    written = settled(resolved, Runtime(device="cpu", precision="fp32")).config
    assert written.encoder == evolve(encoder, revision=ONE)
    assert getattr(written.data, "revision", "") == OTHER
    assert run_address(written) == run_address(resolved.config)
    again = runs.resolve(unparse(written))
    assert not any("which commit" in notice for notice in again.notices)


def test_what_is_not_loaded_from_the_hub_is_not_looked_for_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    given: Tree = {"name": "timm", "model": "m", "hub_id": "owner/a"}
    cached(tmp_path, "owner/a", ONE)
    for more in ({"weights": "w.pth"}, {"pretrained": False}):
        encoder = part_config("encoders", given | more)
        assert pinned(encoder) == encoder
        assert unpinned(encoder) == []
    folder = tmp_path / "folder"
    folder.mkdir()
    assert unpinned(dataset("hf", folder)) == []


@pytest.mark.parametrize(
    "change", ["encoder.hub_id='owner/b'", "encoder.revision='v2'", "encoder.url='https://h/b.pth'"]
)
def test_where_an_encoders_weights_are_from_counts(images: Path, change: str) -> None:
    timm: Tree = {"encoder": {"name": "timm", "model": "vit_tiny_patch16_224", "hub_id": "owner/a"}}
    assert address(images, timm) != address(images, timm, change)


def test_a_file_that_is_called_like_a_value_does_not_count(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    metric = part_config("metrics", "rfd:tiny")
    run = runs.resolve(short_run(images, Path("out"))).config
    before = run_address(run), identity(metric)
    values = {
        "tiny", "vit", "vb4", "vit-t", "quick", "tune", "decoder", "mode", "cosine", "cpu", "conv",
        "tiny.safetensors", "l1", "encoder",
    }  # fmt: skip
    for value in values:
        Path(value).write_text("anything")
    assert (run_address(run), identity(metric)) == before


WEIGHTS = [
    ("losses", {"name": "lpips"}, "weights", "{}"),
    ("encoders", {"name": "vit"}, "weights", "{}"),
    ("encoders", {"name": "timm", "model": "m"}, "weights", "{}"),
    ("encoders", {"name": "open-clip", "model": "m"}, "weights", "{}"),
    ("critics", {"name": "dino", "backbone": {"name": "vit", "depth": 12}}, "backbone.weights", "{}"),
    ("metrics", {"name": "lpips"}, "weights", "{}"),
    ("metrics", {"name": "rfid"}, "weights", "{}"),
    ("metrics", {"name": "rfd"}, "reference", "{}"),
    ("metrics", {"name": "rfd"}, "space", "cnn:{}"),
    ("metrics", {"name": "rfd"}, "space", "Inception:{}"),
    ("metrics", {"name": "ifd"}, "space", "cnn:{}"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "tree", "field", "form"), WEIGHTS)
def test_named_files_count_by_their_content_and_not_by_where_they_lie(
    family: str, tree: Tree, field: str, form: str, tmp_path: Path
) -> None:
    def found(file: Path) -> Any:
        given: Tree = json.loads(json.dumps(tree))
        inside = given["backbone"] if field.startswith("backbone.") else given
        inside[field.rpartition(".")[2]] = form.format(file)
        return identity(part_config(family, given))

    file, moved = tmp_path / "w.pth", tmp_path / "elsewhere" / "v.pth"
    absent = found(file)
    file.write_bytes(b"one")
    before = found(file)
    moved.parent.mkdir()
    shutil.copy(file, moved)
    assert found(moved) == before != absent
    file.write_bytes(b"two")
    assert found(file) != before


def test_all_files_of_weights_in_shards_count(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    for name in ("one", "two"):
        (tmp_path / f"{name}.safetensors").write_bytes(name.encode())
    loss = part_config("losses", {"name": "lpips", "weights": str(index)})
    before = identity(loss)
    (tmp_path / "two.safetensors").write_bytes(b"other")
    assert identity(loss) != before


def tar(path: Path, files: Iterator[Path]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for file in files:
            archive.add(file, file.name)
    return path


class TestFolders:
    """Folders of images: exactly what is read counts."""

    def test_links_are_followed_as_the_source_follows_them(self, tmp_path: Path) -> None:
        inside = write_images(tmp_path / "store" / "cats", count=3)
        folder = tmp_path / "data"
        folder.mkdir()
        (folder / "cats").symlink_to(inside)
        write_images(folder / "dogs", count=3)
        before = fingerprint(dataset("folder", folder))
        (inside / "00.png").write_bytes((inside / "01.png").read_bytes())
        assert fingerprint(dataset("folder", folder)) != before

    def test_what_is_not_read_does_not_count(self, tmp_path: Path) -> None:
        folder = write_images(tmp_path / "data", count=3)
        before = fingerprint(dataset("folder", folder))
        (folder / "notes.txt").write_text("x")
        (folder / ".hidden.png").write_bytes(b"x")
        assert fingerprint(dataset("folder", folder)) == before

    def test_where_it_lies_does_not_count(self, tmp_path: Path) -> None:
        folder = write_images(tmp_path / "data", count=3)
        before = fingerprint(dataset("folder", folder))
        shutil.copytree(folder, tmp_path / "deep" / "copy")
        assert fingerprint(dataset("folder", tmp_path / "deep" / "copy", workers=0)) == before

    @pytest.mark.parametrize("name", [b"broken\xff.png", b"a\nb.png", "\N{SNOWMAN}.png".encode()])
    def test_names_are_bytes(self, tmp_path: Path, name: bytes) -> None:
        folder = write_images(tmp_path / "data", count=3)
        before = fingerprint(dataset("folder", folder))
        shutil.copy(folder / "00.png", os.fsencode(folder) + b"/" + name)
        assert fingerprint(dataset("folder", folder)) != before

    def test_names_that_are_printed_alike_differ(self, tmp_path: Path) -> None:
        found = set()
        for name in (b"\xff.png", b"\\xff.png"):
            folder = write_images(tmp_path / str(len(found)), count=3)
            (folder / "00.png").rename(folder / os.fsdecode(name))
            found.add(fingerprint(dataset("folder", folder)))
        assert len(found) == 2

    def test_a_class_without_images_counts_for_it_shifts_the_others(self, tmp_path: Path) -> None:
        for name in ("b", "c"):
            write_images(tmp_path / "train" / name, count=2)
        data = dataset("folder", tmp_path / "train")
        found = {fingerprint(data)}
        (tmp_path / "val" / "b").mkdir(parents=True)
        (tmp_path / "val" / "d").mkdir()
        found.add(fingerprint(data))
        (tmp_path / "train" / "a").mkdir()
        found.add(fingerprint(data))
        assert len(found) == 3

    def test_of_large_data_names_sizes_and_times_count(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rpiae.core.config.identity.READ_WHOLE", 10)
        folder = write_images(tmp_path / "data", count=3)
        data = dataset("folder", folder)
        before, without = fingerprint(data), data_fingerprint(data, times=False)
        os.utime(folder / "00.png", (1, 1))
        assert fingerprint(data) != before
        assert data_fingerprint(data, times=False) == without

    def test_what_is_not_there_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="there is no such folder"):
            fingerprint(dataset("folder", tmp_path / "nothing"))


def test_local_shards_count_by_content_and_urls_beside_them_by_name(tmp_path: Path) -> None:
    pictures = write_images(tmp_path / "images", count=4)
    tar(tmp_path / "a" / "0.tar", pictures.glob("0[01].png"))
    data = dataset("webdataset", tmp_path / "a" / "{0..0}.tar")
    before = fingerprint(data)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert fingerprint(dataset("webdataset", tmp_path / "b" / "{0..0}.tar")) == before
    tar(tmp_path / "a" / "0.tar", pictures.glob("0[12].png"))
    assert fingerprint(data) != before
    folder = fingerprint(dataset("hf", tmp_path / "a"))
    tar(tmp_path / "a" / "1.tar", pictures.glob("0[12].png"))
    assert fingerprint(dataset("hf", tmp_path / "a")) != folder


@attrs.frozen(kw_only=True)
class PluginDatasetConfig(DatasetConfig):
    path: str = names_file("")
    other: str = ""


def test_a_plugins_dataset_declares_what_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_images(tmp_path / "data", count=3)
    data = PluginDatasetConfig(name="mine", path="data", other="data")
    before = fingerprint(data)
    assert fingerprint(evolve(data, path=str(folder))) == before
    (folder / "00.png").write_bytes(b"x")
    assert fingerprint(data) != before


@given(st.dictionaries(st.sampled_from(["noise", "ema", "batch_size", "name"]), st.integers(0, 3)))
def test_stages_that_differ_never_share_an_identity(values: dict[str, int]) -> None:
    stage = StageConfig(
        name="a", train=("decoder",), steps=2, terms=(TermConfig(loss=L1LossConfig(name="l1")),)
    )
    changed = evolve(stage, **{k: str(v) if k == "name" else v for k, v in values.items()})
    assert (identity(changed) == identity(stage)) == (changed == stage)
