"""A progress bar for a step callback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from intaglio._core import Step

OnStep = Callable[[Step], bool | None]


@contextmanager
def progress_bar(on_step: OnStep | None) -> Iterator[OnStep]:
    """Yield a callback that calls `on_step` and moves a bar on stderr, or in the notebook."""
    from rich.console import Console
    from rich.progress import Progress

    class Screen(Console):
        """Stderr. If its reader goes away, only the bar ends; rich would end the process."""

        def on_broken_pipe(self) -> None:
            self.quiet = True

    bar = Progress(console=Screen(stderr=True), transient=True)
    task = bar.add_task("denoising", total=None)

    def report(step: Step) -> bool | None:
        done = step.group * step.steps + step.step + 1
        bar.update(task, total=step.groups * step.steps, completed=done)
        return on_step(step) if on_step else None

    unwritable = suppress(OSError, ValueError)  # what a full disk and a closed file raise
    with unwritable:
        bar.start()
    try:
        yield report
    finally:
        with unwritable:
            bar.stop()
