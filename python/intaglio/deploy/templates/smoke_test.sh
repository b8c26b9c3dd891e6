#!/bin/sh
# Draws one image with the files of this folder and checks it. Further flags of `intaglio generate` may be given, such as
# --device, but not %subject, --steps and -o, which the script sets.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
%check_machine
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$here/bin/intaglio" generate "$here/bundle" %subject --steps 2 "$@" -o "$work/image.png" >/dev/null
signature=$(head -c 8 "$work/image.png" | od -An -tx1 | tr -d ' \n')
if [ "$signature" != 89504e470d0a1a0a ]; then
  echo "smoke test failed: the image is not a PNG" >&2
  exit 1
fi
echo "smoke test passed: an image of $(wc -c <"$work/image.png") bytes"
