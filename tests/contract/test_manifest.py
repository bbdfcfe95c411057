"""The kit's checks of manifests and plugins, on what rpiae brings itself and on what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from rpiae.core.registry.registry import FAMILIES, Entry, Manifest, Preset, registry
from rpiae.testing import check_manifest, check_plugin

ENTRY = Entry(name="mine", target="rpiae.encoders.configs:VitEncoderConfig", summary="a ViT")
PRESET = Preset(name="mine-s", part="mine", values={"width": 64}, summary="64 wide")
STAGE: dict[str, Any] = {
    "name": "a",
    "train": ["decoder"],
    "steps": 1,
    "terms": [{"loss": "l1"}],
}


def built_in() -> Manifest:
    """Everything that rpiae itself registers, as if a plugin brought it."""
    entries: dict[str, tuple[Entry, ...]] = {}
    presets: dict[str, tuple[Preset, ...]] = {}
    for family in FAMILIES:
        known = registry(family)
        entries[family] = tuple(e for e in known.entries() if e.distribution == "rpiae")
        presets[family] = tuple(p for p in known.presets() if p.distribution == "rpiae")
    return Manifest(api=1, entries=entries, presets=presets)


def test_built_in_parts_presets_and_recipes() -> None:
    check_manifest(built_in(), distribution="rpiae")


def encoders(*records: Entry | Preset) -> Manifest:
    return Manifest(
        api=1,
        entries={"encoders": tuple(r for r in records if isinstance(r, Entry))},
        presets={"encoders": tuple(r for r in records if isinstance(r, Preset))},
    )


def recipe(**stage: Any) -> Manifest:
    values = {"stages": [STAGE | stage]}
    return Manifest(api=1, recipes=(Preset(name="mine", values=values, summary="one stage"),))


def test_a_manifest_in_order() -> None:
    check_manifest(encoders(ENTRY, PRESET))
    check_manifest(encoders(ENTRY, evolve(PRESET, companions={"bridge": "vb8", "encoder": "mine"})))
    check_manifest(recipe())


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        (encoders(evolve(ENTRY, summary=" ")), "'mine': it has no summary"),
        (encoders(evolve(ENTRY, summary="x" * 121)), "not one line of at most 120"),
        (encoders(evolve(ENTRY, licence="MIT ")), "its licence is not one line: 'MIT '"),
        (encoders(evolve(ENTRY, name="Mine")), "use lower case letters"),
        (
            encoders(ENTRY, evolve(ENTRY, target="rpiae.encoders.configs:TimmEncoderConfig")),
            "encoder 'mine' of this plugin (rpiae.encoders.configs:TimmEncoderConfig) is already",
        ),
        (encoders(evolve(ENTRY, target="nowhere:X")), "No module named 'nowhere'"),
        (
            encoders(evolve(ENTRY, target="rpiae.bridges.configs:IdentityBridgeConfig")),
            "family 'bridges': its manifest lists it in the wrong place",
        ),
        (encoders(evolve(ENTRY, argument="modle")), "names the field 'modle'"),
        (encoders(evolve(ENTRY, pattern="mine{widht}")), "names the field 'widht'"),
        (
            encoders(evolve(ENTRY, target="rpiae.core.config.parts:EncoderConfig")),
            "EncoderConfig.module is '', not of the form package.module:Class",
        ),
        (encoders(ENTRY, evolve(PRESET, part="other")), "no encoder named 'other'"),
        (
            encoders(ENTRY, evolve(PRESET, values={"widht": 1, "depth": "2"})),
            "depth: expected int, got '2'",
        ),
        (encoders(ENTRY, evolve(PRESET, values={"widht": 1})), "did you mean 'width'?"),
        (encoders(ENTRY, evolve(PRESET, companions={"bridge": "mime"})), "no bridge named 'mime'"),
        (encoders(ENTRY, evolve(PRESET, companions={"brigde": "vb4"})), "companion for 'brigde'"),
        (
            encoders(ENTRY, evolve(PRESET, values={"pretrained": True, "weights": "a"})),
            "'mine-s': it loads weights and names no licence",
        ),
        (recipe(terms=[{"loss": "l3"}]), "stages[0].terms[0].loss: no loss named 'l3'"),
        (recipe(nois=1), "stages[0].nois: no such field in StageConfig, did you mean 'noise'?"),
        (recipe(terms=3), "stages[0] has no list of terms"),
        (recipe(steps="3"), "stages[0].steps: expected int, got '3'"),
    ],
)
def test_what_is_wrong_is_named(manifest: Manifest, problem: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(problem)):
        check_manifest(manifest)


def test_configs_that_import_torch_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "heavy_configs.py").write_text(
        "import torch\nfrom rpiae.encoders.configs import VitEncoderConfig\n"
    )
    with pytest.raises(AssertionError, match="importing heavy_configs imports torch"):
        check_manifest(encoders(evolve(ENTRY, target="heavy_configs:VitEncoderConfig")))


def test_a_module_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "absent_configs.py").write_text(
        "from attrs import frozen\nfrom rpiae.plugin import EncoderConfig\n"
        "@frozen(kw_only=True)\nclass AbsentConfig(EncoderConfig):\n    module = 'absent.part:Part'\n"
    )
    target = "absent_configs:AbsentConfig"
    with pytest.raises(AssertionError, match=r"'mine': its module absent.part cannot be looked"):
        check_manifest(encoders(evolve(ENTRY, target=target)))


def test_a_plugin_that_is_not_installed() -> None:
    with pytest.raises(
        AssertionError, match=r"brings no plugin, or is not installed: run pip inst"
    ):
        check_plugin("rpiae-nowhere")
