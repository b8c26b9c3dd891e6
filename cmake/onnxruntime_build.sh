#!/bin/sh
# Downloads the wheel of another build of ONNX Runtime, in the version of constraints.txt, and unpacks its libraries
# into FOLDER. Tests use them beside the build in the environment, because pip would install both into one folder.
# Usage: onnxruntime_build.sh PACKAGE FOLDER PYTHON, with PACKAGE onnxruntime-gpu (250 MB), onnxruntime-openvino (84 MB)
# or onnxruntime-webgpu (25 MB)
set -eu
package=$1
folder=$2
python=$3
constraints=$(dirname "$0")/../constraints.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: -c "$constraints" -d "$work" "$package"
mkdir "$work/libraries"
"$python" - "$work" <<'EOF'
import sys
import zipfile
from pathlib import Path

work = Path(sys.argv[1])
with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
    for name in wheel.namelist():
        if name.startswith("onnxruntime/capi/lib"):
            (work / "libraries" / Path(name).name).write_bytes(wheel.read(name))
EOF
rm -rf "$folder"
mkdir -p "$(dirname "$folder")"
mv "$work/libraries" "$folder"
