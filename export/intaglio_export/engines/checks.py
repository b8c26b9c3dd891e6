"""Check that an engine has the types, tensors and profiles that were requested."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from intaglio_export.bundle.output_folder import MANIFEST
from intaglio_export.engines.bindings import Binding
from intaglio_export.engines.bundle import Component, in_words
from intaglio_export.engines.log import EngineLog
from intaglio_export.engines.network import BuildSpec
from intaglio_export.engines.profiles import Shape
from intaglio_export.errors import ExportError

# Weights may be folded, transposed and padded, so their memory differs a little from the files.
WEIGHTS_RATIO = (0.9, 1.1)
WEIGHTS_SLACK = 256 << 10


def check_engine(component: Component, spec: BuildSpec, bindings: Sequence[Binding]) -> None:
    """Compare the engine with the manifest's inputs and outputs and with the requested profiles.

    Raises:
        ExportError: they differ.
    """
    found = {binding.name: binding for binding in bindings}
    for tensor in (*component.inputs, *component.outputs):
        binding = found.pop(tensor["name"], None)
        if binding is None or not _matches(tensor, binding, spec):
            listed = in_words(tensor["dtype"], tensor["axes"])
            wanted = [
                shapes[tensor["name"]] for shapes in spec.profiles if tensor["name"] in shapes
            ]
            raise _wrong(
                component,
                f"has {tensor['name']} as {_binding_in_words(binding)} where {MANIFEST} and the"
                f" profiles say {listed}{_in_profiles(wanted)}",
            )
    if found:
        raise _wrong(component, f"has {', '.join(sorted(found))} beyond the graph's tensors")


def remarks(component: Component, log: EngineLog) -> list[str]:
    """Return what deserves attention in an engine that can be used."""
    found = list(log.remarks)
    low, high = (ratio * component.weights_bytes for ratio in WEIGHTS_RATIO)
    high += component.table_bytes
    counted = log.weights_bytes
    if counted is not None and not low - WEIGHTS_SLACK <= counted <= high + WEIGHTS_SLACK:
        found.append(
            f"The engine holds {counted} bytes of weights for {component.weights_bytes} in the"
            " graph."
        )
    if not log.layers:
        found.append(
            "The builder's log does not list the layers, so the types of the image stream are not"
            " known."
        )
    return found


def _matches(tensor: dict[str, Any], binding: Binding, spec: BuildSpec) -> bool:
    """Return whether a tensor has the type and shape of the manifest and the requested profiles.

    A dynamic axis may have become a number if the profiles allow only one size.
    """
    shapes = [ends.get(binding.name) for ends in spec.profiles]
    is_input = shapes[0] is not None
    return (
        binding.is_input == is_input
        and binding.dtype == tensor["dtype"]
        and len(binding.shape) == len(tensor["axes"])
        and all(
            isinstance(axis, str) or axis == size
            for axis, size in zip(tensor["axes"], binding.shape, strict=True)
        )
        and (not is_input or list(binding.profiles) == shapes)
    )


def _binding_in_words(binding: Binding | None) -> str:
    if binding is None:
        return "nothing"
    return in_words(binding.dtype, binding.shape) + _in_profiles(binding.profiles)


def _in_profiles(profiles: Sequence[Sequence[Shape]]) -> str:
    """Describe each profile, as in `, from 1x4 to 8x4`."""
    ends = (("x".join(map(str, end)) for end in (ends[0], ends[-1])) for ends in profiles)
    return "".join(", from {} to {}".format(*pair) for pair in ends)


def check_residual(component: Component, residual: list[dict[str, Any]]) -> None:
    """Check that the image stream is float32 wherever it is visible in the engine.

    Raises:
        ExportError: it is not.
    """
    for block in residual:
        if block["dtype"] not in ("float32", "fused"):
            raise _wrong(
                component, f"has the image stream after block {block['block']} in {block['dtype']}"
            )


def _wrong(component: Component, what: str) -> ExportError:
    return ExportError(
        f"The engine of {component.path} is not as requested and was not kept: it {what};"
        " export again."
    )
