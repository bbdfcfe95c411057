"""Finished stages that other runs go on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve

from rpiae import runs
from rpiae.core.config.parts import DatasetConfig
from rpiae.core.config.recipe import RunConfig
from rpiae.core.config.tree import Tree
from rpiae.core.errors import UsageError
from rpiae.core.model.build import build_tokenizer
from rpiae.core.model.folders import load_tokenizer, save_tokenizer
from rpiae.core.model.resolve import part_config
from rpiae.core.training import events
from rpiae.data.fingerprint import data_fingerprint
from rpiae.runs.history import HISTORY_FILE, Session, begin_session, trained_with
from rpiae.runs.recording import EVENTS_FILE
from rpiae.runs.stages import StageStore, machine, run_address, stage_address
from tests.short_run import short_run, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("stages") / "images")


def tree(images: Path, out: Path, **changes: Any) -> Tree:
    made = short_run(images, out, max_steps=2)
    made["data"]["workers"] = 0
    return made | changes


def config(images: Path, *overrides: str, **changes: Any) -> RunConfig:
    return runs.resolve(tree(images, Path("out"), **changes), overrides=overrides).config


def digests(given: Tree, store: StageStore | None, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """Digests of all stages, and how many steps were taken for them."""
    monkeypatch.setattr(
        "rpiae.runs.summary.evaluated", lambda *_: {"psnr": 1, "psnr_mean_colour": 1, "psnr_pca": 1}
    )
    found: Tree = {"steps": 0}
    for event in runs.run(given, stages=store):
        found["steps"] += isinstance(event, events.StepDone)
        if isinstance(event, events.StageEnded):
            found[event.stage] = dict(event.digests)
    return found


def test_a_shared_stage_leads_to_the_same_bits(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StageStore(tmp_path / "stages")
    alone = digests(tree(images, tmp_path / "alone", bridge="vb8"), None, monkeypatch)
    assert alone["steps"] == 6
    first = digests(tree(images, tmp_path / "first"), store, monkeypatch)
    assert first["steps"] == 6
    shared = digests(tree(images, tmp_path / "shared", bridge="vb8"), store, monkeypatch)
    assert shared["steps"] == 4, "Stage I was taken over"
    assert shared["compress"] == alone["compress"]
    assert shared["polish"] == alone["polish"]
    assert shared["tune"]["ema"] == first["tune"]["ema"]
    lines = (tmp_path / "shared" / EVENTS_FILE).read_text().splitlines()
    steps = [line for line in lines if '"StepDone"' in line]
    assert len(steps) == 6, "the curves have the shared stage too"


def test_the_end_of_a_recipe_is_the_beginning_of_another(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of Stage I alone ships the averages, a run of all three goes on from the weights."""
    store = StageStore(tmp_path / "stages")
    whole = tree(images, tmp_path / "whole")
    alone = digests(whole, None, monkeypatch)
    # With a bridge that needs no training: the stage does not have one in its path.
    resolved = runs.resolve(tree(images, tmp_path / "one", bridge="identity"))
    recipe = resolved.config.recipe
    one = evolve(
        resolved, config=evolve(resolved.config, recipe=evolve(recipe, stages=recipe.stages[:1]))
    )
    first = digests(one, store, monkeypatch)
    assert first["steps"] == 2
    again = tree(images, tmp_path / "again")
    shared = digests(again, store, monkeypatch)
    assert shared["steps"] == 4
    assert shared["polish"] == alone["polish"]
    whole_first = evolve(one, config=evolve(one.config, out=str(tmp_path / "taken")))
    taken = digests(whole_first, store, monkeypatch)
    assert taken["steps"] == 0
    saved = [
        (tmp_path / name / "tokenizer/model.safetensors").read_bytes() for name in ("one", "taken")
    ]
    assert saved[0] == saved[1]


def test_a_run_killed_before_it_took_over_a_stage_still_does(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StageStore(tmp_path / "stages")
    digests(tree(images, tmp_path / "first"), store, monkeypatch)

    def killed(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StageStore, "adopt", killed)
        with pytest.raises(KeyboardInterrupt):
            digests(tree(images, tmp_path / "second", bridge="vb8"), store, patched)
    seen = list(runs.resume(tmp_path / "second", stages=store))
    steps = [event for event in seen if isinstance(event, events.StepDone)]
    assert len(steps) == 4


def test_a_resumed_run_takes_over_what_was_finished_meanwhile(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StageStore(tmp_path / "stages")
    given = tree(images, tmp_path / "slow", bridge="vb8")
    for event in (
        happened := runs.run(runs.resolve(given, overrides=("recipe.checkpoint_every=1",)))
    ):
        if isinstance(event, events.CheckpointSaved):
            happened.close()
            break
    digests(tree(images, tmp_path / "fast"), store, monkeypatch)
    seen = list(runs.resume(tmp_path / "slow", stages=store))
    steps = [event.stage for event in seen if isinstance(event, events.StepDone)]
    assert steps == ["compress"] * 2 + ["polish"] * 2


def test_a_damaged_stage_is_trained_once_more_and_kept_anew(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = StageStore(tmp_path / "stages", wanted=[stage_address(config(images), 0)])
    first = digests(tree(images, tmp_path / "first"), store, monkeypatch)
    (kept,) = (tmp_path / "stages").glob("*.pt")
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.unlink()  # the run's checkpoint is the same file
    kept.write_bytes(content)
    again = digests(tree(images, tmp_path / "again"), store, monkeypatch)
    assert "is damaged" in caplog.text
    assert again["steps"] == first["steps"]
    assert again["polish"] == first["polish"]
    shared = digests(tree(images, tmp_path / "shared"), store, monkeypatch)
    assert shared["steps"] == first["steps"] - 2


def test_only_what_is_wanted_is_kept(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = stage_address(config(images), 1)
    store = StageStore(tmp_path / "stages", wanted=[wanted])
    digests(tree(images, tmp_path / "run"), store, monkeypatch)
    assert store.holds(wanted)
    assert len(list((tmp_path / "stages").glob("*.pt"))) == 1


def interrupted(
    given: Tree, steps: int, store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A run that was ended after some steps, each of which is saved."""
    happened = runs.run(runs.resolve(given, overrides=("recipe.checkpoint_every=1",)), stages=store)
    seen = 0
    for event in happened:
        seen += isinstance(event, events.StepDone)
        if seen == steps and isinstance(event, (events.CheckpointSaved, events.StageEnded)):
            happened.close()
            break
    return Path(given["out"])


@pytest.mark.parametrize(
    ("change", "steps", "kept"),
    [("precision=bf16", 3, 1), ("recipe.accumulate=2", 3, 1), ("precision=bf16", 2, 1),
     ("recipe.checkpoint_every=0", 3, 3)],
)  # fmt: skip
def test_what_a_resume_changed_is_not_kept_as_if_all_had_been_trained_so(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    steps: int,
    kept: int,
) -> None:
    store = StageStore(tmp_path / "stages")
    monkeypatch.setattr(
        "rpiae.runs.summary.evaluated", lambda *_: {"psnr": 1, "psnr_mean_colour": 1, "psnr_pca": 1}
    )
    out = interrupted(tree(images, tmp_path / "run"), steps, store, monkeypatch)
    before = runs.resolve(tree(images, out)).config
    list(runs.resume(out, overrides=(change,), stages=store))
    after = runs.resumed_config(out)[0].config
    found = {i: [store.holds(stage_address(c, i)) for c in (before, after)] for i in range(3)}
    assert found[0][0], "the first stage was trained as it began"
    assert len(list((tmp_path / "stages").glob("*.pt"))) == kept
    summary = json.loads((out / "summary.json").read_text())
    assert summary["address"] == ("" if kept == 1 else run_address(before))
    if kept == 1:
        assert not any(found[i][1] for i in range(3)), "nothing was trained so from end to end"
        model = build_tokenizer(runs.resolve(tree(images, out)).tokenizer, seed=3)
        assert store.adopt(evolve(after, out=str(tmp_path)), model, "cpu") == 0


def test_a_session_whose_work_was_lost_does_not_count(tmp_path: Path) -> None:
    def begin(stage: int, step: int, *settings: str) -> None:
        begin_session(tmp_path, Session(stage=stage, step=step, settings=settings, data="d"))

    begin(0, 0, "a0", "a1")
    begin(0, 3, "b0", "b1")
    assert trained_with(tmp_path, 0) == ""
    begin(0, 2, "a0", "a1")
    assert [trained_with(tmp_path, i) for i in (0, 1)] == ["a0", "a1"]
    begin(1, 0, "b0", "b1")
    assert [trained_with(tmp_path, i) for i in (0, 1)] == ["a0", "b1"]
    begin(1, 4, "c0", "b1")
    assert [trained_with(tmp_path, i) for i in (0, 1)] == ["a0", "b1"]
    (tmp_path / HISTORY_FILE).write_text("[{")
    assert trained_with(tmp_path, 0) == ""


def test_stages_of_another_kind_of_machine_are_not_taken_over(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StageStore(tmp_path / "stages")
    digests(tree(images, tmp_path / "first"), store, monkeypatch)
    given = config(images)
    model = build_tokenizer(runs.resolve(tree(images, tmp_path)).tokenizer, seed=3)
    other = evolve(given, out=str(tmp_path / "second"))
    assert store.holds(stage_address(other, 0))
    assert store.adopt(other, model, machine(torch.device("cuda"), 1)) == 0
    assert store.adopt(other, model, machine(torch.device("cpu"), 2)) == 0


def test_data_that_were_moved_are_the_same_and_others_are_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StageStore(tmp_path / "stages")
    out = interrupted(tree(images, tmp_path / "run"), 1, store, monkeypatch)
    moved, others = tmp_path / "moved", tmp_path / "others"
    shutil.copytree(images, moved)
    shutil.copytree(images, others)
    (others / "00.png").write_bytes((others / "01.png").read_bytes())
    config_before = (out / "config.toml").read_bytes()
    with pytest.raises(UsageError, match="not those that it was trained on"):
        list(runs.resume(out, overrides=(f"data.path='{others}'",)))
    assert (out / "config.toml").read_bytes() == config_before
    resolved, changed = runs.resumed_config(out, overrides=(f"data.path='{moved}'",))
    assert [change.path for change in changed] == ["data.path"]
    assert run_address(resolved.config) == run_address(runs.resumed_config(out)[0].config)


def test_a_finished_run_that_is_told_again_keeps_its_latent_norm(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests(tree(images, tmp_path / "run"), None, monkeypatch)
    folder = tmp_path / "run" / "tokenizer"
    model = load_tokenizer(folder)
    model.latent_mean, model.latent_std = torch.full((4,), 0.5), torch.full((4,), 2.0)
    save_tokenizer(model, folder)
    list(runs.resume(tmp_path / "run"))
    again = load_tokenizer(folder)
    assert again.latent_mean is not None
    assert again.latent_std is not None
    assert again.latent_mean.tolist() == [0.5] * 4
    assert again.latent_std.tolist() == [2.0] * 4


SAME = [
    ("out", {}, ("out='elsewhere'",)),
    ("workers", {}, ("data.workers=1",)),
    ("checkpoints", {}, ("recipe.checkpoint_every=1",)),
    ("device", {"device": "auto"}, ()),
]
OTHER = [
    ("seed", {"seed": 4}, ()),
    ("precision", {"precision": "bf16"}, ()),
    ("compiled", {"compile": True}, ()),
    ("noise", {}, ("recipe.stages[0].noise=0.3",)),
    ("batch", {}, ("recipe.batch_size=2",)),
    ("length", {}, ("recipe.max_steps=3",)),
    ("term", {}, ("recipe.stages[0].terms[1].weight=0.3",)),
    ("crop", {}, ("data.image_size=24",)),
    ("decoder", {}, ("decoder.depth=2",)),
    ("accumulation", {}, ("recipe.accumulate=2",)),
    (
        "padding",
        {"bridge": {"name": "conv", "latent_channels": 4, "downsampling": 2}},
        (),
    ),
]


@pytest.mark.parametrize(("name", "changes", "overrides"), SAME, ids=[row[0] for row in SAME])
def test_what_does_not_change_an_address(
    images: Path, name: str, changes: Any, overrides: tuple[str, ...]
) -> None:
    changed = config(images, *overrides, **changes)
    assert stage_address(changed, 0) == stage_address(config(images), 0)
    assert run_address(changed) == run_address(config(images))


@pytest.mark.parametrize(("name", "changes", "overrides"), OTHER, ids=[row[0] for row in OTHER])
def test_what_changes_an_address(
    images: Path, name: str, changes: Any, overrides: tuple[str, ...]
) -> None:
    changed = config(images, *overrides, **changes)
    assert stage_address(changed, 0) != stage_address(config(images), 0)
    assert run_address(changed) != run_address(config(images))


def test_a_bridge_counts_from_the_first_stage_that_has_it_in_its_path(images: Path) -> None:
    one, other = config(images), config(images, bridge="vb8")
    assert stage_address(one, 0) == stage_address(other, 0)
    assert stage_address(one, 1) != stage_address(other, 1)
    assert run_address(one) != run_address(other)


def test_a_cap_that_caps_nothing_does_not_count(images: Path) -> None:
    one, other = (config(images, f"recipe.max_steps={n}") for n in (10**6, 10**7))
    assert run_address(one) == run_address(other)


def test_the_content_of_a_mixtures_sources_counts(tmp_path: Path) -> None:
    pictures = write_images(tmp_path / "a", count=4)
    tree = {"name": "mixture", "sources": [{"data": {"name": "folder", "path": str(pictures)}}]}

    def fingerprint() -> str:
        data = part_config("datasets", tree)
        assert isinstance(data, DatasetConfig)
        data_fingerprint.cache_clear()
        return data_fingerprint(data)

    before = fingerprint()
    assert fingerprint() == before
    (pictures / "00.png").write_bytes(b"other")
    assert fingerprint() != before


def test_the_content_of_named_weights_counts(images: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"one")
    lpips = f"recipe.stages[0].terms[1].loss={{name='lpips', weights='{weights}'}}"
    before = stage_address(config(images, lpips), 0)
    weights.write_bytes(b"two")
    assert stage_address(config(images, lpips), 0) != before


def test_the_content_of_data_counts(tmp_path: Path) -> None:
    first = write_images(tmp_path / "a", count=4)
    same = write_images(tmp_path / "b", count=4)
    one, two = (config(path).data for path in (first, same))
    assert one is not None
    assert two is not None
    (same / "00.png").write_bytes((same / "01.png").read_bytes())
    data_fingerprint.cache_clear()
    assert data_fingerprint(one) != data_fingerprint(two)
