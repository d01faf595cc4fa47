//! Volumes and images as mounts: parts of them, those that stand for something else, and which are pruned.

use crate::scene::{Said, Scene};

fn run(scene: &Scene, options: &[&str], script: &str) -> Said {
    scene.rb(&[&["run", "--rm", "--network", "none"], options, &["busybox", "sh", "-c", script]].concat())
}

#[test]
fn a_part_of_a_volume_is_mounted() {
    let scene = Scene::with_busybox();
    let script = "mkdir -p /v/a/b; echo deep > /v/a/b/file; echo other > /v/other; ln -s / /v/out; ln -s /a/b /v/inner";
    run(&scene, &["-v", "data:/v"], script).ok();
    let part = |subpath: &str| format!("type=volume,source=data,target=/part,volume-subpath={subpath}");
    assert_eq!(
        run(&scene, &["--mount", &part("a/b")], "cat /part/file; ls /part; echo new > /part/new").ok().out,
        "deep\nfile\n"
    );
    assert_eq!(run(&scene, &["--mount", &part("a/b/file")], "cat /part").ok().out, "deep\n");
    assert_eq!(run(&scene, &["-v", "data:/v"], "cat /v/a/b/new").ok().out, "new\n");
    // Links lead within the volume, wherever they point to.
    assert_eq!(run(&scene, &["--mount", &part("inner")], "cat /part/file").ok().out, "deep\n");
    assert_eq!(run(&scene, &["--mount", &part("out")], "cat /part/other; ls /part/bin 2>/dev/null").out, "other\n");
    run(&scene, &["--mount", &part("missing")], "true").refused(125, &["missing", "no such file or directory"]);
    run(&scene, &["--mount", &part("../x")], "true").refused(125, &["volume-subpath"]);
}

#[test]
fn an_image_is_mounted_and_kept() {
    let scene = Scene::with_busybox();
    scene.write("tree/dir/file", "of the image");
    scene.write("Dockerfile", "FROM scratch\nCOPY tree /tree\n");
    scene.rb(&["build", "-q", "-t", "files", "."]).ok();
    let whole = ["--mount", "type=image,source=files,target=/img"];
    let said = run(&scene, &whole, "cat /img/tree/dir/file; touch /img/x 2>/dev/null || echo ro");
    assert_eq!(said.ok().out, "of the imagero\n");
    let part = ["--mount", "type=image,source=files,target=/img,image-subpath=tree/dir"];
    assert_eq!(run(&scene, &part, "ls /img").ok().out, "file\n");
    run(&scene, &["--mount", "type=image,source=nosuch,target=/img"], "true").refused(125, &["No such image: nosuch"]);
    // As long as a container has it, its files are there.
    let create = ["create", "--name", "holder", "--network", "none", "--mount", "type=image,source=files,target=/img"];
    scene.rb(&[&create[..], &["busybox", "cat", "/img/tree/dir/file"]].concat()).ok();
    scene.rb(&["rmi", "-f", "files"]);
    scene.rb(&["image", "prune", "-af"]).ok();
    scene.rb(&["builder", "prune", "-af"]).ok();
    assert_eq!(scene.rb(&["inspect", "-f", "{{(index .Mounts 0).Type}}", "holder"]).ok().out, "image\n");
    assert_eq!(scene.rb(&["start", "-a", "holder"]).ok().out, "of the image");
    scene.rb(&["rm", "holder"]).ok();
}

#[test]
fn volumes_stand_for_directories_and_memory() {
    let scene = Scene::with_busybox();
    scene.write("there/file", "of the host");
    let device = format!("device={}", scene.work().join("there").display());
    scene.rb(&["volume", "create", "-o", "type=none", "-o", "o=bind", "--opt", &device, "bound"]).ok();
    assert_eq!(run(&scene, &["-v", "bound:/v"], "cat /v/file; echo new > /v/new").ok().out, "of the host");
    assert_eq!(std::fs::read_to_string(scene.work().join("there/new")).expect("written"), "new\n");
    assert_eq!(scene.rb(&["volume", "inspect", "-f", "{{.Options.o}}", "bound"]).ok().out, "bind\n");
    scene.rb(&["volume", "rm", "bound"]).ok();
    assert!(scene.work().join("there/file").exists());
    scene.rb(&["volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m,uid=12", "memory"]).ok();
    let script = "stat -c %u /v; grep ' /v ' /proc/mounts | cut -d' ' -f3; dd if=/dev/zero of=/v/x bs=1M count=2 2>/dev/null || echo full";
    assert_eq!(run(&scene, &["-v", "memory:/v"], script).ok().out, "12\ntmpfs\nfull\n");
    for (options, word) in [
        (&["-o", "speed=1"][..], "invalid option: \"speed\""),
        (&["-o", "type=nfs", "-o", "device=:/x", "-o", "o=addr=::1"], "type nfs is not supported"),
        (&["-o", "o=bind"], "missing required option: \"device\""),
    ] {
        scene.rb(&[&["volume", "create"], options, &["bad"]].concat()).refused(1, &[word]);
    }
    scene.rb(&["volume", "create", "-o", "type=tmpfs", "memory"]).refused(1, &["volume name must be unique"]);
    assert_eq!(scene.rb(&["volume", "ls", "-q"]).ok().out, "memory\n");
}

#[test]
fn volumes_are_pruned_by_their_labels() {
    let scene = Scene::new();
    for (name, label) in [("keep", "keep=yes"), ("other", "keep=no"), ("plain", "x")] {
        scene.rb(&["volume", "create", "--label", label, name]).ok();
    }
    let left = || scene.rb(&["volume", "ls", "-q"]).ok().out;
    scene.rb(&["volume", "prune", "-f", "--filter", "label=x"]).ok();
    assert_eq!(left(), "keep\nother\nplain\n", "named ones go only with --all");
    scene.rb(&["volume", "prune", "-f", "--filter", "all=true", "--filter", "label=x"]).ok();
    assert_eq!(left(), "keep\nother\n");
    scene.rb(&["volume", "prune", "-af", "--filter", "label!=keep=yes"]).ok();
    assert_eq!(left(), "keep\n");
    scene.rb(&["volume", "prune", "-f", "--filter", "colour=red"]).refused(1, &["invalid filter"]);
}
