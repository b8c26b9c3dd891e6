"""Export of a Diffusion Transformer from a diffusers folder to an Intaglio bundle.

The command is `intaglio export` (`intaglio_export.cli.export`); the same from Python is
`intaglio_export.exporter.export_bundle`.
"""

import os

# python/intaglio/__init__.py does the same and explains why.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
