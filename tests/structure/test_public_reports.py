"""docs/public-reports.md agrees with the tests."""

from __future__ import annotations

from tests.public_reports import PAGE, page


def test_the_page_names_every_marked_test():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m tests.public_reports`"
