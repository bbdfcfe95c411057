"""What parts load from elsewhere: all of it named at once, and fetched before anything starts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from attrs import frozen

from rpiae.core.config.parts import CriticConfig, EncoderConfig, LossConfig, MetricConfig
from rpiae.core.config.recipe import RunConfig, StageConfig
from rpiae.core.errors import CheckpointError, FetchError
from rpiae.core.registry.registry import registry
from rpiae.core.runtime.download import cached_only

Loading = EncoderConfig | LossConfig | CriticConfig | MetricConfig

#: Where the reason ends and the advice begins in the message of one part's failure.
ADVICE = ". Ways out"


@frozen(kw_only=True)
class Needed:
    """What a part loads.

    Attributes:
        what: the part, for messages.
        path: where it is; None where it is not on this machine.
        reason: why it is not.
    """

    what: str
    path: Path | None
    reason: str = ""


def loading_parts(config: RunConfig, *, encoder: bool = True) -> list[Loading]:
    """The parts of a run that may load something, in the order in which they do.

    Args:
        config: the run.
        encoder: whether the pivot's weights are loaded; they are not where a run is begun from
            another one that brings its pivot.
    """
    pivot: list[Loading] = [config.encoder] if encoder and config.encoder.pretrained else []
    return [*pivot, *loading_losses(config.recipe.stages)]


def loading_losses(stages: Iterable[StageConfig]) -> list[Loading]:
    """The losses of stages."""
    return [term.loss for stage in stages for term in stage.terms]


def needed(parts: Iterable[Loading]) -> list[Needed]:
    """What parts load and whether it is here; nothing is downloaded.

    Raises:
        UsageError: if a part cannot say what it would load.
    """
    with cached_only():
        return _fetched(parts)


def fetch_all(parts: Iterable[Loading], *, command: str = "") -> list[Needed]:
    """Have all that parts load on this machine, downloaded where necessary.

    Args:
        parts: the parts.
        command: what gets all of it, for the message.

    Raises:
        FetchError: with everything that cannot be had.
        UsageError: if a part cannot say what it would load.
    """
    needs = _fetched(parts)
    missing = [each for each in needs if each.path is None]
    if missing:
        named = " · ".join(f"{each.what}: {each.reason}" for each in missing)
        raise FetchError(
            f"{len(missing)} of {len(needs)} files of weights cannot be had, and nothing was started. "
            f"{named}. Run `{command or 'rpiae fetch --config FILE'}` on a machine with network, which "
            "gets all of them, and copy its caches (HF_HOME, TORCH_HOME); or name local files "
            "(--set encoder.weights=PATH), start from random weights (--set "
            "encoder.pretrained=false), or leave losses out (--without)"
        )
    return needs


def _fetched(parts: Iterable[Loading]) -> list[Needed]:
    needs: dict[str, Needed] = {}
    for part in parts:
        what = f"{registry(part.family).singular} {part.label!r}"
        try:
            path = part.fetch()
        except (FetchError, CheckpointError) as error:
            reason = str(error).partition(ADVICE)[0]
            needs[f"{what} {reason}"] = Needed(what=what, path=None, reason=reason)
        else:
            if path is not None:
                needs[f"{what} {path}"] = Needed(what=what, path=path)
    return list(needs.values())
