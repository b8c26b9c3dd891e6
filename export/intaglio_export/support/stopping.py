"""End a command at Ctrl-C, SIGTERM or SIGHUP with everything cleaned up."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_received: int | None = None
_held = False


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise `KeyboardInterrupt(number)` inside when one of the signals arrives.

    Batch systems send SIGTERM, and a connection that breaks sends SIGHUP. A signal that the process
    ignores, as under nohup, stays ignored.
    """
    global _received
    _received = None
    before: dict[int, Any] = {}
    hook = sys.unraisablehook
    if threading.current_thread() is threading.main_thread():
        before = {n: h for n in _SIGNALS if (h := signal.getsignal(n)) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, _stop)
    sys.unraisablehook = lambda lost: (
        None if isinstance(lost.exc_value, KeyboardInterrupt) else hook(lost)
    )
    try:
        yield
    except Exception:
        check_stopped()  # the error may follow from the signal: the terminal can be gone
        raise
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _frame: object) -> None:
    global _received
    _received = number
    if not _held:
        raise KeyboardInterrupt(number)


def check_stopped() -> None:
    """Raise `KeyboardInterrupt(number)` again if a signal has arrived in `stoppable`.

    Python drops an exception that a signal raises in a finalizer, so long work calls this often.
    """
    if _received is not None:
        raise KeyboardInterrupt(_received)


def ending(interrupt: KeyboardInterrupt) -> tuple[str, int]:
    """Return the words for the signal of `interrupt`, and the exit code, 128 plus its number."""
    number = interrupt.args[0] if interrupt.args else signal.SIGINT
    name = signal.Signals(number).name
    return "Interrupted" if number == signal.SIGINT else f"Ended by {name}", 128 + number


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let no signal raise inside, so that files are renamed or removed to the end."""
    global _held
    before, _held = _held, True
    try:
        yield
    finally:
        _held = before
