"""The table of docs/video.md: the rows of studies/video.toml, and what they have to beat.

    rpiae ablate studies/video.toml --out runs/video --processes 2
    python scripts/compare_video.py runs/video

Prints every row's numbers on the held-out clips as mean ± standard deviation over the seeds, as Markdown,
with rows of their own for every fourth frame through the image tokenizers of rows ``frames`` and
``frames-longer``, and straight lines in between.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from rpiae.core.runtime.processes import Runtime
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.evaluation.saved import evaluate_saved
from rpiae.studies.configs import read_study
from rpiae.studies.reading import read_results
from rpiae.studies.statistics import Statistics

#: Metric → head of its column and digits.
COLUMNS = {
    "psnr": ("PSNR, dB", 2),
    "psnr_first": ("frame 0", 2),
    "psnr_rest": ("rest", 2),
    "ssim": ("SSIM", 3),
    "temporal": ("temporal error", 2),
    "flicker": ("flicker", 3),
    "drift": ("drift", 3),
    "trajectory": ("trajectory", 3),
    "latent_values_per_second": ("latent values/s", 0),
}
#: Rows whose tokenizers are the baseline, with what is said of each.
IMAGES = {"frames": "(i)", "frames-longer": "(i), three times the steps"}
EVERY = 4


def baseline(folders: Sequence[Path], config: EvaluationConfig) -> list[Mapping[str, float]]:
    """Numbers of every fourth frame through these tokenizers, interpolated."""
    runtime = Runtime(device="cpu", precision=config.precision)
    return [
        dict(evaluate_saved(folder, config, runtime=runtime, every=EVERY).metrics)
        for folder in folders
    ]


def line(name: str, runs: Sequence[Mapping[str, float]]) -> str:
    """A row of the table."""
    cells = []
    for metric, (_, digits) in COLUMNS.items():
        values = [run[metric] for run in runs if metric in run]
        cells.append(Statistics(values=tuple(values)).text(digits))
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Read a study's folder and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of rpiae ablate studies/video.toml")
    folder = parser.parse_args().folder
    study = Path(__file__).parent.parent / "studies" / "video.toml"
    results = read_results(folder)
    print(f"| row | {' | '.join(head for head, _ in COLUMNS.values())} |")
    print(f"|---|{'---|' * len(COLUMNS)}")
    for row in results.rows:
        print(line(f"{row.summary}", [run.metrics or {} for run in row.measured]))
    for row, said in IMAGES.items():
        images = results.row(row)
        assert images is not None
        folders = [run.folder for run in images.measured]
        name = f"(iv) every {EVERY}th frame of {said}, interpolated"
        print(line(name, baseline(folders, read_study(study).evaluation)))


if __name__ == "__main__":
    main()
