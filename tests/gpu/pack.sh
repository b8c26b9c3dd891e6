#!/usr/bin/env bash
# Packs what tests/gpu/run.sh needs beside the checkout, for a machine that builds nothing:
# the executable with its libraries, the shipped bundle, and large graphs without weights.
#   tests/gpu/pack.sh FILE.tar.xz
set -euo pipefail
cd "$(dirname "$0")/../.."
pack=$(realpath -m "$1") bundle=build/bundles/fashion-sd3 folder=build/gpu/packing
make -s .venv/ready "$bundle/bundle.json"
cmake --preset release >/dev/null && cmake --build --preset release >/dev/null
rm -rf "$folder" && mkdir -p "$folder/graphs"
.venv/bin/intaglio deploy folder "$bundle" -o "$folder/folder" >/dev/null
rm -f "$folder/folder/lib"/libonnxruntime*  # the machine has its own
g++ -std=c++20 -O2 -Icpp/include tests/gpu/mixed_batch.cpp -o "$folder/folder/bin/mixed_batch" \
  -Lbuild/release/cpp -lintaglio -Wl,-rpath,'$ORIGIN/../lib'
.venv/bin/python -m tests.gpu.graphs "$folder/graphs"
mkdir -p "$(dirname "$pack")"
tar -C "$folder" -cf - folder graphs | xz -T2 -6 >"$pack"
bytes=$(stat -c %s "$pack")
echo "$pack: $bytes bytes"
[ "$bytes" -le 35000000 ] || { echo "the pack is larger than 35 MB" >&2; exit 1; }
