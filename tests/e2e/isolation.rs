//! Limits that hold, measured by what the kernel counts and does and never by a clock; and the options that say how a
//! container is kept apart.

use std::process::Command;

use crate::containers::{Background, until};
use crate::scene::{Said, Scene};

/// The command in a new container without a network.
fn run(scene: &Scene, options: &[&str], script: &str) -> Said {
    let mut arguments = vec!["run", "--rm", "--network", "none"];
    arguments.extend(options);
    arguments.extend(["busybox", "sh", "-c", script]);
    scene.rb(&arguments)
}

/// Reads one of two files: that of cgroup v1, that of v2.
fn either(v1: &str, v2: &str) -> String {
    format!("cd /sys/fs/cgroup; if [ -e {v1} ]; then cat {v1}; else cat {v2}; fi")
}

/// A disk of the machine, as its node and its numbers.
fn disk() -> Option<(String, String)> {
    let entries = std::fs::read_dir("/sys/block").ok()?.flatten();
    entries
        .filter_map(|entry| {
            let node = format!("/dev/{}", entry.file_name().to_string_lossy());
            let numbers = std::fs::read_to_string(entry.path().join("dev")).ok()?.trim().to_owned();
            std::path::Path::new(&node).exists().then_some((node, numbers))
        })
        .max_by_key(|(node, _)| !node.contains("loop") && !node.contains("ram"))
}

#[test]
fn who_wants_more_memory_is_killed_and_the_container_says_so() {
    let scene = Scene::with_busybox();
    let grow = "awk 'BEGIN { s = \"x\"; while (length(s) < 400000000) s = s s; print length(s) }'; echo $?";
    let hungry = Background::start(&scene, "hungry", &["-m", "24m", "--memory-swap", "24m"], grow);
    until(|| hungry.field("{{.State.Status}}") == "exited");
    assert_eq!(hungry.field("{{.State.OOMKilled}}"), "true");
    assert_eq!(scene.rb(&["logs", "hungry"]).ok().out, "137\n", "the shell outlives its child");
    let modest = Background::start(&scene, "modest", &["-m", "24m"], "head -c 1000000 /dev/zero | wc -c");
    until(|| modest.field("{{.State.Status}}") == "exited");
    assert_eq!(modest.field("{{.State.OOMKilled}} {{.State.ExitCode}}"), "false 0");
}

#[test]
fn who_wants_more_processor_is_throttled() {
    let scene = Scene::with_busybox();
    // Each turn costs processor time, so that the quota of 2 ms is used up early; the kernel counts the times it was.
    let script = "f=/sys/fs/cgroup/cpu/cpu.stat; [ -e $f ] || f=/sys/fs/cgroup/cpu.stat; i=0; \
                  while [ $i -lt 2000 ]; do i=$((i + 1)); n=$(sed -n 's/^nr_throttled //p' $f); \
                  if [ \"$n\" -gt 0 ]; then echo throttled; exit; fi; done; echo free";
    assert_eq!(run(&scene, &["--cpus", "0.02"], script).ok().out, "throttled\n");
}

#[test]
fn who_wants_more_processes_gets_none() {
    let scene = Scene::with_busybox();
    let script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 0.2 & done; wait";
    run(&scene, &["--pids-limit", "6"], script).says(&["can't fork"]);
    assert!(!run(&scene, &["--pids-limit", "60"], script).ok().err.contains("can't fork"));
    let counted = either("pids/pids.max", "pids.max");
    assert_eq!(run(&scene, &["--pids-limit", "77"], &counted).ok().out, "77\n");
}

#[test]
fn limits_of_disks_reach_the_kernel() {
    let scene = Scene::with_busybox();
    let Some((node, numbers)) = disk() else { return };
    let of = |rate: &str| format!("{node}:{rate}");
    for (option, rate, v1, v2) in [
        ("--device-read-bps", "1mb", format!("{numbers} 1048576"), "rbps=1048576"),
        ("--device-write-bps", "2mb", format!("{numbers} 2097152"), "wbps=2097152"),
        ("--device-read-iops", "30", format!("{numbers} 30"), "riops=30"),
        ("--device-write-iops", "40", format!("{numbers} 40"), "wiops=40"),
    ] {
        let file = format!("blkio/blkio.throttle.{}_device", option.trim_start_matches("--device-").replace('-', "_"));
        let out = run(&scene, &[option, &of(rate)], &either(&file, "io.max")).ok().out;
        let line = out.lines().find(|line| line.starts_with(&numbers)).unwrap_or_default();
        assert!(line == v1 || line.contains(v2), "{option}: {out:?}");
    }
}

/// A loop device, gone with the value.
struct Loop(String);

impl Loop {
    fn over(file: &std::path::Path) -> Loop {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output().expect("losetup starts");
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        Loop(String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).output();
    }
}

/// A lower bound only: a slow machine makes it longer, and nothing makes it shorter than the limit allows.
#[test]
fn who_reads_a_disk_too_fast_waits() {
    let scene = Scene::with_busybox();
    let file = scene.write("disk", vec![7; 4 << 20]);
    let disk = Loop::over(&file);
    let (device, limit) = (format!("{}:/dev/disk:r", disk.0), format!("{}:1mb", disk.0));
    let read = "dd if=/dev/disk of=/dev/null bs=64k count=48 iflag=direct 2>/dev/null && echo read";
    let start = std::time::Instant::now();
    let out = run(&scene, &["--device", &device, "--device-read-bps", &limit], read).out;
    if out.is_empty() {
        // A busybox without direct reads: then the limit of the test before this one has to do.
        return;
    }
    assert!(start.elapsed() >= std::time::Duration::from_secs(1), "three megabytes at one in a second");
}

#[test]
fn odd_limits_are_refused_in_dockers_words() {
    let scene = Scene::with_busybox();
    for (options, words) in [
        (&["--blkio-weight", "5"][..], "Range of blkio weight is from 10 to 1000"),
        (&["--memory-swappiness", "101"], "valid memory swappiness range is 0-100"),
        (
            &["--cpu-rt-period", "1000", "--cpu-rt-runtime", "2000"],
            "runtime cannot be higher than cpu real-time period",
        ),
        (&["--device-cgroup-rule", "c 1:3"], "invalid device cgroup format 'c 1:3'"),
        (&["--volume-driver", "nfs"], "plugin \"nfs\" not found"),
        (&["--device-read-bps", "/dev/no-such:1mb"], "/dev/no-such"),
        (&["--device-read-bps", "/dev/null:1mb"], "not a block device"),
        (&["--security-opt", "colour=red"], "invalid --security-opt: \"colour=red\""),
        (&["--security-opt", "mask=proc"], "\"proc\" is not an absolute path"),
        (&["--attach", "stdout", "-d"], "cannot specify both --attach and --detach"),
        (&["--annotation", "=x"], "invalid --annotation"),
    ] {
        run(&scene, options, "true").refused(125, &[words]);
    }
    for (option, value, words) in [
        ("--cgroupns", "mine", "invalid CGROUP mode"),
        ("--userns", "mine", "invalid USER mode"),
        ("--isolation", "hyperv", "linux only supports 'default'"),
        ("--attach", "stdwhat", "valid streams are STDIN, STDOUT and STDERR"),
        ("--device-read-iops", "sda:5", "bad format for device path: sda:5"),
        ("--blkio-weight-device", "/dev/sda:9", "invalid weight for device: /dev/sda:9"),
    ] {
        run(&scene, &[option, value], "true").refused(125, &[words, option]);
    }
}

#[test]
fn a_profile_of_system_calls_is_obeyed() {
    let scene = Scene::with_busybox();
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [{"architecture": "SCMP_ARCH_X86_64"}], "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
        {"names": ["rmdir", "unlinkat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122,
         "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["symlink", "symlinkat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122,
         "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["umask"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122,
         "args": [{"index": 0, "value": 63, "op": "SCMP_CMP_EQ"}]}]}"#;
    let path = scene.write("profile.json", profile);
    let option = format!("seccomp={}", path.display());
    let said = run(&scene, &["--security-opt", &option], "mkdir /a; rmdir /tmp; ln -s x /l; echo $?; umask 022; umask");
    assert!(said.err.contains("Operation not supported"), "the errno that was asked for: {said:#?}");
    assert!(!said.err.contains("/tmp"), "allowed without the capability: {said:#?}");
    assert_eq!(said.out, "1\n0022\n", "forbidden without the capability");
    let more = ["--security-opt", &option, "--cap-add", "SYS_ADMIN"];
    let said = run(&scene, &more, "rmdir /tmp; echo $?; ln -s x /l; echo $?");
    assert_eq!(said.out, "1\n0\n", "the other way round with it: {said:#?}");
    let other = scene.write("other.json", r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x"}"#);
    run(&scene, &["--security-opt", &format!("seccomp={}", other.display())], "true").refused(125, &["listener"]);
    let none = scene.write("none.json", "{");
    run(&scene, &["--security-opt", &format!("seccomp={}", none.display())], "true").refused(125, &["seccomp profile"]);
    run(&scene, &["--security-opt", "seccomp=/no/such"], "true").refused(125, &["opening seccomp profile (/no/such)"]);
}

#[test]
fn paths_of_the_system_are_bared_and_masked_as_asked() {
    let scene = Scene::with_busybox();
    let covered = "grep -c ' /proc/' /proc/mounts";
    assert_ne!(run(&scene, &[], covered).ok().out, "0\n");
    assert_eq!(run(&scene, &["--security-opt", "systempaths=unconfined"], covered).out, "0\n");
    assert_eq!(run(&scene, &["--security-opt", "unmask=ALL"], covered).out, "0\n");
    let options = ["--security-opt", "unmask=/proc/sys", "--security-opt", "mask=/proc/version:/etc"];
    let said = run(&scene, &options, "grep -c ' /proc/sys ' /proc/mounts; wc -c </proc/version; ls /etc");
    assert_eq!(said.out, "0\n0\n", "{said:#?}");
}

#[test]
fn modules_the_machine_lacks_are_named() {
    let scene = Scene::with_busybox();
    run(&scene, &["--security-opt", "apparmor=unconfined", "--security-opt", "label=disable"], "true").ok();
    let no_such = run(&scene, &["--security-opt", "apparmor=no-such-profile"], "true");
    assert_eq!(no_such.code, 125, "{no_such:#?}");
    no_such.says(&["no-such-profile"]);
    if !std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        run(&scene, &["--security-opt", "label=type:x_t"], "true").refused(125, &["label=type:x_t", "no SELinux"]);
    }
}

#[test]
fn devices_are_usable_by_rule_alone() {
    let scene = Scene::with_busybox();
    let script = "mknod /tmp/k c 1 11; head -c 0 /tmp/k && echo read; (: >>/tmp/k) && echo written";
    let with = |rule| run(&scene, &["--cap-add", "SYSLOG", "--device-cgroup-rule", rule], script).out;
    assert_eq!(run(&scene, &["--cap-add", "SYSLOG"], script).out, "");
    assert_eq!(with("c 1:11 r"), "read\n");
    assert_eq!(with("c 1:* rw"), "read\nwritten\n");
    assert_eq!(with("b 1:11 rw"), "");
}

#[test]
fn only_the_streams_asked_for_are_shown() {
    let scene = Scene::with_busybox();
    let said = run(&scene, &["-a", "stderr"], "echo out; echo err >&2; exit 3");
    assert_eq!((said.out.as_str(), said.err.as_str(), said.code), ("", "err\n", 3));
    let said = run(&scene, &["--attach", "STDOUT"], "echo out; echo err >&2");
    assert_eq!((said.out.as_str(), said.err.as_str()), ("out\n", ""));
    let arguments = ["run", "--rm", "-i", "-a", "stdin", "-a", "stdout", "--network", "none", "busybox", "cat"];
    assert_eq!(scene.rb_with_input(&arguments, b"fed").ok().out, "fed");
    let said = scene
        .rb_with_input(&["run", "-i", "-a", "stdin", "--name", "quiet", "--network", "none", "busybox", "cat"], b"fed");
    assert_eq!(said.ok().out.trim_end().len(), 64, "nothing is shown, so the id is");
    assert_eq!(scene.rb(&["logs", "quiet"]).ok().out, "fed");
    scene.rb(&["rm", "quiet"]).ok();
}

#[test]
fn inspect_tells_how_a_container_is_kept_apart() {
    let scene = Scene::with_busybox();
    let options =
        ["--annotation", "a=b", "--cgroupns", "host", "--userns", "host", "--security-opt", "no-new-privileges"];
    let kept = Background::start(&scene, "kept", &options, "sleep 100");
    let config = "{{.HostConfig.";
    let field = |name: &str| kept.field(&format!("{config}{name}}}}}"));
    assert_eq!(field("CgroupnsMode"), "host");
    assert_eq!(field("Annotations"), "map[a:b]");
    assert_eq!(field("SecurityOpt"), "[no-new-privileges]");
    assert!(field("MaskedPaths").contains("/proc/kcore") && field("ReadonlyPaths").contains("/proc/sys"));
    let host = std::fs::read_link("/proc/self/ns/cgroup").expect("a namespace");
    assert_eq!(kept.exec("readlink /proc/1/ns/cgroup").ok().out.trim_end(), host.to_string_lossy());
}

/// Everything by which two containers of one image could meet.
#[test]
fn two_containers_of_one_image_know_nothing_of_each_other() {
    let scene = Scene::with_busybox();
    let one = Background::start(
        &scene,
        "first",
        &[],
        "echo secret >/mark-of-one; echo secret >/dev/shm/mark-of-one; exec sleep 100001",
    );
    let two = Background::start(&scene, "second", &[], "exec sleep 100002");
    one.until("test -s /dev/shm/mark-of-one");
    let seen = two.exec("cat /mark-* /dev/shm/*; ls / /dev/shm; ps; hostname; cat /proc/net/unix /proc/mounts").out;
    for word in ["secret", "of-one", "100001", "first", &one.field("{{.Id}}")] {
        assert!(!seen.contains(word), "{word:?} in {seen}");
    }
    for kind in ["pid", "mnt", "ipc", "uts", "net", "cgroup"] {
        let of = |one: &Background<'_>| one.exec(&format!("readlink /proc/1/ns/{kind}")).ok().out;
        let host = std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("a namespace");
        assert_ne!(of(&one), of(&two), "{kind}");
        assert_ne!(of(&one).trim_end(), host.to_string_lossy(), "{kind} is not the host's");
    }
    // Numbers of processes of the other, and of the host, mean nothing inside.
    let pid = one.field("{{.State.Pid}}");
    assert_ne!(two.exec(&format!("kill -0 {pid}")).code, 0);
}

/// The same kernel with its v1 hierarchies alone to be seen, as on a machine that was booted so.
#[test]
fn everything_holds_on_a_machine_with_cgroup_v1_alone() {
    if !std::path::Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists() {
        return;
    }
    let scene = Scene::alone_with_busybox();
    let script = r#"
        set -e
        for m in $(awk '$3 == "cgroup2" { print $2 }' /proc/mounts); do umount "$m"; done
        inside() { "$RB" run --rm --network none "$@"; }
        cd /sys/fs/cgroup
        inside -m 32m busybox cat /sys/fs/cgroup/memory/memory.limit_in_bytes
        inside --pids-limit 30 busybox cat /sys/fs/cgroup/pids/pids.max
        inside --cpus 0.5 busybox cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us
        inside --cpuset-cpus 0 busybox nproc
        inside busybox ls /sys/fs/cgroup | grep -c unified || true
        inside busybox sh -c 'mknod /tmp/k c 1 11; cat /tmp/k' 2>&1 || true
        inside --cap-add SYSLOG --device /dev/kmsg:/k:r busybox sh -c 'head -c 0 /k && echo given; (echo >/k) 2>&1'  || true
        inside -m 16m --memory-swap 16m busybox sh -c 'x=$(tr "\0" x </dev/zero | head -c 100000000)' || echo $?
        "$RB" run -d --name long --network none busybox sleep 1000 >/dev/null
        "$RB" exec long echo entered
        "$RB" pause long
        "$RB" inspect -f '{{.State.Status}}' long
        cat freezer/rbuild/*/freezer.state
        "$RB" unpause long
        "$RB" rm -f long
        printf 'FROM busybox\nRUN echo built\n' >"$DOCKERFILE"
        "$RB" build -q --network none -f "$DOCKERFILE" -t made "${DOCKERFILE%/*}" >/dev/null && echo built
    "#;
    let inner = scene.command(&[]);
    let mut outer = Command::new("unshare");
    outer.args(["--mount", "--propagation", "private", "sh", "-c", script]).current_dir(scene.work()).env_clear();
    outer.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    outer.env("RB", inner.get_program()).env("DOCKERFILE", scene.work().join("Dockerfile"));
    let said = Said::from(outer.output().expect("unshare starts"));
    let wanted = [
        "33554432",
        "30",
        "50000",
        "1",
        "0",
        "cat: can't open '/tmp/k': Operation not permitted",
        "given",
        "sh: can't create /k: Operation not permitted",
        "137",
        "entered",
        "long",
        "paused",
        "FROZEN",
        "long",
        "long",
        "built",
    ];
    assert_eq!(said.out.lines().collect::<Vec<_>>(), wanted, "{said:#?}");
}

#[test]
fn graphics_processors_come_by_their_specification() {
    let scene = Scene::with_busybox();
    let device = |name: &str| serde_json::json!({"name": name, "containerEdits": {"env": [format!("GPU_{name}=1")]}});
    let devices = [device("0"), device("1"), device("all")];
    let specification = serde_json::json!({"cdiVersion": "0.6.0", "kind": "nvidia.com/gpu", "devices": devices});
    let file = scene.write("cdi/nvidia.json", specification.to_string());
    let directory = file.parent().expect("a parent").to_str().expect("UTF-8");
    let with = |gpus: &str| {
        let script = "env | grep ^GPU_ | sort | tr '\\n' ' '";
        let arguments = ["run", "--rm", "--network", "none", "--gpus", gpus, "busybox", "sh", "-c", script];
        scene.rb(&[&["--cdi-spec-dir", directory], &arguments[..]].concat())
    };
    assert_eq!(with("all").ok().out, "GPU_all=1 ");
    assert_eq!(with("2").ok().out, "GPU_0=1 GPU_1=1 ");
    assert_eq!(with("device=1").ok().out, "GPU_1=1 ");
    with("device=7").refused(125, &["nvidia.com/gpu=7"]);
    with("capabilities=utility").refused(125, &["--gpus", "capabilities is not supported"]);
}
