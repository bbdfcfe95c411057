"""Generators: the registry and its built-in table."""

from rpiae.core.registry.registry import Entry, Registry, installed_plugins, read_presets

ENTRIES = (
    Entry(
        name="dit",
        target="rpiae.generators.configs:DitConfig",
        summary="diffusion transformer of LightningDiT, with the wide head of DDT where wanted",
        source="arXiv 2212.09748; LightningDiT, arXiv 2501.01423; DDT head, arXiv 2504.05741, 2510.11690",
    ),
)

GENERATORS = Registry(
    "generators", ENTRIES, read_presets("rpiae.generators"), plugins=installed_plugins
)
