"""Detail Guidance in diffusers' own pipelines (docs/diffusers.md). It needs the extra `export`.

from intaglio.diffusers import apply_detail_guidance

apply_detail_guidance(pipe, channels=[810], block=11, dg_scale=1.0)
pipe("a fox in the snow", guidance_scale=5.0)
"""

from intaglio.diffusers.classic import AppliedGuidance, apply_detail_guidance
from intaglio.diffusers.guider import DetailGuidance

__all__ = ["AppliedGuidance", "DetailGuidance", "apply_detail_guidance"]
