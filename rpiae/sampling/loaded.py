"""A generator together with its tokenizer: from classes to images."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rpiae.core.errors import RunError, UsageError
from rpiae.core.model.latent_generator import LatentGenerator
from rpiae.core.model.places import Word
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.devices import choose_device, sent
from rpiae.core.runtime.names import shown
from rpiae.latents.encoding import TOKENS_PER_BATCH
from rpiae.sampling.classes import Class, labels_of
from rpiae.sampling.configs import SamplingConfig
from rpiae.sampling.guidance import LabelledVelocity, check_guidable, guided
from rpiae.sampling.noise import noise_of
from rpiae.sampling.resolving import generator_named, load_finite, load_guide, tokenizer_of
from rpiae.sampling.samplers import sample
from rpiae.sampling.times import sampling_times

Sampler = Literal["euler", "heun"]
Precision = Literal["fp32", "bf16"]


class LoadedGenerator:
    """A generator, the tokenizer that decodes its latents, and a guide where there is one.

    Args:
        model, tokenizer, guide: on one device, in eval mode.
        guide_folder: where the guide is from.
        precision: what they are computed in; states and guidance are in fp32.
    """

    def __init__(
        self,
        *,
        model: LatentGenerator,
        tokenizer: RPiAE,
        guide: LatentGenerator | None = None,
        guide_folder: str = "",
        precision: Precision = "fp32",
    ) -> None:
        assert (guide is None) == (not guide_folder)
        self.model = model
        self.tokenizer = tokenizer
        self.guide = guide
        self.guide_folder = guide_folder
        self._guides = {} if guide is None else {guide_folder: guide}
        self.precision = precision

    @property
    def device(self) -> torch.device:
        """Where samples are computed."""
        return self.tokenizer.device

    @property
    def batch_size(self) -> int:
        """Samples at a time where no batch size is given."""
        _, rows, columns = self.model.facts.shape
        return max(1, TOKENS_PER_BATCH // (rows * columns))

    def labels(self, classes: Class | Iterable[Class]) -> list[int]:
        """Labels of classes given by number, by name, or as None, which is no class.

        Raises:
            UsageError: if there is no such class.
        """
        return labels_of(
            classes, num_classes=self.model.num_classes, names=self.model.facts.label_names
        )

    def sample(
        self,
        classes: Class | Iterable[Class],
        *,
        seed: int = 0,
        guidance: float = 1.0,
        steps: int = 50,
        sampler: Sampler = "euler",
        interval: tuple[float, float] = (0.0, 1.0),
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> Float[Tensor, "n 3 height width"]:
        """Images in [0, 1], on the CPU; each is a function of the seed, its index and its class alone.

        Args:
            classes: of each image: a number, a name, or None for no class.
            seed: of the noise.
            guidance: scale w ≥ 0; 1 is none. Away from the guide where one was loaded.
            steps: from noise to data.
            sampler: ``euler``, or ``heun``, which asks the model twice per step.
            interval: times inside of which guidance acts.
            indices: of the samples; 0, 1, … where not given.
            batch_size: samples at a time; changes them by no more than rounding.

        Raises:
            UsageError: if there is no such class, or a value makes no sense.
            RunError: if a sample is not finite.
        """
        config = SamplingConfig(
            steps=steps, sampler=sampler, guidance=guidance, interval=interval,
            guide=self.guide_folder,
        )  # fmt: skip
        labels = self.labels(classes)
        batches = image_batches(
            self, config, labels, _checked(indices, labels), seed=_seed(seed), batch_size=batch_size
        )
        return torch.cat([batch.cpu() for batch in batches])

    def sample_latents(
        self,
        classes: Class | Iterable[Class],
        *,
        seed: int = 0,
        guidance: float = 1.0,
        steps: int = 50,
        sampler: Sampler = "euler",
        interval: tuple[float, float] = (0.0, 1.0),
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> Float[Tensor, "n c h w"]:
        """Latents as the tokenizer decodes them, on the CPU; see ``sample``."""
        config = SamplingConfig(
            steps=steps, sampler=sampler, guidance=guidance, interval=interval,
            guide=self.guide_folder,
        )  # fmt: skip
        labels = self.labels(classes)
        batches = latent_batches(
            self, config, labels, _checked(indices, labels), seed=_seed(seed), batch_size=batch_size
        )
        return torch.cat([batch.cpu() for batch in batches])

    def guide_for(self, config: SamplingConfig) -> LatentGenerator | None:
        """The guide that a config names; another than the loaded one is loaded once,
        and does not take its place.

        Raises:
            UsageError, CheckpointError: see ``load_guide``.
        """
        if not config.guide:
            return None
        if config.guide not in self._guides:
            self._guides[config.guide] = load_guide(self.model, config.guide).to(self.device)
        return self._guides[config.guide]

    def _velocity(self, model: LatentGenerator) -> LabelledVelocity:
        def velocity(latents: Tensor, time: Tensor, labels: Tensor) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                return model.velocity(latents, sent(time, self.device), labels)

        return velocity

    @torch.no_grad()
    def latents_at_once(
        self, config: SamplingConfig, labels: Sequence[int], indices: Sequence[int], *, seed: int
    ) -> Float[Tensor, "n c h w"]:
        """Latents as the tokenizer decodes them, as one batch, on the device.

        Args:
            config: how they are made.
            labels, indices: class and index of each.
            seed: of the noise.

        Raises:
            RunError: if one is not finite.
        """
        guide = self.guide_for(config)
        velocity = guided(
            self._velocity(self.model), torch.tensor(labels, device=self.device), config,
            num_classes=self.model.num_classes,
            guide=None if guide is None else self._velocity(guide),
        )  # fmt: skip
        noise = sent(noise_of(seed, indices, self.model.facts.shape), self.device)
        times = sampling_times(config, self.model.shift)
        found = self.model.denormalised(sample(velocity, noise, times, config.sampler))
        _check_finite(found, "latent", indices)
        return found

    @torch.no_grad()
    def decoded(
        self, latents: Float[Tensor, "n c h w"], indices: Sequence[int]
    ) -> Float[Tensor, "n 3 height width"]:
        """Images in [0, 1] of latents as the tokenizer made them, on the device.

        Raises:
            RunError: if one is not finite.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            images = self.tokenizer.decode(latents)
        _check_finite(images, "image", indices)
        return images.float().clamp(0, 1)


def load_generator(
    folder: Word,
    *,
    revision: str = "",
    subfolder: str = "",
    tokenizer: Word | None = None,
    guide: Word | None = None,
    device: torch.device | str | None = None,
    precision: Precision = "fp32",
) -> LoadedGenerator:
    """Load a generator and its tokenizer, in eval mode; running no code from their files.

    Args:
        folder: a generator's, or its run's; a model that ships with rpiae; or on the hub ``user/name``,
            ``user/name@revision`` or ``user/name@revision:subfolder``.
        revision: branch, tag or commit on the hub; ``main`` where nobody says.
        subfolder: below the folder, or in the repository.
        tokenizer: its tokenizer, named alike; where it is not given, the one beside the generator, else
            the one that it was trained with.
        guide: a weaker generator for autoguidance, named alike.
        device: where to, such as ``"cuda"``; the CPU where it is not given.
        precision: what is computed in.

    Raises:
        CheckpointError: if something is missing or damaged.
        FetchError: if something is on the hub and cannot be had.
        UsageError: if the tokenizer or the guide is of other latents, or there is no such device, or
            revision or subfolder make no sense for the folder.
    """
    target = device if isinstance(device, torch.device) else choose_device(device or "cpu")
    place = generator_named(folder, revision=revision, subfolder=subfolder)
    model = load_finite(place)
    own = tokenizer_of(model, place, tokenizer)
    weaker = None if guide is None else load_guide(model, guide)
    return LoadedGenerator(
        model=model.to(target), tokenizer=own.to(target),
        guide=None if weaker is None else weaker.to(target),
        guide_folder="" if guide is None else os.fspath(guide), precision=precision,
    )  # fmt: skip


def samples(
    generator: LoadedGenerator,
    config: SamplingConfig,
    labels: Sequence[int],
    *,
    seed: int,
    start: int = 0,
    batch_size: int | None = None,
) -> Iterator[Float[Tensor, "b 3 height width"]]:
    """Images in [0, 1] for labels, batch by batch, on the generator's device.

    Args:
        generator: with its tokenizer.
        config: how they are made.
        labels: class of each; ``num_classes`` is none.
        seed: of the noise.
        start: index of the first.
        batch_size: samples at a time.

    Raises:
        UsageError: if the config cannot be followed.
        RunError: if a sample is not finite.
    """
    indices = range(start, start + len(labels))
    return image_batches(generator, config, labels, indices, seed=seed, batch_size=batch_size)


def image_batches(
    generator: LoadedGenerator,
    config: SamplingConfig,
    labels: Sequence[int],
    indices: Sequence[int],
    *,
    seed: int,
    batch_size: int | None = None,
) -> Iterator[Float[Tensor, "b 3 height width"]]:
    """As ``samples``, each with an index of its own."""
    size = _size(batch_size, generator)
    batches = latent_batches(generator, config, labels, indices, seed=seed, batch_size=size)
    for number, latents in enumerate(batches):
        yield generator.decoded(latents, indices[number * size : (number + 1) * size])


def latent_batches(
    generator: LoadedGenerator,
    config: SamplingConfig,
    labels: Sequence[int],
    indices: Sequence[int],
    *,
    seed: int,
    batch_size: int | None = None,
) -> Iterator[Float[Tensor, "b c h w"]]:
    """Latents as the tokenizer decodes them; see ``image_batches``."""
    check_guidable(config, labels, generator.model)
    size = _size(batch_size, generator)
    for start in range(0, len(labels), size):
        batch = slice(start, start + size)
        yield generator.latents_at_once(config, labels[batch], indices[batch], seed=seed)


def _checked(indices: Sequence[int] | None, labels: Sequence[int]) -> Sequence[int]:
    """Indices, one per label.

    Raises:
        UsageError: if they are none, or other than so many.
    """
    if not labels:
        raise UsageError("classes are empty: name the class of each sample, or None for no class")
    if indices is None:
        return range(len(labels))
    try:
        found = [operator.index(index) for index in indices]
    except TypeError:
        raise UsageError(
            f"indices are whole numbers, one per sample, not {shown(indices)}"
        ) from None
    if len(found) != len(labels):
        raise UsageError(
            f"there are {len(found)} indices for {len(labels)} classes: give one per sample"
        )
    return found


def _seed(seed: int) -> int:
    """A seed.

    Raises:
        UsageError: if it is none.
    """
    try:
        return operator.index(seed)
    except TypeError:
        raise UsageError(f"seed is a whole number, got {shown(seed)}") from None


def _size(batch_size: int | None, generator: LoadedGenerator) -> int:
    """Samples at a time.

    Raises:
        UsageError: if it is no number of samples.
    """
    if batch_size is None:
        return generator.batch_size
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UsageError(
            f"batch_size is a whole number of samples, 1 or more, got {shown(batch_size)}"
        )
    return batch_size


def _check_finite(values: Tensor, what: str, indices: Sequence[int]) -> None:
    fine = values.isfinite().flatten(1).all(dim=1)
    if not fine.all():
        bad = indices[int((~fine).nonzero()[0])]
        raise RunError(
            f"the {what} of sample {bad} is not finite: lower the guidance, compute in fp32, or take an "
            "earlier checkpoint"
        )
