"""The tables by which we call TensorRT-RTX, against how NVIDIA's own Python bindings call it."""

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# In the order of TensorRtApi's members, as c++filt writes the functions of the bindings that call
# them; empty where they call none.
CALLERS = {
    "runtime": ["lambdas::runtime_deserialize_cuda_engine::", "IRuntime::getLogger() const"],
    "engine": [
        "ICudaEngine::createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy)",
        "ICudaEngine::getNbIOTensors() const",
        "ICudaEngine::getIOTensorName(int) const",
        "ICudaEngine::setWeightStreamingBudgetV2(long)",
        "",
        "ICudaEngine::createExecutionContext(nvinfer1::IRuntimeConfig*)",
        "ICudaEngine::createRuntimeConfig()",
    ],
    "context": [
        "lambdas::context_set_optimization_profile_async::",
        "IExecutionContext::setInputShape(",
        "IExecutionContext::getTensorShape(",
        "lambdas::set_tensor_address(",
        "lambdas::infer_shapes(",
        "lambdas::execute_async_v3(",
        "IExecutionContext::updateDeviceMemorySizeForShapes()",
        "lambdas::context_set_device_memory_v2(",
    ],
    "config": [
        "IRuntimeConfig::setExecutionContextAllocationStrategy(",
        "IRuntimeConfig::createRuntimeCache() const",
        "IRuntimeConfig::setRuntimeCache(",
        "IRuntimeConfig::setCudaGraphStrategy(",
    ],
}


def tables() -> dict[str, list[int]]:
    source = (ROOT / "cpp/src/backend/tensorrt_api.cpp").read_text(encoding="utf-8")
    found = re.search(r"kTensorRtRtx\{\s*true,(.*?)\n\};", source, re.S)
    assert found
    rows = re.findall(r"\{([\d, ]+)\}", found[1])
    return {name: [int(n) for n in row.split(",")] for name, row in zip(CALLERS, rows, strict=True)}


@pytest.fixture(scope="module")
def calls() -> dict[str, set[int]]:
    """For each function of the bindings, the places in a table that it calls or jumps to."""
    spec = find_spec("tensorrt_rtx_bindings")
    if spec is None or spec.origin is None:
        pytest.skip("tensorrt_rtx_bindings is not installed")
    library = Path(spec.origin).with_name("tensorrt_rtx.so")
    code = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", library],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    found: dict[str, set[int]] = {}
    for function in code.split("\n\n"):
        name, _, body = function.partition("\n")
        places = re.findall(r"(?:jmp|call)\s+\*0x([0-9a-f]+)\(%r", body)
        found.setdefault(name, set()).update(int(place, 16) // 8 for place in places)
    return found


@pytest.mark.parametrize("name", CALLERS)
def test_a_method_is_where_the_bindings_call_it(name: str, calls: dict[str, set[int]]) -> None:
    for place, caller in zip(tables()[name], CALLERS[name], strict=True):
        callers = [places for function, places in calls.items() if caller in function]
        assert callers, f"the bindings have no {caller}"
        assert not caller or place in set.union(*callers), caller
