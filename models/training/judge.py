"""Write the judge that `intaglio probe` measures pictures with, from the classifier.

Train the classifier first with `python -m models.training.classifier`. MODEL/judge then holds it in
ONNX, its prompts, and its features of the 10,000 held-out images.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from intaglio_export.passes.strip_metadata import strip_metadata

from . import classifier, data

# As in evaluate.py, half of the prompts have no tone, a quarter is dark and a quarter light.
TONES = (0, 1, 0, 2)


class Judge(nn.Module):
    """Maps pictures [N, 32, 32, 3] from 0 to 1 to features [N, FEATURES] and logits [N, 10]."""

    def __init__(self, network: classifier.Classifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.network.features(images.mean(3).unsqueeze(1) * 2 - 1)
        return features, self.network.head(features)


def write_network(network: nn.Module, size: int, path: Path) -> None:
    """Write a judge of pictures [N, size, size, 3] in ONNX, as the probe reads it."""
    program = torch.onnx.export(
        network.eval(),
        (torch.rand(2, size, size, 3),),
        input_names=["images"],
        output_names=["features", "logits"],
        dynamic_shapes=({0: torch.export.Dim("images")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    strip_metadata(program.model)
    program.save(path, external_data=False)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m models.training.judge", description=__doc__)
    p.add_argument("--model", type=Path, default=Path("models/fashion-sd3"))
    p.add_argument("--work", type=Path, default=Path("build/training"))
    p.add_argument("--data", type=Path, default=data.DEFAULT_DATA)
    args = p.parse_args(argv)
    try:
        network, accuracy = classifier.load(args.work)
        held = data.to_pixels(data.load_split(args.data, "t10k").images)
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    out = args.model / "judge"
    out.mkdir(exist_ok=True)
    write_network(Judge(network), 32, out / "judge.onnx")
    features, _ = classifier.describe(network, held)
    np.savez_compressed(out / "reference.npz", features=features.half().numpy())
    prompts = [[data.caption(c, tone), c] for tone in TONES for c in range(len(data.NAMES))]
    about = {
        "classes": list(data.NAMES),
        "accuracy": round(accuracy, 4),
        "data": "Fashion-MNIST (Zalando Research, MIT licence): trained on the training images;"
        " the reference is of the 10,000 held-out ones",
        "license": "Apache-2.0",
        "prompts": prompts,
    }
    (out / "judge.json").write_text(json.dumps(about, indent=1) + "\n")
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
