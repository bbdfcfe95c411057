"""The import direction of the package, and what is kept out of where, read from the source."""

from __future__ import annotations

import ast
import importlib
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from attrs import frozen

from rpiae.core.registry.registry import FAMILIES, Registry

PACKAGE = "rpiae"
ROOT = Path(__file__).parents[2] / PACKAGE

#: Lowest first. A module imports from its own group and from those above it in this list.
GROUPS: tuple[tuple[str, ...], ...] = (
    ("core.errors",),
    ("core.runtime",),
    ("core.config",),
    ("core.registry",),
    ("core.model",),
    ("core.training",),
    ("encoders", "bridges", "decoders", "generators", "losses", "recipes"),
    ("tasks", "data"),
    ("latents", "sampling"),
    ("evaluation", "interop"),
    ("runs",),
    ("studies",),
    ("testing",),
    ("plugin", "cli", "__main__"),
)
PART_FAMILIES = frozenset({"encoders", "bridges", "decoders", "generators", "losses", "recipes"})
STRANGERS = (PART_FAMILIES,)

#: Registered names that core uses as words of its own: the package's name is the distribution that
#: brings the built-in parts, a posterior is sampled, encoders and decoders have a patch, a learning
#: rate's decay can be linear, pixels go to the nearest value, held-out PSNR chooses the best weights, a
#: run's tokenizer or generator lies
#: in a folder of that name, a saved generator says its flow and its latents, these are normalised by none,
#: channel or position, and two weights of torch's transformer layer have names of the form that parametric
#: bridges have.
OWN_WORDS = frozenset(
    {
        PACKAGE, "patch", "psnr", "sample", "linear", "linear1", "linear2", "nearest", "tokenizer", "generator",
        "flow", "latents", "none",
    }
)  # fmt: skip


@frozen(kw_only=True)
class Module:
    """A source file and what it imports."""

    name: str
    tree: ast.Module
    is_package: bool

    def imports(self) -> Iterator[tuple[str, int]]:
        """Imported modules, with the line, wherever in the file they stand."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._base(node)
                for alias in node.names:
                    full = f"{base}.{alias.name}"
                    yield (full if full in SOURCES else base), node.lineno

    def _base(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        parts = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*parts, *([node.module] if node.module else [])])

    def strings(self) -> Iterator[tuple[str, int]]:
        """String constants that are not docstrings, with their line."""
        documentation = {
            id(node.value) for node in ast.walk(self.tree) if isinstance(node, ast.Expr)
        }
        for node in ast.walk(self.tree):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in documentation
            ):
                yield node.value, node.lineno


def _sources() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = _sources()
MODULES = {
    name: Module(
        name=name,
        tree=ast.parse(path.read_text(encoding="utf-8"), filename=str(path)),
        is_package=path.name == "__init__.py",
    )
    for name, path in SOURCES.items()
}


def _place(module: str) -> tuple[int, str] | None:
    """The group of a module of the package, and which of its members it belongs to."""
    inside = module.removeprefix(f"{PACKAGE}.")
    for level, members in enumerate(GROUPS):
        for member in members:
            if inside == member or inside.startswith(f"{member}."):
                return level, member
    return None


def _objection(module: str, imported: str) -> str | None:
    here, there = _place(module), _place(imported)
    assert here is not None
    if imported == PACKAGE:
        # What it re-exports reaches up to the runs, so only what lies above them may use it.
        top = here[0] == len(GROUPS) - 1
        return None if top else f"imports {imported} itself, name the module instead"
    if there is None:
        return f"imports {imported}, which has no place in GROUPS"
    if there[0] > here[0]:
        return f"imports {imported}, which lies above it"
    if here[1] != there[1] and any({here[1], there[1]} <= group for group in STRANGERS):
        return f"imports {imported}, of another family"
    return None


PLACED = sorted(set(MODULES) - {PACKAGE, f"{PACKAGE}.core"})


def test_the_source_was_found() -> None:
    assert {
        f"{PACKAGE}.core.errors",
        f"{PACKAGE}.encoders",
        f"{PACKAGE}.core.model.adapters",
    } <= set(PLACED)


def test_imports_go_one_way() -> None:
    homeless = [module for module in PLACED if not _place(module)]
    assert not homeless, f"without a place in the import direction (GROUPS): {homeless}"
    problems = [
        f"{SOURCES[module]}:{line}: {module} {objection}"
        for module in PLACED
        for imported, line in MODULES[module].imports()
        if imported.partition(".")[0] == PACKAGE
        and (objection := _objection(module, imported)) is not None
    ]
    assert not problems, "\n".join(problems)


def test_the_drawing_is_of_this_house() -> None:
    text = (ROOT.parent / "CONTRIBUTING.md").read_text("utf-8")
    drawn = re.search(r"```mermaid\n(.*?)```", text, flags=re.DOTALL)
    assert drawn is not None
    rooms = [tuple(label.split(" · ")) for label in re.findall(r'\["(.*?)"\]', drawn.group(1))]
    assert rooms == [*reversed(GROUPS)]
    boxes = re.findall(r"(\w+)(?:\[.*?\])? --> (\w+)", drawn.group(1))
    assert all(one[1] == two[0] for one, two in itertools.pairwise(boxes))


def _circles(imports: dict[str, set[str]]) -> list[str]:
    """Chains of modules that import each other, wherever in a file the imports stand."""
    done: set[str] = set()
    found = []

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append(" → ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for imported in sorted(imports.get(module, ())):
                visit(imported, [*path, module])
            done.add(module)

    for module in sorted(imports):
        visit(module, [])
    return found


def test_no_module_imports_itself_on_any_way() -> None:
    imports = {
        name: {imported for imported, _ in module.imports() if imported in MODULES} - {PACKAGE}
        for name, module in MODULES.items()
        if name != f"{PACKAGE}.plugin"
    }
    assert not _circles(imports), "\n".join(_circles(imports))


def test_the_search_for_circles_itself() -> None:
    assert _circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b → c → b"]


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("core.model.contracts", "core.model.geometry", True),
        ("core.registry.registry", "core.errors", True),
        ("core.errors", "core.config", False),
        ("core.runtime.files", "core.config.tree", False),
        ("core.model.tokenizer", "core.training.freeze", False),
        ("encoders.timm", "encoders.hub", True),
        ("encoders.timm", "bridges.variational", False),
        ("losses.bridge", "bridges.variational", False),
        ("data.folder", "evaluation.final", False),
        ("evaluation.final", "data", True),
        ("data.folder", "core.training.trainer", True),
        ("core.training.trainer", "data", False),
        ("core.training.trainer", "tasks.tokenizer", False),
        ("cli.train", "runs", True),
        ("runs", "cli", False),
        ("testing.contracts", "core.training.trainer", True),
        ("core.training.trainer", "nowhere", False),
    ],
)
def test_the_rule_itself(module: str, imported: str, allowed: bool) -> None:
    objection = _objection(f"{PACKAGE}.{module}", f"{PACKAGE}.{imported}")
    assert (objection is None) is allowed


def test_no_text_is_markup_so_nothing_escapes_it() -> None:
    users = [
        name
        for name, module in MODULES.items()
        if any(imported.startswith("rich.markup") for imported, _ in module.imports())
    ]
    assert users == [], "rpiae.cli.screen prints text as it is: escaping it would show backslashes"


def _registries() -> Iterator[Registry]:
    for target in FAMILIES.values():
        if target.partition(":")[0] in SOURCES:
            module, _, name = target.partition(":")
            yield getattr(importlib.import_module(module), name)


def _built_in() -> tuple[set[str], list[str]]:
    """Names and aliases of built-in parts, presets and recipes; and patterns of parametric ones."""
    names: set[str] = set()
    patterns = []
    for registry in _registries():
        for entry in registry.entries():
            if entry.distribution == PACKAGE:
                names |= {entry.name, *entry.aliases}
                patterns += [entry.pattern] if entry.pattern else []
        names |= {p.name for p in registry.presets() if p.distribution == PACKAGE}
    return names - OWN_WORDS, patterns


def _names_a_part(text: str, names: set[str], patterns: list[str]) -> str | None:
    """The built-in that a string names: the whole string, or inside it what can be no mere word."""
    if text in names:
        return text
    unmistakable = [n for n in names if re.search(r"[\d-]", n)]
    alternatives = [re.escape(n) for n in sorted(unmistakable, key=len, reverse=True)]
    alternatives += [re.sub(r"\\\{.*\\\}", r"\\d+", re.escape(p)) for p in patterns]
    if not alternatives:
        return None
    found = re.search(rf"(?<![\w-])({'|'.join(alternatives)})(?![\w-])", text)
    return found.group(1) if found else None


def test_core_names_no_part() -> None:
    names, patterns = _built_in()
    assert {"timm", "vit", "variational", "kl"} <= names
    problems = [
        f"{SOURCES[name]}:{line}: {text!r} names the built-in {part!r}"
        for name, module in MODULES.items()
        if name.startswith(f"{PACKAGE}.core.")
        for text, line in module.strings()
        if (part := _names_a_part(text, names, patterns)) is not None and part not in OWN_WORDS
    ]
    assert not problems, "\n".join(problems)


def test_the_search_for_names_itself() -> None:
    names, patterns = {"kl", "dinov2-b", "l1"}, ["vb{latent_channels}"]
    for text in ("kl", "dinov2-b", "try 'dinov2-b'", "an l1 term", "use vb64"):
        assert _names_a_part(text, names, patterns) is not None
    for text in ("the kl term", "dinov2", "html1", "vb", "vb64x"):
        assert _names_a_part(text, names, patterns) is None


@pytest.mark.parametrize(
    ("package", "owner"),
    [("rich", f"{PACKAGE}.cli"), ("entrypoints", f"{PACKAGE}.core.registry.discovery")],
)
def test_one_owner(package: str, owner: str) -> None:
    users = {
        name
        for name, module in MODULES.items()
        for imported, _ in module.imports()
        if imported.partition(".")[0] == package
    }
    strangers = {name for name in users if name != owner and not name.startswith(f"{owner}.")}
    assert not strangers, f"{package} is imported by {sorted(strangers)}, only {owner} may"


def _loading(modules: Iterable[str], packages: tuple[str, ...]) -> dict[str, list[str]]:
    """Which of the packages are loaded after each import, in a fresh process; the first that loads
    one is to blame."""
    code = (
        "import importlib, json, sys\nfound = {}\n"
        f"for module in {list(modules)!r}:\n"
        "    importlib.import_module(module)\n"
        f"    found[module] = [p for p in {packages!r} if p in sys.modules]\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ("torch", "timm", "numpy", "rich", "entrypoints")
    assert _loading([PACKAGE], heavy) == {PACKAGE: []}


TORCH_FREE = [
    "core.model.resolve",
    "tasks.tokenizer.recipes",
    *(
        target.partition(":")[0].removeprefix(f"{PACKAGE}.") + suffix
        for target in FAMILIES.values()
        for suffix in ("", ".configs")
    ),
]


def test_names_and_configs_need_no_torch() -> None:
    modules = dict.fromkeys(f"{PACKAGE}.{module}" for module in TORCH_FREE)
    there = [module for module in modules if module in SOURCES]
    assert len(there) > len(FAMILIES)
    found = _loading(there, ("torch", "timm", "torchvision"))
    assert not any(found.values()), found
