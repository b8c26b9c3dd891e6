"""Negative branches that Detail Guidance is compared with."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from scipy import ndimage

from intaglio.analysis.channels.attention import hiding
from intaglio.torch_reference.fingerprint import fingerprint
from intaglio.torch_reference.guidance import last_rows
from intaglio.torch_reference.hooks import skip_block
from intaglio.torch_reference.model import Model, Step
from intaglio_export.adapters import Adapter
from intaglio_export.adapters.base import Inputs
from intaglio_export.adapters.packing import pack, unpack
from intaglio_export.errors import ExportError
from intaglio_export.support.quiet import no_progress_bars, quiet


@dataclass(frozen=True)
class Skipped:
    """Skip-layer guidance, as SD3.5 does it: the conditional branch without one block."""

    block: int

    def predict(self, model: Model, step: Step, base: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        out = model.adapter.run(base)
        with skip_block(model.adapter, self.block):
            negative = model.adapter.run(last_rows(base, len(step.latents)))
        return out, negative


@dataclass(frozen=True)
class WithoutKey:
    """The conditional branch with one key of each attention hidden, as `attention.hiding` has it.

    `which` is "top" for the key that gets most attention, or "random" for another one.
    """

    which: str

    def predict(self, model: Model, step: Step, base: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        out = model.adapter.run(base)
        with hiding(model, self.which, step.index):
            negative = model.adapter.run(last_rows(base, len(step.latents)))
        return out, negative


@dataclass(frozen=True)
class Blurred:
    """The conditional branch with its clean image blurred by `radius` latent cells.

    Guidance with it is unsharp masking of the clean image: it sharpens without a second model run.
    """

    radius: float = 1.0

    def predict(self, model: Model, step: Step, base: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        n = len(step.latents)
        out = model.adapter.run(base)
        conditional = out[-n:]
        # The detail is taken from x - sigma * prediction, the clean image up to a factor.
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
    """Autoguidance (arXiv 2406.02507): a weaker model of the same latents and prompts.

    `weights` is its `fingerprint`.
    """

    transformer: torch.nn.Module = field(repr=False)
    weights: str

    @classmethod
    def open(cls, folder: Path, adapter: Adapter) -> Weaker:
        """Load the transformer that `save_pretrained` wrote to `folder`; its class is the model's.

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
        ours, theirs = (_input_axes(one) for one in (adapter, weaker.adapter(adapter)))
        for name in ours | theirs:
            if ours.get(name) != theirs.get(name):
                raise ExportError(
                    f"The weaker model {folder} takes {name} {theirs.get(name, 'not at all')} and"
                    f" the model {ours.get(name, 'not at all')}: it has to share latents and"
                    " prompt embeddings."
                )
        return weaker

    def adapter(self, strong: Adapter) -> Adapter:
        """Return an adapter of the strong model's pipeline with the weaker transformer in it."""
        pipeline = copy(strong.pipeline)
        pipeline.transformer = self.transformer
        return type(strong)(pipeline, strong.dtype)

    def predict(self, model: Model, step: Step, base: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        negative = self.adapter(model.adapter).run(last_rows(base, len(step.latents)))
        return model.adapter.run(base), negative


def _input_axes(adapter: Adapter) -> dict[str, object]:
    """Return the axes of each input that a transformer takes, and its number of classes."""
    axes: dict[str, object] = {spec.role: list(spec.axes) for spec in adapter.inputs()}
    classes = adapter.classes()
    return axes | ({"classes": classes.count} if classes else {})
