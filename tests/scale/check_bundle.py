"""Checks a bundle's structure: `python -m tests.scale.check_bundle BUNDLE`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.scale.checks import check_bundle

if __name__ == "__main__":
    check_bundle(Path(sys.argv[1]))
