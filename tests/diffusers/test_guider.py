"""DetailGuidance in the modular SD3 pipeline, compared with the C++ runtime."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines.modular_pipeline import BlockState
from hypothesis import given
from hypothesis import strategies as st

from intaglio.diffusers import DetailGuidance
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
    draw_modular,
    expected,
    hooks_left,
    modular,
    relative,
)
from tests.diffusers.test_classic import WRONG
from tests.families.sd3 import make_pipeline
from tests.parity.test_runs import scheduler

PLACE: dict[str, Any] = {"channels": CHANNELS, "block": BLOCK}
ALL_MODES = MODES | {"both windows": MODES["window"] | {"cfg_window": (0.0, 0.6)}}


@pytest.mark.parametrize("mode", ALL_MODES)
def test_run_equals_the_runtime(mode: str, runtime: Open) -> None:
    made = modular(make_pipeline(), DetailGuidance(**PLACE, **ALL_MODES[mode]))
    wanted = expected(runtime("sd3"), **ALL_MODES[mode])
    assert relative(draw_modular(made), wanted) < LIMIT
    # The second run starts after the last step of the first, which had other branches.
    assert relative(draw_modular(made), wanted) < LIMIT
    assert hooks_left(made.transformer) == []


def test_cfg_alone_equals_diffusers_own_guider() -> None:
    pipe = make_pipeline()
    own = draw_modular(modular(pipe, ClassifierFreeGuidance(guidance_scale=2.5)))
    ours = draw_modular(modular(pipe, DetailGuidance(**PLACE, dg_scale=0.0, cfg_scale=2.5)))
    assert relative(ours, own) < 1e-5


def test_the_prefix_is_run_once_and_windows_spare_branches() -> None:
    """Steps 0, 1, 2 of 5 have CFG and steps 1, 2, 3 have DG."""
    guider = DetailGuidance(**PLACE, **ALL_MODES["both windows"])
    made = modular(make_pipeline(), guider)
    with counted(made.transformer) as rows:
        draw_modular(made)
    early, late = (STEPS + 3) * IMAGES, (STEPS + 3 + 3) * IMAGES
    count = len(blocks(made.transformer))
    assert rows == [early] * (BLOCK + 1) + [late] * (count - BLOCK - 1)
    assert guider._prefix._streams is guider._prefix._resumed is None


def test_disabled_is_the_conditional_branch() -> None:
    pipe = make_pipeline()
    guider = DetailGuidance(**PLACE, **MODES["cfg+dg"])
    guider.disable()
    alone = draw_modular(modular(pipe, DetailGuidance(**PLACE, **MODES["baseline"])))
    assert torch.equal(draw_modular(modular(pipe, guider)), alone)


@pytest.mark.parametrize("failing", [0, 3])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_hooks_are_gone_after_an_error(failing: int, call: int) -> None:
    """An error in D_c, D_m or D_0 of the first step; modular pipelines clean up after none."""
    made = modular(make_pipeline(), DetailGuidance(**PLACE, **MODES["cfg+dg"]))
    wanted = draw_modular(made)
    calls = 0

    def fail(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt

    handle = blocks(made.transformer)[failing].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        draw_modular(made)
    handle.remove()
    assert hooks_left(made.transformer) == []
    assert torch.equal(draw_modular(made), wanted)


def test_an_error_between_hooking_and_running() -> None:
    """No code of the guider runs then; the next step or cleanup_models removes the hooks."""
    transformer = make_pipeline().transformer
    for way_out in ("next step", "cleanup"):
        guider = DetailGuidance(**PLACE)
        guider.set_state(0, 4, torch.tensor(1.0))
        guider.prepare_inputs({"hidden_states": torch.zeros(1)})
        guider.prepare_models(transformer)
        assert len(hooks_left(transformer)) == BLOCK + 2
        if way_out == "next step":
            guider.set_state(0, 4, torch.tensor(1.0))
        else:
            guider.cleanup_models(transformer)
        assert hooks_left(transformer) == []


@given(
    cfg=st.tuples(st.integers(0, 99), st.integers(1, 100)).filter(lambda w: w[0] < w[1]),
    dg=st.tuples(st.integers(0, 99), st.integers(1, 100)).filter(lambda w: w[0] < w[1]),
    steps=st.integers(1, 40),
)
def test_branches_of_every_step(cfg: tuple[int, int], dg: tuple[int, int], steps: int) -> None:
    """Windows are whole percents, so that exact arithmetic decides which steps are inside."""
    guider = DetailGuidance(
        **PLACE,
        cfg_scale=2.0,
        cfg_window=(cfg[0] / 100, cfg[1] / 100),
        dg_window=(dg[0] / 100, dg[1] / 100),
    )
    data = {"hidden_states": (torch.zeros(1), torch.ones(1))}
    for step in range(steps):
        guider.set_state(step, steps, torch.tensor(0.0))
        batches = guider.prepare_inputs(data)
        inside = [w[0] * steps <= 100 * step < w[1] * steps for w in (cfg, dg)]
        wanted = {"pred_cond"}
        wanted |= {"pred_uncond"} if inside[0] else set()
        wanted |= {"pred_degraded"} if inside[1] else set()
        branches = [batch["__guidance_identifier__"] for batch in batches]
        assert set(branches) == wanted
        assert len(branches) == len(wanted)
        for batch, branch in zip(batches, branches, strict=True):
            assert batch.hidden_states.item() == (branch == "pred_uncond")
            assert guider.is_conditional == (branch != "pred_uncond")
            batch.noise_pred = torch.tensor([float(branch == "pred_cond")])
        assert guider(batches).pred.item() == 1.0 + sum(inside)


def test_block_states_give_the_same_batches() -> None:
    """Pipelines can also pass their inputs as a block state."""
    guider = DetailGuidance(**PLACE, cfg_scale=2.0)
    guider.set_state(0, 4, torch.tensor(0.0))
    state = BlockState(latents=torch.zeros(1), positive=torch.ones(1), negative=torch.ones(2))
    batches = guider.prepare_inputs_from_block_state(
        state, {"hidden_states": "latents", "text": ("positive", "negative")}
    )
    assert [len(batch.text) for batch in batches] == [1, 1, 2]
    with pytest.raises(ValueError, match=r"^CFG needs a negative prompt"):
        guider.prepare_inputs_from_block_state(state, {"hidden_states": "latents"})


def test_configuration_round_trip(tmp_path: Any) -> None:
    guider = DetailGuidance(**PLACE, **MODES["keep"])
    guider.save_pretrained(tmp_path)
    for copy in (guider.new(), DetailGuidance.from_pretrained(tmp_path)):
        assert repr(copy._schedule) == repr(guider._schedule)
        assert copy._prefix.channels == CHANNELS
    assert guider.new(dg_scale=3.0)._schedule.dg_scale.last == 3.0


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=lambda x: str(x))
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    """Errors that depend on the model are raised when the guider first gets it."""
    made = modular(make_pipeline(), None)

    def run() -> None:
        made.update_components(guider=DetailGuidance(**PLACE | change))
        draw_modular(made)

    with pytest.raises(error, match=message) as raised:
        run()
    assert "\n" not in str(raised.value)
    assert hooks_left(made.transformer) == []


def test_heun_is_refused() -> None:
    made = modular(make_pipeline(), DetailGuidance(**PLACE))
    made.update_components(scheduler=scheduler(make_pipeline(), "heun"))
    with pytest.raises(ValueError, match="use apply_detail_guidance"):
        draw_modular(made)


def test_unknown_models_are_refused() -> None:
    guider = DetailGuidance(**PLACE)
    guider.set_state(0, 4, torch.tensor(0.0))
    guider.prepare_inputs({"hidden_states": torch.zeros(1)})
    with pytest.raises(TypeError, match="does not support Linear"):
        guider.prepare_models(torch.nn.Linear(1, 1))
