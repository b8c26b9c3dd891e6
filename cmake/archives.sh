#!/bin/bash
# Makes a folder of archives for INTAGLIO_ARCHIVES (archives.cmake) from Debian's packages, so that a build needs no
# other network. The list in it has their SHA-256. Usage: archives.sh FOLDER NAME..., with names of archives.txt
set -eu
folder=$1
shift
suites="forky trixie bookworm"  # the newest version of which the mirror has all files is taken
declare -A package_of=([libpng]=libpng1.6 [nlohmann-json]=nlohmann-json3)

missing=
for name in "$@"; do
  grep -qs "^$name " "$folder/archives.txt" || missing="$missing $name"
done
[ -n "$missing" ] || exit 0
mirror=$(cat /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null |
  sed -n -e 's/^URIs: *\([^ ]*debian\)\/* *$/\1/p' -e 's/^deb .*\(https*:[^ ]*debian\)\/* .*/\1/p' | head -n 1)
if [ -z "$mirror" ]; then
  echo "no Debian mirror is configured, so CMake downloads$missing" >&2
  exit 4
fi

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p lists/partial cache/archives/partial none
chmod 755 .
# stanza TYPE SUITES
stanza() {
  printf 'Types: %s\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n\n' "$1" "$mirror" "$2" \
    /usr/share/keyrings/debian-archive-keyring.gpg >>source.sources
}
case $missing in *onnxruntime*) stanza deb forky ;; esac
[ "$missing" = " onnxruntime" ] || stanza deb-src "$suites"
apt() {
  apt-get -qq -o Dir::Etc::SourceList="$PWD/source.sources" -o Dir::Etc::SourceParts="$PWD/none" \
    -o Dir::State::Lists="$PWD/lists" -o Dir::Cache="$PWD/cache" -o APT::Sandbox::User=root "$@"
}
apt update

# Adds the line about the archive FILE, which is in the folder, to the list.
list() {
  echo "$1 $2 $3 $(sha256sum "$folder/$3" | cut -d' ' -f1)" >>"$folder/archives.txt"
}

for name in $missing; do
  package=${package_of[$name]:-$name}
  case $name in
  onnxruntime)  # whose source is large; the package has the headers
    apt download libonnxruntime-dev/forky
    dpkg -x libonnxruntime-dev_*.deb package
    mkdir onnxruntime
    mv package/usr/include/onnxruntime onnxruntime/include
    mv package/usr/share/doc/libonnxruntime-dev/copyright onnxruntime/LICENSE
    tar -czf "$folder/onnxruntime.tar.gz" onnxruntime
    list onnxruntime "$(dpkg-deb -f libonnxruntime-dev_*.deb Version)" onnxruntime.tar.gz
    continue ;;
  libpng) what= ;;  # with Debian's patches, which are for security
  *) what=--tar-only ;;
  esac
  for suite in $suites; do
    if apt source $what "$package/$suite" >log 2>&1; then break; fi
    rm -rf "${package}_"* "$package-"*  # what there was of it
  done
  archive=$(find . -maxdepth 1 -name "${package}_*.orig.tar.*" ! -name '*.asc' -printf '%f\n' | head -n 1)
  if [ -z "$archive" ]; then
    cat log >&2
    exit 4
  fi
  version=${archive#*_} version=${version%.orig.*}
  if [ -z "$what" ]; then
    archive=$name.tar.gz
    tar -czf "$archive" "$(find . -maxdepth 1 -type d -name "$package-*" -printf '%f')"
  fi
  mv "$archive" "$folder/"
  list "$name" "$version" "$archive"
done
