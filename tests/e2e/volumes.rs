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
        (&["-o", "type=tmpfs"], "missing required option: \"device\""),
        (&["-d", "netshare"], "plugin \"netshare\" not found"),
        (&["-o", "o=bind"], "missing required option: \"device\""),
    ] {
        scene.rb(&[&["volume", "create"], options, &["bad"]].concat()).refused(1, &[word]);
    }
    scene
        .rb(&["volume", "create", "-o", "type=tmpfs", "-o", "device=x", "memory"])
        .refused(1, &["volume name must be unique"]);
    assert_eq!(scene.rb(&["volume", "ls", "-q"]).ok().out, "memory\n");
}

/// What is mounted on volumes of the scene's store.
fn mounted(scene: &Scene) -> String {
    let all = std::fs::read_to_string("/proc/self/mounts").expect("the mount table");
    let store = format!(" {}/", scene.root().display());
    all.lines().filter(|line| line.contains(&store) && line.contains("/volumes/")).collect()
}

#[test]
fn containers_share_the_memory_of_a_volume() {
    let scene = Scene::with_busybox();
    let mount = "source=mem,target=/v,volume-driver=local,volume-opt=type=tmpfs,volume-opt=device=tmpfs,\
                 \"volume-opt=o=size=1m,uid=12\",volume-label=kind=memory";
    let detached = ["run", "-d", "--network", "none", "--name"];
    let waits = ["busybox", "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"];
    scene.rb(&[&detached[..], &["one", "--mount", mount], &waits].concat()).ok();
    scene.rb(&[&detached[..], &["two", "-v", "mem:/w"], &waits].concat()).ok();
    scene.rb(&["exec", "one", "sh", "-c", "echo shared > /v/file"]).ok();
    assert_eq!(scene.rb(&["exec", "two", "cat", "/w/file"]).ok().out, "shared\n");
    assert_eq!(
        scene.rb(&["volume", "inspect", "-f", "{{.Labels.kind}} {{.Options.type}}", "mem"]).ok().out,
        "memory tmpfs\n"
    );
    scene.rb(&["stop", "-t", "0", "one"]).ok();
    assert_eq!(scene.rb(&["exec", "two", "cat", "/w/file"]).ok().out, "shared\n", "it stays for the other");
    assert_eq!(scene.rb(&["start", "one"]).ok().out, "one\n");
    assert_eq!(scene.rb(&["exec", "one", "cat", "/v/file"]).ok().out, "shared\n");
    scene.rb(&["volume", "rm", "mem"]).refused(1, &["volume is in use - ["]);
    scene.rb(&["rm", "-f", "one", "two"]).ok();
    assert_eq!(mounted(&scene), "");
    let gone = scene.rb(&["run", "--rm", "--network", "none", "-v", "mem:/w", "busybox", "ls", "/w"]);
    assert_eq!(gone.ok().out, "", "memory goes with the last container");
    scene.rb(&["volume", "rm", "mem"]).ok();
    assert_eq!(mounted(&scene), "");
}

#[test]
fn any_file_system_is_a_volume() {
    let scene = Scene::with_busybox();
    for (path, text) in [("low/a", "low"), ("high/b", "high")] {
        scene.write(path, text);
    }
    let below = format!("o=lowerdir={0}/high:{0}/low", scene.work().display());
    let device = ["-o", "type=overlay", "-o", "device=overlay"];
    scene.rb(&[&["volume", "create"], &device[..], &["-o", &below, "stack"]].concat()).ok();
    assert_eq!(run(&scene, &["-v", "stack:/v:nocopy"], "cat /v/a /v/b").ok().out, "lowhigh");
    // Into, and out of, a container that does not run.
    scene.rb(&["create", "--name", "holder", "--network", "none", "-v", "stack:/v", "busybox", "true"]).ok();
    scene.rb(&["cp", "holder:/v/a", "copied"]).ok();
    assert_eq!(std::fs::read_to_string(scene.work().join("copied")).expect("copied"), "low");
    scene.rb(&["rm", "holder"]).ok();
    let broken = [&["volume", "create"], &device[..], &["-o", "o=lowerdir=/no/such/place", "broken"]].concat();
    scene.rb(&broken).ok();
    let words = ["error while mounting volume '", "failed to mount local volume: mount overlay:"];
    run(&scene, &["-v", "broken:/v"], "true").refused(125, &words);
    let said = scene.rb(&["volume", "create", "-o", "type=nosuchfs", "-o", "device=x", "odd"]);
    said.ok();
    run(&scene, &["-v", "odd:/v"], "true").refused(125, &["no such device"]);
    assert_eq!(mounted(&scene), "");
}

#[test]
fn a_bind_read_only_as_deep_as_wanted() {
    let scene = Scene::with_busybox();
    let flags = |depth: &str| {
        let mount = format!("type=bind,source=/dev,target=/d,readonly{depth}");
        let script = "for p in /d /d/pts; do grep \" $p \" /proc/mounts | cut -d' ' -f4 | cut -c1-2 | sort -u; done";
        run(&scene, &["--mount", &mount], script).ok().out
    };
    assert_eq!(flags(""), "ro\nro\n");
    assert_eq!(flags(",bind-recursive=writable"), "ro\nrw\n");
    assert_eq!(flags(",bind-recursive=disabled"), "ro\n");
    assert_eq!(flags(",bind-recursive=readonly,bind-propagation=rprivate"), "ro\nro\n");
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
