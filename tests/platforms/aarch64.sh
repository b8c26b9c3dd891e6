#!/bin/bash
# Builds Intaglio for Linux on 64-bit ARM, runs the C++ tests under qemu, and draws a picture with the wheel of ONNX
# Runtime for ARM. It installs what is missing. Use: make aarch64
set -eu
source "$(dirname "$0")/prepare.sh"
install_packages g++-aarch64-linux-gnu qemu-user googletest
build aarch64
ctest --preset aarch64
onnxruntime_for manylinux_2_28_aarch64

out=build/aarch64/drawn
mkdir -p $out
draw_here $out
run=(qemu-aarch64 -cpu cortex-a72 -L /usr/aarch64-linux-gnu build/aarch64/cpp/intaglio)
"${run[@]}" generate $bundle "${drawn[@]}" --onnxruntime $capi/libonnxruntime.so.* \
  -o $out/aarch64.png --latents-out $out/aarch64.npy
compare $out $out/aarch64.npy
