//! Looking at containers that run, and changing them: top, stats, update, events.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;

use crate::containers::{Background, until};
use crate::scene::Scene;

const WAITER: &str = "trap 'exit 3' USR1; while :; do sleep 0.05; done";

#[test]
fn top_shows_the_processes_of_a_container() {
    let scene = Scene::with_busybox();
    let _one = Background::start(&scene, "one", &[], "sleep 1000 & sleep 2000; true");
    until(|| scene.rb(&["top", "one"]).ok().out.lines().count() == 4);
    let out = scene.rb(&["top", "one"]).ok().out;
    let heading: Vec<&str> = out.lines().next().expect("a heading").split_whitespace().collect();
    assert_eq!(heading, ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
    let sleeper = out.lines().find(|line| line.ends_with("sleep 2000")).expect("its process");
    let pid = sleeper.split_whitespace().nth(1).expect("a pid");
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("a process of this machine");
    assert_eq!(command, "sleep\x002000\x00");
    if Path::new("/bin/ps").exists() {
        let out = scene.rb(&["container", "top", "one", "-o", "pid,args"]).ok().out;
        assert!(out.lines().next().expect("a heading").starts_with("PID "), "{out}");
        assert!(out.lines().count() == 4 && out.contains(&format!("{pid} ")), "{out}");
        scene.rb(&["top", "one", "-o", "args"]).refused(1, &["Couldn't find PID field in ps output"]);
    }
    scene.rb(&["stop", "-t", "0", "one"]).ok();
    scene.rb(&["top", "one"]).refused(1, &["is not running"]);
    scene.rb(&["top", "none"]).refused(1, &["No such container: none"]);
}

#[test]
fn stats_tell_what_is_used_of_what_is_allowed() {
    let scene = Scene::with_busybox();
    let _one = Background::start(&scene, "one", &["-m", "64m", "--network", "bridge"], "while :; do :; done");
    scene.rb(&["create", "--name", "idle", "busybox", "true"]).ok();
    let out = scene.rb(&["stats", "--no-stream", "--all"]).ok().out;
    let heading = out.lines().next().expect("a heading");
    for column in ["CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"] {
        assert!(heading.contains(column), "{heading}");
    }
    assert!(out.lines().count() == 3 && out.contains("0.00%     0B / 0B"), "{out}");
    let format = "{{.Name}} {{.Container}} {{.PIDs}} {{.MemUsage}} {{.CPUPerc}}";
    until(|| {
        let said = scene.rb(&["stats", "--no-stream", "--format", format, "one"]).ok().out;
        let words: Vec<&str> = said.split_whitespace().collect();
        assert_eq!((words[0], words[1], words[2], words[4], words[5]), ("one", "one", "1", "/", "64MiB"));
        let share: f64 = words[6].trim_end_matches('%').parse().expect("a number");
        share > 0.0 && words[3] != "0B"
    });
    assert_eq!(scene.rb(&["stats", "--no-stream", "--format", "{{.Name}}"]).ok().out, "one\n");
    scene.rb(&["stats", "--no-stream", "none"]).refused(1, &["No such container: none"]);
    scene.rb(&["stats", "--no-stream", "--format", "{{.Nope}}", "--all"]).refused(1, &["template parsing error"]);
}

/// The memory limit as the container sees it.
fn memory_limit(container: &Background<'_>) -> String {
    let files = "/sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max";
    container.exec(&format!("cat {files} 2>/dev/null")).out
}

#[test]
fn update_changes_limits_of_what_runs_and_keeps_them() {
    let scene = Scene::with_busybox();
    let one = Background::start(&scene, "one", &["-m", "32m", "--restart", "on-failure"], WAITER);
    assert_eq!(memory_limit(&one), "33554432\n");
    assert_eq!(scene.rb(&["update", "-m", "48m", "one"]).ok().out, "one\n");
    assert_eq!(memory_limit(&one), "50331648\n");
    let fields = "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.RestartCount}}";
    assert_eq!(one.field(fields), "50331648 67108864 0");
    scene.rb(&["update", "-m", "1g", "one"]).refused(1, &["Cannot update container", "already set memoryswap limit"]);
    scene.rb(&["update", "-m", "1m", "one"]).refused(1, &["Minimum memory limit allowed is 6MB"]);
    scene.rb(&["update", "one"]).refused(1, &["You must provide one or more flags"]);
    scene.rb(&["update", "--cpu-rt-period", "1", "one"]).refused(1, &["--cpu-rt-period is not supported yet"]);
    assert_eq!(one.field(fields), "50331648 67108864 0");
    // The first limit of processes and of processors: the container joins those hierarchies while it runs.
    scene.rb(&["update", "--pids-limit", "3", "--cpus", "0.5", "one"]).ok();
    assert!(one.exec("sleep 5 & sleep 5 & sleep 5 & sleep 5 & wait").code != 0, "more processes than it may have");
    scene.rb(&["update", "--cpu-quota", "1000", "one"]).refused(1, &["NanoCPUs has already been set"]);
    scene.rb(&["update", "--pids-limit", "100", "one"]).ok();
    // All of it holds in the next life too.
    one.exec("kill -USR1 1");
    until(|| one.field("{{.RestartCount}} {{.State.Running}}") == "1 true");
    assert_eq!(memory_limit(&one), "50331648\n");
}

#[test]
fn a_monitor_learns_when_to_start_its_container_again() {
    let scene = Scene::with_busybox();
    let one = Background::start(&scene, "one", &["--network", "bridge"], WAITER);
    let address = one.field("{{.NetworkSettings.IPAddress}}");
    scene.rb(&["update", "--restart", "always", "one"]).ok();
    assert_eq!(one.field("{{.HostConfig.RestartPolicy.Name}}"), "always");
    one.exec("kill -USR1 1");
    until(|| one.field("{{.RestartCount}} {{.State.Running}}") == "1 true");
    // In the network it was in before.
    assert!(one.exec("ip addr show eth0").ok().out.contains(&address));
    scene.rb(&["update", "--restart", "no", "one"]).ok();
    one.exec("kill -USR1 1");
    until(|| one.field("{{.State.Status}} {{.State.ExitCode}}") == "exited 3");
    scene.rb(&["create", "--rm", "--name", "brief", "busybox"]).ok();
    scene.rb(&["update", "--restart", "always", "brief"]).refused(1, &["AutoRemove is enabled"]);
    scene.rb(&["rm", "brief"]).ok();
}

#[test]
fn events_are_kept_and_followed() {
    let scene = Scene::with_busybox();
    let follow = ["events", "--filter", "type=container", "--filter", "label=l=x", "--format", "{{.Action}} {{.From}}"];
    let mut follower = scene.command(&follow).stdout(Stdio::piped()).spawn().expect("start");
    let mut lines = BufReader::new(follower.stdout.take().expect("its output")).lines();
    // What happens before it looks is not its business: so something has to happen until it does.
    let ready = std::thread::spawn(move || (lines.next().expect("a line").expect("text"), lines));
    let mut rounds = 0;
    while !ready.is_finished() {
        scene.rb(&["create", "--label", "l=x", "--name", "first", "busybox"]).ok();
        scene.rb(&["rm", "first"]).ok();
        rounds += 1;
        assert!(rounds < 1000, "it is told of nothing");
    }
    let (line, mut lines) = ready.join().expect("the thread");
    assert!(line == "create busybox" || line == "destroy busybox", "{line}");
    scene.rb(&["run", "-d", "--name", "web", "--label", "l=x", "-v", "data:/d", "busybox", "sleep", "1000"]).ok();
    scene.rb(&["exec", "web", "true"]).ok();
    scene.rb(&["rm", "-f", "web"]).ok();
    scene.rb(&["volume", "rm", "data"]).ok();
    let mut followed = Vec::new();
    while !followed.contains(&"die busybox".to_owned()) {
        followed.push(lines.next().expect("more").expect("text"));
    }
    assert!(followed.contains(&"start busybox".to_owned()), "{followed:?}");
    follower.kill().expect("kill");
    follower.wait().expect("the end");
    let kept = |filters: &[&str]| {
        let mut arguments = vec!["events", "--since", "0", "--until", "0s", "--format", "{{.Type}} {{.Action}}"];
        filters.iter().for_each(|filter| arguments.extend(["--filter", filter]));
        let out = scene.rb(&arguments).ok().out;
        out.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let own = ["create", "start", "exec_create: true", "exec_start: true", "exec_die", "kill", "die", "destroy"];
    let mut found = kept(&["container=web"]);
    // The end of what is executed and that it began are told by two processes.
    found.sort();
    let mut own: Vec<String> = own.iter().map(|action| format!("container {action}")).collect();
    own.sort();
    assert_eq!(found, own);
    let volume = ["volume create", "volume mount", "volume unmount", "volume destroy"];
    assert_eq!(kept(&["volume=data"]), volume);
    assert_eq!(kept(&["network=bridge"]), ["network connect", "network disconnect"]);
    assert_eq!(kept(&["type=image"]), ["image load"]);
    let json = scene.rb(&["events", "--since", "0", "--until", "0s", "--filter", "event=die", "--format", "json"]).ok();
    let json: serde_json::Value = serde_json::from_str(json.out.trim_end()).expect("one line of JSON");
    assert_eq!(json["Actor"]["Attributes"]["exitCode"], "137");
    assert_eq!((&json["status"], &json["from"], &json["scope"]), (&"die".into(), &"busybox".into(), &"local".into()));
    scene.rb(&["events", "--filter", "what=x"]).refused(1, &["invalid filter 'what'"]);
    scene.rb(&["events", "--since", "yesterday"]).refused(125, &["invalid argument"]);
}
