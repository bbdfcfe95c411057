"""Plugins: found, isolated from each other, never replacing a built-in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpiae.core.errors import PluginError, RegistrationError
from rpiae.core.registry.registry import Entry, Plugin, Registry, installed_plugins
from rpiae.encoders import ENTRIES
from rpiae.recipes import ENTRIES as RECIPE_PARTS
from rpiae.recipes import TOKENIZER, built_in, shapeless

GOOD = """
from rpiae.core.registry.registry import Entry, Manifest, Preset
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
BRIDGE = "rpiae.bridges.configs:IdentityBridgeConfig"
EMPTY = "from rpiae.plugin import Entry, Manifest, Preset\nMANIFEST = Manifest(api=1{})"
ENTRY = 'Entry(name="mine", target="rpiae.encoders.configs:VitEncoderConfig", summary="")'


RAISING = """
class Lazy(Manifest):
    @property
    def presets(self):
        raise RuntimeError("not today")
    presets = presets.setter(lambda self, value: None)
MANIFEST = Lazy(api=1)
"""
HOSTILE = """
class Hostile(str):
    def __eq__(self, other): raise RuntimeError("eq")
    __hash__ = str.__hash__
    def lower(self): raise RuntimeError("lower")
    def strip(self, *a): raise RuntimeError("strip")
    def __str__(self): raise RuntimeError("str")
    def __format__(self, how): raise RuntimeError("format")
class Table(dict):
    def get(self, *a): raise RuntimeError("get")
    def __getitem__(self, key): raise RuntimeError("getitem")
"""


def install(folder: Path, name: str, source: str, *, point: str = "") -> None:
    """Lay out an installed distribution with one plugin."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[rpiae.plugins]\n{point or name} = {module}:MANIFEST\n"
    )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("rpiae_", "Rpiae")) or name == "exits":
            del sys.modules[name]


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


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
        ("class Odd(BaseException): pass\nraise Odd", "Odd"),
        ("MANIFEST = (", "SyntaxError: "),
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
        ("", "has no attribute 'MANIFEST'"),
        ("MANIFEST = {}", "rpiae_bad:MANIFEST is not a Manifest but dict"),
        (OTHER_API, "plugin API 2, this rpiae has 1"),
        (EMPTY.format(", entries=[]"), "entries are no dict of families but list"),
        (EMPTY.format(", entries={'encoder': ()}"), "no family 'encoder'. Did you mean 'encoders'"),
        (
            EMPTY.format(f", entries={{'encoders': ({ENTRY})}}"),
            "no tuple but Entry (a tuple of one",
        ),
        (EMPTY.format(", entries={'encoders': ('mine',)}"), "hold str where Entry belongs"),
        (EMPTY.format(f", presets={{'encoders': ({ENTRY},)}}"), "hold Entry where Preset belongs"),
        (EMPTY.format(", recipes=(1,)"), "manifest's recipes hold int where Preset belongs"),
        (
            EMPTY.format(f", entries={{'encoders': ({ENTRY.replace('mine', 'My One')},)}}"),
            "lower case",
        ),
        (EMPTY.format(f", entries={{'encoders': ({ENTRY[:-1]}, pattern='m{{'),)}}"), "name{field}"),
        (EMPTY.format(", presets={'encoders': (Preset(name=5),)}"), "hold one that is called 5"),
        (
            GOOD.replace('summary="a ViT of mine"', "summary=None"),
            "'mine': summary: expected string, got None",
        ),
        (GOOD.replace('values={"width": 64}', "values=None"), "'mine-s': values is None, which no"),
        (
            GOOD.replace('{"width": 64}', '{"width": object}'),
            "'mine-s': values.width is <class 'object'>",
        ),
        (
            GOOD.replace('{"width": 64}', "{5: 64}"),
            "'mine-s': values has the key 5, which is no string",
        ),
        (GOOD.replace("values=", "companions="), "companions.width: expected string, got 64"),
        (GOOD.replace("values={", "companions=['vb64'], values={"), "companions: expected a table"),
        (
            GOOD.replace("summary=", "aliases='ab', summary="),
            "'mine': aliases: expected a list, got 'ab'",
        ),
        (GOOD + RAISING, "RuntimeError: not today"),
    ],
)
def test_every_way_to_be_broken_is_said_and_costs_only_itself(
    site: Path, source: str, reason: str
) -> None:
    install(site, "rpiae-bad", source)
    install(site, "rpiae-good", GOOD)
    known = encoders()
    assert known.entry("mine").distribution == "rpiae-good"
    assert list(known.broken()) == ["rpiae-bad"]
    assert reason in known.broken()["rpiae-bad"]
    assert known.select("vit").entry is not None


def test_nothing_of_a_plugins_own_classes_is_left_in_what_it_registers(site: Path) -> None:
    named = GOOD.replace('name="mine"', 'name=Hostile("mine")').replace(
        '{"width"', "{Hostile('width')"
    )
    install(
        site,
        "rpiae-hostile",
        HOSTILE + named.replace("entries={", "entries=Table({").replace(")},\n", ")}),\n", 1),
    )
    known = encoders()
    assert known.broken() == {}
    assert type(known.entry("mine").name) is str
    assert known.select("mine-s").tree == {"name": "mine", "preset": "mine-s", "width": 64}


def test_a_distribution_of_the_toolkits_name_is_no_part_of_it(site: Path) -> None:
    install(site, "rpiae", GOOD, point="mine")
    known = encoders()
    assert "mine" not in {entry.name for entry in known.entries()}
    assert known.broken() == {
        "mine of rpiae": "its distribution is called rpiae, as the toolkit itself: rename it"
    }


@pytest.mark.parametrize("kind", ["fifo", "folder", "link to nowhere", "link to itself"])
@pytest.mark.parametrize("stranger", ["a_stranger-1.0.dist-info", "a_stranger.egg-info"])
def test_entry_points_that_are_no_file_cost_nothing(site: Path, kind: str, stranger: str) -> None:
    install(site, "rpiae-good", GOOD)
    file = site / stranger / "entry_points.txt"
    file.parent.mkdir()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("nowhere" if kind == "link to nowhere" else file.name)
    known = encoders()
    assert known.entry("mine").distribution == "rpiae-good"
    assert known.broken() == {}


def test_ctrl_c_while_a_plugin_is_imported_is_not_its_fault(site: Path) -> None:
    install(site, "rpiae-slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        encoders().names()


def test_what_a_plugin_prints_does_not_spoil_results(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(site, "rpiae-chatty", "print('hello')\n" + GOOD)
    assert encoders().entry("mine")
    assert capsys.readouterr() == ("", "hello\n")


def test_of_two_plugins_with_one_part_the_first_by_name_has_it(site: Path) -> None:
    other = GOOD.replace("VitEncoderConfig", "TimmEncoderConfig")
    install(site, "rpiae-zeta", other)
    install(site, "rpiae-alpha", GOOD)
    known = encoders()
    assert known.entry("mine").distribution == "rpiae-alpha"
    assert known.broken() == {
        "rpiae-zeta": "encoder 'mine' of rpiae-zeta (rpiae.encoders.configs:TimmEncoderConfig) is "
        "already registered by rpiae-alpha (rpiae.encoders.configs:VitEncoderConfig)"
    }


def test_of_two_plugins_with_one_preset_the_second_is_named(site: Path) -> None:
    install(site, "rpiae-alpha", GOOD)
    preset = "Preset(name='mine-s', part='timm', values={})"
    install(site, "rpiae-beta", EMPTY.format(f", presets={{'encoders': ({preset},)}}"))
    error = encoders().broken()["rpiae-beta"]
    assert "'mine-s' of rpiae-beta (preset of timm)" in error
    assert "by rpiae-alpha (preset of mine)" in error


def test_a_preset_that_one_manifest_has_twice(site: Path) -> None:
    install(site, "rpiae-twice", GOOD.replace('values={"width": 64}),)', "values={}),) * 2"))
    assert encoders().broken() == {}
    assert [p.name for p in encoders().presets()].count("mine-s") == 1


def test_of_two_plugins_with_one_entry_point_name_the_second_is_refused(site: Path) -> None:
    install(site, "rpiae-beta", EMPTY.format(""), point="same")
    install(site, "rpiae-alpha", GOOD, point="same")
    known = encoders()
    assert known.entry("mine").distribution == "rpiae-alpha"
    assert list(known.broken()) == ["same of rpiae-beta"]
    assert "so is that of rpiae-alpha 1.0" in known.broken()["same of rpiae-beta"]


def test_a_distribution_further_back_on_the_path_is_shadowed(
    site: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "rpiae-good", GOOD)
    older = tmp_path_factory.mktemp("older")
    install(older, "Rpiae.Good", BROKEN, point="rpiae-old")
    monkeypatch.setattr(sys, "path", [*sys.path, str(older)])
    assert encoders().entry("mine").distribution == "rpiae-good"
    assert encoders().broken() == {}


def test_an_entry_of_another_family_is_an_error_when_it_is_used(site: Path) -> None:
    install(site, "rpiae-mixed", GOOD.replace("VitEncoderConfig", "Triple"))
    with pytest.raises(PluginError, match=r"'mine' of rpiae-mixed .* is no PartConfig"):
        encoders().config_class("mine")
    bridge = GOOD.replace("rpiae.encoders.configs:VitEncoderConfig", BRIDGE)
    install(site, "rpiae-wrong", bridge.replace('"mine', '"other'))
    with pytest.raises(PluginError, match="family 'bridges': its manifest lists it in the wrong"):
        encoders().config_class("other")
    assert encoders().broken() == {}


@pytest.mark.parametrize(
    "target", ["nowhere:X", "rpiae.encoders.configs:X", "rpiae", "", "exits:X"]
)
def test_a_target_that_cannot_be_loaded_is_an_error_when_it_is_used(
    site: Path, target: str
) -> None:
    (site / "exits.py").write_text("raise SystemExit")
    install(site, "rpiae-gone", GOOD.replace("rpiae.encoders.configs:VitEncoderConfig", target))
    assert "mine" in encoders().names()
    with pytest.raises(PluginError, match="'mine' from rpiae-gone cannot be loaded"):
        encoders().config_class("mine")


@pytest.mark.parametrize(
    ("preset", "wanted"),
    [
        ("part='mine', values={'widht': 64}", "sets widht: no such field in VitEncoderConfig. Did you mean 'width'"),
        ("part='mime', values={}", "is for a part that is not there: no encoder named 'mime'"),
        ("part='gone', values={}", "'gone' from rpiae-preset cannot be loaded"),
    ],
)  # fmt: skip
def test_a_preset_that_does_not_fit_names_its_plugin_when_it_is_used(
    site: Path, preset: str, wanted: str
) -> None:
    presets = f"(Preset(name='odd', {preset}),)"
    entries = f"({ENTRY}, Entry(name='gone', target='nowhere:X', summary=''))"
    install(
        site, "rpiae-preset",
        EMPTY.format(f", entries={{'encoders': {entries}}}, presets={{'encoders': {presets}}}"),
    )  # fmt: skip
    known = encoders()
    assert "odd" in known.names()
    with pytest.raises(PluginError) as caught:
        known.select("odd")
    assert wanted in str(caught.value)
    assert "rpiae-preset" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, "no list of stages"),
        ({"stages": 3}, "no list of stages"),
        ({"stages": [{}]}, "stages[0] has no list of terms"),
        ({"stages": ["x"]}, "stages[0] has no list of terms"),
        ({"stages": [{"terms": [{"weight": 1}]}]}, "stages[0].terms[0] names no loss"),
        ({"stages": [{"terms": [{"loss": {}}]}]}, "stages[0].terms[0] names no loss"),
    ],
)
def test_a_recipe_without_stages_or_losses_harms_no_other(
    site: Path, values: dict[str, object], wanted: str
) -> None:
    install(
        site, "rpiae-short", EMPTY.format(f", recipes=(Preset(name='short', values={values}),)")
    )
    known = Registry(
        "recipes", RECIPE_PARTS, built_in(), part=TOKENIZER, check=shapeless,
        plugins=installed_plugins.__wrapped__,
    )  # fmt: skip
    assert "short" not in known.names()
    assert known.select("quick").preset is not None
    assert wanted in known.broken()["rpiae-short"]
    with pytest.raises(PluginError, match="rpiae-short"):
        known.select("short")


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"stages": [], "stepz": 1}, "preset 'odd' of rpiae-odd sets stepz: no such field in TokenizerRecipeConfig"),
        ({"stages": [{"terms": [], "nois": 1}]}, "stages[0] sets nois: no such field in StageConfig. Did you mean 'noise'"),
        ({"stages": [{"terms": [], "optimiser": {"rate": 1}}]}, "stages[0].optimiser sets rate: no such field in OptimiserConfig"),
        ({"stages": [{"terms": [{"loss": "l1", "wait": 1}]}]}, "stages[0].terms[0] sets wait: no such field in TermConfig"),
    ],
)  # fmt: skip
def test_a_recipe_with_unknown_fields_names_its_plugin_when_it_is_used(
    site: Path, values: dict[str, object], wanted: str
) -> None:
    install(site, "rpiae-odd", EMPTY.format(f", recipes=(Preset(name='odd', values={values}),)"))
    known = Registry(
        "recipes", RECIPE_PARTS, part=TOKENIZER, check=shapeless,
        plugins=installed_plugins.__wrapped__,
    )  # fmt: skip
    with pytest.raises(PluginError) as caught:
        known.select("odd")
    assert wanted in str(caught.value)


def test_asking_for_what_a_broken_plugin_would_bring_says_so(site: Path) -> None:
    install(site, "rpiae-clash", GOOD.replace("mine-s", "timm"))
    with pytest.raises(
        PluginError, match="plugin 'rpiae-clash' is installed and broken: encoder 'ti"
    ):
        encoders().entry("mine")


def test_a_plugin_that_imports_torch_is_told_of(site: Path) -> None:
    install(site, "rpiae-heavy", "import torch\n" + GOOD)
    code = "from rpiae.core.registry.discovery import installed_plugins as p; print(p()[0].notices)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)])},
    )  # fmt: skip
    assert "rpiae_heavy imports torch" in done.stdout


def test_a_plugin_never_replaces_a_built_in(site: Path) -> None:
    install(site, "rpiae-replacing", REPLACING)
    known = encoders()
    assert known.entry("timm").distribution == "rpiae"
    error = known.broken()["rpiae-replacing"]
    assert "rpiae-replacing" in error
    assert "already registered by rpiae " in error


@pytest.mark.parametrize(
    "damage", [b"[[[\nnot = an = ini\n\xff\xfe", b"no section\n", b"[a]\nb=1\nb=2\n", b"\xff"]
)
@pytest.mark.parametrize("beside", [True, False])
def test_a_malformed_stranger_on_the_path_costs_nothing(
    site: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    damage: bytes,
    beside: bool,
) -> None:
    install(site, "rpiae-good-three", GOOD)
    stranger = site if beside else tmp_path_factory.mktemp("stranger")
    info = stranger / "a_stranger-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_bytes(damage)
    monkeypatch.setattr(sys, "path", [str(stranger), *sys.path])
    assert encoders().entry("mine").name == "mine"
    assert encoders().broken() == {}


@pytest.mark.parametrize(
    ("text", "label", "reason"),
    [
        ("[rpiae.plugins]\nx = a:b\nx = c:d\n", "rpiae-torn", "entry_points.txt cannot be read"),
        ("[rpiae.plugins]\nx = 5:::3\n", "x of rpiae-torn", "not of the form package:MANIFEST"),
    ],
)
def test_malformed_entry_points_of_a_plugin_are_told_of(
    site: Path, text: str, label: str, reason: str
) -> None:
    install(site, "rpiae-good", GOOD)
    install(site, "rpiae-torn", GOOD)
    (site / "rpiae_torn-1.0.dist-info" / "entry_points.txt").write_text(text)
    known = encoders()
    assert known.entry("mine").distribution == "rpiae-good"
    assert list(known.broken()) == [label]
    assert reason in known.broken()[label]


def test_registering_in_process_also_as_a_decorator() -> None:
    from attrs import frozen

    from rpiae.core.config.parts import BridgeConfig, EncoderConfig

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
