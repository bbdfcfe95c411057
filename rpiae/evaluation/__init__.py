"""Evaluation: held-out reconstruction, yardsticks, drift, and the registry of metrics."""

from rpiae.core.registry import Registry, installed_plugins

METRICS = Registry("metrics", plugins=installed_plugins)
