"""Evaluate a finished run from its saved files alone: ``python -m rpiae.evaluation RUN DEVICE``.

Prints one JSON object. ``rpiae build`` calls it in a new process, so what is measured is what was
written.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rpiae.core.runtime.processes import Runtime
from rpiae.evaluation.final import evaluate_run

if __name__ == "__main__":
    runtime = Runtime(device=sys.argv[2], precision="fp32")
    json.dump(evaluate_run(Path(sys.argv[1]), runtime), sys.stdout)
