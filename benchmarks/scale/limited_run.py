"""Draw 512 x 512 pixels with two steps of CFG and DG under limits of memory.

`python -m benchmarks.scale.limited_run BUNDLE [--max-memory SIZE] [--address-space BYTES]`
"""

from __future__ import annotations

import argparse
import resource

import numpy as np

import intaglio
from benchmarks.scale.measuring import MARK

SIDE = 512


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle")
    parser.add_argument("--max-memory")
    parser.add_argument("--address-space", type=int)
    given = parser.parse_args()
    if given.address_space:  # as `ulimit -v` sets it
        resource.setrlimit(resource.RLIMIT_AS, (given.address_space, given.address_space))
    pipeline = intaglio.Pipeline.open(given.bundle, device="cpu", max_memory=given.max_memory)
    print(MARK + f"two steps of {SIDE}x{SIDE}")
    run = pipeline.generate(
        "a dark boot", steps=2, height=SIDE, width=SIDE, cfg_scale=4.0, dg_scale=1.0
    )
    assert np.isfinite(run.latents).all()
    print(run.timings)


if __name__ == "__main__":
    main()
