"""apply_detail_guidance on the classic pipelines, compared with the C++ runtime."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

from intaglio.diffusers import apply_detail_guidance
from tests.diffusers.conftest import Open
from tests.diffusers.runs import (
    BLOCK,
    CHANNELS,
    IMAGES,
    LIMIT,
    MODES,
    STEPS,
    blocks,
    counted,
    draw,
    expected,
    hooks_left,
    relative,
)
from tests.families import FAMILIES
from tests.parity.diffusers_runs import guided_run
from tests.parity.test_runs import scheduler

PLACE = {"channels": CHANNELS, "block": BLOCK}
RUNS = [
    *(("sd3", mode) for mode in MODES),
    *(("flux-dedistilled", mode) for mode in MODES),
]


def split(mode: str) -> tuple[float, dict[str, Any]]:
    """Return a mode's cfg_scale, and the options of apply_detail_guidance."""
    options = dict(MODES[mode])
    return options.pop("cfg_scale"), options


@pytest.mark.parametrize(("family", "mode"), RUNS)
def test_run_equals_the_runtime(family: str, mode: str, runtime: Open) -> None:
    cfg, options = split(mode)
    pipe = FAMILIES[family].make()
    plain = draw(pipe, FAMILIES[family].cfg, cfg)
    with apply_detail_guidance(pipe, **PLACE, **options):
        got = draw(pipe, FAMILIES[family].cfg, cfg)
    assert relative(got, expected(runtime(family), **MODES[mode])) < LIMIT
    # With DG the result has to differ from the pipeline's own.
    assert (relative(got, plain) > 5 * LIMIT) == bool(options["dg_scale"])


@pytest.mark.parametrize("family", ["sd3", "flux-dedistilled"])
def test_modes_differ(family: str, runtime: Open) -> None:
    runs = [expected(runtime(family), **options) for options in MODES.values()]
    for i, one in enumerate(runs):
        for other in runs[i + 1 :]:
            assert relative(one, other) > 2 * LIMIT


@pytest.mark.parametrize("family", ["sd3", "flux-dedistilled"])
def test_the_prefix_is_run_once(family: str) -> None:
    """DG runs only at steps 1, 2 and 3 of 5, and only in the blocks after m."""
    pipe = FAMILIES[family].make()
    with (
        apply_detail_guidance(pipe, **PLACE, dg_window=(0.2, 0.8)),
        counted(pipe.transformer) as rows,
    ):
        draw(pipe, FAMILIES[family].cfg, 2.5)
    early, late = 2 * STEPS * IMAGES, (2 * STEPS + 3) * IMAGES
    count = len(blocks(pipe.transformer))
    assert rows == [early] * (BLOCK + 1) + [late] * (count - BLOCK - 1)


@pytest.mark.parametrize("options", [{"dg_scale": 0.0}, {"ma_keep": 1.0}], ids=str)
def test_without_weight_nothing_is_run(options: dict[str, Any]) -> None:
    pipe = FAMILIES["sd3"].make()
    plain = draw(pipe, "guidance_scale", 2.5)
    with apply_detail_guidance(pipe, **PLACE, **options), counted(pipe.transformer) as rows:
        assert torch.equal(draw(pipe, "guidance_scale", 2.5), plain)
    assert set(rows) == {2 * STEPS * IMAGES}


@pytest.mark.parametrize("block", [0, 2, 3])
@pytest.mark.parametrize("family", ["sd3", "flux-dev", "flux-dedistilled"])
def test_any_block(family: str, block: int) -> None:
    """The result equals a whole forward of the model with the channel zeroed after the block."""
    pipe = FAMILIES[family].make()
    wanted = guided_run(pipe, FAMILIES[family], 1.0, 1.5, block, CHANNELS).latents
    seen = {"num_inference_steps": 4, "generator": torch.Generator("cpu").manual_seed(5)}
    with apply_detail_guidance(pipe, channels=CHANNELS, block=block, dg_scale=1.5):
        got = draw(pipe, FAMILIES[family].cfg, 1.0, **FAMILIES[family].call | seen)
    assert relative(got, wanted) < 1e-5


@pytest.mark.parametrize("name", ["heun", "dpmpp-2m"])
def test_other_schedulers(name: str, runtime: Open) -> None:
    pipe = FAMILIES["sd3"].make()
    pipe.scheduler = scheduler(pipe, name)
    cfg, options = split("window")
    with apply_detail_guidance(pipe, **PLACE, **options):
        got = draw(pipe, "guidance_scale", cfg)
    wanted = expected(runtime("sd3"), **MODES["window"], scheduler=name)
    assert relative(got, wanted) < LIMIT


def test_ref() -> None:
    """DG towards the planted value changes nearly nothing, so less than DG towards zero."""
    pipe = FAMILIES["sd3"].make()
    plain = draw(pipe, "guidance_scale", 2.5)
    moved = []
    for ref in (None, [40.0]):
        with apply_detail_guidance(pipe, **PLACE, ref=ref):
            moved.append(relative(draw(pipe, "guidance_scale", 2.5), plain))
    assert 0 < moved[1] < moved[0] / 2


@pytest.mark.parametrize("family", ["sd3", "flux-dedistilled"])
def test_removed_is_untouched(family: str) -> None:
    pipe = FAMILIES[family].make()
    before = draw(pipe, FAMILIES[family].cfg, 2.5)
    applied = apply_detail_guidance(pipe, **PLACE, dg_scale=1.5)
    assert not torch.equal(draw(pipe, FAMILIES[family].cfg, 2.5), before)
    with pytest.raises(ValueError, match=r"already: remove\(\) it first"):
        apply_detail_guidance(pipe, **PLACE)
    applied.remove()
    applied.remove()
    assert hooks_left(pipe.transformer) == []
    assert torch.equal(draw(pipe, FAMILIES[family].cfg, 2.5), before)


@pytest.mark.parametrize("family", ["sd3", "flux-dedistilled"])
@pytest.mark.parametrize("failing", [0, 3])
def test_a_run_that_fails(family: str, failing: int) -> None:
    """A failure before or after block m does not affect later runs."""
    pipe, cfg = FAMILIES[family].make(), FAMILIES[family].cfg
    before = draw(pipe, cfg, 2.5)
    with apply_detail_guidance(pipe, **PLACE, dg_scale=1.5):
        wanted = draw(pipe, cfg, 2.5)

    calls = 0

    def fail(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt

    applied = apply_detail_guidance(pipe, **PLACE, dg_scale=1.5)
    handle = blocks(pipe.transformer)[failing].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        draw(pipe, cfg, 2.5)
    handle.remove()
    assert torch.equal(draw(pipe, cfg, 2.5), wanted)
    applied.remove()

    calls = 0
    handle = blocks(pipe.transformer)[failing].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt), apply_detail_guidance(pipe, **PLACE, dg_scale=1.5):
        draw(pipe, cfg, 2.5)
    handle.remove()
    assert hooks_left(pipe.transformer) == []
    assert torch.equal(draw(pipe, cfg, 2.5), before)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"block": 4}, ValueError, "block 4 does not exist: the transformer has blocks 0 to 3"),
    ({"block": -1}, ValueError, "block -1 does not exist"),
    ({"block": 1.5}, TypeError, "block has to be a whole number, not 1.5"),
    ({"channels": [7, 64]}, ValueError, "channel 64 does not exist: .* channels 0 to 63"),
    ({"channels": []}, ValueError, "channels is empty"),
    ({"channels": ["7"]}, TypeError, "a channel has to be a whole number, not '7'"),
    ({"ma_keep": -1.5}, ValueError, "ma_keep -1.5 is not 0 or more"),
    ({"ma_keep": (0.5, -1)}, ValueError, "ma_keep -1 is not 0 or more"),
    ({"ma_keep": "half"}, TypeError, "take a number or a pair"),
    ({"dg_window": (0.5, 0.2)}, ValueError, "dg_window 0.5:0.2 holds no part of the run"),
    ({"dg_scale": float("nan")}, ValueError, "dg_scale must be a finite number"),
    ({"ref": [1.0, 2.0]}, ValueError, "ref has 2 values for 1 channels"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=lambda x: str(x))
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    pipe = FAMILIES["sd3"].make()
    with pytest.raises(error, match=message) as raised:
        apply_detail_guidance(pipe, **PLACE | change)
    assert "\n" not in str(raised.value)
    assert hooks_left(pipe.transformer) == []


def test_what_does_not_go_with_it() -> None:
    pipe = FAMILIES["dit"].make()
    with pytest.raises(TypeError, match="not DiTPipeline"):
        apply_detail_guidance(pipe, **PLACE)
    pipe = FAMILIES["sd3"].make()
    with apply_detail_guidance(pipe, **PLACE):
        with pytest.raises(ValueError, match="skip_guidance_layers"):
            draw(
                pipe, "guidance_scale", 2.5, skip_guidance_layers=[1], skip_layer_guidance_stop=0.9
            )
        with pytest.raises(ValueError, match="IP adapter"):
            draw(pipe, "guidance_scale", 2.5, joint_attention_kwargs={"ip_hidden_states": None})
    pipe = FAMILIES["flux-dedistilled"].make()
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig())
    with apply_detail_guidance(pipe, **PLACE), pytest.raises(ValueError, match="disable_cache"):
        draw(pipe, "true_cfg_scale", 2.5)


@pytest.mark.parametrize("family", ["sd3", "flux-dedistilled"])
def test_it_outlives_offloading(family: str) -> None:
    """diffusers removes accelerate's hooks and adds them again after every call."""
    pipe = FAMILIES[family].make()
    add_hook_to_module(pipe.transformer, ModelHook())
    applied = apply_detail_guidance(pipe, **PLACE, dg_scale=1.5)
    first = draw(pipe, FAMILIES[family].cfg, 2.5)
    remove_hook_from_module(pipe.transformer, recurse=True)
    add_hook_to_module(pipe.transformer, ModelHook())
    assert torch.equal(draw(pipe, FAMILIES[family].cfg, 2.5), first)
    remove_hook_from_module(pipe.transformer, recurse=True)
    assert torch.equal(draw(pipe, FAMILIES[family].cfg, 2.5), first)
    applied.remove()
