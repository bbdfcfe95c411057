"""What is registered: entries, presets, and the manifests that plugins bring them in. Torch-free."""

from __future__ import annotations

import importlib.resources
import re
import tomllib
from collections.abc import Mapping

from attrs import field, frozen

from rpiae.core.config.parts import PartConfig, load_foreign, load_object
from rpiae.core.config.tree import Tree
from rpiae.core.errors import PluginError

#: Who brings the built-in parts.
OWN = "rpiae"

#: Who brings a part that was registered and not installed.
THIS_PROCESS = "this process"

#: Where each family's registry is.
FAMILIES: Mapping[str, str] = {
    "encoders": "rpiae.encoders:ENCODERS",
    "bridges": "rpiae.bridges:BRIDGES",
    "decoders": "rpiae.decoders:DECODERS",
    "generators": "rpiae.generators:GENERATORS",
    "losses": "rpiae.losses:LOSSES",
    "critics": "rpiae.losses:CRITICS",
    "datasets": "rpiae.data:DATASETS",
    "metrics": "rpiae.evaluation:METRICS",
    "recipes": "rpiae.recipes:RECIPES",
}


def normalised(name: str) -> str:
    """Lower case, with ``_`` and blanks as ``-``: the form names are compared in."""
    return re.sub(r"[\s_]+", "-", name.strip().lower())


@frozen(kw_only=True)
class Entry:
    """One registered part.

    Attributes:
        name: what it is called.
        target: import string of its config class.
        summary: one line.
        aliases: other names for it.
        extra: the extra of ``rpiae`` that installs what it needs.
        requires: the importable package behind ``extra``.
        package: the distribution that brings it, where that is called otherwise.
        distribution: who brings it.
        tags: free words for listings.
        pattern: a parametric name such as ``"vb{latent_channels}"``; numbers go into the fields.
        argument: the field that ``name:argument`` sets.
        files: endings of the files that the argument names, or that lie in a folder that it names;
            "/" where it is a folder of anything.
        source: paper or code the part follows.
        licence: licence of what it wraps, where that is not our own.
    """

    name: str
    target: str
    summary: str
    aliases: tuple[str, ...] = ()
    extra: str = ""
    requires: str = ""
    package: str = ""
    distribution: str = "rpiae"
    tags: tuple[str, ...] = ()
    pattern: str = ""
    argument: str = ""
    files: tuple[str, ...] = ()
    source: str = ""
    licence: str = ""

    @property
    def importable(self) -> bool:
        """Whether another process would find the part under its name."""
        return True

    def config_class(self) -> type[PartConfig]:
        """Import the config class.

        Raises:
            PluginError: if it cannot be imported.
        """
        try:
            return load_foreign(lambda: load_object(self.target))  # type: ignore[no-any-return]  # an import string
        except PluginError as error:
            raise PluginError(
                f"{self.name!r} from {self.distribution} cannot be loaded: {error}"
            ) from error


@frozen(kw_only=True)
class Preset:
    """Named values for a part.

    Attributes:
        name: what it is called.
        part: the part it configures; of recipes, the task's, and a tokenizer's where it is empty.
        values: the fields it sets.
        companions: default partners by field name, such as ``{"bridge": "vb64"}``.
        summary, licence, paper: for listings and the plan's notices.
        distribution: who brings it.
    """

    name: str
    part: str = ""
    values: Tree = field(factory=dict)
    companions: dict[str, str] = field(factory=dict)
    summary: str = ""
    licence: str = ""
    paper: str = ""
    distribution: str = "rpiae"


@frozen(kw_only=True)
class Manifest:
    """What a plugin brings; its entry point in group ``rpiae.plugins`` names one. Torch-free.

    Attributes:
        api: the manifest version it was written for.
        entries: parts by family.
        presets: presets by family.
        recipes: further presets of the family of recipes.
    """

    api: int
    entries: Mapping[str, tuple[Entry, ...]] = field(factory=dict)
    presets: Mapping[str, tuple[Preset, ...]] = field(factory=dict)
    recipes: tuple[Preset, ...] = ()

    def records(self, family: str) -> tuple[Entry | Preset, ...]:
        """Parts and presets of a family, wherever they are listed."""
        entries, presets = self.entries.get(family, ()), self.presets.get(family, ())
        return (*entries, *presets, *(self.recipes if family == "recipes" else ()))


def read_presets(package: str, resource: str = "presets.toml") -> list[Preset]:
    """Presets from a TOML file inside a package: one table per preset."""
    text = importlib.resources.files(package).joinpath(resource).read_text(encoding="utf-8")
    return [_preset(name, table) for name, table in tomllib.loads(text).items()]


def _preset(name: str, table: Tree) -> Preset:
    described = {
        k: table.pop(k) for k in ("summary", "licence", "paper", "companions") if k in table
    }
    return Preset(name=name, part=table.pop("part"), values=table, **described)
