#!/bin/sh
# Unpacks ONNX Runtime's C++ headers from Debian's package libonnxruntime-dev into FOLDER, unless they are
# installed. A distribution with an older package or none gets the one of the next Debian from its mirror.
set -eu
folder=$1
suite=forky
# Version 1.23 is the first with the interface for plugins of providers.
has_plugins() { grep -qs RegisterExecutionProviderLibrary "$1/usr/include/onnxruntime/onnxruntime_cxx_api.h"; }
has_plugins "$folder" && exit 0
has_plugins "" && exit 0
rm -rf "$folder"

if apt-cache show libonnxruntime-dev 2>/dev/null | grep -q '^Version: 1\.\(2[3-9]\|[3-9][0-9]\)'; then
  cd "$(mktemp -d)"
  apt-get -qq download libonnxruntime-dev
else
  mirror=$(cat /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null |
    sed -n -e 's/^URIs: *\([^ ]*debian\)\/* *$/\1/p' -e 's/^deb .*\(https*:[^ ]*debian\)\/* .*/\1/p' | head -n 1)
  if [ -z "$mirror" ]; then
    echo "no Debian mirror is configured: install ONNX Runtime's C++ headers (libonnxruntime-dev) by hand" >&2
    exit 4
  fi
  cd "$(mktemp -d)"
  mkdir -p lists/partial cache/archives/partial none
  chmod 755 .
  printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' "$mirror" "$suite" \
    /usr/share/keyrings/debian-archive-keyring.gpg >source.sources
  for action in update "download libonnxruntime-dev"; do
    # shellcheck disable=SC2086
    apt-get -qq -o Dir::Etc::SourceList="$PWD/source.sources" -o Dir::Etc::SourceParts="$PWD/none" \
      -o Dir::State::Lists="$PWD/lists" -o Dir::Cache="$PWD/cache" -o APT::Sandbox::User=root $action
  done
fi
here=$PWD
cd - >/dev/null
mkdir -p "$folder"
dpkg -x "$here"/libonnxruntime-dev_*.deb "$folder"
rm -rf "$here"
