"""Write a pipeline with random weights: `python -m benchmarks.scale.source NAME FOLDER DTYPE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from benchmarks.scale.configurations import CONFIGURATIONS
from benchmarks.scale.folders import write_pipeline


def main(name: str, folder: str, dtype: str) -> None:
    made = CONFIGURATIONS[name]
    networks = made.networks()
    write_pipeline(
        Path(folder),
        made.pipeline,
        networks,
        made.others(),
        getattr(torch, dtype),
        options=made.options,
    )
    Path(folder, "settings.json").write_text(json.dumps(made.settings))
    for part, network in networks.items():
        print(f"{part} {sum(parameter.numel() for parameter in network.parameters()):,}")


if __name__ == "__main__":
    main(*sys.argv[1:])
