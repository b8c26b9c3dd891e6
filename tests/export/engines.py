"""Building engines in tests, and what any of them has to be."""

from __future__ import annotations

import hashlib
import json
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime import InferenceSession
from onnxruntime.capi import onnxruntime_pybind11_state as statuses

from intaglio_export.engines.builder import BuildPlan, BuildRequest, build_engines
from intaglio_export.engines.bundle import Component
from intaglio_export.engines.residual import block_sums

ENTRY_POINT = Path(sysconfig.get_path("scripts")) / "intaglio"
ARCH = "sm89,sm120"
RTX = ("--backend", "tensorrt-rtx")
Json = dict[str, Any]
Run = Callable[..., tuple[int, str, str]]


class Names:
    """Remembers which graphs were built."""

    def __init__(self) -> None:
        self.built: list[str] = []

    def start(self, component: Component) -> None:
        self.built.append(component.path)

    def update(self, what: str, done: float) -> None:
        assert what
        assert 0 <= done <= 1

    def finish(self) -> None:
        pass


def build(bundle: Path, **flags: Any) -> tuple[BuildPlan, list[str]]:
    """Build for `ARCH`. Returns what is there then, and the graphs that were built."""
    names = Names()
    work = build_engines(BuildRequest(bundle, "tensorrt-rtx", **({"arch": ARCH} | flags)), names)
    return work, names.built


def without_engines(bundle: Path, copy: Path) -> Path:
    """Copy a bundle, with smaller references: in a small model a token has fewer pixels."""
    shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("engines"))
    path = copy / "bundle.json"
    manifest = read(path)
    if "max_area" in manifest.get("references", {}):
        manifest["references"]["max_area"] = 6400
        path.unlink()  # a hard link
        path.write_text(json.dumps(manifest), "utf-8")
    return copy


def read(path: Path) -> Json:
    document: Json = json.loads(path.read_text("utf-8"))
    return document


def graphs(manifest: Json) -> list[Json]:
    """All graphs of a manifest."""
    encoders = manifest.get("prompt", {}).get("encoders", {}).values()
    found = [*manifest["transformer"]["graphs"].values(), *(e["graph"] for e in encoders)]
    return [
        *found,
        *(manifest[name] for name in ("vae_decoder", "vae_encoder") if name in manifest),
    ]


def language_models(bundle: Path, manifest: Json) -> list[str]:
    """The graphs of the text encoders that are language models, by their tokenizers."""
    encoders = manifest.get("prompt", {}).get("encoders", {}).values()
    types = [read(bundle / encoder["tokenizer"])["type"] for encoder in encoders]
    return [
        encoder["graph"]["path"]
        for encoder, kind in zip(encoders, types, strict=True)
        if kind == "byte_level_bpe"
    ]


def assert_whole(bundle: Path, folder: Path) -> Json:
    """An engine for each graph of `bundle`, with the manifest's inputs and outputs and all weights.

    Returns the components of engine.json.
    """
    manifest, components = read(bundle / "bundle.json"), read(folder / "engine.json")["components"]
    expected, models = graphs(manifest), language_models(bundle, manifest)
    assert list(components) == [graph["path"] for graph in expected]
    files = {entry[file] for entry in components.values() for file in ("plan", "context_model")}
    assert {path.name for path in folder.iterdir()} == files | {"engine.json"}
    for graph in expected:
        entry = components[graph["path"]]
        for kind in ("inputs", "outputs"):
            assert [(t["name"], t["dtype"]) for t in entry[kind]] == [
                (t["name"], t["dtype"]) for t in graph[kind]
            ]
        for tensor, declared in zip(entry["inputs"], graph["inputs"], strict=True):
            assert_covers(tensor, declared["axes"])
        plan = (folder / entry["plan"]).read_bytes()
        assert len(plan) == entry["plan_bytes"] > entry["weights_bytes"]
        assert hashlib.sha256(plan).hexdigest() == entry["plan_sha256"]
        share = 1 / 4 if graph["path"] in models else 1 / 3
        assert_weights(onnx.load(bundle / graph["path"]), plan, entry["weights_bytes"], share)
        assert_context_model(folder / entry["context_model"], graph, plan)
        assert "remarks" not in entry
    return dict(components)


def assert_context_model(file: Path, graph: Json, plan: bytes) -> None:
    """ONNX Runtime takes the model up to the provider, and its tensors are the plan's."""
    onnx.checker.check_model(file)
    model = onnx.load(file)
    (node,) = model.graph.node
    assert list(node.input) == [tensor["name"] for tensor in graph["inputs"]]
    assert list(node.output) == [tensor["name"] for tensor in graph["outputs"]]
    assert all(name.encode() in plan for name in (*node.input, *node.output))
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert (file.parent / values["ep_cache_context"].decode()).read_bytes() == plan
    assert values["partition_name"].decode() == file.stem
    (known,) = model.metadata_props
    assert known.key == "ep_compatibility_info.NvTensorRTRTXExecutionProvider"
    # The provider's own check reads a header of 64 bytes, which begins as the plan does.
    assert bytes.fromhex(known.value) == plan[:64]
    with pytest.raises(statuses.NotImplemented, match="EPContext node generated by 'NvTensorRT"):
        InferenceSession(file, providers=["CPUExecutionProvider"])


def assert_covers(tensor: Json, axes: list[int | str]) -> None:
    """Profiles are in order; an axis is dynamic where they differ, which the graph has to allow."""
    ends = [(p["min"], p["opt"], p["max"]) for p in tensor["profiles"]]
    for i, axis in enumerate(axes):
        sizes = [tuple(shape[i] for shape in profile) for profile in ends]
        fewest = 0 if axis == "references" else 1  # a run may have none
        assert all(fewest <= least <= likely <= most for least, likely, most in sizes)
        every = {size for profile in sizes for size in profile}
        assert {tensor["shape"][i]} == (every if len(every) == 1 else {-1})
        assert isinstance(axis, str) or every == {axis}


def assert_weights(model: onnx.ModelProto, plan: bytes, counted: int, share: float) -> None:
    """All of the graph's weights are in the engine, and none of them twice.

    The plan holds more than `share` of the weights as they are: those that the builder does not
    join, transpose or reorder (convolutions'). What TensorRT counts is what is stored; where the
    graph casts weights, the engine has them as they are after that.
    """
    nodes = model.graph.node
    arrays = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    halves = [array for array in arrays if array.itemsize == 2]
    floats = [array for array in arrays if array.dtype == np.float32] if halves else []
    packed = [array for array in arrays if array.dtype == ml_dtypes.float4_e2m1fn]
    stored = sum(array.nbytes for array in arrays) - sum(array.nbytes // 2 for array in packed)
    least = stored - sum(array.nbytes // 2 for array in floats)
    most = stored + sum(array.nbytes for array in halves)
    # Tables that the graph computes of nothing but constants come on top (Qwen's rotary ones).
    assert 0.98 * least - (64 << 10) < counted < 1.02 * most + (384 << 10)
    times = [plan.count(data) for data in distinct(model)]
    assert max(times) == 1
    convolutions = sum(node.op_type == "Conv" for node in nodes)
    assert convolutions > 1 or sum(times) > share * len(times)


def distinct(model: onnx.ModelProto) -> list[bytes]:
    """The weights that cannot be taken for something else."""
    arrays = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    return [a.tobytes() for a in arrays if a.nbytes >= 512 and (a != a.flat[0]).any()]


def assert_op_follows_block(bundle: Path, blocks: int, block: int) -> None:
    """What the report takes for z after `block` is what the exporter put the op behind."""
    model = onnx.load(bundle / "transformer" / "forked.onnx", load_external_data=False)
    (op,) = (node for node in model.graph.node if node.op_type == "MASuppress")
    sums = block_sums(model, blocks)
    (last,) = (node for node in model.graph.node if node.name == sums[block][-1])
    between = {name: node for node in model.graph.node for name in node.output}
    source = between[op.input[0]]
    if source.op_type == "Slice":  # FLUX's single blocks have the text tokens in the same stream
        source = between[source.input[0]]
    assert source.output[0] == last.output[0]
