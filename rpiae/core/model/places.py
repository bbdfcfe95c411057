"""Which folder a word of the user means: one of this machine, a model that ships with rpiae, or one of
the Hugging Face hub.

A folder that is there goes before everything else, and what can only be a path never leads to the hub.
Nothing is written into folders that are not the user's own: the hub's cache, and the package.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from attrs import frozen

from rpiae.core.errors import (
    AbsentFileError,
    FetchError,
    UnwritableCacheError,
    UsageError,
    did_you_mean,
)
from rpiae.core.model.saved import CONFIG_FILE, GENERATOR, TOKENIZER, check_config
from rpiae.core.model.saved_tensors import INDEX_FILE, WEIGHTS_FILE
from rpiae.core.model.shipped import shipped_folders
from rpiae.core.runtime.download import fetch_hub, temporary_cache
from rpiae.core.runtime.hub import is_commit, snapshot_of
from rpiae.core.runtime.names import printable, shown

Word = str | os.PathLike[str]

#: Folders of a repository that a model is looked for in, and what has to be beside it where it is there.
_LAYOUTS: dict[str, tuple[tuple[str, str], ...]] = {
    TOKENIZER: (("", ""), (TOKENIZER, "")),
    GENERATOR: (("", ""), (GENERATOR, TOKENIZER)),
    "": (("", ""), (GENERATOR, TOKENIZER), (TOKENIZER, "")),
}

_NAME = r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[\w.-]{0,94}[\w])?"
_REPOSITORY = re.compile(rf"{_NAME}/{_NAME}", re.ASCII)

#: ``user/name``, ``user/name@revision``, ``user/name@revision:folder/in/it``.
_ON_HUB = re.compile(
    r"(?P<repository>[^@:]+)(?:@(?P<revision>[^:]*))?(?::(?P<subfolder>.*))?", re.DOTALL
)

#: What git takes for a branch, tag or commit, as far as it matters here.
_REVISION = re.compile(r"(?!.*(?:\.\.|//|@\{))[\w.][\w./+=@-]*", re.ASCII)


@frozen(kw_only=True)
class HubPlace:
    """A folder of a repository of the hub.

    Attributes:
        repository: ``user/name``.
        revision: branch, tag or commit.
        subfolder: of the repository; the top where it is empty.
    """

    repository: str
    revision: str = "main"
    subfolder: str = ""

    def __str__(self) -> str:
        below = f":{self.subfolder}" if self.subfolder else ""
        return f"{self.repository}@{self.revision}{below}"


def named_place(word: Word, kind: str = "", *, revision: str = "", subfolder: str = "") -> Path:
    """The folder that a word means, downloaded where it is of the hub.

    Args:
        word: a path, the name of a model that ships with rpiae, or on the hub ``user/name``,
            ``user/name@revision`` or ``user/name@revision:subfolder``. What is no text is a path.
        kind: ``tokenizer`` or ``generator``, which of both is wanted; either where it is empty.
        revision: branch, tag or commit on the hub; ``main`` where neither it nor the word says.
        subfolder: below the folder, or in the repository.

    Returns:
        A folder, which holds a model, or a run around it; a path of this machine need not be there.

    Raises:
        UsageError: if revision or subfolder make no sense for it.
        FetchError: if it is on the hub and cannot be had.
        CheckpointError: if what is on the hub is no model of that kind.
    """
    _check_subfolder(subfolder)
    place = hub_place(word)
    if place is not None:
        return _fetched(_merged(place, word, revision, subfolder), kind)
    if revision:
        raise UsageError(
            f"{printable(str(word))} is no repository of the hub, user/name, and only these have revisions: "
            f"leave {shown(revision)} out"
        )
    shipped = shipped_folders()
    path = Path(word)
    if isinstance(word, str) and word in shipped and not os.path.lexists(path):
        path = shipped[word]
    return path / subfolder


def hub_place(word: Word, *, only: bool = False) -> HubPlace | None:
    """The place on the hub that a word means; None where it means a folder or a shipped model.

    Args:
        word: as of ``named_place``.
        only: whether it cannot be meant for a folder, whatever is there.

    Raises:
        UsageError: if its revision or subfolder is none.
    """
    if not isinstance(word, str) or (not only and os.path.lexists(word)):
        return None
    found = _ON_HUB.fullmatch(word)
    if found is None or not _REPOSITORY.fullmatch(found["repository"]):
        return None
    if not only and os.path.isdir(word.partition("/")[0]):
        return None  # a folder that should have been in there
    if "" in (found["revision"], found["subfolder"]):
        raise UsageError(
            f"{shown(word)} is unfinished: a model on the hub is named user/name, user/name@revision or "
            "user/name@revision:folder"
        )
    place = HubPlace(repository=found["repository"])
    return _merged(place, word, found["revision"] or "", found["subfolder"] or "")


def unknown_word(word: Word) -> str:
    """What else a word could have meant that names no folder, for the end of a message."""
    shipped = shipped_folders()
    if not isinstance(word, str) or word in shipped or not re.fullmatch(_NAME, word, re.ASCII):
        return ""
    names = f" ({', '.join(shipped)})" if shipped else ""
    return (
        f". Nor does a model of that name ship with rpiae{names}.{did_you_mean(word, shipped)} On the hub, "
        "models are named user/name"
    )


def pinned_word(word: Word, kind: str) -> Word:
    """A word that stays what it means now: of the hub, with the commit that it is at.

    Raises:
        UsageError, FetchError, CheckpointError: see ``named_place``.
    """
    return word if hub_place(word) is None else lasting_name(named_place(word, kind))


def recorded_word(text: str) -> Word:
    """A word that a file holds: it leads to the hub by a commit alone, which nobody can move."""
    place = hub_place(text)
    return text if place is None or is_commit(place.revision) else Path(text)


def lasting_word(word: Word) -> str:
    """How a word is written down for later: a path as one from the root, others as they are."""
    return str(word) if hub_place(word) is not None else lasting_name(named_place(word))


def lasting_name(place: Path) -> str:
    """The word for a folder that leads there from everywhere: of the hub's cache, to the same commit;
    of the user's own, its path from the root."""
    for name, shipped in shipped_folders().items():
        if place in (shipped, shipped / TOKENIZER, shipped / GENERATOR):
            return name
    repository, commit, below = snapshot_of(place)
    if commit:
        return str(HubPlace(repository=repository, revision=commit, subfolder=below))
    return printable(str(place.absolute()))


def is_borrowed(place: Path) -> bool:
    """Whether a folder is not the user's own: of the hub's cache, or of the package."""
    return bool(snapshot_of(place).commit) or any(
        shipped == place or shipped in place.parents for shipped in shipped_folders().values()
    )


def _merged(place: HubPlace, word: Word, revision: str, subfolder: str) -> HubPlace:
    """A place on the hub with what else is said of it."""
    if revision and place.revision not in ("main", revision):
        raise UsageError(
            f"{shown(word)} and revision {shown(revision)} are two revisions: give one"
        )
    if subfolder and place.subfolder not in ("", subfolder):
        raise UsageError(f"{shown(word)} and {shown(subfolder)} are two folders: give one")
    if revision and not _REVISION.fullmatch(revision):
        raise UsageError(f"{shown(revision)} is no revision: name a branch, tag or commit")
    _check_subfolder(subfolder)
    return HubPlace(
        repository=place.repository, revision=revision or place.revision,
        subfolder=subfolder.strip("/") or place.subfolder,
    )  # fmt: skip


def _check_subfolder(subfolder: str) -> None:
    path = PurePosixPath(subfolder)
    if path.is_absolute() or ".." in path.parts or "\\" in subfolder or "\0" in subfolder:
        raise UsageError(
            f"subfolder = {shown(subfolder)} leads elsewhere: name a folder below, such as models/a"
        )


def _fetched(place: HubPlace, kind: str) -> Path:
    """The folder of the hub's cache that holds a place's models, whole and of one commit."""
    try:
        try:
            return _fetched_into(place, kind, None)
        except UnwritableCacheError:
            return _fetched_into(place, kind, temporary_cache())
    except FetchError as error:
        raise FetchError(
            f"there is no folder {printable(place.repository)} here, and {place} cannot be had from the hub: "
            f"{error}. Ways out: name a folder of this machine; or load it once where there is a network, "
            "and copy the cache (HF_HOME)"
        ) from None


def _fetched_into(place: HubPlace, kind: str, cache: Path | None) -> Path:
    layouts = _LAYOUTS[kind]
    files = [_within(place, folder, CONFIG_FILE) for folder, _ in layouts]
    config = fetch_hub(place.repository, place.revision, files, cache=cache)
    _, commit, name = snapshot_of(config)
    top = config.parents[name.count("/")]
    folder, beside = layouts[files.index(name)]
    for each in [folder, *([beside] if beside else [])]:
        own = _within(place, each, CONFIG_FILE)
        try:
            path = (
                config
                if each == folder
                else fetch_hub(place.repository, commit, [own], cache=cache)
            )
        except AbsentFileError:
            continue
        check_config(path.parent, each or kind)
        weights = [_within(place, each, file) for file in (WEIGHTS_FILE, INDEX_FILE)]
        fetch_hub(place.repository, commit, weights, cache=cache)
    return top / place.subfolder


def _within(place: HubPlace, folder: str, file: str) -> str:
    return "/".join(part for part in (place.subfolder, folder, file) if part)
