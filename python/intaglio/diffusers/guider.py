"""A guider for diffusers' modular pipelines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

from intaglio import _core
from intaglio.diffusers.prefix import HOOK, SharedPrefix, remove_hook
from intaglio.diffusers.rules import Rule
from intaglio.diffusers.schedule import make_schedule
from intaglio.torch_reference.guidance import term

Pair = tuple[float, float]
CONDITIONAL, UNCONDITIONAL, DEGRADED = "pred_cond", "pred_uncond", "pred_degraded"


class DetailGuidance(BaseGuidance):  # type: ignore[misc]
    """D = D_c + (cfg_scale - 1) (D_c - D_0) + dg_scale (D_c - D_m), arXiv 2510.11538.

    D_m is D_c with `channels` of the image stream after block `block` scaled by `ma_keep` towards
    `ref`. It continues D_c's pass of the same step, so blocks 0..`block` run once for both. A
    branch whose weight is zero at a step is not run.
    """

    _input_predictions = [CONDITIONAL, UNCONDITIONAL, DEGRADED]  # noqa: RUF012

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        channels: Sequence[int],
        block: int,
        dg_scale: float | Pair = 1.0,
        cfg_scale: float | Pair = 1.0,
        dg_window: Pair = (0.0, 1.0),
        cfg_window: Pair = (0.0, 1.0),
        ma_keep: float | Pair = 0.0,
        ref: Sequence[float] | None = None,
        enabled: bool = True,
        cfg: BaseGuidance | None = None,
    ) -> None:
        """Take scales and `ma_keep` as numbers, or as pairs from the first step to the last.

        Values between the first and the last step are on the line through both.

        Args:
            channels: the massive channels, as `intaglio export` finds them.
            block: m, counted from 0 through all blocks in order of execution.
            dg_scale: w; 0 turns Detail Guidance off.
            cfg_scale: 1 + lambda; 1 turns classifier-free guidance off.
            dg_window: step i of N has Detail Guidance if start <= i/N < end.
            cfg_window: the same for classifier-free guidance.
            ma_keep: 1 leaves the channels alone, 0 suppresses them.
            ref: the value that each suppressed channel goes to; zeros by default.
            enabled: False runs D_c alone.
            cfg: a guider of diffusers that combines D_c and D_0 in place of `cfg_scale` and
                `cfg_window`, such as `ClassifierFreeZeroStarGuidance(5.0, stop=0.5)`.

        Raises:
            TypeError: the type of an argument is not supported.
            ValueError: a value is outside its range, or `cfg` is given beside `cfg_scale` or
                `cfg_window`.
        """
        super().__init__(enabled=enabled)
        self._schedule = make_schedule(
            cfg_scale=cfg_scale,
            cfg_window=cfg_window,
            dg_scale=dg_scale,
            dg_window=dg_window,
            ma_keep=ma_keep,
        )
        if cfg is not None and cfg_scale != 1.0:
            raise ValueError("cfg has a scale of its own: leave out cfg_scale")
        if cfg is not None and tuple(cfg_window) != (0.0, 1.0):
            raise ValueError(
                "cfg has a window of its own, its start and stop: leave out cfg_window"
            )
        self._rule = Rule(cfg) if cfg is not None else None
        self._prefix = SharedPrefix(block, channels, ref)
        self._batches: list[Any] = []
        self._guarded: nn.Module | None = None

    def set_state(self, step: int, num_inference_steps: int, timestep: torch.Tensor) -> None:
        """Begin a step, and drop what a failed step left behind.

        Raises:
            ValueError: the pipeline counts more steps than it takes, as with Heun's scheduler.
        """
        if step >= num_inference_steps:
            raise ValueError(
                f"step {step} of {num_inference_steps}: the scheduler runs the model several times"
                " per step, and modular pipelines count each run; use apply_detail_guidance"
            )
        super().set_state(step, num_inference_steps, timestep)
        if self._rule:
            self._rule.begin(step, num_inference_steps, timestep)
        self._release()
        self._forget()

    def prepare_inputs(self, data: dict[str, Any]) -> list[Any]:
        """Return one batch for each branch of this step."""
        with_negative = any(isinstance(x, tuple) and x[1] is not None for x in data.values())
        return self._prepare(with_negative, lambda i, name: self._prepare_batch(data, i, name))

    def prepare_inputs_from_block_state(
        self, data: Any, input_fields: dict[str, str | tuple[str, str]]
    ) -> list[Any]:
        """Return one batch for each branch of this step."""
        with_negative = any(
            isinstance(names, tuple) and getattr(data, names[1], None) is not None
            for names in input_fields.values()
        )
        return self._prepare(
            with_negative,
            lambda i, name: self._prepare_batch_from_block_state(input_fields, data, i, name),
        )

    def _prepare(self, with_negative: bool, batch: Callable[[int, str], Any]) -> list[Any]:
        weights, unconditional = self._weights, self._has_unconditional
        if unconditional and not with_negative:
            raise ValueError("CFG needs a negative prompt, and the pipeline passed none")
        # D_m has to follow D_c directly, because it continues its streams.
        self._batches = [batch(0, CONDITIONAL)]
        if weights.degraded:
            self._batches.append(batch(0, DEGRADED))
        if unconditional:
            self._batches.append(batch(1, UNCONDITIONAL))
        return self._batches

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Hook `denoiser` for the next batch, after `SharedPrefix.check`."""
        super().prepare_models(denoiser)
        self._release()
        branch, weights = self._branch, self._weights
        if branch == UNCONDITIONAL or not weights.degraded:
            return
        self._prefix.attach(denoiser)
        self._guarded = denoiser
        registry = HookRegistry.check_if_exists_or_initialize(denoiser)
        registry.register_hook(_Guard(self), HOOK)
        if branch == DEGRADED:
            self._prefix.resume(weights.ma_keep)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """Remove the hooks, which a pass has already removed itself."""
        self._release()

    def __call__(self, data: list[Any]) -> GuiderOutput:
        """Combine the `noise_pred` of the batches."""
        predictions = {getattr(batch, self._identifier_key): batch.noise_pred for batch in data}
        self._forget()
        return self.forward(**predictions)

    def forward(
        self,
        pred_cond: torch.Tensor,
        pred_uncond: torch.Tensor | None = None,
        pred_degraded: torch.Tensor | None = None,
    ) -> GuiderOutput:
        """Combine raw predictions of the same shape to D, in float32."""
        weights, conditional = self._weights, pred_cond.float()
        pred = conditional
        if self._rule and self._enabled:
            pred = self._rule.combine(
                conditional, None if pred_uncond is None else pred_uncond.float()
            )
        elif pred_uncond is not None:
            pred = pred + term(weights.lambda_, conditional, pred_uncond.float())
        if pred_degraded is not None:
            pred = pred + term(weights.w, conditional, pred_degraded.float())
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    @property
    def is_conditional(self) -> bool:
        """Whether the running batch uses the prompt and not the negative prompt."""
        return self._branch != UNCONDITIONAL

    @property
    def num_conditions(self) -> int:
        """The number of prompts of a run, which pipelines read before the first step."""
        if self._rule:
            return 2 if self._rule.needs_unconditional else 1
        scale = self._schedule.cfg_scale
        return 1 if scale.first == scale.last == 1.0 else 2

    @property
    def _weights(self) -> _core.StepWeights:
        if not self._enabled or (self._rule and self._rule.is_zero):
            return _core.StepWeights()
        return _core.weights_at(self._schedule, self._step, self._num_inference_steps)

    @property
    def _has_unconditional(self) -> bool:
        if self._rule and self._enabled:
            return self._rule.needs_unconditional
        return self._weights.unconditional

    @property
    def _branch(self) -> str:
        """The branch of the running batch, the first one that has no prediction yet."""
        batch = next(b for b in self._batches if not hasattr(b, "noise_pred"))
        branch: str = getattr(batch, self._identifier_key)
        return branch

    def _release(self) -> None:
        """Remove all hooks."""
        self._prefix.detach()
        if self._guarded is not None:
            remove_hook(self._guarded)
        self._guarded = None

    def _forget(self) -> None:
        """Release the tensors of a step."""
        self._prefix.forget()
        self._batches = []


class _Guard(ModelHook):  # type: ignore[misc]
    """Cleans up after one pass of the transformer, since pipelines do not if the pass raises."""

    def __init__(self, guider: DetailGuidance) -> None:
        super().__init__()
        self._guider = guider

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not self._guider._prefix.in_use_here:
            return self.fn_ref.original_forward(*args, **kwargs)
        try:
            return self.fn_ref.original_forward(*args, **kwargs)
        except BaseException:
            self._guider._forget()
            raise
        finally:
            self._guider._release()
