//! Stopping the program in the middle: nothing keeps running, and the next command works.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::scene::Scene;

/// Starts a build and waits until its step has said `ready`.
fn started_build(scene: &Scene, extra: &[&str]) -> Child {
    scene.write("Dockerfile", "FROM busybox\nRUN echo is-ready; sleep 1000\n");
    let mut arguments = vec!["build"];
    arguments.extend(extra);
    arguments.extend(["-t", "never", "."]);
    let mut child = scene.command(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut seen = Vec::new();
    let ready = loop {
        let Some(Ok(line)) = lines.next() else { break false };
        let is_ready = line.ends_with(" is-ready") && !line.contains("RUN");
        seen.push(line);
        if is_ready {
            break true;
        }
    };
    if !ready {
        let status = child.wait();
        panic!("the step never ran, {status:?}: {seen:#?}");
    }
    // Reading goes on, so that the program never blocks on a full pipe.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn works_after(scene: &Scene) {
    scene.settle();
    scene.rb(&["image", "inspect", "never"]).refused(1, &["never"]);
    scene.write("Dockerfile", "FROM busybox\nRUN echo again > /again\n");
    scene.rb(&["build", "-t", "again", "."]).ok();
    assert_eq!(scene.in_image("again", "cat /again"), "again\n");
}

#[test]
fn ctrl_c_ends_a_step_and_all_it_started() {
    let scene = Scene::alone_with_busybox();
    let mut child = started_build(&scene, &[]);
    signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    works_after(&scene);
}

#[test]
fn a_terminated_build_says_so_in_its_code() {
    let scene = Scene::alone_with_busybox();
    let mut child = started_build(&scene, &["--network", "none"]);
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    works_after(&scene);
}

/// What a killed program cannot clear away, the next one does.
#[test]
fn a_killed_build_leaves_nothing_that_lives() {
    let scene = Scene::alone_with_busybox();
    let mut child = started_build(&scene, &[]);
    signal(&child, Signal::KILL);
    child.wait().unwrap();
    scene.write("Dockerfile", "FROM busybox\nRUN echo next > /next\n");
    scene.rb(&["build", "-t", "next", "."]).ok();
    works_after(&scene);
}

#[test]
fn a_killed_load_leaves_a_store_that_works() {
    let scene = Scene::alone_with_busybox();
    let archive = crate::scene::busybox_archive().to_str().unwrap();
    for milliseconds in [1, 4, 8, 12, 16, 24, 32] {
        let other = scene.work().join(format!("root{milliseconds}"));
        let other = other.to_str().unwrap();
        let mut child =
            scene.command(&["--root", other, "load", "-q", "-i", archive]).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        signal(&child, Signal::KILL);
        child.wait().unwrap();
        scene.rb(&["--root", other, "load", "-q", "-i", archive]).ok();
        let said = scene.rb(&["--root", other, "run", "--rm", "--network", "none", "busybox", "echo", "whole"]).ok();
        assert_eq!(said.out, "whole\n");
    }
}

#[test]
fn a_killed_copy_leaves_a_store_that_works() {
    let scene = Scene::alone_with_busybox();
    for n in 0..2000 {
        scene.write(&format!("files/d{}/f{n}", n % 20), format!("{n}\n"));
    }
    let dockerfile = "FROM busybox\nCOPY files /files\n";
    scene.write("Dockerfile", dockerfile);
    for milliseconds in [5, 15, 30, 60] {
        let mut child =
            scene.command(&["build", "--no-cache", "-t", "never", "."]).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        signal(&child, Signal::KILL);
        child.wait().unwrap();
    }
    scene.rb(&["build", "-t", "copied", "."]).ok();
    assert_eq!(scene.in_image("copied", "find /files -type f | wc -l").trim(), "2000");
}
