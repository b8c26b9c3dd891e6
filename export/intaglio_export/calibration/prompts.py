"""The prompts of calibration. This module needs no torch."""

from __future__ import annotations

PROMPTS = (
    "a photograph of a red bicycle leaning on a stone wall",
    "a portrait of an old man with a beard",
    "",
    "an aerial view of a coast in winter, detailed",
)
