#!/bin/busybox sh
# The guest's first process: an ordinary root in memory (a machine cannot change the root of its initial ramdisk), the
# kernel's file systems, cgroup v2 where systemd has it, then the scenario.
if [ ! -e /switched ]; then
    /bin/busybox mkdir -p /new /proc
    /bin/busybox mount -t tmpfs -o size=1g,mode=755 tmpfs /new
    /bin/busybox cp -a /bin /modules /image /scenario.sh /init /new/
    /bin/busybox touch /new/switched
    exec /bin/busybox switch_root /new /init
fi
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root
mkdir -p /proc /sys /dev /tmp /root /run /etc /var
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t cgroup2 cgroup2 /sys/fs/cgroup
while read -r module; do insmod "/modules/$module"; done </modules/order
ip link set lo up
# As systemd: nothing but the root of the tree has processes beside children, so the init moves out of it.
mkdir /sys/fs/cgroup/init.scope
echo $$ >/sys/fs/cgroup/init.scope/cgroup.procs
echo 'guest: begin'
uname -r
sh /scenario.sh 2>&1
echo 'guest: end'
poweroff -f
