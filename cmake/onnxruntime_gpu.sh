#!/bin/sh
# Downloads the onnxruntime-gpu wheel (250 MB, in the version of constraints.txt) and unpacks its libraries into FOLDER.
# Tests use them to check the messages on a machine without a GPU. Usage: onnxruntime_gpu.sh FOLDER PYTHON
set -eu
folder=$1
python=$2
constraints=$(dirname "$0")/../constraints.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: -c "$constraints" -d "$work" onnxruntime-gpu
mkdir "$work/libraries"
"$python" - "$work" <<'EOF'
import sys
import zipfile
from pathlib import Path

work = Path(sys.argv[1])
with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
    for name in wheel.namelist():
        if name.startswith("onnxruntime/capi/libonnxruntime"):
            (work / "libraries" / Path(name).name).write_bytes(wheel.read(name))
EOF
rm -rf "$folder"
mkdir -p "$(dirname "$folder")"
mv "$work/libraries" "$folder"
