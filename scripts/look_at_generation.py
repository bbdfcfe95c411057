"""A first look at what a generator makes of a latent: the tables and pictures of docs/generation.md.

    python scripts/train_small_cnn.py --train CIFAR10/train.parquet --test CIFAR10/test.parquet \
        --out runs/cnn.safetensors
    python scripts/look_at_generation.py --data CIFAR10 --cnn runs/cnn.safetensors --out runs/look

Trains the tokenizers of three rows of studies/claims.toml (seed 0), encodes the training images, trains one small
generator on each folder of latents, all alike, and one that predicts data on the wide latent; samples them with and
without guidance, and measures the samples. Every step goes on where it was stopped; what is there is not made again.
CIFAR10 is a folder with ``train.parquet`` and ``test.parquet``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from attrs import evolve, frozen
from PIL import Image

from rpiae.core.config.tree import dump_toml
from rpiae.studies.configs import read_study
from rpiae.studies.planning import plan_study

ROOT = Path(__file__).resolve().parents[1]

#: Metrics with the heads of their columns and their digits.
COLUMNS = {
    "gfd[tiny]": ("gFD, tiny", 2),
    "gfd[cnn]": ("gFD, cnn", 2),
    "precision[tiny]": ("precision", 3),
    "recall[tiny]": ("recall", 3),
    "class_accuracy[tiny]": ("class accuracy", 3),
}


@frozen(kw_only=True)
class Look:
    """One generator.

    Attributes:
        name: of its folders.
        row: of studies/claims.toml, whose tokenizer it has.
        overrides: of its run.
    """

    name: str
    row: str
    overrides: tuple[str, ...] = ()


LOOKS = (
    Look(name="rae", row="rae"),
    Look(name="rae-x", row="rae", overrides=("recipe.flow.prediction=x",)),
    Look(name="rpiae-vb8", row="rpiae-vb8"),
    Look(name="vae-vb8", row="vae-vb8"),
)


@frozen(kw_only=True)
class Settings:
    """Where, from what, and how much.

    Attributes:
        out: folder of everything.
        data: folder with CIFAR-10.
        cnn: weights of the small network that is one of the feature spaces.
        generator, steps, batch_size: of every generator's training.
        count, sampling_steps, guidance: of what is sampled and measured.
    """

    out: Path
    data: Path
    cnn: Path
    generator: str
    steps: int
    batch_size: int
    count: int
    sampling_steps: int
    guidance: float


def rpiae(*words: str, log: Path) -> None:
    """A command of rpiae, whose output goes to a file.

    Raises:
        SystemExit: if it fails.
    """
    with log.open("a", encoding="utf-8") as sink:
        done = subprocess.run(
            [sys.executable, "-m", "rpiae", *words], stdout=sink, stderr=subprocess.STDOUT, cwd=ROOT
        )
    if done.returncode:
        raise SystemExit(f"rpiae {' '.join(words)} failed, see {log}")


def tokenizers(settings: Settings) -> dict[str, Path]:
    """Run folder of each row's tokenizer, its config written down."""
    study = read_study(ROOT / "studies" / "claims.toml")
    images = study.base["data"] | {"path": str(settings.data / "train.parquet")}
    study = evolve(study, base={**study.base, "data": images})
    found = {}
    for row in plan_study(study, settings.out / "tokenizers"):
        if row.name in {look.row for look in LOOKS}:
            run = next(run for run in row.runs if run.seed == 0)
            folder = settings.out / "tokenizers" / row.name
            folder.parent.mkdir(parents=True, exist_ok=True)
            config = folder.with_suffix(".toml")
            config.write_text(dump_toml(run.resolved.config), encoding="utf-8")
            found[row.name] = folder
    return found


def build(folder: Path, settings: Settings) -> None:
    """Train a tokenizer, or go on with it, and encode the training images."""
    log = folder.with_suffix(".log")
    data = settings.data / "train.parquet"
    if not (folder / "summary.json").is_file():
        begun = (folder / "config.toml").is_file()
        start = ("--config", f"{folder}.toml", "--out", str(folder))
        rpiae("build", *(("--resume", str(folder)) if begun else start), log=log)
    rpiae(
        "encode", str(folder), f"parquet:{data}", "--out", f"{folder}-latents", "--image-size", "32",
        "--dtype", "bf16", "--precision", "bf16", log=log,
    )  # fmt: skip


def generate(look: Look, tokenizer: Path, settings: Settings) -> None:
    """Train a generator, or go on with it; sample from it and measure what it makes."""
    folder = settings.out / "generators" / look.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    if not (folder / "summary.json").is_file():
        if (folder / "config.toml").is_file():
            rpiae("diffuse", "--resume", str(folder), log=log)
        else:
            rpiae(
                "diffuse", f"{tokenizer}-latents", "--generator", settings.generator, "--recipe",
                "flow-quick", "--out", str(folder), *_set(_training(look, settings)), log=log,
            )  # fmt: skip
    for guidance in (1.0, settings.guidance):
        how = ("--guidance", f"{guidance:g}", "--steps", str(settings.sampling_steps))
        sheet = folder.with_name(f"{look.name}-{guidance:g}.png")
        if not sheet.is_file():
            rpiae("sample", str(folder), "--per-class", "8", *how, "--out", str(sheet), log=log)
        _measure(folder, sheet.with_suffix(".json"), how, settings, log)


def _training(look: Look, settings: Settings) -> Iterator[str]:
    yield "recipe.flow.shift=0"  # that of the latents' size
    yield "held_out=512"
    yield "compile=true"
    yield f"recipe.stages[0].steps={settings.steps}"
    yield f"recipe.stages[0].batch_size={settings.batch_size}"
    yield from look.overrides


def _set(overrides: Iterator[str]) -> Iterator[str]:
    for override in overrides:
        yield from ("--set", override)


def _measure(
    folder: Path, results: Path, how: Sequence[str], settings: Settings, log: Path
) -> None:
    """Numbers of a generator's samples, as JSON."""
    if results.is_file():
        return
    done = subprocess.run(
        [sys.executable, "-m", "rpiae", "eval", str(folder), "--data",
         f"parquet:{settings.data / 'test.parquet'}", "--train",
         f"parquet:{settings.data / 'train.parquet'}", "--metrics", metrics(settings.cnn), "--count",
         str(settings.count), "--train-images", str(settings.count), *how, "--json"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    with log.open("a", encoding="utf-8") as sink:
        sink.write(done.stderr)
    if done.returncode:
        raise SystemExit(f"rpiae eval {folder} failed: {done.stderr.strip().splitlines()[-1]}")
    results.write_text(done.stdout, encoding="utf-8")


def metrics(cnn: Path) -> str:
    """What is measured, of which ``COLUMNS`` shows the numbers."""
    return f"gfd:tiny,gfd:cnn:{cnn},precision,recall,class-accuracy"


def table(settings: Settings) -> Iterator[str]:
    """The numbers as Markdown."""
    yield f"| latent, prediction | guidance | {' | '.join(head for head, _ in COLUMNS.values())} |"
    yield f"|---|---|{'---|' * len(COLUMNS)}"
    for look in LOOKS:
        for guidance in (1.0, settings.guidance):
            path = settings.out / "generators" / f"{look.name}-{guidance:g}.json"
            numbers = metrics_of(json.loads(path.read_text(encoding="utf-8")))
            cells = [
                f"{numbers[name]:.{digits}f}" if name in numbers else "–"
                for name, (_, digits) in COLUMNS.items()
            ]
            yield f"| {look.name} | {guidance:g} | {' | '.join(cells)} |"


def picture(settings: Settings) -> Path:
    """Guided samples of all generators beside each other, in their order: half of each one's."""
    sheets = []
    for look in LOOKS:
        path = settings.out / "generators" / f"{look.name}-{settings.guidance:g}.png"
        with Image.open(path) as sheet:
            sheets.append(sheet.convert("RGB").crop((0, 0, sheet.width // 2, sheet.height)))
    gap = 12
    width = sum(sheet.width + gap for sheet in sheets) - gap
    whole = Image.new("RGB", (width, sheets[0].height), "white")
    left = 0
    for sheet in sheets:
        whole.paste(sheet, (left, 0))
        left += sheet.width + gap
    whole.save(settings.out / "look.png")
    return settings.out / "look.png"


def metrics_of(results: Mapping[str, Mapping[str, Any]]) -> Mapping[str, float]:
    """The numbers in what ``rpiae eval --json`` prints of one generator, by its folder."""
    (found,) = results.values()
    return found["metrics"]


def main() -> None:
    """Make what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10")
    parser.add_argument("--cnn", type=Path, required=True, help="of scripts/train_small_cnn.py")
    parser.add_argument("--out", type=Path, default=Path("runs/look"))
    parser.add_argument("--generator", default="dit-t")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--sampling-steps", type=int, default=15)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--processes", type=int, default=1, help="steps at a time")
    arguments = vars(parser.parse_args())
    at_a_time = arguments.pop("processes")
    paths = {name: arguments.pop(name).resolve() for name in ("data", "cnn", "out")}
    settings = Settings(**paths, **arguments)
    folders = tokenizers(settings)
    with ThreadPoolExecutor(at_a_time) as pool:
        list(pool.map(lambda folder: build(folder, settings), folders.values()))
        list(pool.map(lambda look: generate(look, folders[look.row], settings), LOOKS))
    print("\n".join(table(settings)))
    print(picture(settings))


if __name__ == "__main__":
    main()
