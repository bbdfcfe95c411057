"""Folders of diffusers' AutoencoderRAE, read and written, against the class itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file, save_file
from torch import Tensor

import rpiae
from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.build import build_tokenizer, resolved_parts
from rpiae.core.model.tokenizer import RPiAE
from rpiae.interop.diffusers.autoencoder_rae import is_autoencoder_rae, read_autoencoder_rae
from rpiae.interop.diffusers.exporting import write_diffusers
from rpiae.interop.diffusers.layout import ENCODERS, EncoderType, decoder_positions
from tests.toys import BRIDGES, DECODERS
from tests.toys import ENCODERS as TOY_ENCODERS

WEIGHTS = "diffusion_pytorch_model.safetensors"
PATCHES: dict[EncoderType, int] = {"dinov2": 14, "siglip2": 16, "mae": 16}

#: Of the statistics of latents, by what they are like; 3×3 tokens of 128 channels.
STATISTICS: dict[str, dict[str, Any]] = {
    "none": {},
    "channels": {"latents_mean": (128, 1, 1), "latents_std": (128, 1, 1)},
    "map": {"latents_mean": (128, 3, 3), "latents_std": (128, 3, 3)},
    "mean alone": {"latents_mean": (128, 1, 1)},
    "tokens": {"latents_mean": (9, 128), "latents_std": (9, 128), "reshape_to_2d": False},
    "token": {"latents_mean": (128,), "latents_std": (128,), "reshape_to_2d": False},
    "scaled": {"latents_mean": (128, 1, 1), "latents_std": (128, 1, 1), "scaling_factor": 0.7},
}

#: A number computed in one more step of fp32 than ours.
ROUNDING = {"scaled": 4e-6}


def theirs(kind: EncoderType = "dinov2", statistics: str = "none", *, side: int = 3) -> Any:
    """A small AutoencoderRAE with random weights."""
    diffusers = pytest.importorskip(
        "diffusers", reason='diffusers is not installed: pip install "rpiae[interop]"'
    )
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    options = dict(STATISTICS[statistics])
    for name, least in (("latents_mean", -0.5), ("latents_std", 0.1)):
        if name in options:
            options[name] = torch.rand(options[name]) + least
    try:
        model = diffusers.AutoencoderRAE(
            encoder_type=kind, encoder_hidden_size=128, encoder_patch_size=PATCHES[kind],
            encoder_num_hidden_layers=2, decoder_hidden_size=64, decoder_num_hidden_layers=2,
            decoder_num_attention_heads=4, decoder_intermediate_size=96, patch_size=8,
            encoder_input_size=side * PATCHES[kind], noise_tau=0.8,
            encoder_norm_mean=[0.4, 0.5, 0.6], encoder_norm_std=[0.2, 0.3, 0.4], **options,
        )  # fmt: skip
    except AttributeError as error:
        pytest.skip(
            f"diffusers {diffusers.__version__} cannot build its {kind} beside transformers "
            f"{transformers.__version__}: {error}"
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def images(side: int) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def latents_of(other: Any, x: Tensor) -> Tensor:
    """Theirs as a map."""
    found: Tensor = other.encode(x).latent
    if found.ndim == 3:
        found = found.transpose(1, 2).unflatten(2, (3, 3))
    return found


def tokenizer(kind: EncoderType = "dinov2", *, side: int = 16, norm: bool = False) -> RPiAE:
    """One of ours that can become an AutoencoderRAE."""
    encoder, patch = ENCODERS[kind], PATCHES[kind]
    tree = {
        "name": "timm", "model": encoder.model, "pretrained": False, "eps": encoder.eps,
        "output_patch": 4, "image_size": side * 4,
        "model_args": {
            "embed_dim": 128, "depth": 2, "num_heads": 2, "patch_size": patch,
            "img_size": encoder.pixels, "mlp_ratio": encoder.mlp(128) / 128,
        },
    }  # fmt: skip
    decoder = {"name": "vit", "width": 32, "depth": 2, "num_heads": 2, "mlp_hidden": 64}
    resolved = resolved_parts(tree, "identity", decoder)
    model = build_tokenizer(resolved, seed=0, trained_size=side * 4)
    if norm:
        model.register_buffer("feature_mean", torch.linspace(-1, 1, 128).view(-1, 1, 1))
        model.register_buffer("feature_var", torch.linspace(0.1, 4, 128).view(-1, 1, 1))
    return model.eval()


def same(one: RPiAE, other: RPiAE) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return list(first) == list(second) and all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("kind", PATCHES)
@torch.inference_mode()
def test_the_same_latents_and_images(kind: EncoderType, statistics: str, tmp_path: Path) -> None:
    other = theirs(kind, statistics)
    other.save_pretrained(tmp_path)
    assert is_autoencoder_rae(tmp_path)
    ours, x = read_autoencoder_rae(tmp_path), images(24)
    assert not ours.training
    assert ours.trained_size == 24
    tolerance = ROUNDING.get(statistics, 0.0)
    latents, found = latents_of(other, x), ours.encode(x).mode()
    torch.testing.assert_close(found, latents, rtol=0, atol=tolerance)
    pixels = other.decode(other.encode(x).latent).sample
    torch.testing.assert_close(ours.decode(latents), pixels, rtol=0, atol=tolerance)


def test_statistics_that_change_nothing_make_no_feature_norm(tmp_path: Path) -> None:
    write_diffusers(tokenizer(), tmp_path / "there")
    assert read_autoencoder_rae(tmp_path / "there").feature_mean is None


@torch.inference_mode()
def test_images_of_other_shapes_are_ours_to_read(tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path)
    ours = read_autoencoder_rae(tmp_path)
    assert ours.encode(torch.rand(1, 3, 20, 45)).mode().shape == (1, 128, 3, 6)
    assert ours.reconstruct(torch.rand(1, 3, 20, 45)).shape == (1, 3, 20, 45)


def test_shards(tmp_path: Path) -> None:
    other = theirs("mae", "channels")
    other.save_pretrained(tmp_path / "one")
    other.save_pretrained(tmp_path / "many", max_shard_size="500KB")
    assert not (tmp_path / "many" / WEIGHTS).exists()
    one, many = (read_autoencoder_rae(tmp_path / name) for name in ("one", "many"))
    assert same(one, many)
    first = next((tmp_path / "many").glob("*-00001-of-*"))
    first.unlink()
    with pytest.raises(CheckpointError, match=first.name):
        read_autoencoder_rae(tmp_path / "many")


def test_dtype_is_kept(tmp_path: Path) -> None:
    theirs("dinov2", "channels").to(torch.bfloat16).save_pretrained(tmp_path)
    ours = read_autoencoder_rae(tmp_path)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert ours.feature_mean is not None
    assert ours.feature_mean.dtype == torch.float32


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("kind", PATCHES)
def test_names_of_every_transformers(kind: EncoderType, short: bool, tmp_path: Path) -> None:
    model = tokenizer(kind, norm=True)
    write_diffusers(model, tmp_path)
    state, encoder = load_file(tmp_path / WEIGHTS), ENCODERS[kind]
    inside = {n.removeprefix("encoder."): v for n, v in state.items() if n.startswith("encoder.")}
    long = {**encoder.there(model.encoder.state_dict()), **encoder.filled(128)}  # type: ignore[attr-defined]
    given = encoder.names(long, short=encoder.is_short(inside))
    wanted = encoder.names(long, short=short)
    outside = {n: v for n, v in state.items() if not n.startswith("encoder.")}
    named = {f"encoder.{wanted[name]}": inside[given[name]] for name in long}
    assert len(named) == len(inside)
    save_file({**outside, **named}, tmp_path / WEIGHTS)
    assert same(
        read_autoencoder_rae(tmp_path), read_autoencoder_rae(_written(model, tmp_path / "x"))
    )


def _written(model: RPiAE, folder: Path) -> Path:
    write_diffusers(model, folder)
    return folder


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("kind", PATCHES)
@torch.inference_mode()
def test_exported_it_is_the_same_there_and_back(
    kind: EncoderType, norm: bool, tmp_path: Path
) -> None:
    theirs(kind)  # skips where the libraries cannot
    from diffusers import AutoencoderRAE

    model, x = tokenizer(kind, norm=norm), images(64)
    told = write_diffusers(model, tmp_path / "there")
    assert "AutoencoderRAE" in told[0]
    other, info = AutoencoderRAE.from_pretrained(tmp_path / "there", output_loading_info=True)
    assert not any(info.values())
    latents = model.encode(x).mode()
    assert torch.equal(other.encode(x).latent, latents)
    assert torch.equal(other.decode(latents).sample, model.decode(latents))
    back = read_autoencoder_rae(tmp_path / "there")
    assert torch.equal(back.encode(x).mode(), latents)
    assert torch.equal(back.decode(latents), model.decode(latents))
    assert back.config is not None
    assert model.config is not None
    assert back.config.encoder_facts == model.config.encoder_facts


@torch.inference_mode()
def test_a_folder_of_theirs_goes_back_as_it_came(tmp_path: Path) -> None:
    other = theirs("mae", "map")
    other.save_pretrained(tmp_path / "theirs")
    write_diffusers(read_autoencoder_rae(tmp_path / "theirs"), tmp_path / "ours")
    one, two = (load_file(tmp_path / name / WEIGHTS) for name in ("theirs", "ours"))
    assert list(one) == list(two)
    assert all(torch.equal(one[name], two[name]) for name in one)


@torch.inference_mode()
def test_siglip_2_is_written_as_transformers_has_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = tokenizer("siglip2")
    write_diffusers(model, tmp_path)
    state = {
        name.removeprefix("encoder."): value
        for name, value in load_file(tmp_path / WEIGHTS).items()
        if name.startswith("encoder.")
    }
    tower = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(
            hidden_size=128, patch_size=16, image_size=256, num_attention_heads=2, num_hidden_layers=2
        )
    ).eval()  # fmt: skip
    if "embeddings.patch_embedding.weight" in tower.state_dict():
        state = {name.removeprefix("vision_model."): value for name, value in state.items()}
    norms = {n: v for n, v in tower.state_dict().items() if "post_layernorm" in n}
    tower.load_state_dict({**state, **norms})
    x = torch.randn(2, 3, 80, 80)
    found = tower(x, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(model.encoder(x).tokens, found, rtol=0, atol=1e-5)
    assert same(read_autoencoder_rae(tmp_path), model)


def test_with_a_bridge_it_is_a_tokenizers_folder(tmp_path: Path) -> None:
    model = rpiae.build(encoder=TOY_ENCODERS["vit"], bridge=BRIDGES["vb4"], decoder=DECODERS["vit"])
    with pytest.raises(UsageError, match="leave size out"):
        write_diffusers(model, tmp_path / "sized", size=64)
    assert not (tmp_path / "sized").exists()
    (told,) = write_diffusers(model, tmp_path)
    assert "AutoencoderRPiAE" in told
    assert same(rpiae.load(tmp_path), model)


def _conv(model: RPiAE) -> RPiAE:
    return rpiae.build(encoder=TOY_ENCODERS["vit"], bridge="identity", decoder=DECODERS["conv"])


def _deit(model: RPiAE) -> RPiAE:
    """Three heads of 64, norms of MAE's eps, and every other size that MAE has not."""
    tree = {
        "name": "timm", "model": "vit_base_patch16_224", "pretrained": False, "output_patch": 4,
        "layers": [0, 1], "model_args": {"embed_dim": 96, "depth": 2, "num_heads": 3, "img_size": 64},
    }  # fmt: skip
    return build_tokenizer(resolved_parts(tree, "identity", DECODERS["vit"]), trained_size=64)


def _of_a_norm(model: RPiAE) -> RPiAE:
    for name in ("feature_mean", "feature_var"):
        model.register_buffer(name, torch.ones(128, 16, 12))
    return model


def _trained_positions(model: RPiAE) -> RPiAE:
    assert model.config is not None
    decoder = evolve(model.config.decoder, positions="trained", stored_grid=(16, 16))  # type: ignore[call-arg]
    moved = build_tokenizer(evolve(model.config, decoder=decoder), trained_size=64)
    with torch.no_grad():
        moved.decoder.positions += 0.1  # type: ignore[attr-defined]
    return moved


def _without_registers(model: RPiAE) -> RPiAE:
    tree = {
        "name": "timm", "model": "vit_small_patch14_dinov2", "pretrained": False, "output_patch": 4,
        "model_args": {"embed_dim": 128, "depth": 2, "num_heads": 2},
    }  # fmt: skip
    return build_tokenizer(resolved_parts(tree, "identity", DECODERS["vit"]), trained_size=64)


@pytest.mark.parametrize(
    ("change", "size", "reasons"),
    [
        (_conv, None, ["its encoder is a VitEncoder", "its decoder is a ConvDecoder"]),
        (_deit, None, [
            "of several blocks", "per attention head: 32 here, and 64", "MLPs: 384 here, and 3072",
            r"positions: \(4, 4\) here, and \(14, 14\)", r"\[1e-06\] here, and \[1e-12\]",
        ]),
        (_of_a_norm, None, ["feature_norm is of a grid of 16×12, and the images have 16×16"]),
        (_trained_positions, None, ["trained or stored, differ by up to 0.1"]),
        (_without_registers, None, ["not built as MAE, which is the nearest .*ls1"]),
        (lambda model: model, 32, ["sin-cos of the grid itself, differ .* stretched to 8×8"]),
        (lambda model: model, 30, ["30 is no multiple of the output patch, 4 pixels"]),
    ],
)  # fmt: skip
def test_what_it_cannot_be_is_refused_with_every_reason(
    change: Callable[[RPiAE], RPiAE], size: int | None, reasons: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="cannot become an AutoencoderRAE") as caught:
        write_diffusers(change(tokenizer()), tmp_path / "there", size=size)
    for reason in reasons:
        assert caught.match(reason)
    assert not (tmp_path / "there").exists()


def test_stored_positions_that_are_those_there_pass(tmp_path: Path) -> None:
    model = tokenizer(side=8)
    with pytest.raises(UsageError, match="stretched to 8×8"):
        write_diffusers(model, tmp_path / "there")
    assert model.config is not None
    decoder = evolve(model.config.decoder, stored_grid=(8, 8))  # type: ignore[call-arg]
    moved = build_tokenizer(evolve(model.config, decoder=decoder), trained_size=32)
    moved.decoder.positions.copy_(decoder_positions(8, 32).view(1, 8, 8, 32))  # type: ignore[attr-defined]
    write_diffusers(moved, tmp_path / "there")
    assert same(read_autoencoder_rae(tmp_path / "there"), moved)
    with pytest.raises(UsageError, match="for a grid of 8×8, and images of 64 pixels have 16×16"):
        write_diffusers(moved, tmp_path / "elsewhere", size=64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_diffusers(tokenizer(norm=True), tmp_path / "there")
    return tmp_path / "there"


def _edit(folder: Path, **options: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | options), "utf-8")


def _change(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)


EMBED = "decoder.decoder_embed.weight"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.update({"decoder.strange": s.pop(EMBED)}),
         rf"1 tensors missing, 1 tensors unknown \({EMBED} is missing\)"),
        (lambda s: s.update({EMBED: torch.zeros(32, 127)}),
         rf"{EMBED} is \(32, 127\) there and \(32, 128\) here"),
        (lambda s: s.update({"teacher.weight": torch.zeros(1)}), "teacher.weight is unknown"),
        (lambda s: s.pop("encoder_std"), "encoder_std is missing"),
        (lambda s: s.pop("_latents_mean"), "_latents_mean is missing"),
        (lambda s: s.update({EMBED: torch.full((32, 128), torch.nan)}), f"{EMBED} has values that"),
        (lambda s: s.update({"_latents_std": torch.ones(5)}), r"_latents_std is \(5,\), which does"),
        (lambda s: s["_latents_std"].fill_(1e-4), "no variance gives that"),
        (lambda s: s["encoder_std"].fill_(0), "must be positive"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(
    folder: Path, change: Callable[[dict[str, Tensor]], object], text: str
) -> None:
    _change(folder, change)
    with pytest.raises(CheckpointError, match=text) as caught:
        read_autoencoder_rae(folder)
    assert str(folder) in str(caught.value)


def test_a_renamed_key_of_the_encoder_is_called_as_in_the_file(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    name = next(n for n in state if "layer.1.attention" in n)
    _change(folder, lambda s: s.update({f"{name}s": s.pop(name)}))
    with pytest.raises(CheckpointError, match=rf"\({name} is missing\)"):
        read_autoencoder_rae(folder)


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({"encoder_type": "clip", "patch_size": "4", "strange": 1},
         ["3 problems", "encoder_type: .*'clip'", "patch_size: expected int, got '4'", "strange: no such"]),
        ({"encoder_hidden_size": 100, "encoder_input_size": 220, "image_size": 63},
         ["3 problems", "100 is no multiple of 64", "220 is no multiple", "63 pixels are not 15 tokens"]),
        ({"scaling_factor": -1.0}, ["scaling_factor: must be positive"]),
        ({"num_channels": 4}, ["num_channels: must be at most 3"]),
        ({"decoder_num_attention_heads": 5}, ["5 heads do not divide the width of 32"]),
        ({"encoder_num_hidden_layers": 3}, ["encoder.*layer.2.* is missing"]),
        ({"encoder_hidden_size": None}, ["encoder_hidden_size: expected int, got None"]),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_named_at_once(
    folder: Path, options: dict[str, Any], texts: list[str]
) -> None:
    _edit(folder, **options)
    with pytest.raises(CheckpointError) as caught:
        read_autoencoder_rae(folder)
    for text in texts:
        assert caught.match(text)


def test_folders_of_something_else(folder: Path, tmp_path: Path) -> None:
    _edit(folder, _class_name="AutoencoderKL")
    assert not is_autoencoder_rae(folder)
    with pytest.raises(CheckpointError, match="is of 'AutoencoderKL', and an AutoencoderRAE"):
        read_autoencoder_rae(folder)
    (folder / "config.json").unlink()
    assert not is_autoencoder_rae(folder)
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json"):
        read_autoencoder_rae(folder)
    (folder / "config.json").write_text("[]", "utf-8")
    assert not is_autoencoder_rae(folder)
    with pytest.raises(CheckpointError, match="of nothing that diffusers saved"):
        read_autoencoder_rae(folder)
    assert not is_autoencoder_rae(tmp_path / "nowhere")


def test_weights_that_are_not_whole(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} cannot be read"):
        read_autoencoder_rae(folder)
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(CheckpointError, match=r"it has .*fp16\.safetensors: rename it"):
        read_autoencoder_rae(folder)
    (folder / "diffusion_pytorch_model.fp16.safetensors").unlink()
    with pytest.raises(CheckpointError, match="it has none"):
        read_autoencoder_rae(folder)


def test_reading_takes_no_diffusers(folder: Path) -> None:
    code = f"""
import sys
from pathlib import Path
sys.modules["diffusers"] = sys.modules["transformers"] = None
from rpiae.interop.diffusers.autoencoder_rae import read_autoencoder_rae
print(read_autoencoder_rae(Path({str(folder)!r})).trained_size)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "64\n", done.stderr


def test_missing_diffusers_is_said_with_what_installs_it() -> None:
    code = """
import sys
sys.modules["diffusers"] = None
import rpiae
try:
    rpiae.AutoencoderRPiAE
except rpiae.RpiaeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'pip install "rpiae[interop]"' in done.stdout, done.stderr
