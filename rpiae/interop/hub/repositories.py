"""Models of ours on the Hugging Face hub: ``rpiae push``, and ``rpiae.push_to_hub``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from rpiae.core.errors import RpiaeError, RunError, UsageError
from rpiae.core.model.places import HubPlace, hub_place
from rpiae.core.runtime.download import LOG_IN, hub_failures, offline_variable, refusal
from rpiae.core.runtime.names import shown
from rpiae.interop.hub.pushing import Source, write_repository

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@frozen(kw_only=True)
class Pushed:
    """What a push has done.

    Attributes:
        url: of the commit.
        commit: its name.
        files: what it holds of ours.
        replaced: those of them that had been there.
        others: what else is in the repository.
    """

    url: str
    commit: str
    files: tuple[str, ...]
    replaced: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def push_to_hub(
    source: Source,
    repository: str,
    *,
    private: bool | None = None,
    revision: str = "",
    message: str = "",
    token: str | None = None,
) -> Pushed:
    """Put a tokenizer, or a generator with its tokenizer, on the hub, with a model card.

    All of it is written and looked at here first; then it becomes one commit. What is in the repository
    under other names stays there.

    Args:
        source: a tokenizer, a generator as ``rpiae.load_generator`` gives it, or the folder of either
            or of its run, whose config and numbers go with it.
        repository: ``user/name``; made where it is not there.
        private: whether a new one is private; as the account's settings say where it is not given.
        revision: branch, made where it is not there; ``main`` where it is not given.
        message: of the commit.
        token: of the hub; else HF_TOKEN, or of ``hf auth login``.

    Raises:
        UsageError: if the name is none, or the repository is public and ``private`` was asked for.
        CheckpointError: if the model is missing or damaged.
        RunError: if the hub cannot be reached, or refuses.
    """
    place = named_repository(repository, revision)
    if variable := offline_variable():
        raise RunError(f"nothing is pushed: {variable} is set, which forbids to reach the hub")
    with tempfile.TemporaryDirectory(prefix="rpiae-push-") as name:
        folder = Path(name, "repository")
        files = write_repository(source, folder, repository=place.repository)
        return _uploaded(folder, files, place, private=private, message=message, token=token)


def named_repository(repository: str, revision: str = "") -> HubPlace:
    """Where to push.

    Raises:
        UsageError: if it is no name of a repository, or the revision none of a branch.
    """
    word = f"{repository}@{revision}" if revision else repository
    place = hub_place(word, only=True)
    if place is None or place.subfolder or ("@" in repository):
        raise UsageError(
            f"{shown(repository)} is no repository of the hub: name it user/name, of letters, digits and . _ -"
        )
    return place


def _uploaded(
    folder: Path,
    files: list[str],
    place: HubPlace,
    *,
    private: bool | None,
    message: str,
    token: str | None,
) -> Pushed:
    from huggingface_hub import HfApi, get_token

    if not (token or get_token()):
        raise RunError(f"nothing is pushed: the hub has to know who you are: {LOG_IN}")
    api = HfApi(token=token, library_name="rpiae")
    try:
        api.create_repo(place.repository, private=private, exist_ok=True)
        before = _files_there(api, place, private=bool(private))
        done = api.upload_folder(
            repo_id=place.repository, folder_path=folder, revision=place.revision,
            commit_message=message or f"{Path(place.repository).name}, by rpiae",
        )  # fmt: skip
    except RpiaeError:
        raise
    except hub_failures() as error:
        raise RunError(f"nothing was pushed to {place}: {refusal(error, place.revision)}") from None
    own = set(files)
    return Pushed(
        url=str(done.commit_url), commit=str(done.oid), files=tuple(files),
        replaced=tuple(sorted(own & before)), others=tuple(sorted(before - own - {".gitattributes"})),
    )  # fmt: skip


def _files_there(api: HfApi, place: HubPlace, *, private: bool) -> set[str]:
    """What a repository holds, at a branch that is made where it is not there.

    Raises:
        UsageError: if it is public, and was to be private.
    """
    if private and not api.model_info(place.repository).private:
        raise UsageError(
            f"{place.repository} is there already and public, so nothing would be private in it: name another "
            "one, change it in its settings, or leave --private out"
        )
    if place.revision != "main":
        api.create_branch(place.repository, branch=place.revision, exist_ok=True)
    found = api.model_info(place.repository, revision=place.revision).siblings or []
    return {file.rfilename for file in found}
