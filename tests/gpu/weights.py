"""Make the random weights that a bundle of tests/gpu/graphs.py lacks: `python3 weights.py BUNDLE`.

It needs Python's standard library only.
"""

import hashlib
import json
import random
import sys
from pathlib import Path

BLOCK = 1 << 26  # bytes; the file repeats one block
# The upper bytes of float16 numbers between 2^-7 and 2^-5 of either sign: bits of an upper byte are
# a sign, five of the exponent and two of the mantissa.
SMALL = bytes((byte & 0x83) | (0x20 if byte & 4 else 0x24) for byte in range(256))


def block(offset: int) -> bytes:
    """Random float16 numbers, of which the first begins at an even or an odd offset."""
    made = bytearray(random.Random(0).randbytes(BLOCK))
    upper = slice(1 - offset % 2, None, 2)
    made[upper] = made[upper].translate(SMALL)
    return bytes(made)


def main(folder: str) -> None:
    """Write the file, and its SHA-256 into the manifest."""
    bundle = Path(folder)
    lacking = json.loads((bundle / "weights.json").read_text())
    data, digest, left = block(lacking["offset"]), hashlib.sha256(), lacking["bytes"]
    with (bundle / lacking["file"]).open("wb") as file:
        while left > 0:
            piece = data[:left]
            file.write(piece)
            digest.update(piece)
            left -= len(piece)
    manifest = bundle / "bundle.json"
    described = json.loads(manifest.read_text())
    described["files"][lacking["file"]]["sha256"] = digest.hexdigest()
    manifest.write_text(json.dumps(described))


if __name__ == "__main__":
    main(*sys.argv[1:])
