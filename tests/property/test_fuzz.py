"""Bad input of every kind: no answer that nobody thought of, no hang, and every message names a place.

Every example is drawn from a fixed seed. ``RPIAE_FUZZ`` sets how many the slow test tries.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.property.fuzzing import COMMANDS, Given, Inputs, answer

QUICK = 60
SLOW = int(os.environ.get("RPIAE_FUZZ", "3000"))
CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
seeds = st.integers(0, 2**32)


def _inputs(folder: Path, *, trained: bool) -> Inputs:
    with contextlib.chdir(folder):
        return Inputs(folder, trained=trained)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return _inputs(tmp_path_factory.mktemp("quick"), trained=False)


@pytest.fixture(scope="module")
def all_inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return _inputs(tmp_path_factory.mktemp("slow"), trained=True)


def _check(inputs: Inputs, number: int) -> None:
    with contextlib.chdir(inputs.folder):
        random = Random(number)
        given = random.choice(inputs.kinds)(random)
        outcome = answer(given)
        objection = outcome.objection(given)
        assert not objection, f"{objection}: rpiae {given.argv}\n{outcome.text[:1000]}"


@pytest.mark.filterwarnings("ignore")
@seed(20261126)
@settings(max_examples=QUICK, deadline=None, database=None, suppress_health_check=CHECKS)
@given(seeds)
def test_some_spoilt_inputs(inputs: Inputs, number: int) -> None:
    _check(inputs, number)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@seed(11)
@settings(max_examples=SLOW, deadline=None, database=None, suppress_health_check=CHECKS)
@given(seeds)
def test_many_spoilt_inputs(all_inputs: Inputs, number: int) -> None:
    _check(all_inputs, number)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--set", "recipe.stages[0].name='../x'"), "recipe.stages[0].name"),
        (("--set", "recipe.stages[0].name='VICTIM/tokenizer'"), "path separator"),
        (("--set", "recipe.stages[0].name='.x'"), "begins with a dot"),
        (("--set", "recipe.stages[0].name=''"), "it is empty"),
        (("--set", f"recipe.stages[0].name='{'é' * 100}'"), "longer than 120 bytes"),
        (("--set", 'recipe.stages[0].name="a\\nb"'), "control characters"),
        (("--set", f"seed={'9' * 5000}"), "--set seed"),
        (("--set", f"seed={'[' * 3000}"), "--set seed"),
        (("--set", f"{'a.' * 3000}b=1"), "path=value"),
        (("--set", f"recipe.stages[{'9' * 5000}]=1"), "path=value"),
        (("--set", "[0]=1"), "there is no [0]"),
        (("--set", "seed=0x" + "f" * 6000), "64 bits"),
        (("--set", "encoder.mlp_ratio=1e300"), "encoder.mlp_ratio"),
        (("--set", "encoder.depth=1000000000"), "encoder.depth"),
        (("--set", "decoder.depth=1000000000"), "decoder.depth"),
        (("--set", "decoder.patch=1000000000000000"), "decoder.patch"),
        (("--set", "encoder.native_grid=100000"), "encoder.native_grid"),
        (("--set", "decoder.stored_grid=[-1, 1]"), "decoder.stored_grid"),
        (("--bridge", "vb99999999999999999999"), "bridge.latent_channels"),
        (("--encoder", "a" * 100_000), "no encoder named"),
        (("--seed", "9" * 5000), "--seed"),
        (("--data", "folder:~nosuchuser/x"), "nosuchuser"),
        (("--data", "folder:" + "a" * 300), "aaa"),
        (("--data", "folder:a\0b"), "null character"),
        (("--config", "a" * 300), "cannot read aaa"),
        (("--config", "/dev/zero"), "not a regular file"),
    ],
)
def test_what_was_once_unexpected(inputs: Inputs, arguments: tuple[str, ...], word: str) -> None:
    with contextlib.chdir(inputs.folder):
        config = (
            () if {"--config", "--encoder", "--bridge"} & {*arguments} else ("--config", "run.toml")
        )
        given = Given(argv=("build", "--dry-run", *config, *arguments), words=(word,))
        outcome = answer(given)
        assert not outcome.objection(given), outcome.text
        assert outcome.code in (1, 2)
        assert len(outcome.text) < 1500


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a = " + "[" * 40_000, "nested too deeply"),
        ("a = " + "[" * 200 + "]" * 200, "nested too deeply"),
        ("seed = " + "9" * 5000, "x.toml"),
        ("\0", "x.toml"),
    ],
)
def test_documents_that_no_reader_takes(inputs: Inputs, text: str, word: str) -> None:
    with contextlib.chdir(inputs.folder):
        Path("x.toml").write_text(text)
        for argv in (("config", "check", "x.toml"), ("ablate", "x.toml", "--dry-run")):
            outcome = answer(Given(argv=argv, words=("x.toml",)))
            assert outcome.code == 2
            assert "x.toml" in outcome.text
            assert word in outcome.text


def test_a_fifo_in_a_configs_place_is_not_waited_for(inputs: Inputs) -> None:
    with contextlib.chdir(inputs.folder):
        os.mkfifo("x-fifo.toml")
        outcome = answer(Given(argv=("config", "check", "x-fifo.toml"), words=()))
        assert outcome.text == "rpiae: cannot read x-fifo.toml: it is a FIFO, not a regular file\n"


def test_the_commands_that_are_spoilt_are_valid(inputs: Inputs) -> None:
    """A command that fails as it stands would hide what spoiling it does."""
    with contextlib.chdir(inputs.folder):
        for argv in COMMANDS:
            if argv[0] in ("list", "show", "config") or "--dry-run --config" in " ".join(argv):
                outcome = answer(Given(argv=argv, words=()))
                assert outcome.code == 0, (argv, outcome.text)
