"""Analysis of massive activations and Detail Guidance in a diffusers model.

    from intaglio.analysis import features

    maps = features(pipeline, images, blocks=[4])

It needs the extra `probe`; its command is `intaglio probe` (docs/probe.md). `import intaglio` does
not import it. The packages, each of which imports only those above it:

    quality       measures of pictures, their intervals, and the judge
    report        the report's page, plots and files
    channels      which channels are massive, where, and why: parts 1 to 3
    guidance      negative branches, effective guidance, settings as methods
    experiments   pictures drawn and compared: parts 4 to 7
    probe         all parts in order, for a model or an observed bundle
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intaglio.analysis.block_features import features

__all__ = ["features"]


def __getattr__(name: str) -> Any:
    """Import `features` when it is used: it needs torch, and probing a bundle does not."""
    if name == "features":
        from intaglio.analysis.block_features import features

        return features
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
