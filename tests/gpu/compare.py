"""Print the relative error of latents: `python3 compare.py GOT.npy WANT.npy`.

It reads float32 files as the command writes them, with Python's standard library only.
"""

import math
import sys
from array import array
from pathlib import Path


def numbers(path: str) -> array:  # type: ignore[type-arg]
    """Return the numbers of a .npy file of float32."""
    data = Path(path).read_bytes()
    assert data[:6] == b"\x93NUMPY", path
    head = 10 + int.from_bytes(data[8:10], "little")
    assert b"'<f4'" in data[:head], path
    return array("f", data[head:])


def main(got: str, want: str) -> None:
    """Print the error, as nan when a file is not there or a number is not finite."""
    try:
        pairs = list(zip(numbers(got), numbers(want), strict=True))
    except (OSError, ValueError):
        print("nan")
        return
    distance = math.hypot(*(a - b for a, b in pairs))
    print(f"{distance / math.hypot(*(b for _, b in pairs)):.2e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
