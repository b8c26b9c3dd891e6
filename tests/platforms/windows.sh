#!/bin/bash
# Builds Intaglio for Windows, runs the C++ tests under Wine, and draws with the wheel of ONNX Runtime for Windows. It
# installs what is missing. Use: make windows
set -eu
source "$(dirname "$0")/prepare.sh"
install_packages g++-mingw-w64-x86-64-posix wine wine64 googletest
export WINEPREFIX=$PWD/build/windows/wine WINEDEBUG=-all
export WINEDLLOVERRIDES="mscoree,mshtml="  # which Wine would offer to install
export LC_ALL=C.UTF-8  # by which Wine reads the arguments
build windows
onnxruntime_for win_amd64
INTAGLIO_TEST_ONNXRUNTIME=$PWD/$capi/onnxruntime.dll ctest --preset windows

out=build/windows/drawn
rm -rf $out
mkdir -p $out
draw_here $out
.venv/bin/python tests/platforms/windows.py $bundle $capi/onnxruntime.dll $out "${drawn[@]}"
compare $out $out/windows.npy
