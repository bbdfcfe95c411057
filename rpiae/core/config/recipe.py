"""Recipes as plain data: stages, terms, optimisers, and the run config that holds everything."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from attrs import field, frozen

from rpiae.core.config.fields import at_least, folder_name, rounding_only, within, without_effect
from rpiae.core.config.parts import (
    BridgeConfig,
    CriticConfig,
    DatasetConfig,
    DecoderConfig,
    EncoderConfig,
    LossConfig,
    PartConfig,
)

#: The parts of a tokenizer, which its stages can train.
ROLES: Final = ("encoder", "bridge", "decoder")

#: Of an optimiser step: images at most, and batches that they are computed in.
MOST_IMAGES: Final = 1 << 20
MOST_BATCHES: Final = 1 << 16


@frozen(kw_only=True)
class AdaptiveConfig:
    """Weight a term by the ratio of gradient norms, ‖∇ reference terms‖ / (‖∇ term‖ + eps).

    Attributes:
        layer: what the gradients refer to, by the task's name of it. A tokenizer has ``encoder`` and
            ``decoder``, the ``last_weight`` of each, and ``encoder-last``, the encoder's last
            parameter, whichever that is: with DINOv2 the second layer-scale vector of the last
            block, which the released code of arXiv 2603.19206 takes.
        warmup_steps: steps with the constant weight before the ratio is used.
        eps: added to the denominator.
        maximum: upper clamp of the ratio; the term's weight multiplies it afterwards.
        refresh_every: steps between two measurements of the ratio; the last one holds in between.

    Source: arXiv 2603.19206, λ_piv; VQGAN (arXiv 2012.09841) for the GAN weight.
    """

    layer: str
    warmup_steps: int = at_least(0, default=0)
    eps: float = at_least(0, default=1e-4)
    maximum: float = at_least(0, default=1e5)
    refresh_every: int = at_least(1, default=1)

    @property
    def role(self) -> str:
        """The role that the layer is of."""
        return self.layer.partition("-")[0]


@frozen(kw_only=True)
class TermConfig:
    """One weighted loss term of a stage.

    Attributes:
        loss: the loss.
        weight: its weight, or the factor on its adaptive weight.
        start_steps, start_epochs: when it begins (one of the two).
        ramp_steps: steps over which the weight grows from zero.
        adaptive: adaptive weighting, where wanted.
        reference: whether adaptive weights take this term into their numerator.
        optional: leave the term out, with a notice, where what it needs is missing.
    """

    loss: LossConfig
    weight: float = at_least(0, default=1.0)
    start_steps: int = at_least(0, default=0)
    start_epochs: float = at_least(0, default=0.0)
    ramp_steps: int = at_least(0, default=0)
    adaptive: AdaptiveConfig | None = None
    reference: bool = False
    optional: bool = False


@frozen(kw_only=True)
class OptimiserConfig:
    """AdamW and its schedule.

    Attributes:
        learning_rate, final_learning_rate: start and end of the decay; 0 at the start is no training.
        shape: decay shape.
        warmup_steps, warmup_epochs: linear warm-up (one of the two).
        warmup_from_zero: whether the warm-up starts at zero or holds the base rate.
        decay_epochs: where the decay ends; the stage's own length where it is not given.
        betas, eps, weight_decay: of AdamW.
        clip: maximal gradient norm; 0 is no clipping.
    """

    learning_rate: float = at_least(0, default=2e-4)
    final_learning_rate: float = at_least(0, default=2e-5)
    shape: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = at_least(0, default=0)
    warmup_epochs: float = at_least(0, default=0.0)
    warmup_from_zero: bool = True
    decay_epochs: float | None = at_least(0, default=None)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = at_least(0, default=1e-8)
    weight_decay: float = at_least(0, default=0.0)
    clip: float = at_least(0, default=0.0)


@frozen(kw_only=True)
class AdversarialConfig(LossConfig):
    """Base of the configs of losses that play against a critic; a stage has at most one.

    The term's own ``start_steps`` or ``start_epochs`` say when the model sees the critic.

    Attributes:
        critic: the critic.
        critic_start_steps, critic_start_epochs: when the critic begins to learn (one of the two).
        critic_input: what it learns from: ``clean`` is a fresh reconstruction by the updated model,
            without noise and in eval mode; ``shared`` is the one the model's own loss was of.
        optimiser: of the critic; as the stage's where it is not given. Its schedule counts the
            critic's own steps.
    """

    critic: CriticConfig
    critic_start_steps: int = at_least(0, default=0)
    critic_start_epochs: float = at_least(0, default=0.0)
    critic_input: Literal["clean", "shared"] = "clean"
    optimiser: OptimiserConfig | None = None

    def fetch(self) -> Path | None:
        """What the critic loads."""
        return self.critic.fetch()


@frozen(kw_only=True)
class StageConfig:
    """One stage: what is trained, on which path, with which terms, for how long.

    Attributes:
        name: what it is called in logs and folders; a plain name, no path.
        train: roles, or patterns on role-prefixed parameter names (``"decoder.blocks.0.*"``).
        use_bridge: whether the bridge is in the path.
        posterior: whether the latent is a sample of the posterior or its mode.
        noise: τ; each sample's σ is drawn from U(0, τ) and scales the noise on the features.
        terms: the weighted losses.
        steps, epochs: length (one of the two).
        batch_size: images, or clips, per optimiser step over all processes.
        image_share: share of the stage's steps that learn from single frames, where the data are
            clips; none where it is not given.
        without_init: whether the stage is left out of a run that starts from a trained tokenizer.
        optimiser: AdamW and its schedule.
        ema: decay of the weights' moving average.
        more_ema: decays of further averages, which are saved at the stage's end beside the run's result,
            under ``averages/``.
        ema_warmup: whether the decay is lower in the stage's first steps, so that a short stage does
            not ship its initialisation; see ``schedules.ema_decay``.
        start_from: what the stage takes over from the previous one.
        best: held-out metric that the best weights are chosen by, with ``-`` before it where less is
            better; the task chooses where it is empty.
    """

    name: str = folder_name()
    train: tuple[str, ...]
    use_bridge: bool = True
    posterior: Literal["sample", "mode"] = "mode"
    noise: float = at_least(0, default=0.0)
    terms: tuple[TermConfig, ...] = ()
    steps: int | None = at_least(1, default=None)
    epochs: float | None = at_least(0, default=None)
    batch_size: int = within(1, MOST_IMAGES, default=256)
    image_share: float | None = within(0, 1, default=None)
    without_init: bool = without_effect(False, "the stages that are left count")
    optimiser: OptimiserConfig = field(factory=OptimiserConfig)
    ema: float = within(0, 1, default=0.9978)
    more_ema: tuple[float, ...] = without_effect(
        within(0, 1, default=()), "they are kept beside the stage, which does not look at them"
    )
    ema_warmup: bool = True
    start_from: Literal["weights", "ema"] = "weights"
    best: str = without_effect("", "what is kept beside a run changes nothing in it")


@frozen(kw_only=True)
class SpikeGuardConfig:
    """When a stage goes back to an earlier state, once, and on from there with other draws.

    Attributes:
        factor: how many times the usual loss, the median of the last hundred steps', a step's may be;
            what is not finite is above all of them.
        every: steps between the states that are kept for it.
    """

    factor: float = at_least(1)
    every: int = at_least(1, default=500)


@frozen(kw_only=True)
class RecipeConfig(PartConfig):
    """Base of recipes' configs: a tuple of stages and what they share.

    Its part is the task's, whose names of roles and layers its stages use; a recipe is a preset.

    Attributes:
        trains: what its task trains, in a word.
        summary: one line.
        stages: in order.
        batch_size: replaces the batch size of every stage, where given.
        max_steps: caps the length of every stage; its schedules shrink with it.
        accumulate: batches per optimiser step; the batch size stays the same.
        metrics: what is measured on held-out images while a run trains, as in ``rpiae eval
            --metrics``; the task's usual ones where it is empty.
        recompute: whether transformer blocks compute their activations again for the backward pass
            instead of keeping them: less memory, about a third more time.
        evaluate_every: steps between held-out evaluations; 0 is at the end of stages only.
        checkpoint_every: steps between checkpoints; 0 is at the end of stages only.
        read_every: steps between two looks at losses and norms, for logs and alarms; 0 looks at every
            one on a CPU, where that costs nothing, and at every 20th where a device has to be waited for.
        keep_checkpoints: how many of the latest checkpoints are kept.
        spike_guard: takes a stage back where its loss leaps, or is not finite; where it is not given,
            what is not finite ends the run, and nothing else does.
        default_data: dataset used where none is named; empty if one must be named.
        default_resize: short side of every training image over the side of the crops, where
            ``data.resize`` is not given (the paper: 1.5, 384 pixels for crops of 256); 0 leaves it to
            the dataset.
        default_positions: a decoder's ``positions`` where they are not given; empty leaves it to the
            decoder.
    """

    family: ClassVar[str] = "recipes"
    trains: ClassVar[str] = ""
    summary: str = without_effect("", "it is for people")
    stages: tuple[StageConfig, ...]
    batch_size: int | None = within(1, MOST_IMAGES, default=None)
    max_steps: int | None = at_least(1, default=None)
    accumulate: int = rounding_only(
        within(1, MOST_BATCHES, default=1), "the parts of a batch are added up in another order"
    )
    recompute: bool = without_effect(False, "the same numbers are computed twice")
    metrics: tuple[str, ...] = without_effect((), "measuring changes nothing")
    evaluate_every: int = without_effect(
        at_least(0, default=5000), "it draws nothing and changes nothing"
    )
    checkpoint_every: int = without_effect(at_least(0, default=1000), "resuming is exact")
    read_every: int = without_effect(at_least(0, default=0), "it draws nothing and changes nothing")
    keep_checkpoints: int = without_effect(at_least(1, default=2), "resuming is exact")
    spike_guard: SpikeGuardConfig | None = None
    default_data: str = without_effect("", "the dataset itself counts")
    default_resize: float = without_effect(at_least(0, default=0.0), "the dataset's resize counts")
    default_positions: Literal["", "fixed", "trained"] = without_effect("", "the decoder's count")

    def arguments(self) -> dict[str, Any]:
        """None: what is built is what the task knows of stages, and the same for all recipes."""
        return {}


@frozen(kw_only=True)
class RunConfig:
    """Everything a run is made of; the address space of files, ``--set`` and error paths.

    Attributes:
        trains: what it trains, in a word.
        encoder, bridge, decoder: the model.
        recipe: how it is trained.
        data: what it is trained on.
        out: the run's folder.
        init: a run or tokenizer folder to start from; empty starts from the pivot. Parts that
            nothing is said of are those of this tokenizer.
        init_parts: the parts whose weights are taken from there; the others begin as they do without.
        seed: of every random draw.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``auto`` measures and takes the faster.
        compile: whether blocks, of transformers and of convolutions, are compiled in training steps by
            ``torch.compile``: seconds to minutes at the start, and faster steps.
        wandb_project: Weights & Biases project that the events go to; empty is none.
        requires: distributions of plugins that the run takes parts from, such as ``"rpiae-foo"``; a
            run that begins writes them down, and where one is not installed, messages name it.
        imports: modules of a notebook or script that define parts of the run, written down alike; for
            messages alone, nothing is imported because of it.
    """

    trains: ClassVar[str] = "tokenizer"
    encoder: EncoderConfig
    bridge: BridgeConfig
    decoder: DecoderConfig
    recipe: RecipeConfig
    data: DatasetConfig | None = None
    out: str = without_effect("", "where a run is written")
    init: str = ""
    init_parts: tuple[Literal["encoder", "bridge", "decoder"], ...] = ROLES
    seed: int = at_least(0, default=0)
    device: str = without_effect("auto", "what it leads to is told beside addresses")
    precision: Literal["auto", "fp32", "bf16"] = rounding_only("auto", "weights stay in fp32")
    compile: bool = rounding_only(False, "the same operations, fused")
    wandb_project: str = without_effect("", "where events are told")
    requires: tuple[str, ...] = without_effect((), "for messages")
    imports: tuple[str, ...] = without_effect((), "for messages")


@frozen(kw_only=True)
class StageLength:
    """A stage's lengths in optimiser steps, after caps.

    Attributes:
        steps: length of the stage.
        warmup, decay: of the learning rate.
        scale: capped over configured length; term starts shrink with it.
        steps_per_epoch: optimiser steps per pass over the data.
    """

    steps: int
    warmup: int
    decay: int
    scale: float
    steps_per_epoch: int

    def start(self, term: TermConfig) -> int:
        """First step in which a term takes part."""
        return self._after(term.start_steps, term.start_epochs)

    def critic_start(self, loss: AdversarialConfig) -> int:
        """First step in which a loss's critic learns."""
        return self._after(loss.critic_start_steps, loss.critic_start_epochs)

    def _after(self, steps: int, epochs: float) -> int:
        return math.floor((steps + epochs * self.steps_per_epoch) * self.scale)


def batch_size(stage: StageConfig, recipe: RecipeConfig) -> int:
    """Images per optimiser step of a stage."""
    return recipe.batch_size or stage.batch_size


def stage_length(stage: StageConfig, recipe: RecipeConfig, num_images: int) -> StageLength:
    """Lengths of a stage for a dataset of ``num_images``."""
    per_epoch = max(1, num_images // batch_size(stage, recipe))
    full = stage.steps if stage.steps is not None else round((stage.epochs or 0) * per_epoch)
    full = max(1, full)
    steps = min(full, recipe.max_steps or full)
    scale = steps / full
    optimiser = stage.optimiser
    warmup = optimiser.warmup_steps + optimiser.warmup_epochs * per_epoch
    decay = full if optimiser.decay_epochs is None else optimiser.decay_epochs * per_epoch
    return StageLength(
        steps=steps,
        warmup=math.ceil(warmup * scale) if warmup else 0,
        decay=max(1, round(decay * scale)),
        scale=scale,
        steps_per_epoch=per_epoch,
    )
