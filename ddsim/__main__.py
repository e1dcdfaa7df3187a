"""``python -m ddsim``."""

import sys

from ddsim.cli import main

if __name__ == "__main__":
    sys.exit(main())
