"""What the stages of a tokenizer's recipe can name, and what they have for their terms. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rpiae.core.config.convert import none_of
from rpiae.core.config.recipe import ROLES, RunConfig, StageConfig
from rpiae.core.errors import did_you_mean
from rpiae.core.model.stages import AnyRun

#: What adaptive weights can refer to; see ``AdaptiveConfig``.
LAYERS: Final = ("encoder", "encoder-last", "decoder")


class TokenizerStages:
    """The rules of a tokenizer's stages."""

    def problems(self, stage: StageConfig) -> Iterator[str]:
        """Patterns that begin with no role of a tokenizer, and layers that it does not have."""
        for position, pattern in enumerate(stage.train):
            role = pattern.partition(".")[0]
            if role not in ROLES:
                yield (
                    f"train[{position}]: {pattern!r} does not begin with a role."
                    f"{did_you_mean(role, ROLES)} Roles: {', '.join(ROLES)}"
                )
        for position, term in enumerate(stage.terms):
            if term.adaptive and term.adaptive.layer not in LAYERS:
                yield f"terms[{position}].adaptive.layer: {none_of(LAYERS, term.adaptive.layer)}"

    def offers(self, stage: StageConfig, config: AnyRun) -> tuple[frozenset[str], str]:
        """Pixels, features, replica and critic always; the rest by the bridge, if in the path."""
        assert isinstance(config, RunConfig)
        offered = {"pixels", "features", "replica", "critic"}
        if stage.use_bridge:
            offered |= {"latent", "decoded_features"}
            if config.bridge.describe().gaussian:
                offered.add("gaussian")
        use = str(stage.use_bridge).lower()
        return frozenset(offered), f"bridge {config.bridge.label!r}, use_bridge = {use}"
