#!/bin/sh
# Makes a folder with Debian's Python, a shell and what these two need, to try in it what is published. There is no
# compiler, and no library else but that of C++, which apt needs and so every Debian has, and which wheels for Linux
# expect. Usage, as root: bare_root.sh FOLDER
set -eu
mirror=$(cat /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null |
  sed -n -e 's/^URIs: *\([^ ]*debian\)\/* *$/\1/p' -e 's/^deb .*\(https*:[^ ]*debian\)\/* .*/\1/p' | head -n 1)
if [ -z "$mirror" ]; then
  echo "no Debian mirror is configured, so no bare root folder can be made" >&2
  exit 4
fi
rm -rf "$1"
mmdebstrap --quiet --variant=extract --include=dash,libstdc++6,python3,python3-venv bookworm "$1" "$mirror"
# Whoever enters mounts /dev and /proc. A copy of a device would be as long as what it gives.
rm -rf "$1/dev"
mkdir -p "$1/dev" "$1/proc"
[ -e "$1/bin/sh" ] || ln -s dash "$1/bin/sh"
chroot "$1" /usr/bin/python3 -m venv /venv
