"""``rpiae import``: the reference's files of generators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import rpiae
from rpiae.cli import main
from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.folders import save_tokenizer
from rpiae.core.model.generator_folders import load_generator_model
from rpiae.generators.configs import DitConfig
from rpiae.generators.dit import Dit
from rpiae.interop.reference.generators import import_generator
from rpiae.interop.reference.lightningdit import Untold, dit_to_reference
from rpiae.latents.encoding import tokenizer_digest
from tests.toys import DECODERS, ENCODERS

SIZES: dict[str, Any] = {
    "latent_channels": 4, "rows": 4, "columns": 4, "num_classes": 3, "width": 32, "depth": 2,
    "num_heads": 2,
}  # fmt: skip


def moved(seed: int, **changes: Any) -> tuple[Dit, dict[str, Tensor]]:
    """A model that predicts something, and its state as the reference has it."""
    torch.manual_seed(seed)
    config = DitConfig(**(SIZES | changes))
    model = config.build()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn(value.shape))
    return model.eval(), dit_to_reference(model.state_dict(), config)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = rpiae.build(
        encoder=ENCODERS["vit"], bridge="vb4", decoder=DECODERS["vit"], pretrained=False
    )
    return save_tokenizer(model, tmp_path_factory.mktemp("saved") / "tokenizer")


def checkpoint(folder: Path) -> Path:
    """What the reference's training writes: averaged weights beside raw ones."""
    raw, averaged = moved(0)[1], moved(1)[1]
    path = folder / "ep-0000800.pt"
    optimizer = {
        "state": {0: {"step": 3, "exp_avg": torch.zeros(2)}},
        "param_groups": [{"lr": 1.0}],
    }
    torch.save(
        {
            "step": 1_000_800, "epoch": 800, "model": raw, "ema": averaged, "optimizer": optimizer,
            "scheduler": {"last_epoch": 3},
        },
        path,
    )  # fmt: skip
    return path


def given() -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 4, 4, generator=draws)
    return latents, torch.tensor([0.2, 1.0]), torch.tensor([1, 3])


@torch.no_grad()
def test_a_checkpoint_becomes_a_folder(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "g"
    command = [
        "import",
        str(checkpoint(tmp_path)),
        "--tokenizer",
        str(tokenizer),
        "--out",
        str(out),
    ]
    assert main(command) == 0
    assert "latents 4×4×4 of the tokenizer in" in capsys.readouterr().out
    model = load_generator_model(out)
    assert torch.equal(model.velocity(*given()), moved(1)[0](*given()))
    assert model.facts.shape == (4, 4, 4)
    assert model.facts.num_classes == model.num_classes == 3
    assert model.facts.tokenizer_sha256 == tokenizer_digest(rpiae.load(tokenizer))
    assert model.shift == (64 / 4096) ** 0.5
    assert (model.flow.prediction, model.flow.times) == ("v", "logit-normal")
    assert model.flow.normalisation == "none"
    assert model.flow.label_dropout == 0.1
    assert main([*command, "--weights-key", "model", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    assert torch.equal(load_generator_model(out).velocity(*given()), moved(0)[0](*given()))


@pytest.mark.parametrize("layout", ["flat", "ema", "compiled", "safetensors"])
@torch.no_grad()
def test_other_files_of_the_same(tmp_path: Path, tokenizer: Path, layout: str) -> None:
    model, state = moved(2)
    path = tmp_path / "file"
    if layout == "safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    elif layout == "compiled":
        torch.save({f"_orig_mod.{name}": value for name, value in state.items()}, path)
    else:
        torch.save(state if layout == "flat" else {"ema": state}, path)
    found = import_generator(path, tokenizer=tokenizer)
    assert torch.equal(found.velocity(*given()), model(*given()))


@torch.no_grad()
def test_a_wide_head_and_what_shapes_leave_open(tmp_path: Path, tokenizer: Path) -> None:
    sizes = {
        "head_width": 32,
        "head_depth": 1,
        "head_heads": 4,
        "qk_norm": False,
        "init": "default",
    }
    model, state = moved(3, **sizes)
    path = tmp_path / "dh.pt"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=rf"{path}: .* its 3 blocks .* --head-depth"):
        import_generator(path, tokenizer=tokenizer)
    found = import_generator(path, tokenizer=tokenizer, told=Untold(head_depth=1))
    assert torch.equal(found.velocity(*given()), model(*given()))


@torch.no_grad()
def test_a_table_without_a_row_for_no_class(tmp_path: Path, tokenizer: Path) -> None:
    model, state = moved(4)
    state["y_embedder.embedding_table.weight"] = model.labels.weight[:3].clone()
    path = tmp_path / "conditional.pt"
    torch.save(state, path)
    found = import_generator(path, tokenizer=tokenizer, told=Untold(num_classes=3))
    latents, time, _ = given()
    labels = torch.tensor([1, 2])
    assert found.num_classes == 3
    assert found.flow.label_dropout == 0  # the row of zeros was never trained
    assert torch.equal(found.velocity(latents, time, labels), model(latents, time, labels))


def test_another_tokenizer_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    state = moved(5, latent_channels=5)[1]
    path = tmp_path / "five.pt"
    torch.save(state, path)
    with pytest.raises(UsageError, match=r"latents of 5 channels, .* makes those of 4: name the"):
        import_generator(path, tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match=r"nowhere does not exist"):
        import_generator(path, tokenizer=tmp_path / "nowhere")


def test_files_of_something_else(tmp_path: Path, tokenizer: Path) -> None:
    other = tmp_path / "other.pt"
    torch.save({"encoder.weight": torch.zeros(3)}, other)
    with pytest.raises(CheckpointError, match=r"another architecture than a generator of the ref"):
        import_generator(other, tokenizer=tokenizer)
    whole = checkpoint(tmp_path)
    short = tmp_path / "short.pt"
    short.write_bytes(whole.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"short\.pt cannot be read as weights"):
        import_generator(short, tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match=r"there is no file"):
        import_generator(tmp_path / "none.pt", tokenizer=tokenizer)
    state = moved(6)[1]
    del state["blocks.1.mlp.w3.weight"]
    torch.save(state, other)
    with pytest.raises(
        CheckpointError, match=r"other\.pt: .*blocks\.1\.mlp\.w3\.weight is missing"
    ):
        import_generator(other, tokenizer=tokenizer)
    state = moved(7)[1]
    state["blocks.1.mlp.w3.weight"] = torch.zeros(32, 7)
    torch.save(state, other)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.w3\.weight is \(32, 7\) there and"):
        import_generator(other, tokenizer=tokenizer)


def test_a_folder_of_something_else_is_left_alone(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint(tmp_path)
    command = ["import", str(path), "--tokenizer", str(tokenizer), "--out", str(tmp_path)]
    assert main(command) == 1
    assert "holds other things than a generator" in capsys.readouterr().err
    assert main(["import", str(path), "--out", str(tmp_path / "g")]) == 2
    assert "--tokenizer" in capsys.readouterr().err


def test_a_tokenizer_is_not_replaced_by_its_generator(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, before = checkpoint(tmp_path), tokenizer_digest(rpiae.load(tokenizer))
    command = ["import", str(path), "--tokenizer", str(tokenizer), "--out", str(tokenizer)]
    assert main(command) != 0
    assert "holds a tokenizer, which a generator does not replace" in capsys.readouterr().err
    assert tokenizer_digest(rpiae.load(tokenizer)) == before


def test_the_tokenizer_is_found_from_elsewhere(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint(tmp_path)
    monkeypatch.chdir(tokenizer.parent)
    assert import_generator(path, tokenizer="tokenizer").facts.tokenizer == str(tokenizer)


@pytest.mark.parametrize("factor", [1, 2])
def test_latents_of_another_size_are_told(
    tmp_path: Path, tokenizer: Path, caplog: pytest.LogCaptureFixture, factor: int
) -> None:
    model = rpiae.load(tokenizer)
    side = max(n for n in range(1, 64) if model.latent_shape(n, n) == (4, 4, 4))
    model.trained_size = factor * side
    sized = save_tokenizer(model, tmp_path / "sized")
    import_generator(checkpoint(tmp_path), tokenizer=sized)
    told = "a generator of latents of 4×4×4, and the tokenizer makes those of 4×8×8"
    assert (told in caplog.text) == (factor == 2)
