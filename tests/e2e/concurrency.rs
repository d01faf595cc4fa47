//! Several programs on one store at once: equal work runs once, different work does not disturb each other.

use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::scene::{Said, Scene};

fn start(scene: &Scene, line: &[&str]) -> Child {
    let mut command = scene.command(line);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

fn finish(child: Child) -> Said {
    Said::from(child.wait_with_output().expect("wait"))
}

/// Six builds of one project, started together: each step runs in one of them, and all give the same image.
#[test]
fn six_builds_of_one_project_run_each_step_once() {
    let scene = Scene::with_busybox();
    let steps =
        ["sleep 0.3; cat /proc/sys/kernel/random/uuid > /one", "sleep 0.2; cat /proc/sys/kernel/random/uuid > /two"];
    scene.write("f", "content\n");
    scene.write("Dockerfile", format!("FROM busybox\nRUN {}\nCOPY f /f\nRUN {}\n", steps[0], steps[1]));
    let tags: Vec<String> = (0..6).map(|n| format!("tag{n}")).collect();
    let children: Vec<Child> =
        tags.iter().map(|tag| start(&scene, &["build", "--network", "none", "-t", tag, "."])).collect();
    let all: Vec<Said> = children.into_iter().map(|child| finish(child).ok()).collect();
    for step in steps {
        let name = format!("RUN {step}");
        let ran = all.iter().filter(|said| !said.was_cached(&name)).count();
        assert_eq!(ran, 1, "{name}: {all:#?}");
    }
    let first = scene.inspect("tag0");
    for tag in &tags {
        assert_eq!(scene.inspect(tag)["Id"], first["Id"], "{tag}");
    }
}

/// A step that fails fails in all of them, and is not left claimed.
#[test]
fn two_builds_of_a_failing_step_both_say_so() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\nRUN sleep 0.3; echo oh-no; exit 5\n");
    let children = ["one", "two"].map(|tag| start(&scene, &["build", "--network", "none", "-t", tag, "."]));
    for child in children {
        finish(child).refused(1, &["oh-no", "exit code: 5"]);
    }
    scene.write("Dockerfile", "FROM busybox\nRUN true\n");
    scene.rb(&["build", "--network", "none", "-t", "one", "."]).ok();
}

/// Many programs may find that there is no store yet.
#[test]
fn twelve_programs_make_the_store_together() {
    let scene = Scene::new();
    let archive = crate::scene::busybox_archive().to_str().expect("UTF-8");
    let children: Vec<Child> = (0..12)
        .map(|n| match n % 3 {
            0 => start(&scene, &["images"]),
            1 => start(&scene, &["load", "-q", "-i", archive]),
            _ => start(&scene, &["ps", "-a"]),
        })
        .collect();
    for child in children {
        finish(child).ok();
    }
    assert_eq!(scene.rb(&["images", "-q"]).ok().out.lines().count(), 1);
    assert_eq!(scene.in_image("busybox", "echo whole"), "whole\n");
}

/// Builds and runs, while names come and go and everything that nothing uses is removed all the time.
#[test]
fn builds_beside_removals() {
    let scene = Scene::with_busybox();
    for n in 0..4 {
        scene.write(&format!("p{n}/f"), format!("content {n}\n"));
        scene.write(
            &format!("p{n}/Dockerfile"),
            format!("FROM busybox\nRUN echo {n} > /n\nCOPY f /f\nRUN cat /n /f > /both\n"),
        );
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                scene.rb(&["tag", "busybox", "busybox:passing"]).ok();
                scene.rb(&["rmi", "busybox:passing"]).ok();
                scene.rb(&["image", "prune", "-f"]).ok();
                // The tag may not be there yet, or in use: then it stays, which is an error but no damage.
                let _: Said = scene.rb(&["rmi", "app0"]);
                scene.rb(&["builder", "prune", "-a", "-f"]).ok();
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..3 {
                let names = ["p0", "p1", "p2", "p3"];
                let tags = ["app0", "app1", "app2", "app3"];
                let children: Vec<Child> = std::iter::zip(names, tags)
                    .map(|(path, tag)| start(&scene, &["build", "--network", "none", "-t", tag, path]))
                    .collect();
                for child in children {
                    finish(child).ok();
                }
                for (n, tag) in tags.iter().enumerate().skip(1) {
                    assert_eq!(scene.in_image(tag, "cat /both"), format!("{n}\ncontent {n}\n"));
                }
            }
        }));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    for n in 1..4 {
        assert_eq!(scene.in_image(&format!("app{n}"), "cat /f"), format!("content {n}\n"));
    }
}
