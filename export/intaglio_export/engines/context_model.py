"""The ONNX model by which ONNX Runtime's provider for TensorRT-RTX runs a plan.

The model has one node, EPContext of com.microsoft, which names the plan. Its attributes are those
that the provider writes and reads itself (github.com/NVIDIA/TensorRT-RTX-EP-ABI,
src/onnx_ctx_model_helper.cc).
"""

from __future__ import annotations

from pathlib import Path

import onnx

from intaglio_export.engines.bundle import Component
from intaglio_export.engines.key import EngineSettings

PROVIDER = "NvTensorRTRTXExecutionProvider"
# ONNX Runtime gives this part of a model's metadata to the provider, which says whether the engine
# runs on the GPU and in this version.
_COMPATIBILITY = f"ep_compatibility_info.{PROVIDER}"
_DOMAIN = "com.microsoft"


def write(component: Component, settings: EngineSettings, plan: Path, header: bytes) -> str:
    """Write the model beside `plan`, and return its name. `header` is the beginning of the plan."""
    file = plan.with_suffix(".onnx")
    unfinished = file.with_suffix(".partial")
    onnx.save(_model(component, settings, plan, header), unfinished)
    unfinished.replace(file)
    return file.name


def _model(
    component: Component, settings: EngineSettings, plan: Path, header: bytes
) -> onnx.ModelProto:
    source = component.graph
    # The provider finds the engine's tensors by the names of the node's.
    node = onnx.helper.make_node(
        "EPContext",
        [value.name for value in source.graph.input],
        [value.name for value in source.graph.output],
        # The provider keeps what it compiles for the GPU in a file of this name.
        name=plan.stem,
        domain=_DOMAIN,
        main_context=0,  # every node has an engine of its own
        embed_mode=0,  # the engine is in a file, which has to be in the model's folder or below
        ep_cache_context=plan.name,
        ep_sdk_version=settings.version,
        hardware_architecture=",".join(settings.targets),
        onnx_model_filename=Path(component.path).name,
        partition_name=plan.stem,
        source=PROVIDER,
    )
    graph = onnx.helper.make_graph([node], plan.stem, source.graph.input, source.graph.output)
    main = next(opset.version for opset in source.opset_import if not opset.domain)
    model = onnx.helper.make_model(
        graph,
        ir_version=source.ir_version,
        opset_imports=[
            onnx.helper.make_opsetid("", main),
            onnx.helper.make_opsetid(_DOMAIN, 1),
        ],
    )
    onnx.helper.set_model_props(model, {_COMPATIBILITY: header.hex()})
    return model
