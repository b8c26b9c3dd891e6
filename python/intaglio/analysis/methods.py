"""Ways to guide: which branches a step runs, and how far it steers away from a negative one.

    D = D_c + lambda (D_c - D_0) + w (D_c - D_n),   cfg_scale = 1 + lambda

D_n is what a `Negative` predicts. Detail Guidance suppresses channels (arXiv 2510.11538); the rest
are what it is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from scipy import ndimage

from intaglio.analysis.sampler import Model, Step, fingerprint
from intaglio_export.adapters import Adapter
from intaglio_export.adapters.base import Inputs
from intaglio_export.adapters.packing import pack, unpack
from intaglio_export.errors import ExportError
from intaglio_export.networks.conditioning import condition
from intaglio_export.networks.forking import ForkedTransformer
from intaglio_export.support.quiet import no_progress_bars, quiet

Window = tuple[float, float]
# A constant, or what goes linearly from the first step to the last.
Ramp = tuple[float, float]


class Negative(Protocol):
    """A prediction to steer away from."""

    def predict(self, model: Model, step: Step, base: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions of the rows of `base`, whose last N are conditional, and D_n [N, ...]."""


@dataclass(frozen=True)
class Suppressed:
    """Channels of the image stream after `block` pulled towards `ref` (zeros if None).

    `keep` is 1 to leave them alone and 0 to suppress them; it goes linearly over the steps.
    """

    block: int
    channels: tuple[int, ...]
    keep: Ramp = (0.0, 0.0)
    ref: tuple[float, ...] | None = None

    def predict(self, model: Model, step: Step, base: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        n = len(step.latents)
        rows = len(base["latent"])
        mask, ref = torch.zeros(2, model.adapter.channels)
        mask[list(self.channels)] = 1.0
        if self.ref is not None:
            ref[list(self.channels)] = torch.tensor(self.ref)
        branch = torch.cat([torch.arange(rows), torch.arange(rows - n, rows)])
        keep = torch.ones(rows + n, model.tokens)
        keep[rows:] = ramp(self.keep, step)
        forked = ForkedTransformer(model.adapter, self.block)
        out = forked(*condition(model.adapter, base), mask, ref, branch, keep)
        return out[:rows], out[rows:]


@dataclass(frozen=True)
class Skipped:
    """Skip-layer guidance: the conditional branch without one block (as SD3.5 does it)."""

    block: int

    def predict(self, model: Model, step: Step, base: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        adapter, n = model.adapter, len(step.latents)
        out = adapter.run(base)

        def skip(
            module: object, args: object, kwargs: dict[str, torch.Tensor], output: object
        ) -> object:
            hidden_states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]  # type: ignore[index]
            _, others = adapter.split(output)
            passed = tuple(
                None if other is None else kwargs["encoder_hidden_states"] for other in others
            )
            return adapter.join(hidden_states, passed)

        handle = adapter.blocks()[self.block].register_forward_hook(skip, with_kwargs=True)
        try:
            negative = adapter.run(last_rows(base, n))
        finally:
            handle.remove()
        return out, negative


@dataclass(frozen=True)
class Blurred:
    """The conditional branch whose clean image is blurred, by `radius` latent cells.

    With it guidance is unsharp masking of the estimate: sharpness without a second model run.
    """

    radius: float = 1.0

    def predict(self, model: Model, step: Step, base: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        n = len(step.latents)
        out = model.adapter.run(base)
        conditional = out[-n:]
        # Of x - sigma * prediction, which is the clean image up to a factor, the detail.
        clean = step.latents - step.sigma * conditional
        packed = model.adapter.latent().packed
        patch = model.adapter.patch_size
        cells = unpack(clean, model.grid, patch) if packed else clean
        widths = (0, 0, self.radius, self.radius)
        blurred = torch.from_numpy(ndimage.gaussian_filter(cells.numpy(), widths, mode="reflect"))
        detail = cells - blurred
        detail = pack(detail, patch) if packed else detail
        return out, conditional + detail / step.sigma


@dataclass(frozen=True)
class Weaker:
    """Autoguidance: a weaker model of the same latents and prompts (arXiv 2406.02507).

    `weights` is the `fingerprint` of it.
    """

    transformer: torch.nn.Module = field(repr=False)
    weights: str

    @classmethod
    def open(cls, folder: Path, adapter: Adapter) -> Weaker:
        """The transformer that `save_pretrained` wrote to `folder`, of the class of the model's.

        Raises:
            ExportError: it cannot be loaded, or does not take the model's inputs.
        """
        if not folder.is_dir():
            raise ExportError(
                f"The weaker model {folder} is not a folder: give one that a transformer was saved"
                " to, with save_pretrained."
            )
        try:
            with quiet(), no_progress_bars():
                loaded = type(adapter.transformer).from_pretrained(
                    str(folder), dtype=torch.float32, local_files_only=True
                )
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise ExportError(f"The weaker model {folder} cannot be loaded: {error}.") from error
        weaker = cls(loaded.eval(), fingerprint(loaded))
        ours, theirs = (_taken(one) for one in (adapter, weaker.adapter(adapter)))
        for name in ours | theirs:
            if ours.get(name) != theirs.get(name):
                raise ExportError(
                    f"The weaker model {folder} takes {name} {theirs.get(name, 'not at all')} and"
                    f" the model {ours.get(name, 'not at all')}: it has to share latents and"
                    " prompt embeddings."
                )
        return weaker

    def adapter(self, strong: Adapter) -> Adapter:
        """That of the weaker transformer, in the strong model's pipeline."""
        pipeline = copy(strong.pipeline)
        pipeline.transformer = self.transformer
        return type(strong)(pipeline, strong.dtype)

    def predict(self, model: Model, step: Step, base: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        negative = self.adapter(model.adapter).run(last_rows(base, len(step.latents)))
        return model.adapter.run(base), negative


def _taken(adapter: Adapter) -> dict[str, object]:
    """What a transformer takes: each input's axes, and the number of classes."""
    axes: dict[str, object] = {spec.role: list(spec.axes) for spec in adapter.inputs()}
    classes = adapter.classes()
    return axes | ({"classes": classes.count} if classes else {})


def last_rows(inputs: Inputs, n: int) -> Inputs:
    """The last `n` rows of all inputs that have rows."""
    rows = len(inputs["latent"])
    return {
        role: value[-n:] if role != "position" and len(value) == rows else value
        for role, value in inputs.items()
    }


def ramp(values: Ramp, step: Step) -> float:
    """`values` at a step: the first at step 0, the last at the last one."""
    last = max(step.steps - 1, 1)
    return values[0] + (values[1] - values[0]) * step.index / last


@dataclass
class Omega:
    """The effective guidance of each step and image: [N] a step.

    `values`: omega = 1 + lambda + w <D_c - D_n, D_c - D_0> / |D_c - D_0|^2, w being 0 outside the
    window. `negative`: sigma |D_c - D_n| of the steps with a negative branch, the length of the
    term on the clean image: predictions of different steps are not of one scale there.
    """

    values: list[NDArray[np.float64]] = field(default_factory=list)
    negative: list[NDArray[np.float64]] = field(default_factory=list)


@dataclass(frozen=True)
class Method:
    """Guidance with up to three branches; a branch whose weight is zero is not run.

    `window` is the part of the run with the negative branch, `cfg_window` that with CFG: start <=
    i / N < end.
    """

    cfg_scale: float = 1.0
    weight: float = 0.0
    negative: Negative | None = None
    window: Window = (0.0, 1.0)
    cfg_window: Window = (0.0, 1.0)

    def scale_at(self, step: Step) -> float:
        """cfg_scale at `step`, 1 outside its window."""
        inside = self.cfg_window[0] <= step.share < self.cfg_window[1]
        return self.cfg_scale if inside else 1.0

    def steers(self, step: Step) -> bool:
        """Whether the negative branch has weight at `step`."""
        inside = self.window[0] <= step.share < self.window[1]
        return self.weight != 0.0 and self.negative is not None and inside

    @property
    def guided(self) -> bool:
        """Whether it is more than the conditional prediction."""
        return self.cfg_scale != 1.0 or self.weight != 0.0

    def predictor(self, model: Model, omega: Omega | None = None) -> _Predictor:
        """What `Model.sample` takes; `omega` is told each step's effective guidance."""
        return _Predictor(self, model, omega)


@dataclass(frozen=True)
class _Predictor:
    method: Method
    model: Model
    omega: Omega | None

    def __call__(self, step: Step, conditional: Inputs, null: Inputs) -> torch.Tensor:
        method, n = self.method, len(step.latents)
        cfg_scale = method.scale_at(step)
        with_cfg = cfg_scale != 1.0 or self.omega is not None
        rows = [null, conditional] if with_cfg else [conditional]
        base = stack(rows) | {
            "latent": torch.cat([step.latents] * len(rows)),
            "timestep": step.timestep.expand(n * len(rows)),
        }
        negative = None
        if method.steers(step):
            assert method.negative is not None
            out, negative = method.negative.predict(self.model, step, base)
        else:
            out = self.model.adapter.run(base)
        parts = out.float().chunk(len(rows))
        d_c, d_0 = parts[-1], parts[0]
        negative = None if negative is None else negative.float()
        if self.omega is not None:
            self._tell(step, d_c, d_0, negative)
        guided = d_c
        if cfg_scale != 1.0:
            guided = guided + (cfg_scale - 1.0) * (d_c - d_0)
        if negative is not None:
            guided = guided + method.weight * (d_c - negative)
        return guided

    def _tell(
        self, step: Step, d_c: torch.Tensor, d_0: torch.Tensor, negative: torch.Tensor | None
    ) -> None:
        assert self.omega is not None
        towards = (d_c - d_0).flatten(1).double()
        share = torch.zeros(len(d_c), dtype=torch.float64)
        if negative is not None:
            away = (d_c - negative).flatten(1).double()
            share = (away * towards).sum(1) / towards.square().sum(1).clamp_min(1e-12)
            self.omega.negative.append(step.sigma * away.norm(dim=1).numpy())
        self.omega.values.append((self.method.scale_at(step) + self.method.weight * share).numpy())


def stack(rows: Sequence[Inputs]) -> Inputs:
    """Inputs by role, one under the other; positions are shared by all rows."""
    return {
        role: value if role == "position" else torch.cat([inputs[role] for inputs in rows])
        for role, value in rows[0].items()
    }
