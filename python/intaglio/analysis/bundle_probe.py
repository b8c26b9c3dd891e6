"""The first three questions, of an observed bundle: with the runtime, and without torch."""

from __future__ import annotations
