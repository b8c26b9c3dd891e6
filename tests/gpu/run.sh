#!/usr/bin/env bash
# For whoever has an NVIDIA card: runs everything that needs one with ONNX Runtime's providers, and
# writes build/gpu/report.md. From a fresh clone: tests/gpu/run.sh
set -uo pipefail
cd "$(dirname "$0")/../.."
out=build/gpu
mkdir -p "$out"
if ! nvidia-smi >"$out/nvidia-smi.txt" 2>&1; then
  echo "no NVIDIA driver works here (nvidia-smi): see $out/nvidia-smi.txt" >&2
  exit 4
fi
make setup build/bundles/fashion-sd3/bundle.json >"$out/build.log" 2>&1 || { tail -n 30 "$out/build.log" >&2; exit 1; }
# Both packages own one folder.
.venv/bin/pip uninstall -q -y onnxruntime && .venv/bin/pip install -q -c constraints.txt onnxruntime-gpu || exit 1

status=0
# ONNX Runtime's TensorRT provider has no other way to compute float32 in float32.
export NVIDIA_TF32_OVERRIDE=0
for device in cuda tensorrt; do
  .venv/bin/python -m pytest -q -m gpu -k "$device" --junitxml="$out/$device.xml" \
    --parity-table "$out/parity-$device.md" tests >"$out/$device.log" 2>&1 || status=1
  .venv/bin/intaglio bench build/bundles/fashion-sd3 --device "$device" >"$out/bench-$device.txt" 2>&1 ||
    echo "this failed: exit code $?" >>"$out/bench-$device.txt"
done
.venv/bin/python tests/gpu/report.py "$out" >"$out/report.md"
cat "$out/report.md"
exit $status
