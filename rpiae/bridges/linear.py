"""The bridge of principal components."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rpiae.bridges.posterior import Delta
from rpiae.core.errors import TrainingError, UsageError
from rpiae.core.model.contracts import Features, Fit
from rpiae.core.model.geometry import at_least_fp32, map_grid, map_to_tokens, tokens_to_map


class LinearBridge(nn.Module):
    """An affine map to C channels and one back; ``fit`` makes them principal components.

    Encode: z = W (t − mean) + b. Decode: t = V z + c + mean. After ``fit``, the rows of W are the C
    leading eigenvectors of the tokens' covariance, V is its transpose, and b and c are zero; all
    four are parameters that stages can train on. With ``whiten``, W is divided and V multiplied by
    the standard deviation of each component.

    Args:
        features: channels D of the features.
        latent_channels: channels C of the latent, at most D.
        whiten: whether the fit gives every latent channel unit variance.

    Attributes:
        fitted: whether ``fit`` has been called.

    Raises:
        ValueError: if there are more latent channels than features.
    """

    gaussian = False
    downsampling = 1
    mean: Tensor
    fitted: Tensor

    def __init__(self, *, features: int, latent_channels: int, whiten: bool = False) -> None:
        super().__init__()
        if latent_channels > features:
            raise ValueError(
                f"latent_channels = {latent_channels} is more than the {features} channels of the "
                f"features, which have no more components: set it to {features} or less"
            )
        self.features = features
        self.latent_channels = latent_channels
        self.whiten = whiten
        self.encoder = nn.Linear(features, latent_channels)
        self.decoder = nn.Linear(latent_channels, features)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("fitted", torch.tensor(False))

    def encode(self, features: Features) -> Delta:
        """Coordinates of the tokens."""
        latent = at_least_fp32(self.encoder(features.tokens - self.mean))
        return Delta(tokens_to_map(latent, features.grid))

    def decode(self, latent: Float[Tensor, "b c t h w"]) -> Features:
        """Features ẑ of a latent."""
        tokens = at_least_fp32(self.decoder(map_to_tokens(latent))) + self.mean
        return Features(tokens, map_grid(latent))

    @torch.no_grad()
    def fit(self, batches: Iterable[Features]) -> Fit:
        """Set the maps to the principal components of all tokens, in float64.

        Raises:
            UsageError: if there are fewer tokens than channels.
            TrainingError: if they are not finite.
        """
        count, mean, covariance = _moments(batches, self.features)
        if count < max(2, self.features):
            raise UsageError(
                f"principal components of {self.features} channels need at least "
                f"{max(2, self.features)} tokens, and the training crops gave {count}: take larger "
                "crops (data.image_size), more images, or another bridge"
            )
        if not covariance.isfinite().all():
            raise TrainingError(
                "the features that the bridge is to be fitted to are not finite: the stages before "
                "have diverged, or the encoder's weights are damaged"
            )
        variance, vectors = torch.linalg.eigh(covariance.cpu())
        variance, vectors = variance.flip(0).clamp(min=0), vectors.flip(1)
        components = vectors[:, : self.latent_channels].T
        largest = components.abs().argmax(dim=1, keepdim=True)
        components = components * components.gather(1, largest).sign()
        scale = torch.ones(self.latent_channels, dtype=variance.dtype)
        if self.whiten:
            # Components without variance are rounding errors; they stay as small as they are.
            least = variance[0] * torch.finfo(torch.float32).eps
            kept = variance[: self.latent_channels]
            scale = torch.where(kept > least, kept, kept.new_ones(())).sqrt()
        self.mean.copy_(mean)
        self.encoder.weight.copy_(components / scale[:, None])
        self.decoder.weight.copy_((components * scale[:, None]).T)
        self.encoder.bias.zero_()
        self.decoder.bias.zero_()
        self.fitted.fill_(True)
        total = variance.sum().item()
        share = variance[: self.latent_channels].sum().item() / total if total else 1.0
        return Fit(tokens=count, kept=share)


def _moments(batches: Iterable[Features], channels: int) -> tuple[int, Tensor, Tensor]:
    """Number, mean and unbiased covariance of all tokens, in float64 and one pass.

    Batches are merged by the update of Chan, Golub and LeVeque (1979), which does not cancel where
    the mean is large.
    """
    count = 0
    mean = torch.zeros(channels, dtype=torch.float64)
    scatter = torch.zeros(channels, channels, dtype=torch.float64)
    for batch in batches:
        tokens = batch.tokens.reshape(-1, channels).double()
        number = len(tokens)
        if not number:
            continue
        here = tokens.mean(dim=0)
        centred = tokens - here
        mean, scatter = mean.to(tokens.device), scatter.to(tokens.device)
        shift = here - mean
        total = count + number
        scatter += centred.T @ centred + shift.outer(shift) * (count * number / total)
        mean += shift * (number / total)
        count = total
    return count, mean, scatter / max(1, count - 1)
