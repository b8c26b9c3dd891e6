"""Bundles on the Hugging Face Hub. Importing this package does not import huggingface_hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

from intaglio import _core

_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([^@\s]+))?")
MANIFEST = "bundle.json"
CARD = "README.md"


@dataclass(frozen=True)
class HubName:
    """A repository org/name of the Hub, and its revision if one is given as org/name@revision."""

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Read `text`. Raises UsageError if it is no name of the Hub."""
        match = _NAME.fullmatch(text)
        if match is None or text[0] in "./":
            raise _core.UsageError(f"{text} is not a name on the Hub: write it as org/name")
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo
