"""Investigates massive activations and Detail Guidance on a diffusers model; needs the extra probe.

    from intaglio.analysis import features

    maps = features(pipeline, images, blocks=[4])

The command is `intaglio probe`. `import intaglio` does not import this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intaglio.analysis.block_features import features

__all__ = ["features"]


def __getattr__(name: str) -> Any:
    """`features` needs torch, which an observed bundle is probed without."""
    if name == "features":
        from intaglio.analysis.block_features import features

        return features
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
