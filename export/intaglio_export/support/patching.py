"""What an adapter changes in diffusers' objects while the transformer runs, and only then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

_ABSENT = object()


@contextmanager
def replaced(changes: Iterable[tuple[object, str, Any]]) -> Iterator[None]:
    """Set (object, attribute, value) inside; afterwards the objects are as they were before."""
    before = []
    try:
        for owner, name, value in changes:
            before.append((owner, name, vars(owner).get(name, _ABSENT)))
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(before):
            if value is _ABSENT:  # it was the class's
                delattr(owner, name)
            else:
                setattr(owner, name, value)
