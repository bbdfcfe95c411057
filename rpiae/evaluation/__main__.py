"""Evaluate a finished run from its saved files alone: ``python -m rpiae.evaluation RUN``.

Prints one JSON object. ``rpiae build`` calls it in a new process, so what is measured is what was
written.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rpiae.evaluation.final import evaluate_run

if __name__ == "__main__":
    json.dump(evaluate_run(Path(sys.argv[1])), sys.stdout)
