//! Whatever is wrong with what rbuild is given: a clear error, exit code 1 or 125, and a store that still works.

use crate::scene::{Scene, busybox_archive};

#[test]
fn dockerfiles_that_are_wrong() {
    let scene = Scene::with_busybox();
    for (text, words) in [
        (&b""[..], &["empty"][..]),
        (b"# only a comment\n", &["no instructions"]),
        (b"RUN echo x\nFROM busybox\n", &["Dockerfile:1"]),
        (
            b"FROM busybox\nRUNN echo x\n",
            &["Dockerfile:2", "2 | >>> RUNN echo x", "unknown instruction", "RUNN", "RUN"],
        ),
        (b"FROM ${NOPE}\nRUN true\n", &["Dockerfile:1", "NOPE"]),
        (b"FROM busybox\nCOPY nope.txt /\n", &["nope.txt", "not found", "Dockerfile:2"]),
        (b"FROM busybox AS self\nCOPY --from=self /etc/passwd /x\n", &["self", "Dockerfile:2"]),
        (b"FROM a AS b\nFROM b AS a\nRUN true\n", &["a"]),
        (b"FROM busybox\nRUN echo \xff\xfe\n", &["UTF-8"]),
        (b"FROM busybox\nRUN --security=insecure true\n", &["insecure", "not allowed"]),
        (b"FROM busybox\nRUN --nope=x true\n", &["unknown flag", "nope"]),
    ] {
        scene.write("Dockerfile", text);
        scene.rb(&["build", "--network", "none", "-t", "bad", "."]).refused(1, words);
        scene.rb(&["image", "inspect", "bad"]).refused(1, &["bad"]);
    }
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\nRUNN echo x\nENV\nEXPOSE what\n");
    scene.rb(&["build", "."]).refused(1, &["Dockerfile:2", "Dockerfile:3", "RUNN", "ENV"]);
}

#[test]
fn contexts_that_are_wrong() {
    let scene = Scene::with_busybox();
    scene.rb(&["build", "missing"]).refused(1, &["unable to prepare context: path \"missing\" not found"]);
    let file = scene.write("file", "x");
    scene.rb(&["build", file.to_str().unwrap()]).refused(1, &["context must be a directory"]);
    scene.rb(&["build", "."]).refused(1, &["Dockerfile", "no such file"]);
    scene.rb(&["build", "-f", "nope.Dockerfile", "."]).refused(1, &["nope.Dockerfile"]);
    // A port of this machine where nobody listens.
    scene.rb(&["build", "http://127.0.0.1:9/x.git"]).refused(1, &["failed to load build context"]);
}

#[test]
fn archives_that_are_wrong() {
    let scene = Scene::with_busybox();
    let good = std::fs::read(busybox_archive()).unwrap();
    scene.write("noise.tar", b"this is no archive".repeat(100));
    scene.write("empty.tar", b"");
    scene.write("short.tar", &good[..good.len() / 2]);
    let mut flipped = good.clone();
    let at = flipped.len() / 3;
    flipped[at] ^= 1;
    scene.write("flipped.tar", flipped);
    // Where the layers are not there yet: what is, is not read again.
    let empty = scene.work().join("empty");
    let empty = empty.to_str().unwrap();
    for name in ["noise.tar", "empty.tar", "short.tar", "flipped.tar", "absent.tar"] {
        let said = scene.rb(&["--root", empty, "load", "-i", name]);
        assert_eq!(said.code, 1, "{name}: {said:?}");
        assert!(!said.err.contains("panicked") && !said.err.is_empty(), "{name}: {said:?}");
    }
    assert_eq!(scene.rb(&["--root", empty, "images", "-q"]).ok().out, "");
    assert_eq!(scene.in_image("busybox", "echo intact"), "intact\n");
}

/// A state directory on a file system without room: the error says so and what was there still works.
#[test]
fn a_full_disk_is_an_error_and_no_damage() {
    let scene = Scene::with_busybox();
    let small = scene.work().join("small");
    std::fs::create_dir(&small).unwrap();
    let mount = |arguments: &[&str]| std::process::Command::new("mount").args(arguments).arg(&small).status().unwrap();
    assert!(mount(&["-t", "tmpfs", "-o", "size=12m", "none"]).success());
    let unmount = Unmount(small.clone());
    let root = small.join("root");
    let root = root.to_str().unwrap();
    let archive = busybox_archive().to_str().unwrap();
    scene.rb(&["--root", root, "load", "-q", "-i", archive]).ok();
    scene.write("Dockerfile", "FROM busybox\nRUN dd if=/dev/zero of=/big bs=1M count=64\n");
    scene
        .rb(&["--root", root, "build", "--network", "none", "-t", "big", "."])
        .refused(1, &["No space left on device"]);
    let said = scene.rb(&["--root", root, "run", "--rm", "--network", "none", "busybox", "echo", "intact"]).ok();
    assert_eq!(said.out, "intact\n");
    drop(unmount);
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let status = std::process::Command::new("umount").arg("-l").arg(&self.0).status().expect("umount");
        assert!(status.success() || std::thread::panicking());
    }
}

#[test]
fn output_with_escape_sequences_reaches_no_terminal() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\nRUN printf 'one\\033]0;title\\007two\\n'; exit 1\n");
    let program = env!("CARGO_BIN_EXE_rbuild");
    let line = format!("{program} build --network none --progress tty .");
    let output = std::process::Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .current_dir(scene.work())
        .env("RBUILD_ROOT", scene.root())
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("onetwo") && !text.contains("\u{1b}]0;title"), "{text}");
}
