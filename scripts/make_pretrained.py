"""Train the tokenizer and the generator that ship with rpiae, on CIFAR-10, and write their folders.

    python scripts/make_pretrained.py --data CIFAR10 --work runs/pretrained

Some three hours on two CPU cores: the tokenizer of studies/cifar10-vb16.toml, its parameters rounded to half
precision; the latents of that very file; the generator of studies/cifar10.toml on them, rounded too; and numbers of
both on the test images, for their cards. Every step goes on where it was stopped. CIFAR10 is a folder with
``train.parquet`` and ``test.parquet``. Copy what is in ``shipped`` into rpiae/pretrained.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from attrs import evolve

import rpiae
from rpiae.core.model.generator_folders import load_generator_model, save_generator

ROOT = Path(__file__).resolve().parents[1]

TOKENIZER, GENERATOR = "cifar10-vb16", "cifar10"

#: What the generator is measured with, besides the data.
SAMPLING = (
    "--steps", "25", "--guidance", "2", "--count", "2000", "--train-images", "10000", "--precision", "auto",
)  # fmt: skip


def command(*words: str) -> None:
    """A command of rpiae.

    Raises:
        SystemExit: if it fails.
    """
    done = subprocess.run([sys.executable, "-m", "rpiae", *words], cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"rpiae {' '.join(words)} failed")


def train(verb: str, config: str, run: Path, *words: str) -> None:
    """Train by a config of studies, or go on with it."""
    if (run / "summary.json").is_file():
        return
    if (run / "config.toml").is_file():
        command(verb, "--resume", str(run))
    else:
        command(verb, *words, "--config", f"studies/{config}.toml", "--out", str(run))


def make_tokenizer(data: Path, work: Path, shipped: Path) -> None:
    """Train the tokenizer, and write it rounded."""
    run = work / TOKENIZER
    train("build", TOKENIZER, run, "--set", f"data.path={data / 'train.parquet'}")
    if not shipped.is_dir():
        rpiae.save(rpiae.load(run), shipped, rounded_to=torch.float16)


def make_generator(data: Path, work: Path, tokenizer: Path, shipped: Path) -> None:
    """Encode with the rounded tokenizer, train the generator, and write it rounded."""
    latents, run = work / "latents", work / GENERATOR
    command(
        "encode", str(tokenizer), f"parquet:{data / 'train.parquet'}", "--out", str(latents),
        "--image-size", "32", "--flip", "--dtype", "bf16", "--precision", "bf16",
    )  # fmt: skip
    train("diffuse", GENERATOR, run, str(latents))
    if not shipped.is_dir():
        model = load_generator_model(run)
        model.facts = evolve(model.facts, tokenizer=TOKENIZER)  # by the name that it ships under
        save_generator(model, shipped, rounded_to=torch.float16)


def measure(data: Path, tokenizer: Path, generator: Path) -> None:
    """Numbers for the cards."""
    test = f"parquet:{data / 'test.parquet'}"
    command(
        "eval", str(tokenizer), "--data", test, "--image-size", "32",
        "--metrics", "psnr,ssim,rfd:tiny", "--images", "5000", "--precision", "auto",
    )  # fmt: skip
    command(
        "eval", str(generator), "--tokenizer", str(tokenizer), "--data", test,
        "--train", f"parquet:{data / 'train.parquet'}", "--metrics",
        "gfd:tiny,precision,recall,class-accuracy,nearest", *SAMPLING,
    )  # fmt: skip


def main() -> None:
    """Make what is not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10")
    parser.add_argument("--work", type=Path, default=Path("runs/pretrained"))
    arguments = parser.parse_args()
    data, work = arguments.data.resolve(), arguments.work.resolve()
    shipped = work / "shipped"
    tokenizer, generator = shipped / TOKENIZER, shipped / GENERATOR / "generator"
    make_tokenizer(data, work, tokenizer)
    make_generator(data, work, tokenizer, generator)
    measure(data, tokenizer, generator)


if __name__ == "__main__":
    main()
