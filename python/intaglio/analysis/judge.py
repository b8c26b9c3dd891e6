"""A judge: a classifier in ONNX whose features and classes measure what pictures show.

A folder with

    judge.onnx     images [N, H, W, 3] float32 from 0 to 1 -> features [N, F], logits [N, K]
    judge.json     {"classes": [K names], "prompts": [[text, class], ...], ...}
    reference.npz  features [M, F] of real images

A model's own judge lies beside it as MODEL/judge.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from intaglio.analysis.quality import Array, Moments, moments
from intaglio_export.errors import ExportError

FOLDER = "judge"
# Real images that precision and recall are measured with.
NEIGHBOURS = 2000


@dataclass(frozen=True, eq=False)
class Judge:
    """An opened judge. `prompts` and `labels` go together; `reference` is float32 [M, F];
    `identity` tells its network from others."""

    session: Any
    classes: list[str]
    prompts: list[str]
    labels: NDArray[np.int64]
    reference: NDArray[np.float32]
    moments: Moments
    identity: str

    @classmethod
    def open(cls, folder: Path) -> Judge:
        """Read the three files.

        Raises:
            ExportError: one is missing or does not fit.
        """
        try:
            about = json.loads((folder / "judge.json").read_text("utf-8"))
            reference = np.load(folder / "reference.npz")["features"].astype(np.float32)
            network = (folder / "judge.onnx").read_bytes()
            prompts, labels = zip(*about["prompts"], strict=True)
            classes = list(about["classes"])
        except OSError as error:
            raise ExportError(
                f"The judge {folder} cannot be read: {error.filename}: {error.strerror}."
            ) from error
        except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise ExportError(
                f"The judge {folder} is not one: {error}; docs/probe.md says what its files hold."
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(network, options)
        except Exception as error:  # its classes are of the compiled module, without a common base
            raise ExportError(f"{folder / 'judge.onnx'} cannot be run: {error}.") from error
        names = {output.name for output in session.get_outputs()}
        if names != {"features", "logits"}:
            raise ExportError(
                f"{folder / 'judge.onnx'} gives {', '.join(sorted(names))}; it has to give features"
                " and logits."
            )
        identity = hashlib.sha256(network).hexdigest()
        return cls(
            session,
            classes,
            list(prompts),
            np.array(labels),
            reference,
            moments(reference),
            identity,
        )

    def describe(self, images: Array) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Features [N, F] and classes [N] of pictures [N, H, W, 3]."""
        feed = {"images": np.clip(images, 0, 1).astype(np.float32)}
        features, logits = self.session.run(["features", "logits"], feed)
        return features, logits.argmax(1)

    @property
    def neighbours(self) -> NDArray[np.float32]:
        """At most `NEIGHBOURS` of the reference, evenly spread."""
        return self.reference[:: max(1, len(self.reference) // NEIGHBOURS)][:NEIGHBOURS]
