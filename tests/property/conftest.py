"""Hypothesis profiles: ``dev`` is quick, ``ci`` looks further; HYPOTHESIS_PROFILE chooses."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# The first example pays for importing torch, which is no fault of the strategy.
_SLOW_START = [HealthCheck.too_slow]

settings.register_profile(
    "dev", max_examples=20, stateful_step_count=20, deadline=None, suppress_health_check=_SLOW_START
)
settings.register_profile(
    "ci", max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=_SLOW_START
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
