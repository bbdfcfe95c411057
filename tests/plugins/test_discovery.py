"""Plugins: found, isolated from each other, never replacing a built-in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rpiae.core.errors import PluginError, RegistrationError
from rpiae.core.registry import Entry, Plugin, Registry, installed_plugins
from rpiae.encoders import ENTRIES

GOOD = """
from rpiae.core.registry import Entry, Manifest, Preset
MANIFEST = Manifest(
    api=1,
    entries={"encoders": (Entry(name="mine", target="rpiae.encoders.configs:VitEncoderConfig",
                                summary="a ViT of mine"),)},
    presets={"encoders": (Preset(name="mine-s", part="mine", values={"width": 64}),)},
)
"""
REPLACING = GOOD.replace('"mine"', '"timm"')
OTHER_API = GOOD.replace("api=1", "api=2")
BROKEN = "raise RuntimeError('no luck')"


def install(folder: Path, name: str, source: str) -> None:
    """Lay out an installed distribution with one plugin."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[rpiae.plugins]\n{name} = {module}:MANIFEST\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def encoders() -> Registry:
    return Registry("encoders", ENTRIES, plugins=installed_plugins.__wrapped__)


def test_a_plugin_brings_a_part_and_a_preset(site: Path) -> None:
    install(site, "rpiae-good-one", GOOD)
    known = encoders()
    assert known.entry("mine").distribution == "rpiae-good-one"
    assert known.select("mine-s").tree == {"name": "mine", "preset": "mine-s", "width": 64}
    assert known.config_class("mine").__name__ == "VitEncoderConfig"


def test_nothing_is_discovered_before_the_first_lookup() -> None:
    def explode() -> tuple[Plugin, ...]:
        raise AssertionError("discovered")

    known = Registry("encoders", ENTRIES, plugins=explode)
    with pytest.raises(AssertionError, match="discovered"):
        known.names()


def test_a_plugin_that_raises_on_import_costs_only_itself(site: Path) -> None:
    install(site, "rpiae-good-two", GOOD)
    install(site, "rpiae-bad", BROKEN)
    known = encoders()
    assert known.entry("mine").name == "mine"
    assert known.broken() == {"rpiae-bad": "RuntimeError: no luck"}
    with pytest.raises(PluginError, match="installed and broken: RuntimeError: no luck"):
        known.entry("bad-encoder")


def test_another_api_version_is_said(site: Path) -> None:
    install(site, "rpiae-future", OTHER_API)
    assert "plugin API 2, this rpiae has 1" in encoders().broken()["rpiae-future"]


def test_a_plugin_never_replaces_a_built_in(site: Path) -> None:
    install(site, "rpiae-replacing", REPLACING)
    known = encoders()
    assert known.entry("timm").distribution == "rpiae"
    error = known.broken()["rpiae-replacing"]
    assert "rpiae-replacing" in error
    assert "already registered by rpiae " in error


def test_a_malformed_stranger_on_the_path_costs_nothing(
    site: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "rpiae-good-three", GOOD)
    stranger = tmp_path_factory.mktemp("stranger")
    info = stranger / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_bytes(b"[[[\nnot = an = ini\n\xff\xfe")
    monkeypatch.setattr(sys, "path", [str(stranger), *sys.path])
    assert encoders().entry("mine").name == "mine"


def test_registering_in_process_also_as_a_decorator() -> None:
    from attrs import frozen

    from rpiae.core.config import BridgeConfig, EncoderConfig

    known = Registry("encoders", ENTRIES)

    @known.register("notebook", summary="tried out")
    @frozen(kw_only=True)
    class NotebookConfig(EncoderConfig):
        """One of mine."""

    assert known.config_class("notebook") is NotebookConfig
    assert known.register("notebook", NotebookConfig) is NotebookConfig
    with pytest.raises(RegistrationError, match="already registered by rpiae"):
        known.register("timm", NotebookConfig)
    with pytest.raises(RegistrationError, match="config of the family 'bridges'"):
        known.register("other", BridgeConfig)
    with pytest.raises(RegistrationError, match="lower case"):
        known.register("Bad Name", NotebookConfig)


def test_same_target_twice_is_no_error_and_another_target_names_both() -> None:
    entry = Entry(name="a", target="m:A", summary="")
    known = Registry("encoders", [entry, entry])
    assert known.names() == ["a"]
    with pytest.raises(RegistrationError, match=r"m:B.*m:A"):
        Registry("encoders", [entry, Entry(name="a", target="m:B", summary="")])
