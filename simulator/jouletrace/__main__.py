"""``python -m jouletrace`` is the command ``jouletrace``."""

import sys

from jouletrace.cli import main

if __name__ == "__main__":
    sys.exit(main())
