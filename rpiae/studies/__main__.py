"""The process of one run: ``python -m rpiae.studies JOB [--with-parent]``."""

import sys
from pathlib import Path

from rpiae.studies.jobs import follow_parent, perform

if __name__ == "__main__":
    if "--with-parent" in sys.argv[2:]:
        follow_parent()
    sys.exit(perform(Path(sys.argv[1])))
