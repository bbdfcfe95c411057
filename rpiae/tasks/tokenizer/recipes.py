"""What the stages of a tokenizer's recipe can name, and what they have for their terms. Torch-free."""

from __future__ import annotations

from rpiae.core.config.recipe import ROLES, RunConfig, StageConfig
from rpiae.core.errors import did_you_mean


class TokenizerStages:
    """The rules of a tokenizer's stages."""

    def problems(self, stage: StageConfig) -> list[str]:
        """Patterns that begin with no role of a tokenizer."""
        return [
            f"train[{position}]: {pattern!r} does not begin with a role."
            f"{did_you_mean(role, ROLES)} Roles: {', '.join(ROLES)}"
            for position, pattern in enumerate(stage.train)
            if (role := pattern.partition(".")[0]) not in ROLES
        ]

    def offers(self, stage: StageConfig, config: RunConfig) -> tuple[frozenset[str], str]:
        """Pixels, features, replica and critic always; the rest by the bridge, if in the path."""
        offered = {"pixels", "features", "replica", "critic"}
        if stage.use_bridge:
            offered |= {"latent", "decoded_features"}
            if config.bridge.describe().gaussian:
                offered.add("gaussian")
        use = str(stage.use_bridge).lower()
        return frozenset(offered), f"bridge {config.bridge.label!r}, use_bridge = {use}"
