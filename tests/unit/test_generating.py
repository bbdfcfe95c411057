"""Generators' runs: what they learn from, how they go on, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rpiae import runs
from rpiae.core.config.generation import FlowConfig
from rpiae.core.config.tree import read_toml
from rpiae.core.errors import CheckpointError, ConfigError, UsageError
from rpiae.core.model import naming
from rpiae.core.model.build import build
from rpiae.core.model.contracts import StageSteps
from rpiae.core.model.folders import load_tokenizer, save_tokenizer
from rpiae.core.model.generator_folders import load_generator_model
from rpiae.core.model.latent_generator import LatentGenerator
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training import events
from rpiae.data.fingerprint import data_fingerprint
from rpiae.latents import LatentDataset
from rpiae.latents.layout import tree_digest
from rpiae.runs.generating import (
    plan_generator,
    resolve_generator,
    resume_generator,
    run_generator,
    running,
)
from rpiae.runs.generating.learning_from import learned_from
from rpiae.runs.generating.measuring import held_out_loss
from rpiae.runs.generating.normalising import statistics
from rpiae.sampling.loaded import load_generator
from tests.short_run import short_generator_run, write_latents
from tests.toys import DECODERS, ENCODERS


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data"), flip=True)


def tree(latents: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return short_generator_run(latents, out) | changes


def ended(happened: Any) -> dict[str, Any]:
    """The summary of a run to its end, with its digests."""
    seen = list(happened)
    assert isinstance(seen[-1], events.RunEnded)
    return {
        **seen[-1].summary,
        "digests": [dict(e.digests) for e in seen if isinstance(e, events.StageEnded)],
    }


def test_a_run_trains_saves_and_samples(latents: Path, tmp_path: Path) -> None:
    seen = list(run_generator(tree(latents, tmp_path / "g", flip=True)))
    assert isinstance(seen[0], events.Planned)
    steps = [e for e in seen if isinstance(e, events.StepDone)]
    assert [e.step for e in steps] == list(range(1, 7))
    assert all(e.terms.keys() == {"flow"} for e in steps)
    found = [e.metrics["flow"] for e in seen if isinstance(e, events.Evaluated)]
    assert len(found) == 2
    summary = json.loads((tmp_path / "g" / "summary.json").read_text())
    assert (summary["latent"], summary["num_classes"]) == ([4, 4, 4], 3)
    assert summary["label_names"] == ["blue", "green", "red"]
    assert summary["num_samples"] == 10
    for name in ("config.toml", "events.jsonl", "curves.png", "best/flow/config.json"):
        assert (tmp_path / "g" / name).is_file(), name
    model = load_generator_model(tmp_path / "g")
    assert model.latent_mean is not None
    assert model.latent_mean.shape == (4, 4, 4)
    images = load_generator(tmp_path / "g").sample(["red", 0], seed=1, steps=2)
    assert images.shape == (2, 3, 16, 16)
    assert images.isfinite().all()


def test_the_trained_average_is_what_is_saved(latents: Path, tmp_path: Path) -> None:
    list(run_generator(tree(latents, tmp_path / "g")))
    state = torch.load(tmp_path / "g" / "checkpoints" / "stage1-step00000000.pt", weights_only=True)
    saved = load_file(tmp_path / "g" / "generator" / "model.safetensors")
    for name, value in state["ema"]["values"].items():
        assert torch.equal(saved[name], value), name
    for name in ("latent_mean", "latent_std"):
        assert torch.equal(saved[name], state["model"][name])


def test_it_resumes_to_the_bit(latents: Path, tmp_path: Path) -> None:
    whole = ended(run_generator(tree(latents, tmp_path / "whole")))
    happened = run_generator(tree(latents, tmp_path / "broken"))
    for event in happened:
        if isinstance(event, events.CheckpointSaved) and event.step == 4:
            break
    happened.close()  # type: ignore[attr-defined]  # a generator
    assert ended(resume_generator(tmp_path / "broken"))["digests"] == whole["digests"]
    for name in ("best/flow", "generator"):
        one, other = (
            load_file(tmp_path / run / name / "model.safetensors") for run in ("whole", "broken")
        )
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_accumulating_and_recomputing_give_the_same(latents: Path, tmp_path: Path) -> None:
    def totals(name: str, **recipe: Any) -> list[float]:
        run = tree(latents, tmp_path / name)
        run["recipe"] |= recipe
        return [e.total for e in run_generator(run) if isinstance(e, events.StepDone)]

    plain = totals("plain")
    assert totals("again", recompute=True) == pytest.approx(plain, rel=1e-6)
    assert totals("parts", accumulate=3) == pytest.approx(plain, rel=1e-4)


SCRIPT = """
import json, sys
from pathlib import Path
from rpiae.core.training import events
from rpiae.runs.generating import run_generator
from tests.short_run import short_generator_run
latents, out = map(Path, sys.argv[1:3])
run = short_generator_run(latents, out) | {"compile": "compiled" in sys.argv}
steps = [e.total for e in run_generator(run) if isinstance(e, events.StepDone)]
if (out / "summary.json").exists():
    (out / "totals.json").write_text(json.dumps(steps))
"""


@pytest.mark.parametrize("how", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_does(latents: Path, tmp_path: Path, how: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    together = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(latents), str(tmp_path / "two"), how],
            cwd=Path(__file__).parents[2],
            env={**os.environ, **together, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    run = run_generator(tree(latents, tmp_path / "one"))
    alone = [e.total for e in run if isinstance(e, events.StepDone)]
    assert json.loads((tmp_path / "two" / "totals.json").read_text()) == pytest.approx(
        alone, rel=1e-5
    )


def test_images_are_encoded_on_the_way(latents: Path, tmp_path: Path) -> None:
    """The very latents that are stored, with their labels; mirrored half of the time where wanted."""
    folder = latents.parent
    run = tree(latents, tmp_path / "g", tokenizer=str(folder / "tokenizer")) | {"latents": ""}
    del run["held_out"]
    run["data"] = {
        "name": "folder", "path": str(folder / "images"), "image_size": 16, "workers": 0, "held_out": 2,
    }  # fmt: skip
    resolved = resolve_generator(run)
    assert resolved.found.facts.label_names == ("blue", "green", "red")
    assert resolved.found.facts.tokenizer_sha256 == LatentDataset(latents).tokenizer[1]
    summary = ended(run_generator(run | {"flip": True}))
    assert (summary["num_samples"], summary["num_classes"]) == (10, 3)
    assert summary["stages"][0]["flow"] > 0
    again = ended(run_generator(run | {"flip": True, "out": str(tmp_path / "again")}))
    other = ended(run_generator(run | {"out": str(tmp_path / "unflipped")}))
    assert summary["digests"] == again["digests"]
    assert summary["digests"] != other["digests"]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("posterior", ["mode", "moments"])
@pytest.mark.parametrize("normalisation", ["none", "channel", "position"])
def test_latents_are_normalised_as_they_are_trained_on(
    tmp_path: Path, normalisation: str, posterior: str, flip: bool
) -> None:  # fmt: skip
    """Mean 0 and standard deviation 1 of many draws, mirrored ones and samples of moments included."""
    latents = write_latents(tmp_path / "data", flip=True, posterior=posterior)
    run = tree(latents, tmp_path / "g", flip=flip)
    run["recipe"]["flow"] = {"normalisation": normalisation}
    resolved = resolve_generator(run)
    runtime = Runtime(device="cpu", precision="fp32")
    found = statistics(resolved.found, resolved.recipe.flow, runtime, 0)
    if normalisation == "none":
        assert found is None
        return
    assert found is not None
    mean, std = found
    assert mean.shape == ((4, 1, 1) if normalisation == "channel" else (4, 4, 4))
    stored = resolved.found.stored
    assert stored is not None
    draws = torch.Generator().manual_seed(0)
    everything = torch.stack(
        [
            stored.drawn(index, flipped=mirrored, draws=draws)
            for index in range(len(stored))
            for mirrored in ((False, True) if flip or normalisation == "channel" else (False,))
            for _ in range(200 if posterior == "moments" else 1)
        ]
    )
    seen = (everything - mean) / std
    axes = (0, 2, 3) if normalisation == "channel" else (0,)
    tolerance = 0.1 if posterior == "moments" else 1e-4
    assert seen.mean(axes).abs().max() < tolerance
    assert (seen.std(axes, correction=0) - 1).abs().max() < tolerance


def test_a_plan_says_what_is_trained_on_what(latents: Path, tmp_path: Path) -> None:
    plan = plan_generator(resolve_generator(tree(latents, tmp_path / "g")))
    assert plan.latent == (4, 4, 4)
    assert plan.num_classes == 3
    assert plan.parameters == sum(
        value.numel()
        for name, value in load_file(_trained(latents, tmp_path) / "model.safetensors").items()
        if name.startswith("generator.")
    )
    assert "normalised per channel and position" in plan.flow
    assert "10% of labels dropped" in plan.flow
    [stage] = plan.stages
    assert (stage.steps, stage.batch_size, stage.epochs) == (6, 4, pytest.approx(2.4))


def _trained(latents: Path, folder: Path) -> Path:
    list(run_generator(tree(latents, folder / "trained")))
    return folder / "trained" / "generator"


def test_a_run_starts_from_another_one(latents: Path, tmp_path: Path) -> None:
    first = _trained(latents, tmp_path)
    run = tree(latents, tmp_path / "more", init=str(tmp_path / "trained"))
    run["recipe"] |= {"max_steps": 1}
    ended(run_generator(run))
    one, other = (
        load_file(first / "model.safetensors"),
        load_file(tmp_path / "more" / "generator" / "model.safetensors"),
    )
    moved = [name for name in one if not torch.equal(one[name], other[name])]
    assert moved
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0.02)


def test_latents_that_moved_are_told_from_others(latents: Path, tmp_path: Path) -> None:
    happened = run_generator(tree(latents, tmp_path / "g"))
    for event in happened:
        if isinstance(event, events.CheckpointSaved):
            break
    happened.close()  # type: ignore[attr-defined]  # a generator
    moved = shutil.copytree(latents, tmp_path / "moved")
    other = write_latents(tmp_path / "other", count=9)
    with pytest.raises(ConfigError, match="holds other latents than the run was trained on"):
        list(resume_generator(tmp_path / "g", changes={"latents": str(other)}))
    ended(resume_generator(tmp_path / "g", changes={"latents": str(moved)}))
    assert read_toml(tmp_path / "g" / "config.toml")["latents"] == str(moved)


def test_what_is_already_trained_does_not_change(latents: Path, tmp_path: Path) -> None:
    happened = run_generator(tree(latents, tmp_path / "g"))
    for event in happened:
        if isinstance(event, events.CheckpointSaved):
            break
    happened.close()  # type: ignore[attr-defined]  # a generator
    for override in ("recipe.flow.shift=3.0", "recipe.flow.label_dropout=0.5", "generator.depth=2"):
        with pytest.raises(UsageError, match="cannot go on with"):
            list(resume_generator(tmp_path / "g", overrides=(override,)))
    ended(resume_generator(tmp_path / "g", overrides=("recipe.checkpoint_every=3",)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": ""}, "neither latents nor data are named"),
        ({"data": "sample"}, "both latents and data are named"),
        ({"latents": "", "data": "sample"}, "name one with --tokenizer"),
        ({"recipe": "quick"}, "'quick' trains a tokenizer, and this run is of a generator"),
        ({"generator": {"name": "dit", "num_classes": 5}}, r"built for 5 classes but .* gives 3"),
        (
            {"generator": {"name": "dit", "latent_channels": 8}},
            "built for 8 channels but the tokenizer",
        ),
        ({"generator": "dot-s"}, "Did you mean 'dit-s'"),
        ({"recipe": {"name": "flow-quick", "flow": {"prediction": "y"}}}, "recipe.flow.prediction"),
    ],
)
def test_what_cannot_be_is_refused(
    latents: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    run = tree(latents, tmp_path / "g") | changes
    with pytest.raises(UsageError, match=message):
        resolve_generator(run)


def test_stages_of_tokenizers_are_refused(latents: Path, tmp_path: Path) -> None:
    run = tree(latents, tmp_path / "g")
    run["recipe"] = {
        "name": "generator",
        "stages": [{
            "name": "flow", "train": ["decoder"], "steps": 3, "noise": 0.5, "posterior": "sample",
            "terms": [{"loss": "l1"}],
        }],
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        resolve_generator(run)
    text = str(caught.value)
    for part in (
        "does not begin with a role",
        "loss 'l1' needs pixels",
        ".noise: it has no effect",
    ):
        assert part in text


def test_a_generator_may_do_without_labels(latents: Path, tmp_path: Path) -> None:
    run = tree(latents, tmp_path / "g")
    run["generator"] |= {"num_classes": 0}
    assert ended(run_generator(run))["num_classes"] == 0
    assert load_generator_model(tmp_path / "g").num_classes == 0


def test_other_kinds_of_folders_are_told(latents: Path, tmp_path: Path) -> None:
    folder = latents.parent
    generator = _trained(latents, tmp_path)
    with pytest.raises(CheckpointError, match="holds a generator, and a tokenizer is wanted"):
        load_tokenizer(generator)
    with pytest.raises(CheckpointError, match="holds a generator and no tokenizer"):
        load_tokenizer(tmp_path / "trained")
    with pytest.raises(CheckpointError, match="holds a tokenizer, and a generator is wanted"):
        load_generator_model(folder / "tokenizer")
    run = tmp_path / "tokenizers"
    run.mkdir()
    (run / "config.toml").write_text("encoder = 'tiny'\n")
    with pytest.raises(CheckpointError, match="is not a generator's run"):
        list(resume_generator(run))


def test_latents_that_are_not_complete_are_refused(latents: Path, tmp_path: Path) -> None:
    index = shutil.copytree(latents, tmp_path / "half") / "index.json"
    text = json.loads(index.read_text()) | {"complete": False}
    index.write_text(json.dumps(text | {"sha256": tree_digest(text)}))
    with pytest.raises(CheckpointError, match="is not complete"):
        resolve_generator(tree(tmp_path / "half", tmp_path / "g"))


def test_another_tokenizer_of_equal_shape_is_refused(latents: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    other = build(
        encoder=ENCODERS["vit"], bridge="vb4", decoder=DECODERS["vit"], pretrained=False, seed=5
    )
    save_tokenizer(other, tmp_path / "tokenizer")
    _trained(latents, tmp_path)
    with pytest.raises(UsageError, match="is another one than that"):
        load_generator(tmp_path / "trained", tokenizer=tmp_path / "tokenizer")
    with pytest.raises(UsageError, match="is not the tokenizer that made"):
        resolve_generator(tree(latents, tmp_path / "g", tokenizer=str(tmp_path / "tokenizer")))


def test_what_is_held_out_is_not_shown(latents: Path) -> None:
    dataset = LatentDataset(latents, held_out=2)
    assert len(dataset.held_out) == 2
    assert dataset.num_images == len(dataset) - 2
    steps = StageSteps(seed=0, stage="s", batch_size=5, start=0, steps=2)
    shown = torch.cat([batch.inputs for batch in dataset.batches(steps)])
    kept = [dataset.stored(i) for i in dataset.held_out]
    assert len({tuple(latent.flatten().tolist()) for latent in shown}) == 10
    assert not any(torch.equal(latent, each) for latent in shown for each in kept)
    assert (
        learned_from(resolve_generator(tree(latents, latents / "x")).config).source.num_images
        == dataset.num_images
    )


def test_other_predictions_are_not_taken_over(latents: Path, tmp_path: Path) -> None:
    _trained(latents, tmp_path)
    run = tree(latents, tmp_path / "x", init=str(tmp_path / "trained"))
    run["recipe"]["flow"] = {"prediction": "x"}
    with pytest.raises(UsageError, match="predicts 'v' and this run trains 'x'"):
        list(run_generator(run))


def on_the_way(latents: Path, out: Path, images: Path) -> dict[str, Any]:
    """A run that encodes images on the way."""
    run = tree(latents, out, tokenizer=str(latents.parent / "tokenizer")) | {"latents": ""}
    del run["held_out"]
    data = {"name": "folder", "path": str(images), "image_size": 16, "workers": 0, "held_out": 3}
    return run | {"data": data}


def test_classes_that_are_others_now_are_noticed(latents: Path, tmp_path: Path) -> None:
    images = shutil.copytree(latents.parent / "images", tmp_path / "images")
    happened = run_generator(on_the_way(latents, tmp_path / "g", images))
    for event in happened:
        if isinstance(event, events.CheckpointSaved):
            break
    happened.close()  # type: ignore[attr-defined]  # a generator
    (images / "blue").rename(images / "zebra")
    data_fingerprint.cache_clear()  # as in another process
    with pytest.raises(ConfigError, match="data are not what the run was trained on"):
        list(resume_generator(tmp_path / "g"))


def test_the_held_out_loss_is_of_the_images_own_classes(latents: Path, tmp_path: Path) -> None:
    run = on_the_way(latents, tmp_path / "g", latents.parent / "images")
    found = resolve_generator(run).found
    asked: list[list[int]] = []

    class Asked(torch.nn.Module):
        latent_channels, num_classes, patch = 4, 3, (1, 1)

        def forward(self, noised: Any, time: Any, labels: Any) -> Any:
            asked.append(labels.tolist())
            return noised

    model = LatentGenerator(generator=Asked(), flow=FlowConfig(), facts=found.facts)
    held_out_loss(found, Runtime(device="cpu", precision="fp32"), 0)(model)
    names = [Path(name).parent.name for name in found.source.held_out().groups]  # type: ignore[attr-defined]
    assert asked == [[found.facts.label_names.index(name) for name in names]]


def test_names_without_labels_are_no_classes(latents: Path, tmp_path: Path) -> None:
    """As in the test splits of some data sets."""
    plain = write_latents(tmp_path / "data", labelled=False)
    summary = ended(run_generator(tree(plain, tmp_path / "g")))
    assert (summary["num_classes"], summary["label_names"]) == (0, [])
    load_generator_model(tmp_path / "g")


def test_other_criteria_than_the_loss_are_refused(latents: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a generator is measured by 'flow' alone"):
        resolve_generator(
            tree(latents, tmp_path / "g"), overrides=("recipe.stages[0].best='psnr'",)
        )


def test_each_verb_goes_on_with_its_own_runs(latents: Path, tmp_path: Path) -> None:
    _trained(latents, tmp_path)
    with pytest.raises(CheckpointError, match="rpiae diffuse --resume"):
        list(runs.resume(tmp_path / "trained"))


def test_a_tokenizer_of_unknown_size_asks_for_one(latents: Path, tmp_path: Path) -> None:
    run = on_the_way(latents, tmp_path / "g", latents.parent / "images")
    del run["data"]["image_size"]
    with pytest.raises(ConfigError, match="does not say what size it was trained on"):
        resolve_generator(run)


def test_statistics_are_not_measured_again(
    latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened = run_generator(tree(latents, tmp_path / "g"))
    for event in happened:
        if isinstance(event, events.CheckpointSaved):
            break
    happened.close()  # type: ignore[attr-defined]  # a generator
    monkeypatch.setattr(running, "statistics", None)
    ended(resume_generator(tmp_path / "g"))
    model = load_generator_model(tmp_path / "g")
    assert model.latent_std is not None
    assert not torch.equal(model.latent_std, torch.ones_like(model.latent_std))


def test_guidance_needs_samples_without_a_class(latents: Path, tmp_path: Path) -> None:
    run = tree(latents, tmp_path / "g")
    run["recipe"]["flow"] = {"label_dropout": 0.0}
    ended(run_generator(run))
    found = load_generator(tmp_path / "g")
    found.sample([0], steps=1)
    with pytest.raises(UsageError, match="trained with the class of every sample"):
        found.sample([0], steps=1, guidance=2.0)


def test_losses_that_nobody_brings_are_refused(
    latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a recipe that is registered names one, nothing of it is left out in silence."""
    monkeypatch.setattr(naming, "_planned_losses", lambda: {"imagined"})
    run = tree(latents, tmp_path / "g")
    run["recipe"] = {
        "name": "generator",
        "stages": [
            {"name": "flow", "train": ["generator"], "steps": 3,
             "terms": [{"loss": "flow"}, {"loss": "imagined"}]},
        ],
    }  # fmt: skip
    with pytest.raises(ConfigError, match="loss 'imagined' is not in this version"):
        resolve_generator(run)
    assert resolve_generator(run, without=("imagined",)).config.recipe.stages[0].terms
