if [ "$(uname -m)" != %machine ]; then
  echo "this folder is for %machine, and this machine is $(uname -m): give \`intaglio deploy folder\` the archive for $(uname -m)" >&2
  exit 4
fi
