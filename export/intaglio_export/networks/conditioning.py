"""Split the transformer into what depends only on prompt and timestep, and the rest.

AdaLN modulations depend on the timestep and on vectors from the prompt, the class or the guidance.
The prompt's projection depends on the prompt. Both can be computed before the denoising loop, so
the graph of the loop has no weights for them. A hook on each of these modules reads its result or
argument in the first part, or replaces it in the second. The model's own code runs unchanged, and
unused nodes disappear when the graph is optimized.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from intaglio_export.adapters.base import Adapter, Inputs
from intaglio_export.adapters.references import ReferencesAdapter
from intaglio_export.graph_specs import TensorSpec
from intaglio_export.precision import LowPrecisionMatmuls

# The inputs of the transformer that modulations depend on.
VECTORS = ("timestep", "pooled", "guidance", "class")
Rows = Callable[[torch.Tensor], torch.Tensor]


def conditioning_inputs(adapter: Adapter) -> tuple[TensorSpec, ...]:
    """Return the inputs of the first part: rows `conditions` of vectors, and `prompts` of text."""
    vectors = [replace(s, axes=("conditions", *s.axes[1:])) for s in _of(adapter, VECTORS)]
    roles = ("text", "text_mask") if adapter.projects_with_mask else ("text",)
    text = [replace(s, axes=("prompts", *s.axes[1:])) for s in _of(adapter, roles)]
    return (*vectors, *text)


def conditioning_outputs(adapter: Adapter) -> tuple[TensorSpec, ...]:
    """Return its outputs: all modulations side by side, and `context` if there is text."""
    width = sum(modulation.width for modulation in adapter.modulations())
    outputs = [TensorSpec("modulation", ("conditions", width))]
    for text in _of(adapter, ("text",)):
        projected = adapter.projection()[-1]
        axes = ("prompts", text.axes[1], _width(projected))
        outputs.append(TensorSpec("context", axes))
    return tuple(outputs)


def loop_inputs(adapter: Adapter) -> tuple[TensorSpec, ...]:
    """Return the inputs of the second part, where outputs of the first replace some inputs."""
    computed = {spec.role: spec for spec in conditioning_outputs(adapter)}
    inputs = []
    for spec in adapter.inputs():
        role = {"timestep": "modulation", "text": "context"}.get(spec.role, spec.role)
        if role in computed:
            inputs.append(TensorSpec(role, ("base_rows", *computed[role].axes[1:])))
        elif role not in VECTORS:
            inputs.append(spec)
    return (*inputs, *_reference_inputs(adapter))


class ConditioningTransformer(nn.Module):
    """The first part, from `conditioning_inputs` to `conditioning_outputs`."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.transformer = adapter.transformer
        self._adapter = adapter

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        specs = conditioning_inputs(self._adapter)
        inputs = {spec.role: x for spec, x in zip(specs, tensors, strict=True)}
        text, mask = inputs.pop("text", None), inputs.pop("text_mask", None)
        patch = self._adapter.patch_size
        sizes = {"base_rows": inputs["timestep"].shape[0], "text_length": 1, "tokens": 1}
        sizes |= {"latent_height": patch, "latent_width": patch}
        whole = _completed(self._adapter, inputs, sizes)
        tokens = [whole[role] for role in whole.keys() - inputs.keys()]
        precision = LowPrecisionMatmuls(self._adapter.dtype, lambda: "the modulations")
        # The inner mode sees a call first, so no weight is converted for a product over tokens.
        with _collected(self._adapter) as collected, precision, _WithoutTokens(tokens):
            self._adapter.predict(whole)
        modulation = torch.cat([collected[k] for k in range(len(collected))], dim=1)
        return (modulation,) if text is None else (modulation, self._adapter.project(text, mask))


def denoise(
    adapter: Adapter,
    tensors: Sequence[torch.Tensor],
    block: int | None = None,
    rows: Rows = lambda value: value,
) -> torch.Tensor:
    """Run the second part and return the prediction. `tensors` have the order of `loop_inputs`.

    `rows` gathers the rows of all modulations after `block`, where the rows change.
    """
    inputs = {spec.role: x for spec, x in zip(loop_inputs(adapter), tensors, strict=True)}
    modulation, context = inputs.pop("modulation"), inputs.pop("context", None)
    sizes = {"base_rows": modulation.shape[0]}
    if context is not None:
        sizes["text_length"] = context.shape[1]
    parts = _parts(adapter, modulation, block, rows)
    with _replaced(adapter, parts, context):
        return adapter.run(_completed(adapter, inputs, sizes))


@torch.no_grad()
def condition(adapter: Adapter, inputs: Inputs) -> list[torch.Tensor]:
    """Return the tensors for `denoise` that stand for `inputs` of the whole transformer.

    References that are not among them have no tokens.
    """
    vectors = [inputs[spec.role] for spec in conditioning_inputs(adapter)]
    roles = [spec.role for spec in conditioning_outputs(adapter)]
    sizes = {"base_rows": len(inputs["latent"]), "references": 0}
    none = {spec.role: torch.zeros(_shape(spec, sizes)) for spec in _reference_inputs(adapter)}
    made = dict(zip(roles, ConditioningTransformer(adapter)(*vectors), strict=True))
    known = none | inputs | made
    return [known[spec.role] for spec in loop_inputs(adapter)]


def _of(adapter: Adapter, roles: Sequence[str]) -> list[TensorSpec]:
    return [spec for spec in adapter.inputs() if spec.role in roles]


def _reference_inputs(adapter: Adapter) -> tuple[TensorSpec, ...]:
    return adapter.reference_inputs() if isinstance(adapter, ReferencesAdapter) else ()


def _width(module: nn.Module) -> int:
    """Return the channels of a projection's result, which are those of its last Linear."""
    return [m.out_features for m in module.modules() if isinstance(m, nn.Linear)][-1]


def _completed(adapter: Adapter, inputs: Inputs, sizes: Mapping[str, int]) -> Inputs:
    """Add zeros for the other inputs of the transformer, on which no used value depends."""
    some = next(iter(inputs.values()))
    zeros = {
        spec.role: some.new_zeros(_shape(spec, sizes), dtype=spec.dtype)
        for spec in adapter.inputs()
        if spec.role not in inputs
    }
    return zeros | inputs


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> list[int]:
    return [sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes]


def _parts(
    adapter: Adapter, modulation: torch.Tensor, block: int | None, rows: Rows
) -> list[torch.Tensor]:
    """Split `modulation` into the columns of each modulation, and gather rows after `block`."""
    found = adapter.modulations()
    before = [m.width for m in found if block is None or m.block <= block]
    after = [m.width for m in found[len(before) :]]
    if not after:
        return list(torch.split(modulation, before, dim=1))
    first, rest = torch.split(modulation, [sum(before), sum(after)], dim=1)
    return [*torch.split(first, before, dim=1), *torch.split(rows(rest), after, dim=1)]


@contextmanager
def _collected(adapter: Adapter) -> Iterator[dict[int, torch.Tensor]]:
    """Collect the modulations in a forward inside, by their index."""
    collected: dict[int, torch.Tensor] = {}

    def collect(index: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def keep(values: torch.Tensor) -> torch.Tensor:
            collected[index] = values.flatten(1)
            return values

        return keep

    found = enumerate(adapter.modulations())
    with _hooked(_hook(m.module, m.argument, collect(index)) for index, m in found):
        yield collected


@contextmanager
def _replaced(
    adapter: Adapter, parts: Sequence[torch.Tensor], context: torch.Tensor | None
) -> Iterator[None]:
    """Replace the modulations in a forward inside by `parts`, and the projection by `context`."""

    def replace_by(result: torch.Tensor) -> Callable[[Any], torch.Tensor]:
        return lambda values: result

    hooks = [
        _hook(m.module, m.argument, replace_by(part.reshape(-1, *m.shape) if m.argument else part))
        for m, part in zip(adapter.modulations(), parts, strict=True)
    ]
    if context is not None:
        hooks.append(_hook(adapter.projection()[-1], None, replace_by(context)))
    with _hooked(hooks):
        yield


def _hook(
    module: nn.Module, argument: str | None, change: Callable[[torch.Tensor], torch.Tensor]
) -> Any:
    """Register a hook that passes a value to `change` and takes its result instead.

    The value is the module's result, or `argument` of its forward.
    """
    if argument is None:
        return module.register_forward_hook(lambda module, args, output: change(output))
    signature = inspect.signature(module.forward)

    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.arguments[argument] = change(bound.arguments[argument])
        return bound.args, bound.kwargs

    return module.register_forward_pre_hook(before, with_kwargs=True)


@contextmanager
def _hooked(handles: Iterable[Any]) -> Iterator[None]:
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()


class _WithoutTokens(TorchFunctionMode):
    """While active, matmuls and attention over tokens return zeros and read no weights.

    Whatever is computed from `tokens`, the inputs with a token axis, belongs to tokens too. Only
    what a forward computes from conditioning vectors alone remains, whatever its axes are.
    """

    def __init__(self, tokens: Iterable[torch.Tensor]) -> None:
        super().__init__()
        # Weak references, because a forward makes more of such tensors than the weights take.
        self._tokens = WeakTensorKeyDictionary(dict.fromkeys(tokens))

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # The second argument of type_as gives its type and no values.
        read = args[0] if func is torch.Tensor.type_as else (args, kwargs)
        if not any(leaf in self._tokens for leaf in _tensors(read)):
            return func(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            result = torch.zeros_like(args[0] if args else kwargs["query"])
        elif func is functional.linear:
            result = args[0].new_zeros(*args[0].shape[:-1], args[1].shape[0])
        else:
            result = func(*args, **kwargs)
        for made in _tensors(result):
            self._tokens[made] = None
        return result


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
