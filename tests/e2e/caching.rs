//! When a step runs again, and when not.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime};

use crate::scene::{Said, Scene};

const DOCKERFILE: &str = "FROM busybox\nCOPY a.txt /a\nCOPY b.txt /b\nRUN cat /a /b > /both\n";

fn project() -> Scene {
    let scene = Scene::with_busybox();
    scene.write("a.txt", "a\n");
    scene.write("b.txt", "b\n");
    scene.write("Dockerfile", DOCKERFILE);
    scene
}

fn build(scene: &Scene) -> Said {
    scene.rb(&["build", "--network", "none", "-t", "cached", "."]).ok()
}

/// Which of the three steps came from the cache.
fn hits(said: &Said) -> [bool; 3] {
    ["COPY a.txt /a", "COPY b.txt /b", "RUN cat /a /b > /both"].map(|name| said.was_cached(name))
}

#[test]
fn a_new_time_keeps_the_cache() {
    let scene = project();
    assert_eq!(hits(&build(&scene)), [false; 3]);
    assert_eq!(hits(&build(&scene)), [true; 3]);
    let file = std::fs::File::options().write(true).open(scene.work().join("b.txt")).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(86_400)).unwrap();
    assert_eq!(hits(&build(&scene)), [true; 3]);
}

#[test]
fn a_changed_byte_or_mode_misses_where_it_is_copied_and_an_owner_nowhere() {
    let scene = project();
    let path = scene.work().join("b.txt");
    build(&scene);
    scene.write("b.txt", "c\n");
    assert_eq!(hits(&build(&scene)), [true, false, false]);
    assert_eq!(scene.in_image("cached", "cat /both"), "a\nc\n");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(hits(&build(&scene))[..2], [true, false]);
    std::os::unix::fs::chown(&path, Some(1234), None).unwrap();
    // COPY gives root everything, so an owner changes nothing that arrives: docker keeps the cache too.
    assert_eq!(hits(&build(&scene)), [true; 3]);
    scene.write("unrelated.txt", "x");
    assert_eq!(hits(&build(&scene)), [true; 3]);
}

#[test]
fn no_cache_runs_everything_and_gives_the_same_image() {
    let scene = project();
    scene.write("Dockerfile", "FROM busybox\nCOPY a.txt /a\nRUN touch -d @1000000000 / /a\n");
    let id = |scene: &Scene| scene.inspect("cached")["Id"].as_str().unwrap().to_owned();
    build(&scene);
    let first = id(&scene);
    let said = scene.rb(&["build", "--no-cache", "--network", "none", "-t", "cached", "."]).ok();
    assert!(!said.was_cached("COPY a.txt /a") && !said.was_cached("RUN touch -d @1000000000 / /a"), "{said:?}");
    assert_eq!(id(&scene), first);

    let other = project();
    other.write("Dockerfile", "FROM busybox\nCOPY a.txt /a\nRUN touch -d @1000000000 / /a\n");
    let mtime = std::fs::metadata(scene.work().join("a.txt")).unwrap().modified().unwrap();
    std::fs::File::options().write(true).open(other.work().join("a.txt")).unwrap().set_modified(mtime).unwrap();
    build(&other);
    assert_eq!(id(&other), first, "another store, the same image");
}

/// Two programs that start together do the work once, or at least do not harm each other.
#[test]
fn two_builds_at_once_share_their_work() {
    let scene = project();
    scene.write("Dockerfile", "FROM busybox\nRUN sleep 1; cat /proc/sys/kernel/random/uuid > /id\n");
    let start = |tag: &str| {
        let mut command = scene.command(&["build", "--network", "none", "-t", tag, "."]);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let children = [start("one"), start("two")];
    for child in children {
        Said::from(child.wait_with_output().unwrap()).ok();
    }
    let id = |image: &str| scene.in_image(image, "cat /id");
    assert_eq!(id("one"), id("two"), "the step ran once");
}

/// Each stage waits until all of them are there: one after the other they would wait in vain.
#[test]
fn independent_stages_run_at_the_same_time() {
    let scene = Scene::with_busybox();
    let wait = "n=0; while [ $(ls /c | wc -l) -lt 6 ]; do n=$((n+1)); [ $n -lt 600 ] || exit 1; sleep 0.1; done";
    let mut text = String::new();
    for n in 0..6 {
        text.push_str(&format!(
            "FROM busybox AS s{n}\nRUN --mount=type=cache,target=/c touch /c/{n}; {wait}; echo {n} > /f\n"
        ));
    }
    text.push_str("FROM busybox\n");
    for n in 0..6 {
        text.push_str(&format!("COPY --from=s{n} /f /f{n}\n"));
    }
    scene.write("Dockerfile", text);
    scene.rb(&["build", "--network", "none", "--jobs", "6", "-t", "wide", "."]).ok();
    assert_eq!(scene.in_image("wide", "cat /f?"), "0\n1\n2\n3\n4\n5\n");
}

/// A `--link` layer does not know what it lies on: with another base it is a hit, and ships as the same bytes.
#[test]
fn a_linked_copy_keeps_its_layer_on_another_base() {
    let scene = Scene::with_busybox();
    scene.write("f", "x\n");
    scene.write("d/g", "y\n");
    let steps = [
        ("RUN true", "COPY --link f /a/b/f"),
        // In its way: a file, a directory, a link; the same file; the same directory with another mode.
        ("RUN mkdir /a && echo other > /a/b", "COPY --link f /a/b/f"),
        ("RUN mkdir -p /a/b/f/g", "COPY --link f /a/b/f"),
        ("RUN mkdir /real && ln -s real /a", "COPY --link f /a/b/f"),
        ("RUN --mount=type=bind,target=/c mkdir -p /a/b && cp -p /c/f /a/b", "COPY --link f /a/b/f"),
        ("RUN mkdir -m 700 /a", "COPY --link f /a/b/f"),
    ];
    let mut layers = Vec::new();
    for (n, (below, copy)) in steps.iter().enumerate() {
        scene.write("Dockerfile", format!("FROM busybox\n{below}\n{copy}\n"));
        let said = scene.rb(&["build", "--network", "none", "-t", "linked", "."]).ok();
        assert_eq!(said.was_cached(copy), n > 0, "{below}: {said:?}");
        assert_eq!(scene.in_image("linked", "cat /a/b/f"), "x\n", "{below}");
        let ids = scene.inspect("linked")["RootFS"]["Layers"].as_array().unwrap().clone();
        layers.push(ids.last().unwrap().clone());
    }
    assert!(layers.iter().all(|layer| *layer == layers[0]), "{layers:?}");
    assert_eq!(scene.in_image("linked", "stat -c %a /a"), "755\n", "as unpacking the layer has it");
    scene.rb(&["builder", "prune", "-a", "-f"]).ok();
    scene.rb(&["save", "-o", "linked.tar", "linked"]).ok();
    scene.rb(&["rmi", "-f", "linked"]).ok();
    scene.rb(&["load", "-i", "linked.tar"]).ok();
    assert_eq!(scene.in_image("linked", "cat /a/b/f"), "x\n", "the layer's own tree was kept for its bytes");
}

/// Names are looked up in the tree below, and only what they stand for counts.
#[test]
fn a_linked_copy_counts_only_the_numbers_of_its_owner() {
    let scene = Scene::with_busybox();
    scene.write("f", "x\n");
    let build = |below: &str| {
        scene.write("Dockerfile", format!("FROM busybox\nRUN {below}\nCOPY --link --chown=app f /f\n"));
        let said = scene.rb(&["build", "--network", "none", "-t", "owned", "."]).ok();
        (said.was_cached("COPY --link --chown=app f /f"), scene.in_image("owned", "stat -c %u:%g /f"))
    };
    assert_eq!(build("echo app:x:7:8::/:/bin/sh >> /etc/passwd"), (false, "7:8\n".into()));
    assert!(build("echo x:x:5:5::/:/bin/sh >> /etc/passwd; echo app:x:7:8::/:/bin/sh >> /etc/passwd").0);
    assert_eq!(build("echo app:x:7:9::/:/bin/sh >> /etc/passwd"), (false, "7:9\n".into()));
}
