"""Parts in any dtype, empty batches, and images that are not in [0, 1]."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rpiae
from rpiae.bridges.posterior import DiagonalGaussian
from rpiae.core.errors import UsageError
from rpiae.core.model.attention import BACKENDS, attention
from rpiae.core.model.contracts import Features, StepContext
from rpiae.core.model.folders import save_tokenizer
from rpiae.core.model.geometry import pad_to
from rpiae.core.model.resolve import part_config
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.registry.registry import registry
from rpiae.core.runtime.draws import StepRandomness
from rpiae.core.training.objective import PivotReplica
from tests.toys import BRIDGES, CRITICS, DECODERS, ENCODERS

#: Every built-in part once.
COMBINATIONS = [
    *((encoder, "identity", "vit") for encoder in ENCODERS),
    *(("vit", bridge, "vit") for bridge in BRIDGES),
    *(("vit", "vb4", decoder) for decoder in DECODERS),
]

#: How far a picture may be from the fp32 one: roundings of 8 and 11 bits through some ten layers.
DTYPES = {torch.bfloat16: 0.08, torch.float16: 0.01, torch.float64: 1e-5}


def tokenizer(encoder: str, bridge: str, decoder: str) -> RPiAE:
    model = rpiae.build(
        encoder=ENCODERS[encoder], bridge=BRIDGES[bridge], decoder=DECODERS[decoder],
        pretrained=False,
    )  # fmt: skip
    return model.eval().requires_grad_(False)


def images(number: int = 2) -> Tensor:
    return torch.rand(number, 3, 36, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def default_of_64_bits() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", COMBINATIONS, ids="-".join)
def test_a_model_of_any_dtype_makes_a_picture_near_the_one_of_fp32(
    parts: tuple[str, str, str], dtype: torch.dtype
) -> None:
    model = tokenizer(*parts)
    exact = model.reconstruct(images())
    model.to(dtype)
    assert model.dtype == dtype
    for given in (images(), images().to(dtype)):
        made = model.reconstruct(given)
        assert made.dtype == dtype
        assert (made.float() - exact).abs().max() < DTYPES[dtype]
    assert model.encode(images()).mode().dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("role", ["encoder", "bridge", "decoder"])
def test_a_single_part_of_another_dtype(role: str) -> None:
    model = tokenizer("vit", "vb4", "vit")
    exact = model.reconstruct(images())
    model.roles[role].to(torch.bfloat16)
    assert (model.reconstruct(images()).float() - exact).abs().max() < DTYPES[torch.bfloat16]


@pytest.mark.parametrize("parts", COMBINATIONS, ids="-".join)
def test_a_model_built_with_a_default_of_64_bits(
    parts: tuple[str, str, str], default_of_64_bits: None
) -> None:
    model = tokenizer(*parts)
    made = model.reconstruct(images().float())
    assert made.dtype == model.dtype == torch.float64
    torch.testing.assert_close(
        copy.deepcopy(model).float()(images()).double(), made, atol=1e-5, rtol=0
    )


def test_norms_of_features_and_latents_in_half_precision() -> None:
    model = tokenizer("vit", "vb4", "vit")
    model.register_buffer("feature_mean", torch.full((32, 1, 1), 0.1))
    model.register_buffer("feature_var", torch.full((32, 1, 1), 2.0))
    model.register_buffer("latent_mean", torch.zeros(4))
    model.register_buffer("latent_std", torch.ones(4))
    exact = model.reconstruct(images())
    model.to(torch.bfloat16)
    latent = model.normalise_latent(model.encode(images()).mode())
    made = model.decode(model.denormalise_latent(latent), size=(36, 28)).clamp(0, 1)
    assert (made.float() - exact).abs().max() < DTYPES[torch.bfloat16]


def test_saving_and_loading_in_another_dtype(tmp_path: Path) -> None:
    model = tokenizer("vit", "vb4", "vit")
    save_tokenizer(model, tmp_path / "a")
    loaded = rpiae.load(tmp_path / "a", device="cpu", dtype=torch.bfloat16)
    assert (loaded.dtype, loaded.device) == (torch.bfloat16, torch.device("cpu"))
    assert torch.equal(loaded(images()), model.to(torch.bfloat16)(images()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_posteriors_keep_their_statistics_in_fp32_at_least(dtype: torch.dtype) -> None:
    mean, logvar = torch.randn(2, 1, 4, 3, 3).to(dtype)
    posterior = DiagonalGaussian(mean, logvar)
    wanted = torch.promote_types(dtype, torch.float32)
    assert posterior.mean.dtype == posterior.sample().dtype == posterior.kl().dtype == wanted


@pytest.mark.parametrize("name", ["l1", "mse", "pivot", "feature", "pivot-perceptual", "lpips"])
def test_losses_of_half_precision_are_computed_in_fp32(name: str) -> None:
    model = tokenizer("vit", "vb4", "vit")
    given = {"name": name, "pretrained": False} if name == "lpips" else name
    loss = part_config("losses", given).build()
    replica = PivotReplica(copy.deepcopy(model.encoder), output_patch=model.decoder.patch)
    features = model.features(images())
    # Values whose differences bf16 cannot hold.
    context = StepContext(
        images=images().bfloat16(), reconstruction=(images() + 2e-3).bfloat16(),
        features=Features(features.tokens.bfloat16(), features.grid), posterior=None, latent=None,
        decoded_features=Features((features.tokens + 0.01).bfloat16(), features.grid),
        replica=replica, draws=StepRandomness(0, "s", 0, (0, 1)),
    )  # fmt: skip
    exact = context._replace(
        images=context.images.float(), reconstruction=context.reconstruction.float(),
        features=Features(context.features.tokens.float(), features.grid),
        decoded_features=Features(context.decoded_features.tokens.float(), features.grid),
    )  # fmt: skip
    found = loss(context)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(exact))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CRITICS)
def test_critics_of_any_dtype(name: str, dtype: torch.dtype) -> None:
    critic: nn.Module = part_config("critics", CRITICS[name]).build().eval().requires_grad_(False)
    exact = critic(images())
    found = critic.to(dtype)(images())
    assert (found.float() - exact).abs().max() < 10 * DTYPES[dtype]


@pytest.mark.parametrize("parts", COMBINATIONS, ids="-".join)
def test_an_empty_batch_passes_everywhere(parts: tuple[str, str, str]) -> None:
    model, nothing = tokenizer(*parts), images(0)
    one = model.encode(images(1))
    posterior = model.encode(nothing)
    for latent in (posterior.mode(), posterior.sample()):
        assert latent.shape == (0, *one.mode().shape[1:])
    assert model.decode(posterior.mode()).shape == (0, *model.decode(one.mode()).shape[1:])
    assert model.reconstruct(nothing).shape == nothing.shape
    assert model.features(nothing).tokens.shape == (0, *model.features(images(1)).tokens.shape[1:])


@pytest.mark.parametrize("name", CRITICS)
def test_an_empty_batch_passes_critics(name: str) -> None:
    critic = part_config("critics", CRITICS[name]).build().eval()
    assert critic(images(0)).shape == (0, critic(images(1)).shape[1])


@pytest.mark.parametrize("backend", sorted({*BACKENDS} - {"xformers"}))
def test_an_empty_batch_passes_attention(backend: str) -> None:
    empty = torch.rand(0, 2, 5, 4)
    assert attention(empty, empty, empty, backend=backend).shape == empty.shape


@pytest.mark.parametrize("size", [(9, 9), (64, 5), (1, 1)])
def test_an_empty_batch_is_padded(size: tuple[int, int]) -> None:
    assert pad_to(torch.rand(0, 3, 1, 1), size).shape == (0, 3, *size)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize("change", [lambda x: 2 * x - 1, lambda x: 255 * x, lambda x: x / 0])
def test_images_outside_their_range_are_told_once_per_model(
    change: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model, other = tokenizer("vit", "vb4", "vit"), tokenizer("vit", "vb4", "vit")
    model.reconstruct(images())
    assert warnings_of(caplog) == []
    for _ in range(3):
        model.reconstruct(change(images()))
    assert len(warnings_of(caplog)) == 1
    assert "takes them in [0, 1]" in warnings_of(caplog)[0]
    other.encode(change(images()))
    assert len(warnings_of(caplog)) == 2


def test_what_resampling_overshoots_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer("vit", "vb4", "vit").reconstruct(images() * 1.06 - 0.03)
    assert warnings_of(caplog) == []


def test_integers_are_refused() -> None:
    with pytest.raises(UsageError, match=r"float tensors .* in \[0, 1\], not torch.uint8"):
        tokenizer("vit", "vb4", "vit").encode((images() * 255).to(torch.uint8))


def test_registered_parts_are_all_here() -> None:
    for family, toys in (("bridges", BRIDGES), ("decoders", DECODERS), ("critics", CRITICS)):
        named = {part_config(family, toy).name for toy in toys.values()}
        own = {e.name for e in registry(family).entries() if e.distribution == "rpiae"}
        assert named == own
