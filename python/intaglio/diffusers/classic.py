"""Detail Guidance in diffusers' classic pipelines, which have no guiders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from intaglio import _core
from intaglio.diffusers.prefix import HOOK, SharedPrefix, blocks_of, remove_hook
from intaglio.diffusers.schedule import make_schedule

Pair = tuple[float, float]
CALL_NAME = HOOK + "_call"


def apply_detail_guidance(
    pipe: Any,
    *,
    channels: Sequence[int],
    block: int,
    dg_scale: float | Pair = 1.0,
    dg_window: Pair = (0.0, 1.0),
    ma_keep: float | Pair = 0.0,
    ref: Sequence[float] | None = None,
) -> AppliedGuidance:
    """Let every call of `pipe` from now on add dg_scale (D_c - D_m) to its prediction.

    The pipeline's own `guidance_scale` (SD3) or `true_cfg_scale` (FLUX) stays what does
    classifier-free guidance. D_m continues D_c after block `block`, so only later blocks are run
    again. Scale and keep are numbers, or pairs that go linearly from the first step to the last.

    Args:
        pipe: a `StableDiffusion3Pipeline` or `FluxPipeline`.
        channels: massive channels, as `intaglio export` finds them.
        block: m, counted from 0 through all blocks in order of execution.
        dg_scale: w; 0 is no Detail Guidance.
        dg_window: step i of N has it when start <= i/N < end.
        ma_keep: 1 leaves the channels alone, 0 suppresses them.
        ref: what each suppressed channel goes to; zeros unless given.

    Returns:
        What takes it off again: by `remove()`, or at the end of a `with` block, also on errors.

    Raises:
        TypeError: another pipeline, or an argument of another kind.
        ValueError: a value outside its range, or guidance that is applied already.
    """
    kinds = {StableDiffusion3Pipeline: _OneCall, FluxPipeline: _TwoCalls}
    kind = kinds.get(type(pipe))
    if kind is None:
        raise TypeError(
            f"apply_detail_guidance takes StableDiffusion3Pipeline or FluxPipeline, not"
            f" {type(pipe).__name__}; modular pipelines take the guider DetailGuidance"
        )
    schedule = make_schedule(dg_scale=dg_scale, dg_window=dg_window, ma_keep=ma_keep)
    return kind(pipe, SharedPrefix(block, channels, ref), schedule)


class AppliedGuidance(ABC):
    """Detail Guidance on a pipeline, until `remove()` or the end of a `with` block."""

    def __init__(self, pipe: Any, prefix: SharedPrefix, schedule: _core.Guidance) -> None:
        self._pipe, self._prefix, self._schedule = pipe, prefix, schedule
        self._transformer: nn.Module = pipe.transformer
        prefix.check(self._transformer)
        first = HookRegistry.check_if_exists_or_initialize(blocks_of(self._transformer)[0])
        if first.get_hook(HOOK) is not None:
            raise ValueError("the pipeline has Detail Guidance already: remove() it first")
        prefix.attach(self._transformer)
        # A hook of torch's: accelerate's offloading exchanges `forward` after every call.
        self._handle = self._transformer.register_forward_hook(self._after_pass, with_kwargs=True)

    def remove(self) -> None:
        """Leave the pipeline as it was; a second time does nothing."""
        self._handle.remove()
        self._prefix.detach()
        self._prefix.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    @abstractmethod
    def _addition(self, kwargs: dict[str, Any], prediction: torch.Tensor) -> torch.Tensor | None:
        """What this call's `prediction` lacks, in its shape, float32; None for nothing."""

    def _after_pass(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """After the transformer's own pass on what the pipeline gave it."""
        _refuse(module, kwargs)
        try:
            prediction = output[0]
            addition = self._addition(kwargs, prediction)
        finally:
            self._prefix.forget()
        if addition is None:
            return output
        guided = (prediction.float() + addition).to(prediction.dtype)
        return Transformer2DModelOutput(guided) if kwargs.get("return_dict", True) else (guided,)

    def _difference(
        self, kwargs: dict[str, Any], prediction: torch.Tensor, rows: slice
    ) -> torch.Tensor | None:
        """w (D_c - D_m), float32, where `rows` of the pass are D_c; None at a step without."""
        weights = _core.weights_at(self._schedule, *position(self._pipe.scheduler))
        if not weights.degraded:
            return None
        self._prefix.resume(weights.ma_keep, rows)
        # `forward` and not the module, whose hook we are in.
        degraded = self._transformer.forward(**kwargs | {"return_dict": False})[0]
        difference: torch.Tensor = prediction[rows].float() - degraded.float()
        return weights.w * difference


class _OneCall(AppliedGuidance):
    """SD3: with guidance, one call has the rows of D_0 and then as many of D_c.

    The pipeline makes D_0 + s (D_c - D_0) of them, to which what both have more is added once.
    """

    def _addition(self, kwargs: dict[str, Any], prediction: torch.Tensor) -> torch.Tensor | None:
        parts = 2 if self._pipe.do_classifier_free_guidance else 1
        rows = slice(len(prediction) - len(prediction) // parts, None)
        conditional = {
            name: value[rows] if isinstance(value, torch.Tensor) else value
            for name, value in kwargs.items()
        }
        difference = self._difference(conditional, prediction, rows)
        return None if difference is None else difference.repeat(parts, 1, 1, 1)


class _TwoCalls(AppliedGuidance):
    """FLUX: a call "cond", and with true guidance another, "uncond", at the same step.

    The pipeline names them for its caches. Both are given the difference: in D_0 + s (D_c - D_0)
    it is then added once, whatever s is.
    """

    def __init__(self, pipe: Any, prefix: SharedPrefix, schedule: _core.Guidance) -> None:
        super().__init__(pipe, prefix, schedule)
        self._call = _CallName()
        self._kept: torch.Tensor | None = None
        self._first = blocks_of(self._transformer)[0]
        registry = HookRegistry.check_if_exists_or_initialize(self._first)
        registry.register_hook(self._call, CALL_NAME)
        self._renew_names()

    def remove(self) -> None:
        super().remove()
        remove_hook(self._first, CALL_NAME)
        self._renew_names()
        self._kept = None

    def _renew_names(self) -> None:
        """diffusers keeps a list of the hooks that it tells the calls' names."""
        registry = HookRegistry.check_if_exists_or_initialize(self._transformer)
        registry.invalidate_child_registries_cache()

    def _addition(self, kwargs: dict[str, Any], prediction: torch.Tensor) -> torch.Tensor | None:
        if self._call.name == "cond":
            self._kept = self._difference(kwargs, prediction, slice(None))
        return self._kept if self._call.name else None


class _CallName(ModelHook):  # type: ignore[misc]
    """Is told the name of the call that the pipeline is in; does nothing to the block."""

    _is_stateful = True

    def __init__(self) -> None:
        super().__init__()
        self._state = StateManager(BaseState)

    @property
    def name(self) -> str | None:
        """None outside the pipeline's loop."""
        try:
            return str(self._state.context.name)
        except ValueError:
            return None

    def reset_state(self, module: nn.Module) -> nn.Module:
        self._state.reset()
        return module


def position(scheduler: Any) -> tuple[int, int]:
    """Solver step i of N that runs, of a scheduler of diffusers' in the middle of a run.

    Evaluations of one solver step share i (Heun); image-to-image counts the steps it runs.
    """
    begin = scheduler.begin_index or 0
    index = begin if scheduler.step_index is None else scheduler.step_index
    evaluations = len(scheduler.timesteps) - begin
    return (index - begin) // scheduler.order, -(-evaluations // scheduler.order)


def _refuse(transformer: nn.Module, kwargs: dict[str, Any]) -> None:
    """What would run the model in ways that are not followed here."""
    if getattr(transformer, "is_cache_enabled", False):
        raise ValueError("Detail Guidance does not go with a cache: transformer.disable_cache()")
    if kwargs.get("skip_layers") is not None:
        raise ValueError("Detail Guidance does not go with skip_guidance_layers: leave them out")
    if any(name.startswith("ip_") for name in kwargs.get("joint_attention_kwargs") or {}):
        raise ValueError("Detail Guidance does not go with an IP adapter: leave its image out")
