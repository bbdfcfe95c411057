"""Generators as plain data: the base of their configs, the flow that one learns, and the run that trains it. Torch-free."""

from __future__ import annotations

from typing import ClassVar, Literal

from attrs import frozen

from rpiae.core.config.fields import (
    WIDEST,
    at_least,
    rounding_only,
    wired,
    within,
    without_effect,
)
from rpiae.core.config.parts import DatasetConfig, PartConfig
from rpiae.core.config.recipe import RecipeConfig

#: Values of a latent for which no shift of time is needed.
SHIFT_BASE = 4096


@frozen(kw_only=True)
class GeneratorConfig(PartConfig):
    """Base of generator configs.

    Attributes:
        latent_channels: channels C of the latents.
        rows, columns: sides of the latents that it is trained on; others work as far as the part says.
        num_classes: classes it can be asked for; 0 for one that takes none.
    """

    family: ClassVar[str] = "generators"
    latent_channels: int | None = wired("latents.channels", what="channels", maximum=WIDEST)
    rows: int | None = wired("latents.rows", what="rows", strict=False, maximum=WIDEST)
    columns: int | None = wired("latents.columns", what="columns", strict=False, maximum=WIDEST)
    num_classes: int | None = wired(
        "latents.num_classes", what="classes", minimum=0, maximum=1 << 24
    )


@frozen(kw_only=True)
class FlowConfig:
    """The straight path between latents and noise, x_t = (1 − t)·x₁ + t·ε: t = 0 is data, t = 1 noise.

    Attributes:
        prediction: what the model gives: the velocity ``v`` = ε − x₁, or the data ``x``, of which the
            velocity is (x_t − x)/t. The loss is on the velocity either way.
        least_time: of ``x``: the least t that is divided by.
        times: distribution of t in training before its shift.
        mean, std: of the normal distribution behind ``logit-normal``.
        shift: s of t ← s·t/(1 + (s − 1)·t), in training and in sampling; 0 takes
            √(C·h·w/4096).
        label_dropout: share of the samples whose label is taken away, so that the model also learns what
            guidance is measured from.
        normalisation: what is subtracted from latents and what they are divided by: ``none``; mean and
            standard deviation per ``channel``; or per channel and ``position``.

    Source: rectified flow, arXiv 2209.03003; the shift: arXiv 2403.03206, in the form of RAE (arXiv
    2510.11690); ``x``: JiT, arXiv 2511.13720.
    """

    prediction: Literal["v", "x"] = "v"
    least_time: float = within(1e-6, 1, default=0.05)
    times: Literal["logit-normal", "uniform"] = "logit-normal"
    mean: float = 0.0
    std: float = at_least(0, default=1.0)
    shift: float = at_least(0, default=0.0)
    label_dropout: float = within(0, 1, default=0.1)
    normalisation: Literal["none", "channel", "position"] = "none"

    def shift_of(self, values: int) -> float:
        """The shift s for latents of so many values."""
        return self.shift or float((values / SHIFT_BASE) ** 0.5)


@frozen(kw_only=True)
class GeneratorRunConfig:
    """Everything the training of a generator is made of; the address space of files and ``--set``.

    Attributes:
        trains: what it trains, in a word.
        generator: the model.
        recipe: how it is trained.
        latents: folder of latents to train on; empty where ``data`` are encoded on the way.
        learned_sha256: fingerprint of what is learned from, filled in; what is moved stays what it was.
        data: images that a tokenizer encodes at every step, in place of ``latents``.
        tokenizer: folder of the tokenizer or its run; that of the latents where it is empty.
        tokenizer_sha256: its fingerprint, filled in.
        flip: whether mirrored images are learned from too: stored ones, or ``data`` that are mirrored.
        sample: whether latents whose moments are stored are drawn anew each time; else the means are taken.
        workers: processes that read latents; 0 reads in this one.
        held_out: latents that are not trained on, and that the loss is measured on.
        out: the run's folder.
        init: a generator or its run to start from; empty starts at random.
        seed: of every random draw.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``auto`` measures and takes the faster.
        compile: whether blocks, of transformers and of convolutions, are compiled in training steps by
            ``torch.compile``: seconds to minutes at the start, and faster steps.
        wandb_project: Weights & Biases project that the events go to; empty is none.
        requires: distributions of plugins that the run takes parts from; see ``RunConfig``.
        imports: modules that define parts of the run; see ``RunConfig``.
    """

    trains: ClassVar[str] = "generator"
    generator: GeneratorConfig
    recipe: RecipeConfig
    latents: str = without_effect("", "its fingerprint counts")
    learned_sha256: str = ""
    data: DatasetConfig | None = None
    tokenizer: str = without_effect("", "its fingerprint counts")
    tokenizer_sha256: str = ""
    flip: bool = False
    sample: bool = True
    workers: int = without_effect(at_least(0, default=0), "draws are functions of the sample")
    held_out: int = at_least(0, default=0)
    out: str = without_effect("", "where a run is written")
    init: str = ""
    seed: int = at_least(0, default=0)
    device: str = without_effect("auto", "what it leads to is told beside addresses")
    precision: Literal["auto", "fp32", "bf16"] = rounding_only("auto", "weights stay in fp32")
    compile: bool = rounding_only(False, "the same operations, fused")
    wandb_project: str = without_effect("", "where events are told")
    requires: tuple[str, ...] = without_effect((), "for messages")
    imports: tuple[str, ...] = without_effect((), "for messages")
