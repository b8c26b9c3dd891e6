"""Opens the tiny pipelines' bundles in the C++ runtime."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import intaglio
from intaglio_export.exporter import export_bundle
from intaglio_export.options import ExportRequest
from tests.diffusers.runs import BLOCK, HEIGHT, WIDTH
from tests.families import FAMILIES
from tests.families.parts import MAX_LENGTH

Open = Callable[[str], intaglio.Pipeline]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def runtime(forked_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Open:
    """Open the exported bundle of a family in the C++ runtime; sd3's is shared with other tests."""

    @cache
    def opened(name: str) -> intaglio.Pipeline:
        if name == "sd3":
            return intaglio.Pipeline.open(forked_bundle, threads=1)
        folder = tmp_path_factory.mktemp("guider") / name
        FAMILIES[name].make().save_pretrained(folder)
        settings: dict[str, Any] = {"block": BLOCK, "height": HEIGHT, "width": WIDTH}
        settings["max_sequence_length"] = MAX_LENGTH
        (folder / "settings.json").write_text(json.dumps(settings))
        bundle: Path = folder.parent / "bundle"
        export_bundle(ExportRequest(folder, bundle, layout="forked"))
        return intaglio.Pipeline.open(bundle, threads=1)

    return opened
