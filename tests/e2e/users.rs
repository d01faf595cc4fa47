//! Containers with users of their own: root inside is nobody on the machine, and files look as they do without.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use crate::containers::until;
use crate::scene::{Said, Scene, busybox_archive};

/// Ids that the files of this test's machine give to the users that are asked for.
const IDS: &str = "# ids of tests\ncontainers:1000000:20000\ndockremap:200000:65536\nann:300000:65536\n";

/// The program with files of subordinate ids of its own, in a mount namespace of its own.
struct Remapping<'a> {
    scene: &'a Scene,
    ids: PathBuf,
    /// Options before the command.
    globals: Vec<&'static str>,
}

fn finish(mut command: Command) -> Said {
    Said::from(command.stdin(std::process::Stdio::null()).output().expect("the program starts"))
}

/// A directory of that name, beside what the scene keeps.
fn directory(scene: &Scene, name: &str) -> PathBuf {
    let path = scene.work().join(name);
    std::fs::create_dir(&path).expect("mkdir");
    path
}

impl Remapping<'_> {
    fn of(scene: &Scene) -> Remapping<'_> {
        let ids = scene.write("subordinate", IDS);
        Remapping { scene, ids, globals: Vec::new() }
    }

    fn rb(&self, arguments: &[&str]) -> Said {
        finish(self.command(arguments))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        // A directory in place of the machine's own: the files may be missing there.
        let script = "mkdir \"$0.etc\" 2>/dev/null; cp -a /etc/passwd /etc/group \"$0.etc/\" 2>/dev/null; \
                      cp \"$0\" \"$0.etc/subuid\"; cp \"$0\" \"$0.etc/subgid\"; \
                      mount -t overlay overlay -o lowerdir=\"$0.etc\":/etc /etc && exec \"$@\"";
        let all: Vec<&str> = self.globals.iter().chain(arguments).copied().collect();
        let program = self.scene.command(&all);
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script]).arg(&self.ids);
        command.arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(directory) = program.get_current_dir() {
            command.current_dir(directory);
        }
        command
    }

    /// The script in a new container without a network.
    fn run(&self, options: &[&str], script: &str) -> Said {
        let mut arguments = vec!["run", "--rm", "--network", "none"];
        arguments.extend(options);
        arguments.extend(["busybox", "sh", "-c", script]);
        self.rb(&arguments)
    }

    fn start(&self, name: &str, options: &[&str], script: &str) {
        let mut arguments = vec!["run", "-d", "--network", "none", "--name", name];
        arguments.extend(options);
        arguments.extend(["busybox", "sh", "-c", script]);
        self.rb(&arguments).ok();
    }

    fn field(&self, template: &str, name: &str) -> String {
        self.rb(&["container", "inspect", "-f", template, name]).ok().out.trim_end().to_owned()
    }
}

/// The first line of a map: from inside, from outside, so many.
fn numbers(map: &str) -> (u32, u32, u32) {
    let numbers: Vec<u32> = map.split_whitespace().map(|number| number.parse().expect("a number")).collect();
    (numbers[0], numbers[1], numbers[2])
}

#[test]
fn root_inside_is_nobody_outside() {
    let scene = Scene::with_busybox();
    let remapping = Remapping::of(&scene);
    let bind = directory(&scene, "bind");
    let outside = format!("{}:/outside", bind.display());
    let mapped = directory(&scene, "mapped");
    let as_on_disk = format!("{}:/mapped:idmap", mapped.display());
    let script = "echo a > /v/file; chown 7:8 /v/file; echo b > /outside/file 2>/dev/null || echo refused; \
                  stat -c %u:%g /outside; echo c > /mapped/file; touch /ready; sleep 1000";
    let options = ["--userns", "remap", "-v", "vol:/v", "-v", &outside, "-v", &as_on_disk];
    remapping.start("apart", &options, script);
    until(|| remapping.rb(&["exec", "apart", "test", "-e", "/ready"]).code == 0);
    let pid = remapping.field("{{.State.Pid}}", "apart");
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).expect("uid_map");
    assert_eq!(numbers(&map), (0, 200_000, 65536));
    let owner = |path: PathBuf| std::fs::metadata(path).map(|metadata| (metadata.uid(), metadata.gid())).expect("stat");
    assert_eq!(owner(PathBuf::from(format!("/proc/{pid}"))), (200_000, 200_000));
    let volume = PathBuf::from(remapping.rb(&["volume", "inspect", "-f", "{{.Mountpoint}}", "vol"]).ok().out.trim());
    assert_eq!(owner(volume.clone()), (200_000, 200_000), "a new volume is its root's");
    assert_eq!(owner(volume.join("file")), (200_007, 200_008));
    assert_eq!(remapping.rb(&["logs", "apart"]).ok().out, "refused\n65534:65534\n", "what is the machine's stays so");
    assert_eq!(owner(mapped.join("file")), (0, 0), "mapped it has the ids of the inside");
    assert_eq!(remapping.field("{{.HostConfig.UsernsMode}}", "apart"), "remap");
    let top = remapping.rb(&["top", "apart"]).ok().out;
    assert!(top.contains("200000"), "as the machine sees it: {top}");
    remapping.rb(&["rm", "-f", "apart"]).ok();
    remapping.rb(&["volume", "rm", "vol"]).ok();
}

#[test]
fn files_look_as_they_do_without() {
    for driver in ["overlay", "vfs"] {
        let scene = Scene::new();
        let mut remapping = Remapping::of(&scene);
        remapping.globals = vec!["--storage-driver", driver];
        remapping.rb(&["load", "-q", "-i", busybox_archive().to_str().expect("UTF-8")]).ok();
        let script = "stat -c %u:%g / /bin/busybox; touch /new; chown 12:13 /new; stat -c %u:%g /new; \
                      chown 70000 /new 2>/dev/null || echo outside; echo x >> /etc/hosts && echo hosts; \
                      stat -c '%u:%g %t' /dev/null; : > /dev/null && echo null; stat -c %u /dev/pts/ptmx; ls /..";
        let out = remapping.run(&["--userns", "remap"], script).ok().out;
        assert!(out.starts_with("0:0\n0:0\n12:13\noutside\nhosts\n0:0 1\nnull\n0\n"), "{driver}: {out}");
        let plain = remapping.run(&[], "touch /new; ls /..").ok().out;
        assert!(out.ends_with(&plain), "nothing but its own files lies at the top: {driver}: {out}");

        let change = "mkdir -p /d/e; echo content > /d/f; chown 5:6 /d/f; chmod 4755 /d/f; ln -s f /d/l; rm -r /tmp; \
                      touch -d @1000 /d/f /d/e /d; touch -h -d @1000 /d/l; touch -d @1000 /";
        for (name, options) in [("plain", &["--userns", "host"][..]), ("apart", &["--userns", "auto"])] {
            let mut arguments = vec!["run", "--network", "none", "--name", name];
            arguments.extend(options);
            arguments.extend(["busybox", "sh", "-c", change]);
            remapping.rb(&arguments).ok();
        }
        let both = |arguments: &dyn Fn(&str) -> Vec<String>| {
            ["plain", "apart"].map(|name| {
                let arguments = arguments(name);
                remapping.rb(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).ok().out
            })
        };
        let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let [plain, apart] = both(&|name| words(format!("diff {name}")));
        assert_eq!(plain, apart, "{driver}");
        both(&|name| words(format!("commit {name} by:{name}")));
        let layers =
            |name: &str| remapping.rb(&["image", "inspect", "-f", "{{json .RootFS}}", &format!("by:{name}")]).ok().out;
        assert_eq!(layers("plain"), layers("apart"), "{driver}: the same change is the same layer");
        let exported = |name: &str| {
            let file = scene.work().join(format!("{driver}-{name}.tar"));
            remapping.rb(&["export", "-o", &file.display().to_string(), name]).ok();
            let listed = Command::new("tar").arg("--numeric-owner").arg("-tvf").arg(file).output().expect("tar starts");
            String::from_utf8(listed.stdout).expect("UTF-8")
        };
        let of_d =
            |text: String| text.lines().filter(|line| line.contains(" d/")).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(of_d(exported("plain")), of_d(exported("apart")), "{driver}");
        remapping.rb(&["rm", "plain", "apart"]).ok();
    }
}

#[test]
fn rights_inside_are_none_outside() {
    let scene = Scene::with_busybox();
    let remapping = Remapping::of(&scene);
    let all = ["--cap-add", "ALL", "--security-opt", "seccomp=unconfined", "--security-opt", "systempaths=unconfined"];
    for (options, script) in [
        (&[][..], "mount -t tmpfs none /mnt"),
        (&[], "v=$(cat /proc/sys/kernel/panic); echo $v > /proc/sys/kernel/panic"),
        (&[], "hostname other"),
        (&[], "mknod /dev/disk b 8 0 && cat /dev/disk"),
        (&all, "mount -t debugfs none /mnt"),
        (&all, "mount -t devtmpfs none /mnt"),
        (&all, "mknod /disk b 8 0"),
        (&all, "v=$(cat /proc/sys/kernel/panic); echo $v > /proc/sys/kernel/panic"),
        (&all, "echo h > /proc/sysrq-trigger"),
        (&all, "dmesg -c"),
    ] {
        let mut arguments = vec!["--userns", "remap"];
        arguments.extend(options);
        let said = remapping.run(&arguments, &format!("mkdir -p /mnt; ({script}) && echo done; true")).ok();
        assert!(!said.out.contains("done"), "{options:?} {script}: {said:#?}");
    }
    // What is its own it may do, as without a user namespace.
    let own = "mkdir -p /mnt && mount -t tmpfs none /mnt && hostname other && hostname";
    let options = ["--userns", "remap", "--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined"];
    assert_eq!(remapping.run(&options, own).ok().out, "other\n");
    let sysctls =
        ["--userns", "remap", "--sysctl", "net.ipv4.ip_forward=0", "--sysctl", "net.ipv4.ping_group_range=0 5"];
    let read = "cat /proc/sys/net/ipv4/ip_forward; echo $(cat /proc/sys/net/ipv4/ping_group_range)";
    assert_eq!(remapping.run(&sysctls, read).ok().out, "0\n0 5\n");
}

#[test]
fn ranges_are_given_out_once_and_given_back() {
    let scene = Scene::with_busybox();
    let remapping = Remapping::of(&scene);
    let map = |name: &str| {
        let pid = remapping.field("{{.State.Pid}}", name);
        numbers(&std::fs::read_to_string(format!("/proc/{pid}/uid_map")).expect("uid_map"))
    };
    remapping.start("one", &["--userns", "auto:size=5000", "--restart", "always"], "sleep 1000");
    remapping.start("two", &["--userns", "auto"], "sleep 1000");
    let ((_, first, length), (inside, second, other)) = (map("one"), map("two"));
    assert_eq!((first, length, inside), (1_000_000, 5000, 0));
    assert!(second >= first + length && other >= 1024, "{second} {other}");
    let refused = remapping.run(&["--userns", "auto:size=16000"], "true");
    refused.refused(125, &["could not find enough available IDs", "/etc/subuid", "auto:size=N"]);
    // The same ids in its next life.
    remapping.rb(&["restart", "-t", "0", "one"]).ok();
    assert_eq!(map("one"), (0, 1_000_000, 5000));
    // Who is in another's network is in his user namespace too.
    let shared = remapping.rb(&[
        "run",
        "--rm",
        "--userns",
        "auto",
        "--network",
        "container:one",
        "busybox",
        "cat",
        "/proc/self/uid_map",
    ]);
    assert_eq!(numbers(&shared.ok().out), (0, 1_000_000, 5000));
    remapping.start("plain", &[], "sleep 1000");
    let apart = remapping.rb(&["run", "--rm", "--userns", "auto", "--pid", "container:plain", "busybox", "true"]);
    apart.refused(125, &["cannot share the PID namespace of container plain", "--userns=host"]);
    remapping.rb(&["rm", "-f", "one", "two", "plain"]).ok();
    let again = remapping.run(&["--userns", "auto:size=16000"], "cat /proc/self/uid_map").ok().out;
    assert_eq!(numbers(&again), (0, 1_000_000, 16000));
}

#[test]
fn a_killed_monitor_leaves_no_range() {
    let scene = Scene::with_busybox();
    let remapping = Remapping::of(&scene);
    for _ in 0..3 {
        // All there is: a second one would find nothing if the first were kept.
        remapping.start("doomed", &["--rm", "--userns", "auto:size=20000"], "sleep 1000");
        let pid = remapping.field("{{.State.Pid}}", "doomed");
        let parent = |pid: &str| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
            let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("PPid");
            line.trim().to_owned()
        };
        let monitor: i32 = parent(&parent(&pid)).parse().expect("a number");
        let monitor = rustix::process::Pid::from_raw(monitor).expect("a process");
        rustix::process::kill_process(monitor, rustix::process::Signal::KILL).expect("kill");
        until(|| remapping.rb(&["ps", "-aq"]).ok().out.is_empty());
    }
}

#[test]
fn what_runs_beside_the_first_process_is_inside_too() {
    let scene = Scene::with_busybox();
    let remapping = Remapping::of(&scene);
    let check =
        ["--health-cmd", "test $(cut -c1-22 /proc/self/uid_map | tr -d ' ') = 0200000", "--health-interval", "50ms"];
    let mut options = vec!["--userns", "remap"];
    options.extend(check);
    remapping.start("apart", &options, "touch /mine; chown 3:4 /mine; sleep 1000");
    until(|| remapping.field("{{.State.Health.Status}}", "apart") == "healthy");
    let exec = |arguments: &[&str]| {
        let mut all = vec!["exec"];
        all.extend(arguments);
        remapping.rb(&all)
    };
    let out = exec(&["apart", "sh", "-c", "id -u; stat -c %u:%g /mine; ls /..; echo again > /dev/stdout"]).ok().out;
    assert!(out.starts_with("0\n3:4\n") && out.ends_with("again\n") && out.contains("mine\n"), "{out}");
    assert_eq!(exec(&["-u", "9:9", "apart", "sh", "-c", "id -u; echo x > /dev/stderr"]).ok().err, "x\n");
    let file = scene.write("copied", "content");
    std::os::unix::fs::chown(&file, Some(9), Some(10)).expect("chown");
    let source = file.display().to_string();
    for (keep, owner) in [(false, "0:0"), (true, "9:10")] {
        let mut arguments = vec!["cp"];
        arguments.extend(keep.then_some("-a"));
        arguments.extend([source.as_str(), "apart:/copied"]);
        remapping.rb(&arguments).ok();
        assert_eq!(exec(&["apart", "stat", "-c", "%u:%g", "/copied"]).ok().out.trim_end(), owner, "into it");
    }
    let back = scene.work().join("back");
    remapping.rb(&["cp", "-a", "apart:/mine", &back.display().to_string()]).ok();
    let metadata = std::fs::metadata(&back).expect("stat");
    assert_eq!((metadata.uid(), metadata.gid()), (3, 4), "out of it");
    remapping.rb(&["stop", "-t", "0", "apart"]).ok();
    remapping.rb(&["cp", &source, "apart:/later"]).ok();
    remapping.rb(&["start", "apart"]).ok();
    assert_eq!(
        exec(&["apart", "stat", "-c", "%u:%g", "/later", "/copied"]).ok().out,
        "0:0\n9:10\n",
        "while it stood still"
    );
    remapping.rb(&["rm", "-f", "apart"]).ok();
}

#[test]
fn the_machines_wish_is_for_who_does_not_say() {
    let scene = Scene::with_busybox();
    let remapping = Remapping::of(&scene);
    let config = scene.write("daemon.json", r#"{"userns-remap": "ann"}"#).display().to_string();
    let run = |options: &[&str], program: &[&str]| {
        let mut arguments = vec!["run", "--rm", "--network", "none"];
        arguments.extend(options);
        arguments.push("busybox");
        arguments.extend(program);
        let mut command = remapping.command(&arguments);
        command.env("RBUILD_CONFIG", &config);
        finish(command)
    };
    let map = |options: &[&str]| numbers(&run(options, &["cat", "/proc/self/uid_map"]).ok().out);
    assert_eq!(map(&[]), (0, 300_000, 65536));
    assert_eq!(map(&["--userns", "private"]), (0, 300_000, 65536));
    assert_eq!(map(&["--userns", "remap"]), (0, 200_000, 65536));
    assert_eq!(map(&["--uidmap", "0:400000:10"]), (0, 400_000, 10));
    assert_eq!(map(&["--userns", "host"]).1, 0);
    assert_eq!(map(&["--userns", "host", "--privileged"]).1, 0);
    run(&["--privileged"], &["true"]).refused(
        125,
        &["privileged mode is incompatible with user namespaces.  You must run the container in the host namespace"],
    );
    let mut command = remapping.command(&["info", "-f", "{{json .SecurityOptions}}"]);
    command.env("RBUILD_CONFIG", &config);
    assert!(finish(command).ok().out.contains("name=userns"));
}

#[test]
fn what_cannot_be_shared_is_refused_in_dockers_words() {
    let scene = Scene::with_busybox();
    let remapping = Remapping::of(&scene);
    for (options, words) in [
        (&["--userns", "remap", "--privileged"][..], "privileged mode is incompatible with user namespaces.  You must"),
        (
            &["--userns", "remap", "--pid", "host"],
            "cannot share the host PID namespace when user namespaces are enabled",
        ),
        (&["--userns", "remap:nobody-there"], "No subuid ranges found for user \"nobody-there\""),
        (&["--userns", "remap:ann:nobody-there"], "No subgid ranges found for group \"nobody-there\""),
        (&["--userns", "keep-id"], "the user namespace mode keep-id is not supported"),
        (&["--userns", "auto", "--uidmap", "0:1:1"], "cannot specify both --userns=auto and --uidmap or --gidmap"),
        (&["--uidmap", "5:1:1"], "the container would have no root"),
        (&["--userns", "remap", "--user", "70000"], "cannot become user 70000"),
        (&["-v", "/tmp:/tmp:idmap"], "idmap needs a user namespace"),
    ] {
        remapping.run(options, "true").refused(125, &[words]);
    }
    let said = remapping.rb(&["run", "--rm", "--userns", "remap", "--network", "host", "busybox", "true"]);
    said.refused(125, &["cannot share the host's network namespace when user namespaces are enabled"]);
}
