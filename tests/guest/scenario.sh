# What must hold on a machine with cgroup v2 alone. Each check prints `ok` or `FAIL` and its name.
cd /tmp
export RBUILD_ROOT=/var/rbuild BUILDKIT_PROGRESS=plain

check() { # NAME WANT GOT
    if [ "$2" = "$3" ]; then echo "ok $1"; else echo "FAIL $1: wanted [$2], got [$3]"; fi
}
has() { # NAME PART TEXT
    case $3 in *"$2"*) echo "ok $1" ;; *) echo "FAIL $1: no [$2] in [$3]" ;; esac
}
inside() { rbuild run --rm --network none "$@"; }

check 'only v2 is there' 'cgroup2' "$(awk '$3 ~ /^cgroup/ {print $3}' /proc/mounts | sort -u)"
tar -C /image -cf - . | rbuild import - busybox >/dev/null
has 'import' busybox "$(rbuild images)"

mkdir -p context
printf 'FROM busybox\nRUN echo built >/built && cat /proc/self/cgroup >/cgroup\nCMD ["cat", "/built"]\n' >context/Dockerfile
rbuild build --network none -t made context >build.log 2>&1 || { echo "FAIL build"; cat build.log; }
check 'a build with RUN' built "$(inside made)"
check 'own cgroup namespace' '0::/' "$(inside busybox cat /proc/self/cgroup)"
has 'controllers are seen inside' memory "$(inside busybox cat /sys/fs/cgroup/cgroup.controllers)"
has 'the view is read-only' 'Read-only' "$(inside busybox sh -c 'mkdir /sys/fs/cgroup/x' 2>&1)"

check 'memory.max' 33554432 "$(inside -m 32m busybox cat /sys/fs/cgroup/memory.max)"
check 'memory.swap.max' 33554432 "$(inside -m 32m busybox cat /sys/fs/cgroup/memory.swap.max)"
check 'memory.low' 16777216 "$(inside -m 32m --memory-reservation 16m busybox cat /sys/fs/cgroup/memory.low)"
check 'cpu.max' '50000 100000' "$(inside --cpus 0.5 busybox cat /sys/fs/cgroup/cpu.max)"
check 'cpu.weight' 20 "$(inside --cpu-shares 512 busybox cat /sys/fs/cgroup/cpu.weight)"
check 'cpuset' 0 "$(inside --cpuset-cpus 0 busybox cat /sys/fs/cgroup/cpuset.cpus.effective)"
check 'pids.max' 20 "$(inside --pids-limit 20 busybox cat /sys/fs/cgroup/pids.max)"

# A limit holds: what wants more is killed, what forks more is told to wait, what burns more is throttled.
rbuild run --name hungry --network none -m 16m --memory-swap 16m busybox sh -c 'x=$(tr "\0" x </dev/zero | head -c 200000000); echo survived' >hungry.log 2>&1
check 'out of memory' 137 "$(rbuild inspect -f '{{.State.ExitCode}}' hungry)"
check 'out of memory is told' true "$(rbuild inspect -f '{{.State.OOMKilled}}' hungry)"
rbuild rm hungry >/dev/null
has 'no more processes' "can't fork" "$(inside --pids-limit 5 busybox sh -c 'for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait' 2>&1)"
throttled=$(inside --cpus 0.05 busybox sh -c 'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; sed -n "s/nr_throttled //p" /sys/fs/cgroup/cpu.stat')
[ "${throttled:-0}" -gt 0 ] && echo 'ok throttled' || echo "FAIL throttled: [$throttled]"

# Devices: the program that the cgroup carries decides.
has 'a forbidden device' 'not permitted' "$(inside busybox sh -c 'mknod /tmp/k c 1 11 && cat /tmp/k' 2>&1)"
check 'a device that was given' ok "$(inside --cap-add SYSLOG --device /dev/kmsg busybox sh -c 'head -c 0 /dev/kmsg && echo ok')"
has 'a device to be read only' 'not permitted' "$(inside --cap-add SYSLOG --device /dev/kmsg:/dev/kmsg:r busybox sh -c 'echo x >/dev/kmsg' 2>&1)"
check 'a device rule' ok "$(inside --cap-add SYSLOG --device-cgroup-rule 'c 1:11 r' busybox sh -c 'mknod /tmp/k c 1 11; head -c 0 /tmp/k && echo ok')"

# Disks: loop0 stands for one.
has 'io.max' 'rbps=1048576' "$(inside --device-read-bps /dev/loop0:1mb busybox cat /sys/fs/cgroup/io.max)"
has 'io.max of operations' 'wiops=50' "$(inside --device-write-iops /dev/loop0:50 busybox cat /sys/fs/cgroup/io.max)"
has 'what only v1 has is refused' 'cgroup v2 does not have' "$(inside -m 32m --memory-swappiness 10 busybox true 2>&1)"

# The life of a container.
id=$(rbuild run -d --name long --network none -m 64m busybox sleep 1000)
check 'exec is in the same cgroup' 67108864 "$(rbuild exec long cat /sys/fs/cgroup/memory.max)"
rbuild pause long >/dev/null
check 'paused' paused "$(rbuild inspect -f '{{.State.Status}}' long)"
check 'frozen by the kernel' 1 "$(sed -n 's/^frozen //p' /sys/fs/cgroup/rbuild/"$id"/cgroup.events)"
rbuild unpause long >/dev/null
rbuild stop -t 1 long >/dev/null
rbuild rm long >/dev/null
check 'no cgroup is left' '' "$(ls -d /sys/fs/cgroup/rbuild/*/ 2>/dev/null)"
check 'no mount is left' '' "$(awk '$2 ~ /^\/var\/rbuild/ {print $2}' /proc/mounts)"
check 'rbuild knows' 'Cgroup Version: 2' "$(rbuild info | grep -o 'Cgroup Version: .*')"

# The guest's kernel has AppArmor, which the machines that build this may not have.
if [ "$(cat /sys/module/apparmor/parameters/enabled)" = Y ]; then
    check 'AppArmor takes what it knows' unconfined "$(inside --security-opt apparmor=unconfined busybox cat /proc/self/attr/current)"
    has 'AppArmor refuses what it does not know' 'apply the AppArmor profile no-such' \
        "$(inside --security-opt apparmor=no-such busybox true 2>&1)"
fi
