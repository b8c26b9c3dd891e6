"""Detail Guidance for diffusion transformers (arXiv 2510.11538).

    import intaglio

    pipeline = intaglio.Pipeline.open("fashion.bundle")
    generation = pipeline.generate("a dark ankle boot", seeds=[1, 2], dg_scale=0.5)
    generation.save("boot.png")

`intaglio export` writes bundles. Importing this package needs neither torch nor diffusers.
"""

import os

# Since 1.29, ONNX Runtime's packages report every session to their maker and keep an identifier in
# the user's home. The variable is read when the library is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from intaglio._core import (
    Bundle,
    Error,
    InputError,
    Interrupted,
    OutOfMemoryError,
    Problem,
    PromptEmbeddings,
    Step,
    Timings,
    UnavailableError,
    UsageError,
    __version__,
)
from intaglio.batch import Batch, BatchStep
from intaglio.pipeline import Generation, Pipeline, validate

PromptEmbeds = PromptEmbeddings  # the old name, kept for one version

__all__ = [
    "Batch",
    "BatchStep",
    "Bundle",
    "Error",
    "Generation",
    "InputError",
    "Interrupted",
    "OutOfMemoryError",
    "Pipeline",
    "Problem",
    "PromptEmbeddings",
    "PromptEmbeds",
    "Step",
    "Timings",
    "UnavailableError",
    "UsageError",
    "__version__",
    "validate",
]
