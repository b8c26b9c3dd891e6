"""The families' parity tests (tests/parity/family.py), on every device that is a GPU's."""

from __future__ import annotations

import pytest

from tests.conftest import GPU_DEVICES
from tests.families import FAMILIES
from tests.parity.family import FamilyParity

for _name in FAMILIES:
    for _device in GPU_DEVICES:
        _title = f"Test[{_device}-{_name}]"
        _fields = {"name": _name, "device": _device, "__module__": __name__}
        globals()[_title] = pytest.mark.gpu(type(_title, (FamilyParity,), _fields))
