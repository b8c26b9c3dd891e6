#!/usr/bin/env bash
# For whoever has a card: parity with the CPU first, then copies, a mixed batch, and the speed of
# large models. It writes build/gpu/report.md as it goes, and ends within 5 minutes.
#   tests/gpu/run.sh [--device cuda] [--onnxruntime LIBRARY] [--pack FILE] [--limit SECONDS]
# It needs what tests/gpu/pack.sh packs, ONNX Runtime's build for the device, and Python 3 without
# any package. Any device works: --device webgpu rehearses it on a machine without a card.
set -uo pipefail
cd "$(dirname "$0")/../.."
device=cuda library= pack=build/gpu/pack.tar.xz limit=300
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=$2 ;;
    --onnxruntime) library=$2 ;;
    --pack) pack=$2 ;;
    --limit) limit=$2 ;;
    *) echo "unknown option $1: see the head of $0" >&2; exit 2 ;;
  esac
  shift 2 || exit 2
done
out=build/gpu report=build/gpu/report.md status=0
mkdir -p "$out"
[ -f "$pack" ] || tests/gpu/pack.sh "$pack" || exit 1
rm -rf "$out/pack" && mkdir "$out/pack" && tar -xf "$pack" -C "$out/pack" || exit 1
intaglio=$out/pack/folder/bin/intaglio bundle=$out/pack/folder/bundle

# The folder of a Python package, whose bindings are not used.
package() { python3 -c 'import importlib.util, sys; print(*importlib.util.find_spec(sys.argv[1]).submodule_search_locations)' "$1" 2>/dev/null; }
if [ -z "$library" ]; then
  library=$(find "$(package onnxruntime)/capi" -name 'libonnxruntime.so*' 2>/dev/null | sort -V | tail -n 1)
  [ -n "$library" ] || { echo "no ONNX Runtime was found: give its library with --onnxruntime" >&2; exit 4; }
fi
# pip installs CUDA and cuDNN where the dynamic loader does not look.
for folder in $(for place in $(package nvidia); do find "$place" -type d -name lib; done); do
  LD_LIBRARY_PATH=$folder:${LD_LIBRARY_PATH:-}
done
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}
export NVIDIA_TF32_OVERRIDE=0  # TensorRT's provider has no other way to compute float32 in float32

say() { printf '%s\n' "$@" | tee -a "$report"; }
# Runs a command within what is left of the time; its output goes to a log, and a failure to the report.
run() {
  local log=$out/$1.log left=$((limit - SECONDS))
  shift
  if [ "$left" -le 0 ]; then
    say "" "The $limit seconds were over before $log." && exit 1
  fi
  timeout "$left" "$@" >"$log" 2>&1 && return
  say "failed with exit code $?: $(tail -n 1 "$log")"
  status=1
  return 1
}
field() { python3 -c 'import json, sys; value = json.load(open(sys.argv[1]))
for key in sys.argv[2:]: value = value[key]
print(value)' "$@"; }

printf '# %s on %s\n\n' "$device" "$(date -u +%FT%TZ)" >"$report"
say "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo 'no NVIDIA driver')"
run devices "$intaglio" devices --onnxruntime "$library"
say "$(grep "^$device" "$out/devices.log")"
if nvidia-smi >/dev/null 2>&1; then
  nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -l 1 >"$out/memory.log" &
  trap 'kill %1' EXIT
fi

say "" "## Latents against the CPU" "" "| mode | relative error | copies in the loop | step, ms |" "|---|---|---|---|"
draw() { run "$1" "$intaglio" generate "$bundle" --prompt "a dark ankle boot" --seed 5 --steps 4 --onnxruntime "$library" --device "$2" \
  --latents-out "$out/$2.npy" --report "$out/$2.json" -o "$out/$2.png" "${@:3}"; }
draw picture cpu && cp "$out/cpu.png" "$out/picture.png"  # to start from
compare() {
  local mode=$1 error
  shift
  draw cpu cpu "$@" && draw "$device" "$device" "$@" || return
  error=$(python3 tests/gpu/compare.py "$out/$device.npy" "$out/cpu.npy")
  python3 -c 'import sys; sys.exit(not float(sys.argv[1]) < 1e-4)' "$error" || status=1
  say "| $mode | $error | $(field "$out/$device.json" loop copies) | $(python3 -c 'import json, sys
print(round(1e3 * min(json.load(open(sys.argv[1]))["step_seconds"]), 1))' "$out/$device.json") |"
}
compare "no guidance" --cfg-scale 1 --dg-scale 0
compare "CFG" --cfg-scale 3 --dg-scale 0
compare "DG" --cfg-scale 1 --dg-scale 1.5
compare "CFG and DG, two images" --cfg-scale 3 --dg-scale 1.5 --batch 2
compare "windows and ramps" --cfg-scale 4:2 --cfg-window 0:0.7 --dg-scale 0.5:1.5 --dg-window 0.3:1 --ma-keep 0:0.8
compare "Heun" --cfg-scale 3 --dg-scale 1 --scheduler heun
compare "reuse" --cfg-scale 3 --dg-scale 1 --reuse-interval 2
compare "image to image" --cfg-scale 3 --dg-scale 1 --image "$out/picture.png" --strength 0.7
say "" "The copies are those that the loop asks for; ONNX Runtime's own are not among them." ""
say "## A mixed batch of 8" ""
run batch "$out/pack/folder/bin/mixed_batch" "$bundle" "$device" "$library" && say "$(tail -n 1 "$out/batch.log")"

say "" "## One, two and three rows at the model's size, float16, random weights" ""
say "| model | rows | s per step | to CFG |" "|---|---|---|---|"
for model in "$out/pack/graphs"/*/; do
  name=$(basename "$model")
  run weights python3 tests/gpu/weights.py "$model" || continue
  run "bench-$name" "$intaglio" bench "$model" --device "$device" --onnxruntime "$library" --steps 2 --repeats 3 --json || continue
  for mode in baseline:1 cfg:2 cfg+dg:3; do
    say "| $name | ${mode#*:} | $(python3 -c 'import json, sys
run = json.load(open(sys.argv[1])); (row,) = (row for row in run["modes"] if row["mode"] == sys.argv[2])
print(round(row["seconds"] / run["steps"], 4), "|", round(row["ratio_to_cfg"], 3))' "$out/bench-$name.log" "${mode%:*}") |"
  done
  say "" "Most memory of the card so far: $(sort -n "$out/memory.log" 2>/dev/null | tail -n 1) MiB; of the process: $(field "$out/bench-$name.log" peak_memory_bytes) bytes." ""
  rm -f "$model"/transformer/*.safetensors
done
say "" "It took $SECONDS s and ended with status $status."
exit $status
