"""``python -m rpiae``."""

import sys

from rpiae.cli import main
from rpiae.cli.launch import follow_launcher

follow_launcher()
sys.exit(main())
