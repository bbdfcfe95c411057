"""``rpiae plugins new``: a complete plugin to start from."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.resources
import importlib.util
import re
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from string import Template

from rpiae.cli.options import nonempty
from rpiae.cli.screen import stdout
from rpiae.core.errors import RunError, UnknownNameError, UsageError, unknown
from rpiae.core.registry.registry import OWN, normalised, registry

#: Families that there is a template for, with what makes a run use a part of theirs.
FAMILIES: Mapping[str, str] = {
    "encoders": "build --encoder {name}-s",
    "bridges": "build --bridge {name}",
    "decoders": "build --decoder {name}",
    "generators": "diffuse LATENTS --generator {name}-s",
    "losses": 'build --set "recipe.stages[0].terms[0].loss={name}"',
    "datasets": "build --data {name}",
}

SUFFIX = ".in"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def options(parser: argparse.ArgumentParser) -> None:
    """What the new plugin brings, and where it goes."""
    parser.add_argument("action", choices=["new"])
    parser.add_argument("name", help="of the part; the distribution is called rpiae-NAME")
    parser.add_argument(
        "--out", metavar="FOLDER", type=nonempty, help="new folder (default: rpiae-NAME)"
    )
    parser.add_argument(
        "--family", default="bridges", metavar="FAMILY",
        help="encoders, bridges (the default), decoders, generators, losses or datasets",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Write a plugin's folder."""
    name = part_name(arguments.name)
    family = arguments.family
    if family not in FAMILIES:
        raise UsageError(unknown("template for the family", family, FAMILIES))
    _check_free(name, family)
    folder = Path(arguments.out or f"{OWN}-{name}")
    write(rendered(name, family=family), folder)
    singular = registry(family).singular
    stdout.print(
        f"wrote the {singular} {name!r} as a plugin to {folder}. Go on with:\n"
        f'  cd {folder} && pip install -e ".[test]" && pytest\n'
        f"  rpiae list plugins\n"
        f"  rpiae {FAMILIES[family].format(name=name)}\n"
        f"The {singular} itself is src/{_package(name)}/{singular}.py; LICENSE is yours to choose.",
        soft_wrap=True,
    )
    return 0


def part_name(asked: str) -> str:
    """The part's name that a plugin is asked for by: ``rpiae-foo``, ``rpiae_foo`` and ``foo`` are foo.

    Raises:
        UsageError: if it is no name for a distribution, a package and a part.
    """
    name = normalised(asked).removeprefix(f"{OWN}-")
    if not _NAME.fullmatch(name) or name == OWN:
        raise UsageError(
            f"{asked!r} is no name for a plugin: use lower case letters, digits and '-', beginning "
            "with a letter, such as 'foo' for the distribution rpiae-foo"
        )
    return name


def rendered(name: str, *, family: str) -> dict[str, str]:
    """The files of a plugin as path → text.

    Args:
        name: of the part, such as ``"foo"``.
        family: one of ``FAMILIES``.
    """
    package = _package(name)
    words = {
        "name": name,
        "Name": "".join(word.capitalize() for word in name.split("-")),
        "distribution": f"{OWN}-{name}",
        "package": package,
        "singular": registry(family).singular,
        "try_it": FAMILIES[family].format(name=name),
    }
    root = importlib.resources.files("rpiae.cli") / "template"
    files = {}
    for folder in ("common", family):
        for path, text in _texts(root / folder):
            place = path.removesuffix(SUFFIX).replace("src/package/", f"src/{package}/")
            files[place] = Template(text).substitute(words)
    return dict(sorted(files.items()))


def write(files: Mapping[str, str], folder: Path) -> None:
    """Write files into a folder that is new or empty.

    Raises:
        UsageError: if it holds anything.
        RunError: if it cannot be written.
    """
    try:
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise UsageError(f"{folder} exists already: name a new folder with --out")
        for path, text in files.items():
            target = folder / PurePosixPath(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror}") from None


def _package(name: str) -> str:
    return f"{OWN}_{name.replace('-', '_')}"


def _texts(folder: Traversable, below: str = "") -> Iterator[tuple[str, str]]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _texts(item, f"{below}{item.name}/")
        elif item.name.endswith(SUFFIX):
            yield f"{below}{item.name}", item.read_text(encoding="utf-8")


def _check_free(name: str, family: str) -> None:
    """Refuse names for a plugin that are taken; it says by whom."""
    known = registry(family)
    for wanted in (name, f"{name}-s"):
        try:
            selection = known.select(wanted)
        except UnknownNameError:
            continue
        record = selection.preset or selection.entry
        assert record is not None
        raise UsageError(
            f"the {known.singular} {wanted!r} is already registered by {record.distribution}: choose "
            "another name"
        )
    distribution, package = f"{OWN}-{name}", _package(name)
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        if importlib.util.find_spec(package) is None:
            return
        raise UsageError(
            f"a package {package} is importable already: choose another name"
        ) from None
    raise UsageError(f"{distribution} {version} is installed already: choose another name")
