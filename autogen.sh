#!/bin/sh
# Makes ./configure from configure.ac. Needed in a git checkout only: the dist tarball has it.
set -e
cd "$(dirname "$0")"
mkdir -p build-aux
for tool in autoreconf automake pkg-config; do
    command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"
done
if [ -n "$missing" ]; then
    echo "autogen.sh: missing:$missing" >&2
    echo "  Debian: apt-get install autoconf automake pkg-config   Spack: spack load autoconf automake pkgconf   module: Autotools pkgconf" >&2
    exit 1
fi
autoreconf --install --warnings=all
echo "autogen.sh: ./configure is ready (or, out of tree: mkdir build && cd build && ../configure)"
