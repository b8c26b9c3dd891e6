"""Detail Guidance for diffusion transformers (arXiv 2510.11538).

    import intaglio

    pipeline = intaglio.Pipeline.open("fashion.bundle")
    generation = pipeline.generate("a dark ankle boot", seeds=[1, 2], dg_scale=0.5)
    generation.save("boot.png")

`intaglio export` writes bundles. Importing this package needs neither torch nor diffusers.
"""

import os

try:
    # Python 3.11 has this module; later ones let pybind11 refuse by itself.
    from _xxsubinterpreters import get_current, get_main  # type: ignore[import-not-found]
except ImportError:
    pass
else:
    if get_current() != get_main():  # as in mod_wsgi, unless WSGIApplicationGroup is %{GLOBAL}
        raise ImportError(
            "intaglio can be imported in the main interpreter of a process only, since pybind11"
            " would wait for ever in another one"
        )

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
