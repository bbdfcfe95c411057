"""The contract kit: what every registered part must pass, ours and a plugin's alike.

    from rpiae.testing import check_builds, check_encoder, check_plugin

    def test_plugin() -> None:
        check_plugin("rpiae-mine")  # installed, its manifest in order, its names its own

    def test_my_encoder() -> None:
        check_encoder(MyEncoderConfig(width=32))  # the contract of its family

    def test_trains_and_loads() -> None:
        check_builds(encoder="mine-s")  # in every stage of a recipe, and through a saved folder

The checks raise AssertionError with what is wrong.
"""

from rpiae.data.synthetic import SyntheticClips, SyntheticImages
from rpiae.testing.builds import check_builds
from rpiae.testing.contracts import (
    check_bridge,
    check_critic,
    check_decoder,
    check_encoder,
)
from rpiae.testing.datasets import check_dataset
from rpiae.testing.generator_builds import check_generator_builds
from rpiae.testing.generators import check_generator
from rpiae.testing.losses import check_loss
from rpiae.testing.metrics import check_metric
from rpiae.testing.plugins import check_manifest, check_plugin

__all__ = [
    "SyntheticClips",
    "SyntheticImages",
    "check_bridge",
    "check_builds",
    "check_critic",
    "check_dataset",
    "check_decoder",
    "check_encoder",
    "check_generator",
    "check_generator_builds",
    "check_loss",
    "check_manifest",
    "check_metric",
    "check_plugin",
]
