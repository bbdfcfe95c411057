"""Valid inputs of the command line, and ways to spoil them."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import signal
import struct
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import tomli_w
from attrs import frozen
from PIL import Image

from rpiae import build
from rpiae.cli import main
from rpiae.core.model.folders import save_tokenizer
from rpiae.core.runtime.names import printable
from rpiae.latents.layout import INDEX_FILE

#: Seconds that one input may take: far above what the slowest takes on a busy machine.
LIMIT = 60

TOY = """
bridge = "vb4"
precision = "fp32"
device = "cpu"
data = "sample"
seed = 7
[encoder]
name = "vit"
width = 16
depth = 1
num_heads = 1
native_grid = 8
pretrained = false
[decoder]
name = "vit"
width = 16
depth = 1
num_heads = 1
mlp_hidden = 32
[recipe]
name = "quick"
max_steps = 1
batch_size = 2
"""
STAGES = """
[[recipe.stages]]
name = "one"
train = ["bridge", "decoder"]
noise = 0.1
steps = 2
batch_size = 2
ema = 0.9
[recipe.stages.optimiser]
learning_rate = 1e-3
betas = [0.9, 0.95]
warmup_steps = 1
[[recipe.stages.terms]]
loss = "l1"
weight = 1.0
[[recipe.stages.terms]]
loss = { name = "kl" }
ramp_steps = 3
"""
STUDY = """
name = "toy"
summary = "which width"
seeds = [0, 1]
without = ["lpips"]
[base]
encoder = "tiny"
recipe = "quick"
data = "sample"
"recipe.max_steps" = 2
[vary]
bridge = ["vb4", "vb8"]
[[rows]]
name = "plain"
groups = ["main"]
set = { "recipe.stages[0].noise" = 0.1 }
[[rows]]
name = "other"
seeds = [3]
[groups]
main = "All"
[[columns]]
metric = "psnr"
unit = "dB"
digits = 2
[[comparisons]]
name = "first against second"
first = "plain [bridge=vb4]"
second = "plain [bridge=vb8]"
metrics = ["psnr"]
[frontier]
x = "psnr"
y = "ssim"
"""

#: Values that no field, or hardly any, was made for.
ODD: tuple[Any, ...] = (
    0, -1, 1, 3, 100_000, 10**9, 10**15, 2**63 - 1, 2**63, 2**64 + 1, 10**400, 0.0, -1.0, 0.5, 1e300,
    5e-324, float("nan"), float("inf"), True, False, "", " ", "[/red]", "[red]", "a" * 300, "~nobody/x",
    "~", "\0", "..", "../x", "/", "é", "\u202e", "\x1b[31m", "line\nline", "vb99999999999999999999", "tiny",
    "vb4", "folder:", "folder:/", "folder:\0", "parquet:.", "hf:x/y", "webdataset:pipe:true", "timm:", ":",
    "identity", "quick", "5", [], [[]], [1, -1], ["a"], [0.9, 2.0], [10**9, 10**9], {}, {"name": "tiny"},
    {"name": 5}, {"name": "vit", "width": -4}, {"": {}}, {"a": {"b": {"c": 1}}},
)  # fmt: skip
TEXTS = (
    *(str(value) for value in ODD if isinstance(value, (str, int, float))), "9" * 5000, "[" * 3000,
    "{a=" * 200, "1979-05-27", "0x" + "f" * 6000, "a." * 3000 + "b",
)  # fmt: skip


@frozen(kw_only=True)
class Given:
    """One spoilt input.

    Attributes:
        argv: the command.
        words: of which a message names one.
    """

    argv: tuple[str, ...]
    words: tuple[str, ...]


@frozen(kw_only=True)
class Outcome:
    """What the command line made of it."""

    code: int
    text: str

    def objection(self, given: Given) -> str:
        """What is wrong with the answer, or nothing."""
        if self.code not in (0, 1, 2):
            return f"exit code {self.code}"
        if "unexpected " in self.text or "Traceback" in self.text:
            return "an answer that nobody thought of"
        if self.code and not any(word in self.text for word in given.words):
            return "a message that names neither field nor file"
        return ""


class _Hang(BaseException):
    """Raised where an input takes longer than its limit."""


def answer(given: Given) -> Outcome:
    """Run a command in this process, in the given folder."""

    def stop(*_: object) -> None:
        raise _Hang

    out, err = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(given.argv)
    except _Hang:
        code, _ = -1, err.write(f"no answer within {LIMIT} s")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return Outcome(code=code, text=err.getvalue())


# --- spoiling ----------------------------------------------------------------------------------


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in a tree but the tree itself."""
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def spoilt_tree(tree: Any, random: Random, odd: tuple[Any, ...] = ODD) -> Any:
    """A tree with one to three places replaced, removed, renamed or put elsewhere."""
    tree = copy.deepcopy(tree)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        *front, last = random.choice(list(places(tree)) or [("x",)])
        node = tree
        for step in front:
            node = node[step]
        kind = random.randrange(8)
        if kind == 0:
            del node[last]
        elif kind == 1 and isinstance(node, dict):
            node[random.choice(("zzz", "name", "", "[/x]", "a" * 300))] = node.pop(last)
        elif kind == 2:
            node[last] = [node[last]]
        elif kind == 3:
            node[last] = {"name": node[last]}
        else:
            node[last] = copy.deepcopy(random.choice(odd))
        if not any(True for _ in places(tree)):
            break
    return tree


def spoilt_bytes(data: bytes, random: Random) -> bytes:
    """Bytes with some flipped, cut, doubled, or replaced by others."""
    at = random.randrange(len(data) or 1)
    kind = random.randrange(8)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[at // 2 :]
    if kind == 2:
        return random.choice(
            (b"", b"\0", b"\xff\xfe", b"{}", b"[]", b"null", b"[" * 100_000, b'{"a":' * 5000)
        )
    if kind == 3:
        return (
            data[:at]
            + random.choice((b"\0", b"\xff", b"\xed\xa0\x80", b"9" * 5000, b"-", b'"'))
            + data[at:]
        )
    flipped = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        # The beginning of a file is where its structure is.
        place = random.randrange(min(len(flipped), random.choice((16, 512, len(flipped)))) or 1)
        if flipped:
            flipped[place] ^= 1 << random.randrange(8)
    return bytes(flipped)


def spoilt_file(path: Path, random: Random) -> None:
    """Damage a file, as JSON where it is JSON, or put something else in its place."""
    kind = random.randrange(10)
    if kind == 0:
        path.unlink()
        random.choice(
            (path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to(path.name), lambda: None)
        )()
    elif kind < 5 and path.suffix == ".json":
        tree = spoilt_tree(json.loads(path.read_bytes()), random, (*ODD, None, "\ud800"))
        path.write_text(json.dumps(tree))
    elif kind < 5 and path.suffix == ".safetensors":
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = spoilt_tree(json.loads(data[8 : 8 + length]), random, (*ODD, None))
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    else:
        path.write_bytes(spoilt_bytes(path.read_bytes(), random))


# --- inputs ------------------------------------------------------------------------------------


class Inputs:
    """Valid inputs in a folder, from which spoilt ones are made.

    Args:
        folder: an empty folder, which the process works in.
        trained: whether there are a finished run and its latents; that takes some seconds.
    """

    def __init__(self, folder: Path, *, trained: bool) -> None:
        self.folder = folder
        self._count = 0
        images = folder / "photos"
        images.mkdir()
        for i in range(4):
            noise = np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(images / f"{i}.png")
        (folder / "run.toml").write_text(TOY)
        tree = tomllib.loads(TOY)
        save_tokenizer(
            build(
                encoder=tree["encoder"],
                bridge=tree["bridge"],
                decoder=tree["decoder"],
                pretrained=False,
            ),
            folder / "tokenizer",
        )
        self.kinds: list[Callable[[Random], Given]] = [
            self.config, self.config, self.command, self.command, self.tokenizer, self.study,
        ]  # fmt: skip
        if trained:
            os.environ["OMP_NUM_THREADS"] = "1"
            for command in (
                ("build", "--config", "run.toml", "--out", "run"),
                ("encode", "tokenizer", "folder:photos", "--out", "latents", "--image-size", "32"),
            ):
                assert main(command) == 0
            self.kinds += [self.latents, self.checkpoint, self.run]

    def _fresh(self, name: str) -> Path:
        """A copy of a file or folder under a name of its own; the one before goes."""
        for old in self.folder.glob("x-*"):
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        self._count += 1
        path = self.folder / f"x-{self._count}-{Path(name).name}"
        source = self.folder / name
        if source.is_dir():
            shutil.copytree(source, path)
        return path

    def _written(self, text: str, name: str, random: Random) -> Path:
        path = self._fresh(name)
        if random.randrange(4):
            path.write_text(tomli_w.dumps(spoilt_tree(tomllib.loads(text), random)))
        else:
            path.write_bytes(spoilt_bytes(text.encode(), random))
        return path

    def config(self, random: Random) -> Given:
        """A config file."""
        text = random.choice((TOY, TOY + STAGES))
        path = self._written(text, "run.toml", random)
        argv = random.choice((("config", "check"), ("build", "--dry-run", "--config")))
        return Given(argv=(*argv, path.name), words=_fields(text, path.name))

    def study(self, random: Random) -> Given:
        """A study's file."""
        path = self._written(STUDY, "study.toml", random)
        return Given(argv=("ablate", path.name, "--dry-run"), words=_fields(STUDY, path.name))

    def command(self, random: Random) -> Given:
        """A command line."""
        self._fresh("nothing")
        argv = list(random.choice(COMMANDS))
        for _ in range(random.choice((1, 1, 2))):
            kind = random.randrange(6)
            at = random.randrange(1, len(argv))
            if argv[at] == "--dry-run":  # without it, a run would begin
                continue
            if kind == 0:
                del argv[at]
            elif kind == 1:
                argv.insert(at, random.choice((*TEXTS, "--zzz", "--", "-")))
            elif kind < 4 and "--set" in argv[:-1]:
                place = random.choice((*FIELDS, *TEXTS))
                argv[argv.index("--set") + 1] = f"{place}={random.choice(TEXTS)}"
            else:
                argv[at] = random.choice(TEXTS)
            if len(argv) < 2:
                break
        words = [
            w
            for text in argv
            for w in (
                text[:20].rstrip("/"),
                text.partition("=")[0],
                printable(text)[:20],
                repr(text)[1:21],
            )
            if w
        ]
        return Given(
            argv=tuple(argv), words=(*words, "usage: ", "rpiae list", "expected", "data.", "data ")
        )

    def tokenizer(self, random: Random) -> Given:
        """A damaged tokenizer."""
        path = self._fresh("tokenizer")
        if random.randrange(2):  # as one that was saved without digests
            config = json.loads((path / "config.json").read_text())
            kept = {name: value for name, value in config.items() if "sha256" not in name}
            (path / "config.json").write_text(json.dumps(kept))
        spoilt_file(path / random.choice(("config.json", "model.safetensors")), random)
        argv = ("reconstruct", path.name, "photos/0.png", "--out", "x-both.png")
        return Given(argv=argv, words=(path.name,))

    def latents(self, random: Random) -> Given:
        """Damaged latents."""
        path = self._fresh("latents")
        shard = next(path.glob("*.safetensors")).name
        spoilt_file(path / random.choice((INDEX_FILE, shard)), random)
        argv = ("decode", path.name, "--run", "tokenizer", "--out", "x-pictures")
        return Given(argv=argv, words=(path.name,))

    def checkpoint(self, random: Random) -> Given:
        """A run with a damaged checkpoint."""
        path = self._fresh("run")
        for file in sorted((path / "checkpoints").iterdir())[-2:]:
            spoilt_file(file, random)
        return Given(argv=("build", "--resume", path.name, "--dry-run"), words=(path.name,))

    def run(self, random: Random) -> Given:
        """A run's folder of which any file is damaged."""
        path = self._fresh("run")
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)
        spoilt_file(random.choice([*files, path / "config.toml", path / "summary.json"]), random)
        argv = random.choice(
            (
                ("build", "--resume", path.name, "--dry-run"),
                ("eval", path.name, "--data", "folder:photos", "--metrics", "psnr"),
                ("build", "--config", "run.toml", "--init", path.name, "--dry-run"),
                ("reconstruct", path.name, "photos/0.png", "--out", "x-both.png"),
                ("report", path.name),
            )
        )
        return Given(argv=argv, words=(path.name,))


def _fields(text: str, *more: str) -> tuple[str, ...]:
    """Words that a message about a file may name: it, and the fields that it should have."""
    keys = {str(step) for path in places(tomllib.loads(text)) for step in path}
    return (*more, *keys, "encoder", "bridge", "decoder")


COMMANDS = tuple(
    tuple(line.split())
    for line in """
build --dry-run --config run.toml --set seed=3
build --dry-run --encoder tiny --bridge vb8 --decoder vit-t --data sample --seed 3 --set seed=3
build --dry-run --config run.toml --data folder:photos --set data.image_size=32 --device cpu
build --dry-run --config run.toml --data folder:photos --without kl --precision fp32
build --dry-run --config run.toml --init tokenizer --out x-out
build --resume tokenizer --dry-run --set recipe.max_steps=3
bench --repeats 0 --config run.toml --set seed=3
ablate --vary bridge=vb4,vb8 --seeds 2 --dry-run --json --set recipe.max_steps=2
ablate --vary recipe.stages[0].noise=0,0.4 --dry-run --data sample --eval-data sample
list encoders --json
list plugins --check
show vb8 --json
config check run.toml
config new x-new.toml
plugins new x-part --out x-plugin --family bridges
reconstruct tokenizer photos/0.png --out x-both.png --device cpu
decode latents --out x-pictures --limit 1 --run tokenizer
eval tokenizer --data folder:photos --metrics psnr --images 2 --image-size 32 --set data.image_size=32
stats tokenizer folder:photos --images 2 --image-size 32 --workers 0 --dry-run --set data.held_out=2
report photos --out x-report
fetch tiny
""".strip().splitlines()
)
FIELDS = (
    "seed", "out", "device", "precision", "encoder", "encoder.name", "encoder.width", "encoder.depth",
    "encoder.num_heads", "encoder.mlp_ratio", "encoder.patch", "encoder.native_grid", "encoder.mean",
    "encoder.preset", "encoder.image_size", "bridge", "bridge.features", "bridge.latent_channels",
    "bridge.width", "bridge.blocks", "decoder", "decoder.width", "decoder.depth", "decoder.num_heads",
    "decoder.mlp_hidden", "decoder.patch", "decoder.stored_grid", "recipe", "recipe.name", "recipe.stages",
    "recipe.max_steps", "recipe.batch_size", "recipe.accumulate", "recipe.keep_checkpoints",
    "recipe.stages[0].name", "recipe.stages[0].train", "recipe.stages[0].noise", "recipe.stages[0].steps",
    "recipe.stages[0].epochs", "recipe.stages[0].ema", "recipe.stages[0].terms", "recipe.stages[0].terms[0]",
    "recipe.stages[0].terms[0].loss", "recipe.stages[0].terms[0].weight", "recipe.stages[0].optimiser.betas",
    "recipe.stages[0].optimiser.learning_rate", "recipe.stages[0].batch_size", "data", "data.name",
    "data.path", "data.image_size", "data.held_out", "data.workers", "data.buckets", "data.resize",
    "wandb_project", "requires", "init",
)  # fmt: skip
