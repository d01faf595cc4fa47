//! `system check`: what is damaged is found, named and contained, and after a repair made again.

use std::path::PathBuf;

use crate::scene::Scene;

/// A store with an image that was loaded and one that was built on it, and the only file of each kind that matters.
fn furnished() -> Scene {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\nRUN echo made > /made\nRUN echo more > /more\n");
    scene.rb(&["build", "-q", "--network", "none", "-t", "made", "."]).ok();
    scene.rb(&["run", "--network", "none", "-v", "data:/data", "--name", "held", "busybox", "true"]).ok();
    scene
}

fn only(scene: &Scene, under: &str, has: &str) -> PathBuf {
    let found: Vec<PathBuf> = std::fs::read_dir(scene.root().join(under))
        .expect("read")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.join(has).exists())
        .collect();
    assert_eq!(found.len(), 1, "{under} with {has}: {found:?}");
    found[0].clone()
}

#[test]
fn a_whole_store_is_whole() {
    let scene = furnished();
    for line in [&["system", "check"][..], &["system", "check", "--deep"], &["system", "check", "--repair"]] {
        let said = scene.rb(line).ok();
        assert!(said.out.ends_with("Nothing is damaged.\n") && said.out.starts_with("Checked "), "{said:?}");
    }
    scene.rb(&["rm", "held"]).ok();
    assert_eq!(scene.in_image("made", "cat /made /more"), "made\nmore\n");
}

/// What is damaged, whether only a deep check finds it, how it comes about, and what is said of it.
type Damage = (&'static str, bool, fn(&Scene), &'static [&'static str]);

/// Each kind of damage: found by its name, repaired, and what was lost can be made again; the rest stays.
#[test]
fn damage_is_found_and_forgotten() {
    let damages: [Damage; 6] = [
        (
            "a blob's content",
            false,
            |scene| {
                let id = scene.inspect("made")["Id"].as_str().expect("an id").replace("sha256:", "blobs/sha256/");
                let path = scene.root().join(id);
                let mut bytes = std::fs::read(&path).expect("read");
                bytes[10] ^= 1;
                std::fs::write(path, bytes).expect("write");
            },
            &["blob sha256:", "another digest", "image docker.io/library/made:latest"],
        ),
        (
            "a blob's length",
            false,
            |scene| {
                let id = scene.inspect("made")["Id"].as_str().expect("an id").replace("sha256:", "blobs/sha256/");
                std::fs::write(scene.root().join(id), "short").expect("write");
            },
            &["5 bytes instead of", "made:latest"],
        ),
        (
            "a blob's file",
            false,
            |scene| {
                let id = scene.inspect("made")["Id"].as_str().expect("an id").replace("sha256:", "blobs/sha256/");
                std::fs::remove_file(scene.root().join(id)).expect("remove");
            },
            &["its file is gone", "made:latest"],
        ),
        (
            "a file tree",
            false,
            |scene| std::fs::remove_dir_all(only(scene, "snapshots", "fs/made")).expect("remove"),
            &["its directory is gone", "which is damaged", "made:latest", "of a build step"],
        ),
        (
            "a file in a file tree",
            true,
            |scene| std::fs::write(only(scene, "snapshots", "fs/made").join("fs/made"), "other").expect("write"),
            &["no longer those of layer", "made:latest"],
        ),
        (
            "a volume",
            false,
            |scene| std::fs::remove_dir_all(scene.root().join("volumes/data")).expect("remove"),
            &["volume data"],
        ),
    ];
    for (what, deep, damage, words) in damages {
        let scene = furnished();
        damage(&scene);
        let check: &[&str] = if deep { &["system", "check", "--deep"] } else { &["system", "check"] };
        let said = scene.rb(check).refused(1, &["damaged", "hint: ", "--repair"]);
        for word in words {
            assert!(said.out.contains(word), "{what} should say {word:?}: {said:?}");
        }
        let said = scene.rb(&[check, &["--repair"]].concat()).ok();
        assert!(said.out.contains("forgotten"), "{what}: {said:?}");
        let said = scene.rb(&["system", "check", "--deep"]).ok();
        assert!(said.out.ends_with("Nothing is damaged.\n"), "{what}: {said:?}");
        // What was not touched works on, and what was is made again.
        assert_eq!(scene.in_image("busybox", "echo whole"), "whole\n");
        scene.rb(&["build", "-q", "--network", "none", "-t", "made", "."]).ok();
        assert_eq!(scene.in_image("made", "cat /made /more"), "made\nmore\n", "{what}");
        scene.rb(&["rm", "held"]).ok();
    }
}

/// What a container stands on is not taken from it, and files of dead processes are no damage.
#[test]
fn containers_are_not_forgotten() {
    let scene = furnished();
    std::fs::create_dir_all(scene.root().join("snapshots/zzz/fs")).expect("mkdir");
    std::fs::create_dir_all(scene.root().join("ingest/1x1")).expect("mkdir");
    let said = scene.rb(&["system", "check"]).ok();
    for word in ["harmless: snapshots/zzz\n", "harmless: ingest/1x1\n", "Nothing is damaged.\n"] {
        assert!(said.out.contains(word), "{said:?}");
    }
    scene.rb(&["system", "check", "--repair"]).ok();
    let said = scene.rb(&["system", "check"]).ok();
    assert!(!said.out.contains("harmless"), "{said:?}");
    std::fs::remove_dir_all(only(&scene, "snapshots", "fs/bin/busybox")).expect("remove");
    let said = scene.rb(&["system", "check", "--repair"]).refused(1, &["cannot be repaired"]);
    assert!(said.out.contains("what it wrote itself is still there"), "{said:?}");
    scene.rb(&["inspect", "held"]).ok();
    scene.rb(&["rm", "held"]).ok();
    scene.rb(&["system", "check", "--repair"]).ok();
    let archive = crate::scene::busybox_archive().to_str().expect("UTF-8");
    scene.rb(&["load", "-q", "-i", archive]).ok();
    assert_eq!(scene.in_image("busybox", "echo again"), "again\n");
    scene.rb(&["system", "check", "--deep"]).ok();
}
