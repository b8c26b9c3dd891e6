"""Guidance schedules of the runtime, made from Python values."""

from __future__ import annotations

from typing import Any

from intaglio import _core


def make_schedule(**values: Any) -> _core.Guidance:
    """Return the runtime's schedule of scales, windows and `ma_keep`.

    Raises:
        TypeError: a value is neither a number nor a pair of numbers.
        ValueError: a window is empty or outside 0..1, ma_keep is outside 0..1, or a value is not
            finite.
    """
    try:
        schedule = _core.Guidance(**values)
    except TypeError:
        raise TypeError(
            "scales and ma_keep take a number or a pair of numbers, and windows a pair of numbers,"
            f" not {values}"
        ) from None
    _core.check_guidance(schedule)
    return schedule
