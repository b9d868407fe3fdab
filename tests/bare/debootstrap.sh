#!/usr/bin/env bash
# Shows that a fresh clone works on a bare Debian 12: makes one with debootstrap, clones this checkout (committed files only)
# into it and runs commands there, as root with HOME unset.
#
# usage: tests/bare/debootstrap.sh FOLDER [COMMAND...]
#   FOLDER    where the Debian goes (about 1.5 GB in the end); made if it is not there, taken as it is if it is
#   COMMAND   run in the clone's folder (default: ./jobs/quickstart.sh && ./tests/run.sh)
#
# Needs root, debootstrap and git. The mirror, apt's and pip's settings and the certificates are those of this machine, so
# that a site with mirrors or proxies of its own is served as well. Not part of tests/run.sh: it takes a while and a network.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,/^set -/{/^set -/!s/^# \{0,1\}//p}' "$0"; exit 2; }
top=$(cd "$(dirname "$0")/../.." && pwd)
root=$(realpath -m "$1")
shift
if [ $# = 0 ]; then set -- sh -c './jobs/quickstart.sh && ./tests/run.sh'; fi
[ "$(id -u)" = 0 ] || { echo "debootstrap.sh: needs root"; exit 1; }
for tool in debootstrap git unshare; do
    command -v $tool >/dev/null || { echo "debootstrap.sh: $tool is not installed"; exit 1; }
done

if [ ! -e "$root/.bare-ready" ]; then
    # the first repository that apt here uses for bookworm itself; none: debootstrap's own default
    mirror=$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        sed -n 's/^bookworm //p' | head -n 1)
    rm -rf "$root"
    echo "making a bare Debian 12 in $root"
    debootstrap --variant=minbase bookworm "$root" ${mirror:+"$mirror"} >"$root.log" 2>&1 ||
        { tail "$root.log"; echo "debootstrap.sh: could not make it, see $root.log"; exit 1; }
    : >"$root/.bare-ready"
fi

# this machine's way to packages
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
rm -f "$root/etc/apt/sources.list"
cp -r /etc/apt/sources.list.d "$root/etc/apt/"
[ ! -f /etc/apt/sources.list ] || cp /etc/apt/sources.list "$root/etc/apt/"
[ ! -d /usr/share/keyrings ] || cp -r /usr/share/keyrings "$root/usr/share/"
for setting in Acquire::http::Proxy Acquire::https::Proxy Acquire::Check-Valid-Until Acquire::Check-Date; do
    value=$(apt-config dump "$setting" --format '%v' 2>/dev/null || true)
    [ -z "$value" ] || echo "$setting \"$value\";"
done >"$root/etc/apt/apt.conf.d/99host"
bundle=${PIP_CERT:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}
[ ! -f "$bundle" ] || cp -L "$bundle" "$root/etc/host-ca.crt"
{
    echo '[global]'
    [ ! -f "$bundle" ] || echo 'cert = /etc/host-ca.crt'
    pip config list 2>/dev/null | sed -n "s/^\(global\.\|:env:\.\)\(index-url\|extra-index-url\|proxy\|trusted-host\)='\(.*\)'/\2 = \3/p" | sort -u
} >"$root/etc/pip.conf"
pass=()
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    [ -z "${!name:-}" ] || pass+=("$name=${!name}")
done

rm -rf "$root/srv/godwit"
git clone -q "$top" "$root/srv/godwit"
echo "clone of $(git -C "$top" log -1 --format='%h %s') in the bare Debian; running: $*"
# a mount and process namespace of its own: nothing stays mounted or running when this ends
export root
exec unshare --mount --pid --fork --kill-child bash -c '
    set -e
    mount --rbind /dev "$root/dev"
    mount -t proc proc "$root/proc" 2>/dev/null || mount --rbind /proc "$root/proc"
    exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"' bash \
    ${pass[@]+"${pass[@]}"} sh -c 'cd /srv/godwit && exec "$@"' sh "$@"
