"""Detail Guidance for diffusion transformers (arXiv 2510.11538).

    import intaglio

    pipeline = intaglio.Pipeline.open("fashion.bundle")
    generation = pipeline.generate("a dark ankle boot", seeds=[1, 2], dg_scale=0.5)
    generation.save("boot.png")

`intaglio export` writes bundles. Importing this package needs neither torch nor diffusers.
"""

from intaglio._core import (
    Bundle,
    Error,
    InputError,
    Interrupted,
    OutOfMemoryError,
    PromptEmbeds,
    Step,
    Timings,
    UnavailableError,
    UsageError,
    __version__,
)
from intaglio.batch import Batch, BatchStep
from intaglio.pipeline import Generation, Pipeline

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
    "PromptEmbeds",
    "Step",
    "Timings",
    "UnavailableError",
    "UsageError",
    "__version__",
]
