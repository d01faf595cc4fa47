//! What a process inside sees and may do.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use oci_spec::runtime::{
    Capability, LinuxMemoryBuilder, LinuxPidsBuilder, MountBuilder, PosixRlimitBuilder, PosixRlimitType, RootBuilder,
    UserBuilder,
};
use rbuild_runtime::sandbox::capability_sets;
use rbuild_runtime::{Error, ExtraMount, MemoryFile, MountSource, ProcessSpec, Seccomp};
use rbuild_store::Mounts;

use crate::Test;
use crate::support::{Image, run, tree};

pub(crate) const TESTS: &[Test] = &[
    ("namespaces_are_its_own", namespaces_are_its_own),
    ("capabilities_and_filter", capabilities_and_filter),
    ("forbidden_calls", forbidden_calls),
    ("user_and_groups", user_and_groups),
    ("proc_is_masked", proc_is_masked),
    ("dev_is_small_and_ours", dev_is_small_and_ours),
    ("cgroup_view_is_read_only", cgroup_view_is_read_only),
    ("limits_hold", limits_hold),
    ("many_processes_are_limited_too", many_processes_are_limited_too),
    ("out_of_memory_is_told", out_of_memory_is_told),
    ("hostile_roots", hostile_roots),
    ("working_directories", working_directories),
    ("read_only_root", read_only_root),
    ("binds_and_layers", binds_and_layers),
    ("bound_roots_are_left_as_they_were", bound_roots_are_left_as_they_were),
    ("files_and_file_systems_in_memory", files_and_file_systems_in_memory),
    ("sysctls", sysctls),
    ("unsupported_is_refused", unsupported_is_refused),
];

fn script(image: &Image, script: &str) -> ProcessSpec {
    image.spec(&["/bin/sh", "-c", script])
}

fn namespaces_are_its_own() {
    let image = Image::new();
    let mut spec = script(
        &image,
        "for n in uts net mnt ipc pid cgroup; do readlink /proc/self/ns/$n; done; hostname; cat /proc/net/dev | wc -l",
    );
    spec.spec.set_hostname(Some("box".to_owned()));
    let output = run(spec).unwrap();
    let lines: Vec<&str> = output.stdout.lines().collect();
    for (n, name) in ["uts", "net", "mnt", "ipc", "pid", "cgroup"].iter().enumerate() {
        let ours = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(lines[n], ours.to_str().unwrap(), "{output:?}");
    }
    assert_eq!(lines[6..], ["box", "3"], "loopback alone");
    assert!(image.sh("cat /proc/1/mountinfo | grep -c shared:").stdout.starts_with('0'));
}

fn capabilities_and_filter() {
    let image = Image::new();
    let status = |spec: ProcessSpec| {
        let text = run(spec).unwrap().stdout;
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap().trim().to_owned()
        };
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Seccomp", "NoNewPrivs"].map(field)
    };
    let none = "0000000000000000";
    let all = "00000000a80425fb";
    let spec = || image.spec(&["cat", "/proc/self/status"]);
    assert_eq!(status(spec()), [none, all, all, all, none, "2", "0"]);
    let mut user = spec();
    let process = user.spec.process_mut().as_mut().unwrap();
    process.set_user(UserBuilder::default().uid(1000u32).gid(1000u32).build().unwrap());
    process.set_no_new_privileges(Some(true));
    assert_eq!(status(user), [none, none, none, all, none, "2", "1"]);
    let mut less = spec();
    let sets = capability_sets(&[Capability::Chown]);
    less.spec.process_mut().as_mut().unwrap().set_capabilities(Some(sets));
    less.seccomp = Seccomp::Unconfined;
    let one = "0000000000000001";
    assert_eq!(status(less), [none, one, one, one, none, "0", "0"]);
}

fn forbidden_calls() {
    let image = Image::new();
    let output = image.sh("mount -t tmpfs x /tmp; unshare -m true; echo $?");
    assert_eq!(output.stdout, "1\n");
    assert_eq!(output.stderr.to_lowercase().matches("permi").count(), 2, "{output:?}");
    let output = image.sh("mknod /tmp/m b 7 0 && head -c 1 /tmp/m");
    assert!(output.stderr.contains("not permitted"), "{output:?}");
    assert_ne!(output.exit.code, Some(0));
    let node = |name: &str, kind, (major, minor)| {
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(rustix::fs::CWD, image.path("lower").join(name), kind, mode, device).unwrap();
    };
    node("disk", rustix::fs::FileType::BlockDevice, (254, 0));
    node("kmsg", rustix::fs::FileType::CharacterDevice, (1, 11));
    node("null", rustix::fs::FileType::CharacterDevice, (1, 3));
    let output = image.sh("head -c 1 /disk; head -c 1 /kmsg; echo x >/null && echo the usual ones live");
    assert_eq!(output.stderr.matches("not permitted").count(), 2, "nodes of an image are dead: {output:?}");
    assert_eq!(output.stdout, "the usual ones live\n");
}

fn user_and_groups() {
    let image = Image::new();
    let mut spec = image.spec(&["id"]);
    let user = UserBuilder::default().uid(12u32).gid(34u32).additional_gids(vec![56u32]).build().unwrap();
    spec.spec.process_mut().as_mut().unwrap().set_user(user.clone());
    assert_eq!(run(spec).unwrap().stdout, "uid=12 gid=34 groups=56\n");
    let mut spec = script(&image, "echo again >/dev/stdout; touch /tmp/x");
    spec.spec.process_mut().as_mut().unwrap().set_user(user);
    let output = run(spec).unwrap();
    assert_eq!(output.stdout, "again\n");
    assert!(output.stderr.contains("ermission denied"), "{output:?}");
}

fn proc_is_masked() {
    let image = Image::new();
    for (path, shown) in
        [("/proc/kcore", "0"), ("/proc/keys", "0"), ("/proc/timer_list", "0"), ("/proc/interrupts", "0")]
    {
        if has(path) {
            let output = image.sh(&format!("head -c 1 {path} | wc -c"));
            assert_eq!(output.stdout.trim(), shown, "{path} {output:?}");
        }
    }
    for path in ["/proc/scsi", "/proc/acpi", "/sys/firmware", "/sys/devices/virtual/powercap"] {
        if has(path) {
            let output = image.sh(&format!("ls -A {path}; mkdir {path}/x"));
            assert_eq!(output.stdout, "", "{path}");
            assert!(output.stderr.contains("ead-only file system"), "{path} {output:?}");
        }
    }
    for path in ["/proc/sys/vm/swappiness", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/sys/x"] {
        if has(path) || path == "/sys/x" {
            let output = image.sh(&format!("echo 1 >{path}"));
            assert!(output.stderr.contains("ead-only file system"), "{path} {output:?}");
        }
    }
}

fn has(path: &str) -> bool {
    fs::exists(path).unwrap()
}

fn dev_is_small_and_ours() {
    let image = Image::new();
    fs::create_dir(image.path("lower/dev")).unwrap();
    fs::write(image.path("lower/dev/null"), "planted").unwrap();
    let output = image.sh("ls /dev | tr '\\n' ' '; stat -c '%t:%T %a' /dev/null; echo x >/dev/null; head -c 3 /dev/zero | wc -c; readlink /dev/ptmx; stat -c %a /dev/shm");
    assert_eq!(
        output.stdout,
        "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero 1:3 666\n3\npts/ptmx\n1777\n"
    );
    assert!(tree(&image.path("upper")).is_empty());
}

fn cgroup_view_is_read_only() {
    let image = Image::new();
    let output = image.sh("find /sys/fs/cgroup -type d | wc -l; cat /proc/self/cgroup; f=/sys/fs/cgroup/memory/memory.limit_in_bytes; [ -e $f ] || f=/sys/fs/cgroup/memory.max; echo 1 >$f");
    assert!(output.stderr.contains("ead-only file system"), "{output:?}");
    for line in output.stdout.lines().filter(|line| line.contains(":memory:") || line.starts_with("0::")) {
        assert!(line.ends_with(":/"), "{line}");
    }
}

fn limits_hold() {
    let image = Image::new();
    let mut spec = script(
        &image,
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max; ulimit -n; \
         for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1 & done; wait",
    );
    let resources = spec.spec.linux_mut().as_mut().unwrap().resources_mut().as_mut().unwrap();
    resources.set_memory(Some(LinuxMemoryBuilder::default().limit(50_331_648i64).build().unwrap()));
    resources.set_pids(Some(LinuxPidsBuilder::default().limit(8i64).build().unwrap()));
    let limit = PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile).soft(77u64).hard(88u64).build();
    spec.spec.process_mut().as_mut().unwrap().set_rlimits(Some(vec![limit.unwrap()]));
    let output = run(spec).unwrap();
    assert_eq!(output.stdout, "50331648\n8\n77\n", "{output:?}");
    assert!(output.stderr.contains("fork"), "{output:?}");
    assert!(output.exit.peak_memory.is_some_and(|bytes| bytes > 0 && bytes <= 50_331_648), "{output:?}");
    assert!(!output.exit.cpu.is_zero());
}

/// A limit too large to be looked at may be held by the pid namespace instead of a cgroup.
fn many_processes_are_limited_too() {
    let image = Image::new();
    let host = || fs::read_to_string("/proc/sys/kernel/pid_max").unwrap();
    let before = host();
    let script_text = "i=0; while [ $i -lt 4600 ]; do i=$((i+1)); sleep 100 & done 2>/dev/null; wait";
    let mut spec = script(&image, script_text);
    let resources = spec.spec.linux_mut().as_mut().unwrap().resources_mut().as_mut().unwrap();
    resources.set_pids(Some(LinuxPidsBuilder::default().limit(4096i64).build().unwrap()));
    let output = run(spec).unwrap();
    assert!(output.exit.code.is_some_and(|code| code != 0), "the shell gives up: {output:?}");
    assert_eq!(host(), before);
}

fn out_of_memory_is_told() {
    let image = Image::new();
    let mut spec = image.spec(&["awk", "BEGIN { s = \"x\"; while (length(s) < 400000000) s = s s; print length(s) }"]);
    let resources = spec.spec.linux_mut().as_mut().unwrap().resources_mut().as_mut().unwrap();
    resources.set_memory(Some(LinuxMemoryBuilder::default().limit(33_554_432i64).build().unwrap()));
    let output = run(spec).unwrap();
    assert_eq!((output.exit.signal, output.exit.oom, output.exit.status()), (Some(9), true, 137), "{output:?}");
    assert!(!image.sh("true").exit.oom);
}

fn hostile_roots() {
    for (link, target) in [("proc", "/tmp"), ("sys", "etc"), ("dev", "/etc"), ("proc", "../../../..")] {
        let image = Image::new();
        symlink(target, image.path("lower").join(link)).unwrap();
        match run(image.spec(&["true"])) {
            Err(Error::Refused(message)) => assert!(message.contains(&format!("/{link} ")), "{message}"),
            other => panic!("{link} -> {target}: {other:?}"),
        }
        assert!(tree(&image.path("upper")).is_empty());
    }
    let image = Image::new();
    let outside = image.path("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, image.path("lower/link")).unwrap();
    let mut spec = script(&image, "echo x >/link/mounted/y; ls /link");
    let mount = MountBuilder::default().destination("/link/mounted").typ("tmpfs").source("tmpfs").build().unwrap();
    spec.spec.mounts_mut().as_mut().unwrap().push(mount);
    let output = run(spec).unwrap();
    assert_eq!(output.stdout, "mounted\n", "the link leads to the same path inside");
    assert!(tree(&outside).is_empty());
}

fn working_directories() {
    let image = Image::new();
    let with = |cwd: &str| {
        let mut spec = image.spec(&["readlink", "/proc/self/cwd"]);
        spec.spec.process_mut().as_mut().unwrap().set_cwd(cwd.into());
        run(spec).map(|output| output.stdout)
    };
    assert_eq!(with("/a/b/c").unwrap(), "/a/b/c\n");
    assert_eq!(tree(&image.path("upper")), ["a", "a/b", "a/b/c"]);
    assert_eq!(fs::metadata(image.path("upper/a")).unwrap().mode() & 0o7777, 0o755);
    symlink("/tmp", image.path("lower/t")).unwrap();
    assert_eq!(with("/t").unwrap(), "/tmp\n");
    for bad in ["/proc/self/fd/7", "/proc/self/fd/3/../..", "/etc/passwd", "/proc/self/cwd", "relative"] {
        with(bad).expect_err(bad);
    }
    for fd in 3..40 {
        with(&format!("/proc/self/fd/{fd}")).expect_err("no descriptor of ours leads out");
    }
}

fn read_only_root() {
    let image = Image::new();
    let mut spec = script(&image, "touch /x; touch /dev/shm/y && echo shm");
    spec.spec.set_root(Some(RootBuilder::default().path("rootfs").readonly(true).build().unwrap()));
    let output = run(spec).unwrap();
    assert!(output.stderr.contains("ead-only file system"), "{output:?}");
    assert_eq!(output.stdout, "shm\n");
}

fn binds_and_layers() {
    let image = Image::new();
    fs::create_dir_all(image.path("data/sub")).unwrap();
    fs::write(image.path("data/file"), "bound\n").unwrap();
    let other = Image::new();
    fs::write(other.path("lower/etc/motd"), "layered\n").unwrap();
    symlink("/", other.path("lower/up")).unwrap();
    let mut spec =
        script(&image, "cat /new/place/file /file /motd; echo w >/new/place/sub/w; echo w >/file; echo w >/motd");
    let bind = |destination: &str, source: &str, options: &[&str]| {
        MountBuilder::default()
            .destination(destination)
            .typ("bind")
            .source(image.path(source))
            .options(options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>())
            .build()
            .unwrap()
    };
    spec.spec.mounts_mut().as_mut().unwrap().push(bind("/new/place", "data", &["rbind"]));
    let file = fs::File::open(image.path("data/file")).unwrap();
    let extra =
        |destination: &str, source| ExtraMount { destination: destination.into(), source, options: vec!["ro".into()] };
    spec.mounts.push(extra("/file", MountSource::Opened(file.into())));
    let mounts = Mounts::Overlay { lowers: vec![other.path("lower"), other.path("stubs")], upper: None, work: None };
    spec.mounts.push(extra("/motd", MountSource::Layers { mounts, path: "up/../etc/motd".into() }));
    let output = run(spec).unwrap();
    assert_eq!(output.stdout, "bound\nbound\nlayered\n", "{output:?}");
    assert_eq!(output.stderr.matches("ead-only file system").count(), 2, "{output:?}");
    assert_eq!(tree(&image.path("data")), ["file", "sub", "sub/w"]);
    assert!(tree(&image.path("upper")).is_empty(), "mount points are stubs");

    let mut spec = image.spec(&["true"]);
    spec.spec.mounts_mut().as_mut().unwrap().push(bind("/etc/passwd", "data", &["bind"]));
    run(spec).expect_err("a directory on a file");
}

fn files_and_file_systems_in_memory() {
    let image = Image::new();
    let shown = "stat -c '%a %u:%g' /run/secrets/a; cat /run/secrets/a; echo x >/run/secrets/a; ls -A /t; df -k /t | \
                 tail -n1 | awk '{print $2}'; echo x >/t/x; grep -c ' /run/secrets/a .*ro,.* - tmpfs ' /proc/self/mountinfo";
    let mut spec = script(&image, shown);
    let mount = |destination: &str, source, options: &[&str]| ExtraMount {
        destination: destination.into(),
        source,
        options: options.iter().map(|&option| option.to_owned()).collect(),
    };
    let file = MemoryFile { content: b"told\n".to_vec(), mode: 0o440, uid: 33, gid: 8 };
    assert!(!format!("{file:?}").contains("told"));
    spec.mounts.push(mount("/run/secrets/a", MountSource::Memory(file), &["ro", "nosuid", "nodev", "noexec"]));
    spec.mounts.push(mount("/t", MountSource::Tmpfs { size: Some(2 << 20) }, &["nosuid", "nodev"]));
    let output = run(spec).unwrap();
    assert_eq!(output.stdout, "440 33:8\ntold\n2048\n1\n", "{output:?}");
    assert_eq!(output.stderr.matches("ead-only file system").count(), 1, "{output:?}");
    assert!(tree(&image.path("upper")).is_empty(), "mount points are stubs");
}

fn bound_roots_are_left_as_they_were() {
    let image = Image::new();
    let before = (tree(&image.path("lower")), fs::metadata(image.path("lower")).unwrap().modified().unwrap());
    let mut spec = script(&image, "ls /proc/1 | grep -c mountinfo");
    spec.rootfs = Mounts::Bind { source: image.path("lower"), read_only: false };
    assert_eq!(run(spec).unwrap().stdout, "1\n");
    let after = (tree(&image.path("lower")), fs::metadata(image.path("lower")).unwrap().modified().unwrap());
    assert_eq!(before, after);
    let mut spec = script(&image, "echo kept >/kept; cat /kept");
    spec.rootfs = Mounts::Bind { source: image.path("lower"), read_only: false };
    assert_eq!(run(spec).unwrap().stdout, "kept\n");
    assert_eq!(fs::metadata(image.path("lower/kept")).unwrap().permissions().mode() & 0o777, 0o644);
}

fn sysctls() {
    let image = Image::new();
    let with = |name: &str, value: &str| {
        let mut spec = image.spec(&["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"]);
        let sysctl = [(name.to_owned(), value.to_owned())].into_iter().collect();
        spec.spec.linux_mut().as_mut().unwrap().set_sysctl(Some(sysctl));
        run(spec)
    };
    assert_eq!(with("net.ipv4.ip_unprivileged_port_start", "77").unwrap().stdout, "77\n");
    for bad in ["vm.swappiness", "kernel.core_pattern", "net.../../kernel/core_pattern", "kernel/core_pattern"] {
        let refused = with(bad, "1").unwrap_err().to_string();
        assert!(refused.contains("not in a separate kernel namespace"), "{refused}");
    }
}

fn unsupported_is_refused() {
    let image = Image::new();
    let mut spec = image.spec(&["true"]);
    spec.spec.process_mut().as_mut().unwrap().set_apparmor_profile(Some("nobody-loaded-this".to_owned()));
    let refused = run(spec).unwrap_err().to_string();
    assert!(refused.contains("AppArmor profile nobody-loaded-this"), "{refused}");
    let mut spec = image.spec(&["true"]);
    spec.id = "../x".to_owned();
    assert!(run(spec).unwrap_err().to_string().contains("not a plain name"));
}
