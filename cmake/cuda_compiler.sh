#!/bin/sh
# Puts NVIDIA's CUDA compiler into FOLDER, from its wheels (x86-64), where there is none in PATH or in
# /usr/local/cuda.
set -eu
folder=$1
python=${2:-python3}
command -v nvcc >/dev/null && exit 0
[ -x /usr/local/cuda/bin/nvcc ] && exit 0
[ -x "$folder/nvidia/cu13/bin/nvcc" ] && exit 0
wheels=$(mktemp)
trap 'rm -rf "$wheels" "$folder.partial"' EXIT
cat >"$wheels" <<'PINNED'
nvidia-cuda-crt==13.0.88 --hash=sha256:2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4
nvidia-cuda-nvcc==13.0.88 --hash=sha256:56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03
nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-nvvm==13.0.88 --hash=sha256:c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0
PINNED
"$python" -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r "$wheels" \
  --target "$folder.partial"
# What nvcc and CMake look for and wheels, which hold no symbolic links, leave out.
ln -s lib "$folder.partial/nvidia/cu13/lib64"
ln -s libcudart.so.13 "$folder.partial/nvidia/cu13/lib/libcudart.so"
chmod +x "$folder.partial"/nvidia/cu13/bin/* "$folder.partial"/nvidia/cu13/nvvm/bin/*
mv "$folder.partial" "$folder"
