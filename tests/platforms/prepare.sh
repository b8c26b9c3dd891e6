# For the scripts of this folder, which source it: what a cross build needs.
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
archives=build/deps/archives
wheels=build/deps/onnxruntime-wheels

# Installs those of the given packages that are missing.
install_packages() {
  local missing=() root=
  for package in "$@"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return
  [ "$(id -u)" = 0 ] || root=sudo
  $root apt-get -qq update
  $root env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "${missing[@]}" >build/apt.log
}

# Builds the preset $1, with libraries from archives.
build() {
  # shellcheck disable=SC2046
  cmake/archives.sh $archives $(sed -n 's/^\([a-z0-9-]*\) .*/\1/p' cmake/archives.txt) || true
  cmake --preset "$1" "-DINTAGLIO_ARCHIVES=$PWD/$archives" >"build/$1.log" || { cat "build/$1.log"; return 1; }
  cmake --build --preset "$1"
}

# Unpacks the wheel of ONNX Runtime for the platform $1, in the version that is installed here, and sets `capi` to the
# folder with its library.
onnxruntime_for() {
  capi=$wheels/$1/onnxruntime/capi
  [ -d "$capi" ] && return
  local version
  version=$(.venv/bin/python -c 'import onnxruntime; print(onnxruntime.__version__)')
  .venv/bin/python -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: \
    --platform "$1" --python-version 3.11 -d $wheels "onnxruntime==$version"
  .venv/bin/python -m zipfile -e $wheels/onnxruntime-"$version"-*"$1".whl "$wheels/$1.partial"
  mv "$wheels/$1.partial" "$wheels/$1"
}

# What all programs draw. The prompt has letters outside ASCII.
bundle=build/bundles/fashion-sd3
drawn=(--prompt "a dark ankle boot, élégant" --seed 7 --steps 4 --dg-scale 0.5 --threads 1)

# Draws into the folder $1 with this machine's command, which the others are compared with.
draw_here() {
  .venv/bin/intaglio generate $bundle "${drawn[@]}" -o "$1/here.png" --latents-out "$1/here.npy"
}

# Prints by how much the latents of $1/here.npy and $2 differ. Fails where that is more than 1e-4.
compare() {
  .venv/bin/python - "$1/here.npy" "$2" <<'END'
import sys
import numpy as np

here, there = (np.load(path) for path in sys.argv[1:])
assert here.shape == there.shape and np.isfinite(there).all()
difference = float(np.abs(here - there).max())
print(f"largest difference of the latents from x86-64's: {difference:.1e}")
sys.exit(difference > 1e-4)
END
}
