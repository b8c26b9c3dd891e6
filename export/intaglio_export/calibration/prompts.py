"""Prompts that activations are observed with; for all who have no torch, too."""

from __future__ import annotations

PROMPTS = (
    "a photograph of a red bicycle leaning on a stone wall",
    "a portrait of an old man with a beard",
    "",
    "an aerial view of a coast in winter, detailed",
)
