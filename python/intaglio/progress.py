"""A progress bar for a step callback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from intaglio._core import Step

OnStep = Callable[[Step], bool | None]


@contextmanager
def progress_bar(on_step: OnStep | None) -> Iterator[OnStep]:
    """Yield a callback that calls `on_step` and moves a bar on stderr, or in the notebook."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("denoising", total=None)

        def report(step: Step) -> bool | None:
            bar.update(task, total=step.steps, completed=step.step + 1)
            return on_step(step) if on_step else None

        yield report
