"""Shorten messages of diffusers, transformers and huggingface_hub to what helps a user."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import takewhile

# The start of advice about Python arguments, which nobody can follow on a command line.
_ADVICE = re.compile(
    r"low_cpu_mem_usage|ignore_mismatched|trust_remote_code|from_pretrained|https?://|\bissue"
    r"|pip install|[Mm]ake sure|If you|You should|[Pp]lease"
)
_SIZES = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\(\[(.*?)\]\) from checkpoint,"
    r" the shape in current model is torch\.Size\(\[(.*?)\]\)"
)
_LONGEST = 200
_QUOTES = "'\"`"


def plain(error: BaseException) -> str:
    """Return the sentences of `error` before any advice, without a full stop at their end.

    If it begins with advice, return what stands before that, or else its class.
    """
    text = " ".join(str(error).split())
    if match := _SIZES.search(text):
        name, found, expected = match.groups()
        return sizes(name, found.split(", "), expected.split(", "))
    sentences = re.split(r"(?<=[.!?])\s+", text)
    kept = " ".join(takewhile(lambda sentence: not _ADVICE.search(sentence), sentences))
    kept = (kept or _ADVICE.split(text)[0])[:_LONGEST].rstrip(" .,:;(`'")
    kind = type(error).__name__
    if not kept:
        return f"{kind} without a reason"
    return kept if " " in kept else f"{kind} ({kept.strip(_QUOTES)})"


def sizes(name: str, found: Iterable[object], expected: Iterable[object]) -> str:
    """Say that a tensor has another size than in the model."""
    in_file, in_model = ("x".join(map(str, shape)) or "a number" for shape in (found, expected))
    return f"{name} is {in_file} in it and {in_model} in the model"


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out; torch's allocator raises a plain RuntimeError for that."""
    return isinstance(error, MemoryError) or "not enough memory" in str(error)
