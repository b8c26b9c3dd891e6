"""Python's error about a keyword that a function does not have, with the one that may be meant."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from intaglio import _core

P = ParamSpec("P")
R = TypeVar("R")


def suggesting(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function`, whose TypeError for an unknown keyword says which may be meant."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        for name in options:
            if name not in known:
                meant = _core.meant_keyword(name)
                raise TypeError(f"{function.__name__}() has no option {name}{meant}")
        return function(*args, **options)

    return call
