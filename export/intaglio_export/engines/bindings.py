"""The inputs and outputs of an engine, by TensorRT's API and not by its log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from intaglio_export.engines.packages import Package, gpu_target
from intaglio_export.engines.profiles import Shape
from intaglio_export.errors import ExportError

# The smallest, likeliest and largest shape of an input in one profile.
Ends = tuple[Shape, Shape, Shape]
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "BOOL": "bool",
    "UINT8": "uint8",
}


@dataclass(frozen=True)
class Binding:
    """An input or output. A size of -1 is dynamic; only an input has profiles."""

    name: str
    is_input: bool
    dtype: str
    shape: Shape
    profiles: tuple[Ends, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `engine.schema.json`."""
        data: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        if self.is_input:
            data["profiles"] = [
                dict(zip(("min", "opt", "max"), map(list, ends), strict=True))
                for ends in self.profiles
            ]
        return data


def of_network(network: Any, profiles: Sequence[dict[str, Ends]]) -> tuple[Binding, ...]:
    """Return the inputs and outputs of a network that is built with these profiles."""
    return (
        *(_of_network(network.get_input(i), profiles) for i in range(network.num_inputs)),
        *(_of_network(network.get_output(i), ()) for i in range(network.num_outputs)),
    )


def _of_network(tensor: Any, profiles: Sequence[dict[str, Ends]]) -> Binding:
    ends = tuple(shapes[tensor.name] for shapes in profiles)
    shape = tuple(tensor.shape)
    if ends:  # an axis that has one size in all profiles is not dynamic in the engine
        sizes = (
            set(by_axis) for by_axis in zip(*(s for shapes in ends for s in shapes), strict=True)
        )
        shape = tuple(only.pop() if len(only) == 1 else -1 for only in sizes)
    return Binding(tensor.name, bool(ends), _dtype(tensor.dtype), shape, ends)


def of_engine(package: Package, runtime: Any, plan: Any) -> tuple[Binding, ...] | None:
    """Ask the engine itself, which needs a GPU that it runs on; None if there is none.

    Raises:
        ExportError: TensorRT built the engine for the GPU here and cannot load it.
    """
    try:
        gpu_target()
    except ExportError:
        return None
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is not None:
        return tuple(_of_engine(package.module, engine))
    if package.ahead_of_time:  # perhaps for another GPU than the one here
        return None
    raise ExportError(f"{package.title} cannot load the engine that it has built.")


def _of_engine(trt: Any, engine: Any) -> Iterator[Binding]:
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        profiles = range(engine.num_optimization_profiles if is_input else 0)
        ends = [engine.get_tensor_profile_shape(name, profile) for profile in profiles]
        yield Binding(
            name,
            is_input,
            _dtype(engine.get_tensor_dtype(name)),
            tuple(engine.get_tensor_shape(name)),
            tuple((tuple(low), tuple(likely), tuple(high)) for low, likely, high in ends),
        )


def _dtype(dtype: Any) -> str:
    name: str = dtype.name
    return _DTYPES.get(name, name.lower())
