#!/bin/sh
# Runs every guidance mode once on random embeddings, since the bundle has no text encoders.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
%check_machine

"$here/bin/intaglio" bench "$here/bundle" --steps 1 --repeats 1 "$@" >/dev/null
echo "smoke test passed: every guidance mode ran"
