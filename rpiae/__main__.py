"""``python -m rpiae``."""

import sys

from rpiae.cli import main

sys.exit(main())
