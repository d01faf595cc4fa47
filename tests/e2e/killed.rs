//! Whatever of a container is killed, what is said of it afterwards is true, and the next command works.

use std::path::Path;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::containers::until;
use crate::scene::Scene;

/// How often; a hundred times by hand now and then.
const ROUNDS: usize = 12;

/// What is killed at once, of a container in the background.
#[derive(Debug, Clone, Copy)]
struct Victims {
    monitor: bool,
    supervisor: bool,
    init: bool,
}

const VICTIMS: [Victims; 6] = [
    Victims { monitor: true, supervisor: false, init: false },
    Victims { monitor: false, supervisor: true, init: false },
    Victims { monitor: false, supervisor: false, init: true },
    Victims { monitor: true, supervisor: true, init: true },
    Victims { monitor: true, supervisor: false, init: true },
    Victims { monitor: true, supervisor: true, init: false },
];

const WAYS: [&[&str]; 4] = [
    &["--network", "none"],
    &["--network", "bridge", "-p", "127.0.0.1::80", "-m", "64m"],
    &["--network", "bridge", "--restart", "always"],
    &["--network", "none", "--pids-limit", "50", "-v", "/data"],
];

fn kill(pid: i32) {
    // It may have gone with another one.
    let _ = kill_process(Pid::from_raw(pid).expect("a pid"), Signal::KILL);
}

fn parent(pid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a living process");
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("a parent");
    line.trim().parse().expect("a number")
}

fn is_gone(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().all(|line| !line.starts_with("State:") || line.contains('Z'))
}

/// Status and first process, as `inspect` tells them.
fn told(scene: &Scene, name: &str) -> (String, i32) {
    let said = scene.rb(&["container", "inspect", "-f", "{{.State.Status}} {{.State.Pid}}", name]).ok().out;
    let (status, pid) = said.trim_end().split_once(' ').expect("two words");
    (status.to_owned(), pid.parse().expect("a number"))
}

/// Looks until it runs anew or has ended, and says which of the two is true of the machine.
fn settled(scene: &Scene, name: &str, before: i32) -> String {
    let mut now = (String::new(), 0);
    until(|| {
        now = told(scene, name);
        match now.0.as_str() {
            "running" => now.1 != before && Path::new(&format!("/proc/{}", now.1)).exists(),
            "exited" => now.1 == 0 && is_gone(before),
            _ => false,
        }
    });
    now.0
}

#[test]
fn what_is_said_of_containers_is_true_whatever_was_killed() {
    let scene = Scene::alone_with_busybox();
    for round in 0..ROUNDS {
        let (victims, options) = (VICTIMS[round % VICTIMS.len()], WAYS[(round + round / WAYS.len()) % WAYS.len()]);
        let mut arguments = vec!["run", "-d", "--name", "victim"];
        arguments.extend(options);
        arguments.extend(["busybox", "sleep", "1000"]);
        scene.rb(&arguments).ok();
        let (_, init) = told(&scene, "victim");
        let supervisor = parent(init);
        let monitor = parent(supervisor);
        let all = [(victims.monitor, monitor), (victims.supervisor, supervisor), (victims.init, init)];
        all.iter().filter(|(chosen, _)| *chosen).for_each(|(_, pid)| kill(*pid));
        let status = settled(&scene, "victim", init);
        // Only a living monitor starts it again.
        let again = options.contains(&"always") && !victims.monitor;
        assert_eq!(status == "running", again, "{victims:?} {options:?}");
        let listed = scene.rb(&["ps", "-aq", "--filter", &format!("status={status}")]).ok().out;
        assert_eq!(listed.lines().count(), 1, "{victims:?} {options:?}");
        scene.rb(&["start", "victim"]).ok();
        scene.rb(&["exec", "victim", "true"]).ok();
        assert_eq!(scene.rb(&["rm", "-fv", "victim"]).ok().out, "victim\n");
    }
    assert_eq!(scene.rb(&["ps", "-aq"]).ok().out, "");
    scene.settle();
}

/// A monitor that is asked to end, as all processes are when the machine stops, ends its container in order, and the
/// container is one of those that start with the machine.
#[test]
fn a_monitor_that_is_told_to_end_stops_its_container_but_not_for_good() {
    let scene = Scene::alone_with_busybox();
    let script = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let run = ["run", "-d", "--name", "one", "--network", "none", "--restart", "unless-stopped", "busybox", "sh", "-c"];
    scene.rb(&[&run[..], &[script]].concat()).ok();
    until(|| scene.rb(&["logs", "one"]).ok().out == "ready\n");
    let (_, init) = told(&scene, "one");
    let monitor = Pid::from_raw(parent(parent(init))).expect("a pid");
    kill_process(monitor, Signal::TERM).expect("kill");
    until(|| told(&scene, "one").0 == "exited");
    assert_eq!(scene.rb(&["container", "inspect", "-f", "{{.State.ExitCode}}", "one"]).ok().out, "7\n");
    assert_eq!(scene.rb(&["logs", "one"]).ok().out, "ready\nbye\n");
    let boot = ["--filter", "should-start-on-boot=true"];
    assert_eq!(scene.rb(&[&["ps", "-aq"], &boot[..]].concat()).ok().out.lines().count(), 1);
    scene.rb(&[&["start", "--all"], &boot[..]].concat()).ok();
    assert_eq!(told(&scene, "one").0, "running");
    scene.rb(&["stop", "one"]).ok();
    assert_eq!(scene.rb(&[&["ps", "-aq"], &boot[..]].concat()).ok().out, "", "stopped by hand");
    scene.rb(&["rm", "one"]).ok();
    scene.settle();
}

fn started(scene: &Scene, arguments: &[&str]) -> Child {
    scene.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start")
}

/// Commands killed in the middle, at moments that the machine's load chooses.
#[test]
fn killed_commands_leave_containers_that_can_be_used() {
    let scene = Scene::alone_with_busybox();
    for round in 0..ROUNDS {
        let name = format!("c{round}");
        let mut command = match round % 3 {
            0 => started(&scene, &["run", "-d", "--name", &name, "busybox", "sleep", "1000"]),
            1 => started(&scene, &["run", "--rm", "--name", &name, "busybox", "sleep", "1000"]),
            _ => {
                scene.rb(&["run", "-d", "--name", &name, "--network", "none", "busybox", "sleep", "1000"]).ok();
                started(&scene, &["rm", "-f", &name])
            }
        };
        // From at once to when its row is there.
        if round % 2 == 0 {
            until(|| {
                round % 3 == 2 || !scene.rb(&["ps", "-aq", "--filter", &format!("name={name}")]).ok().out.is_empty()
            });
        }
        drop(command.kill());
        command.wait().expect("the end");
        // It is there, in whatever state, or it is not; the name can be had either way.
        scene.rb(&["rm", "-f", &name]);
        scene.rb(&["run", "--rm", "--name", &name, "--network", "none", "busybox", "true"]).ok();
    }
    until(|| scene.rb(&["ps", "-aq"]).ok().out.is_empty());
    scene.settle();
}
