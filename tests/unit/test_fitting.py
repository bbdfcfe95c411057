"""The fit of a bridge: principal components, once in a run, whatever happens to the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from jaxtyping import Float
from torch import Tensor

from rpiae import runs
from rpiae.bridges.linear import LinearBridge
from rpiae.core.errors import ConfigError, TrainingError, UsageError
from rpiae.core.model.contracts import Features, Fit
from rpiae.core.training import events
from rpiae.core.training.task import TrainerInputs
from rpiae.core.training.trainer import train
from rpiae.tasks.tokenizer.fitting import fit_bridge
from rpiae.testing import SyntheticImages
from tests.toys import DECODERS, ENCODERS, toy_run

SHORT = ("recipe.max_steps=3", "recipe.batch_size=2", "recipe.checkpoint_every=1")


def linear_run(folder: Path, recipe: str = "quick") -> TrainerInputs:
    return toy_run(folder, "vit", "linear4", "vit", recipe, *SHORT)


def state(inputs: TrainerInputs) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in inputs.task.model.state_dict().items()}


def fits(seen: list[events.Event]) -> list[str]:
    return [e.text for e in seen if isinstance(e, events.Notice) and "fitted to" in e.text]


def test_the_bridge_is_fitted_once_before_the_first_stage_that_has_it_in_its_path(
    tmp_path: Path,
) -> None:
    inputs = linear_run(tmp_path)
    seen: list[events.Event] = []
    for event in train(inputs):
        if isinstance(event, events.Notice) and "fitted to" in event.text:
            fitted = state(inputs)
        seen.append(event)
    (text,) = fits(seen)
    assert text.startswith("bridge linear4 fitted to 512 tokens of training crops: keeps ")
    place = next(i for i, e in enumerate(seen) if isinstance(e, events.Notice) and e.text == text)
    ended = [e.stage for e in seen[:place] if isinstance(e, events.StageEnded)]
    begun = [e.stage for e in seen[place:] if isinstance(e, events.StageStarted)]
    assert (ended, begun) == (["tune"], ["compress", "polish"])

    inputs.task.model.load_state_dict(fitted)
    with torch.no_grad():
        tokens = inputs.task.model.eval().features(inputs.data.crops(8, seed=0)).tokens
    bridge = LinearBridge(features=32, latent_channels=4)
    bridge.fit([Features(tokens, (1, 8, 8))])
    for name, tensor in bridge.state_dict().items():
        torch.testing.assert_close(fitted[f"bridge.{name}"], tensor, atol=1e-4, rtol=1e-4)


def test_stages_train_the_fitted_map_further(tmp_path: Path) -> None:
    inputs = linear_run(tmp_path)
    before: dict[str, Tensor] = {}
    for event in train(inputs):
        if isinstance(event, events.Notice) and "fitted to" in event.text:
            before = state(inputs)
    after = state(inputs)
    moved = {n for n in before if n.startswith("bridge") and not torch.equal(before[n], after[n])}
    assert moved == {
        f"bridge.{part}.{n}" for part in ("encoder", "decoder") for n in ("weight", "bias")
    }


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights with which a whole run ended."""
    inputs = linear_run(tmp_path_factory.mktemp("whole"))
    list(train(inputs))
    return state(inputs)


@pytest.mark.parametrize("stop_after", [3, 4, 6])
def test_a_resumed_run_is_fitted_as_the_unbroken_one(
    ended: dict[str, Tensor], tmp_path: Path, stop_after: int
) -> None:
    count = 0
    run = train(linear_run(tmp_path))
    for event in run:
        count += isinstance(event, events.StepDone)
        if count == stop_after and isinstance(event, (events.CheckpointSaved, events.StageEnded)):
            break
    run.close()
    resumed = linear_run(tmp_path)
    rest = list(train(resumed, resume=True))
    assert len(fits(rest)) == (stop_after == 3)
    assert all(torch.equal(value, ended[name]) for name, value in state(resumed).items())


def test_a_recipe_without_the_bridge_in_any_path_fits_it_at_its_end(tmp_path: Path) -> None:
    inputs = linear_run(tmp_path, "rae")
    seen = list(train(inputs))
    assert isinstance(seen[-1], events.Notice)
    assert fits(seen) == [seen[-1].text]
    assert inputs.task.model.bridge.fitted
    again = linear_run(tmp_path, "rae")
    list(train(again, resume=True))
    assert all(torch.equal(value, state(inputs)[n]) for n, value in state(again).items())


def test_a_tokenizer_that_is_gone_on_with_is_not_fitted_again(
    ended: dict[str, Tensor], tmp_path: Path
) -> None:
    second = linear_run(tmp_path)
    second.task.model.load_state_dict(ended)
    assert fits(list(train(second))) == []


def test_too_few_tokens_are_told(tmp_path: Path) -> None:
    class OneCrop(SyntheticImages):
        def crops(self, count: int, *, seed: int) -> Float[Tensor, "n 3 s s"]:
            return self.images[:1, :, :8, :8]

    inputs = evolve(linear_run(tmp_path), data=OneCrop(32))
    with pytest.raises(UsageError, match=r"32 channels need at least 32 tokens, .* gave 4"):
        list(train(inputs))


@pytest.mark.parametrize(
    ("recipe", "when"), [("quick", "before stage compress"), ("rae", "after the last stage")]
)
def test_the_plan_says_when_the_bridge_is_fitted(recipe: str, when: str) -> None:
    tree = {"encoder": "tiny", "bridge": "linear4", "decoder": DECODERS["vit"]}
    without = ("lpips", "adversarial") if recipe == "rae" else ()
    notices = runs.plan(runs.resolve(tree | {"recipe": recipe}, without=without)).notices
    assert f"bridge 'linear4' is fitted to features of training crops {when}" in notices
    assert not any("trains the bridge" in text for text in notices)


def test_more_latent_channels_than_features_are_refused_in_the_plan() -> None:
    tree = {"encoder": ENCODERS["vit"], "bridge": "linear64", "decoder": DECODERS["vit"]}
    with pytest.raises(ConfigError, match=r"linear64: latent_channels = 64 is more than the 32"):
        runs.plan(runs.resolve(tree | {"recipe": "quick"}))


def test_features_that_are_not_finite_are_told() -> None:
    bridge = LinearBridge(features=4, latent_channels=2)
    tokens = torch.randn(1, 16, 4)
    tokens[0, 3, 1] = float("nan")
    with pytest.raises(TrainingError, match="not finite"):
        bridge.fit([Features(tokens, (1, 4, 4))])
    assert not bridge.fitted


def test_constant_features_are_no_reason_to_stumble() -> None:
    bridge = LinearBridge(features=3, latent_channels=2, whiten=True)
    features = Features(torch.full((2, 4, 3), 7.0), (1, 2, 2))
    assert bridge.fit([features]) == Fit(tokens=8, kept=1.0)
    made = bridge.decode(bridge.encode(features).mode()).tokens
    assert torch.equal(made, features.tokens)


def test_no_batches_are_too_few_tokens() -> None:
    def none() -> Iterator[Features]:
        yield Features(torch.empty(0, 4, 3), (1, 2, 2))

    with pytest.raises(UsageError, match="gave 0"):
        LinearBridge(features=3, latent_channels=2).fit(none())


def test_a_second_process_takes_the_first_ones_fit_and_reads_no_crops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = linear_run(tmp_path / "a"), linear_run(tmp_path / "b")
    outcomes: list[Any] = []

    def call(function: Callable[[], Any]) -> Any:
        outcomes.append(function())
        return outcomes[0]

    class NoCrops(SyntheticImages):
        def crops(self, count: int, *, seed: int) -> Float[Tensor, "n 3 s s"]:
            raise AssertionError("read crops")

    monkeypatch.setattr(first.runtime, "on_main", call)
    told = list(fit_bridge(first.task.model, first.data, first.runtime, seed=0))
    monkeypatch.setattr(second.runtime, "on_main", lambda _: outcomes.pop())
    assert told == list(fit_bridge(second.task.model, NoCrops(32), second.runtime, seed=0))
    assert len(told) == 1
    assert second.task.model.bridge.fitted
    for name, value in state(first).items():
        assert torch.equal(value, state(second)[name]), name


def test_features_are_normalised_as_the_bridge_sees_them(tmp_path: Path) -> None:
    inputs = linear_run(tmp_path)
    mean, var = torch.full((32, 1, 1), 2.0), torch.full((32, 1, 1), 4.0)
    inputs.task.model.register_buffer("feature_mean", mean)
    inputs.task.model.register_buffer("feature_var", var)
    list(fit_bridge(inputs.task.model, inputs.data, inputs.runtime, seed=0))
    with torch.no_grad():
        tokens = inputs.task.model.features(inputs.data.crops(8, seed=0)).tokens
    expected = ((tokens - 2) / 2).mean(dim=(0, 1))
    torch.testing.assert_close(inputs.task.model.bridge.mean, expected, atol=1e-5, rtol=1e-4)
