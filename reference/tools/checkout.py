"""Import this first: it makes the checkout importable for a tool that is run by its path."""

from __future__ import annotations

import sys
from pathlib import Path

REFERENCE = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(path) for path in (REFERENCE, REFERENCE.parent) if str(path) not in sys.path]
