"""The analytic fit of a bridge, once in a run."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from rpiae.core.model.contracts import Batch, Dataset, Features, Fit, Fittable
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.draws import key
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training import events
from rpiae.core.training.feed import Feed

#: Tokens that a bridge is fitted to, from as many random training crops as it takes.
TOKENS = 1 << 16

#: Tokens per forward pass; bounds the memory of a fit.
TOKENS_PER_BATCH = 8192


def fit_bridge(model: RPiAE, data: Dataset, runtime: Runtime, seed: int) -> Iterator[events.Notice]:
    """Fit the model's bridge to clean features of training crops, if it wants that and was not yet.

    The main process fits; the others get its result, so that all hold the same to the bit. The crops
    are a function of the seed alone.

    Raises:
        RpiaeError: what the bridge raises, if it cannot be fitted to these features.
    """
    bridge = model.roles["bridge"]
    if not isinstance(bridge, Fittable) or bridge.fitted:
        return

    def fit() -> tuple[Fit, dict[str, Tensor]]:
        size = data.image_size
        per_crop = math.prod(model.geometry(size, size).grid)
        crops = data.crops(math.ceil(TOKENS / per_crop), seed=key(seed, "fit"))
        batches = (Batch(b, ()) for b in torch.split(crops, max(1, TOKENS_PER_BATCH // per_crop)))
        feed = Feed(batches, runtime.device)
        found = bridge.fit(_features(model, batch.inputs) for batch in feed)
        return found, {name: tensor.cpu() for name, tensor in bridge.state_dict().items()}

    model.eval()
    with torch.no_grad():
        found, state = runtime.on_main(fit)
    bridge.load_state_dict(state)
    yield events.Notice(
        text=f"bridge {_label(model)} fitted to {found.tokens:,} tokens of training crops: keeps "
        f"{100 * found.kept:.1f} % of their variance"
    )


def _features(model: RPiAE, images: Float[Tensor, "b 3 s s"]) -> Features:
    """Features as the bridge sees them, in fp32."""
    with torch.autocast(images.device.type, enabled=False):
        return model.normalised(model.features(images))


def _label(model: RPiAE) -> str:
    if model.config is not None:
        return model.config.bridge.label
    return type(model.bridge).__name__
