"""Evaluation: metrics, yardsticks, pictures; the registry of metrics and its built-in table."""

from rpiae.core.registry.registry import Entry, Registry, installed_plugins

ENTRIES = (
    Entry(
        name="class-accuracy",
        target="rpiae.evaluation.configs:ClassAccuracyConfig",
        summary="generated: share that a linear probe of real images reads as the class asked for",
        argument="space",
        tags=("generation",),
    ),
    Entry(
        name="drift",
        target="rpiae.evaluation.configs:DriftConfig",
        summary="tokens against the pivot's: mean 1 − cosine, relative error, linear CKA",
        source="CKA: arXiv 1905.00414",
    ),
    Entry(
        name="flicker",
        target="rpiae.evaluation.configs:FlickerConfig",
        summary="change over time where nothing moves in the true clip, beside that clip's own",
    ),
    Entry(
        name="gfd",
        target="rpiae.evaluation.configs:GenerationDistanceConfig",
        summary="generated: Fréchet distance to real images in any feature space, as gfd:SPACE",
        argument="space",
        source="FID, arXiv 1706.08500",
        tags=("generation",),
    ),
    Entry(
        name="ifd",
        target="rpiae.evaluation.configs:InterpolatedFrechetConfig",
        summary="Fréchet distance of images decoded between latents of neighbours, as ifd:SPACE",
        argument="space",
        source="iFID, arXiv 2603.05630",
    ),
    Entry(
        name="inception-score",
        target="rpiae.evaluation.configs:InceptionScoreConfig",
        summary="generated: Inception Score; weights downloaded on first use or inception-score:FILE",
        argument="weights",
        source="arXiv 1606.03498",
        tags=("generation",),
    ),
    Entry(
        name="latents",
        target="rpiae.evaluation.configs:LatentsConfig",
        summary="spread, KL, active channels, effective rank, spatial spectrum, compression",
    ),
    Entry(
        name="lpips",
        target="rpiae.evaluation.configs:LpipsMetricConfig",
        summary="LPIPS with VGG-16 features, downloaded on first use or lpips:FILE",
        argument="weights",
        source="arXiv 1801.03924",
    ),
    Entry(
        name="nearest",
        target="rpiae.evaluation.configs:NearestConfig",
        summary="generated: distance to the nearest training images over that of held-out ones",
        argument="space",
        tags=("generation",),
    ),
    Entry(
        name="pivot-rfd",
        target="rpiae.evaluation.configs:PivotFrechetConfig",
        summary="Fréchet distance of reconstructions over the tokens of the run's own pivot",
        source="FID, arXiv 1706.08500",
    ),
    Entry(
        name="precision",
        target="rpiae.evaluation.configs:PrecisionConfig",
        summary="generated: share that lies among real images, by their nearest neighbours",
        argument="space",
        source="arXiv 1904.06991",
        tags=("generation",),
    ),
    Entry(
        name="probe",
        target="rpiae.evaluation.configs:ProbeConfig",
        summary="linear probe and k-NN of classes on the encoder's tokens, the latent and the pivot",
    ),
    Entry(
        name="psnr",
        target="rpiae.evaluation.configs:PsnrConfig",
        summary="peak signal-to-noise ratio: mean per image, and pooled; of clips by position too",
    ),
    Entry(
        name="recall",
        target="rpiae.evaluation.configs:RecallConfig",
        summary="generated: share of real images that lies among the generated ones",
        argument="space",
        source="arXiv 1904.06991",
        tags=("generation",),
    ),
    Entry(
        name="rfd",
        target="rpiae.evaluation.configs:FrechetConfig",
        summary="Fréchet distance of reconstructions in any feature space, as rfd:SPACE",
        argument="space",
        source="FID, arXiv 1706.08500",
    ),
    Entry(
        name="rfid",
        target="rpiae.evaluation.configs:InceptionFrechetConfig",
        summary="rfd in FID's Inception-v3, downloaded on first use or rfid:FILE",
        argument="weights",
        source="FID, arXiv 1706.08500",
    ),
    Entry(
        name="rfvd",
        target="rpiae.evaluation.configs:VideoFrechetConfig",
        summary="Fréchet video distance of reconstructions in any feature space, as rfvd:SPACE",
        argument="space",
        source="FVD, arXiv 1812.01717",
    ),
    Entry(
        name="rotation",
        target="rpiae.evaluation.configs:RotationConfig",
        summary="linear probe of how an image was turned: labels no pivot was trained on",
        source="RotNet, arXiv 1803.07728",
    ),
    Entry(
        name="ssim",
        target="rpiae.evaluation.configs:SsimConfig",
        summary="structural similarity of 8-bit images, mean per image; of clips by position too",
    ),
    Entry(
        name="temporal",
        target="rpiae.evaluation.configs:TemporalConfig",
        summary="error of frame differences of clips, beside the true differences",
    ),
    Entry(
        name="trajectory",
        target="rpiae.evaluation.configs:TrajectoryConfig",
        summary="motion of the tokens of clips against that of the pivot's: mean 1 − cosine",
    ),
)

METRICS = Registry("metrics", ENTRIES, plugins=installed_plugins)
