"""Devices that a setting names, and the place for what every verb takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import rpiae
from rpiae import runs
from rpiae.cli.main import main
from rpiae.core.errors import ConfigError, UsageError
from rpiae.core.model.folders import save_tokenizer
from rpiae.core.runtime.devices import choose_device
from tests.toys import DECODERS, toy_run

NAMELESS = (
    "", "nonsense", "meta", "mps", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "cpu:1", "CUDA", "cuda:0 ",
    "cuda:1\n", "auto:1", "a" * 10**5,
)  # fmt: skip
NOT_HERE = ("cuda:99", "cuda:128", "cuda:999999999")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    return save_tokenizer(
        toy_run(folder, "vit", "vb4", "vit", "quick").task.model, folder / "saved"
    )


@pytest.mark.parametrize("device", NAMELESS)
def test_what_names_no_device_is_refused_everywhere(device: str, saved: Path) -> None:
    for use in (choose_device, lambda name: rpiae.load(saved, device=name)):
        with pytest.raises(UsageError, match="use auto, cpu, cuda or cuda:N") as told:
            use(device)
        assert len(str(told.value)) < 300
    tree = {"encoder": "tiny", "bridge": "vb4", "decoder": DECODERS["vit"], "recipe": "quick"}
    with pytest.raises(ConfigError, match="use auto, cpu, cuda or cuda:N"):
        runs.plan(runs.resolve(tree | {"device": device}))


@pytest.mark.parametrize("device", NOT_HERE)
def test_a_device_that_is_not_here_is_told_and_can_be_planned_for(device: str, saved: Path) -> None:
    with pytest.raises(UsageError, match=r"sees \d+ CUDA devices"):
        rpiae.load(saved, device=device)
    tree = {"encoder": "tiny", "bridge": "vb4", "decoder": DECODERS["vit"], "recipe": "quick"}
    assert runs.plan(runs.resolve(tree | {"device": device})).device == device


def test_a_tokenizer_is_put_where_it_is_asked_for(saved: Path) -> None:
    for device in (None, "cpu", torch.device("cpu")):
        assert rpiae.load(saved, device=device).device.type == "cpu"
    assert rpiae.load(saved, device=torch.device("meta")).device.type == "meta"
    with pytest.raises(UsageError, match="CUDA devices"):
        rpiae.load(saved, device=torch.device("cuda:99"))


@pytest.mark.parametrize("sides", [(0, 0), (0, 2), (2, 0)])
def test_an_empty_latent_is_told(sides: tuple[int, int], saved: Path) -> None:
    with pytest.raises(UsageError, match=r"the latent is empty: its shape is \(1, 4, "):
        rpiae.load(saved).decode(torch.zeros(1, 4, *sides))


@pytest.mark.parametrize("before", [True, False])
def test_what_every_verb_takes_may_stand_before_it(
    before: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = f"brought_{before}".lower()
    (tmp_path / f"{name}.py").write_text("print('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    verb, options = ["list", "encoders"], ["--import", name]
    assert main([*options, *verb] if before else [*verb, *options]) == 0
    assert capsys.readouterr().err == "imported\n"


def test_debug_before_the_verb_shows_where() -> None:
    with pytest.raises(UsageError):
        main(["--debug", "show", "nothing-like-this"])
