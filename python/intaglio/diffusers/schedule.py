"""The runtime's own windows and ramps, for numbers that come from Python."""

from __future__ import annotations

from typing import Any

from intaglio import _core


def make_schedule(**values: Any) -> _core.Guidance:
    """`cfg_scale`, `cfg_window`, `dg_scale`, `dg_window` and `ma_keep` as the runtime reads them.

    Raises:
        TypeError: something that is neither a number nor a pair.
        ValueError: a window outside 0..1 or empty, keep outside 0..1, values that are not finite.
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
