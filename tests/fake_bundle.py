"""A bundle of graphs in a few standard operators, whose prediction sums whatever inputs it takes.

For inputs that only some DiT families have: what reaches the graph can be computed in NumPy.
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
from numpy.typing import NDArray

Array = NDArray[Any]
Axes = list[int | str]

CHANNELS, PATCH, FACTOR = 4, 2, 2
STREAM = 8  # channels of the image stream
TEXT_WIDTH, POOLED_WIDTH, MAX_LENGTH = 6, 5, 16
SIZE = 16
CLASSES = {"count": 10, "null": 10}
GUIDANCE = 3.5
AXES: dict[str, Axes] = {
    "timestep": ["base"], "text": ["base", "length", TEXT_WIDTH], "text_mask": ["base", "length"],
    "pooled": ["base", POOLED_WIDTH], "guidance": ["base"], "class": ["base"],
    "position": ["tokens", 3], "mask": [STREAM], "ref": [STREAM], "branch": ["rows"],
    "keep": ["rows", "tokens"],
}  # fmt: skip
VECTORS = ("timestep", "pooled", "guidance", "class")
CONSTANTS = [
    "zero = Constant <value_float=0.0> ()", "half = Constant <value_float=0.5> ()",
    "tenth = Constant <value_float=0.1> ()", "thousandth = Constant <value_float=0.001> ()",
    "one = Constant <value_ints=[1]> ()", "two = Constant <value_ints=[2]> ()",
    "one_two = Constant <value_ints=[1,2]> ()",
]  # fmt: skip
# What each input adds to the number of its row.
TERMS = {
    "timestep": ["n_timestep = Mul(timestep, thousandth)"],
    "text": ["mean = ReduceMean <keepdims=0> (text, one_two)", "n_text = Mul(mean, tenth)"],
    "text_mask": [
        "column = Unsqueeze(text_mask, two)", "marked = Mul(text, column)",
        "n_text_mask = ReduceSum <keepdims=0> (marked, one_two)",
    ],
    "pooled": ["n_pooled = ReduceMean <keepdims=0> (pooled, one)"],
    "guidance": ["n_guidance = Mul(guidance, tenth)"],
    "class": ["label = Cast <to=1> (class)", "n_class = Mul(label, tenth)"],
    "modulation": ["n_modulation = Squeeze(modulation, one)"],
}  # fmt: skip


def predict(latent: Array, timestep: float, keep: float, given: dict[str, Any]) -> Array:
    """What the transformer computes for rows whose other inputs are `given`, by role."""
    number = timestep * 1e-3 + 0.1 * (given.get("guidance", 0) + given.get("class", 0))
    if "text" in given:
        number += 0.1 * given["text"].mean()
    if "text_mask" in given:
        number += (given["text"] * given["text_mask"][..., None]).sum()
    if "pooled" in given:
        number += given["pooled"].mean()
    places = 0.1 * given["position"].sum(-1)[None, :, None] if "position" in given else 0
    return np.asarray(0.5 * latent + number * (0.5 + 0.5 * keep) + places, np.float32)


def model(inputs: Sequence[str], outputs: Sequence[str], body: Sequence[str]) -> bytes:
    """A model in ONNX's textual syntax."""
    head = f'<ir_version: 10, opset_import: ["" : 18]> g ({", ".join(inputs)})'
    lines = [f"{head} => ({', '.join(outputs)}) {{", *CONSTANTS, *body, "}"]
    parsed = onnx.parser.parse_model("\n".join(lines))
    onnx.checker.check_model(parsed, full_check=True)
    return bytes(parsed.SerializeToString())


def kind_of(role: str) -> str:
    return "int64" if role in {"class", "branch", "token_ids"} else "float32"


def declared(role: str, axes: Axes) -> str:
    return f"{kind_of(role).removesuffix('32')}[{','.join(map(str, axes))}] {role}"


def described(path: str, inputs: dict[str, Axes], outputs: dict[str, Axes]) -> dict[str, Any]:
    """The graph as the manifest lists it; tensors are called what their role is."""

    def tensors(axes: dict[str, Axes]) -> list[dict[str, Any]]:
        return [{"name": r, "role": r, "dtype": kind_of(r), "axes": a} for r, a in axes.items()]

    return {"path": path, "inputs": tensors(inputs), "outputs": tensors(outputs)}


class Graphs:
    """Writes graphs into a folder and describes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(
        self, name: str, inputs: dict[str, Axes], outputs: dict[str, Axes], body: Sequence[str]
    ) -> dict[str, Any]:
        path = self.folder / name / "model.onnx"
        path.parent.mkdir()
        ends = [[declared(*item) for item in axes.items()] for axes in (inputs, outputs)]
        path.write_bytes(model(*ends, body))
        return described(f"{name}/model.onnx", inputs, outputs)

    def transformer(self, roles: Sequence[str], packed: bool, hoisted: bool) -> dict[str, Any]:
        """Forked; keep 0 halves what the row's number adds. `position` needs packed latents.

        `hoisted`: its part of timestep, pooled, guidance and class is `modulation` from a graph of
        its own, whose `context` is the text as it is.
        """
        latent: Axes = ["tokens", CHANNELS * PATCH**2] if packed else [CHANNELS, "h", "w"]
        rows = ["timestep", *roles]
        graphs = {}
        taken = AXES
        if hoisted:
            graphs["conditioning"] = self.conditioning(rows)
            rows = ["modulation", *(role for role in roles if role not in VECTORS)]
            taken = AXES | {"modulation": ["base", 1], "context": AXES["text"]}
        numbers = [f"n_{role}" for role in rows if role in TERMS]
        body = ["text = Identity(context)"] if hoisted and "text" in roles else []
        rows.sort(key="text_mask".__eq__)  # its term is of the text
        body += [line for role in rows for line in TERMS.get(role, [])]
        body += [
            f"number = Sum({', '.join(numbers)})", "forked = Gather(number, branch)",
            "kept = ReduceMean <keepdims=0> (keep, one)", "part = Mul(kept, half)",
            "factor = Add(part, half)", "scaled = Mul(forked, factor)",
            f"shape = Constant <value_ints={[-1, 1, 1] if packed else [-1, 1, 1, 1]}> ()",
            "added = Reshape(scaled, shape)", "x = Gather(latent, branch)", "halved = Mul(x, half)",
            "channels = Sum(mask, ref)", "none = Mul(channels, zero)",
            "nothing = ReduceSum <keepdims=0> (none)", "places = Identity(nothing)",
        ]  # fmt: skip
        if "position" in roles:
            body[-1:] = ["place = ReduceSum(position, one)", "places = Mul(place, tenth)"]
        body.append("prediction = Sum(halved, added, nothing, places)")
        op = ("mask", "ref", "branch", "keep")
        inputs: dict[str, Axes] = {"latent": ["base", *latent]}
        named = ["context" if hoisted and role == "text" else role for role in rows]
        inputs |= {role: taken[role] for role in (*named, *op)}
        forked = self.write("transformer", inputs, {"prediction": ["rows", *latent]}, body)
        return graphs | {"forked": forked}

    def conditioning(self, roles: Sequence[str]) -> dict[str, Any]:
        """The sum of what vectors add, and the text as it is."""
        vectors = [role for role in roles if role in VECTORS]
        inputs = {role: ["conditions", *AXES[role][1:]] for role in vectors}
        outputs: dict[str, Axes] = {"modulation": ["conditions", 1]}
        body = [line for role in vectors for line in TERMS[role]]
        body.append(f"number = Sum({', '.join(f'n_{role}' for role in vectors)})")
        body.append("modulation = Unsqueeze(number, one)")
        if "text" in roles:
            inputs["text"] = outputs["context"] = ["prompts", "length", TEXT_WIDTH]
            body.append("context = Identity(text)")
        return self.write("conditioning", inputs, outputs, body)

    def vae_decoder(self) -> dict[str, Any]:
        """The first three channels, every cell FACTOR x FACTOR pixels."""
        body = [
            "begin = Constant <value_ints=[0]> ()", "end = Constant <value_ints=[3]> ()",
            "rgb = Slice(latent, begin, end, one)",
            "scales = Constant <value_floats=[1.0,1.0,2.0,2.0]> ()",
            'image = Resize <mode="nearest"> (rgb, , scales)',
        ]  # fmt: skip
        image: dict[str, Axes] = {"image": ["n", 3, "H", "W"]}
        return self.write("vae_decoder", {"latent": ["n", CHANNELS, "h", "w"]}, image, body)

    def vae_encoder(self) -> dict[str, Any]:
        """Means of FACTOR x FACTOR pixels; the fourth channel is the first again."""
        body = [
            "rgb = AveragePool <kernel_shape=[2,2], strides=[2,2]> (image)",
            "begin = Constant <value_ints=[0]> ()", "red = Slice(rgb, begin, one, one)",
            "latent = Concat <axis=1> (rgb, red)",
        ]  # fmt: skip
        latent: dict[str, Axes] = {"latent": ["n", CHANNELS, "h", "w"]}
        return self.write("vae_encoder", {"image": ["n", 3, "H", "W"]}, latent, body)

    def text_encoder(self) -> dict[str, Any]:
        """Every channel of a token is its id / 1000, and 0 where the mask is."""
        body = [
            "ids = Cast <to=1> (token_ids)", "small = Mul(ids, thousandth)",
            "shown = Mul(small, text_mask)", "column = Unsqueeze(shown, two)",
            f"wide = Constant <value_ints={[1, 1, TEXT_WIDTH]}> ()",
            "hidden = Expand(column, wide)",
        ]  # fmt: skip
        inputs: dict[str, Axes] = {"token_ids": ["n", MAX_LENGTH], "text_mask": ["n", MAX_LENGTH]}
        return self.write("text_encoder", inputs, {"hidden": ["n", MAX_LENGTH, TEXT_WIDTH]}, body)


def make_bundle(
    folder: Path,
    *roles: str,
    packed: bool = False,
    fixed_size: bool = False,
    tokenizer: Path | None = None,
    hoisted: bool = False,
) -> Path:
    """Writes a bundle whose transformer takes `roles` beside the latent, the timestep and the op's;
    `hoisted`: what depends on them alone is computed ahead of the loop.

    With `tokenizer` (tables of a bundle) it has a text encoder; else embeddings must be given.
    """
    folder.mkdir()
    graphs = Graphs(folder)
    manifest: dict[str, Any] = {
        "schema_version": 1, "producer": {"intaglio": "0.1.0"}, "name": "fake", "family": "fake",
        "source": "tests", "license": "none", "layout": "forked", "dtype": "float32",
        "transformer": {
            "graphs": graphs.transformer(roles, packed, hoisted), "blocks": 4,
            "patch_size": PATCH, "channels": STREAM, "max_abs": [1.0, 2.0, 300.0, 4.0],
        },
        "massive_activations": {"block": 1, "channels": [3], "found_by": "list", "massive": True},
        "prediction_type": "velocity",
        "latent": {
            "channels": CHANNELS, "vae_scale_factor": FACTOR, "scaling_factor": 2.0,
            "shift_factor": 0.25, "max_height": SIZE, "max_width": 2 * SIZE,
            "packed": packed, "fixed_size": fixed_size,
        },
        "scheduler": {"type": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
        "vae_decoder": graphs.vae_decoder(), "vae_encoder": graphs.vae_encoder(),
        "defaults": {
            "steps": 3, "cfg_scale": 2.0, "dg_scale": 0.5, "height": SIZE, "width": 2 * SIZE,
        },
    }  # fmt: skip
    if "guidance" in roles:
        manifest["defaults"]["distilled_guidance"] = GUIDANCE
    if "class" in roles:
        manifest["classes"] = CLASSES
    else:
        manifest["prompt"] = prompt_of(folder, graphs, "text_mask" in roles, tokenizer)
    files = [file for file in folder.rglob("*") if file.is_file()]
    manifest["files"] = {
        file.relative_to(folder).as_posix(): {
            "bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()
        } for file in files
    }  # fmt: skip
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


def prompt_of(folder: Path, graphs: Graphs, mask: bool, tokenizer: Path | None) -> dict[str, Any]:
    prompt: dict[str, Any] = {
        "max_sequence_length": MAX_LENGTH, "text_width": TEXT_WIDTH, "encoders": {},
        "text": [{"encoders": [], "length": MAX_LENGTH}], "pooled": [],
    }  # fmt: skip
    if tokenizer:
        (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
        prompt["encoders"]["text_encoder"] = {
            "graph": graphs.text_encoder(), "tokenizer": "tokenizer.json", "max_length": MAX_LENGTH
        }  # fmt: skip
        prompt["text"] = [{"encoders": ["text_encoder"], "length": MAX_LENGTH}]
    if mask:
        prompt["text_mask"] = "text_encoder"
    return prompt
