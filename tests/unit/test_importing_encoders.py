"""Encoders of the transformers library, with its own models as the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.tokenizer import RPiAE
from rpiae.interop.importing import import_model
from rpiae.interop.reference.facts import Told
from rpiae.interop.reference.tokenizers import write_reference
from tests.official import decoder_alone, official, state_of, tokenizer

transformers = pytest.importorskip("transformers")

#: Class, what its config has beside the sizes, tokens that are not of patches.
CLASSES: dict[str, tuple[str, dict[str, Any], int]] = {
    "registers": ("Dinov2WithRegisters", {"num_register_tokens": 3, "mlp_ratio": 2}, 4),
    "gated": (
        "Dinov2WithRegisters",
        {"num_register_tokens": 4, "mlp_ratio": 3, "use_swiglu_ffn": True},
        5,
    ),
    "no registers": ("Dinov2WithRegisters", {"num_register_tokens": 0}, 1),
    "plain": ("Dinov2", {"mlp_ratio": 3, "layer_norm_eps": 1e-5}, 1),
    "mae": ("ViTMAE", {"intermediate_size": 40, "mask_ratio": 0.0}, 1),
    "siglip": ("SiglipVision", {"intermediate_size": 40}, 0),
    "siglip, erf": ("SiglipVision", {"intermediate_size": 40, "hidden_act": "gelu"}, 0),
}
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 42,
    "patch_size": 14,
}  # fmt: skip


def theirs(name: str, folder: Path) -> Any:
    """A model of transformers with random weights in a folder, without a weight in its final norm."""
    kind, options, _ = CLASSES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **options)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn(value.shape))
    model.save_pretrained(folder)
    norm = getattr(model, "layernorm", None) or model.post_layernorm
    norm.weight.data.fill_(1)
    norm.bias.data.fill_(0)
    return model


@torch.inference_mode()
def tokens(model: Any, images: torch.Tensor, others: int) -> torch.Tensor:
    options: dict[str, Any] = {}
    if "Dinov2" not in type(model).__name__:
        options["interpolate_pos_encoding"] = True
    if "MAE" in type(model).__name__:
        options["noise"] = torch.arange(4.0).expand(len(images), 4)
    found: torch.Tensor = model(images, **options).last_hidden_state[:, others:]
    return found


def decoder(folder: Path) -> Path:
    folder.mkdir()
    there = official(folder / "there", tokenizer(bridge="identity"))
    return decoder_alone(folder / "decoder.pt", state_of(there))


@pytest.mark.parametrize("name", CLASSES)
def test_tokens_and_the_way_back(tmp_path: Path, name: str) -> None:
    """On a grid of 2×2, for which positions of 3×3 are resampled."""
    known = theirs(name, tmp_path / "encoder")
    file = decoder(tmp_path / "rae")
    told = Told(encoder=str(tmp_path / "encoder"), decoder_heads=2)
    model = import_model(file, told=told).model
    assert isinstance(model, RPiAE)
    images = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = model.encoder(images).tokens
    others = CLASSES[name][2]
    torch.testing.assert_close(found, tokens(known, images, others), rtol=0, atol=1e-5)
    assert found.square().mean() == pytest.approx(1, abs=1e-3)

    write_reference(model, tmp_path / "back")
    folder = tmp_path / "back" / "encoder"
    options = {"mask_ratio": 0.0} if name == "mae" else {}
    again = type(known).from_pretrained(folder, **options).eval()
    torch.testing.assert_close(tokens(again, images, others), found, rtol=0, atol=1e-5)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert tuple(processor.image_mean) == model.encoder.mean
    assert tuple(processor.image_std) == model.encoder.std


@pytest.mark.parametrize("name", CLASSES)
def test_names_in_memory(tmp_path: Path, name: str) -> None:
    """A state dict that was saved as it is has the names of the transformers that made it."""
    known = theirs(name, tmp_path / "encoder")
    file = decoder(tmp_path / "rae")
    told = Told(encoder=str(tmp_path / "encoder"), decoder_heads=2)
    wanted = import_model(file, told=told).model
    alone = torch.load(file, weights_only=True)
    state = {f"encoder.encoder.{n}": t for n, t in known.state_dict().items()}
    state |= {f"decoder.{n}": t for n, t in alone.items()}
    torch.save(state, tmp_path / "rpiae.pt")
    told = Told(configs=(str(tmp_path / "encoder"),), decoder_heads=2)
    found = import_model(tmp_path / "rpiae.pt", told=told).model
    assert isinstance(found, RPiAE)
    assert isinstance(wanted, RPiAE)
    torch.testing.assert_close(found.state_dict(), wanted.state_dict(), rtol=0, atol=0)


def test_parts_of_a_gated_encoder(tmp_path: Path) -> None:
    file = decoder(tmp_path / "rae")
    theirs("gated", tmp_path / "encoder")
    path = tmp_path / "encoder" / "model.safetensors"
    state = load_file(path)
    both = state.pop("encoder.layer.1.mlp.weights_in.weight")
    state["encoder.layer.1.mlp.gate_proj.weight"] = both.chunk(2)[0].clone()
    told = Told(encoder=str(tmp_path / "encoder"), decoder_heads=2)
    registers = state.pop("embeddings.register_tokens")
    save_file(state, path)
    with pytest.raises(CheckpointError, match=r"embeddings\.register_tokens is missing, and"):
        import_model(file, told=told)
    save_file(state | {"embeddings.register_tokens": registers}, path)
    wrong = r"missing: \S+1\.mlp\.weights_in\.weight\. unexpected: \S+1\.mlp\.gate_proj\.weight"
    with pytest.raises(CheckpointError, match=wrong):
        import_model(file, told=told)


def test_other_statistics_and_heads(tmp_path: Path) -> None:
    theirs("registers", tmp_path / "encoder")
    file = decoder(tmp_path / "rae")
    (tmp_path / "encoder" / "preprocessor_config.json").write_text(
        '{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}'
    )
    told = Told(encoder=str(tmp_path / "encoder"), decoder_heads=2)
    model = import_model(file, told=told).model
    assert isinstance(model, RPiAE)
    assert model.encoder.mean == (0.1, 0.2, 0.3)
    assert model.encoder.std == (0.4, 0.5, 0.6)
    (tmp_path / "encoder" / "config.json").unlink()
    told = Told(encoder=str(tmp_path / "encoder"))
    both = (
        r"decoder \(width 32, 1 layers\) .* attention heads of the encoder \(width 32, 2 blocks\)"
    )
    with pytest.raises(UsageError, match=both):
        import_model(file, told=told)
    told = Told(encoder=str(tmp_path / "encoder"), encoder_weights="x.pt")
    with pytest.raises(UsageError, match="is a folder of transformers, to which --encoder-weights"):
        import_model(file, told=told)


def test_folders_that_are_none(tmp_path: Path) -> None:
    file = decoder(tmp_path / "rae")
    folder = tmp_path / "encoder"
    folder.mkdir()
    told = Told(encoder=str(folder), decoder_heads=2)
    with pytest.raises(
        CheckpointError, match="has no weights of an encoder: expected one of model"
    ):
        import_model(file, told=told)
    theirs("plain", folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read as weights"):
        import_model(file, told=told)


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("vit_base_patch16_224", {}),
        ("vit_base_patch16_siglip_224", {}),
        ("vit_small_patch16_224", {"init_values": 1e-5}),
    ],
)
@pytest.mark.parametrize("prefix", ["encoder.encoder.", "encoder.model.vision_model.", "encoder."])
def test_a_tokenizer_around_other_encoders(
    tmp_path: Path, model: str, arguments: dict[str, Any], prefix: str
) -> None:
    encoder = {
        "name": "timm", "model": model, "pretrained": False, "image_size": 32,
        "model_args": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 48, **arguments},
    }  # fmt: skip
    own = tokenizer(encoder=encoder)
    folder = official(tmp_path / "there", own)
    named = {n.replace("encoder.encoder.", prefix, 1): v for n, v in state_of(folder).items()}
    torch.save({"ema": named}, folder / "rpiae.pt")
    found = import_model(folder).model
    assert isinstance(found, RPiAE)
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(found.reconstruct(images), own.reconstruct(images))
    renamed = next(n for n in named if n.endswith("norm1.bias") or "norm_before.bias" in n)
    named[f"{renamed}x"] = named.pop(renamed)
    torch.save(named, folder / "rpiae.pt")
    with pytest.raises(CheckpointError, match=f"missing: {renamed}. unexpected: {renamed}x"):
        import_model(folder)
