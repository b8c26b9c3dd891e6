"""Change attributes of other libraries' objects for a limited time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

_ABSENT = object()


@contextmanager
def replaced(changes: Iterable[tuple[object, str, Any]]) -> Iterator[None]:
    """Set each (object, attribute, value) inside, and restore the objects afterwards."""
    before = []
    try:
        for owner, name, value in changes:
            before.append((owner, name, vars(owner).get(name, _ABSENT)))
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(before):
            if value is _ABSENT:  # the attribute came from the class
                delattr(owner, name)
            else:
                setattr(owner, name, value)
