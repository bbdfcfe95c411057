"""A run from config to summary."""

from rpiae.runs.running import (
    CONFIG_FILE,
    DEFAULTS,
    PATIENCE,
    SUMMARY_FILE,
    check_startable,
    loading,
    plan,
    resolve,
    resume,
    resumed_config,
    run,
    with_folder,
)

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
