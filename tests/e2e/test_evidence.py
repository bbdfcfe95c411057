"""Evaluations, probes, ablations and reports as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rpiae.cli import main
from tests.commands import rpiae, rpiae_alone
from tests.e2e.test_cli import TOY
from tests.unit.test_evaluation import write_classes

METRICS = "psnr,ssim,rfd:tiny,ifd:tiny,probe,rotation,drift,latents"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy run, and two sets of labelled pictures."""
    made = tmp_path_factory.mktemp("evidence")
    write_classes(made / "train", seed=1)
    write_classes(made / "test", seed=2)
    (made / "toy.toml").write_text(TOY)
    rpiae("build", "--config", "toy.toml", "--data", "folder:train", "--out", "a", cwd=made)
    return made


DATA = ("--data", "folder:test", "--train", "folder:train")


def test_a_table_and_json_of_the_same_numbers(folder: Path) -> None:
    out, err = rpiae("eval", "a", *DATA, "--metrics", METRICS, cwd=folder)
    assert "psnr_pooled" in out
    assert "26 images of test (no resize" in out or "26 images of " in out
    assert "sha256" in out
    assert "warning: a: rfd[tiny]" in err
    assert "3.png" in err, "the damaged picture is named"
    printed, _ = rpiae("eval", "a", *DATA, "--metrics", METRICS, "--json", cwd=folder)
    found = json.loads(printed)["a"]
    for line in out.splitlines():
        name, _, value = line.partition(" ")
        if name in found["metrics"]:
            assert float(value) == pytest.approx(found["metrics"][name], rel=1e-3)
    assert found["protocol"]["metrics"]["rfd[tiny]"]["extractor"]["weights_sha256"]
    saved = json.loads((folder / "a" / "evaluation.json").read_text())
    assert saved["metrics"] == found["metrics"]


def test_two_processes_give_the_numbers_of_one(folder: Path) -> None:
    options = (*DATA, "--metrics", METRICS, "--json")
    one, two = (
        json.loads(
            command("eval", "a", *options, *more, cwd=folder, OMP_NUM_THREADS="1")[0]
        )["a"]
        for command, more in ((rpiae, ()), (rpiae_alone, ("--processes", "2")))
    )  # fmt: skip
    assert one["metrics"].keys() == two["metrics"].keys()
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-9), name
    assert one["protocol"] == two["protocol"]


def test_a_run_on_what_it_held_out(folder: Path) -> None:
    out, _ = rpiae("eval", "a", "--metrics", "psnr,drift", cwd=folder)
    assert "held out" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval", "nowhere"), "nowhere does not exist"),
        (("eval", "a", "--metrics", "pnsr"), "no metric named 'pnsr'. Did you mean 'psnr'"),
        (("eval", "a", "--metrics", ","), "--metrics names none"),
        (("eval", "a", "--metrics", "psnr:3"), "'psnr' takes no argument"),
        (("eval", "a", "--metrics", "rfd:dinv2-b"), "'dinov2-b'"),
        (("eval", "a", "--metrics", "probe"), "needs labels"),
        (("eval", "a", *DATA, "--reference", "x.npz"), "without a protocol"),
        (("eval", "a", "--image-size", "8"), "--image-size is about --data"),
        (("eval", "a", "--write-reference", "x.npz"), "name a .safetensors file"),
        (("eval", "a", "--reference", "x.npz", "--metrics", "psnr"), "the metrics name 0"),
        (("eval", "a", "a", "--write-reference", "x"), "goes with one run"),
        (("probe", "tiny", "--train", "folder:train", "--test", "folder:train"), "both what is"),
        (("probe", "tniy", "--train", "folder:train", "--test", "folder:test"), "'tiny'"),
        (("probe", "train", "--train", "folder:train", "--test", "folder:test"), "train has no"),
        (("ablate",), "name a study's file"),
        (("ablate", "none.toml"), "cannot read none.toml"),
        (("ablate", "toy.toml"), "no such field in StudyConfig"),
        (("ablate", "--vary", "bridge"), "not of the form"),
        (("ablate", "--vary", "bridge=vb4", "--data", "sample", "--metrics", "pnsr"), "'psnr'"),
        (("ablate", "--vary", "bridge=vb4", "--vary", "bridge=vb8"), "is given twice"),
        (("ablate", "--vary", "bridge=vb4", "--job", "a=1", "--data", "sample"), "--job goes with"),
        (("report", "a"), "study.json"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(
    folder: Path,
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "x.npz").touch()
    monkeypatch.chdir(folder)
    assert main(arguments) in (1, 2)
    err = capsys.readouterr().err
    assert message in err
    assert err.count("rpiae: ") == 1
    assert "unexpected" not in err


def test_from_axes_to_a_page(folder: Path) -> None:
    study = (
        "ablate", "--config", "toy.toml", "--data", "folder:train", "--vary", "bridge=vb4,identity",
        "--seeds", "2", "--eval-data", "folder:test", "--metrics", "psnr,drift", "--processes", "2",
        "--out", "x",
    )  # fmt: skip
    # The same bits need as many threads; a study divides the processors between its runs.
    out, err = rpiae(*study, cwd=folder, OMP_NUM_THREADS="1")
    assert "4 of 4 runs done, 0 failed" in out
    assert err.count("started ") == 4
    out, err = rpiae(*study, cwd=folder)
    assert "4 runs in x, 4 of them done already" in err
    assert "started" not in err
    out, _ = rpiae("report", "x", cwd=folder)
    assert "report.html" in out
    page = (folder / "x" / "report.html").read_text()
    assert "bridge=identity" in page
    assert "data:image/png;base64," in page
    tables = (folder / "x" / "report.md").read_text()
    assert "| bridge=vb4 | 2 |" in tables
    assert "rpiae ablate --config toy.toml" in tables
    # A row's command makes its run again, to the bit.
    run = next((folder / "x" / "runs").glob("bridge=vb4-seed0-*"))
    again = ("build", "--config", str(run / "config.toml"), "--out", "again")
    rpiae(*again, cwd=folder, OMP_NUM_THREADS="1")
    made = [path / "tokenizer" / "model.safetensors" for path in (run, folder / "again")]
    assert made[0].read_bytes() == made[1].read_bytes()


def test_the_plan_of_a_study(folder: Path) -> None:
    out, _ = rpiae(
        "ablate", "--config", "toy.toml", "--data", "folder:train", "--vary", "bridge=vb4,vb8",
        "--dry-run", cwd=folder,
    )  # fmt: skip
    assert "bridge=vb8" in out
    assert not (folder / "runs").exists()


def test_metrics_are_listed(folder: Path) -> None:
    out, _ = rpiae("list", "metrics", "--json", cwd=folder)
    names = {row["name"] for row in json.loads(out)["metrics"]}
    assert {"psnr", "ssim", "lpips", "rfd", "rfid", "ifd", "probe", "drift", "latents"} <= names
    assert "space = " in rpiae("show", "rfd", cwd=folder)[0]
