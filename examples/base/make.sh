#!/bin/sh
# make.sh [busybox] [debian]: makes base images from Debian packages, for places where no registry can be reached.
# Without arguments: both. An image that is there already is left alone (FORCE=1 makes it again).
#
#   busybox:latest    the host's static busybox (package busybox-static), a link for each of its commands
#   debian:bookworm   debootstrap's minimal system, from the mirror that the host's apt uses
#
# RBUILD names the program (default: rbuild).
set -eu
rbuild=${RBUILD:-rbuild}
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT INT TERM

have() { [ -z "${FORCE:-}" ] && "$rbuild" image inspect "$1" >/dev/null 2>&1; }

make_busybox() {
  program=$(command -v busybox) || { echo "make.sh: no busybox: apt-get install busybox-static" >&2; exit 1; }
  root=$work/busybox
  mkdir -p "$root/bin" "$root/dev" "$root/etc" "$root/root" "$root/tmp" "$root/usr/bin" "$root/var"
  chmod 755 "$root"; chmod 700 "$root/root"; chmod 1777 "$root/tmp"
  cp "$program" "$root/bin/busybox"; chmod 755 "$root/bin/busybox"
  for name in $("$program" --list); do
    [ "$name" = busybox ] || ln "$root/bin/busybox" "$root/bin/$name"
  done
  ln "$root/bin/busybox" "$root/usr/bin/env"
  printf 'root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
  printf 'root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n' >"$root/etc/group"
  load "$root" busybox:latest sh
}

# The mirror of the host's first Debian source, in either of apt's two formats.
mirror() {
  cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
    awk '/^deb[ \t]/ { for (i = 2; i <= NF; i++) if ($i ~ /^https?:/) { print $i; next } }
         /^URIs:/ { print $2 }' |
    grep -E '/debian/?$' | head -n 1
}

make_debian() {
  command -v debootstrap >/dev/null || { echo "make.sh: no debootstrap: apt-get install debootstrap" >&2; exit 1; }
  mirror=${DEBIAN_MIRROR:-$(mirror)}
  [ -n "$mirror" ] || { echo "make.sh: no Debian mirror in the host's apt sources: set DEBIAN_MIRROR" >&2; exit 1; }
  root=$work/debian
  debootstrap --variant=minbase bookworm "$root" "$mirror" >&2
  find "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/var/cache/apt/archives" "$root/var/lib/apt/lists" \
    -mindepth 1 -delete 2>/dev/null || true
  rm -f "$root/etc/hostname" "$root/etc/resolv.conf" "$root"/var/log/*.log
  mkdir -p "$root/run/lock" "$root/var/cache/apt/archives/partial" "$root/var/lib/apt/lists/partial"
  trust "$root"
  load "$root" debian:bookworm bash
}

# Where the host trusts certificates of its own (a proxy that signs anew, say), so does the image: otherwise
# apt-get over https fails in it. Stays after `apt-get install ca-certificates`.
trust() {
  bundle=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
  [ -f "$bundle" ] || return 0
  mkdir -p "$1/etc/ssl/certs" "$1/usr/local/share/ca-certificates"
  cp "$bundle" "$1/etc/ssl/certs/ca-certificates.crt"
  cp "$bundle" "$1/usr/local/share/ca-certificates/host.crt"
  chmod 644 "$1/etc/ssl/certs/ca-certificates.crt" "$1/usr/local/share/ca-certificates/host.crt"
}

# load DIRECTORY NAME COMMAND: the directory as an image of one layer
load() {
  mkdir -p "$work/context"
  tar -C "$1" --sort=name --numeric-owner --xattrs -cf "$work/context/root.tar" .
  printf 'FROM scratch\nADD root.tar /\nENV PATH=%s\nCMD ["%s"]\n' \
    /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$3" >"$work/context/Dockerfile"
  "$rbuild" build -q -t "$2" "$work/context" >/dev/null
  rm -rf --one-file-system "$1" "$work/context"
  echo "made $2" >&2
}

[ $# -gt 0 ] || set -- busybox debian
for name; do
  case $name in
    busybox) have busybox:latest || make_busybox ;;
    debian) have debian:bookworm || make_debian ;;
    *) echo "make.sh: unknown image $name" >&2; exit 2 ;;
  esac
done
