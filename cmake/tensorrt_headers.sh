#!/bin/sh
# Puts TensorRT's C++ headers into FOLDER, for the tests that compare our tables with them. No wheel of
# NVIDIA's holds them; this one does, for its own use. Nothing that is installed is built with them.
set -eu
folder=$1
python=${2:-python3}
[ -e "$folder/NvInferRuntime.h" ] && exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo 'kernel-lens==2.0.1 --hash=sha256:07cc714e8b5e7f34b672f7c7fad93febe7c747be5837ba276b1527370134ffe0' >"$work/wheel"
"$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
  -r "$work/wheel" -d "$work"
"$python" -m zipfile -e "$work"/kernel_lens-*.whl "$work"
mkdir -p "$folder"
mv "$work"/kernel_lens/include/tensorrt/*.h "$folder"
