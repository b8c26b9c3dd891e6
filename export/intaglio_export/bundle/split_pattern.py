"""Turn the regular expression that splits a text into words into steps for the runtime.

The tokenizers library compiles these expressions with Oniguruma. A bundle holds no expression but
the sets of characters in it, which the library itself is asked for, so that the runtime needs
neither Oniguruma nor its version of Unicode.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from intaglio_export.errors import ExportError

# One character: a property, an escape, a class in brackets, or the character itself.
_SET = re.compile(
    r"\\[pP]\{\^?\w+\}|\\[sSrnt]|\\[^\w]|\[\^?(?:\\[pP]\{\^?\w+\}|\\.|[^\[\]\\])+\]|[^\\\[\](){}|?*+.^$]"
)
_COUNT = re.compile(r"([?*+])|\{(\d+)(?:(,)(\d*))?\}")
_COUNTS = {"?": (0, 1), "*": (0, None), "+": (1, None)}
_GROUP = re.compile(r"\(\?(i?):([^()]*)\)")
_NOT_BEFORE = re.compile(r"\(\?!([^()]+)\)")

# Every character that may differ from its neighbours, as ranges. Planes 4 to 13 are unassigned in
# every version of Unicode so far, and 15 and 16 are for private use: one of each speaks for all.
_CHECKED = [(0, 0xD7FF), (0xE000, 0x3FFFF), (0xE0000, 0xE0FFF)]
_ALIKE = [(0x40000, 0xDFFFF), (0xE1000, 0xEFFFF), (0xF0000, 0xFFFFD), (0xFFFFE, 0xFFFFF),
          (0x100000, 0x10FFFD), (0x10FFFE, 0x10FFFF)]  # fmt: skip


@dataclass(frozen=True)
class Step:
    """Take from `least` to `most` characters of the set, as many as the rest of the word allows.

    With `not_before`, take none, but fail if the next character is in the set.
    """

    characters: str
    least: int = 1
    most: int | None = 1
    not_before: bool = False


def split_pattern(expression: str) -> dict[str, Any]:
    """Return the table of `expression`: its alternatives, of which the first that matches counts.

    Returns:
        `sets`: lists of ranges [first, last] of code points, and `alternatives`: lists of steps
        {"set": index, "min": n, "max": n or None} or {"not_before": index}.

    Raises:
        ExportError: the expression has something that the runtime does not follow.
    """
    alternatives = list(_alternatives(expression))
    if any(all(step.least == 0 or step.not_before for step in steps) for steps in alternatives):
        raise _unsupported(expression)  # it could match nothing
    sets = list(dict.fromkeys(step.characters for steps in alternatives for step in steps))
    return {
        "sets": [characters_of(one) for one in sets],
        "alternatives": [
            [
                {"not_before": sets.index(step.characters)}
                if step.not_before
                else {"set": sets.index(step.characters), "min": step.least, "max": step.most}
                for step in steps
            ]
            for steps in alternatives
        ],
    }


def _alternatives(expression: str) -> Iterator[list[Step]]:
    """Yield the steps of each alternative. A group may begin an alternative, as in (?i:'s|'t)."""
    at = 0
    while True:
        starts: list[list[Step]] = [[]]
        if group := _GROUP.match(expression, at):
            ignoring_case, at = bool(group[1]), group.end()
            starts = [_steps(part, ignoring_case) for part in group[2].split("|")]
        end = _end(expression, at)
        rest = _steps(expression[at:end])
        yield from (start + rest for start in starts)
        if end == len(expression):
            return
        at = end + 1


def _end(expression: str, at: int) -> int:
    """Return the end of the alternative that begins at `at`."""
    while at < len(expression) and expression[at] != "|":
        one = _SET.match(expression, at)
        at = one.end() if one else at + 1
    return at


def _steps(text: str, ignoring_case: bool = False) -> list[Step]:
    """Read a sequence of sets, each with a count, and of "not before" a set."""
    steps = []
    at = 0
    while at < len(text):
        if ahead := _NOT_BEFORE.match(text, at):
            if not _SET.fullmatch(ahead[1]):
                raise _unsupported(text)
            steps.append(Step(ahead[1], not_before=True))
            at = ahead.end()
            continue
        one = _SET.match(text, at)
        if one is None:
            raise _unsupported(text)
        at = one.end()
        least: int = 1
        most: int | None = 1
        if count := _COUNT.match(text, at):
            at = count.end()
            least, most = _COUNTS[count[1]] if count[1] else _range(count)
        steps.append(Step(f"(?i:{one[0]})" if ignoring_case else one[0], least, most))
    return steps


def _range(count: re.Match[str]) -> tuple[int, int | None]:
    least = int(count[2])
    if not count[3]:
        return least, least
    return least, int(count[4]) if count[4] else None


@lru_cache(maxsize=64)
def characters_of(one: str) -> list[list[int]]:
    """Return the ranges [first, last] of the code points that the expression `one` matches."""
    splitter = Split(Regex(f"(?:{one})+"), "removed")
    ranges: list[list[int]] = []
    for first, last in [*_CHECKED, *((first, first) for first, _ in _ALIKE)]:
        text = "".join(map(chr, range(first, last + 1)))
        others = [place for _, place in splitter.pre_tokenize_str(text)]
        gaps = [(0, 0), *others, (len(text), len(text))]
        ranges += [[first + a, first + b - 1] for (_, a), (b, _) in pairwise(gaps) if b > a]
    whole = dict(_ALIKE)
    ranges = sorted([first, whole.get(first, last)] for first, last in ranges)
    joined: list[list[int]] = []
    for first, last in ranges:
        if joined and joined[-1][1] == first - 1:
            joined[-1][1] = last
        else:
            joined.append([first, last])
    return joined


def _unsupported(expression: str) -> ExportError:
    return ExportError(
        f"The tokenizer splits a text by the regular expression {expression}, which the runtime's"
        " tokenizer does not support."
    )
