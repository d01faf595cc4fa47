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
    assert_eq!(scene.rb(&["ps", "-q", "--filter", "status=restarting"]).ok().out.lines().count(), 1);
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
fn options_that_make_no_sense_are_refused() {
    let scene = Scene::with_busybox();
    for (options, message) in [
        (&["--rm", "--restart", "always"][..], "conflicting options: cannot specify both --restart and --rm"),
        (&["--restart", "sometimes"], "unknown policy 'sometimes'"),
        (&["--restart", "always:3"], "maximum retry count can only be used with 'on-failure'"),
        (&["--no-healthcheck", "--health-cmd", "true"], "--no-healthcheck conflicts with --health-* options"),
        (&["--health-interval", "1us"], "Interval in Healthcheck cannot be less than 1ms"),
        (&["--health-timeout", "soon"], "time: invalid duration \"soon\""),
        (&["--health-retries", "-1"], "--health-retries cannot be negative"),
    ] {
        let said = scene.rb(&[&["run"], options, &["busybox", "true"]].concat());
        assert_eq!(said.code, 125, "{said:#?}");
        assert!(said.err.contains(message), "{message}: {said:#?}");
    }
    assert_eq!(scene.rb(&["ps", "-aq"]).ok().out, "");
}
