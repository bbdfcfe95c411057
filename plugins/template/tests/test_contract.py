"""The contract kit of rpiae on this plugin."""

from rpiae.plugin import check_bridge, check_builds, check_plugin

from rpiae_template.configs import TemplateBridgeConfig


def test_plugin() -> None:
    check_plugin("rpiae-template")


def test_bridge() -> None:
    check_bridge(TemplateBridgeConfig(features=32, latent_channels=4, hidden=16))


def test_trains_and_loads() -> None:
    check_builds(bridge="template-s")
