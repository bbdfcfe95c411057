"""Whatever a manifest holds, a plugin costs nothing but its own parts, and is named."""

from __future__ import annotations

from typing import Any

import attrs
import entrypoints
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpiae.cli import listing
from rpiae.core.errors import PluginError, UnknownNameError
from rpiae.core.registry import discovery as plugins
from rpiae.core.registry.discovery import Plugin
from rpiae.core.registry.entries import FAMILIES, Entry, Manifest, Preset
from rpiae.core.registry.registry import Registry
from rpiae.encoders import ENTRIES


class Raising:
    """Raises whatever is done with it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("hands off")

    def __repr__(self) -> str:
        raise RuntimeError("hands off")

    def __iter__(self) -> Any:
        raise RuntimeError("hands off")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("hands off")

    __hash__ = None  # type: ignore[assignment]  # as hostile as can be


names = st.sampled_from(["mine", "vit", "tiny", "", "[/red]", "a/b", "\ud800", "x" * 300, "Mine"])
odd: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.integers(), st.floats(), st.text(max_size=4), st.booleans(), names,
    st.builds(Raising), st.just(object), st.binary(max_size=3), st.lists(st.none(), max_size=2),
    st.dictionaries(st.none() | st.text(max_size=2), st.none() | st.integers(), max_size=2),
)  # fmt: skip


def records(kind: type, usual: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Records with some fields as they should be and some odd ones."""
    fields = [a.name for a in attrs.fields(kind)]
    changed = st.dictionaries(st.sampled_from(fields), odd, max_size=2)
    return st.one_of(odd, st.builds(lambda change: kind(**(usual | change)), changed))


ENTRY = {"name": "mine", "target": "rpiae.encoders.configs:VitEncoderConfig", "summary": ""}
PRESET = {"name": "mine-s", "part": "mine", "values": {"width": 64}}
entries = st.lists(records(Entry, ENTRY), max_size=2).map(tuple) | odd
presets = st.lists(records(Preset, PRESET), max_size=2).map(tuple) | odd
families = st.sampled_from([*FAMILIES, "encoder"]) | odd.filter(
    lambda value: type(value) in (str, int, float, bool, bytes, type(None))
)
manifests = st.one_of(
    odd,
    st.builds(
        Manifest,
        api=st.just(1) | odd,
        entries=st.dictionaries(families, entries, max_size=2) | odd,
        presets=st.dictionaries(families, presets, max_size=2) | odd,
        recipes=presets,
    ),
)


class Point(entrypoints.EntryPoint):  # type: ignore[misc]  # the package has no types
    """An entry point that names what it is given."""

    def __init__(self, manifest: Any) -> None:
        super().__init__("odd", "odd", "MANIFEST")
        self._manifest = manifest

    def load(self) -> Any:
        return self._manifest


def _loaded(manifest: Any) -> Plugin:
    unread = Plugin(name="rpiae-odd", distribution="rpiae-odd", version="1", manifest=None)
    return plugins._loaded(unread, Point(manifest))


@given(manifests)
def test_a_hostile_manifest_is_taken_as_it_should_be_or_named(manifest: Any) -> None:
    plugin = _loaded(manifest)
    assert (plugin.manifest is None) == bool(plugin.error)
    known = Registry("encoders", ENTRIES, plugins=lambda: (plugin,))
    assert known.entry("vit").distribution == "rpiae"
    assert set(known.broken()) <= {"rpiae-odd"}
    for name in ("mine", "mine-s"):
        try:
            selection = known.select(name)
        except (UnknownNameError, PluginError):
            continue
        record = selection.preset or selection.entry
        assert record is not None
        assert record.distribution == "rpiae-odd"


@given(manifests)
def test_listings_show_the_others_and_name_the_broken_one(manifest: Any) -> None:
    plugin = _loaded(manifest)
    known = Registry("encoders", ENTRIES, plugins=lambda: (plugin,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "registry", lambda family: known)
        patch.setattr(listing, "installed_plugins", lambda: (plugin,))
        assert {"vit", "timm"} <= {row["name"] for row in listing._rows("encoders")}
        row = listing._plugin_row(plugin, check=False)
    assert row["label"] == "rpiae-odd"
    assert not plugin.error or row["error"]
