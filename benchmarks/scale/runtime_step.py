"""Open a bundle with the runtime, encode a prompt and take a step.

`python -m benchmarks.scale.runtime_step BUNDLE`
"""

from __future__ import annotations

import sys

import numpy as np

import intaglio
from benchmarks.scale.measuring import MARK

SIDE = 256


def main(bundle: str) -> None:
    print(MARK + "opening")
    pipeline = intaglio.Pipeline.open(bundle)
    print(MARK + "encoding two prompts")
    prompt = pipeline.embed("a dark boot", "")
    assert np.isfinite(prompt.prompt_embeds).all()
    assert not np.array_equal(prompt.prompt_embeds, prompt.negative_prompt_embeds)
    print(MARK + f"one step of {SIDE}x{SIDE}, CFG and DG")
    run = pipeline.generate(
        prompt_embeds=prompt, steps=1, height=SIDE, width=SIDE, cfg_scale=4.0, dg_scale=1.0
    )
    assert np.isfinite(run.latents).all()
    assert (run.base_rows, run.forked_rows) == (2, 3)
    print(f"latents {list(run.latents.shape)}, {run.timings}")


if __name__ == "__main__":
    main(*sys.argv[1:])
