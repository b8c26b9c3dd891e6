"""Show how far a long command is: a bar in a terminal, and elsewhere a line for each stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from intaglio_export.support.stopping import check_stopped


@contextmanager
def shown_on(screen: Console) -> Iterator[Callable[[str, float], None]]:
    """Yield a callback that gets the current stage and the share of all work that is done.

    The callback raises what `check_stopped` raises.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=screen, transient=True, disable=not screen.is_interactive)
    last = ""
    # The bar is started in a terminal only: elsewhere rich would print an empty line at its end.
    with bar if screen.is_interactive else nullcontext():
        task = bar.add_task("Starting", total=1.0)

        def progress(what: str, share: float) -> None:
            nonlocal last
            check_stopped()
            bar.update(task, description=what, completed=share)
            stage = what.partition(" (")[0]  # without how much of it is downloaded
            if not screen.is_interactive and stage != last:
                typer.echo(stage, err=True)
                last = stage

        yield progress
