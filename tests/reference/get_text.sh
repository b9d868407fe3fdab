#!/bin/sh
# Writes the fixed text over which perplexity is measured, and checks that it is that text byte for byte.
#
# The text is the body of "Workshop on Electronic Texts: Proceedings" (Library of Congress, 1992; a United States
# government publication, public domain), which the Canterbury corpus calls lcet10.txt and the PyPI source package
# of Brotli carries among its test data. From it: line ends made LF, lines 302 to 1296, which are plain English
# prose of many speakers. 60 KB.
#
# Needs: python3 with pip, tar, sha256sum. Writes into data/cache, which git ignores.
set -eu

usage() {
    echo "Usage: $0 [FILE]"
    echo "Writes the perplexity text to FILE (default: data/cache/perplexity.txt under the source tree)."
}
case "${1:-}" in
-h | --help) usage; exit 0 ;;
-*) usage >&2; exit 2 ;;
esac

package=brotli==1.2.1
member='brotli-*/tests/testdata/lcet10.txt'
want=d90bb749be5d09e9adf3ab6b32e7e0e765875bfb12c01ac259e80e9e5ddaefb0

root=$(cd "$(dirname "$0")/../.." && pwd)
out=${1:-$root/data/cache/perplexity.txt}
case $out in /*) ;; *) out=$(pwd)/$out ;; esac

matches() { [ -f "$1" ] && [ "$(sha256sum <"$1" | cut -d' ' -f1)" = "$want" ]; }

if matches "$out"; then
    echo "$out"
    exit 0
fi

mkdir -p "$(dirname "$out")"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
if ! python3 -m pip download -q --no-deps --no-binary brotli -d "$tmp" "$package" >"$tmp/log" 2>&1; then
    cat "$tmp/log" >&2
    echo "get_text: pip could not download the source package $package; see above" >&2
    exit 1
fi
# --wildcards and -O: only this member, to stdout, whatever the archive's top folder is called.
tar -xzOf "$tmp"/*.tar.gz --wildcards "$member" | tr -d '\r' | sed -n '302,1296p' >"$tmp/text"
if ! matches "$tmp/text"; then
    echo "get_text: the text from $package is not the expected one (sha256 is not $want)" >&2
    exit 1
fi
mv "$tmp/text" "$out"
echo "$out"
