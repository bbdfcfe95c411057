"""Downloads of weights: from the Hugging Face hub and over https, into caches that are checked.

A file is taken from a cache only where its content is known to be right: by the SHA-256 that its
address holds, or that was written down when it was downloaded. Addresses do not share files, however
the files are called. ``HF_HUB_OFFLINE`` and ``TRANSFORMERS_OFFLINE`` hold for every download; a
cache that cannot be written serves what it has.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import errno
import functools
import hashlib
import http.client
import logging
import os
import re
import shutil
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import torch

from rpiae.core.errors import (
    AbsentFileError,
    CheckpointError,
    FetchError,
    UnwritableCacheError,
)
from rpiae.core.runtime.files import file_digest, open_regular, write_text
from rpiae.core.runtime.hub import snapshot_of
from rpiae.core.runtime.names import printable, shown
from rpiae.core.runtime.weight_files import read_index

_log = logging.getLogger(__name__)

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRUE = ("1", "ON", "YES", "TRUE")
_DIGEST_IN_NAME = re.compile(r"-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.")
_DIGEST_IN_PATH = re.compile(r"/([0-9a-f]{64})/")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20
_TIMEOUT = 60.0

#: What the system says of a folder that cannot be written.
_UNWRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR})

#: How to become somebody for the hub.
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"

_cached_only = contextvars.ContextVar("cached_only", default=False)


@contextlib.contextmanager
def cached_only() -> Iterator[None]:
    """Downloads are refused inside."""
    token = _cached_only.set(True)
    try:
        yield
    finally:
        _cached_only.reset(token)


def downloads_are_refused() -> bool:
    """Whether only caches are looked at for now."""
    return _cached_only.get()


def offline_variable() -> str:
    """The environment variable that forbids downloads, or nothing; as huggingface_hub reads them."""
    if downloads_are_refused():
        return "--cached-only"
    name = next((name for name in _OFFLINE if os.environ.get(name)), "")
    return name if os.environ.get(name, "").upper() in _TRUE else ""


def fetch_url(url: str) -> Path:
    """Path of a file in torch's cache of checkpoints (TORCH_HOME), downloaded where necessary.

    torch's own copy serves where the address holds the digest of the file (in its name, or as a
    folder) and the copy has it. Ours lie in a folder per address, each with its digest beside it.

    Raises:
        FetchError: with the reason, if it is neither cached nor reachable, or arrives damaged.
    """
    parts, shared = urlsplit(url), cached_name(url)
    folder = hashlib.sha256(url.encode()).hexdigest()[:16]
    own = shared.parent / "rpiae" / folder / shared.name
    named = _DIGEST_IN_NAME.search(shared.name) or _DIGEST_IN_PATH.search(parts.path)
    digest = named.group(1) if named else ""
    damaged = ""
    for path, wanted in ((own, _noted(own) or digest), (shared, digest)):
        if wanted and path.is_file():
            if _has_digest(path, wanted):
                return path
            damaged = f"; {path} is there, but damaged or another file: its SHA-256 is not {wanted}"
    if parts.scheme != "https":
        raise FetchError(f"only https addresses are fetched{damaged}")
    variable = offline_variable()
    if variable:
        raise FetchError(f"it is not in the cache, and {variable} is set{damaged}")
    try:
        _download(url, own, digest)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FetchError(f"{reason}{damaged}") from None
    return own


def unfetched(owner: str, where: str, error: FetchError, *, ways_out: str) -> FetchError:
    """What is said where weights cannot be had.

    Args:
        owner: whose weights they are, such as ``"loss 'lpips'"``.
        where: the address.
        error: why not.
        ways_out: what to do about it.
    """
    return FetchError(
        f"the weights of {owner} could not be fetched from {where}: {error}. Ways out: {ways_out}"
    )


def cached_name(url: str) -> Path:
    """Where torch's own downloads of an address lie."""
    return Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url).path).name)


def fetch_hub(
    hub_id: str, revision: str, files: Sequence[str], *, cache: Path | None = None
) -> Path:
    """Path of a file of a hub repository in the local cache (HF_HOME), downloaded where necessary.

    Honours HF_HOME and HF_TOKEN. Of a file in shards, all shards are there with the index, of the
    same commit.

    Args:
        hub_id: owner and name of the repository.
        revision: branch, tag or commit.
        files: names to try, in this order, with ``/`` between folders.
        cache: another folder of the cache's layout than HF_HOME's.

    Raises:
        AbsentFileError: if the repository has none of them.
        UnwritableCacheError: if it is not cached, and the cache cannot be written.
        FetchError: with the reason, if none is cached or reachable, or the cached one is damaged.
    """
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    variable = offline_variable()
    reason = f"it is not in the cache, and {variable} is set" if variable else ""
    local, absent = bool(variable), 0
    for name in files:
        try:
            file = _hub_file(hub_id, name, revision, local=local, cache=cache)
        except LocalEntryNotFoundError as error:
            local = True
            reason = reason or f"it is not in the cache and {_unreachable(error, revision)}"
        except EntryNotFoundError:
            absent += 1
        else:
            for shard in _shards(file):
                beside = str(PurePosixPath(name).with_name(shard))
                fetch_hub(hub_id, snapshot_of(file).commit, [beside], cache=cache)
            return file
    if absent == len(files):
        raise AbsentFileError(f"the repository has none of {', '.join(files)}")
    raise FetchError(reason)


def _hub_file(hub_id: str, name: str, revision: str, *, local: bool, cache: Path | None) -> Path:
    """A file of the hub; where the hub or the disk refuses it, the cached one, which is logged."""
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        found = hf_hub_download(
            hub_id, name, revision=revision, local_files_only=local, cache_dir=cache
        )
    except LocalEntryNotFoundError:
        known = try_to_load_from_cache(hub_id, name, revision=revision, cache_dir=cache)
        if known is _CACHED_NO_EXIST:
            raise EntryNotFoundError(name) from None
        raise
    except EntryNotFoundError:
        raise
    except hub_failures() as error:
        reason = refusal(error, revision)
        cached = try_to_load_from_cache(hub_id, name, revision=revision, cache_dir=cache)
        if isinstance(cached, str):
            _log.warning("%s of %s is taken from the cache: %s", name, hub_id, reason)
            return _checked(Path(cached))
        if type(error) is RuntimeError or getattr(error, "errno", None) in _UNWRITABLE:
            raise UnwritableCacheError(reason) from None
        raise FetchError(reason) from None
    return _checked(Path(found))


def hub_failures() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises where the hub, the way to it or the disk fails."""
    from huggingface_hub.errors import HfHubHTTPError

    root: Any = HfHubHTTPError.__mro__[1]  # of the errors of its HTTP library
    return OSError, root, ValueError, RuntimeError  # the last where there is no home folder


def refusal(error: Exception, revision: str = "") -> str:
    """Why the hub, or the machine, refused a request, in a sentence without its end.

    Args:
        error: as huggingface_hub raised it.
        revision: that was asked for.
    """
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {shown(revision)}: name a branch, tag or commit of it"
    if isinstance(error, errors.GatedRepoError):
        return f"it is gated: ask for access on its page, and {LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such repository, or it is private: check its name, or {LOG_IN}"
    if status in (401, 403):
        said = getattr(error, "server_message", None)
        why = f" ({printable(said.strip().rstrip('.'))})" if said else ""
        return f"the hub does not let this token do that{why}: {LOG_IN} with one that may"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@functools.cache
def temporary_cache() -> Path:
    """A cache of the hub for this process alone, which is logged."""
    folder = tempfile.mkdtemp(prefix="rpiae-hub-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _log.warning(
        "the hub's cache cannot be written: what is downloaded lies in %s until this process ends. "
        "Set HF_HOME to a folder that can be written to keep it",
        folder,
    )
    return Path(folder)


def _shards(path: Path) -> list[str]:
    """The files that an index names; none where the file is no index."""
    if not path.name.endswith(".index.json"):
        return []
    try:
        return sorted(set(read_index(path, path.stat().st_size).values()))
    except CheckpointError as error:
        raise FetchError(f"{path.name}: {error}") from None


def _checked(path: Path) -> Path:
    """A file of the hub's cache, whose blobs are called by their SHA-256."""
    blob = path.resolve()
    if _SHA256.fullmatch(blob.name) and not _has_digest(blob, blob.name):
        raise FetchError(f"the copy in the cache is damaged. Delete {blob} and fetch it again")
    return path


def _noted(path: Path) -> str:
    """The digest that was written down beside a download, as sha256sum writes it."""
    try:
        with open_regular(path.with_name(f"{path.name}.sha256")) as file:
            text = file.read(64).decode("ascii", "replace")
    except OSError:
        return ""
    return text if _SHA256.fullmatch(text) else ""


def _has_digest(path: Path, wanted: str) -> bool:
    try:
        facts = path.stat()
        return _digest(path, facts.st_size, facts.st_mtime_ns).startswith(wanted)
    except OSError:
        return False


@functools.lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed: int) -> str:
    return file_digest(path)


def _download(url: str, target: Path, digest: str) -> None:
    """Download to another name, check length and digest, write the digest down, and rename."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # public, and not in __all__

    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "rpiae"})
        sha256, received = hashlib.sha256(), 0
        with (
            unfinished.open("xb") as file,
            urllib.request.urlopen(request, timeout=_TIMEOUT) as response,
            tqdm(  # type: ignore[no-untyped-call]  # it has no types
                total=_length(response), unit="B", unit_scale=True, desc=target.name
            ) as bar,
        ):
            if urlsplit(response.url).scheme != "https":
                raise OSError(f"it redirects to {response.url}, which is not https")
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                sha256.update(chunk)
                received += len(chunk)
                bar.update(len(chunk))
        total = _length(response)
        if total is not None and received != total:
            raise OSError(f"the connection ended after {received:,} of {total:,} bytes")
        if not sha256.hexdigest().startswith(digest):
            raise OSError(
                f"what arrived is damaged: its SHA-256 is {sha256.hexdigest()}, expected {digest}"
            )
        write_text(
            target.with_name(f"{target.name}.sha256"), f"{sha256.hexdigest()}  {target.name}\n"
        )
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _length(response: http.client.HTTPResponse) -> int | None:
    text = response.headers.get("Content-Length") or ""
    return int(text) if text.isdecimal() else None


def _unreachable(error: BaseException, revision: str) -> str:
    """Why there was no answer, or which one there was."""
    from huggingface_hub.errors import HfHubHTTPError

    while error.__cause__ is not None:
        error = error.__cause__
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            return refusal(error, revision) if status < 500 else f"the hub answers {status}"
    return f"the hub cannot be reached ({type(error).__name__})"
