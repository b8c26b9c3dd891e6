"""Detail Guidance in diffusers' classic pipelines, which have no guiders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial, wraps
from inspect import signature
from threading import get_ident
from typing import Any, Self

import torch
from diffusers import (
    ChromaPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    FluxPipeline,
    StableDiffusion3Pipeline,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from intaglio import _core
from intaglio.diffusers.prefix import HOOK, SharedPrefix, blocks_of, remove_hook
from intaglio.diffusers.rules import Rule
from intaglio.diffusers.schedule import make_schedule
from intaglio.torch_reference.guidance import term

Pair = tuple[float, float]
CALL_NAME = HOOK + "_call"
_CALLBACKS = (PipelineCallback, MultiPipelineCallbacks)
# Attribute of the class of a pipeline that has guidance.
_ATTRIBUTE = "_detail_guidance"


def apply_detail_guidance(
    pipe: Any,
    *,
    channels: Sequence[int],
    block: int,
    dg_scale: float | Pair = 1.0,
    dg_window: Pair = (0.0, 1.0),
    ma_keep: float | Pair = 0.0,
    ref: Sequence[float] | None = None,
    cfg: BaseGuidance | None = None,
) -> AppliedGuidance:
    """Add dg_scale (D_c - D_m) to the prediction in every later call of `pipe`.

    Classifier-free guidance is still set by the pipeline's own `guidance_scale` (SD3, FLUX.2,
    Chroma) or `true_cfg_scale` (FLUX.1). D_m continues D_c after block `block`, so only later
    blocks run again. `dg_scale` and `ma_keep` are numbers, or pairs that go linearly from the first
    step to the last.

    Copies of the pipeline and other pipelines of the same parts, such as those of diffusers'
    `from_pipe`, are not affected. If the pipeline gets another transformer, its later calls have
    guidance with that one.

    Args:
        pipe: a `StableDiffusion3Pipeline`, `FluxPipeline`, `Flux2Pipeline`, `Flux2KleinPipeline` or
            `ChromaPipeline`.
        channels: the massive channels, as `intaglio export` finds them.
        block: m, counted from 0 through all blocks in order of execution.
        dg_scale: w; 0 turns Detail Guidance off.
        dg_window: step i of N has Detail Guidance if start <= i/N < end.
        ma_keep: 1 leaves the channels alone, 0 suppresses them.
        ref: the value that each suppressed channel goes to; zeros by default.
        cfg: a guider of diffusers that combines D_c and D_0 in place of SD3's own guidance, as
            `ClassifierFreeZeroStarGuidance(5.0)`. The pipeline still has to run D_0: give it any
            `guidance_scale` above 1, or its call raises ValueError.

    Returns:
        A handle that removes the guidance, by `remove()` or at the end of a `with` block.

    Raises:
        TypeError: the pipeline or the type of an argument is not supported.
        ValueError: a value is outside its range, the transformer is compiled, or the pipeline has
            Detail Guidance already. Calls of the pipeline raise it too.
    """
    if applied := getattr(pipe, _ATTRIBUTE, None):
        if pipe is applied._pipe:
            raise ValueError("the pipeline has Detail Guidance already: remove() it first")
        pipe.__class__ = applied._plain  # a copy has the class, but not the guidance
    if type(pipe) not in _RUNS:
        names = ", ".join(kind.__name__ for kind in _RUNS)
        raise TypeError(
            f"apply_detail_guidance takes {names}, not {type(pipe).__name__}; modular pipelines"
            " take the guider DetailGuidance"
        )
    if cfg is not None and _RUNS[type(pipe)] is not _OneCall:
        raise TypeError(
            f"cfg is for StableDiffusion3Pipeline: {type(pipe).__name__} keeps its own guidance"
        )
    schedule = make_schedule(dg_scale=dg_scale, dg_window=dg_window, ma_keep=ma_keep)
    make_prefix = partial(SharedPrefix, block, channels, ref)
    make_prefix().check(pipe.transformer)
    return AppliedGuidance(pipe, make_prefix, schedule, Rule(cfg) if cfg is not None else None)


class AppliedGuidance:
    """Detail Guidance on a pipeline, until `remove()` or the end of a `with` block.

    The transformer has hooks only while this pipeline runs, since other pipelines may share it.
    """

    def __init__(
        self,
        pipe: Any,
        make_prefix: Callable[[], SharedPrefix],
        schedule: _core.Guidance,
        rule: Rule | None,
    ) -> None:
        self._pipe, self._plain = pipe, type(pipe)
        self._make_prefix, self._schedule, self._rule = make_prefix, schedule, rule
        pipe.__class__ = _guided_class(self._plain, self)

    def remove(self) -> None:
        """Restore the pipeline; calling it again does nothing."""
        if self._pipe is not None:
            self._pipe.__class__ = self._plain
            self._pipe = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _run(self, pipe: Any) -> AbstractContextManager[Any]:
        """Return the context in which `pipe` runs, which may be a copy of the guided pipeline."""
        if pipe is not self._pipe:
            return nullcontext()
        return _RUNS[self._plain](pipe, self._make_prefix(), self._schedule, self._rule)


def _guided_class(plain: type, applied: AppliedGuidance) -> type:
    """Return a subclass of `plain` that runs with guidance. It has the same name, which diffusers
    writes into saved pipelines and uses to find related ones.
    """

    @wraps(plain.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with applied._run(self) as run:
            if run:
                given = signature(plain.__call__).bind(self, *args, **kwargs)
                given.apply_defaults()
                run.check(given.arguments)
            callback = kwargs.get("callback_on_step_end")
            # diffusers' own callbacks run no pipeline, and it knows them by their class.
            if run and callback and not isinstance(callback, _CALLBACKS):
                kwargs["callback_on_step_end"] = run.without_guidance(callback)
            return plain.__call__(self, *args, **kwargs)

    names = {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(plain.__name__, (plain,), {"__call__": call, _ATTRIBUTE: applied, **names})


class _Run(ABC):
    """One call of a pipeline with Detail Guidance, as a context."""

    def __init__(
        self, pipe: Any, prefix: SharedPrefix, schedule: _core.Guidance, rule: Rule | None
    ) -> None:
        self._pipe, self._prefix, self._schedule, self._rule = pipe, prefix, schedule, rule
        self._transformer: nn.Module = pipe.transformer

    def __enter__(self) -> Self:
        self._prefix.attach(self._transformer)
        # This is a torch hook because accelerate's offloading replaces `forward` after every call.
        self._handle = self._transformer.register_forward_hook(self._after_pass, with_kwargs=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()
        self._prefix.detach()
        self._prefix.forget()

    def check(self, given: dict[str, Any]) -> None:
        """Raise ValueError if the guidance cannot work with these arguments of the pipeline."""
        if given.get("image") is not None:
            raise ValueError("Detail Guidance does not work with reference pictures")
        if self._rule and not given["guidance_scale"] > 1:
            raise ValueError(
                "cfg needs a call with guidance_scale above 1, not"
                f" {given['guidance_scale']:g}: otherwise the pipeline does not run D_0"
            )

    def without_guidance(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """Let a callback of the pipeline run other pipelines of the same transformer."""

        @wraps(callback)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._prefix.paused():
                return callback(*args, **kwargs)

        return call

    @abstractmethod
    def _addition(self, kwargs: dict[str, Any], prediction: torch.Tensor) -> torch.Tensor | None:
        """Return what to add to this call's `prediction`, float32 and of its shape, or None."""

    def _after_pass(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Add guidance to the output of the transformer's pass; the hook of torch."""
        if not self._prefix.in_use_here:
            return output
        _check_supported(module, kwargs)
        try:
            prediction = output[0]
            addition = self._addition(kwargs, prediction)
        finally:
            self._prefix.forget()
        if addition is None:
            return output
        guided = (prediction.float() + addition).to(prediction.dtype)
        return Transformer2DModelOutput(guided) if kwargs.get("return_dict", True) else (guided,)

    def _guidance_term(
        self, kwargs: dict[str, Any], prediction: torch.Tensor, rows: slice
    ) -> torch.Tensor | None:
        """Return w (D_c - D_m), float32; `rows` of the pass are D_c. None if the step has no DG."""
        weights = _core.weights_at(self._schedule, *position(self._pipe.scheduler))
        if not weights.degraded:
            return None
        self._prefix.resume(weights.ma_keep, rows)
        # This calls `forward`, because calling the module would run this hook again.
        degraded = self._transformer.forward(**kwargs | {"return_dict": False})[0]
        return term(weights.w, prediction[rows].float(), degraded.float())


class _OneCall(_Run):
    """SD3: with guidance, one call has the rows of D_0 followed by those of D_c.

    The pipeline computes D_0 + s (D_c - D_0). What is added to both D_0 and D_c is therefore added
    to the result once.
    """

    def _addition(self, kwargs: dict[str, Any], prediction: torch.Tensor) -> torch.Tensor | None:
        parts = 2 if self._pipe.do_classifier_free_guidance else 1
        rows = slice(len(prediction) - len(prediction) // parts, None)
        conditional = {
            name: value[rows] if isinstance(value, torch.Tensor) else value
            for name, value in kwargs.items()
        }
        addition = None
        rule = self._rule if parts > 1 else None  # a callback may have turned D_0 off
        if rule:
            rule.begin(*position(self._pipe.scheduler), kwargs["timestep"])
            addition = self._change_of_rule(*prediction.float().chunk(2))
        if not (rule and rule.is_zero):
            detail = self._guidance_term(conditional, prediction, rows)
            if addition is None or detail is None:
                addition = detail if addition is None else addition
            else:
                addition = addition + detail
        return None if addition is None else addition.repeat(parts, 1, 1, 1)

    def _change_of_rule(
        self, unconditional: torch.Tensor, conditional: torch.Tensor
    ) -> torch.Tensor:
        """Return what the rule predicts less what the pipeline will."""
        assert self._rule
        scale: float = self._pipe.guidance_scale
        own = unconditional + scale * (conditional - unconditional)
        return self._rule.combine(conditional, unconditional) - own


class _Conditional(_Run):
    """FLUX.2 [dev]: each step has one call, of D_c."""

    def _addition(self, kwargs: dict[str, Any], prediction: torch.Tensor) -> torch.Tensor | None:
        return self._guidance_term(kwargs, prediction, slice(None))


class _TwoUnnamedCalls(_Run):
    """Chroma: each step has a call of D_c, and with guidance one of D_0 after it.

    As in `_TwoCalls`, both get the same term.
    """

    _kept: torch.Tensor | None = None
    _first_is_done = False

    def _addition(self, kwargs: dict[str, Any], prediction: torch.Tensor) -> torch.Tensor | None:
        if not self._first_is_done:
            self._kept = self._guidance_term(kwargs, prediction, slice(None))
        self._first_is_done = self._pipe.do_classifier_free_guidance and not self._first_is_done
        return self._kept


class _TwoCalls(_Run):
    """FLUX.1, FLUX.2 [klein]: each step has a call "cond", and with true guidance "uncond".

    The pipeline names its calls for its caches. The guidance term is added to both, so
    D_0 + s (D_c - D_0) contains it once for any s.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._call = _CallName()
        self._kept: torch.Tensor | None = None
        self._first = blocks_of(self._transformer)[0]

    def __enter__(self) -> Self:
        super().__enter__()
        registry = HookRegistry.check_if_exists_or_initialize(self._first)
        registry.register_hook(self._call, CALL_NAME)
        self._renew_names()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        remove_hook(self._first, CALL_NAME)
        self._renew_names()

    def _renew_names(self) -> None:
        """Let diffusers renew its list of hooks that get the names of calls."""
        registry = HookRegistry.check_if_exists_or_initialize(self._transformer)
        registry.invalidate_child_registries_cache()

    def _addition(self, kwargs: dict[str, Any], prediction: torch.Tensor) -> torch.Tensor | None:
        if self._call.name == "cond":
            self._kept = self._guidance_term(kwargs, prediction, slice(None))
        return self._kept if self._call.name else None


_RUNS: dict[type, type[_Run]] = {
    StableDiffusion3Pipeline: _OneCall,
    FluxPipeline: _TwoCalls,
    Flux2Pipeline: _Conditional,
    Flux2KleinPipeline: _TwoCalls,
    ChromaPipeline: _TwoUnnamedCalls,
}


class _CallName(ModelHook):  # type: ignore[misc]
    """Gets the name of the pipeline's current call from diffusers; leaves the block alone."""

    _is_stateful = True

    def __init__(self) -> None:
        super().__init__()
        self._state = _StateOfThread(BaseState)

    @property
    def name(self) -> str | None:
        """The name of the call; None outside the pipeline's loop."""
        try:
            return str(self._state.context.name)
        except ValueError:
            return None

    def reset_state(self, module: nn.Module) -> nn.Module:
        self._state.reset()
        return module


class _StateOfThread(StateManager):  # type: ignore[misc]
    """Ignores the names of calls that pipelines make in other threads."""

    def __init__(self, state: type[BaseState]) -> None:
        super().__init__(state)
        self._thread = get_ident()

    def set_context(self, context: CacheContext | None) -> None:
        if get_ident() == self._thread:
            super().set_context(context)


def position(scheduler: Any) -> tuple[int, int]:
    """Return the current solver step i and the number of steps N of a running scheduler.

    The evaluations of one solver step share i (Heun). Image-to-image counts only the steps that it
    runs.
    """
    begin = scheduler.begin_index or 0
    index = begin if scheduler.step_index is None else scheduler.step_index
    evaluations = len(scheduler.timesteps) - begin
    return (index - begin) // scheduler.order, -(-evaluations // scheduler.order)


def _check_supported(transformer: nn.Module, kwargs: dict[str, Any]) -> None:
    """Raise ValueError for features of the pipeline that do not work with Detail Guidance."""
    if getattr(transformer, "is_cache_enabled", False):
        raise ValueError(
            "Detail Guidance does not work with a cache: call transformer.disable_cache()"
        )
    if kwargs.get("skip_layers") is not None:
        raise ValueError("Detail Guidance does not work with skip_guidance_layers: leave them out")
    if any(name.startswith("ip_") for name in kwargs.get("joint_attention_kwargs") or {}):
        raise ValueError("Detail Guidance does not work with an IP adapter: leave out its image")
