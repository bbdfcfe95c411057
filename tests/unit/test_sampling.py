"""Generators with their tokenizers: who belongs to whom, classes, and what a sample depends on."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from attrs import evolve

import rpiae
from rpiae.core.config.generation import FlowConfig
from rpiae.core.errors import CheckpointError, RunError, UnknownNameError, UsageError
from rpiae.core.model.folders import load_tokenizer, save_tokenizer
from rpiae.core.model.generator_folders import load_generator_model, save_generator
from rpiae.sampling import LoadedGenerator, SamplingConfig, load_generator, samples
from rpiae.sampling.classes import equal_labels, labels_in, random_labels, uneven
from tests.toy_generators import NAMES, SHAPE, toy_generator, toy_tokenizer, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("sampling") / "g")


@pytest.fixture(scope="module")
def generator(folder: Path) -> LoadedGenerator:
    return load_generator(folder)


def test_public_names() -> None:
    assert rpiae.load_generator is load_generator
    assert {"GENERATORS", "GeneratorConfig", "load_generator"} <= set(rpiae.__all__)
    assert rpiae.GENERATORS.entries()[0].name == "dit"


def test_a_config_of_sampling_needs_no_torch() -> None:
    code = "import sys; import rpiae.sampling.configs; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_thousand_samples_do_not_depend_on_the_batch_size(generator: LoadedGenerator) -> None:
    classes = [NAMES[index % 3] for index in range(1000)]
    how = {"guidance": 1.5, "steps": 3, "seed": 3}
    few = generator.sample(classes, batch_size=7, **how)
    many = generator.sample(classes, batch_size=64, **how)
    assert few.shape == (1000, 3, 8, 8)
    assert few.std() > 0.01
    assert (few - many).abs().max() < 1e-5
    assert few.min() >= 0
    assert few.max() <= 1
    latents = generator.sample_latents(classes, batch_size=7, **how)
    assert latents.shape == (1000, *SHAPE)
    assert latents.std() > 0.1
    assert (latents - generator.sample_latents(classes, batch_size=64, **how)).abs().max() < 1e-5


def test_a_sample_is_of_its_seed_index_and_class_alone(generator: LoadedGenerator) -> None:
    together = generator.sample_latents(["cat", "dog", None, "ship"], steps=4)
    alone = generator.sample_latents("dog", steps=4, indices=[1])
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0)
    turned = generator.sample_latents([None, 0], steps=4, indices=[2, 0])
    torch.testing.assert_close(together[[2, 0]], turned, atol=1e-5, rtol=0)
    for other in (
        generator.sample_latents("dog", steps=4, indices=[2]),
        generator.sample_latents("ship", steps=4, indices=[1]),
        generator.sample_latents("dog", steps=4, indices=[1], seed=1),
        generator.sample_latents(None, steps=4, indices=[1]),
    ):
        assert (other - alone).abs().max() > 1e-3


def test_samples_batch_by_batch(generator: LoadedGenerator) -> None:
    config = SamplingConfig(steps=3, guidance=2.0, sampler="heun")
    labels = [0, 1, 2, 3, 0]
    batches = list(samples(generator, config, labels, seed=5, start=7, batch_size=2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    whole = generator.sample(
        ["cat", "dog", "ship", None, "cat"], steps=3, guidance=2.0, sampler="heun", seed=5,
        indices=range(7, 12),
    )  # fmt: skip
    torch.testing.assert_close(torch.cat(batches), whole, atol=1e-5, rtol=0)


def test_guidance_of_one_changes_nothing_and_more_does(generator: LoadedGenerator) -> None:
    plain = generator.sample_latents(NAMES, steps=4)
    assert torch.equal(generator.sample_latents(NAMES, steps=4, guidance=1.0), plain)
    strong = generator.sample_latents(NAMES, steps=4, guidance=3.0)
    assert ((strong - plain).abs().amax(dim=(2, 3)) > 1e-4).all()  # every sample and channel
    never = generator.sample_latents(NAMES, steps=4, guidance=3.0, interval=(0.001, 0.002))
    torch.testing.assert_close(never, plain, atol=1e-6, rtol=0)
    none = generator.sample_latents(NAMES, steps=4, guidance=0.0)
    without = generator.sample_latents([None] * 3, steps=4)
    torch.testing.assert_close(none, without, atol=1e-5, rtol=0)


def test_a_weaker_run_guides(folder: Path, tmp_path: Path) -> None:
    weak = write_run(tmp_path / "weak", seed=1)
    guided = load_generator(folder, guide=weak)
    plain = guided.sample_latents(NAMES, steps=3)
    only_weak = guided.sample_latents(NAMES, steps=3, guidance=0.0)
    torch.testing.assert_close(
        only_weak, load_generator(weak).sample_latents(NAMES, steps=3), atol=1e-5, rtol=0
    )
    assert (guided.sample_latents(NAMES, steps=3, guidance=2.0) - plain).abs().max() > 1e-3
    # Without classes there is still somebody to be guided away from.
    assert guided.sample_latents([None], steps=3, guidance=2.0).isfinite().all()
    # A config without a guide is away from no class, whatever was loaded before.
    own = SamplingConfig(steps=3, guidance=2.0)
    found = torch.cat(list(samples(guided, own, [0, 1, 2], seed=0)))
    wanted = load_generator(folder).sample(NAMES, steps=3, guidance=2.0)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_another_guide_does_not_take_the_place_of_the_loaded_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak, other = (write_run(tmp_path / name, seed=seed) for name, seed in (("w", 1), ("o", 2)))
    found = load_generator(folder, guide=weak)
    before, guide = found.sample_latents(NAMES, steps=2, guidance=2.0), found.guide
    config = SamplingConfig(steps=2, guidance=2.0, guide=str(other))
    once = torch.cat(list(samples(found, config, [0, 1, 2], seed=0)))
    shutil.rmtree(other)  # it is loaded once
    torch.testing.assert_close(torch.cat(list(samples(found, config, [0, 1, 2], seed=0))), once)
    assert found.guide is guide
    assert found.guide_folder == str(weak)
    assert torch.equal(found.sample_latents(NAMES, steps=2, guidance=2.0), before)
    # Nor does it become the guide of a generator that has none.
    plain = load_generator(folder)
    wanted = plain.sample_latents(NAMES, steps=2, guidance=2.0)
    list(samples(plain, evolve(config, guide=str(weak)), [0], seed=0))
    assert plain.guide is None
    assert torch.equal(plain.sample_latents(NAMES, steps=2, guidance=2.0), wanted)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": 2.5}, "steps must be a whole number, got 2.5"),
        ({"steps": "3"}, "steps must be a whole number"),
        ({"guidance": "1.5"}, "guidance must be a number, got '1.5'"),
        ({"interval": (0.1,)}, "interval must be two times (low, high), got (0.1,)"),
        ({"interval": 0.5}, "interval must be two times"),
        ({"interval": ("0", 1)}, "interval must be two times"),
        ({"batch_size": -1}, "batch_size is a whole number of samples, 1 or more, got -1"),
        ({"batch_size": 0}, "1 or more, got 0"),
        ({"batch_size": 1.5}, "1 or more, got 1.5"),
        ({"indices": [0.5]}, "indices are whole numbers, one per sample, not [0.5]"),
        ({"indices": 3}, "indices are whole numbers"),
        ({"seed": 0.5}, "seed is a whole number, got 0.5"),
    ],
)
def test_values_that_make_no_sense(
    generator: LoadedGenerator, changes: dict[str, object], told: str
) -> None:
    for method in (generator.sample, generator.sample_latents):
        with pytest.raises(UsageError, match=re.escape(told)):
            method(["cat"], **changes)  # type: ignore[arg-type]


def test_numbers_of_arrays_and_tensors_are_numbers(generator: LoadedGenerator) -> None:
    wanted = generator.sample_latents([1], steps=2, guidance=2.0)
    for one in (np.int64(1), np.array(1), torch.tensor(1), torch.tensor([1]), np.array([1])):
        found = generator.sample_latents(
            one, steps=np.int64(2), guidance=np.float32(2), seed=np.int64(0)
        )
        assert torch.equal(found, wanted)
    config = SamplingConfig(steps=np.int64(3), guidance=np.float64(2), interval=[0, 1])  # type: ignore[arg-type]
    assert config == SamplingConfig(steps=3, guidance=2.0)
    assert type(config.steps) is int
    assert type(config.guidance) is float


def test_a_guide_of_something_else(folder: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", tokenizer_seed=1)
    with pytest.raises(UsageError, match="differs from the generator in its tokenizer"):
        load_generator(folder, guide=other)
    renamed = write_run(tmp_path / "renamed", names=("cat", "dog", "frog"))
    with pytest.raises(UsageError, match="in its classes: a guide is"):
        load_generator(folder, guide=renamed)
    flow = FlowConfig(normalisation="channel")
    tokenizer = load_tokenizer(folder)
    save_generator(toy_generator(tokenizer, flow=flow), tmp_path / "one")
    save_generator(toy_generator(tokenizer, flow=flow, std=2.0), tmp_path / "two")
    with pytest.raises(UsageError, match="in its normalisation"):
        load_generator(tmp_path / "one", tokenizer=folder, guide=tmp_path / "two")
    assert load_generator(tmp_path / "one", tokenizer=folder, guide=tmp_path / "one").guide


def test_normalised_latents_are_given_back_as_the_tokenizer_has_them() -> None:
    tokenizer = toy_tokenizer()
    flow = FlowConfig(normalisation="channel", shift=1.0)
    plain = LoadedGenerator(
        model=toy_generator(tokenizer, flow=FlowConfig(shift=1.0)), tokenizer=tokenizer
    )
    scaled = LoadedGenerator(
        model=toy_generator(tokenizer, flow=flow, std=2.0), tokenizer=tokenizer
    )
    torch.testing.assert_close(
        scaled.sample_latents(NAMES, steps=2), 0.5 + 2.0 * plain.sample_latents(NAMES, steps=2)
    )


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (
            "cta",
            "no class named 'cta'. Did you mean 'cat'? There are 3, numbered from 0: cat, dog, ship",
        ),
        (3, "no class 3. There are 3, numbered from 0"),
        ([0, -1], "no class -1"),
        ([0.5], "a class is a number, a name or None, not 0.5"),
        ([], "classes are empty"),
    ],
)
def test_classes_that_are_not_there(generator: LoadedGenerator, classes: object, told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        generator.sample(classes, steps=1)  # type: ignore[arg-type]


def test_a_generator_without_labels_has_no_classes() -> None:
    tokenizer = toy_tokenizer()
    found = LoadedGenerator(model=toy_generator(tokenizer, names=()), tokenizer=tokenizer)
    with pytest.raises(UsageError, match="had no labels, so it knows no classes"):
        found.sample([0])
    with pytest.raises(UsageError, match="these have none: ask for classes, name a weaker"):
        found.sample([None], guidance=1.5)
    assert found.sample([None, None], steps=2).shape == (2, 3, 8, 8)


def test_samples_without_a_class_among_others(generator: LoadedGenerator) -> None:
    how = {"steps": 2, "guidance": 2.0}
    alone = generator.sample_latents([None, None, "cat"], batch_size=1, **how)
    together = generator.sample_latents([None, None, "cat"], **how)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)


def test_indices_are_one_per_class(generator: LoadedGenerator) -> None:
    with pytest.raises(UsageError, match="3 indices for 2 classes"):
        generator.sample([0, 1], indices=range(3))


def test_classes_in_a_list() -> None:
    def found(text: str, names: tuple[str, ...] = NAMES) -> list[int]:
        return labels_in(text, num_classes=len(names), names=names)

    assert found("0-2,dog, 0") == [0, 1, 2, 1, 0]
    assert found("ship") == [2]
    folders = ("0", "1", "10", "2")  # as sorted: the folder 2 is class 3
    assert found("2", folders) == [3]
    assert found("0-2", folders) == [0, 1, 3]
    assert found("tench, Tinca tinca", ("tench, Tinca tinca",)) == [0]
    assert found("a-b", ("a-b", "c")) == [0]
    for text, told in (
        ("2-0", "the smaller number comes first"), ("0-9", "no class 9"), (" , ", "names no class"),
        ("7", "no class 7"), ("0-999999999", "no class 999999999"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=told):
            found(text)
    with pytest.raises(UnknownNameError, match="Did you mean 'ship'"):
        found("cat,shp")


def test_labels_of_many_samples() -> None:
    assert equal_labels([4, 7], 5) == (4, 7, 4, 7, 4)
    assert equal_labels(range(3), 4) == equal_labels(range(3), 40)[:4]
    assert uneven(range(3), 6) == ""
    assert "it is 2 of each, and one more of the first 1" in uneven(range(3), 7)
    assert "of the first 2 of 3 classes" in uneven(range(3), 2)
    drawn = random_labels(5, 1000, seed=1)
    assert set(drawn) == set(range(5))
    assert random_labels(5, 100, seed=1) == drawn[:100]
    assert random_labels(5, 100, seed=2) != drawn[:100]


def test_which_tokenizer(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert load_generator(moved / "generator").tokenizer is not None  # beside it
    shutil.rmtree(moved / "tokenizer")
    assert load_generator(moved).tokenizer is not None  # where it was when it was trained
    assert load_generator(moved, tokenizer=folder).tokenizer is not None


def test_a_tokenizer_that_moved(tmp_path: Path) -> None:
    run = write_run(tmp_path / "g")
    (run / "tokenizer").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError) as caught:
        load_generator(run)
    told = str(caught.value)
    assert f"which was {run / 'tokenizer'} when it was trained" in told
    assert "--tokenizer" in told
    assert "tokenizer=" in told
    load_generator(run, tokenizer=tmp_path / "elsewhere")


def test_another_tokenizer_of_equal_shape_is_refused(folder: Path, tmp_path: Path) -> None:
    save_tokenizer(toy_tokenizer(1), tmp_path / "other")
    with pytest.raises(UsageError, match="is another one than that on whose latents") as caught:
        load_generator(folder, tokenizer=tmp_path / "other")
    assert str(folder / "tokenizer") in str(caught.value)


def test_folders_of_the_other_kind(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a tokenizer, and a generator is wanted"):
        load_generator(folder / "tokenizer")
    with pytest.raises(CheckpointError, match="holds a generator, and a tokenizer is wanted"):
        load_generator(folder, tokenizer=folder / "generator")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_generator(folder / "nowhere")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_generator(folder, guide=folder / "nowhere")


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    run = write_run(tmp_path / "g")
    model = load_generator_model(run)
    next(model.parameters()).data.flatten()[0] = torch.nan
    name = next(name for name, _ in model.named_parameters())
    save_generator(model, run / "generator")
    with pytest.raises(CheckpointError, match=f"{name} holds values that are not finite"):
        load_generator(run)


def test_samples_that_are_no_numbers(generator: LoadedGenerator) -> None:
    with pytest.raises(RunError, match="the latent of sample 4 is not finite: lower the guidance"):
        generator.sample_latents(NAMES[:2], steps=40, guidance=1e39, indices=[4, 5])


def test_in_bf16(folder: Path, generator: LoadedGenerator) -> None:
    half = load_generator(folder, precision="bf16")
    found, wanted = half.sample(NAMES, steps=3), generator.sample(NAMES, steps=3)
    assert found.dtype == torch.float32
    assert 0 < (found - wanted).abs().max() < 0.1
