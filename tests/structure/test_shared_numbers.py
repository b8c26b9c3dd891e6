"""Numbers that stand in two languages are one."""

import re
from pathlib import Path

from intaglio_export.engines import profiles

ROOT = Path(__file__).parents[2]


def test_rows_of_conditioning() -> None:
    source = (ROOT / "cpp/src/pipeline/conditioning.cpp").read_text()
    (rows,) = re.findall(r"kConditioningRows = (\d+);", source)
    assert int(rows) == profiles.CONDITIONS
