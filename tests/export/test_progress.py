"""How the commands show how far they are."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from intaglio_export.support.progress import shown_on

STAGES = [("Looking for a/b", 0.0), ("Downloading a/b (0.1 of 2.0 GB)", 0.0),
          ("Downloading a/b (1.9 of 2.0 GB)", 0.1), ("Tracing x", 0.2), ("Tracing x", 0.3),
          ("Tracing y", 0.4)]  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_a_line_for_each_stage_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    screen = io.StringIO()
    with shown_on(
        Console(file=screen, force_terminal=terminal, force_interactive=terminal)
    ) as progress:
        for stage in STAGES:
            progress(*stage)
    lines = capsys.readouterr().err.splitlines()
    if terminal:
        assert lines == []
        assert "Tracing y" in screen.getvalue()
    else:
        assert lines == ["Looking for a/b", "Downloading a/b", "Tracing x", "Tracing y"]
        assert screen.getvalue() == ""
