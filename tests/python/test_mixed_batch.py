"""Requests with different masks, samplers, regions and rules in one batch, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

import intaglio
from tests import bundles
from tests.python.test_batch import Job, together

pytestmark = pytest.mark.exports

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
UPPER = np.zeros((32, 32), np.uint8)
UPPER[:16] = 255
LEFT = UPPER.T.copy()
DETAIL: list[Job] = [
    {"prompt": "the dark boot", "seeds": 1, "steps": 4, "scheduler": "heun", "cfg_scale": 3.0,
     "guidance": "apg", "dg_scale": 1.5, "ma_tokens": UPPER, "dg_region": "mask"},
    {"prompt": "a coat", "seeds": [2, 7], "steps": 6, "scheduler": "unipc", "cfg_scale": 3.0,
     "guidance": "tcfg", "dg_scale": 1.0, "ma_tokens": LEFT},
    {"prompt": "a bag", "seeds": 3, "steps": 5, "scheduler": "dpmpp-2m-sde",
     "cfg_scale": [3.0, 2.0, 1.5, 1.0, 1.0], "guidance": "mambo-g", "dg_scale": 0.0},
    {"prompt": "boot", "seeds": 4, "steps": 5, "image": PICTURE, "mask": LEFT, "strength": 0.9,
     "cfg_scale": 2.0, "guidance": "cfg-zero", "guidance_zero_steps": 0, "dg_region": "mask"},
    {"prompt": "boot", "seeds": 5, "steps": 3, "cfg_scale": 1.0, "ma_keep": (0.0, 1.5),
     "ma_keep_by": "timestep"},
    {"prompt": "coat", "seeds": 6, "steps": 4, "guidance_tag": 1.2, "guidance_rescale": 0.5,
     "guidance_prev": 0.3},
]  # fmt: skip
TRANSPORT: list[Job] = [
    {"prompt": "the dark boot", "seeds": 1, "steps": 4, "transport_from": "a light bag",
     "cfg_scale": 3.0, "guidance": "apg", "ma_tokens": UPPER},
    {"prompt": "a coat", "seeds": 2, "steps": 3, "transport_from": "a shoe", "cfg_scale": 1.0,
     "scheduler": "heun", "dg_window": (0.0, 0.5)},
    {"prompt": "a bag", "seeds": [3, 4], "steps": 5, "transport_from": "the dark boot",
     "cfg_scale": 2.0, "scheduler": "unipc", "ma_tokens": LEFT, "ma_keep": 0.3},
]  # fmt: skip
SKIPPED: list[Job] = [
    {"prompt": "the dark boot", "seeds": 1, "steps": 4, "slg_layers": [1], "cfg_scale": 3.0,
     "guidance": "cfg-zero", "slg_window": (0.0, 0.6)},
    {"prompt": "a coat", "seeds": [2, 3], "steps": 3, "slg_layers": [0, 2], "cfg_scale": 1.0,
     "scheduler": "dpmpp-2m", "slg_window": (0.3, 1.0)},
    {"prompt": "a bag", "seeds": 4, "steps": 5, "slg_share": 0.4, "scheduler": "lcm",
     "image": PICTURE, "mask": UPPER},
]  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"quantize": "int8-dynamic"}], ids=["float32", "int8"])
@pytest.mark.parametrize(
    "jobs", [DETAIL, TRANSPORT, SKIPPED], ids=["detail", "transport", "skipped"]
)
def test_each_is_drawn_as_alone(jobs: Sequence[Job], options: dict[str, Any]) -> None:
    pipeline = intaglio.Pipeline.open(bundles.bundle(**options), device="cpu", threads=1)
    alone = [pipeline.generate(**job).latents for job in jobs]
    for joins in ([0] * len(jobs), range(len(jobs))):
        for place, result in together(pipeline, jobs, joins).items():
            np.testing.assert_array_equal(result.latents, alone[place], err_msg=str(jobs[place]))
