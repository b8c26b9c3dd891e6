"""The judge: a classifier in ONNX whose features and classes measure what pictures show.

Its folder holds

    judge.onnx     images [N, H, W, 3] float32 from 0 to 1 -> features [N, F], logits [N, K]
    judge.json     {"classes": [K names], "prompts": [[text, class], ...], ...}
    reference.npz  features [M, F] of real images

A model's own judge is the folder MODEL/judge.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from intaglio.analysis.quality.intervals import Array
from intaglio.analysis.quality.measures import Moments, moments
from intaglio_export.errors import ExportError

FOLDER = "judge"
# How many real images precision and recall are measured with.
NEIGHBOURS = 2000
# How many neighbours of each image precision and recall use.
LEAST = 3


@dataclass(frozen=True, eq=False)
class Judge:
    """An open judge. `labels` holds the class of each of `prompts`; `reference` is float32 [M, F];
    `identity` is a hash of its network."""

    folder: Path
    session: Any
    classes: list[str]
    prompts: list[str]
    labels: NDArray[np.int64]
    reference: NDArray[np.float32]
    moments: Moments
    identity: str

    @classmethod
    def open(cls, folder: Path) -> Judge:
        """Read the three files of `folder`.

        Raises:
            ExportError: a file is missing or does not fit the others.
        """
        try:
            about = json.loads((folder / "judge.json").read_text("utf-8-sig"))
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
                f"The judge {folder} is not valid: {error}; docs/probe.md describes its files."
            ) from error
        if wrong := [c for c in labels if type(c) is not int or not 0 <= c < len(classes)]:
            raise ExportError(
                f"The judge {folder} has a prompt of class {wrong[0]!r}; its classes are 0 to"
                f" {len(classes) - 1}."
            )
        if reference.ndim != 2 or len(reference) <= max(reference.shape[1], LEAST):
            raise ExportError(
                f"{folder / 'reference.npz'} holds features of shape {list(reference.shape)}; it"
                f" needs more rows than features, and more than {LEAST} rows."
            )
        session = _session(folder / "judge.onnx", network)
        judge = cls(
            folder,
            session,
            classes,
            list(prompts),
            np.array(labels),
            reference,
            moments(reference),
            hashlib.sha256(network).hexdigest(),
        )
        judge._check_sizes(*(output.shape for output in _outputs(session)))
        return judge

    def _check_sizes(self, features: Sequence[Any], logits: Sequence[Any]) -> None:
        """Compare output shapes with the rest of the judge; a named axis can have any size."""
        for name, shape, size in (
            ("features", features, self.reference.shape[1]),
            ("logits", logits, len(self.classes)),
        ):
            if len(shape) != 2 or (isinstance(shape[1], int) and shape[1] != size):
                raise ExportError(
                    f"{self.folder / 'judge.onnx'} returns {name} of shape {list(shape)}; the rest"
                    f" of the judge needs [N, {size}]."
                )

    def describe(self, images: Array) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return features [N, F] and classes [N] of pictures [N, H, W, 3].

        Raises:
            ExportError: the network does not take pictures of this size, or returns other shapes.
        """
        feed = {"images": np.clip(images, 0, 1).astype(np.float32)}
        try:
            features, logits = self.session.run(["features", "logits"], feed)
        except Exception as error:  # ONNX Runtime's errors have no common base class
            height, width = images.shape[1:3]
            raise ExportError(
                f"{self.folder / 'judge.onnx'} does not take pictures of {height} x {width}:"
                f" {error}."
            ) from error
        self._check_sizes(features.shape, logits.shape)
        return features, logits.argmax(1)

    @property
    def neighbours(self) -> NDArray[np.float32]:
        """At most `NEIGHBOURS` rows of the reference, evenly spread."""
        return self.reference[:: max(1, len(self.reference) // NEIGHBOURS)][:NEIGHBOURS]


def _outputs(session: Any) -> list[Any]:
    """Return the outputs `features` and `logits` in this order."""
    return sorted(session.get_outputs(), key=lambda output: str(output.name))


def _session(path: Path, network: bytes) -> Any:
    """Open the network of `path`.

    Raises:
        ExportError: it cannot be run, or its inputs or outputs are not those of a judge.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(network, options)
    except Exception as error:  # ONNX Runtime's errors have no common base class
        raise ExportError(f"{path} cannot be run: {error}.") from error
    names = [output.name for output in _outputs(session)]
    if names != ["features", "logits"]:
        raise ExportError(
            f"{path} returns {', '.join(names)}; it has to return features and logits."
        )
    inputs = [(i.name, i.type, len(i.shape)) for i in session.get_inputs()]
    colours = session.get_inputs()[0].shape[-1:] if inputs else []
    if inputs != [("images", "tensor(float)", 4)] or colours[0] not in (3, str(colours[0])):
        taken = ", ".join(f"{i.name} {i.type} {i.shape}" for i in session.get_inputs())
        raise ExportError(
            f"{path} takes {taken}; it has to take only images tensor(float) [N, H, W, 3]."
        )
    return session
