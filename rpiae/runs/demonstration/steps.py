"""From scans to samples that are read: tokenizer, latents, generator, samples, each gone on with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

from attrs import frozen

from rpiae.core.config.tree import Tree, read_toml
from rpiae.core.errors import UsageError
from rpiae.core.model.folders import load_tokenizer, tokenizer_folder
from rpiae.core.model.saved import TOKENIZER
from rpiae.core.runtime.processes import Runtime
from rpiae.data.digits import NUM_CLASSES
from rpiae.data.listed import every_image
from rpiae.latents.index import read_index
from rpiae.latents.layout import INDEX_FILE, Settings
from rpiae.latents.writing import encode_dataset
from rpiae.runs.demonstration.reading import Read, read_samples
from rpiae.runs.folder import CONFIG_FILE, SUMMARY_FILE
from rpiae.runs.generating.resolving import resolve_generator
from rpiae.runs.generating.running import resume_generator, run_generator
from rpiae.runs.planning import Plan
from rpiae.runs.resolving import plan, resolve
from rpiae.runs.running import resume, run
from rpiae.sampling.configs import SamplingConfig
from rpiae.sampling.job import make_samples
from rpiae.sampling.loaded import LoadedGenerator, load_generator
from rpiae.sampling.plan import make_plan

#: Where it goes where nobody says.
OUT = "runs/digits"

#: What is trained; tuned for minutes on two cores.
TOKENIZER_RUN: Tree = {
    "encoder": "tiny", "bridge": "vb4", "decoder": "vit-t", "recipe": "quick",
    "data": {"name": "digits", "image_size": 16},
}  # fmt: skip
TOKENIZER_CHANGES = (
    "recipe.stages[0].steps=200", "recipe.stages[0].batch_size=32", "recipe.stages[1].steps=100",
    "recipe.stages[2].steps=60", "recipe.evaluate_every=0",
)  # fmt: skip
GENERATOR_RUN: Tree = {
    "generator": {"name": "dit", "width": 128, "depth": 4, "num_heads": 2},
    "recipe": {"name": "flow-quick", "max_steps": 600},
}

#: How it is sampled, and how many of each digit are read.
GUIDANCE, STEPS, PER_DIGIT = 2.0, 25, 32

#: Scans that all is trained on.
DATA = "digits:train"

Name: TypeAlias = Literal["tokenizer", "latents", "generator", "samples", "reading"]


@frozen(kw_only=True)
class Step:
    """A step of the way, to be gone through before the next one is asked for.

    Attributes:
        name: what it makes.
        folder: where.
        events: what happens, as what makes it tells it; nothing where it is there already.
        kept: whether it is.
    """

    name: Name
    folder: Path
    events: Iterator[Any]
    kept: bool = False


def first_plan(*, device: str = "auto", precision: str = "auto", seed: int = 0) -> Plan:
    """The plan of the first step, the tokenizer's run."""
    tree = _asked(Path(OUT), seed, device, precision) | TOKENIZER_RUN
    return plan(resolve(tree, overrides=TOKENIZER_CHANGES))


def demonstrate(
    out: str | os.PathLike[str] = OUT,
    *,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    tokenizer: tuple[str, ...] = (),
    generator: tuple[str, ...] = (),
    per_digit: int = PER_DIGIT,
) -> Iterator[Step]:
    """Train a tokenizer and a generator on handwritten digits, and have samples of it read.

    All lies in one folder, which may be moved: it is the generator's run, with its tokenizer's run and
    its latents inside. What is there already is kept, and what was begun is gone on with; where a step
    is interrupted, there is no next one.

    Args:
        out: the folder.
        seed, device, precision: of both runs.
        tokenizer, generator: changes of the runs' configs, as in ``--set``.
        per_digit: samples of each digit, guided and unguided ones.

    Raises:
        UsageError: if the folder holds something else, or another process is at it.
        RpiaeError: see the subclasses; nothing already saved is lost.
    """
    at = _Demonstration(Path(out), seed, device, precision)
    at.check()
    yield at.tokenizer((*TOKENIZER_CHANGES, *tokenizer))
    if not at.has_tokenizer:
        return
    yield at.latents()
    yield at.generator(generator)
    if not at.has_generator:
        return
    loaded = load_generator(at.folder, device=at.runtime().device)
    for kind, scale in (("guided", GUIDANCE), ("unguided", 1.0)):
        yield at.samples(loaded, kind, scale, per_digit)
    yield at.reading(loaded)


class _Demonstration:
    """The folder of a demonstration, and what is made in it."""

    def __init__(self, folder: Path, seed: int, device: str, precision: str) -> None:
        self.folder = folder
        self._seed = seed
        self._asked = _asked(folder, seed, device, precision)

    @property
    def has_tokenizer(self) -> bool:
        return (self.folder / TOKENIZER / SUMMARY_FILE).is_file()

    @property
    def has_generator(self) -> bool:
        return (self.folder / SUMMARY_FILE).is_file()

    def runtime(self) -> Runtime:
        """What encodes and samples."""
        return Runtime(device=str(self._asked["device"]), precision="fp32")

    def check(self) -> None:
        """Refuse a folder that is of another run, or of another seed.

        Raises:
            UsageError: if it is.
        """
        own = self.folder / TOKENIZER / CONFIG_FILE
        if not own.is_file():
            if (self.folder / CONFIG_FILE).is_file():
                raise UsageError(f"{self.folder} already holds a run: name another --out")
            return
        tree = read_toml(own)
        data = tree.get("data")
        if not isinstance(data, dict) or data.get("name") != TOKENIZER_RUN["data"]["name"]:
            raise UsageError(f"{own.parent} holds another run's tokenizer: name another --out")
        seed = tree.get("seed", 0)
        if seed != self._seed:
            raise UsageError(
                f"{self.folder} was begun with seed {seed}: say --seed {seed} to go on with it, or name "
                "another --out"
            )

    def tokenizer(self, changes: tuple[str, ...]) -> Step:
        """Its run."""
        folder = self.folder / TOKENIZER
        if self.has_tokenizer:
            return _kept("tokenizer", folder)
        if (folder / CONFIG_FILE).is_file():
            happened = resume(folder, changes=_computed(self._asked))
        else:
            tree = self._asked | TOKENIZER_RUN | {"out": str(folder)}
            happened = run(resolve(tree, overrides=changes))
        return Step(name="tokenizer", folder=folder, events=happened)

    def latents(self) -> Step:
        """Of the scans that the tokenizer was trained on."""
        folder, place = self.folder / "latents", self.folder / TOKENIZER
        if (folder / INDEX_FILE).is_file() and read_index(folder)[1].get("complete"):
            return _kept("latents", folder)
        model = load_tokenizer(place)
        assert model.config is not None
        images, fields = every_image(DATA, model.config, image_size=model.trained_size)
        happened = encode_dataset(
            model, images, folder, data=fields, tokenizer=tokenizer_folder(place),
            settings=Settings(), runtime=self.runtime(),
        )  # fmt: skip
        return Step(name="latents", folder=folder, events=happened)

    def generator(self, changes: tuple[str, ...]) -> Step:
        """Its run, in the folder itself."""
        if self.has_generator:
            return _kept("generator", self.folder)
        learned_from = {
            "latents": str(self.folder / "latents"), "tokenizer": str(self.folder / TOKENIZER),
        }  # fmt: skip
        if (self.folder / CONFIG_FILE).is_file():
            happened = resume_generator(self.folder, changes=_computed(self._asked) | learned_from)
        else:
            tree = self._asked | GENERATOR_RUN | learned_from | {"out": str(self.folder)}
            happened = run_generator(resolve_generator(tree, overrides=changes))
        return Step(name="generator", folder=self.folder, events=happened)

    def samples(self, loaded: LoadedGenerator, kind: str, scale: float, per_digit: int) -> Step:
        """Of every digit as many, in a file."""
        path = self._samples(kind)
        if path.is_file():
            return _kept("samples", path)
        path.parent.mkdir(parents=True, exist_ok=True)
        digits = tuple(digit for digit in range(NUM_CLASSES) for _ in range(per_digit))
        config = SamplingConfig(steps=STEPS, guidance=scale)
        made = make_plan(loaded, config, digits, path, seed=self._seed)
        happened = make_samples(loaded, made, path, runtime=self.runtime())
        return Step(name="samples", folder=path, events=happened)

    def reading(self, loaded: LoadedGenerator) -> Step:
        """What samples are read as."""

        def read() -> Iterator[Read]:
            yield read_samples(
                loaded, self.folder, guided=self._samples("guided"),
                unguided=self._samples("unguided"), guidance=GUIDANCE,
            )  # fmt: skip

        return Step(name="reading", folder=self.folder, events=read())

    def _samples(self, kind: str) -> Path:
        return self.folder / "samples" / f"{kind}.npz"


def _asked(folder: Path, seed: int, device: str, precision: str) -> Tree:
    return {"seed": seed, "device": device, "precision": precision, "out": str(folder)}


def _computed(asked: Tree) -> Tree:
    """Of what was asked, what may differ from the first call to the next."""
    return {"device": asked["device"]}


def _kept(name: Name, folder: Path) -> Step:
    return Step(name=name, folder=folder, events=iter(()), kept=True)
