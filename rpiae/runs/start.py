"""What a run takes over from the run or tokenizer that it starts from (``init``)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from rpiae.core.config.parts import PartConfig
from rpiae.core.config.recipe import ROLES, RunConfig
from rpiae.core.config.tree import Tree, parse_override
from rpiae.core.errors import CheckpointError
from rpiae.core.model.build import build_tokenizer
from rpiae.core.model.folders import tokenizer_folder
from rpiae.core.model.resolve import ResolvedRun, part_config
from rpiae.core.model.saved import SavedModel, open_model
from rpiae.core.model.saved_tensors import weight_files
from rpiae.core.model.state import load_state
from rpiae.core.model.tokenizer import RPiAE
from rpiae.tasks.tokenizer.pivot import find_pivot

Shapes = dict[str, tuple[int, ...]]


def initial_parts(tree: Tree, overrides: Sequence[str]) -> dict[str, tuple[Tree, str]]:
    """Part configs of the tokenizer that a run starts from, as far as nothing else is said of them,
    and where they are from in words.

    Raises:
        CheckpointError: if there is no such tokenizer.
    """
    given: Tree = {name: tree[name] for name in ("init", "init_parts") if name in tree}
    for text in overrides:
        steps, value = parse_override(text)
        if len(steps) == 1:
            given[str(steps[0])] = value
    init, roles = given.get("init"), given.get("init_parts", ROLES)
    if not isinstance(init, str) or not init or not isinstance(roles, (list, tuple)):
        return {}
    wanted = [role for role in ROLES if role in roles and role not in tree]
    saved = _saved(init).config if wanted else {}
    return {role: (saved[role], f"of {init}") for role in wanted if role in saved}


def check_initial(resolved: ResolvedRun) -> None:
    """Refuse parts that do not fit the run that takes them over, by the shapes of their tensors alone.

    Raises:
        CheckpointError: if they do not, or are not there.
    """
    config = resolved.config
    if not config.init:
        return
    model = build_tokenizer(resolved.tokenizer, device="meta")
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: facts.shape for name, facts in _saved(config.init).tensors.items()}
    problems = [
        f"{role}: {problem}"
        for role in config.init_parts
        if (problem := _unlike(_below(own, _taken_by(config, role)), _below(theirs, role)))
    ]
    if problems:
        raise CheckpointError(
            f"{config.init} holds another architecture than this run: {' · '.join(problems)}. Say "
            "nothing of these parts, and they are taken as they are there; or take over others with "
            "--parts"
        )


def brings_pivot(config: RunConfig) -> bool:
    """Whether a run has its encoder's weights and its pivot from the one it starts from."""
    taken = bool(config.init) and "encoder" in config.init_parts
    return taken and find_pivot(Path(config.init)) is not None


def take_over(model: RPiAE, source: RPiAE, config: RunConfig) -> None:
    """Give a model the weights of the parts that a run takes over.

    ``latent_norm`` is left, as training changes the latents; ``feature_norm`` goes with the bridge.

    Raises:
        CheckpointError: if they do not fit.
    """
    if "bridge" in config.init_parts:
        model.feature_mean, model.feature_var = source.feature_mean, source.feature_var
    for role in config.init_parts:
        taking = model.get_submodule(_taken_by(config, role))
        load_state(taking, source.roles[role].state_dict(), source=config.init)


def _taken_by(config: RunConfig, role: str) -> str:
    """The module in a run's model that takes over the state of a role of its ``init``.

    Raises:
        CheckpointError: if the run's part cannot begin with that.
    """
    own: PartConfig = getattr(config, role)
    there = part_config(own.family, _saved(config.init).config[role])
    place = own.place_of(there)
    if place is None:
        raise CheckpointError(
            f"{role} {own.label!r} cannot begin with the weights of {there.label!r}, which {config.init} "
            f"holds: take over the other parts with --parts, or name another {role}"
        )
    return f"{role}.{place}".rstrip(".")


def _below(shapes: Shapes, module: str) -> Shapes:
    """Shapes of a module's tensors, by their names in it."""
    return {
        n.removeprefix(f"{module}."): s for n, s in shapes.items() if n.startswith(f"{module}.")
    }


def _unlike(here: Shapes, there: Shapes) -> str:
    """How the tensors of a part differ, or nothing."""
    wrong = sorted(name for name in here.keys() & there.keys() if here[name] != there[name])
    apart = sorted(here.keys() ^ there.keys())
    if not wrong and not apart:
        return ""
    if wrong:
        first = f"{wrong[0]} is {there[wrong[0]]} there and {here[wrong[0]]} here"
    else:
        first = f"{apart[0]} is only {'here' if apart[0] in here else 'there'}"
    return f"{len(wrong)} tensors of another shape, {len(apart)} that only one has ({first})"


def _saved(folder: str) -> SavedModel:
    """A tokenizer that is there, looked at once as long as it stays as it is."""
    path = tokenizer_folder(folder)
    weights = weight_files(path)[0]
    try:
        status = weights.stat()
    except OSError as error:
        raise CheckpointError(f"{weights} cannot be read: {error.strerror}") from None
    return _opened(path, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=16)
def _opened(path: Path, *_: int) -> SavedModel:
    return open_model(path)
