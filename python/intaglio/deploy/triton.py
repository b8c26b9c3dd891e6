"""The target `triton`: a model repository with the bundle as a model of the Python backend."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from intaglio import _core
from intaglio.deploy.contents import Deployment, collect_bundle
from intaglio.deploy.output import Progress, check_output, copy_sources, temporary_output
from intaglio.deploy.texts import repository_readme
from intaglio.serve.triton_tensors import MAX_BATCH, OUTPUTS, inputs

HEADER = """\
# Checked against Triton's model_config.proto. The parameters are settings of `intaglio serve`
# (docs/serving.md). Requests join and leave a batch of up to max_batch_size images between steps.
"""


def write_repository(bundle: Path, output: Path, progress: Progress) -> Deployment:
    """Write a repository with one model to `output`, which appears complete or not at all.

    Raises:
        InputError: the bundle is invalid, or the output cannot be written.
        UnavailableError: Triton's schema is not installed.
    """
    check_output(output, bundle)
    opened = _core.Bundle.open(bundle)
    if not opened.classes and not (opened.prompt and opened.prompt.encoders):
        raise _core.InputError(
            f"{bundle} has no text encoders, which requests need for their prompts: export it"
            " with text encoders"
        )
    name = model_name(opened.name)
    deployment = collect_bundle(bundle, f"{name}/1/bundle")
    configuration = config(name, deployment.manifest)
    with temporary_output(output, deployment.bytes) as work:
        copy_sources(deployment, work, progress)
        (work / name / "config.pbtxt").write_text(configuration, encoding="utf-8")
        model = (files("intaglio.deploy") / "templates" / "model.py").read_text("utf-8")
        (work / name / "1" / "model.py").write_text(model, encoding="utf-8")
        (work / "README.md").write_text(repository_readme(deployment, name), encoding="utf-8")
    return deployment


def model_name(bundle: str) -> str:
    """Return the bundle's name, reduced to characters that folders and URLs allow."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", bundle).strip(".-") or "intaglio"


def config(name: str, manifest: dict[str, Any]) -> str:
    """Return config.pbtxt, checked by Triton's schema. Raises UnavailableError without it."""
    try:
        from google.protobuf import text_format
        from tritonclient.grpc.model_config_pb2 import ModelConfig
    except ImportError as error:
        raise _core.UnavailableError(
            f"Triton's schema is not installed ({error}): pip install 'intaglio[triton]'"
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
        # One instance on any device, since a second one would load the model twice.
        instance_group=[{"count": 1, "kind": "KIND_MODEL"}],
        dynamic_batching={},
        parameters={"device": {"string_value": "auto"}, "threads": {"string_value": "0"}},
    )
    text: str = HEADER + text_format.MessageToString(message)
    assert text_format.Parse(text, ModelConfig()) == message
    return text
