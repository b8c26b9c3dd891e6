#!/bin/bash
# Builds Intaglio for Linux on 64-bit ARM, runs the C++ tests under qemu, and draws a picture with the wheel of ONNX
# Runtime for ARM. It installs what is missing. Use: make aarch64
set -eu
source "$(dirname "$0")/prepare.sh"
install_packages g++-aarch64-linux-gnu qemu-user googletest

# ONNX Runtime reads the processor's description here, where qemu 7 leaves this machine's. This is a Cortex-A72.
root=build/aarch64/root
mkdir -p $root/proc
ln -sfn /usr/aarch64-linux-gnu/lib $root/lib
for processor in 0 1; do
  printf '%s\t: %s\n' processor $processor BogoMIPS 108.00 Features "fp asimd evtstrm crc32 cpuid" \
    "CPU implementer" 0x41 "CPU architecture" 8 "CPU variant" 0x0 "CPU part" 0xd08 "CPU revision" 3
  echo
done >$root/proc/cpuinfo

build aarch64
onnxruntime_for manylinux_2_28_aarch64
INTAGLIO_TEST_ONNXRUNTIME=$(echo "$PWD/$capi"/libonnxruntime.so.*) ctest --preset aarch64

out=build/aarch64/drawn
mkdir -p $out
draw_here $out
run=(qemu-aarch64 -cpu cortex-a72 -L $root build/aarch64/cpp/intaglio)
"${run[@]}" generate $bundle "${drawn[@]}" --onnxruntime $capi/libonnxruntime.so.* \
  -o $out/aarch64.png --latents-out $out/aarch64.npy
compare $out $out/aarch64.npy
