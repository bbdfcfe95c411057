"""Configs of the built-in metrics, and of a whole evaluation (torch-free)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from attrs import field, frozen

from rpiae.core.config.fields import at_least, names_file, refused, rounding_only, within
from rpiae.core.config.parts import MetricConfig
from rpiae.sampling.configs import SamplingConfig


@frozen(kw_only=True)
class PsnrConfig(MetricConfig):
    """Peak signal-to-noise ratio."""

    module: ClassVar[str] = "rpiae.evaluation.pixels:Psnr"


@frozen(kw_only=True)
class SsimConfig(MetricConfig):
    """Structural similarity."""

    module: ClassVar[str] = "rpiae.evaluation.pixels:Ssim"


@frozen(kw_only=True)
class LpipsMetricConfig(MetricConfig):
    """LPIPS with VGG-16 features.

    Attributes:
        weights: a torchvision VGG-16 file; downloaded where empty.
    """

    module: ClassVar[str] = "rpiae.evaluation.pixels:Lpips"
    weights: str = names_file("")

    def fetch(self) -> Path | None:
        """The VGG-16 file."""
        from rpiae.losses.lpips import vgg_weights

        return vgg_weights(self.weights)


@frozen(kw_only=True)
class SpaceMetricConfig(MetricConfig):
    """Base of the configs of metrics in a feature space.

    Attributes:
        space: what images are described by: an encoder's name, ``inception``, ``inception:FILE`` or
            ``cnn:FILE``.
    """

    space: str = names_file("tiny", after="cnn: inception:")

    def fetch(self) -> Path | None:
        """The weights of the space."""
        from rpiae.evaluation.spaces import space_weights

        return space_weights(self.space)


@frozen(kw_only=True)
class FrechetConfig(SpaceMetricConfig):
    """Fréchet distance of reconstructions to their originals.

    Attributes:
        reference: a file of statistics to take for the originals', written by ``rpiae eval
            --write-reference``; it must be of the very same images, cropped alike, in the same space.
    """

    module: ClassVar[str] = "rpiae.evaluation.distances:ReconstructionDistance"
    reference: str = names_file("")


@frozen(kw_only=True)
class VideoFrechetConfig(FrechetConfig):
    """Fréchet video distance of reconstructed clips to their originals.

    Attributes:
        space: what clips are described by: frame by frame in a space of images, or by an encoder of
            clips.
        reference: as in ``FrechetConfig``.
    """

    module: ClassVar[str] = "rpiae.evaluation.distances:VideoDistance"
    needs: ClassVar[frozenset[str]] = frozenset({"clips"})


@frozen(kw_only=True)
class InceptionFrechetConfig(MetricConfig):
    """rFID: the Fréchet distance of reconstructions in FID's Inception-v3.

    Attributes:
        weights: its weights file; downloaded where empty.
        reference: as in ``FrechetConfig``.
    """

    module: ClassVar[str] = "rpiae.evaluation.distances:ReconstructionDistance"
    weights: str = names_file("")
    reference: str = names_file("")

    def arguments(self) -> dict[str, Any]:
        """Keywords of the module."""
        space = f"inception:{self.weights}" if self.weights else "inception"
        return {"space": space, "reference": self.reference}

    def fetch(self) -> Path | None:
        """The weights file."""
        from rpiae.evaluation.spaces import inception_weights

        return inception_weights(self.weights)


@frozen(kw_only=True)
class PivotFrechetConfig(MetricConfig):
    """Fréchet distance of reconstructions to their originals in the features of the run's own pivot."""

    module: ClassVar[str] = "rpiae.evaluation.distances:PivotDistance"
    needs: ClassVar[frozenset[str]] = frozenset({"pivot"})


@frozen(kw_only=True)
class InterpolatedFrechetConfig(SpaceMetricConfig):
    """iFD: Fréchet distance of images decoded half-way between latents of neighbours.

    Attributes:
        weight: how far from the latent towards its neighbour, 0 to 1.
    """

    module: ClassVar[str] = "rpiae.evaluation.distances:InterpolationDistance"
    needs: ClassVar[frozenset[str]] = frozenset({"training", "latent"})
    weight: float = at_least(0, default=0.5)


@frozen(kw_only=True)
class ProbeConfig(MetricConfig):
    """Linear probe and k-NN of the classes of images.

    Attributes:
        k: neighbours that vote.
        latent_values: features that a latent is probed by at most: all its values in their places,
            which are averaged down to fewer places where these are more.
        seed: of the division that chooses the regularisation.
    """

    module: ClassVar[str] = "rpiae.evaluation.semantics:ClassProbe"
    needs: ClassVar[frozenset[str]] = frozenset({"training", "labels"})
    k: int = at_least(1, default=20)
    latent_values: int = at_least(1, default=2048)
    seed: int = at_least(0, default=0)


@frozen(kw_only=True)
class RotationConfig(MetricConfig):
    """Linear probe of how an image was turned.

    Attributes:
        seed: of the turns, and of the division that chooses the regularisation.
    """

    module: ClassVar[str] = "rpiae.evaluation.semantics:RotationProbe"
    needs: ClassVar[frozenset[str]] = frozenset({"training"})
    seed: int = at_least(0, default=0)


@frozen(kw_only=True)
class DriftConfig(MetricConfig):
    """Difference of the encoder's tokens from the pivot's."""

    module: ClassVar[str] = "rpiae.evaluation.semantics:Drift"
    needs: ClassVar[frozenset[str]] = frozenset({"pivot"})


@frozen(kw_only=True)
class TemporalConfig(MetricConfig):
    """Error of frame differences."""

    module: ClassVar[str] = "rpiae.evaluation.motion:TemporalError"
    needs: ClassVar[frozenset[str]] = frozenset({"clips"})


@frozen(kw_only=True)
class FlickerConfig(MetricConfig):
    """Change over time where nothing moves in the true clip.

    Attributes:
        threshold: change from which on a pixel moves, in units of [0, 1].
        neighbourhood: side of the square around a pixel that has to be still, in pixels; odd.
    """

    module: ClassVar[str] = "rpiae.evaluation.motion:Flicker"
    needs: ClassVar[frozenset[str]] = frozenset({"clips"})
    threshold: float = within(0, 1, default=0.02)
    neighbourhood: int = within(1, 1023, default=3)

    def __attrs_post_init__(self) -> None:
        if self.neighbourhood % 2 == 0:
            raise refused(
                "neighbourhood",
                f"the side must be odd, got {self.neighbourhood}: a pixel is in its middle",
            )


@frozen(kw_only=True)
class TrajectoryConfig(MetricConfig):
    """Difference of the motion of the encoder's tokens from that of the pivot's."""

    module: ClassVar[str] = "rpiae.evaluation.motion:Trajectory"
    needs: ClassVar[frozenset[str]] = frozenset({"clips", "pivot"})


@frozen(kw_only=True)
class LatentsConfig(MetricConfig):
    """Statistics of the latents.

    Attributes:
        bits_per_value: that a latent value is stored in, for the compression in bits.
    """

    module: ClassVar[str] = "rpiae.evaluation.latents:Latents"
    needs: ClassVar[frozenset[str]] = frozenset({"latent"})
    bits_per_value: int = at_least(1, default=16)


@frozen(kw_only=True)
class GenerationDistanceConfig(SpaceMetricConfig):
    """Fréchet distance of generated images to real ones.

    Attributes:
        reference: a file of statistics to take for the real images', written by ``rpiae eval
            --write-reference`` of a generator; no real images are needed then.
    """

    module: ClassVar[str] = "rpiae.evaluation.generated:GenerationDistance"
    needs: ClassVar[frozenset[str]] = frozenset({"samples", "real"})
    reference: str = names_file("")

    @property
    def needed(self) -> frozenset[str]:
        """Real images where there is no reference."""
        return self.needs - {"real"} if self.reference else self.needs


@frozen(kw_only=True)
class PrecisionConfig(SpaceMetricConfig):
    """Share of generated images that lie among real ones.

    Attributes:
        k: the neighbour whose distance says what lies among others.
    """

    module: ClassVar[str] = "rpiae.evaluation.generated:Precision"
    needs: ClassVar[frozenset[str]] = frozenset({"samples", "real"})
    k: int = at_least(1, default=3)


@frozen(kw_only=True)
class RecallConfig(PrecisionConfig):
    """Share of real images that lie among generated ones."""

    module: ClassVar[str] = "rpiae.evaluation.generated:Recall"


@frozen(kw_only=True)
class InceptionScoreConfig(MetricConfig):
    """Inception Score.

    Attributes:
        weights: file of FID's Inception-v3; downloaded where empty.
    """

    module: ClassVar[str] = "rpiae.evaluation.inception_score:InceptionScore"
    needs: ClassVar[frozenset[str]] = frozenset({"samples"})
    weights: str = names_file("")

    def fetch(self) -> Path | None:
        """The weights file."""
        from rpiae.evaluation.spaces import inception_weights

        return inception_weights(self.weights)


@frozen(kw_only=True)
class ClassAccuracyConfig(SpaceMetricConfig):
    """Share of generated images that a linear probe of real ones reads as what was asked for.

    Attributes:
        seed: of the divisions of real images.
    """

    module: ClassVar[str] = "rpiae.evaluation.generated_classes:ClassAccuracy"
    needs: ClassVar[frozenset[str]] = frozenset({"samples", "real", "labels"})
    seed: int = at_least(0, default=0)


@frozen(kw_only=True)
class NearestConfig(SpaceMetricConfig):
    """Distance of generated images to their nearest training images."""

    module: ClassVar[str] = "rpiae.evaluation.generated_classes:NearestTraining"
    needs: ClassVar[frozenset[str]] = frozenset({"samples", "real", "training"})


@frozen(kw_only=True)
class EvaluationConfig:
    """What a tokenizer is measured on, and with what.

    Attributes:
        data: the images or clips it is measured on, as in ``rpiae build --data``, or a table of a
            dataset's fields; the run's own held-out ones where empty.
        training: the same of the images that probes learn from and that iFD looks for neighbours in;
            the images the run was trained on where empty.
        metrics: names as in ``rpiae list metrics``, such as ``"psnr"`` or ``"rfd:tiny"``, or tables.
        num_images: how many of ``data`` are looked at, drawn at random but always the same; all where not
            given.
        num_training: the same of ``training``.
        crop: how images become square crops. ``adm``, which published numbers on ImageNet mean: the
            short side is resized to ``resize`` as ADM does, then the centre is cut out. ``centre``: as a
            run crops what it holds out.
        resize: short side of every image before it is cropped, in pixels. Not given: the dataset's
            own, else ``image_size`` by the rule ``adm`` and that of ``data.resize`` by ``centre``.
        image_size: side of the centre crops, in pixels; of the training crops where not given.
        round: how decoded images are brought to 8 bits: to the ``nearest`` value, or
            ``truncate``, as some published numbers are measured.
        precision: what the tokenizer is run in; ``auto`` is bf16 where it is faster. Feature spaces
            are in fp32, statistics and distances in fp64.
        batch_size: images, or clips, per forward pass; no effect on results beyond rounding.
    """

    data: Any = ""
    training: Any = ""
    metrics: tuple[Any, ...] = ("psnr", "ssim")
    num_images: int | None = at_least(1, default=None)
    num_training: int | None = at_least(1, default=None)
    crop: Literal["adm", "centre"] = "adm"
    resize: int | None = at_least(1, default=None)
    image_size: int | None = at_least(1, default=None)
    round: Literal["nearest", "truncate"] = "nearest"
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    batch_size: int | None = rounding_only(at_least(1, default=None), "an image is its own")


@frozen(kw_only=True)
class GenerationEvaluationConfig(EvaluationConfig):
    """What generated images are measured on, with what, and how they are made.

    ``data`` are the real images that they are compared with, of which ``num_images`` are taken, and
    ``training`` those that were trained on; crops are as large as the samples. What is said of making
    samples has no effect on those of a file or folder.

    Attributes:
        metrics: names as in ``rpiae list metrics``, such as ``"gfd:tiny"``, or tables.
        count: samples that are made; of a file or folder, how many are looked at, drawn at random but
            always the same. All of these where it is not given, else 5,000.
        labels: ``equal`` numbers of samples per class, ``random``: a class for each that is drawn, or
            ``none``.
        seed: of the samples' noise and classes.
        sampling: how samples are made.
        tokenizer: folder of the generator's tokenizer; the generator's own where empty.
    """

    metrics: tuple[Any, ...] = ("gfd:tiny", "precision", "recall")
    count: int | None = at_least(1, default=None)
    labels: Literal["equal", "random", "none"] = "equal"
    seed: int = at_least(0, default=0)
    sampling: SamplingConfig = field(factory=SamplingConfig)
    tokenizer: str = ""
