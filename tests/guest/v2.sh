#!/bin/sh
# Boots a machine that has cgroup v2 and nothing else, and runs tests/guest/scenario.sh on it.
#
#   tests/guest/v2.sh RBUILD [KERNEL_PACKAGE]
#
# RBUILD is a static rbuild. KERNEL_PACKAGE is a Debian package `linux-image-*-cloud-amd64`; without one the newest is
# fetched by apt. Wants qemu-system-x86_64, a static busybox, dpkg-deb and zstd or xz as the package needs them;
# no root. GUEST_ACCEL=kvm makes it
# quicker where that works. Exits with 0 when every check held.
set -eu

rbuild=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
package=${2:+$(realpath "$2")}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"

if [ -z "$package" ]; then
    name=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ {print $2; exit}')
    apt-get download "$name" >/dev/null
    package=$(echo "$PWD/$name"_*.deb)
fi
dpkg-deb -x "$package" kernel
release=$(basename kernel/lib/modules/*)

busybox=$(command -v busybox)
mkdir -p tree/bin tree/modules tree/image/bin tree/image/etc tree/image/tmp
cp "$busybox" tree/bin/busybox
cp "$busybox" tree/image/bin/busybox
for applet in $("$busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "tree/image/bin/$applet"
done
echo 'root:x:0:0:root:/:/bin/sh' >tree/image/etc/passwd
strip -o tree/bin/rbuild "$rbuild"
cp "$here/init.sh" tree/init
cp "$here/scenario.sh" tree/scenario.sh
chmod 755 tree/init tree/scenario.sh
# What rbuild's file systems want of modules, the ones they want first.
: >tree/modules/order
for module in overlay loop; do
    # modules.dep of a package that was only unpacked is empty: these two want no others.
    file=$(find "kernel/lib/modules/$release" -name "$module.ko*" | head -n 1)
    [ -n "$file" ] || continue
    case $file in
    *.xz) xz -dc "$file" >"tree/modules/$module.ko" ;;
    *.zst) zstd -qdc "$file" >"tree/modules/$module.ko" ;;
    *) cp "$file" "tree/modules/$module.ko" ;;
    esac
    echo "$module.ko" >>tree/modules/order
done
(cd tree && find . | "$busybox" cpio -o -H newc 2>/dev/null) | gzip -1 >initramfs

# Emulated: KVM is not on every machine, and where it is nested it may hang a guest.
timeout "${GUEST_TIMEOUT:-400}" qemu-system-x86_64 -machine "q35,accel=${GUEST_ACCEL:-tcg}" -cpu max -m 1536 -smp 2 -display none -no-reboot \
    -kernel "kernel/boot/vmlinuz-$release" -initrd initramfs -serial file:console \
    -append 'console=ttyS0 quiet panic=-1 cgroup_no_v1=all init_on_alloc=0 rdinit=/init' >qemu.log 2>&1 || true
sed -n '/^guest: begin/,$p' console | tr -d '\r'
if ! grep -q '^guest: end' console; then
    echo "the guest did not come to its end:" >&2
    cat qemu.log >&2
    tail -n 30 console >&2
    exit 1
fi
! grep -q '^FAIL' console
