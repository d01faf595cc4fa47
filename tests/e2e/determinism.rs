//! The same project gives the same image, and only what a step uses makes it run again.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime};

use crate::scene::{Said, Scene};

/// All the instructions that make files without a process, and steps that leave no new times.
const EVERYTHING: &str = r#"# syntax=docker/dockerfile:1
FROM busybox AS stage
WORKDIR /made/on/the/way
COPY . /all/
COPY --chown=12:34 --chmod=640 dir/inner /owned/
ADD packed.tar /unpacked/
COPY <<one <<two /here/
first
one
second
two
RUN --network=none <<script
  echo text > /all/late
  touch -d @1234567890 /all/late /all
script

FROM busybox
COPY --from=stage /all /all
COPY --from=stage /here/one /moved/
RUN touch -d @1234567890 / /moved
LABEL built=twice
"#;

fn project() -> Scene {
    let scene = Scene::with_busybox();
    scene.write("dir/inner", "inner\n");
    scene.write("dir/other", "other\n");
    std::os::unix::fs::symlink("inner", scene.work().join("dir/link")).expect("symlink");
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o600);
    header.set_size(5);
    header.set_mtime(1_000_000_000);
    archive.append_data(&mut header, "deep/packed", &b"pack\n"[..]).expect("tar");
    scene.write("packed.tar", archive.into_inner().expect("tar"));
    scene.write("Dockerfile", EVERYTHING);
    scene
}

/// Two stores that share nothing, and a second in between, which would show wherever a clock got in.
#[test]
fn the_same_project_gives_the_same_image_on_two_stores() {
    let scene = project();
    let build = |root: &str| {
        let archive = crate::scene::busybox_archive().to_str().expect("UTF-8");
        scene.rb(&["--root", root, "load", "-q", "-i", archive]).ok();
        let line = ["--root", root, "build", "-q", "--no-cache", "--network", "none", "-t", "same", "."];
        let id = scene.rb(&line).ok().out;
        let save = format!("{root}.tar");
        scene.rb(&["--root", root, "save", "-o", &save, "same"]).ok();
        (id, scene.rb(&["--root", root, "inspect", "same"]).ok().out, std::fs::read(save).expect("read"))
    };
    let roots = ["first", "second"].map(|name| scene.work().join(name).display().to_string());
    // The stores lie in the context otherwise.
    scene.write(".dockerignore", "first*\nsecond*\n");
    let first = build(&roots[0]);
    std::thread::sleep(Duration::from_millis(1100));
    let second = build(&roots[1]);
    assert_eq!(first.0, second.0, "{}\n{}", first.1, second.1);
    assert!(first.2 == second.2, "the archives of the same image differ");
}

const STEPS: [&str; 4] = ["COPY one /one", "COPY dir /dir", "COPY . /all", "RUN ls /all > /list"];

fn steps() -> Scene {
    let scene = Scene::with_busybox();
    scene.write("one", "1\n");
    scene.write("dir/f", "f\n");
    scene.write("dir/g", "g\n");
    scene.write("log/x.log", "x\n");
    scene.write("Dockerfile", format!("FROM busybox\n{}\n", STEPS.join("\n")));
    scene.write(".dockerignore", "**/*.log\nDockerfile\n.dockerignore\n");
    scene
}

/// Builds; gives how many of the steps came from the cache before the first that did not.
fn hits(scene: &Scene) -> usize {
    let said: Said = scene.rb(&["build", "--network", "none", "-t", "steps", "."]).ok();
    let hits: Vec<bool> = STEPS.iter().map(|name| said.was_cached(name)).collect();
    let first_miss = hits.iter().position(|hit| !hit).unwrap_or(STEPS.len());
    // What stands on a result that changed runs again.
    assert!(hits[first_miss..].iter().all(|hit| !hit), "{hits:?}: {said:?}");
    first_miss
}

#[test]
fn a_change_misses_at_the_first_copy_that_selects_it() {
    let scene = steps();
    let at = |name: &str| scene.work().join(name);
    assert_eq!((hits(&scene), hits(&scene)), (0, 4));

    let touch = |name: &str| {
        let time = SystemTime::now() - Duration::from_secs(4711);
        std::fs::File::open(at(name)).and_then(|file| file.set_modified(time)).expect("touch");
    };
    for name in ["one", "dir/f", "dir", "."] {
        touch(name);
    }
    assert_eq!(hits(&scene), 4, "times are no content");
    scene.write("log/x.log", "changed\n");
    scene.write("log/new.log", "new\n");
    assert_eq!(hits(&scene), 4, "what is ignored is no content");

    scene.write("dir/f", "F\n");
    assert_eq!(hits(&scene), 1, "a byte");
    std::fs::set_permissions(at("dir/g"), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    assert_eq!(hits(&scene), 1, "a mode");
    std::fs::set_permissions(at("dir"), std::fs::Permissions::from_mode(0o700)).expect("chmod");
    // The modes of directories come along, but that of the one whose content is copied does not name a file.
    assert!((1..=2).contains(&hits(&scene)), "the mode of a directory");
    std::fs::rename(at("dir/g"), at("dir/h")).expect("rename");
    assert_eq!(hits(&scene), 1, "a name");
    scene.write("unselected", "new\n");
    assert_eq!(hits(&scene), 2, "a new file, of the whole context only");
    scene.write("dir/f", "f\n");
    std::fs::rename(at("dir/h"), at("dir/g")).expect("rename");
    scene.write("one", "2\n");
    assert_eq!(hits(&scene), 0);
    scene.write("one", "1\n");
    assert!(hits(&scene) >= 1, "what was there before is known");
}

/// From another stage, content decides as well: its owner too, and not the step that made it.
#[test]
fn a_copy_from_a_stage_looks_at_what_it_copies() {
    let scene = Scene::with_busybox();
    let hit = |step: &str| {
        scene
            .write("Dockerfile", format!("FROM busybox AS stage\nRUN {step}\nFROM busybox\nCOPY --from=stage /f /g\n"));
        scene.rb(&["build", "--network", "none", "-t", "copied", "."]).ok().was_cached("COPY --from=stage /f /g")
    };
    assert!(!hit("echo x > /f; touch -d @1 /f"));
    assert!(hit("echo y > /elsewhere; echo x > /f; touch -d @1 /f"), "elsewhere it may differ");
    assert!(hit("echo x > /f; touch -d @2 /f"), "another time");
    assert!(!hit("echo x > /f; chown 5:6 /f"), "another owner");
    assert_eq!(scene.in_image("copied", "stat -c %u:%g /g"), "5:6\n");
    assert!(!hit("echo x > /f; chmod 600 /f"), "another mode");
    assert!(!hit("mkdir /f"), "another kind");
}
