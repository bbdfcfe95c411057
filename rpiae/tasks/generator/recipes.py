"""What the stages of a generator's recipe can name, and what they have for their terms. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from rpiae.core.config.parts import parts_of
from rpiae.core.config.recipe import StageConfig
from rpiae.core.errors import did_you_mean
from rpiae.core.model.stages import AnyRun

#: What a generator's stages can train.
ROLE = "generator"

#: What chooses a generator's best weights, where anything is held out.
HELD_OUT_LOSS = "flow"

#: What a stage of a tokenizer says and one of a generator does not.
UNUSED = ("use_bridge", "posterior", "noise", "image_share")


class GeneratorStages:
    """The rules of a generator's stages."""

    def problems(self, stage: StageConfig) -> Iterator[str]:
        """Patterns that do not begin with the generator, adaptive weights, and settings of tokenizers."""
        for position, pattern in enumerate(stage.train):
            role = pattern.partition(".")[0]
            if role != ROLE:
                yield (
                    f"train[{position}]: {pattern!r} does not begin with a role."
                    f"{did_you_mean(role, [ROLE])} A generator's stages have one: {ROLE}"
                )
        for position, term in enumerate(stage.terms):
            if term.adaptive:
                yield f"terms[{position}].adaptive: a generator has no layers that it could refer to"
        if stage.best.removeprefix("-") not in ("", HELD_OUT_LOSS):
            yield f"best: a generator is measured by {HELD_OUT_LOSS!r} alone, its held-out loss"
        neutral = StageConfig(name=stage.name, train=stage.train)
        for name in UNUSED:
            if getattr(stage, name) != getattr(neutral, name):
                yield f"{name}: it has no effect on a generator, leave it out"

    def offers(self, stage: StageConfig, config: AnyRun) -> tuple[frozenset[str], str]:
        """Velocities, and nothing that tokenizers have."""
        label = next(part.label for part in parts_of(config) if part.family == "generators")
        return frozenset({"velocity"}), f"generator {label!r}"
