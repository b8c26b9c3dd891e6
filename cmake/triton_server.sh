#!/bin/sh
# Downloads the wheel of nvidia-pytriton (55 MB, in the version of constraints.txt), which contains Triton Inference Server, and
# unpacks the server with its Python backend into FOLDER, for tests. Usage: triton_server.sh FOLDER PYTHON
# The Python backend was built for numpy 1, so numpy 1 is installed beside it.
set -eu
folder=$1
python=$2
constraints=$(dirname "$0")/../constraints.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: -c "$constraints" -d "$work" nvidia-pytriton
mkdir "$work/server"
"$python" -m zipfile -e "$work"/nvidia_pytriton-*.whl "$work/wheel"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# The programs look for their libraries in a folder beside the package pytriton.
mkdir -p "$work/server/pytriton/tritonserver"
mv "$work/wheel/nvidia_pytriton.libs" "$work/server/"
mv "$work/wheel/pytriton/tritonserver/bin" "$work/wheel/pytriton/tritonserver/backends" "$work/server/pytriton/tritonserver/"
mv "$work/wheel/pytriton/tritonserver/python_backend_stubs/$version/triton_python_backend_stub" \
  "$work/server/pytriton/tritonserver/backends/python/"
"$python" -m pip install -q --disable-pip-version-check --no-deps --only-binary :all: --target "$work/server/python" numpy==1.26.4
chmod +x "$work"/server/pytriton/tritonserver/bin/* "$work"/server/pytriton/tritonserver/backends/python/triton_python_backend_stub
rm -rf "$folder"
mkdir -p "$(dirname "$folder")"
mv "$work/server" "$folder"
