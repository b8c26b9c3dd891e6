#!/usr/bin/env bash
# For whoever has the card: builds the native backend, runs everything that needs a GPU, and writes
# build/gpu/report.md. From a fresh clone: tests/gpu/run.sh
set -uo pipefail
cd "$(dirname "$0")/../.."
out=build/gpu
mkdir -p "$out"
if ! nvidia-smi >"$out/nvidia-smi.txt" 2>&1; then
  echo "no NVIDIA driver works here (nvidia-smi): see $out/nvidia-smi.txt" >&2
  exit 4
fi
make setup test-cpp >"$out/build.log" 2>&1 || { tail -n 30 "$out/build.log" >&2; exit 1; }
# The Python package again, with the backend in it and the tools of both GPU runtimes.
.venv/bin/pip install -q --no-build-isolation --no-deps -e . -C cmake.define.INTAGLIO_TENSORRT=ON || exit 1
.venv/bin/pip install -q onnxruntime-gpu || exit 1

status=0
ctest --preset tensorrt -R Gpu --output-junit "$PWD/$out/ctest.xml" >"$out/ctest.log" 2>&1 || status=1
for device in cuda ort-tensorrt tensorrt-rtx tensorrt; do
  selection=$device
  [ "$device" = tensorrt ] && selection="tensorrt and not rtx and not ort"
  .venv/bin/python -m pytest -q -m gpu -k "$selection" --junitxml="$out/$device.xml" \
    --parity-table "$out/parity-$device.md" tests >"$out/$device.log" 2>&1 || status=1
  .venv/bin/intaglio bench build/bundles/fashion-sd3 --device "$device" >"$out/bench-$device.txt" 2>&1 || true
done
.venv/bin/python tests/gpu/report.py "$out" >"$out/report.md"
cat "$out/report.md"
exit $status
