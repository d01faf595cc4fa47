//! What is kept of builds, and what is said about why their steps ran.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::scene::{Said, Scene};

const DOCKERFILE: &str = "FROM busybox AS build\nARG VERSION=1.2\nENV MODE=fast\nCOPY src/ /src/\n\
    RUN --mount=type=secret,id=token echo $VERSION > /v; cat /src/* > /all\n\
    FROM busybox\nCOPY --from=build /all /all\nCOPY --link src/a.c /x/a.c\nRUN cat /all\n";

fn project() -> Scene {
    let scene = Scene::with_busybox();
    scene.write("src/a.c", "a\n");
    scene.write("src/b.c", "b\n");
    scene.write("token", "hunter2");
    scene.write("Dockerfile", DOCKERFILE);
    scene
}

fn build(scene: &Scene, more: &[&str]) -> Said {
    let secret = ["build", "--network", "none", "--secret", "id=token,src=token", "--explain"];
    scene.rb(&[&secret[..], more, &["-t", "x", "."]].concat())
}

/// The causes of the step whose name ends so, as the last build explains them.
fn why(scene: &Scene, name: &str) -> Vec<String> {
    let said = scene.rb(&["explain", "--format", "json"]).ok();
    let all: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let step = all["steps"].as_array().unwrap().iter().find(|step| step["name"].as_str().unwrap().ends_with(name));
    let causes = step.unwrap_or_else(|| panic!("no step {name}: {all:#}"))["causes"].as_array().cloned();
    causes.unwrap_or_default().iter().map(|cause| cause["text"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_step_is_explained_in_a_users_words() {
    let scene = project();
    build(&scene, &[]).ok().says(&["nothing like it ran here before"]);
    build(&scene, &[]).ok().says(&["Every step came from the cache."]);
    scene.rb(&["explain", "--step", "2"]).ok();
    let said = scene.rb(&["explain"]).ok();
    assert!(said.out.contains("hit") && said.out.contains("made on this machine"), "{said:?}");

    scene.write("src/a.c", "changed\n");
    scene.write("src/new.c", "new\n");
    build(&scene, &[]).ok().says(&["2 files changed: src/a.c, src/new.c (added)"]);
    assert_eq!(why(&scene, "COPY src/ /src/"), ["2 files changed: src/a.c, src/new.c (added)"]);
    assert_eq!(why(&scene, "COPY --link src/a.c /x/a.c")[0], "src/a.c changed");
    let last = why(&scene, "RUN cat /all");
    assert!(last[0].starts_with("the step before it ran again: "), "{last:?}");

    build(&scene, &["--build-arg", "VERSION=1.3"]).ok().says(&["ARG VERSION 1.2 → 1.3"]);
    scene.write("Dockerfile", DOCKERFILE.replace("MODE=fast", "MODE=slow"));
    build(&scene, &["--build-arg", "VERSION=1.3"]).ok().says(&["ENV MODE fast → slow"]);
    scene.write("Dockerfile", DOCKERFILE.replace("RUN cat /all", "RUN --network=none cat /all /v"));
    build(&scene, &[]).refused(1, &["command changed: cat /all → cat /all /v"]);
    build(&scene, &[]).refused(1, &["the same failed the last time"]);
    scene.write("Dockerfile", DOCKERFILE);
    build(&scene, &["--no-cache"]).ok().says(&["--no-cache was given"]);
    scene.rb(&["builder", "prune", "-af"]).ok();
    build(&scene, &["--target", "build"]).ok().says(&["its result was removed from the cache"]);
    let said = scene.rb(&["explain", "--format", "json"]).ok();
    let inspected = scene.rb(&["builds", "inspect", "--format", "json"]).ok();
    assert!(!said.out.contains("hunter2") && !inspected.out.contains("hunter2"));
    scene.rb(&["explain", "--step", "99"]).refused(1, &["no step 99"]);
}

/// A base image is named by what its name stood for.
#[test]
fn a_base_image_that_moved_is_named() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM base\nRUN true\n");
    scene.rb(&["tag", "busybox", "base"]).ok();
    scene.rb(&["build", "--network", "none", "-t", "x", "."]).ok();
    let other =
        scene.rb_with_input(&["build", "-q", "--network", "none", "-t", "base", "-"], b"FROM busybox\nRUN echo > /f\n");
    other.ok();
    scene.rb(&["build", "--network", "none", "-t", "x", "."]).ok();
    let causes = why(&scene, "RUN true");
    assert!(causes[0].starts_with("base image base:latest moved from sha256:"), "{causes:?}");
}

#[test]
fn builds_are_listed_inspected_and_removed() {
    let scene = project();
    scene.rb(&["builds", "inspect"]).refused(1, &["no build is in the history yet"]);
    build(&scene, &["--build-arg", "VERSION=7", "--label", "l=v"]).ok();
    scene.write("Dockerfile", "FROM busybox\nRUN echo said; echo complaint >&2; exit 3\n");
    build(&scene, &[]).refused(1, &["exit code: 3"]);
    for group in [&["builds"][..], &["buildx", "history"]] {
        let rb = |more: &[&str]| scene.rb(&[group, more].concat());
        let listed = rb(&["ls", "--format", "{{.Name}} {{.Status}}"]).ok().out;
        assert_eq!(listed, "work Error\nwork Completed\n");
        let table = rb(&["ls"]).ok().out;
        assert!(table.starts_with("BUILD ID"), "{table}");
        assert_eq!(rb(&["ls", "-q", "--filter", "status=error"]).ok().out.lines().count(), 1);
        rb(&["ls", "--filter", "colour=red"]).refused(1, &["invalid filter \"colour=red\""]);
        let line: serde_json::Value =
            serde_json::from_str(rb(&["ls", "--format", "json"]).ok().out.lines().last().unwrap()).unwrap();
        assert_eq!((line["status"].as_str(), line["total_steps"].as_u64()), (Some("Completed"), Some(7)));
        let text = rb(&["inspect", "^1"]).ok().out;
        for part in ["VERSION", "Build Steps:", "busybox:latest", "[build 2/3] COPY src/ /src/"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let id = rb(&["ls", "-q"]).ok().out.lines().next().unwrap().to_owned();
        let failed: serde_json::Value =
            serde_json::from_str(&rb(&["inspect", &id[..id.len() - 2], "--format", "json"]).ok().out).unwrap();
        assert_eq!(failed["Status"], "error");
        assert!(failed["Error"]["Message"].as_str().unwrap().contains("exit code: 3"), "{failed:#}");
        let logs = rb(&["logs", &format!("default/default/{id}")]).ok();
        assert!(logs.err.contains("said") && logs.err.contains("complaint"), "{logs:?}");
        rb(&["inspect", "nothing"]).refused(1, &["no build \"nothing\" in the history"]);
    }
    scene.rb(&["buildx", "history", "open"]).refused(1, &["not supported"]);
    let attachment = ["buildx", "history", "inspect", "attachment", "^0", "sha256:0"];
    scene.rb(&attachment).refused(1, &["inspect attachment is not supported"]);
    scene.rb(&["buildx", "history", "inspect", "^0", "^1"]).refused(1, &["inspect takes one build"]);
    scene.rb(&["builds", "rm"]).refused(1, &["rm requires at least one argument"]);
    scene.rb(&["builds", "rm", "--all", "^0"]).refused(1, &["rm requires either --all or at least one argument"]);
    scene.rb(&["builds", "rm", "^0"]).ok();
    assert_eq!(scene.rb(&["builds", "ls", "-q"]).ok().out.lines().count(), 1);
    scene.rb(&["builds", "prune", "-f"]).ok();
    assert_eq!(scene.rb(&["buildx", "history", "ls", "-q"]).ok().out, "");
    assert_eq!(std::fs::read_dir(scene.root().join("builds")).unwrap().count(), 0, "logs stay behind");
}

/// Running is what lives: seen from another process while it goes on, and not after it was killed.
#[test]
fn a_build_that_runs_is_followed_and_one_that_was_killed_does_not_run() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\nRUN echo begun; sleep 600\n");
    let mut command = scene.command(&["build", "--network", "none", "."]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !scene.rb(&["builds", "logs"]).err.contains("begun") {
        assert!(start.elapsed() < Duration::from_secs(120), "the step never spoke");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(scene.rb(&["builds", "ls", "--format", "{{.Status}}"]).ok().out, "Running\n");
    scene.rb(&["builds", "rm", "^0"]).refused(1, &["is running"]);
    let mut command = scene.command(&["builds", "logs", "-f"]);
    let follower = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let followed = Said::from(follower.wait_with_output().unwrap()).ok();
    assert!(followed.err.contains("begun"), "{followed:?}");
    assert_eq!(scene.rb(&["builds", "ls", "--format", "{{.Status}}"]).ok().out, "Error\n");
    let text = scene.rb(&["builds", "inspect"]).ok().out;
    assert!(text.contains("the build was killed"), "{text}");
    scene.settle();
}
