//! Ways out of a container that others had, each tried and shut. The numbers are of the promises in `docs/security.md`.

use std::process::Command;

use crate::containers::{Background, until};
use crate::scene::{Said, Scene};

fn run(scene: &Scene, options: &[&str], script: &str) -> Said {
    let mut arguments = vec!["run", "--rm", "--network", "none"];
    arguments.extend(options);
    arguments.extend(["busybox", "sh", "-c", script]);
    scene.rb(&arguments)
}

/// A program for this machine that makes one system call and exits with its error number, 0 if it had none.
#[cfg(target_arch = "x86_64")]
mod probe {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    pub(super) enum By {
        Syscall,
        /// The 32-bit way in.
        Interrupt,
    }

    pub(super) fn write(directory: &Path, name: &str, number: u32, arguments: &[u64], by: &By) {
        const AT: u64 = 0x40_0000;
        let mut code = vec![0xb8];
        code.extend(number.to_le_bytes());
        // mov to rdi, rsi, rdx, r10, r8
        for (register, value) in [[0x48, 0xbf], [0x48, 0xbe], [0x48, 0xba], [0x49, 0xba], [0x49, 0xb8]]
            .iter()
            .zip(arguments.iter().copied().chain(std::iter::repeat(0)))
        {
            code.extend(register);
            code.extend(value.to_le_bytes());
        }
        code.extend(match by {
            By::Syscall => [0x0f, 0x05],
            By::Interrupt => [0xcd, 0x80],
        });
        // edi = -eax; if rax >= 0 { edi = 0 }; exit(edi)
        code.extend([0x89, 0xc7, 0xf7, 0xdf, 0x48, 0x85, 0xc0, 0x78, 0x02, 0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05]);
        let size = 120 + code.len() as u64;
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        for word in [AT + 120, 64, 0] {
            file.extend(u64::to_le_bytes(word));
        }
        file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
        for word in [0, AT, AT, size, size, 0x1000] {
            file.extend(u64::to_le_bytes(word));
        }
        file.extend(code);
        let path = directory.join(name);
        std::fs::write(&path, file).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    }
}

/// S31, S33: calls that no container makes (keyrings, `bpf`, io_uring, the mount API, namespaces, modules, clocks, …).
#[cfg(target_arch = "x86_64")]
#[test]
fn calls_of_the_host_are_refused() {
    const FORBIDDEN: u64 = 1;
    const UNKNOWN: u64 = 38;
    const NEW_USER: u64 = 0x1000_0000;
    let calls: &[(&str, u32, &[u64], u64)] = &[
        ("add_key", 248, &[], FORBIDDEN),
        ("request_key", 249, &[], FORBIDDEN),
        ("keyctl", 250, &[0, u64::MAX - 2], FORBIDDEN),
        ("bpf", 321, &[], FORBIDDEN),
        ("perf_event_open", 298, &[], FORBIDDEN),
        ("io_uring_setup", 425, &[8], FORBIDDEN),
        ("userfaultfd", 323, &[], FORBIDDEN),
        ("mount", 165, &[], FORBIDDEN),
        ("umount2", 166, &[], FORBIDDEN),
        ("pivot_root", 155, &[], FORBIDDEN),
        ("fsopen", 430, &[], FORBIDDEN),
        ("open_tree", 428, &[], FORBIDDEN),
        ("move_mount", 429, &[], FORBIDDEN),
        ("mount_setattr", 442, &[], FORBIDDEN),
        ("unshare", 272, &[NEW_USER], FORBIDDEN),
        ("clone", 56, &[NEW_USER | 17], FORBIDDEN),
        ("clone3", 435, &[], UNKNOWN),
        ("setns", 308, &[0, 0], FORBIDDEN),
        ("open_by_handle_at", 304, &[], FORBIDDEN),
        ("init_module", 175, &[], FORBIDDEN),
        ("finit_module", 313, &[], FORBIDDEN),
        ("delete_module", 176, &[], FORBIDDEN),
        ("kexec_load", 246, &[], FORBIDDEN),
        ("reboot", 169, &[], FORBIDDEN),
        ("swapon", 167, &[], FORBIDDEN),
        ("iopl", 172, &[3], FORBIDDEN),
        ("ioperm", 173, &[0, 1, 1], FORBIDDEN),
        ("settimeofday", 164, &[], FORBIDDEN),
        ("clock_settime", 227, &[], FORBIDDEN),
        ("acct", 163, &[], FORBIDDEN),
        ("quotactl", 179, &[], FORBIDDEN),
        ("sethostname", 170, &[0x40_0000, 4], FORBIDDEN),
        ("personality", 135, &[0x0040_0000], FORBIDDEN),
        ("socket-of-alg", 41, &[38, 5], FORBIDDEN),
        ("socket-of-vsock", 41, &[40, 1], FORBIDDEN),
        ("a-newer-one", 9999, &[], UNKNOWN),
    ];
    let scene = Scene::with_busybox();
    let directory = scene.work().join("probes");
    std::fs::create_dir(&directory).expect("mkdir");
    for (name, number, arguments, _) in calls {
        probe::write(&directory, name, *number, arguments, &probe::By::Syscall);
    }
    // `getpid` of the 32-bit table, and of this one to show that a probe can succeed.
    probe::write(&directory, "getpid-of-i386", 20, &[], &probe::By::Interrupt);
    probe::write(&directory, "getpid", 39, &[], &probe::By::Syscall);
    let volume = format!("{}:/probes:ro", directory.display());
    let said = run(&scene, &["-v", &volume], "for p in /probes/*; do $p; echo ${p##*/} $?; done").ok();
    let mut wanted: Vec<String> = calls.iter().map(|(name, _, _, errno)| format!("{name} {errno}")).collect();
    wanted.extend([format!("getpid-of-i386 {UNKNOWN}"), "getpid 0".to_owned()]);
    let (mut found, _) = (said.out.lines().map(str::to_owned).collect::<Vec<_>>(), wanted.sort());
    found.sort();
    assert_eq!(found, wanted);
}

/// S32: neither a process of the host nor one of a neighbour can be traced, even where it can be seen.
#[cfg(target_arch = "x86_64")]
#[test]
fn processes_outside_cannot_be_traced() {
    const ATTACH: u64 = 16;
    let scene = Scene::with_busybox();
    let directory = scene.work().join("probes");
    std::fs::create_dir(&directory).expect("mkdir");
    let host = u64::from(std::process::id());
    probe::write(&directory, "attach", 101, &[ATTACH, host], &probe::By::Syscall);
    let volume = format!("{}:/probes:ro", directory.display());
    let script = "/probes/attach; echo $?";
    assert_eq!(run(&scene, &["-v", &volume, "--pid", "host"], script).out, "1\n", "not permitted");
    let neighbour = Background::start(&scene, "neighbour", &[], "sleep 1000");
    let pid = neighbour.field("{{.State.Pid}}").parse().expect("a number");
    probe::write(&directory, "attach", 101, &[ATTACH, pid], &probe::By::Syscall);
    assert_eq!(run(&scene, &["-v", &volume], script).out, "3\n", "no such process");
    let memory = format!("cat /proc/{host}/mem /proc/{host}/environ /proc/{host}/maps >/dev/null && echo read");
    assert_eq!(run(&scene, &["--pid", "host"], &memory).out, "", "what is seen is not read either");
}

/// S33: nothing of the kernel's can be opened for writing, on either version of cgroups.
#[test]
fn kernel_knobs_are_shut() {
    let scene = Scene::with_busybox();
    let script = "for f in $(find /proc/sys /proc/irq /proc/bus /proc/fs /proc/sysrq-trigger /sys -type f 2>/dev/null); do \
                  (: >>$f) 2>/dev/null && echo $f; done; \
                  for f in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug /proc/interrupts; do \
                  [ ! -e $f ] || wc -c <$f; done; ls -A /sys/firmware /proc/acpi /proc/scsi 2>/dev/null | grep -v :; echo end";
    let said = run(&scene, &[], script).ok();
    let lines: Vec<&str> = said.out.lines().filter(|line| !line.is_empty() && *line != "0").collect();
    assert_eq!(lines, ["end"]);
    let more = ["--cap-add", "SYS_PTRACE", "--cap-add", "NET_ADMIN", "--cap-add", "SYS_RESOURCE"];
    let script = "echo 1 >/proc/sysrq-trigger; echo x >/proc/sys/kernel/core_pattern; mkdir /sys/fs/cgroup/x; \
                  for d in /sys/fs/cgroup /sys/fs/cgroup/*; do echo x >$d/release_agent; done; \
                  echo x >/sys/kernel/uevent_helper";
    let said =
        run(&scene, &more, &format!("({script}) 2>&1 | grep -c 'Read-only'; [ -d /sys/fs/cgroup/x ] || echo none"));
    assert!(said.out.ends_with("none\n") && !said.out.starts_with('0'), "{said:#?}");
}

/// S31: what masks and protects can be taken away by nobody inside.
#[test]
fn mounts_are_not_changed_from_inside() {
    let scene = Scene::with_busybox();
    let script = "umount /proc/kcore; umount -l /proc; mount -o remount,rw /proc/sys; mount -o remount,rw /sys; \
                  mount -t proc proc /tmp; mount -t tmpfs none /tmp; mount -o bind /proc /tmp; mount --make-rshared /";
    let counted = format!(
        "cat /proc/mounts >/before; ({script}) 2>/said; cat /proc/mounts >/after; cmp /before /after && grep -c . /said"
    );
    assert_eq!(run(&scene, &[], &counted).ok().out, "8\n");
}

/// S14: a node of a disk can be made and not be opened, whoever made it.
#[test]
fn raw_disks_are_out_of_reach() {
    let scene = Scene::with_busybox();
    let table = std::fs::read_to_string("/proc/partitions").expect("partitions");
    let mut script = String::from("cd /tmp; mknod mem c 1 1; mknod kmem c 1 2; mknod port c 1 4;");
    for line in table.lines().skip(2) {
        let mut words = line.split_whitespace();
        if let (Some(major), Some(minor)) = (words.next(), words.next()) {
            script += &format!("mknod disk-{major}-{minor} b {major} {minor};");
        }
    }
    script +=
        "for n in *; do (: <$n) 2>/dev/null && echo read $n; (: >>$n) 2>/dev/null && echo written $n; done; ls | wc -l";
    let count = 3 + table.lines().skip(2).count();
    assert_eq!(run(&scene, &[], &script).ok().out, format!("{count}\n"));
    // Shipped in a layer, and with all that could help beside.
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Char);
    header.set_device_major(1).expect("a number");
    header.set_device_minor(11).expect("a number");
    header.set_mode(0o666);
    header.set_size(0);
    layer.append_data(&mut header, "node", std::io::empty()).expect("tar");
    scene.write("Dockerfile", "FROM busybox\nADD node.tar /\n");
    scene.write("node.tar", layer.into_inner().expect("tar"));
    let built = scene.rb(&["build", "-q", "-t", "noded", "."]);
    if built.code == 0 {
        let arguments = ["run", "--rm", "--network", "none", "--cap-add", "SYSLOG", "noded", "sh", "-c"];
        let script = "(: </node) 2>/dev/null && echo read; echo end";
        assert_eq!(scene.rb(&[&arguments[..], &[script]].concat()).ok().out, "end\n");
    }
}

/// S34: descriptors that the caller forgot to close do not go along.
#[test]
fn no_descriptor_leaks() {
    let scene = Scene::with_busybox();
    let with_leaks = |arguments: &[&str]| {
        let inner = scene.command(arguments);
        let mut outer = Command::new("sh");
        outer.args(["-c", "exec 7</etc/passwd 8</ 9</proc/self/exe; exec \"$@\"", "sh"]);
        outer.arg(inner.get_program()).args(inner.get_args()).current_dir(scene.work()).env_clear();
        outer.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Said::from(outer.output().expect("sh starts")).ok()
    };
    let list = "echo /proc/1/fd/* /proc/$$/fd/*; :";
    let plain = |pid: &str| format!("/proc/{pid}/fd/0 /proc/{pid}/fd/1 /proc/{pid}/fd/2");
    let run = ["run", "--rm", "--network", "none"];
    let said = with_leaks(&[&run[..], &["busybox", "sh", "-c", list]].concat());
    // The shell reads the directory itself while it is looked at.
    let own = said.out.replace(" /proc/1/fd/3", "");
    assert_eq!(own.trim_end(), format!("{} {}", plain("1"), plain("1")));
    let said = with_leaks(&[&run[..], &["--init", "busybox", "sh", "-c", "echo /proc/1/fd/*; :"]].concat());
    assert_eq!(said.out.trim_end(), plain("1"));
    let long = Background::start(&scene, "long", &[], "sleep 1000; :");
    let said = with_leaks(&[
        "exec",
        "long",
        "sh",
        "-c",
        "for f in /proc/$$/fd/*; do echo ${f##*/}; done | head -n 3; echo /proc/1/fd/*",
    ]);
    assert_eq!(said.out, format!("0\n1\n2\n{}\n", plain("1")));
    long.exec("true").ok();
}

/// S28, CVE-2024-21626: a working directory that is somebody's open descriptor.
#[test]
fn working_directories_are_inside() {
    let scene = Scene::with_busybox();
    let long =
        Background::start(&scene, "long", &[], "ln -s /proc/self/fd/7 /seven; ln -s /proc/self/cwd /here; sleep 1000");
    long.until("test -L /here");
    for place in
        ["/proc/self/fd/7", "/proc/self/fd/8", "/proc/self/cwd", "/proc/1/root", "/proc/1/cwd", "/seven", "/here"]
    {
        let said = scene.rb(&["exec", "-w", place, "long", "pwd"]);
        assert!(said.code != 0 && said.out.is_empty(), "exec in {place}: {said:#?}");
    }
    for place in
        ["/proc/self/fd/3", "/proc/self/fd/5", "/proc/self/fd/7", "/proc/self/fd/9", "/proc/self/cwd", "/proc/1/root"]
    {
        let said = run(&scene, &["-w", place], "pwd; ls ..");
        assert!(said.code != 0 && said.out.is_empty(), "run in {place}: {said:#?}");
        scene.write("Dockerfile", format!("FROM busybox\nWORKDIR {place}\nRUN pwd && ls ../../../../etc\n"));
        let said = scene.rb(&["build", "-q", "--network", "none", "."]);
        assert_ne!(said.code, 0, "build in {place}: {said:#?}");
    }
}

/// S29, CVE-2019-5736: the program that enters a container cannot be reached through it.
#[test]
fn our_own_program_is_out_of_reach() {
    use std::os::unix::fs::MetadataExt as _;
    let scene = Scene::with_busybox();
    let of_program = || {
        let metadata = std::fs::metadata(env!("CARGO_BIN_EXE_rbuild")).expect("the program");
        (metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec())
    };
    let before = of_program();
    // Whatever enters is opened by its link, and written through what was opened once it has ended.
    let hunt = "printf '#!/proc/self/exe\\n' >/evil; chmod 755 /evil; >/ready; while :; do for p in /proc/[0-9]*; do \
                [ $p = /proc/1 ] || (exec 9<$p/exe; [ /proc/self/fd/9 -ef /bin/busybox ] && exit; \
                echo opened >>/found; while [ -e $p ]; do :; done; (echo x >>/proc/self/fd/9) && echo written >>/found); \
                done; done 2>/dev/null";
    let hostile = Background::start(&scene, "hostile", &[], hunt);
    hostile.until("test -e /ready");
    for _ in 0..10 {
        let said = scene.rb(&["exec", "hostile", "/evil"]);
        assert!(!said.out.contains("rbuild") || said.code != 0, "{said:#?}");
        hostile.exec("true").ok();
    }
    let found = hostile.exec("cat /found; echo end").ok().out;
    assert!(found.ends_with("end\n") && !found.contains("written"), "{found}");
    assert_eq!(of_program(), before);
}

/// An image with these symbolic links over busybox.
fn image_with_links(scene: &Scene, name: &str, links: &[(&str, &str)]) {
    let mut layer = tar::Builder::new(Vec::new());
    for (at, target) in links {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        layer.append_link(&mut header, at, target).expect("tar");
    }
    scene.write(&format!("{name}/Dockerfile"), "FROM busybox\nADD links.tar /\n");
    scene.write(&format!("{name}/links.tar"), layer.into_inner().expect("tar"));
    scene.rb(&["build", "-q", "-t", name, name]).ok();
}

/// S23, S25: the kernel's file systems go onto directories, and nothing goes onto them.
#[test]
fn kernel_file_systems_are_what_they_say() {
    let scene = Scene::with_busybox();
    for place in ["proc", "sys", "dev"] {
        let name = format!("link-{place}");
        image_with_links(&scene, &name, &[(place, "/tmp")]);
        let said = scene.rb(&["run", "--rm", "--network", "none", &name, "true"]);
        said.refused(125, &[&format!("/{place} of the image is not an ordinary directory")]);
    }
    image_with_links(&scene, "aside", &[("aside", "/proc/self/attr"), ("below", "/proc")]);
    let own = scene.work().join("own");
    std::fs::create_dir(&own).expect("mkdir");
    for place in ["/proc", "/proc/sys", "/proc/self/attr", "/aside", "/below/sys"] {
        let arguments =
            ["run", "--rm", "--network", "none", "-v", &format!("{}:{place}", own.display()), "aside", "true"];
        scene.rb(&arguments).refused(125, &["it is inside /proc"]);
        scene
            .rb(&["run", "--rm", "--network", "none", "--tmpfs", place, "aside", "true"])
            .refused(125, &["inside /proc"]);
    }
    let uptime = scene.write("uptime", "1.00 1.00\n");
    let volume = format!("{}:/proc/uptime:ro", uptime.display());
    assert_eq!(
        run(&scene, &["-v", &volume], "cat /proc/uptime").ok().out,
        "1.00 1.00\n",
        "what only tells may be covered"
    );
}

/// S24, CVE-2025-31133, CVE-2025-52565: an image has its own idea of `/dev/null` and of `/dev/console`.
#[test]
fn masks_do_not_follow_the_image() {
    let scene = Scene::with_busybox();
    let knob = "/proc/sys/kernel/core_pattern";
    let links =
        [("dev/null", knob), ("dev/console", knob), ("dev/pts", "/tmp"), ("dev/ptmx", knob), ("dev/shm", "/etc")];
    image_with_links(&scene, "evil", &links);
    let script = "stat -c '%F' /dev/null /dev/ptmx /dev/shm; wc -c </proc/interrupts; (: >>/proc/sys/kernel/core_pattern) || echo shut";
    let said = scene.rb(&["run", "--rm", "--network", "none", "evil", "sh", "-c", script]).ok();
    let wanted = "character special file\nsymbolic link\ndirectory\n0\nshut\n";
    assert_eq!(said.out, wanted);
    let script = "stat -c '%F' /dev/console; readlink /dev/ptmx";
    let said = scene.rb(&["run", "--rm", "-t", "--network", "none", "evil", "sh", "-c", script]).ok();
    assert_eq!(said.out.replace('\r', ""), "character special file\npts/ptmx\n");
}

/// S22: a mount's target is looked up in the root, whatever the image's links say.
#[test]
fn mount_targets_stay_inside() {
    let scene = Scene::with_busybox();
    let host = scene.work().join("host");
    std::fs::create_dir(&host).expect("mkdir");
    let target = format!("../../../../../..{}", host.display());
    image_with_links(
        &scene,
        "linked",
        &[("up", &target), ("to", &format!("{}", host.display())), ("etc/resolv.conf", "/up/dns")],
    );
    let own = scene.write("own/file", "mine");
    let volume = |place: &str| format!("{}:{place}", own.parent().expect("a parent").display());
    for place in ["/up", "/to", "/up/deeper"] {
        let script = format!("cat {place}/file; touch {place}/new");
        let arguments = ["run", "--rm", "--network", "none", "-v", &volume(place), "linked", "sh", "-c", &script];
        assert_eq!(scene.rb(&arguments).ok().out, "mine", "{place}");
    }
    assert_eq!(std::fs::read_dir(&host).expect("a directory").count(), 0, "the host's directory is as it was");
}

/// S21, S39: a container whose own files lie in wait for whoever enters it.
#[test]
fn entering_a_hostile_container_neither_hangs_nor_leaks() {
    let scene = Scene::with_busybox();
    let lure = "rm /etc/passwd /etc/group; mkfifo /etc/passwd; ln -s /etc/passwd /etc/group; \
                rm /dev/null; mkfifo /dev/null; echo ready; while :; do sleep 1; done";
    let hostile = Background::start(&scene, "hostile", &[], lure);
    until(|| scene.rb(&["logs", "hostile"]).ok().out == "ready\n");
    assert_eq!(hostile.field("{{.State.Status}}"), "running");
    let said = scene.rb(&["exec", "-u", "somebody", "hostile", "true"]);
    assert_ne!(said.code, 0, "{said:#?}");
    // Its input would be /dev/null, which is a pipe by now: refused, not waited for.
    let said = scene.rb(&["exec", "hostile", "sh", "-c", "readlink /proc/self/fd/0"]);
    assert!(said.code != 0 || !said.out.contains("/dev/null"), "{said:#?}");
    let caps = scene.rb(&["exec", "-i", "-u", "0", "hostile", "grep", "-E", "CapBnd|Seccomp:", "/proc/self/status"]);
    if caps.code == 0 {
        assert!(caps.out.contains("00000000a80425fb") && caps.out.contains("Seccomp:\t2"), "{caps:#?}");
    }
}

/// S40, CVE-2018-15664: links that are swapped while somebody copies.
#[test]
fn copies_stay_inside_while_links_are_swapped() {
    let scene = Scene::with_busybox();
    let secret = scene.write("host/f", "secret");
    let host = secret.parent().expect("a parent").to_path_buf();
    let swap = format!(
        "while :; do rm -rf /d; mkdir /d; echo inside >/d/f; >/ready; rm -rf /d; ln -s {} /d; rm -f /d; ln -s ../../../../..{} /d; done",
        host.display(),
        host.display()
    );
    let hostile = Background::start(&scene, "hostile", &[], &swap);
    hostile.until("test -e /ready");
    let planted = scene.write("planted", "planted");
    for n in 0..25 {
        let out = scene.work().join(format!("out-{n}"));
        scene.rb(&["cp", "hostile:/d/f", out.to_str().expect("UTF-8")]);
        let got = std::fs::read_to_string(&out).unwrap_or_default();
        assert!(!got.contains("secret"), "round {n}: {got}");
        scene.rb(&["cp", planted.to_str().expect("UTF-8"), "hostile:/d/planted"]);
    }
    let names: Vec<_> =
        std::fs::read_dir(&host).expect("a directory").map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(names, ["f"], "nothing was put beside the secret");
}

/// S27: a mount of a step that takes a link of an image.
#[test]
fn mounts_of_steps_stay_in_their_image() {
    let scene = Scene::with_busybox();
    let secret = scene.write("host/f", "secret");
    let host = secret.parent().expect("a parent").display().to_string();
    let links = [("up", format!("../../../../../..{host}")), ("to", host.clone()), ("fd", "/proc/self/fd".to_owned())];
    let links: Vec<(&str, &str)> = links.iter().map(|(at, target)| (*at, target.as_str())).collect();
    image_with_links(&scene, "linked", &links);
    for source in ["/up", "/to", "/fd/3", "/up/f", &format!("/../../../../../..{host}")] {
        let dockerfile = format!(
            "FROM busybox\nRUN --mount=type=bind,from=linked,source={source},target=/m cat /m /m/f | grep secret && touch /found\n"
        );
        scene.write("project/Dockerfile", dockerfile);
        let said = scene.rb(&["build", "--network", "none", "project"]);
        assert_ne!(said.code, 0, "{source}: {said:#?}");
        assert!(!said.err.contains("\nsecret") && !said.err.contains(" secret\n"), "{source}: {said:#?}");
    }
}

/// S38: what the caller has in his environment is his.
#[test]
fn the_callers_environment_stays_outside() {
    let scene = Scene::with_busybox();
    let arguments = ["run", "--rm", "--network", "none", "-e", "GIVEN=1", "-e", "TAKEN", "busybox", "sh", "-c"];
    let script = "tr '\\0' '\\n' </proc/1/environ | sort | cut -d= -f1 | tr '\\n' ' '";
    let mut command = scene.command(&[&arguments[..], &[script]].concat());
    command.env("SECRET_OF_MINE", "1").env("TAKEN", "2").env("LD_PRELOAD_OF_MINE", "3");
    let said = Said::from(command.output().expect("the program starts")).ok();
    assert_eq!(said.out, "GIVEN HOME HOSTNAME PATH TAKEN ");
}
