"""Downloads: what a cache may serve, what it may not, and what forbids asking the network."""

from __future__ import annotations

import email.message
import hashlib
import io
import json
import logging
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from rpiae.core.errors import FetchError
from rpiae.core.model.resolve import part_config
from rpiae.core.runtime.download import fetch_hub, fetch_url, offline_variable
from rpiae.evaluation.spaces import inception_weights

CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
OF_FAMILIES: dict[str, tuple[str, Any]] = {
    "i-jepa-h": ("encoders", "i-jepa-h"),
    "dinov2-s": ("encoders", "dinov2-s"),
    "clip-b": ("encoders", "clip-b"),
    "lpips": ("losses", "lpips"),
    "critic": ("critics", {"name": "dino", "backbone": "dino-s8"}),
}
ONE, OTHER = "https://example.org/one/model.pth", "https://example.org/other/model.pth"


class Response(io.BytesIO):
    """What a server answers."""

    def __init__(self, content: bytes, *, length: int | None, url: str) -> None:
        super().__init__(content)
        self.url = url
        self.headers = email.message.Message()
        if length is not None:
            self.headers["Content-Length"] = str(length)


class Server:
    """Answers requests from a table, and notes them."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.lost = 0
        self.redirect = ""

    def __call__(self, request: urllib.request.Request, timeout: float) -> Response:
        url = request.full_url
        self.asked.append(url)
        content = self.contents[url]
        kept = content[: len(content) - self.lost]
        return Response(kept, length=len(content), url=self.redirect or url)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(urllib.request, "urlopen", made)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return made


def checkpoints(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_addresses_do_not_share_a_file_of_the_same_name(server: Server) -> None:
    server.contents = {ONE: b"one", OTHER: b"other"}
    for url, content in server.contents.items():
        assert fetch_url(url).read_bytes() == content
    for url, content in server.contents.items():
        found = fetch_url(url)
        assert found.name == "model.pth"
        assert found.read_bytes() == content
    assert server.asked == [ONE, OTHER]


def test_a_file_in_torch_s_cache_serves_where_the_address_proves_it(
    server: Server, tmp_path: Path
) -> None:
    named = f"https://example.org/model-{DIGEST[:8]}.pth"
    in_folder = f"https://example.org/{DIGEST}/other.pth"
    for url in (named, in_folder):
        path = checkpoints(tmp_path) / url.rpartition("/")[2]
        path.write_bytes(CONTENT)
        assert fetch_url(url) == path
    (checkpoints(tmp_path) / "model.pth").write_bytes(b"of another address")
    server.contents[ONE] = b"one"
    assert fetch_url(ONE).read_bytes() == b"one"
    assert server.asked == [ONE]


def test_a_date_in_a_name_is_no_digest(server: Server) -> None:
    url = "https://example.org/model-20240131.pth"
    server.contents[url] = CONTENT
    assert fetch_url(url).read_bytes() == CONTENT


@pytest.mark.parametrize("url", [ONE, f"https://example.org/model-{DIGEST[:8]}.pth"])
def test_a_damaged_copy_is_fetched_again_or_told(
    url: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.contents[url] = CONTENT
    found = fetch_url(url)
    for damaged in (CONTENT[:-1], b"W" + CONTENT[1:], b""):
        found.write_bytes(damaged)
        assert fetch_url(url) == found
        assert found.read_bytes() == CONTENT
    found.write_bytes(CONTENT[:-1])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchError, match=r"HF_HUB_OFFLINE is set; .*is there, but damaged"):
        fetch_url(url)


def test_a_download_that_is_cut_short_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.contents[ONE] = CONTENT
    server.lost = 1
    with pytest.raises(FetchError, match="the connection ended after 6,999 of 7,000 bytes"):
        fetch_url(ONE)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    server.lost = 0
    assert fetch_url(ONE).read_bytes() == CONTENT


def test_what_arrives_must_have_the_digest_of_its_address(server: Server, tmp_path: Path) -> None:
    url = "https://example.org/model-0123456789.pth"
    server.contents[url] = CONTENT
    with pytest.raises(FetchError, match=f"its SHA-256 is {DIGEST}, expected 0123456789"):
        fetch_url(url)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_redirect_away_from_https_is_refused(server: Server) -> None:
    server.contents[ONE] = CONTENT
    server.redirect = "http://example.org/model.pth"
    with pytest.raises(FetchError, match="not https"):
        fetch_url(ONE)


def test_a_cache_that_cannot_be_written_serves_what_it_has(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.contents[ONE] = CONTENT
    found = fetch_url(ONE)

    def read_only(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert fetch_url(ONE) == found
    with pytest.raises(FetchError, match="Read-only file system"):
        fetch_url(OTHER)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize("name", [*OF_FAMILIES, "inception"])
def test_offline_holds_for_every_download(
    name: str, variable: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def hub(*_: Any, local_files_only: bool, **__: Any) -> str:
        asked.append(local_files_only)
        raise huggingface_hub.errors.LocalEntryNotFoundError("nothing here")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
    monkeypatch.setenv(variable, "1")
    fetch: Any = partial(inception_weights, "")
    if name in OF_FAMILIES:
        family, tree = OF_FAMILIES[name]
        fetch = part_config(family, tree).fetch  # type: ignore[attr-defined]  # of three families
    with pytest.raises(FetchError, match=f"{variable} is set"):
        fetch()
    assert not server.asked
    assert all(asked)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, ""),
        ({"HF_HUB_OFFLINE": "0"}, ""),
        ({"HF_HUB_OFFLINE": "yes"}, "HF_HUB_OFFLINE"),
        ({"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "1"}, ""),
        ({"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "TRUE"}, "TRANSFORMERS_OFFLINE"),
    ],
)
def test_offline_is_read_as_the_hub_reads_it(
    values: dict[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert offline_variable() == wanted


# The hub


class Hub:
    """A cache of the hub on disk, laid out as huggingface_hub does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commit = "0" * 40

    def add(self, name: str, content: bytes) -> Path:
        repository = self.folder / "models--owner--model"
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(self.commit)
        path = repository / "snapshots" / self.commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(blob)
        return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Hub(tmp_path)


@pytest.mark.parametrize("revision", ["main", "0" * 40])
def test_the_hub_s_cache_serves_and_is_checked(cache: Hub, revision: str) -> None:
    path = cache.add("model.safetensors", CONTENT)
    assert fetch_hub("owner/model", revision, ["none.bin", "model.safetensors"]) == path
    path.resolve().write_bytes(CONTENT[:-1] + b"S")
    with pytest.raises(FetchError, match=rf"is damaged\. Delete .*{DIGEST} and fetch it again"):
        fetch_hub("owner/model", revision, ["model.safetensors"])
    with pytest.raises(FetchError, match="not in the cache, and HF_HUB_OFFLINE is set"):
        fetch_hub("owner/model", "f" * 40, ["model.safetensors"])


def test_an_index_of_the_hub_brings_its_shards(cache: Hub) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    path = cache.add("model.safetensors.index.json", json.dumps(index).encode())
    cache.add("model-1.safetensors", b"one")
    with pytest.raises(FetchError, match="not in the cache"):
        fetch_hub("owner/model", "main", [path.name])
    cache.add("model-2.safetensors", b"two")
    assert fetch_hub("owner/model", "main", [path.name]) == path


def test_a_hub_that_cannot_write_its_cache_serves_what_it_has(
    cache: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = cache.add("model.safetensors", CONTENT)
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def read_only(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", read_only)
    with caplog.at_level(logging.WARNING, logger="rpiae"):
        assert fetch_hub("owner/model", "main", ["model.safetensors"]) == path
    assert "taken from the cache" in caplog.text
    with pytest.raises(FetchError, match="Permission denied"):
        fetch_hub("owner/model", "main", ["other.safetensors"])
