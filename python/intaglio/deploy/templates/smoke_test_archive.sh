#!/bin/sh
# Checks that the command and ONNX Runtime can be loaded on this machine. It needs no bundle.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
%check_machine

"$here/bin/intaglio" --version
"$here/bin/intaglio" devices | grep '^cpu  *yes'
echo "smoke test passed: the command and ONNX Runtime work"
