"""What tensors leave open: told by the user, said by config files, published, or else asked for.

Configs are those of the reference (``stage_1.params`` in a YAML file) and of transformers (``config.json``
of an encoder and of a decoder, ``preprocessor_config.json``). One that a user names has to fit the
tensors; one that merely lies beside the weights counts where it does.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen

from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.runtime.files import nested_too_deeply, open_regular, read_json
from rpiae.core.runtime.names import printable, shown

logger = logging.getLogger(__name__)

Triple = tuple[float, float, float]
Table = Mapping[str, Any]

#: Bytes of a config file at most, and files that are looked at beside weights.
_MOST_BYTES, _MOST_FILES = 1 << 20, 64

_YAML, _JSON = (".yaml", ".yml"), (".json",)

#: What a user named comes first, then what that names, then what lies beside the weights.
_NAMED, _REFERRED, _BESIDE = range(3)


@frozen(kw_only=True)
class Told:
    """What a user says of a file beside its name.

    Attributes:
        encoder: a preset, or a folder in transformers' layout, for a decoder that comes alone.
        encoder_weights: the preset's weights; a file.
        stats: file of the features' statistics.
        configs: config files, or folders of them.
        num_heads: attention heads, of a tokenizer's encoder or of a generator.
        decoder_heads: attention heads of a tokenizer's decoder.
        eps: epsilon of the encoder's LayerNorms.
        mean, std: the encoder's input statistics.
        weights_key: which weights to take where a file has several.
        tokenizer: folder of the tokenizer of a generator.
        head_depth, num_classes: see ``rpiae.interop.reference.lightningdit.Untold``.
        file: name in a repository of the Hub, or in a folder.
        revision: branch, tag or commit of the Hub.
    """

    encoder: str = ""
    encoder_weights: str = ""
    stats: str = ""
    configs: tuple[str, ...] = ()
    num_heads: int | None = None
    decoder_heads: int | None = None
    eps: float | None = None
    mean: Triple | None = None
    std: Triple | None = None
    weights_key: str = ""
    tokenizer: str = ""
    head_depth: int | None = None
    num_classes: int | None = None
    file: str = ""
    revision: str = ""


@frozen(kw_only=True)
class Document:
    """A config file.

    Attributes:
        path: where it is.
        content: the table that it holds.
        rank: how it was found; the lowest counts first.
    """

    path: Path
    content: Table
    rank: int

    @property
    def params(self) -> Table:
        """``stage_1.params`` of the reference's YAML, or nothing."""
        stage = self.content.get("stage_1")
        params = stage.get("params") if isinstance(stage, dict) else None
        return params if isinstance(params, dict) else {}

    def tables(self) -> Iterator[Table]:
        """All tables in it, the outer ones first."""
        waiting: list[Any] = [self.content]
        for each in waiting:
            if isinstance(each, dict):
                yield each
                waiting += each.values()
            elif isinstance(each, list):
                waiting += each


@frozen
class Facts:
    """Answers to what tensors leave open, and how they were come by.

    Attributes:
        source: the file, for messages.
        told: what the user said.
        documents: config files, those that count first at the front.
        notes: sentences on what was assumed or left out.
        read: the files that were read.
        asked: what nobody answered.
    """

    source: str
    told: Told = field(factory=Told)
    documents: Sequence[Document] = ()
    notes: list[str] = field(factory=list)
    read: list[str] = field(factory=list)
    asked: list[str] = field(factory=list)

    def said(self, fits: Callable[[Table], bool], key: str) -> tuple[Any, str] | None:
        """What the config files say of a key, in the tables that fit, and the file that says it.

        A null says nothing.

        Raises:
            UsageError: if two of them that count alike disagree.
        """
        found: list[tuple[Any, Document]] = []
        for document in self.documents:
            if found and document.rank > found[0][1].rank:
                break
            tables = (t for t in document.tables() if t.get(key) is not None and fits(t))
            found += [(table[key], document) for table in tables]
        if not found:
            return None
        value, first = found[0]
        for other, document in found[1:]:
            if other != value:
                raise UsageError(
                    f"{key} is {shown(value)} in {first.path} and {shown(other)} in {document.path}: "
                    "name the one that belongs to the file with --config"
                )
        self.note_read(first.path)
        return value, str(first.path)

    def settle(
        self,
        what: str,
        *,
        told: Any = None,
        said: tuple[Any, str] | None = None,
        known: Any = None,
        known_of: str = "",
        option: str = "",
    ) -> Any:
        """An answer, or None where there is none, which is then asked for.

        Args:
            what: the question in words.
            told: the user's answer.
            said: that of a config file, and the file.
            known: what is published.
            known_of: of what it is published.
            option: the option that tells it.
        """
        if told is not None:
            return told
        if said is not None:
            return said[0]
        if known is not None:
            self.notes.append(f"{what}: {_worded(known)}, as of {known_of}")
            return known
        self.asked.append(f"{what} ({option})")
        return None

    def heads(self, what: str, width: int, **sources: Any) -> int:
        """Attention heads, which divide the width; 1 where nobody says them, which is then asked for.

        Args:
            what: whose, in words.
            width: of the tokens.
            sources: see ``settle``.

        Raises:
            UsageError: if they do not divide it.
        """
        heads = self.settle(f"attention heads of {what}", **sources)
        if heads is None:
            return 1
        if type(heads) is not int or heads < 1 or width % heads:
            raise UsageError(
                f"{shown(heads)} attention heads of {what} do not divide the width of {width}"
            )
        return heads

    def check_none_asked(self) -> None:
        """Ask for everything that is still open at once.

        Raises:
            UsageError: if anything is.
        """
        if self.asked:
            raise UsageError(
                f"{self.source} does not say, and no config file beside it does: "
                f"{' · '.join(self.asked)}. Say it with these options, or name the reference's "
                "config files (its YAML, config.json of encoder and decoder) with --config"
            )

    def params(self, problems: Callable[[Table], Iterable[str]]) -> tuple[Table, Path | None]:
        """The reference's ``stage_1.params`` that fit the tensors, and their file.

        Args:
            problems: how a table contradicts the tensors.

        Raises:
            UsageError: if one that the user named does not fit, or several do.
        """
        fitting: list[Document] = []
        for document in self.documents:
            if not document.params:
                continue
            wrong = list(problems(document.params))
            if not wrong:
                fitting.append(document)
            elif document.rank == _NAMED:
                raise UsageError(
                    f"{document.path} does not belong to {self.source}: {', '.join(wrong)}"
                )
            else:
                self.notes.append(f"{document.path} is of another model: {', '.join(wrong)}")
        best = [d for d in fitting if d.rank == min(each.rank for each in fitting)]
        if len({repr(each.params) for each in best}) > 1:
            names = ", ".join(str(each.path) for each in best)
            raise UsageError(f"{names} all fit {self.source}: name one of them with --config")
        if not best:
            return {}, None
        self.note_read(best[0].path)
        return best[0].params, best[0].path

    def note_read(self, path: Path) -> None:
        """Remember a file that was read."""
        if printable(str(path)) not in self.read:
            self.read.append(printable(str(path)))


def find_documents(folder: Path, named: Sequence[str]) -> tuple[Document, ...]:
    """Config files that a user named, those that they refer to, and those in a folder.

    Raises:
        UsageError: if one that was named cannot be read.
        CheckpointError: the same, of a JSON file.
    """
    found = [
        Document(path=path, content=_content(path), rank=_NAMED)
        for name in named
        for path in _configs_of(Path(name).expanduser())
    ]
    for path in _configs_in(folder):
        try:
            found.append(Document(path=path, content=_content(path), rank=_BESIDE))
        except (CheckpointError, UsageError) as error:  # nobody said that it belongs to the weights
            logger.warning("%s, and does not count", error)
    for document in tuple(found):
        for folder in referred(document, "encoder_config_path", "decoder_config_path"):
            found += [
                Document(path=path, content=_content(path), rank=max(document.rank, _REFERRED))
                for path in _configs_in(folder)
            ]
    found.sort(key=lambda each: each.rank)
    return tuple({each.path.resolve(): each for each in reversed(found)}.values())[::-1]


def referred(document: Document, *keys: str) -> list[Path]:
    """Files and folders that a YAML of the reference names and that are there.

    Its paths are relative to the reference's repository, in which it lies.
    """
    return [
        path
        for key in keys
        if isinstance(name := document.params.get(key), str)
        for path in [located(document.path, name)]
        if path is not None
    ]


def located(config: Path, name: str) -> Path | None:
    """What a path in a config means: seen from its folder or one above it, or from here."""
    bases = (*config.resolve().parents, Path.cwd())
    return next((base / name for base in bases if name and os.path.exists(base / name)), None)


def _configs_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if not (found := _configs_in(path)):
        raise UsageError(f"--config {path} is a folder without YAML and JSON files")
    return found


def _configs_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    names = sorted(os.listdir(folder))
    paths = [folder / n for n in names if n.endswith((*_YAML, *_JSON)) and ".index." not in n]
    return [p for p in paths[:_MOST_FILES] if p.is_file() and p.stat().st_size <= _MOST_BYTES]


def _content(path: Path) -> Table:
    """The table of a YAML or JSON file."""
    content = _read_yaml(path) if path.suffix in _YAML else read_json(path)
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no table, and is no config file")
    return content


def _read_yaml(path: Path) -> Any:
    import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own

    try:
        with open_regular(path) as file:
            text = file.read(_MOST_BYTES)
        # A few aliases of aliases are a table without end.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise UsageError(f"{path} uses YAML's aliases: write out what they stand for")
        content = yaml.safe_load(text)
    except UsageError:  # a ValueError too
        raise
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{path} is not a YAML file: {reason}") from None
    if nested_too_deeply(content):
        raise UsageError(f"{path} is nested too deeply")
    return content


def _worded(value: Any) -> str:
    return ", ".join(f"{each:g}" for each in value) if isinstance(value, tuple) else f"{value}"
