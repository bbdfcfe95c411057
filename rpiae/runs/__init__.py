"""A run from config to summary."""

from rpiae.runs.folder import CONFIG_FILE, PATIENCE, SUMMARY_FILE, with_folder
from rpiae.runs.resolving import DEFAULTS, check_startable, loading, plan, resolve
from rpiae.runs.running import resume, resumed_config, run

__all__ = [
    "CONFIG_FILE",
    "DEFAULTS",
    "PATIENCE",
    "SUMMARY_FILE",
    "check_startable",
    "loading",
    "plan",
    "resolve",
    "resume",
    "resumed_config",
    "run",
    "with_folder",
]
