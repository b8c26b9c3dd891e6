"""Read what the tokenizers library holds, and refuse what the runtime's tokenizers cannot do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from intaglio_export.errors import ExportError

# Where a sequence of steps holds them.
_MEMBERS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
}


def state_of(tokenizer: Any) -> dict[str, Any]:
    """Return what the tokenizers library writes to tokenizer.json, or an empty dictionary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {}
    return state


def steps(state: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Yield the steps called `name` in order, also those inside sequences."""
    todo = [state[name]] if state[name] else []
    while todo:
        step = todo.pop(0)
        if step["type"] == "Sequence":
            todo[:0] = step[_MEMBERS[name]]
        else:
            yield step


def added_token(token: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of an added token in a table. Refuse one that only matches whole words."""
    refuse_added(token, "single_word")
    return {key: token[key] for key in ("content", "id", "normalized", "lstrip", "rstrip")}


def refuse_added(token: dict[str, Any], *options: str) -> None:
    """Raise ExportError if the added token has one of `options`."""
    for option in options:
        if token[option]:
            raise ExportError(
                f"The tokenizer's added token {token['content']!r} has {option}, which the"
                " runtime's tokenizer does not support."
            )


def unfollowed(what: str, step: dict[str, Any]) -> ExportError:
    """Return the error for a step of the tokenizer that the runtime does not have."""
    options = {key: value for key, value in step.items() if key != "type"}
    return ExportError(
        f"The tokenizer has the {what} {step['type']} ({json.dumps(options, ensure_ascii=False)}),"
        " which the runtime's tokenizer does not support."
    )
