"""The embedded default of ``rpiae diffuse``: handwritten digits, from scans to samples that are read."""

from rpiae.runs.demonstration.reading import Read
from rpiae.runs.demonstration.steps import GUIDANCE, OUT, Step, demonstrate, first_plan

__all__ = ["GUIDANCE", "OUT", "Read", "Step", "demonstrate", "first_plan"]
