"""Measure rfflow against plain TRL on this machine: ``python benchmarks/against_trl.py --help``, and README.md here."""

from __future__ import annotations

import sys
from pathlib import Path

# A script's own folder is on the path; the checkout is not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.command import main

if __name__ == "__main__":
    sys.exit(main())
