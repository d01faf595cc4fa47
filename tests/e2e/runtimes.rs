//! Containers that another OCI runtime makes, under our monitor: `--runtime runc` and its like.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::containers::until;
use crate::scene::{Said, Scene};

/// A runtime of the host's, or a word about there being none.
fn runtime(name: &str) -> Option<PathBuf> {
    let places = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let found = places.iter().map(|place| Path::new(place).join(name)).find(|path| path.exists());
    if found.is_none() {
        eprintln!("skipped: no {name} here");
    }
    found
}

fn run(scene: &Scene, runtime: &str, arguments: &[&str]) -> Said {
    let all = [&["run", "--rm", "--network", "none", "--runtime", runtime], arguments].concat();
    scene.rb(&all)
}

/// Whether the runtime starts anything on this host: some refuse its cgroups, in words that must come through.
fn works(scene: &Scene, runtime: &str) -> bool {
    let said = run(scene, runtime, &["busybox", "true"]);
    if said.code == 0 {
        return true;
    }
    assert!(said.code == 125 && said.err.contains("OCI runtime create failed"), "{said:#?}");
    assert!(said.err.to_lowercase().contains("cgroup"), "{said:#?}");
    eprintln!("skipped: {runtime} does not work on this host: {}", said.err);
    false
}

#[test]
fn runc_runs_what_is_asked() {
    runs_what_is_asked("runc");
}

#[test]
fn crun_runs_what_is_asked() {
    runs_what_is_asked("crun");
}

fn runs_what_is_asked(name: &str) {
    if runtime(name).is_none() {
        return;
    }
    let scene = Scene::with_busybox();
    if !works(&scene, name) {
        return;
    }
    let said = run(&scene, name, &["busybox", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((said.out.as_str(), said.err.as_str(), said.code), ("out\n", "err\n", 7), "{said:#?}");
    let said = run(&scene, name, &["busybox", "nonexistent-program"]);
    assert_eq!(said.code, 127, "{said:#?}");
    assert!(said.err.contains("OCI runtime create failed") && said.err.contains("nonexistent-program"), "{said:#?}");

    let said =
        scene.rb_with_input(&["run", "--rm", "-i", "--network", "none", "--runtime", name, "busybox", "cat"], b"fed");
    assert_eq!(said.ok().out, "fed");
    let script = "id -u; id -g; touch /x; stty size; tty";
    let said = run(&scene, name, &["--user", "12:34", "--read-only", "-t", "busybox", "sh", "-c", script]);
    assert!(said.out.starts_with("12\r\n34\r\n"), "{said:#?}");
    assert!(said.out.contains("Read-only file system") && said.out.contains("/dev/pts/0"), "{said:#?}");

    scene.write("shared/file", "of the host");
    let bind = format!("{}:/bound:ro", scene.work().join("shared").display());
    let script = "cat /bound/file; touch /bound/x 2>/dev/null || echo ro; echo kept > /vol/f; grep ' /mem ' /proc/mounts | cut -d' ' -f3";
    let said = run(&scene, name, &["-v", &bind, "-v", "kept:/vol", "--tmpfs", "/mem", "busybox", "sh", "-c", script]);
    assert_eq!(said.ok().out, "of the hostro\ntmpfs\n");
    assert_eq!(run(&scene, name, &["-v", "kept:/vol", "busybox", "cat", "/vol/f"]).ok().out, "kept\n");
    assert_eq!(run(&scene, name, &["--hostname", "box", "busybox", "hostname"]).ok().out, "box\n");

    let limits = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; grep NoNewPrivs /proc/self/status";
    let said = run(&scene, name, &["-m", "64m", "--security-opt", "no-new-privileges", "busybox", "sh", "-c", limits]);
    assert_eq!(said.ok().out, "67108864\nNoNewPrivs:\t1\n");
    // The filter of system calls is there too.
    let said = run(&scene, name, &["busybox", "sh", "-c", "grep '^Seccomp:' /proc/self/status; umount /proc 2>&1"]);
    assert!(said.out.starts_with("Seccomp:\t2\n") && said.code != 0, "{said:#?}");
    for place in ["containers", "sandbox/anchor"] {
        assert_eq!(std::fs::read_dir(scene.root().join(place)).expect("a directory").count(), 0, "{place}");
    }
}

#[test]
fn runc_containers_live_like_others() {
    live_like_others("runc");
}

#[test]
fn crun_containers_live_like_others() {
    live_like_others("crun");
}

fn live_like_others(name: &str) {
    if runtime(name).is_none() {
        return;
    }
    let scene = Scene::with_busybox();
    if !works(&scene, name) {
        return;
    }
    let script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done";
    scene.rb(&["run", "-d", "--name", "box", "--runtime", name, "busybox", "sh", "-c", script]).ok();
    let inspected = |field: &str| {
        let said = scene.rb(&["inspect", "box"]).ok();
        let all: Value = serde_json::from_str(&said.out).expect("JSON");
        all[0].pointer(field).cloned().unwrap_or_default()
    };
    assert_eq!(inspected("/HostConfig/Runtime"), name);
    until(|| scene.rb(&["logs", "box"]).out == "up\n");
    let said = scene.rb(&["exec", "-e", "A=b", "-w", "/tmp", "box", "sh", "-c", "echo $A $PWD; exit 3"]);
    assert_eq!((said.out.as_str(), said.code), ("b /tmp\n", 3), "{said:#?}");
    let said = scene.rb_with_input(&["exec", "-i", "box", "cat"], b"fed");
    assert_eq!(said.ok().out, "fed");
    let said = scene.rb(&["exec", "-t", "box", "tty"]).ok();
    assert!(said.out.starts_with("/dev/pts/"), "{said:#?}");
    assert_eq!(scene.rb(&["exec", "box", "nonexistent-program"]).code, 127);
    scene.rb(&["exec", "-d", "box", "touch", "/detached"]).ok();
    until(|| scene.rb(&["exec", "box", "ls", "/detached"]).code == 0);
    // Of the network it has what others have.
    let address = scene.rb(&["exec", "box", "ip", "-4", "-o", "addr", "show", "eth0"]).ok().out;
    assert!(address.contains("inet "), "{address}");

    scene.rb(&["pause", "box"]).ok();
    assert_eq!(inspected("/State/Status"), "paused");
    scene.rb(&["unpause", "box"]).ok();
    scene.rb(&["stop", "-t", "60", "box"]).ok();
    assert_eq!((inspected("/State/ExitCode"), inspected("/State/Status")), (5.into(), "exited".into()));
    assert_eq!(scene.rb(&["logs", "box"]).ok().out, "up\nbye\n");
    let changed = scene.rb(&["diff", "box"]).ok().out;
    // The places of mounts are no changes of the container's.
    assert_eq!(changed, "A /detached\n");
    scene.rb(&["start", "box"]).ok();
    scene.rb(&["exec", "box", "ls", "/detached"]).ok();
    scene.rb(&["kill", "box"]).ok();
    until(|| inspected("/State/Status") == "exited");
    assert_eq!(inspected("/State/ExitCode"), 137);
    scene.rb(&["rm", "box"]).ok();
    scene.settle();
    assert!(scene.leftovers().is_empty(), "{:?}", scene.leftovers());
}

/// A monitor that is killed takes the container with it, and the next start finds nothing in its way.
#[test]
fn a_killed_monitor_leaves_nothing_of_the_runtime() {
    if runtime("runc").is_none() {
        return;
    }
    let scene = Scene::with_busybox();
    if !works(&scene, "runc") {
        return;
    }
    scene
        .rb(&["run", "-d", "--name", "box", "--network", "none", "--runtime", "runc", "busybox", "sleep", "1000"])
        .ok();
    let monitor = monitor_of(&scene);
    let monitor = rustix::process::Pid::from_raw(monitor.expect("its monitor")).expect("a process");
    rustix::process::kill_process(monitor, rustix::process::Signal::KILL).expect("kill");
    let status = || scene.rb(&["ps", "-a", "--format", "{{.State}}"]).ok().out;
    until(|| status() == "exited\n");
    scene.rb(&["start", "box"]).ok();
    assert_eq!(status(), "running\n");
    scene.rb(&["rm", "-f", "box"]).ok();
}

/// The process that holds the lock of the scene's only container.
fn monitor_of(scene: &Scene) -> std::io::Result<i32> {
    let container =
        std::fs::read_dir(scene.root().join("containers"))?.next().ok_or(std::io::ErrorKind::NotFound)??;
    let lock = container.path().join("lock");
    for process in std::fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else { continue };
        if files.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to == lock)) {
            return Ok(pid);
        }
    }
    Err(std::io::ErrorKind::NotFound.into())
}

#[test]
fn runtimes_are_known_by_name_path_or_configuration() {
    let scene = Scene::with_busybox();
    for bad in ["nope", "/nowhere/runc", "sh"] {
        let said = run(&scene, bad, &["busybox", "true"]);
        said.refused(125, &[&format!("unknown or invalid runtime name: {bad}")]);
    }
    let said = scene.rb(&["create", "--runtime", "nope", "busybox"]);
    said.refused(1, &["unknown or invalid runtime name: nope"]);
    let Some(path) = runtime("runc") else { return };
    if !works(&scene, "runc") {
        return;
    }
    run(&scene, path.to_str().expect("UTF-8"), &["busybox", "true"]).ok();
    let config = serde_json::json!({
        "runtimes": { "mine": { "path": path, "runtimeArgs": ["--debug"] }, "gone": { "path": "/nowhere" } },
        "default-runtime": "mine",
    });
    std::fs::write(scene.root().join("daemon.json"), config.to_string()).expect("write");
    run(&scene, "mine", &["busybox", "true"]).ok();
    run(&scene, "gone", &["busybox", "true"]).refused(125, &["unknown or invalid runtime name: gone"]);
    scene.rb(&["create", "--name", "box", "busybox"]).ok();
    assert_eq!(scene.rb(&["inspect", "-f", "{{.HostConfig.Runtime}}", "box"]).ok().out, "mine\n");
    let refused = run(&scene, "mine", &["--init", "busybox", "true"]);
    refused.refused(125, &["--init", "mine"]);
}
