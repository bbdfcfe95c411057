"""Critics: what tells images from reconstructions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from rpiae.core.model.contracts import Encoder
from rpiae.core.model.geometry import at_least_fp32, encoder_view, geometry

NORM_EPS = 1e-6
SLOPE = 0.2


class DinoCritic(nn.Module):
    """A frozen vision transformer with trained heads on several of its blocks.

    The image is resized bilinearly to ``image_size``, normalised and passed through the backbone;
    one head reads the last block, and one each of ``layers``. Heads see patch tokens alone, no class
    token, and are not autocast.

    Args:
        backbone: any encoder; its gradients pass, its weights stay.
        layers: blocks with a head of their own, beside the last one's.
        image_size: side of the backbone's input, in pixels; rounded down to its patches.
        kernel: tokens that the heads' residual convolution spans.

    Shapes:
        (b, 3, h, w) in [0, 1] → (b, (1 + layers) · n), one logit per token and head

    Source: D of arXiv 2603.19206; StyleGAN-T (arXiv 2301.09515) for heads on a frozen DINO.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        backbone: nn.Module,
        layers: Sequence[int] = (2, 5, 8, 11),
        image_size: int = 224,
        kernel: int = 9,
    ) -> None:
        super().__init__()
        assert isinstance(backbone, Encoder)
        self.backbone = backbone.requires_grad_(False)
        self._layers = (-1, *layers)
        self._size = image_size // backbone.patch[1] * backbone.patch[1]
        self.heads = nn.ModuleList(
            TokenHead(width=backbone.width, kernel=kernel) for _ in self._layers
        )
        self.register_buffer("mean", torch.tensor(backbone.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> DinoCritic:
        """Mode of the heads; the backbone is always in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        """Logits of images of any size in [0, 1]."""
        seen = F.interpolate(
            at_least_fp32(images), (self._size, self._size), mode="bilinear", align_corners=False
        )
        normalised = ((seen - self.mean) / self.std).to(self.mean.dtype)
        found = self.backbone.blocks(normalised, self._layers)
        with torch.autocast(images.device.type, enabled=False):
            logits = [
                head(tokens.to(self.mean.dtype))
                for head, tokens in zip(self.heads, found.tokens, strict=True)
            ]
        return torch.cat(logits, dim=1)


class TokenHead(nn.Module):
    """1-D convolutions over the token sequence, down to one logit per token.

    A block is a spectral-norm convolution, a norm per sample and channel over the tokens, and
    LeakyReLU 0.2. Kernel 1; a residual with a long circular kernel, divided by √2; kernel 1 to the
    logit.

    Shapes:
        (b, n, width) → (b, n)
    """

    def __init__(self, *, width: int, kernel: int) -> None:
        super().__init__()
        self.first = _token_block(width, 1)
        self.residual = _token_block(width, kernel)
        self.last = spectral_norm(nn.Conv1d(width, 1, 1))

    def forward(self, tokens: Float[Tensor, "b n w"]) -> Float[Tensor, "b n"]:
        found = self.first(tokens.transpose(1, 2))
        found = (found + self.residual(found)) / math.sqrt(2)
        return self.last(found).squeeze(1)  # type: ignore[no-any-return]  # nn.Module calls are Any


class TokenNorm(nn.InstanceNorm1d):
    """A norm per sample and channel over the tokens, which may be one, of samples, which may be none.

    Shapes:
        (b, width, n) → (b, width, n)
    """

    def forward(self, tokens: Float[Tensor, "b w n"]) -> Float[Tensor, "b w n"]:
        return F.group_norm(tokens, self.num_features, self.weight, self.bias, self.eps)


def _token_block(width: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        spectral_norm(
            nn.Conv1d(width, width, kernel, padding=kernel // 2, padding_mode="circular")
        ),
        TokenNorm(width, eps=NORM_EPS, affine=True),
        nn.LeakyReLU(SLOPE),
    )


class PatchCritic(nn.Module):
    """A small convolutional network with one logit per overlapping patch.

    Halvings are 4×4 convolutions with stride 2, the width doubling up to eightfold; then a 4×4
    convolution with stride 1 and one to the logit. Norms are over groups of channels, so that an
    image's logits depend on no other image.

    Args:
        width: channels after the first convolution.
        halvings: convolutions with stride 2; 3 gives patches of 70×70 pixels.

    Shapes:
        (b, 3, h, w) in [0, 1] → (b, patches)

    Source: PatchGAN (arXiv 1611.07004), as in VQGAN (arXiv 2012.09841); GroupNorm for BatchNorm.
    """

    def __init__(self, *, width: int = 64, halvings: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        channels = width
        for number in range(1, halvings + 1):
            wider = width * min(2**number, 8)
            stride = 2 if number < halvings else 1
            layers += [
                nn.Conv2d(channels, wider, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(math.gcd(32, wider), wider),
                nn.LeakyReLU(SLOPE),
            ]
            channels = wider
        layers.append(nn.Conv2d(channels, 1, 4, padding=1))
        self.network = nn.Sequential(*layers)
        self._least = 2 ** (halvings + 2)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        """Logits of images of any size in [0, 1]; small ones are padded by reflection."""
        size = (max(images.shape[-2], self._least), max(images.shape[-1], self._least))
        padded = encoder_view(images, geometry(size, patch=1, output_patch=1))
        weight = self.network[0].weight
        assert isinstance(weight, Tensor)
        return self.network((2 * padded - 1).to(weight.dtype)).flatten(1)  # type: ignore[no-any-return]  # nn.Module calls are Any
