"""timm's models by their names: made, and where their weights are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import timm
from timm.layers import HybridEmbed
from torch import nn

from rpiae.core.errors import FetchError, UsageError, did_you_mean
from rpiae.core.runtime.names import shown


class Source(NamedTuple):
    """Where weights are: a hub repository with a file's name (empty for the usual ones), or a URL."""

    hub_id: str = ""
    filename: str = ""
    url: str = ""


def weights_source(model: str) -> Source:
    """Where timm takes a model's weights from.

    Raises:
        FetchError: if timm knows of none.
    """
    config = timm.get_pretrained_cfg(model)
    if config is None or not (config.hf_hub_id or config.url):
        raise FetchError(
            f"timm has no pretrained weights for {model!r}: set encoder.weights to a file, or "
            "encoder.pretrained = false"
        )
    if not config.hf_hub_id:
        return Source(url=str(config.url))
    hub_id = str(config.hf_hub_id)
    complete = hub_id.count("/") and not hub_id.endswith("/")
    return Source(hub_id if complete else f"{hub_id}{model}", config.hf_hub_filename or "")


def create_model(model: str, model_args: Mapping[str, Any]) -> Any:
    """A model of timm with random weights.

    Args:
        model: timm's name, and after a dot the tag of its weights.
        model_args: replaces arguments of timm's model.

    Raises:
        UsageError: if timm has no such model or tag, or it yields no patch tokens.
    """
    architecture, _, tag = model.partition(".")
    if not timm.is_model(model):
        known = timm.list_models()
        raise UsageError(
            f"timm has no model {model!r}.{did_you_mean(architecture, known)} "
            "List them with: python -c \"import timm; print(*timm.list_models('vit*'), sep='\\n')\""
        )
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UsageError(
            f"timm has no weights {tag!r} for model {architecture!r}.{did_you_mean(tag, tags)} "
            + (f"It has: {', '.join(tags)}" if tags else "It has none: leave the tag out.")
        )
    if "siglip" in model and "naflex" not in model:
        model_args = {"act_layer": "gelu_tanh", **model_args}
    try:
        network = timm.create_model(model, pretrained=False, dynamic_img_size=True, **model_args)
    except Exception as error:  # timm checks few of its arguments: KeyError, ZeroDivisionError …
        if "dynamic_img_size" in str(error) and "dynamic_img_size" not in model_args:
            raise UsageError(
                f"timm model {model!r} cannot be a pivot: it is not a ViT with patch tokens for any "
                "image size"
            ) from None
        raise unbuildable(f"timm model {model!r}", model_args, error) from None
    what = f"timm model {model!r} ({type(network).__name__}) cannot be a pivot"
    embedding: Any = getattr(network, "patch_embed", None)
    if isinstance(embedding, HybridEmbed):
        raise UsageError(
            f"{what}: it is a hybrid, whose patches come out of a convolutional network"
        )
    if not (isinstance(getattr(embedding, "proj", None), nn.Conv2d) and hasattr(network, "blocks")):
        raise UsageError(f"{what}: it has no patch embedding and blocks that yield patch tokens")
    if not len(network.blocks):
        raise UsageError(f"{what}: it has no blocks (encoder.model_args = {shown(model_args)})")
    if embedding.proj.in_channels != 3:
        raise UsageError(
            f"{what}: it takes {embedding.proj.in_channels} channels, not 3 "
            f"(encoder.model_args = {shown(dict(model_args))})"
        )
    if len(set(network.patch_embed.patch_size)) > 1:
        raise UsageError(f"{what}: its patches are not square, {network.patch_embed.patch_size}")
    if not hasattr(getattr(network.blocks[-1], "mlp", None), "fc2"):
        raise UsageError(
            f"{what}: its last block has no MLP output weight, which adaptive weights refer to"
        )
    return network


def unbuildable(what: str, model_args: Mapping[str, Any], error: Exception) -> UsageError:
    """What is said of a library's model that fails when it is built or run; ``model_args`` are blamed."""
    reason = (str(error).splitlines() or [""])[0]
    strange = re.search(r"unexpected keyword argument '([^']*)'", reason)
    if strange:
        reason = f"it has no argument {strange.group(1)!r}"
    return UsageError(
        f"{what} cannot be built with encoder.model_args = {shown(dict(model_args))}: "
        f"{reason or type(error).__name__}"
    )
