"""What a run takes over from the one it starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import rpiae
from rpiae import runs
from rpiae.core.config.tree import Tree, dump_toml
from rpiae.core.errors import CheckpointError, ConfigError, UsageError
from rpiae.core.model.folders import load_tokenizer, save_tokenizer
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.training import events
from rpiae.runs import running
from rpiae.runs.stages import run_address
from rpiae.tasks.tokenizer.pivot import write_pivot
from tests.short_run import short_run, write_images

ENCODER: Tree = {"name": "vit", "width": 24, "depth": 1, "num_heads": 2, "patch": 4}
DECODER: Tree = {"name": "vit", "width": 16, "depth": 1, "num_heads": 2, "mlp_hidden": 32}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("start") / "images", count=6)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A run that has ended: its tokenizer, and another pivot than its encoder."""
    folder = tmp_path / "source"
    model = rpiae.build(encoder=ENCODER, bridge="vb6", decoder=DECODER, seed=1)
    save_tokenizer(model, folder / "tokenizer")
    other = rpiae.build(encoder=ENCODER, bridge="vb6", decoder=DECODER, seed=2)
    write_pivot(folder, other.roles["encoder"])
    return folder


def started(images: Path, out: Path, source: Path, **changes: Any) -> Tree:
    tree = short_run(images, out, max_steps=1)
    tree["data"]["workers"] = 0
    for role in ("encoder", "bridge", "decoder"):
        del tree[role]
    return tree | {"init": str(source)} | changes


def begun(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> RPiAE:
    """The model of a run right before its first step."""
    models: list[RPiAE] = []

    def stop(_: Any, model: RPiAE, *rest: Any, **more: Any) -> Any:
        models.append(model)
        return iter(())

    monkeypatch.setattr("rpiae.runs.running._trained", stop)
    list(runs.run(tree))
    return models[0]


def test_its_parts_are_the_defaults(images: Path, tmp_path: Path, source: Path) -> None:
    resolved = runs.resolve(started(images, tmp_path / "out", source))
    config = resolved.config
    assert (config.encoder.width, config.bridge.latent_channels, config.decoder.width) == (
        24,
        6,
        16,
    )  # type: ignore[attr-defined]  # of these parts
    assert resolved.origins["bridge"] == f"of {source}"
    plan = runs.plan(resolved)
    assert plan.start == f"encoder, bridge, decoder from {source}"
    wider = runs.resolve(started(images, tmp_path, source), overrides=("bridge=identity",)).config
    assert wider.bridge.name == "identity"
    assert wider.decoder.width == 16  # type: ignore[attr-defined]  # of this part


def test_its_pivot_is_not_fetched(
    images: Path, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is loaded for an encoder that brings its weights and its pivot."""
    absent = {**ENCODER, "pretrained": True, "weights": str(tmp_path / "absent.safetensors")}
    tree = started(images, tmp_path / "out", source, encoder=absent)
    model = begun(tree, monkeypatch)
    saved = load_tokenizer(source)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), saved.parameters(), strict=True)
    )
    pivots = [(f / "pivot.safetensors").read_bytes() for f in (source, tmp_path / "out")]
    assert pivots[0] == pivots[1]
    (source / "pivot.safetensors").unlink()
    with pytest.raises(rpiae.RpiaeError, match=r"absent\.safetensors"):
        list(runs.run({**tree, "out": str(tmp_path / "other")}))


@pytest.mark.parametrize("parts", [["encoder"], ["decoder"], ["encoder", "decoder"], ["bridge"]])
def test_parts_of_it(
    images: Path, tmp_path: Path, source: Path, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"encoder": ENCODER, "bridge": "vb6", "decoder": DECODER}
    tree = started(images, tmp_path / "out", source, init_parts=parts, **own)
    plan = runs.plan(runs.resolve(tree))
    assert plan.start.startswith(f"{', '.join(parts)} from {source}")
    model, saved = begun(tree, monkeypatch), load_tokenizer(source)
    for role, part in model.roles.items():
        pairs = zip(part.parameters(), saved.roles[role].parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == (role in parts), role
    inherited = (tmp_path / "out" / "pivot.safetensors").read_bytes() == (
        source / "pivot.safetensors"
    ).read_bytes()
    assert inherited == ("encoder" in parts), "another encoder has another pivot"


def test_a_partial_start_that_is_killed_at_once_begins_the_same(
    images: Path, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = started(
        images, tmp_path / "out", source, init_parts=["decoder"], encoder=ENCODER, bridge="vb6"
    )
    first = {n: t.clone() for n, t in begun(tree, monkeypatch).state_dict().items()}
    models: list[RPiAE] = []
    monkeypatch.setattr(
        running, "_trained", lambda _, model, *a, **k: models.append(model) or iter(())
    )
    list(runs.resume(tmp_path / "out"))
    assert all(torch.equal(t, first[n]) for n, t in models[0].state_dict().items())


def test_what_does_not_fit_is_named_before_anything_starts(
    images: Path, tmp_path: Path, source: Path
) -> None:
    wide = {**DECODER, "width": 32}
    tree = started(images, tmp_path / "out", source, decoder=wide)
    for start in (lambda: runs.plan(runs.resolve(tree)), lambda: list(runs.run(tree))):
        with pytest.raises(
            CheckpointError, match=r"decoder: \d+ tensors of another shape.*there and.*here"
        ):
            start()
    assert not (tmp_path / "out").exists()
    runs.plan(runs.resolve({**tree, "init_parts": ["encoder", "bridge"]}))
    other = {**ENCODER, "width": 32}
    with pytest.raises(ConfigError, match=r"was built for 24 channels"):
        runs.resolve(started(images, tmp_path / "out", source, encoder=other))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_parts": []}, "init_parts: name at least one of encoder, bridge, decoder"),
        ({"init_parts": ["encodr"]}, r"expected one of .*'encodr', did you mean 'encoder'"),
        ({"init": "", "init_parts": ["encoder"]}, "there is nothing to take them from"),
        ({"init": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_wrong_starts(
    images: Path, tmp_path: Path, source: Path, changes: Tree, message: str
) -> None:
    with pytest.raises((UsageError, CheckpointError), match=message):
        runs.resolve(started(images, tmp_path / "out", source, **changes))


def test_what_a_run_starts_from_is_in_its_address(
    images: Path, tmp_path: Path, source: Path
) -> None:
    def address(**changes: Any) -> str:
        own = {"encoder": ENCODER, "bridge": "vb6", "decoder": DECODER}
        return run_address(runs.resolve(started(images, tmp_path, source, **own, **changes)).config)

    before = address()
    assert address(init_parts=["decoder", "bridge", "encoder"]) == before
    assert address(init_parts=["encoder"]) != before
    assert address(init="") != before
    model = load_tokenizer(source)
    with torch.no_grad():
        next(model.roles["decoder"].parameters()).add_(1)
    save_tokenizer(model, source / "tokenizer")
    assert address() != before


def test_on_the_command_line(
    images: Path,
    tmp_path: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    config = tmp_path / "run.toml"
    tree = started(images, tmp_path / "out", source)
    del tree["init"]
    config.write_text(dump_toml(tree))
    command = [
        "build",
        "--config",
        str(config),
        "--init",
        str(source),
        "--parts",
        "encoder,decoder",
    ]
    from rpiae.cli.main import main

    assert main([*command, "--bridge", "vb8", "--dry-run"]) == 0
    assert f"starts with encoder, decoder from {source}; bridge at random" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_run_from_another_trains(
    images: Path, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "rpiae.runs.summary.evaluated", lambda *_: {"psnr": 1, "psnr_mean_colour": 1, "psnr_pca": 1}
    )
    seen = list(runs.run(started(images, tmp_path / "out", source)))
    assert isinstance(seen[-1], events.RunEnded)
