//! Containers that are looked after: their health, and being started again.

use crate::containers::{Background, until};
use crate::scene::Scene;

#[test]
fn a_failing_container_is_started_again_so_often() {
    let scene = Scene::with_busybox();
    let options = ["--restart", "on-failure:2", "-v", "lives:/lives"];
    let container = Background::start(&scene, "failing", &options, "echo life >> /lives/list; exit 3");
    until(|| container.field("{{.State.Status}}") == "exited");
    assert_eq!(container.field("{{.RestartCount}} {{.State.ExitCode}} {{.State.Restarting}}"), "2 3 false");
    let policy = "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}";
    assert_eq!(container.field(policy), "on-failure 2");
    let lives = scene.rb(&["run", "--rm", "-v", "lives:/lives", "busybox", "cat", "/lives/list"]).ok();
    assert_eq!(lives.out, "life\nlife\nlife\n");
    assert_eq!(scene.rb(&["logs", "failing"]).ok().out, "");
}

#[test]
fn success_is_no_failure() {
    let scene = Scene::with_busybox();
    let container = Background::start(&scene, "fine", &["--restart", "on-failure"], "exit 0");
    until(|| container.field("{{.State.Status}}") == "exited");
    assert_eq!(container.field("{{.RestartCount}}"), "0");
}

#[test]
fn a_container_about_to_start_again_can_be_stopped() {
    let scene = Scene::with_busybox();
    let container = Background::start(&scene, "again", &["--restart", "always"], "echo once more; exit 1");
    // Each wait is twice as long as the last: sooner or later it is seen waiting.
    until(|| scene.rb(&["ps", "--filter", "name=again", "--format", "{{.Status}}"]).out.starts_with("Restarting (1) "));
    until(|| scene.rb(&["ps", "-q", "--filter", "status=restarting"]).ok().out.lines().count() == 1);
    until(|| scene.rb(&["exec", "again", "true"]).err.contains("is restarting, wait until the container is running"));
    let refused = scene.rb(&["rm", "again"]);
    assert_eq!(refused.code, 1, "{refused:#?}");
    scene.rb(&["stop", "again"]).ok();
    assert_eq!(container.field("{{.State.Status}} {{.State.Running}}"), "exited false");
    let lives = scene.rb(&["logs", "again"]).ok().out.lines().count();
    scene.rb(&["start", "again"]).ok();
    until(|| scene.rb(&["logs", "again"]).ok().out.lines().count() > lives + 1);
    scene.rb(&["rm", "-f", "again"]).ok();
    assert_eq!(scene.rb(&["ps", "-aq"]).ok().out, "");
}

#[test]
fn a_stopped_or_killed_container_stays_down() {
    let scene = Scene::with_busybox();
    for (name, command) in [("stopped", &["stop", "-t", "0"][..]), ("killed", &["kill"][..])] {
        let container = Background::start(&scene, name, &["--restart", "unless-stopped"], "sleep 1000");
        let arguments: Vec<&str> = command.iter().copied().chain([name]).collect();
        scene.rb(&arguments).ok();
        scene.rb(&["wait", name]).ok();
        assert_eq!(container.field("{{.State.Status}} {{.RestartCount}} {{.State.ExitCode}}"), "exited 0 137");
    }
}

#[test]
fn a_container_keeps_its_network_over_restarts() {
    let scene = Scene::with_busybox();
    let script = "ip -4 -o addr show eth0 | sed 's/.*inet \\([^/]*\\).*/\\1/' >> /lives/list; exit 1";
    let options = ["--restart", "on-failure:1", "-v", "lives:/lives", "--network", "bridge"];
    let container = Background::start(&scene, "addressed", &options, script);
    until(|| container.field("{{.State.Status}}") == "exited");
    let lives = scene.rb(&["run", "--rm", "-v", "lives:/lives", "busybox", "cat", "/lives/list"]).ok().out;
    let addresses: Vec<&str> = lives.lines().collect();
    assert_eq!(addresses.len(), 2, "{lives}");
    assert!(addresses[0] == addresses[1] && addresses[0].contains('.'), "{lives}");
}

#[test]
fn health_is_found_out_shown_and_filtered() {
    let scene = Scene::with_busybox();
    let options = ["--health-cmd", "cat /well", "--health-interval", "100ms", "--health-retries", "2"];
    let container = Background::start(&scene, "patient", &options, "sleep 1000");
    let status = || scene.rb(&["ps", "--filter", "name=patient", "--format", "{{.Status}}"]).out;
    until(|| status().ends_with("(unhealthy)\n"));
    assert!(container.field("{{json .State.Health.Log}}").contains("can't open '/well'"));
    container.exec("echo feeling fine > /well").ok();
    until(|| status().ends_with("(healthy)\n"));
    assert_eq!(container.field("{{.State.Health.FailingStreak}}"), "0");
    until(|| container.field("{{json .State.Health.Log}}").contains("feeling fine"));
    for (health, count) in [("healthy", 1), ("unhealthy", 0), ("starting", 0), ("none", 0)] {
        let filter = format!("health={health}");
        assert_eq!(scene.rb(&["ps", "-q", "--filter", &filter]).ok().out.lines().count(), count, "{health}");
    }
    scene.rb(&["stop", "-t", "0", "patient"]).ok();
    assert_eq!(container.field("{{.State.Health.Status}}"), "unhealthy");
}

#[test]
fn a_probe_that_takes_too_long_has_failed() {
    let scene = Scene::with_busybox();
    let options = ["--health-cmd", "sleep 1000", "--health-interval", "10ms", "--health-timeout", "200ms"];
    let container =
        Background::start(&scene, "slow", &[&options[..], &["--health-retries", "1"]].concat(), "sleep 1000");
    until(|| container.field("{{.State.Health.Status}}") == "unhealthy");
    let log = container.field("{{json .State.Health.Log}}");
    assert!(log.contains(r#""ExitCode":-1"#) && log.contains("Health check exceeded timeout (200ms)"), "{log}");
}

#[test]
fn the_images_check_can_be_switched_off_or_changed() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\nHEALTHCHECK --interval=1h CMD true\n");
    scene.rb(&["build", "-t", "checked", "."]).ok();
    for (options, want) in [
        (&[][..], "[CMD-SHELL true] 3600000000000 0"),
        (&["--no-healthcheck"], "[NONE] 3600000000000 0"),
        (&["--health-retries", "7"], "[CMD-SHELL true] 3600000000000 7"),
    ] {
        let id = scene.rb(&[&["create"], options, &["checked", "true"]].concat()).ok().out;
        let shown = scene.rb(&["inspect", "-f", "{{json .Config.Healthcheck}}", id.trim_end()]).ok();
        let check: serde_json::Value = serde_json::from_str(&shown.out).expect("JSON");
        let test: Vec<&str> =
            check["Test"].as_array().expect("a list").iter().filter_map(|word| word.as_str()).collect();
        let shown = format!("[{}] {} {}", test.join(" "), check["Interval"], check["Retries"].as_i64().unwrap_or(0));
        assert_eq!(shown, want);
    }
}

#[test]
fn a_log_with_a_limit_keeps_its_end() {
    let scene = Scene::with_busybox();
    let options = ["--log-opt", "max-size=1k", "--log-opt", "max-file=2"];
    let script = "i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i+1)); done";
    let container = Background::start(&scene, "talker", &options, script);
    until(|| container.field("{{.State.Status}}") == "exited");
    let shown = scene.rb(&["logs", "talker"]).ok().out;
    assert!(shown.ends_with("line 98\nline 99\n") && shown.len() < 500, "{shown}");
    assert_eq!(scene.rb(&["logs", "-n", "15", "talker"]).ok().out.lines().next(), Some("line 85"));
    let config = "{{.HostConfig.LogConfig.Type}} {{index .HostConfig.LogConfig.Config \"max-file\"}}";
    assert_eq!(container.field(config), "json-file 2");
}

#[test]
fn a_log_is_compressed_and_says_whose_it_is() {
    let scene = Scene::with_busybox();
    let run = |name: &str, options: &[&str], script: &str| {
        scene
            .rb(&[&["run", "--name", name, "--network", "none"], options, &["busybox", "sh", "-c", script]].concat())
            .ok();
    };
    let options = [
        "--log-opt",
        "max-size=1k",
        "--log-opt",
        "max-file=3",
        "--log-opt",
        "compress=true",
        "--log-opt",
        "labels=a,b c",
        "--log-opt",
        "env-regex=^X",
        "--log-opt",
        "tag={{.Name}}",
        "--label",
        "a=1=2",
        "--label",
        "other=no",
        "-e",
        "XY=z",
    ];
    run("packed", &options, "seq 100");
    let shown = scene.rb(&["logs", "packed"]).ok().out;
    assert!(shown.ends_with("99\n100\n"), "{shown}");
    assert_eq!(scene.rb(&["logs", "--details", "--tail", "1", "packed"]).ok().out, "XY=z,a=1%3D2,tag=packed 100\n");
    let id = scene.rb(&["inspect", "-f", "{{.Id}}", "packed"]).ok().out;
    let directory = scene.root().join("containers").join(id.trim_end());
    assert!(directory.join("log.1.gz").exists() && directory.join("log.2.gz").exists());
    let config = "{{index .HostConfig.LogConfig.Config \"max-size\"}} {{index .HostConfig.LogConfig.Config \"tag\"}}";
    assert_eq!(scene.rb(&["inspect", "-f", config, "packed"]).ok().out, "1k {{.Name}}\n");
    run("buffered", &["--log-driver", "local", "--log-opt", "mode=non-blocking"], "seq 1000");
    assert_eq!(scene.rb(&["logs", "buffered"]).ok().out.lines().count(), 1000);
    assert_eq!(scene.rb(&["logs", "--details", "-n", "1", "buffered"]).ok().out, " 1000\n");
    assert_eq!(scene.rb(&["inspect", "-f", "{{.HostConfig.LogConfig.Type}}", "buffered"]).ok().out, "local\n");
    scene.rb(&["rm", "packed", "buffered"]).ok();
}

#[test]
fn a_container_without_a_log_has_nothing_to_show() {
    let scene = Scene::with_busybox();
    let said = scene.rb(&["run", "--name", "quiet", "--log-driver", "none", "busybox", "echo", "hello"]).ok();
    assert_eq!(said.out, "hello\n");
    let said = scene.rb(&["logs", "quiet"]);
    assert_eq!(said.code, 1);
    assert!(said.err.contains("configured logging driver does not support reading"), "{said:#?}");
}

/// Without an init a shell that is process 1 ignores TERM; orphans stay zombies.
#[test]
fn an_init_passes_signals_on_and_takes_in_orphans() {
    let scene = Scene::with_busybox();
    let script = "(sleep 0 & exec sleep 0) & wait; echo ready > /ready; exec sleep 1000";
    let container = Background::start(&scene, "cared", &["--init"], script);
    container.until("test -s /ready");
    let list = container.exec("ps -o pid,comm").ok().out;
    let processes: Vec<Vec<&str>> = list.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(processes[0], ["1", "init"], "{list}");
    assert_eq!(processes[1][1], "sleep", "{list}");
    container.until("! ps -o stat | grep -q Z");
    scene.rb(&["kill", "-s", "TERM", "cared"]).ok();
    scene.rb(&["wait", "cared"]).ok();
    assert_eq!(container.field("{{.State.ExitCode}} {{.HostConfig.Init}}"), "143 true");
    for (command, code) in [("exit 7", 7), ("kill -KILL $$", 137), ("true", 0)] {
        let said = scene.rb(&["run", "--rm", "--init", "busybox", "sh", "-c", command]);
        assert_eq!(said.code, code, "{said:#?}");
    }
    let said = scene.rb(&["run", "--rm", "--init", "busybox", "nosuchprogram"]);
    assert_eq!(said.code, 127, "{said:#?}");
    let said =
        scene.rb(&["run", "--rm", "-u", "1000", "--init", "busybox", "sh", "-c", "id -u; cat /proc/1/comm"]).ok();
    assert_eq!(said.out, "1000\ninit\n");
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let scene = Scene::with_busybox();
    for (options, message) in [
        (&["--rm", "--restart", "always"][..], "conflicting options: cannot specify both --restart and --rm"),
        (&["--restart", "sometimes"], "unknown policy 'sometimes'"),
        (&["--restart", "always:3"], "maximum retry count can only be used with 'on-failure'"),
        (&["--no-healthcheck", "--health-cmd", "true"], "--no-healthcheck conflicts with --health-* options"),
        (&["--health-interval", "1us"], "Interval in Healthcheck cannot be less than 1ms"),
        (&["--health-timeout", "soon"], "time: invalid duration \"soon\""),
        (&["--log-opt", "max-size=big"], "for log-opt \"max-size\""),
        (&["--log-opt", "nope=1"], "unknown log opt 'nope' for json-file log driver"),
        (
            &["--log-opt", "compress=true"],
            "compress cannot be true when max-file is less than 2 or max-size is not set",
        ),
        (&["--log-driver", "none", "--log-opt", "max-size=1k"], "invalid logging opts for driver none"),
        (&["--log-driver", "journald"], "the log driver journald is not supported"),
        (&["--log-opt", "tag={{.Nope}}"], "no field of a log tag"),
        (&["--log-opt", "labels-regex=("], "labels-regex"),
        (&["--health-retries", "-1"], "--health-retries cannot be negative"),
    ] {
        let said = scene.rb(&[&["run"], options, &["busybox", "true"]].concat());
        assert_eq!(said.code, 125, "{said:#?}");
        assert!(said.err.contains(message), "{message}: {said:#?}");
    }
    assert_eq!(scene.rb(&["ps", "-aq"]).ok().out, "");
}

#[test]
fn a_container_whose_directory_goes_does_not_stay() {
    let scene = Scene::with_busybox();
    let container = Background::start(&scene, "homeless", &["--restart", "always"], "sleep 1000");
    let pid = container.field("{{.State.Pid}}");
    let process = std::path::PathBuf::from(format!("/proc/{pid}"));
    assert!(process.exists());
    std::fs::remove_dir_all(scene.root().join("containers")).expect("remove");
    until(|| !process.exists());
}
