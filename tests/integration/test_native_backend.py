"""The TensorRT backend's refusals on a machine that cannot run it."""

from pathlib import Path

import pytest

from tests.conftest import no_gpu
from tests.integration.conftest import PROMPT, Command, check

pytestmark = pytest.mark.skipif(
    "no NVIDIA driver" not in no_gpu(), reason="this machine has an NVIDIA driver"
)
DEVICES = ["tensorrt-rtx", "tensorrt"]


@pytest.mark.parametrize("device", DEVICES)
def test_the_driver_comes_first(command: Command, forked_bundle: Path, device: str) -> None:
    """The bundle has no engines either, which would help nobody without a driver."""
    line = ["--prompt", PROMPT, "--device", device, "-o", "image.png"]
    said = check(command, 4, "there is no NVIDIA driver", "generate", forked_bundle, *line)
    assert "--device cpu" in said


@pytest.mark.parametrize("device", DEVICES)
def test_the_stand_in_names_the_build_flag(
    entry_point: Command, forked_bundle: Path, device: str
) -> None:
    """The Python package is built without it."""
    line = ["--prompt", PROMPT, "--device", device, "-o", "image.png"]
    said = check(
        entry_point, 4, "cmake.define.INTAGLIO_TENSORRT=ON", "generate", forked_bundle, *line
    )
    assert f'device "{device}"' in said
