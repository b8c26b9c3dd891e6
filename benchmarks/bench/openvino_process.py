"""Draw what stdin asks for on OpenVINO, and write the generations to stdout, both as pickles.

`python -m benchmarks.bench.openvino_process BUNDLE LIBRARY THREADS PRECISION` ends with stdin.
"""

from __future__ import annotations

import pickle
import sys

import intaglio


def main(bundle: str, library: str, threads: str, precision: str) -> None:
    """Open the bundle and draw until stdin is closed."""
    pipeline = intaglio.Pipeline.open(
        bundle, device="openvino", precision=precision, threads=int(threads), onnxruntime=library
    )
    while True:
        try:
            options = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(pipeline.generate(**options), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
