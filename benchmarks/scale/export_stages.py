"""Export a pipeline and print each stage as it starts.

`python -m benchmarks.scale.export_stages SOURCE BUNDLE DTYPE [CHANNELS [QUANTIZE_ENCODERS]]`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.scale.measuring import MARK
from intaglio_export.exporter import export_bundle
from intaglio_export.options import ExportRequest


def main(
    source: str,
    output: str,
    dtype: str,
    channels: str | None = None,
    quantize_encoders: str | None = None,
) -> None:
    request = ExportRequest(
        Path(source),
        Path(output),
        dtype=dtype,
        channels=channels,
        quantize_encoders=quantize_encoders,
    )
    result = export_bundle(request, lambda what, share: print(MARK + what))
    print(json.dumps({"errors": result.errors, "remarks": result.remarks}))


if __name__ == "__main__":
    main(*sys.argv[1:])
