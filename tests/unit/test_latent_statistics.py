"""Latent statistics against closed forms: waves, white noise, Gaussians, dead channels."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from rpiae.bridges.posterior import DiagonalGaussian
from rpiae.core.errors import UsageError
from rpiae.evaluation.latent_statistics import DEAD, LatentStatistics, compression


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def measured(latent: Tensor, **gaussian: Tensor) -> LatentStatistics:
    found = LatentStatistics(latent.shape[1])
    found.add(latent, **gaussian)
    return found


def test_moments_over_images_and_places() -> None:
    latent = normal(4, 3, 5, 2) * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1) + 2
    found = measured(latent)
    torch.testing.assert_close(found.mean, latent.double().mean((0, 2, 3)))
    torch.testing.assert_close(found.std, latent.double().std((0, 2, 3), correction=0))
    assert found.images == 4


def test_rate_and_divergence_of_gaussians() -> None:
    mean, logvar = normal(6, 2, 3, 3), normal(6, 2, 3, 3, seed=1)
    found = measured(mean, mean=mean, logvar=logvar)
    posterior = Normal(mean.double(), (0.5 * logvar.double()).exp())
    usual = kl_divergence(posterior, Normal(0.0, 1.0))
    assert found.kl is not None
    torch.testing.assert_close(found.kl, 2 * usual.mean((0, 2, 3)))
    expected = usual.sum((1, 2, 3)).mean().item() / math.log(2)
    assert found.rate_bits == pytest.approx(expected, rel=1e-12)
    project = DiagonalGaussian(mean, logvar).kl().item()
    assert found.kl.mean().item() == pytest.approx(project, rel=1e-5)


def test_without_gaussians_there_is_no_rate() -> None:
    found = measured(normal(2, 3, 4, 4))
    assert found.kl is None
    assert found.rate_bits is None
    found.add(normal(2, 3, 4, 4), mean=torch.zeros(2, 3, 4, 4), logvar=torch.zeros(2, 3, 4, 4))
    assert found.rate_bits == 0


def test_active_channels_by_the_rule_of_dead_ones() -> None:
    wave = torch.tensor([1.0, -1.0]).repeat(8).view(1, 1, 4, 4)
    scales = torch.tensor([10.0, 1.0, 0.11, 0.09, 0.0]).view(1, 5, 1, 1)
    found = measured(wave * scales + 3)
    assert DEAD == 0.01
    assert found.active_channels() == 3
    assert found.active_channels(0.05) == 2
    assert found.active_channels(0.0) == 5


def test_effective_rank() -> None:
    codes = torch.linalg.qr(normal(64, 8).double() - normal(64, 8).double().mean(0)).Q
    equal = codes[:, :4].T.reshape(1, 4, 8, 8)
    assert measured(equal - equal.mean((2, 3), keepdim=True)).effective_rank == pytest.approx(
        4, rel=1e-9
    )
    base = normal(2, 1, 8, 8)
    assert measured(torch.cat([base, 2 * base, -base], 1)).effective_rank == pytest.approx(1)
    assert measured(torch.full((2, 3, 3, 3), 0.3)).effective_rank == 0


def test_effective_rank_of_unequal_spread() -> None:
    found = LatentStatistics(2)
    found.moments.count = 9
    found.moments.scatter = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double()
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found.effective_rank == pytest.approx(math.exp(entropy), rel=1e-12)


@pytest.mark.parametrize("frequency", [1, 2, 3, 4])
@pytest.mark.parametrize("turned", [False, True])
def test_a_wave_has_its_own_frequency(frequency: int, turned: bool) -> None:
    places = torch.arange(8).double()
    wave = torch.cos(2 * math.pi * frequency * places / 8).repeat(8, 1)
    found = measured((wave.T if turned else wave)[None, None] * 3 + 100)
    expected = torch.zeros(5, dtype=torch.float64)
    expected[frequency] = 1
    torch.testing.assert_close(found.spectrum, expected)
    assert found.high_frequency_share == pytest.approx(float(frequency > 2), abs=1e-12)


def test_rings_are_averages_within_the_nyquist_frequency() -> None:
    impulse = torch.zeros(1, 1, 8, 8)
    impulse[0, 0, 3, 5] = 1
    found = measured(impulse).spectrum
    torch.testing.assert_close(found, torch.tensor([0.0, 0.25, 0.25, 0.25, 0.25]).double())


def test_frequencies_of_a_grid_that_is_not_square() -> None:
    places = torch.arange(16).double()
    wave = torch.cos(2 * math.pi * 4 * places / 16).repeat(8, 1)  # a quarter cycle per place
    found = measured(wave[None, None])
    assert len(found.spectrum) == 9
    assert found.spectrum[4].item() == pytest.approx(1)
    assert measured(wave.T[None, None]).spectrum.equal(found.spectrum)
    thin = measured(torch.tensor([1.0, -1.0]).view(1, 1, 1, 2))
    assert thin.spectrum.tolist() == [0.0, 1.0]


def test_white_noise_is_mostly_high() -> None:
    found = measured(normal(20, 2, 32, 32))
    assert found.high_frequency_share == pytest.approx(1 - math.pi / 16, abs=0.01)
    assert found.spectrum[1:].std().item() < 0.1 * found.spectrum[1:].mean().item()


def test_the_share_counts_grids_by_their_squares() -> None:
    found = LatentStatistics(1)
    slow = torch.cos(2 * math.pi * torch.arange(8).double() / 8).repeat(4, 1)
    fast = torch.tensor([1.0, -1.0]).double().repeat(8).view(4, 4)
    found.add(slow[None, None])
    found.add(fast[None, None])
    assert found.high_frequency_share == pytest.approx(16 / (16 + 16))
    with pytest.raises(UsageError, match=r"one grid, got \[\(4, 4\), \(4, 8\)\]"):
        _ = found.spectrum
    with pytest.raises(UsageError, match="one grid"):
        _ = LatentStatistics(1).spectrum


@pytest.mark.parametrize("side", [1, 3])
def test_maps_that_do_not_vary_have_no_power(side: int) -> None:
    latent = normal(3, 2, 1, 1).expand(3, 2, side, side)
    found = measured(latent)
    assert found.high_frequency_share == 0
    assert found.spectrum.tolist() == [0.0] * (side // 2 + 1)


def test_parts_are_the_whole() -> None:
    latent, logvar = normal(7, 3, 4, 6) + 50, normal(7, 3, 4, 6, seed=1)
    whole = measured(latent, mean=latent, logvar=logvar)
    streamed, merged = LatentStatistics(3), LatentStatistics(3)
    for part in (slice(5, 7), slice(0, 0), slice(0, 1), slice(1, 5)):
        chosen = {"mean": latent[part], "logvar": logvar[part]}
        streamed.add(latent[part], **chosen)
        merged.merge(pickle.loads(pickle.dumps(measured(latent[part], **chosen))))
    for found in (streamed, merged):
        assert found.images == 7
        for name in ("mean", "std", "kl", "rate_bits", "effective_rank", "spectrum"):
            torch.testing.assert_close(
                torch.as_tensor(getattr(found, name)),
                torch.as_tensor(getattr(whole, name)),
                rtol=1e-10,
                atol=1e-12,
            )
        assert found.high_frequency_share == pytest.approx(whole.high_frequency_share, rel=1e-10)


def test_merging_does_not_change_the_other() -> None:
    part = measured(normal(2, 1, 4, 4))
    power = part.power[4, 4].clone()
    found = LatentStatistics(1)
    found.merge(part)
    found.add(normal(3, 1, 4, 4, seed=2))
    assert part.power[4, 4].equal(power)
    assert part.images == 2


def test_nothing_has_no_statistics() -> None:
    found = LatentStatistics(2)
    assert found.mean.isnan().all()
    assert found.std.isnan().all()
    assert found.active_channels() == 0
    assert found.effective_rank == 0


def test_latents_that_do_not_fit() -> None:
    found = LatentStatistics(2)
    with pytest.raises(UsageError, match=r"shape \(b, 2, h, w\)"):
        found.add(torch.zeros(1, 3, 4, 4))
    with pytest.raises(UsageError, match="both or neither"):
        found.add(torch.zeros(1, 2, 4, 4), mean=torch.zeros(1, 2, 4, 4))
    with pytest.raises(UsageError, match="one shape"):
        found.add(
            torch.zeros(1, 2, 4, 4), mean=torch.zeros(1, 2, 4, 4), logvar=torch.zeros(1, 2, 1, 1)
        )
    assert found.images == found.gaussian_images == 0


def test_compression() -> None:
    found = compression((3, 256, 256), (32, 16, 16))
    assert found == {"values": 24.0, "bits": 12.0}
    half = compression((3, 256, 256), (32, 16, 16), bits_per_value=8)
    assert half == {"values": 24.0, "bits": 24.0}
    quantised = compression((3, 256, 256), (4, 16, 16), codebook_size=1024)
    assert quantised == {"values": 192.0, "bits": 8 * 3 * 256 * 256 / (256 * 10)}


def test_compression_refuses() -> None:
    for image, latent in (((3, 8, 8), (4, 2)), ((3, 0, 8), (4, 2, 2))):
        with pytest.raises(UsageError, match="all positive"):
            compression(image, latent)
    with pytest.raises(UsageError, match="more than 0 bits"):
        compression((3, 8, 8), (4, 2, 2), bits_per_value=0)
    with pytest.raises(UsageError, match="at least 2 entries, got 1"):
        compression((3, 8, 8), (4, 2, 2), codebook_size=1)
