//! Containers that live on: started, watched, entered, changed, stopped, and what is left when something is killed.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::scene::Scene;

/// A container in the background, removed when the test ends, whichever way.
pub(crate) struct Background<'a> {
    scene: &'a Scene,
    name: &'a str,
}

impl<'a> Background<'a> {
    pub(crate) fn start(scene: &'a Scene, name: &'a str, options: &[&str], script: &str) -> Background<'a> {
        let mut arguments = vec!["run", "-d", "--name", name];
        if !options.contains(&"--network") {
            arguments.extend(["--network", "none"]);
        }
        arguments.extend(options);
        arguments.extend(["busybox", "sh", "-c", script]);
        let said = scene.rb(&arguments).ok();
        assert_eq!(said.out.trim_end().len(), 64, "an id: {said:#?}");
        Background { scene, name }
    }

    pub(crate) fn field(&self, template: &str) -> String {
        let said = self.scene.rb(&["container", "inspect", "-f", template, self.name]).ok();
        said.out.trim_end().to_owned()
    }

    pub(crate) fn exec(&self, script: &str) -> crate::scene::Said {
        self.scene.rb(&["exec", self.name, "sh", "-c", script])
    }

    /// Waits until the script succeeds inside.
    pub(crate) fn until(&self, script: &str) {
        until(|| self.exec(script).code == 0);
    }
}

impl Drop for Background<'_> {
    fn drop(&mut self) {
        self.scene.rb(&["rm", "-fv", self.name]);
    }
}

pub(crate) fn until(mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "not within time");
        std::thread::sleep(Duration::from_millis(30));
    }
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).expect("a pid"), Signal::KILL).expect("kill");
}

/// The parent of a process.
fn parent(pid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a living process");
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("a parent");
    line.trim().parse().expect("a number")
}

#[test]
fn two_run_at_once_apart_from_each_other() {
    let scene = Scene::with_busybox();
    let one = Background::start(&scene, "one", &["--network", "bridge"], "echo one > /mine; sleep 100");
    let two = Background::start(&scene, "two", &["--network", "bridge"], "echo two > /mine; sleep 100");
    assert_eq!(scene.rb(&["ps", "-q"]).ok().out.lines().count(), 2);
    let address = "{{.NetworkSettings.IPAddress}}";
    assert_ne!(one.field(address), two.field(address));
    one.until("test -s /mine");
    two.until("test -s /mine");
    assert_eq!((one.exec("cat /mine").out.as_str(), two.exec("cat /mine").out.as_str()), ("one\n", "two\n"));
    assert!(!one.exec("ps").out.contains("two"));
    let said = scene.rb(&["rm", "-f", "one", "two"]).ok();
    assert_eq!(said.out, "one\ntwo\n");
    assert_eq!(scene.rb(&["ps", "-aq"]).ok().out, "");
}

#[test]
fn logs_keep_the_streams_apart_and_follow_to_the_end() {
    let scene = Scene::with_busybox();
    let script = "echo first; echo wrong >&2; while [ ! -e /go ]; do sleep 0.05; done; printf last";
    let talker = Background::start(&scene, "talker", &[], script);
    until(|| scene.rb(&["logs", "talker"]).ok().err == "wrong\n");
    let follower = scene.command(&["logs", "-f", "talker"]).stdout(Stdio::piped()).spawn().expect("start");
    talker.exec("touch /go").ok();
    let output = follower.wait_with_output().expect("the end");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "first\nlast");
    assert_eq!(scene.rb(&["logs", "--tail", "1", "talker"]).ok().out, "last");
    let stamped = scene.rb(&["logs", "-t", "--tail", "1", "talker"]).ok().out;
    assert!(stamped.starts_with("20") && stamped.ends_with("Z last"), "{stamped}");
}

#[test]
fn exec_has_the_containers_world_and_its_own_code() {
    let scene = Scene::with_busybox();
    let host = Background::start(&scene, "host", &["-e", "A=run", "-w", "/tmp", "-u", "1000:1000"], "sleep 100");
    assert_eq!(host.exec("echo $A $PWD $(id -u)").ok().out, "run /tmp 1000\n");
    assert_eq!(host.exec("exit 9").code, 9);
    let said = scene.rb(&["exec", "-e", "A=exec", "-u", "0", "-w", "/etc", "host", "sh", "-c", "echo $A $PWD; id -u"]);
    assert_eq!(said.ok().out, "exec /etc\n0\n");
    assert_eq!(scene.rb_with_input(&["exec", "-i", "host", "cat"], b"fed").ok().out, "fed");
    scene.rb(&["exec", "host", "/no/such"]).refused(127, &["/no/such"]);
    scene.rb(&["exec", "host", "/etc/passwd"]).refused(126, &["denied"]);
    let status = host.exec("grep -E 'CapEff|Seccomp:' /proc/self/status").ok().out;
    assert!(status.contains("CapEff:\t0000000000000000") && status.contains("Seccomp:\t2"), "{status}");
    scene.rb(&["exec", "-d", "-u", "0", "host", "sh", "-c", "sleep 0.2; touch /late"]).ok();
    host.until("test -e /late");
    scene.rb(&["stop", "-t", "0", "host"]).ok();
    scene.rb(&["exec", "host", "true"]).refused(1, &["is not running"]);
}

#[test]
fn the_file_of_an_id_is_there_with_its_container_or_neither_is() {
    let scene = Scene::with_busybox();
    let written = || std::fs::read_to_string(scene.work().join("id"));
    scene
        .rb(&["create", "--cidfile", "no/where", "busybox"])
        .refused(1, &["failed to create the container ID file: open no/where: no such file or directory"]);
    scene.rb(&["create", "--cidfile", "id", "--pull", "never", "nope"]).refused(1, &["nope"]);
    assert!(written().is_err(), "a file without a container");
    assert_eq!(scene.rb(&["ps", "-aq"]).ok().out, "", "a container without its file");
    let id = scene.rb(&["create", "--cidfile", "id", "busybox"]).ok().out;
    assert_eq!(written().unwrap(), id.trim());
    scene
        .rb(&["run", "--rm", "--cidfile", "id", "busybox", "true"])
        .refused(125, &["container ID file found, make sure the other container isn't running or delete id"]);
    assert_eq!(written().unwrap(), id.trim(), "the other's file stays");
    scene.rb(&["rm", id.trim()]).ok();
}

#[test]
fn stopping_asks_first_and_the_code_tells_how_it_ended() {
    let scene = Scene::with_busybox();
    let polite = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let one = Background::start(&scene, "polite", &[], polite);
    until(|| scene.rb(&["logs", "polite"]).ok().out == "ready\n");
    assert_eq!(scene.rb(&["stop", "polite"]).ok().out, "polite\n");
    assert_eq!(one.field("{{.State.Status}} {{.State.ExitCode}}"), "exited 5");
    assert_eq!(scene.rb(&["wait", "polite"]).ok().out, "5\n");
    scene.rb(&["kill", "polite"]).refused(1, &["is not running"]);
    let deaf = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let two = Background::start(&scene, "deaf", &[], deaf);
    until(|| scene.rb(&["logs", "deaf"]).ok().out == "ready\n");
    scene.rb(&["rm", "deaf"]).refused(1, &["container is running"]);
    scene.rb(&["stop", "-t", "1", "deaf"]).ok();
    assert_eq!(two.field("{{.State.ExitCode}}"), "137");
}

#[test]
fn a_container_starts_again_with_its_files() {
    let scene = Scene::with_busybox();
    scene.rb(&["create", "--name", "again", "--network", "none", "busybox", "sh", "-c", "echo x >> /n; cat /n"]).ok();
    let _guard = Background { scene: &scene, name: "again" };
    assert_eq!(scene.rb(&["start", "-a", "again"]).ok().out, "x\n");
    assert_eq!(scene.rb(&["start", "-a", "again"]).ok().out, "x\nx\n");
    assert_eq!(scene.rb(&["diff", "again"]).ok().out, "A /n\n");
}

#[test]
fn names_and_ids_find_containers() {
    let scene = Scene::with_busybox();
    let id = scene.rb(&["create", "--name", "named", "busybox", "true"]).ok().out;
    let id = id.trim_end();
    scene.rb(&["create", "--name", "named", "busybox", "true"]).refused(1, &["already in use", id]);
    scene.rb(&["run", "--name", "named", "busybox", "true"]).refused(125, &["already in use", id]);
    scene.rb(&["rename", "named", "named"]).refused(1, &["same name as its current name"]);
    scene.rb(&["inspect", "--type", "odd", "named"]).refused(125, &["unknown type: \"odd\""]);
    scene.rb(&["create", "--platform", "linux/s390x", "--pull", "never", "busybox"]).refused(1, &["(linux/s390x)"]);
    scene.rb(&["create", "--cpus", "1000000", "busybox"]).refused(1, &["range of CPUs is from 0.01 to"]);
    for text in ["named", id, &id[..5]] {
        assert_eq!(scene.rb(&["container", "inspect", "-f", "{{.Name}}", text]).ok().out, "/named\n", "{text}");
    }
    scene.rb(&["rename", "named", "other"]).ok();
    scene.rb(&["rm", "named"]).refused(1, &["No such container: named"]);
    scene.rb(&["create", "--name", "bad name", "busybox"]).refused(1, &["Invalid container name"]);
    scene.rb(&["rmi", "busybox"]).refused(1, &["container"]);
    scene.rb(&["rm", "other"]).ok();
}

#[test]
fn a_killed_monitor_takes_its_container_along_and_says_so() {
    let scene = Scene::alone_with_busybox();
    let victim = Background::start(&scene, "victim", &["-m", "64m"], "echo said; sleep 1000");
    until(|| scene.rb(&["logs", "victim"]).ok().out == "said\n");
    let init: i32 = victim.field("{{.State.Pid}}").parse().expect("a pid");
    kill(parent(parent(init)));
    until(|| victim.field("{{.State.Status}}") == "exited");
    assert!(victim.field("{{.State.Error}}").contains("not known"));
    until(|| !std::path::Path::new(&format!("/proc/{init}")).exists());
    assert_eq!(scene.rb(&["logs", "victim"]).ok().out, "said\n");
    scene.rb(&["start", "victim"]).ok();
    assert_eq!(victim.field("{{.State.Status}}"), "running");
    drop(victim);
    scene.settle();
}

/// `run` in the foreground until its program has begun.
fn foreground(scene: &Scene, name: &str, options: &[&str]) -> Child {
    let mut arguments = vec!["run", "--name", name];
    arguments.extend(options);
    arguments.extend(["busybox", "sleep", "1000"]);
    let child = scene.command(&arguments).stdout(Stdio::null()).spawn().expect("start");
    until(|| scene.rb(&["exec", name, "true"]).code == 0);
    child
}

#[test]
fn a_killed_run_leaves_nothing_that_the_next_command_does_not_clear() {
    let scene = Scene::alone_with_busybox();
    for (name, options) in [("gone", &["--rm", "-v", "/data"][..]), ("kept", &["-v", "/data"])] {
        let mut child = foreground(&scene, name, options);
        kill(i32::try_from(child.id()).expect("a pid"));
        child.wait().expect("the end");
    }
    until(|| scene.rb(&["ps", "-q"]).ok().out.is_empty());
    assert_eq!(scene.rb(&["ps", "-a", "--format", "{{.Names}} {{.State}}"]).ok().out, "kept exited\n");
    assert_eq!(scene.rb(&["volume", "ls", "-q"]).ok().out.lines().count(), 1, "the volume of the one that is kept");
    scene.settle();
    scene.rb(&["rm", "-v", "kept"]).ok();
    assert_eq!(scene.rb(&["volume", "ls", "-q"]).ok().out, "");
    let left = std::fs::read_dir(scene.root().join("containers")).expect("containers").count();
    assert_eq!(left, 0, "directories of containers that are gone");
}

#[test]
fn signals_reach_the_program() {
    let scene = Scene::with_busybox();
    let script = "trap 'exit 42' USR1; echo up > /up; while :; do sleep 0.05; done";
    let arguments = ["run", "--rm", "--name", "listener", "--network", "none", "busybox", "sh", "-c", script];
    let mut child = scene.command(&arguments).spawn().expect("start");
    until(|| scene.rb(&["exec", "listener", "test", "-s", "/up"]).code == 0);
    kill_process(Pid::from_child(&child), Signal::USR1).expect("signal");
    assert_eq!(child.wait().expect("the end").code(), Some(42));
    assert_eq!(scene.rb(&["ps", "-aq"]).ok().out, "");
}

#[test]
fn attaching_shows_what_comes_and_how_it_ends() {
    let scene = Scene::with_busybox();
    let script = "while [ ! -e /go ]; do sleep 0.05; done; echo bye; exit 3";
    let talker = Background::start(&scene, "attached", &[], script);
    let follower = scene.command(&["attach", "--no-stdin", "attached"]).stdout(Stdio::piped()).spawn().expect("start");
    // Attached or not yet: what counts is that the end is told either way, so it must be in before the end.
    std::thread::sleep(Duration::from_millis(300));
    talker.exec("touch /go").ok();
    let output = follower.wait_with_output().expect("the end");
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(3), &b"bye\n"[..]));
    scene.rb(&["attach", "attached"]).refused(1, &["stopped container"]);
}

#[test]
fn volumes_are_filled_once_and_protected_while_in_use() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\nRUN mkdir -m 750 /data && echo seed > /data/f && chown -R 33:34 /data\n");
    scene.rb(&["build", "--network", "none", "-t", "seeded", "."]).ok();
    let run = |volume: &str, script: &str| {
        scene.rb(&["run", "--rm", "--network", "none", "-v", volume, "seeded", "sh", "-c", script]).ok().out
    };
    assert_eq!(
        run("vol:/data", "cat /data/f; stat -c '%a %u:%g' /data; rm /data/f; echo > /data/g"),
        "seed\n750 33:34\n"
    );
    assert_eq!(run("vol:/data", "ls /data"), "g\n");
    assert_eq!(run("bare:/data:nocopy", "ls /data"), "");
    scene.rb(&["create", "--name", "user", "-v", "vol:/x", "busybox"]).ok();
    scene.rb(&["volume", "rm", "vol"]).refused(1, &["volume is in use"]);
    scene.rb(&["rm", "user"]).ok();
    assert_eq!(scene.rb(&["volume", "rm", "vol", "bare"]).ok().out, "vol\nbare\n");
    scene.rb(&["volume", "inspect", "vol"]).refused(1, &["no such volume"]);
}

#[test]
fn files_go_in_and_out() {
    let scene = Scene::with_busybox();
    let box_ = Background::start(&scene, "files", &["-v", "/vol"], "mkdir /d; echo in > /d/f; sleep 100");
    box_.until("test -s /d/f");
    scene.rb(&["cp", "files:/d", "out"]).ok();
    assert_eq!(std::fs::read_to_string(scene.work().join("out/f")).expect("copied"), "in\n");
    scene.write("host/x", "host");
    scene.rb(&["cp", "host", "files:/vol"]).ok();
    assert_eq!(box_.exec("cat /vol/host/x").ok().out, "host");
    // A link planted inside leads nowhere on the host.
    box_.exec("ln -s / /vol/root").ok();
    scene.rb(&["cp", "host/x", "files:/vol/root/planted"]).ok();
    assert_eq!(box_.exec("cat /planted").ok().out, "host");
    assert!(!std::path::Path::new("/planted").exists());
    scene.rb(&["stop", "-t", "0", "files"]).ok();
    scene.rb(&["cp", "files:/vol/host/x", "later"]).ok();
    assert_eq!(std::fs::read_to_string(scene.work().join("later")).expect("copied"), "host");
    scene.rb(&["cp", "files:/none", "x"]).refused(1, &["Could not find the file /none in container files"]);
}

#[test]
fn a_commit_is_the_container_as_an_image() {
    let scene = Scene::with_busybox();
    let _one = Background::start(&scene, "made", &["-e", "A=1", "--hostname", "secret"], "echo new > /new; sleep 100");
    until(|| scene.rb(&["exec", "made", "test", "-s", "/new"]).code == 0);
    scene.rb(&["commit", "-m", "why", "-c", "CMD [\"cat\", \"/new\"]", "made", "image:v1"]).ok();
    assert_eq!(scene.rb(&["run", "--rm", "--network", "none", "image:v1"]).ok().out, "new\n");
    let image = scene.inspect("image:v1");
    assert_eq!(image["RootFS"]["Layers"].as_array().map(Vec::len), Some(2));
    assert!(image["Config"]["Env"].to_string().contains("A=1"));
    assert_eq!(scene.in_image("image:v1", "cat /etc/hostname /etc/hosts 2>/dev/null | grep -c secret; true"), "0\n");
    scene.rb(&["commit", "-c", "RUN true", "made", "no"]).refused(1, &["run is not a valid change command"]);
}

#[test]
fn paused_processes_stand_still() {
    let scene = Scene::with_busybox();
    let one = Background::start(&scene, "still", &[], "while :; do date +%s%N > /now; sleep 0.02; done");
    one.until("test -s /now");
    scene.rb(&["pause", "still"]).ok();
    assert_eq!(one.field("{{.State.Status}}"), "paused");
    scene.rb(&["exec", "still", "true"]).refused(1, &["paused"]);
    let now = || {
        scene.rb(&["cp", "still:/now", "now"]).ok();
        std::fs::read_to_string(scene.work().join("now")).expect("copied")
    };
    let before = now();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(now(), before);
    scene.rb(&["unpause", "still"]).ok();
    until(|| now() != before);
    scene.rb(&["pause", "still"]).ok();
    scene.rb(&["rm", "-f", "still"]).ok();
}
