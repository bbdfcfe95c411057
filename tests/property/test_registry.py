"""A registry against a plain dict, through any sequence of registrations and look-ups."""

from __future__ import annotations

import re

import pytest
from attrs import frozen
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rpiae.core.config.parts import BridgeConfig, DecoderConfig
from rpiae.core.errors import RegistrationError, UnknownNameError
from rpiae.core.registry.registry import Entry, Preset, Registry, normalised


@frozen(kw_only=True)
class Narrow(BridgeConfig):
    """A bridge."""

    size: int = 1


@frozen(kw_only=True)
class Wide(BridgeConfig):
    """Another bridge."""

    size: int = 2


@frozen(kw_only=True)
class Sized(BridgeConfig):
    """A bridge with a parametric name."""

    size: int = 3


@frozen(kw_only=True)
class Foreign(DecoderConfig):
    """A config of another family."""


CLASSES = (Narrow, Wide)
# An alias may be another part's or preset's name: whoever comes second is refused.
ALIASES: dict[str, tuple[str, ...]] = {
    "alpha": ("first", "A One"),
    "beta": ("second", "alpha"),
    "gamma-2": (),
    "delta.3": ("Third_One",),
}
PRESET_NAMES = ("alpha", "third-one", "small", "large")
names = st.sampled_from(sorted(ALIASES))
classes = st.sampled_from(CLASSES)
presets = st.builds(
    Preset,
    name=st.sampled_from(PRESET_NAMES),
    part=names,
    values=st.fixed_dictionaries({"size": st.integers(1, 2)}),
)
Record = type[BridgeConfig] | Preset


def _spelt(name: str) -> list[str]:
    return [name, name.upper(), f" {name} ", name.replace("-", "_"), name.replace("-", " ")]


class RegistryMachine(RuleBasedStateMachine):
    """``model`` holds what was registered by its name; ``owner`` every name and alias of it."""

    def __init__(self) -> None:
        super().__init__()
        built_in = Entry(
            name="sized", target=f"{__name__}:Sized", summary="", pattern="x{size}", argument="size"
        )
        self.registry = Registry("bridges", [built_in])
        self.model: dict[str, Record] = {}

    @property
    def owner(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, record in self.model.items():
            aliases = () if isinstance(record, Preset) else ALIASES[name]
            found |= dict.fromkeys([name, *map(normalised, aliases)], name)
        return found

    def _origin(self, name: str) -> str:
        record = self.model[name]
        if isinstance(record, Preset):
            return f"rpiae (preset of {record.part})"
        return f"this process ({record.__module__}:{record.__qualname__})"

    @rule(name=names, cls=classes, decorate=st.booleans())
    def register(self, name: str, cls: type[BridgeConfig], decorate: bool) -> None:
        claimed = {name, *map(normalised, ALIASES[name])}
        taken = {self.owner[n] for n in claimed if n in self.owner}

        def call() -> type[BridgeConfig]:
            if decorate:
                return self.registry.register(name, aliases=ALIASES[name])(cls)
            return self.registry.register(name, cls, aliases=ALIASES[name])

        if not taken or self.model.get(name) is cls:
            assert call() is cls
            self.model[name] = cls
            return
        with pytest.raises(RegistrationError) as caught:
            call()
        assert f"this process ({cls.__module__}:{cls.__qualname__})" in str(caught.value)
        assert any(self._origin(owner) in str(caught.value) for owner in taken)

    @rule(preset=presets)
    def add_preset(self, preset: Preset) -> None:
        owner = self.owner.get(preset.name)
        if owner is None or self.model[owner] == preset:
            self.registry.add_preset(preset)
            self.model[preset.name] = preset
            return
        with pytest.raises(RegistrationError) as caught:
            self.registry.add_preset(preset)
        assert self._origin(owner) in str(caught.value)
        assert f"rpiae (preset of {preset.part})" in str(caught.value)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def register_again(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        record = self.model[name]
        before = self.registry.entries(), self.registry.presets()
        if isinstance(record, Preset):
            self.registry.add_preset(record)
        else:
            self.registry.register(name, record, aliases=ALIASES[name])
        assert (self.registry.entries(), self.registry.presets()) == before

    @rule(
        wanted=st.sampled_from(
            sorted({*ALIASES, *PRESET_NAMES, *(normalised(a) for v in ALIASES.values() for a in v)})
        ),
        data=st.data(),
    )
    def select(self, wanted: str, data: st.DataObject) -> None:
        asked = data.draw(st.sampled_from(_spelt(wanted)))
        owner = self.owner.get(wanted)
        record = self.model.get(owner or "")
        part = self.owner.get(record.part) if isinstance(record, Preset) else owner
        if part is None or isinstance(self.model[part], Preset):
            with pytest.raises(UnknownNameError, match="rpiae list bridges"):
                self.registry.select(asked)
            return
        selection = self.registry.select(asked)
        assert selection.entry is not None
        assert selection.entry.name == selection.tree["name"] == part
        assert self.registry.config_class(selection.tree["name"]) is self.model[part]
        if isinstance(record, Preset):
            assert selection.preset == record
            assert selection.tree == {"name": part, "preset": owner, **record.values}
            selection.tree["size"] = -1
            assert record.values["size"] > 0
        else:
            assert selection.preset is None
            assert selection.tree == {"name": part}

    @rule(number=st.integers(0, 10**6), spelling=st.sampled_from(["x{}", "X{}", " x{} "]))
    def select_parametric(self, number: int, spelling: str) -> None:
        asked = spelling.format(number)
        if number == 0:
            with pytest.raises(UnknownNameError):
                self.registry.select(asked)
            return
        selection = self.registry.select(asked)
        assert selection.tree == {"name": "sized", "preset": f"x{number}", "size": number}

    @invariant()
    def lists_what_is_registered(self) -> None:
        parts = {name for name, r in self.model.items() if not isinstance(r, Preset)}
        aliases = {alias for name in parts for alias in ALIASES[name]}
        assert [e.name for e in self.registry.entries()] == sorted({"sized", *parts})
        assert [p.name for p in self.registry.presets()] == sorted(set(self.model) - parts)
        assert self.registry.names() == sorted({"sized", "x{size}", *self.model, *aliases})
        assert self.registry.broken() == {}


TestRegistry = RegistryMachine.TestCase


def _registry() -> Registry:
    registry = Registry("bridges")
    registry.register("sized", Sized, pattern="x{size}y", argument="size")
    return registry


@given(st.text(max_size=6) | st.text("abz09.-", max_size=6))
def test_only_plain_names_are_taken(name: str) -> None:
    letters = set("abcdefghijklmnopqrstuvwxyz0123456789")
    plain = (
        bool(name)
        and set(name) <= letters | set(".-")
        and {name[0], name[-1]} <= letters
        and name != "sized"
    )
    # A name with an underscore has its own test below.
    assume("_" not in name)
    registry = _registry()
    if plain:
        registry.register(name, Narrow)
        assert registry.config_class(name) is Narrow
    else:
        with pytest.raises(RegistrationError):
            registry.register(name, Narrow)
        assert [e.name for e in registry.entries()] == ["sized"]


@given(st.text(max_size=8) | st.from_regex(r"(sized(:.{0,3})?|x[0-9]{1,3}y)", fullmatch=True))
def test_whatever_is_asked_for_is_found_or_answered(text: str) -> None:
    known = re.fullmatch(r"sized(:.*)?|x[1-9][0-9]*y", normalised(text), re.DOTALL)
    if known:
        assert _registry().select(text).tree["name"] == "sized"
    else:
        with pytest.raises(UnknownNameError, match="bridge"):
            _registry().select(text)


def test_argument_and_suffix() -> None:
    registry = _registry()
    assert registry.select("sized:7").tree == {"name": "sized", "size": "7"}
    assert registry.select("x12y").tree == {"name": "sized", "preset": "x12y", "size": 12}
    registry.register("plain", Narrow)
    with pytest.raises(UnknownNameError, match="takes no argument"):
        registry.select("plain:7")
    with pytest.raises(UnknownNameError, match="Did you mean 'plain'"):
        registry.select("plian")


def test_only_configs_of_the_family_are_taken() -> None:
    registry = _registry()
    with pytest.raises(RegistrationError, match="'decoders', not 'bridges'"):
        registry.register("foreign", Foreign)
    with pytest.raises(RegistrationError, match="derived from PartConfig"):
        registry.register("number", int)  # type: ignore[type-var]  # the error under test


def test_underscores_are_refused() -> None:
    with pytest.raises(RegistrationError):
        _registry().register("two_words", Narrow)


@pytest.mark.parametrize("pattern", ["", "x{size}y"])
def test_a_parametric_name_is_taken(pattern: str) -> None:
    name = "other" if pattern else "x64y"
    with pytest.raises(RegistrationError):
        _registry().register(name, Narrow, pattern=pattern)
