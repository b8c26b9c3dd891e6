"""Every point of a block, for every family: the block's arithmetic, redone from what was told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from intaglio_export.adapters import adapter_for
from intaglio_export.adapters.observing import POINTS, observing
from intaglio_export.calibration.calibrate import calibration_grid, draw_noise, encode, fixed_inputs
from tests.families import FAMILIES
from tests.families.parts import MAX_LENGTH


def adapter_of(family: str) -> Any:
    pipeline = FAMILIES[family].make()
    adapter = adapter_for(type(pipeline).__name__)
    assert adapter is not None
    return adapter(pipeline)


@pytest.fixture(scope="module", params=FAMILIES)
def adapter(request: pytest.FixtureRequest) -> Any:
    return adapter_of(request.param)


def inputs(adapter: Any) -> dict[str, torch.Tensor]:
    """Two rows."""
    grid = calibration_grid(adapter)
    latent = draw_noise(adapter, grid, 2, torch.Generator().manual_seed(0))
    length = 40 if adapter.family == "z-image" else MAX_LENGTH  # a chat template takes 14
    return (
        encode(adapter, ["a dress", ""], length)
        | fixed_inputs(adapter, 2, grid)
        | {"latent": latent, "timestep": torch.full((2,), 500.0)}
    )


def told(adapter: Any, points: tuple[str, ...] = POINTS) -> dict[tuple[str, int], torch.Tensor]:
    """What one forward pass tells."""
    found: dict[tuple[str, int], torch.Tensor] = {}

    def tell(point: str, block: int, tensor: torch.Tensor) -> None:
        assert (point, block) not in found
        found[point, block] = tensor

    with torch.no_grad(), observing(adapter, tell, points):
        adapter.run(inputs(adapter))
    return found


def test_a_block_continues_the_one_before(adapter: Any) -> None:
    found = told(adapter)
    for k in range(1, len(adapter.blocks())):
        torch.testing.assert_close(found["before", k], found["after", k - 1], rtol=0, atol=0)


def test_the_modulated_stream_is_the_normalised_one_scaled_and_shifted(adapter: Any) -> None:
    """An affine function of torch's norm, with one scale and shift for all tokens."""
    found = told(adapter)
    for k in range(len(adapter.blocks())):
        before, modulated = found["before", k], found["modulated", k]
        assert modulated.shape == before.shape
        normed = torch.nn.functional.layer_norm(before, (adapter.channels,), eps=1e-6)
        if adapter.family in ("z-image", "krea2"):
            normed = torch.nn.functional.rms_norm(before, (adapter.channels,), eps=1e-5)
        near = [normed[:, i] - normed[:, 0] for i in (1, 2)]
        far = [modulated[:, i] - modulated[:, 0] for i in (1, 2)]
        torch.testing.assert_close(near[0] * far[1], near[1] * far[0], rtol=1e-3, atol=1e-4)


def test_the_gate_is_a_factor_of_attention(adapter: Any) -> None:
    """With attention's output set to one, its norm's input moves by the gate itself."""
    # Where a block has two attentions (SD3.5's first ones), they add up.
    k, block = next(
        (k, block)
        for k, block in enumerate(adapter.blocks())
        if not getattr(block, "use_dual_attention", False)
    )
    # Z-Image normalises what attention returns before its gate.
    z_image = adapter.family == "z-image"
    attention = block.attention_norm2 if z_image else adapter.attention(block)
    seen: list[torch.Tensor] = []

    def ones(module: Any, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (torch.ones_like(output[0]), *output[1:])
        return torch.ones_like(output)

    named = dict.fromkeys(("sd3", "flux", "flux2", "chroma", "krea2"), "norm2")
    later = (named | {"qwen-image": "img_norm2", "z-image": "ffn_norm1"}).get(adapter.family)
    module = getattr(block, later) if later else None
    if module is None:  # DiT's next is norm3; PixArt's cross-attention reads the stream itself
        module = block.norm3 if adapter.family == "dit" else block.attn2
    handles = [
        attention.register_forward_hook(ones),
        module.register_forward_pre_hook(lambda m, args: seen.append(args[0])),
    ]
    try:
        found = told(adapter, ("before", "gate"))
    finally:
        for handle in handles:
            handle.remove()
    before = found["before", k]
    moved = adapter.split(block, seen[0])[0] - before
    expected = found["gate", k].unsqueeze(1).expand_as(moved)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "last"), [("flux-dev", "proj_out"), ("flux2-klein", "attn"), ("chroma", "proj_out")]
)
def test_the_gate_of_a_single_stream_block(family: str, last: str) -> None:
    """With one from the module that ends both paths, attention's and the MLP's."""
    adapter = adapter_of(family)
    k = len(adapter.blocks()) - 1
    module = getattr(adapter.blocks()[k], last)
    handle = module.register_forward_hook(lambda m, args, output: torch.ones_like(output))
    found = told(adapter, ("before", "gate", "after"))
    handle.remove()
    moved = found["after", k] - found["before", k]
    expected = found["gate", k].unsqueeze(1).expand_as(moved)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-4)


def test_hooks_are_gone_after_an_error(adapter: Any) -> None:
    class StopError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise StopError

    with pytest.raises(StopError), observing(adapter, stop):
        adapter.run(inputs(adapter))
    for module in adapter.transformer.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_an_unknown_point_is_named(adapter: Any) -> None:
    with pytest.raises(ValueError, match="no point middle"), observing(adapter, print, ("middle",)):
        pass
