"""Checks a bundle's structure: `python -m benchmarks.scale.check_bundle BUNDLE`."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.scale.checks import check_bundle

if __name__ == "__main__":
    check_bundle(Path(sys.argv[1]))
