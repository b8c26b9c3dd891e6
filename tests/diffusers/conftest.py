"""Opens the tiny pipelines' bundles in the C++ runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch

import intaglio
from tests.bundles import bundle

Open = Callable[[str], intaglio.Pipeline]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def runtime() -> Open:
    """Open the exported bundle of a family in the C++ runtime."""

    @cache
    def opened(name: str) -> intaglio.Pipeline:
        return intaglio.Pipeline.open(bundle(name), threads=1)

    return opened
