"""A bundle whose transformer is an analytic model.

Whole runs of the product can so be compared with diffusers' own scheduler objects.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

import intaglio
from tests.fake_bundle import (
    AXES,
    CHANNELS,
    CLASSES,
    FACTOR,
    PATCH,
    STREAM,
    Array,
    Axes,
    Graphs,
    declared,
    described,
)

SIZE = 16  # pixels
CELLS = SIZE // FACTOR
SCALING, SHIFT = 2.0, 0.25
# The inputs that the model reads only to have them, and the row that each row continues.
_COMMON = (
    "zero = Constant <value_float=0.0> ()", "column = Constant <value_ints=[-1,1,1,1]> ()",
    "x = Gather(latent, branch)", "t_row = Gather(timestep, branch)",
    "t = Reshape(t_row, column)", "label = Cast <to=1> (class)",
    "s_label = ReduceSum <keepdims=0> (label)", "s_mask = ReduceSum <keepdims=0> (mask)",
    "s_ref = ReduceSum <keepdims=0> (ref)", "s_keep = ReduceSum <keepdims=0> (keep)",
    "s = Sum(s_label, s_mask, s_ref, s_keep)", "nothing = Mul(s, zero)",
)  # fmt: skip
# sin(3x) + t x - 0.5 cos(2t), with t from 0 to 1.
VELOCITY = (
    "three = Constant <value_float=3.0> ()", "two = Constant <value_float=2.0> ()",
    "half = Constant <value_float=0.5> ()", "thousand = Constant <value_float=1000.0> ()",
    "u = Div(t, thousand)", "x3 = Mul(x, three)", "sine = Sin(x3)", "ux = Mul(u, x)",
    "u2 = Mul(u, two)", "cosine = Cos(u2)", "c = Mul(cosine, half)", "a = Add(sine, ux)",
    "b = Sub(a, c)", "prediction = Add(b, nothing)",
)  # fmt: skip
# sqrt(1 - p) x + 0.3 sqrt(p) sin(2x + t / 300), with p of the table `products` at t.
EPSILON = (
    "one = Constant <value_float=1.0> ()", "two = Constant <value_float=2.0> ()",
    "third = Constant <value_float=0.3> ()", "scale = Constant <value_float=300.0> ()",
    "index = Cast <to=7> (t)", "p = Gather(products, index)", "q = Sub(one, p)",
    "sigma = Sqrt(q)", "alpha = Sqrt(p)", "x2 = Mul(x, two)", "u = Div(t, scale)",
    "angle = Add(x2, u)", "sine = Sin(angle)", "bent = Mul(sine, third)", "a = Mul(alpha, bent)",
    "b = Mul(sigma, x)", "c = Add(a, b)", "prediction = Add(c, nothing)",
)  # fmt: skip


def transformer(folder: Path, body: Sequence[str], products: Array | None) -> dict[str, Any]:
    """Write the graph and describe it as the manifest lists it."""
    latent: Axes = [CHANNELS, "h", "w"]
    inputs: dict[str, Axes] = {"latent": ["base", *latent]}
    inputs |= {r: AXES[r] for r in ("timestep", "class", "mask", "ref", "branch", "keep")}
    outputs: dict[str, Axes] = {"prediction": ["rows", *latent]}
    ends = [", ".join(declared(*item) for item in axes.items()) for axes in (inputs, outputs)]
    head = f'<ir_version: 10, opset_import: ["" : 18]> g ({ends[0]}) => ({ends[1]}) {{'
    model = onnx.parser.parse_model("\n".join([head, *_COMMON, *body, "}"]))
    if products is not None:
        model.graph.initializer.append(numpy_helper.from_array(products, "products"))
    (folder / "transformer").mkdir()
    (folder / "transformer/model.onnx").write_bytes(model.SerializeToString())
    return described("transformer/model.onnx", inputs, outputs)


def make_bundle(
    folder: Path, scheduler: dict[str, Any], products: Array | None = None
) -> intaglio.Pipeline:
    """Write a bundle and open it: the model EPSILON where there are `products`, else VELOCITY."""
    folder.mkdir()
    graphs = Graphs(folder)
    body = VELOCITY if products is None else EPSILON
    manifest: dict[str, Any] = {
        "schema_version": 1, "producer": {"intaglio": "0.1.0"}, "name": "analytic",
        "family": "fake", "source": "tests", "license": "none", "layout": "forked",
        "dtype": "float32",
        "transformer": {
            "graphs": {"forked": transformer(folder, body, products)}, "blocks": 2,
            "patch_size": PATCH, "channels": STREAM,
        },
        "massive_activations": {"block": 0, "channels": [3], "found_by": "list", "massive": True},
        "prediction_type": "velocity" if products is None else "epsilon",
        "latent": {
            "channels": CHANNELS, "vae_scale_factor": FACTOR, "scaling_factor": SCALING,
            "shift_factor": SHIFT, "max_height": SIZE, "max_width": SIZE,
        },
        "scheduler": scheduler, "classes": CLASSES,
        "vae_decoder": graphs.vae_decoder(), "vae_encoder": graphs.vae_encoder(),
        "defaults": {
            "steps": 1, "cfg_scale": 1.0, "dg_scale": 0.0, "height": SIZE, "width": SIZE,
        },
    }  # fmt: skip
    files = [file for file in folder.rglob("*") if file.is_file()]
    manifest["files"] = {
        file.relative_to(folder).as_posix(): {
            "bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()
        } for file in files
    }  # fmt: skip
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return intaglio.Pipeline.open(folder, device="cpu", threads=1)


def encoded(picture: Array) -> Array:
    """What the bundle's VAE encoder makes of a picture [SIZE, SIZE, 3], [1, CHANNELS, h, w]."""
    pixels = picture.astype(np.float32) / 127.5 - 1
    means = pixels.reshape(CELLS, FACTOR, CELLS, FACTOR, 3).mean((1, 3)).transpose(2, 0, 1)
    return ((np.concatenate([means, means[:1]])[None] - SHIFT) * SCALING).astype(np.float32)
