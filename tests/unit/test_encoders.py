"""Encoders against the libraries they come from, their files, and what goes wrong with both."""

from __future__ import annotations

import importlib.util
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request

import huggingface_hub
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor, nn

from rpiae.core.config.parts import EncoderConfig
from rpiae.core.errors import (
    CheckpointError,
    FetchError,
    MissingExtraError,
    RpiaeError,
    UsageError,
)
from rpiae.core.model.attention import attention_backend
from rpiae.core.model.blocks import recomputing
from rpiae.core.model.resolve import part_config
from rpiae.core.runtime import weight_files
from rpiae.encoders import hub
from rpiae.encoders.open_clip import ClipTower, OpenClipEncoder, weights_source
from rpiae.encoders.timm import TimmEncoder
from rpiae.encoders.timm_attention import SwitchedAttention, SwitchedRotaryAttention
from rpiae.encoders.vit import VitEncoder
from rpiae.testing import check_encoder
from tests.toys import ENCODERS

CLIP_ARGS = {"width": 32, "layers": 3, "head_width": 16, "image_size": 48, "patch_size": 16}
TOWER_ARGS = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 48}


def _images(rows: int, columns: int, *, patch: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, rows * patch, columns * patch, generator=generator)


def _clip(name: str = "ViT-B-16") -> open_clip.CLIP:
    """A small open_clip model with both towers, all of its parameters random."""
    config = open_clip.get_model_config(name)
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=config["vision_cfg"] | CLIP_ARGS,
        text_cfg={"width": 32, "layers": 1, "heads": 2, "vocab_size": 50, "context_length": 8},
        quick_gelu=config.get("quick_gelu", False),
    )
    return _scrambled(model).eval()


def _scrambled(module: nn.Module) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def _saved(state: dict[str, Tensor], path: Path) -> Path:
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


@pytest.mark.parametrize(
    "name", ["ViT-B-16", "ViT-B-16-quickgelu", "ViT-H-14-CLIPA", "ViT-S-16-alt"]
)
def test_clip_is_open_clip_s_own_tower(name: str, tmp_path: Path) -> None:
    whole = _clip(name)
    path = _saved(whole.state_dict(), tmp_path / "whole.safetensors")
    encoder = OpenClipEncoder(model=name, model_args=CLIP_ARGS)
    encoder.load_weights(path)
    images = _images(3, 3)
    with torch.inference_mode():
        theirs = whole.visual.forward_intermediates(images, indices=[0, 2], output_fmt="NLC")
        found = encoder.blocks(images, [0, 2])
        for ours, wanted in zip(found.tokens, theirs["image_intermediates"], strict=True):
            torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)
        wanted = F.layer_norm(
            theirs["image_intermediates"][-1], (32,), eps=whole.visual.ln_post.eps
        )
        torch.testing.assert_close(encoder(images).tokens, wanted, rtol=0, atol=1e-5)


def test_clip_positions_are_resampled_without_antialiasing_for_any_grid(tmp_path: Path) -> None:
    whole = _clip()
    encoder = OpenClipEncoder(model="ViT-B-16", model_args=CLIP_ARGS)
    encoder.load_weights(_saved(whole.state_dict(), tmp_path / "whole.safetensors"))
    images = _images(2, 5)
    stored = whole.visual.positional_embedding.detach()
    square = stored[1:].reshape(1, 3, 3, 32).permute(0, 3, 1, 2)
    resampled = F.interpolate(square, (2, 5), mode="bicubic").flatten(2)[0].T
    whole.visual.positional_embedding = nn.Parameter(torch.cat([stored[:1], resampled]))
    with torch.inference_mode():
        theirs = whole.visual.forward_intermediates(images, output_fmt="NLC")
        found = encoder.blocks(images, [-1])
    assert found.grid == (1, 2, 5)
    wanted = theirs["image_intermediates"][-1]
    torch.testing.assert_close(found.tokens[0], wanted, rtol=0, atol=1e-5)


def test_siglip_of_open_clip_is_that_of_timm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {**TOWER_ARGS, "act_layer": "gelu_tanh", "num_classes": 0}
    trunk = timm.create_model("vit_base_patch16_siglip_256", dynamic_img_size=True, **arguments)
    trunk = _scrambled(trunk).eval()
    state = trunk.state_dict()
    whole = {f"visual.trunk.{name}": value for name, value in state.items()}
    whole |= {
        "visual.head.proj.weight": torch.zeros(3),
        "text.token_embedding.weight": torch.ones(9),
    }
    theirs = OpenClipEncoder(model="ViT-B-16-SigLIP-256/webli", model_args=TOWER_ARGS)
    theirs.load_weights(_saved(whole, tmp_path / "whole.safetensors"))
    ours = TimmEncoder(model="vit_base_patch16_siglip_256", model_args=TOWER_ARGS)
    ours.load_weights(_saved(state, tmp_path / "timm.safetensors"))
    for grid in ((3, 3), (2, 4)):
        with torch.inference_mode():
            one, other = theirs(_images(*grid)), ours(_images(*grid))
        assert one.grid == other.grid == (1, *grid)
        torch.testing.assert_close(one.tokens, other.tokens, rtol=0, atol=1e-5)
    with torch.inference_mode():
        [wanted] = trunk.forward_intermediates(
            _images(3, 3), indices=[2], output_fmt="NLC", intermediates_only=True
        )
        found = theirs.blocks(_images(3, 3), [2])
    torch.testing.assert_close(found.tokens[0], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", [(3, 3), (2, 5), (5, 2)])
@pytest.mark.parametrize(
    "model",
    [
        "vit_small_patch16_dinov3",
        "vit_small_patch16_dinov3_qkvb",
        "vit_pe_core_base_patch16_224",
        "eva02_base_patch16_clip_224",
        "eva_giant_patch14_224",
    ],
)
def test_rotary_models_are_timm_s_own_at_any_grid(model: str, grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    patch = 14 if "14" in model else 16
    arguments = {**TOWER_ARGS, "img_size": 3 * patch, "num_classes": 0}
    encoder = _scrambled(TimmEncoder(model=model, model_args=arguments)).eval()
    size = (grid[0] * patch, grid[1] * patch)
    reference = timm.create_model(model, dynamic_img_size=True, **{**arguments, "img_size": size})
    state = encoder.network.state_dict()
    if reference.pos_embed is not None:
        stored = state["pos_embed"]
        square = stored[:, 1:].reshape(1, 3, 3, 32).permute(0, 3, 1, 2)
        mode = "bilinear" if "pe_core" in model else "bicubic"
        resampled = F.interpolate(square, grid, mode=mode).flatten(2).mT
        state["pos_embed"] = torch.cat([stored[:, :1], resampled], dim=1)
    left = reference.load_state_dict(state, strict=False)
    assert left.unexpected_keys == []
    images = _images(*grid, patch=patch)
    with torch.inference_mode():
        wanted = reference.eval().forward_intermediates(
            images, indices=[0, 2], output_fmt="NLC", intermediates_only=True
        )
        found = encoder.blocks(images, [0, 2])
    assert found.grid == (1, *grid)
    for ours, theirs in zip(found.tokens, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    ["vit_pe_core_base_patch16_224", "vit_tiny_patch16_dinov3_qkvb", "vit_huge_patch14_gap_224"],
)
def test_families_beyond_the_toys_fit_the_contract(model: str) -> None:
    tree = {"name": "timm", "model": model, "pretrained": False}
    config = part_config("encoders", {**tree, "model_args": {**TOWER_ARGS, "img_size": 56}})
    assert isinstance(config, EncoderConfig)
    check_encoder(config)


@pytest.mark.parametrize("model", ["vit_small_patch16_dinov3", "vit_pe_core_base_patch16_224"])
def test_rotations_tell_rows_from_columns(model: str) -> None:
    encoder = TimmEncoder(model=model, model_args=TOWER_ARGS)
    rotations = encoder._rotations((1, 3, 4))
    assert rotations is not None
    table = rotations[0].reshape(3, 4, -1)
    in_rows = (table - table[:, :1]).abs().amax((0, 1)) == 0  # the same in a whole row
    in_columns = (table - table[:1]).abs().amax((0, 1)) == 0
    assert in_rows.sum() == in_columns.sum() == table.shape[-1] // 2
    assert not (in_rows & in_columns).any()


@pytest.mark.parametrize("name", ENCODERS)
def test_attention_is_ours_and_backends_agree(name: str) -> None:
    config = part_config("encoders", ENCODERS[name])
    torch.manual_seed(0)
    encoder = config.build()
    theirs = (nn.MultiheadAttention, timm.layers.attention.Attention)
    assert not [m for m in encoder.modules() if isinstance(m, theirs)]
    images = _images(2, 3, patch=encoder.patch[1])
    found = {}
    for backend in ("math", "sdpa"):
        with torch.inference_mode(), attention_backend(backend):
            found[backend] = encoder(images).tokens
    torch.testing.assert_close(found["math"], found["sdpa"], rtol=0, atol=1e-5)


def test_rotary_attention_is_ours() -> None:
    encoder = TimmEncoder(model="vit_small_patch16_dinov3", model_args=TOWER_ARGS)
    assert all(isinstance(b.attn, SwitchedRotaryAttention) for b in encoder.network.blocks)
    encoder = TimmEncoder(model="vit_small_patch16_224", model_args=TOWER_ARGS)
    assert all(isinstance(b.attn, SwitchedAttention) for b in encoder.network.blocks)


@pytest.mark.parametrize("name", ["open-clip", "timm-rotary"])
def test_recomputing_gives_the_same_gradients(name: str) -> None:
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(0)
        encoder = part_config("encoders", ENCODERS[name]).build()
        with recomputing(enabled):
            tokens = encoder(_images(2, 3, patch=encoder.patch[1])).tokens
            torch.autograd.backward([tokens.square().mul(tokens).sum()])
        gradients.append([p.grad for p in encoder.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


BUILDERS: dict[str, Callable[[bool], nn.Module]] = {
    "vit": lambda mean: VitEncoder(
        width=32, depth=3, num_heads=2, layers=(2, 0), add_final_mean=mean
    ),
    "timm": lambda mean: TimmEncoder(
        model="vit_small_patch16_dinov3", model_args=TOWER_ARGS, layers=(2, 0), add_final_mean=mean
    ),
    "open_clip": lambda mean: OpenClipEncoder(
        model="ViT-B-16", model_args=CLIP_ARGS, layers=(2, 0), add_final_mean=mean
    ),
    "open_clip of timm": lambda mean: OpenClipEncoder(
        model="ViT-B-16-SigLIP", model_args=TOWER_ARGS, layers=(2, 0), add_final_mean=mean
    ),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_layers_are_averaged_and_the_last_one_s_mean_added(name: str) -> None:
    torch.manual_seed(0)
    plain = BUILDERS[name](False)
    added = BUILDERS[name](True)
    added.load_state_dict(plain.state_dict())
    images = _images(2, 3, patch=plain.patch[1])
    eps = plain._eps if isinstance(plain, TimmEncoder) else 1e-6
    if isinstance(plain, OpenClipEncoder):
        eps = plain.tower._eps
    with torch.inference_mode():
        first, last = (F.layer_norm(t, (32,), eps=eps) for t in plain.blocks(images, [0, 2]).tokens)
        mean = (first + last) / 2
        torch.testing.assert_close(plain(images).tokens, mean)
        wanted = mean + last.mean(dim=1, keepdim=True)
        torch.testing.assert_close(added(images).tokens, wanted)


@pytest.mark.parametrize(
    ("model", "eps"),
    [
        ("vit_small_patch14_dinov2", 1e-6),
        ("vit_small_patch16_dinov3", 1e-5),
        ("vit_pe_core_base_patch16_224", 1e-5),
        ("vit_medium_patch16_gap_256", 1e-6),
    ],
)
def test_the_final_norm_has_the_model_s_epsilon(model: str, eps: float) -> None:
    assert TimmEncoder(model=model, model_args={"depth": 1})._eps == eps
    other = TimmEncoder(model=model, model_args={"depth": 1}, eps=1e-3)
    assert other._eps == 1e-3
    assert {m.eps for m in other.modules() if isinstance(m, nn.LayerNorm)} == {1e-3}


def test_the_text_tower_is_neither_built_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _clip()
    path = _saved(whole.state_dict(), tmp_path / "whole.safetensors")
    read = []

    class Spy:
        def __init__(self, path: Path, framework: str) -> None:
            self._opened = safe_open(path, framework)

        def __enter__(self) -> Spy:
            self._file = self._opened.__enter__()
            return self

        def __exit__(self, *details: Any) -> None:
            self._opened.__exit__(*details)

        def keys(self) -> list[str]:
            return list(self._file.keys())

        def get_tensor(self, name: str) -> Tensor:
            read.append(name)
            tensor: Tensor = self._file.get_tensor(name)
            return tensor

    safe_open = weight_files.safe_open
    monkeypatch.setattr(weight_files, "safe_open", Spy)
    encoder = OpenClipEncoder(model="ViT-B-16", model_args=CLIP_ARGS)
    encoder.load_weights(path)
    assert read
    assert all(name.startswith("visual.") for name in read)
    ours = {n.removeprefix("tower.network.") for n, _ in encoder.named_parameters()}
    assert ours < {n for n, _ in whole.visual.named_parameters()}


def test_weights_decide_about_openai_s_activation() -> None:
    def activation(model: str) -> str:
        tower = OpenClipEncoder(model=model, model_args=CLIP_ARGS).tower
        assert isinstance(tower, ClipTower)
        return type(tower.network.transformer.resblocks[0].mlp.gelu).__name__

    assert activation("ViT-B-16/openai") == "QuickGELU"
    assert activation("ViT-B-16-quickgelu/openai") == "QuickGELU"
    assert activation("ViT-B-16-quickgelu") == "QuickGELU"
    assert activation("ViT-B-16/laion2b_s34b_b88k") == "GELU"
    assert activation("ViT-B-16") == "GELU"


def test_a_tag_s_statistics_and_source() -> None:
    config = part_config("encoders", "open_clip:ViT-B-16-SigLIP-256/webli")
    assert isinstance(config, EncoderConfig)
    assert config.describe().mean == (0.5, 0.5, 0.5)
    assert weights_source("ViT-B-16-SigLIP-256/webli") == (
        "timm/ViT-B-16-SigLIP-256", ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"), "",
    )  # fmt: skip
    config = part_config("encoders", "open_clip:ViT-H-14-CLIPA/datacomp1b")
    assert isinstance(config, EncoderConfig)
    assert config.describe().mean == pytest.approx((0.485, 0.456, 0.406))


@pytest.mark.parametrize("model", ["coca_ViT-B-32", "ViT-B-32", "EVA02-B-16", "PE-Core-B-16"])
def test_towers_of_every_kind_are_described_as_they_are_built(model: str) -> None:
    config = part_config("encoders", f"open_clip:{model}")
    assert isinstance(config, EncoderConfig)
    facts = config.describe()
    with torch.device("meta"):
        built = config.build()
        tokens = built(torch.empty(1, 3, 2 * facts.patch, 3 * facts.patch)).tokens
    for name in ("width", "num_blocks", "prefix_tokens", "mean", "std"):
        assert getattr(facts, name) == getattr(built, name), name
    assert built.patch == (1, facts.patch, facts.patch)
    assert tokens.shape == (1, 6, facts.width)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:RN50/openai", r"'RN50' cannot be a pivot.*ModifiedResNet"),
        ("open_clip:MobileCLIP-B", r"'MobileCLIP-B' cannot be a pivot.*vit_base_mci_224.*hybrid"),
        ("open_clip:ViTamin-S", r"'ViTamin-S' cannot be a pivot.*vitamin_small_224.*hybrid"),
        ("open_clip:convnext_base", r"'convnext_base' cannot be a pivot.*not a ViT"),
        ("open_clip:vit-b-16", r"no model 'vit-b-16'\. Did you mean 'ViT-B-16'"),
        ("open_clip:ViT-B-16/opnai", r"no weights 'opnai'.*Did you mean 'openai'"),
        ("open_clip:ViT-M-16/openai", r"no weights 'openai'.*has none: leave the tag out"),
        ("open_clip:nothing", r"no model 'nothing'\. List them"),
        ("timm:resnet50", r"'resnet50' cannot be a pivot"),
        ("timm:vit_base_patch16_223", r"no model 'vit_base_patch16_223'\. Did you mean"),
        ("timm:vit_base_patch16_224.nothing", r"no weights 'nothing'"),
    ],
)
def test_what_is_no_pivot_is_refused_by_name(name: str, message: str) -> None:
    config = part_config("encoders", name)
    assert isinstance(config, EncoderConfig)
    with pytest.raises(UsageError, match=message):
        config.describe()
    with pytest.raises(UsageError, match=message):
        config.build()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"model": "ViT-B-16", "model_args": {"widht": 8}}, r"no 'widht'.*Did you mean 'width'"),
        ({"model": "ViT-B-16", "layers": [12]}, r"blocks 0 to 11, not 12"),
        ({"model": "ViT-B-16-SigLIP", "model_args": {"strange": 8}}, r"strange"),
        (
            {"model": "ViT-B-16", "model_args": {"patch_size": [16, 8]}},
            r"one number, not \[16, 8\]",
        ),
        ({"model": "ViT-B-16", "layers": [-1]}, r"blocks 0 to 11, not -1"),
        ({"model": ""}, r"needs a model: write open_clip:"),
    ],
)
def test_bad_arguments_of_a_tower(tree: dict[str, Any], message: str) -> None:
    config = part_config("encoders", {"name": "open_clip", **tree})
    assert isinstance(config, EncoderConfig)
    with pytest.raises(UsageError, match=message):
        config.describe()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"name": "open_clip", "model": "ViT-B-16", "model_args": {"width": 30}}, r"'width': 30"),
        ({"name": "open_clip", "model": "ViT-B-16", "model_args": {"width": "x"}}, r"'width': 'x'"),
        ({"name": "timm", "model": "vit_base_patch16_224", "model_args": {"num_heads": 7}}, r"'num_heads': 7"),
        ({"name": "timm", "model": "vit_base_patch16_224", "model_args": {"strange": 1}}, r"'strange': 1"),
        ({"name": "timm", "model": "vit_base_patch16_224", "model_args": {"patch_size": [16, 8]}}, "not square"),
    ],
)  # fmt: skip
def test_towers_that_cannot_be_built(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        part_config("encoders", tree).build()


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name == "open_clip" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    for name, called in (("siglip2-b", "siglip2-b"), ("open_clip:ViT-B-16", "open-clip")):
        with pytest.raises(MissingExtraError, match=r"pip install \"rpiae\[open-clip\]\"") as told:
            part_config("encoders", name)
        assert f"encoder '{called}' needs open_clip_torch, which is not installed" in str(
            told.value
        )


def test_without_a_tag_there_is_nothing_to_fetch() -> None:
    config = part_config("encoders", "open_clip:ViT-B-16")
    assert isinstance(config, EncoderConfig)
    with pytest.raises(FetchError, match=r"ViT-B-16/openai.*encoder\.weights"):
        config.fetch()


# --- files ---------------------------------------------------------------------------------------


def _loads(tree: dict[str, Any], path: Path) -> nn.Module:
    config = part_config("encoders", {**tree, "pretrained": True, "weights": str(path)})
    assert isinstance(config, EncoderConfig)
    module: nn.Module = config.build()
    config.load_pretrained(module)
    return module


@pytest.mark.parametrize("name", ["open-clip", "open-clip-siglip", "timm", "timm-rotary"])
def test_weights_of_another_architecture_name_an_example(name: str, tmp_path: Path) -> None:
    other = {"visual.conv1.weight": torch.zeros(1, 3, 4, 4), "pos_embed": torch.zeros(1, 5, 8)}
    with pytest.raises(CheckpointError, match=r"another architecture.*(is missing|there and \()"):
        _loads(ENCODERS[name], _saved(other, tmp_path / "other.safetensors"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
@pytest.mark.parametrize("content", [b"", b"PK not an archive", b"\x00" * 40, b"GIF89a" * 9])
def test_damaged_files_are_told(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        _loads(ENCODERS["open-clip"], path)


def test_a_file_cut_short_is_told(tmp_path: Path) -> None:
    path = _saved(_clip().state_dict(), tmp_path / "whole.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"whole\.safetensors cannot be read"):
        _loads(ENCODERS["open-clip"], path)


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2), "text"])
def test_a_torch_file_of_something_else_is_told(content: object, tmp_path: Path) -> None:
    path = tmp_path / "strange.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="not a table of tensors"):
        _loads(ENCODERS["timm"], path)


def test_a_torch_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "code.pt"
    torch.save({"visual.conv1.weight": torch.zeros(1), "hook": _images}, path)
    with pytest.raises(CheckpointError, match="not a plain weights file"):
        _loads(ENCODERS["open-clip"], path)


def test_a_training_checkpoint_of_open_clip_is_read(tmp_path: Path) -> None:
    torch.manual_seed(1)
    tree = ENCODERS["open-clip"]
    source = _scrambled(part_config("encoders", tree).build())
    state = {
        f"module.visual.{name.removeprefix('tower.network.')}": value
        for name, value in source.state_dict().items()
    }
    path = tmp_path / "epoch_1.pt"
    torch.save({"epoch": 1, "state_dict": state}, path)
    loaded = _loads(tree, path)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in loaded.state_dict().items())


def test_an_i_jepa_checkpoint_is_read(tmp_path: Path) -> None:
    tree = {
        "name": "timm", "model": "vit_huge_patch14_gap_224.in1k_ijepa",
        "model_args": {**TOWER_ARGS, "img_size": 28},
    }  # fmt: skip
    source = _scrambled(part_config("encoders", tree).build())
    encoder = {
        f"module.{name.removeprefix('network.')}": value
        for name, value in source.state_dict().items()
    }
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(
        {"encoder": encoder, "predictor": {"module.x": torch.zeros(1)}, "epoch": 3, "lr": 0.1}, path
    )
    loaded = _loads(tree, path)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in loaded.state_dict().items())


# --- fetching --------------------------------------------------------------------------------------

URL = "https://example.org/weights/vit-0123456789ab.pth"


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path


def test_a_url_that_cannot_be_reached_names_the_ways_out(
    torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(request: Request, timeout: float) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(FetchError) as caught:
        hub.download_url(URL, label="i-jepa-h")
    for part in (URL, "not known", "TORCH_HOME", "rpiae fetch i-jepa-h", "encoder.weights=PATH"):
        assert part in str(caught.value)
    assert not [path for path in torch_home.rglob("*") if path.is_file()]


def test_a_url_offline_or_without_https_is_not_tried(
    torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FetchError, match="only https"):
        hub.download_url(URL.replace("https", "http"), label="x")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchError, match="HF_HUB_OFFLINE is set"):
        hub.download_url(URL, label="x")


def test_offline_the_cache_is_searched_for_every_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def cached(
        hub_id: str, name: str, *, revision: str, local_files_only: bool, **_: object
    ) -> str:
        asked.append((name, local_files_only))
        if name != "c":
            raise LocalEntryNotFoundError("nothing here")
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", cached)
    assert hub.download("o/n", "main", label="x", files=("a", "b", "c")) == tmp_path / "c"
    assert asked == [("a", False), ("b", True), ("c", True)]
    with pytest.raises(FetchError, match=r"https://huggingface\.co/o/n \(revision main\).*HF_HOME"):
        hub.download("o/n", "main", label="x", files=("a", "b"))


@pytest.mark.parametrize("name", ["siglip-b", "clip-b", "mae-b", "i-jepa-h"])
def test_presets_of_every_source_fail_clearly_offline(
    name: str, torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*arguments: Any, **details: Any) -> None:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = part_config("encoders", name)
    assert isinstance(config, EncoderConfig)
    with pytest.raises(RpiaeError, match=f"rpiae fetch {name}"):
        config.fetch()
