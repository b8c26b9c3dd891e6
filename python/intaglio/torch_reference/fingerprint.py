"""Hashes that identify a model, so that stored measurements are reused for the same model only."""

from __future__ import annotations

import hashlib
import json

from torch import nn

from intaglio.torch_reference.model import Model


def fingerprint(network: nn.Module) -> str:
    """Return a hash of the names, shapes and first 1024 values of a network's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.flatten()[:1024].double().numpy().tobytes())
    return digest.hexdigest()


def identity(model: Model) -> str:
    """Return a hash of everything that decides which picture a seed draws: the networks' weights,
    the scheduler, the precision and the prompts."""
    adapter = model.adapter
    names = ("transformer", "vae", *adapter.text_encoders)
    networks = {name: getattr(adapter.pipeline, name) for name in names}
    scheduler = adapter.pipeline.scheduler
    what = [
        {name: network and fingerprint(network) for name, network in networks.items()},
        [str(adapter.dtype), str(adapter.latent()), model.prompts, model.max_sequence_length],
        [type(scheduler).__name__, dict(scheduler.config)],
    ]
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()
