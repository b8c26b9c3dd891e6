"""A model repository for Triton: the bundle as a model of its Python backend."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from intaglio import _core
from intaglio.deploy.contents import Deployment, collect_bundle
from intaglio.deploy.folder import Progress, check_output, copy_sources, placing
from intaglio.deploy.texts import repository_readme
from intaglio.serve.triton_tensors import MAX_BATCH, OUTPUTS, inputs

HEADER = """\
# Checked against Triton's model_config.proto. Parameters are settings of `intaglio serve`
# (docs/serving.md); the batch is max_batch_size, which requests join and leave between steps.
"""


def write_repository(bundle: Path, output: Path, progress: Progress) -> Deployment:
    """Write a repository with one model to `output`; it appears whole or not at all.

    Raises:
        InputError: the bundle, or an output that may not be written.
        UnavailableError: Triton's schema is not installed.
    """
    check_output(output, bundle)
    opened = _core.Bundle.open(bundle)
    if not opened.classes and not (opened.prompt and opened.prompt.encoders):
        raise _core.InputError(
            f"{bundle} has no text encoders, so that no request could say what to draw: export it"
            " with them"
        )
    name = model_name(opened.name)
    deployment = collect_bundle(bundle, f"{name}/1/bundle")
    configuration = config(name, deployment.manifest)
    with placing(output, deployment.bytes) as work:
        copy_sources(deployment, work, progress)
        (work / name / "config.pbtxt").write_text(configuration, encoding="utf-8")
        model = (files("intaglio.deploy") / "templates" / "model.py").read_text("utf-8")
        (work / name / "1" / "model.py").write_text(model, encoding="utf-8")
        (work / "README.md").write_text(repository_readme(deployment, name), encoding="utf-8")
    return deployment


def model_name(bundle: str) -> str:
    """A bundle's name in what folders and URLs may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", bundle).strip(".-") or "intaglio"


def config(name: str, manifest: dict[str, Any]) -> str:
    """The text of config.pbtxt, which is in Triton's schema. Raises UnavailableError."""
    try:
        from google.protobuf import text_format
        from tritonclient.grpc.model_config_pb2 import ModelConfig
    except ImportError as error:
        raise _core.UnavailableError(
            f"Triton's schema is not here ({error}): pip install 'intaglio[triton]'"
        ) from None
    described = [
        {"name": t.name, "data_type": t.data_type, "dims": t.dims, "optional": t.optional}
        for t in inputs(manifest)
    ]
    message = ModelConfig(
        name=name,
        backend="python",
        max_batch_size=MAX_BATCH,
        input=described,
        output=[{"name": t.name, "data_type": t.data_type, "dims": t.dims} for t in OUTPUTS],
        # One scheduler for whatever device it runs on; a second instance would load it twice.
        instance_group=[{"count": 1, "kind": "KIND_MODEL"}],
        dynamic_batching={},
        parameters={"device": {"string_value": "auto"}, "threads": {"string_value": "0"}},
    )
    text: str = HEADER + text_format.MessageToString(message)
    assert text_format.Parse(text, ModelConfig()) == message
    return text
