//! Disks that are full or read-only, stores that are not ours to read, contexts that cannot be read, archives that lie:
//! each is told plainly, with the right code, and what was there before works on.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::Digest as _;

use crate::scene::{Scene, busybox_archive};

/// A file system that goes with this value.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(scene: &Scene, name: &str, options: &str) -> Mounted {
        let path = scene.work().join(name);
        std::fs::create_dir(&path).expect("mkdir");
        mount(&["-t", "tmpfs", "-o", options, "none"], &path);
        Mounted(path)
    }

    fn root(&self) -> String {
        self.0.join("root").display().to_string()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("-l").arg(&self.0).status().expect("umount");
        assert!(status.success() || std::thread::panicking());
    }
}

fn mount(arguments: &[&str], path: &Path) {
    assert!(Command::new("mount").args(arguments).arg(path).status().expect("mount").success());
}

fn works(scene: &Scene, root: &str) {
    let said = scene.rb(&["--root", root, "run", "--rm", "--network", "none", "busybox", "echo", "intact"]).ok();
    assert_eq!(said.out, "intact\n");
}

fn with_busybox(scene: &Scene, root: &str) {
    scene.rb(&["--root", root, "load", "-q", "-i", busybox_archive().to_str().expect("UTF-8")]).ok();
}

#[test]
fn what_does_not_fit_is_told_with_what_to_do() {
    let scene = Scene::new();
    let disk = Mounted::tmpfs(&scene, "disk", "size=80m,mode=755");
    let root = disk.root();
    with_busybox(&scene, &root);
    let file = std::fs::File::create(scene.work().join("big")).expect("create");
    // No hole: those stay holes.
    let block = vec![7; 1 << 20];
    (0..90).for_each(|_| (&file).write_all(&block).expect("write"));
    scene.write(".dockerignore", "disk\n");
    let full = ["o space left on device", "hint: ", "full", "prune"];
    scene.write("Dockerfile", "FROM busybox\nCOPY big /\n");
    scene.rb(&["--root", &root, "build", "-t", "big", "."]).refused(1, &full);
    // A step that filled the disk is told apart from one that just failed.
    scene.write("Dockerfile", "FROM busybox\nRUN dd if=/dev/zero of=/big bs=1M count=90\n");
    scene.rb(&["--root", &root, "build", "--network", "none", "-t", "big", "."]).refused(1, &full);
    scene.write("Dockerfile", "FROM busybox\nRUN exit 1\n");
    let said = scene.rb(&["--root", &root, "build", "--network", "none", "."]).refused(1, &["exit code: 1"]);
    assert!(!said.err.contains("hint"), "{said:?}");
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_path_with_name(scene.work().join("big"), "big").expect("tar");
    scene.write("big.tar", archive.into_inner().expect("tar"));
    scene.rb(&["--root", &root, "import", "big.tar", "big"]).refused(1, &full);
    scene.rb(&["--root", &root, "image", "inspect", "big"]).refused(1, &["big"]);
    works(&scene, &root);
    assert_eq!(scene.rb(&["--root", &root, "images", "-aq"]).ok().out.lines().count(), 1);
}

/// With not one free block one can still look, and remove.
#[test]
fn a_disk_without_one_free_block() {
    let scene = Scene::new();
    let disk = Mounted::tmpfs(&scene, "disk", "size=80m,mode=755");
    let root = disk.root();
    with_busybox(&scene, &root);
    scene.write("Dockerfile", "FROM busybox\nRUN dd if=/dev/zero of=/some bs=1M count=5\n");
    scene.rb(&["--root", &root, "build", "-q", "--network", "none", "-t", "some", "."]).ok();
    let filler = disk.0.join("filler");
    let mut file = std::fs::File::create(&filler).expect("create");
    let block = vec![7; 1 << 16];
    while file.write_all(&block).is_ok() {}
    while file.write_all(&[7]).is_ok() {}
    drop(file);
    for line in [&["images"][..], &["image", "inspect", "some"], &["history", "some"], &["ps", "-a"], &["volume", "ls"]]
    {
        scene.rb(&[&["--root", &root], line].concat()).ok();
    }
    let run = ["--root", &root, "run", "--rm", "--network", "none", "busybox", "true"];
    scene.rb(&run).refused(125, &["o space left on device"]);
    assert_eq!(scene.rb(&["--root", &root, "ps", "-aq"]).ok().out, "", "what could not begin leaves no record");
    scene.rb(&["--root", &root, "build", "."]).refused(1, &["o space left on device", "prune"]);
    scene.rb(&["--root", &root, "rmi", "some"]).ok();
    scene.rb(&["--root", &root, "builder", "prune", "-a", "-f"]).ok();
    works(&scene, &root);
    std::fs::remove_file(filler).expect("remove");
    works(&scene, &root);
}

#[test]
fn a_read_only_store_can_be_read() {
    let scene = Scene::new();
    let disk = Mounted::tmpfs(&scene, "disk", "size=40m,mode=755");
    let root = disk.root();
    let rb = |line: &[&str]| scene.rb(&[&["--root", &root], line].concat());
    with_busybox(&scene, &root);
    mount(&["-o", "remount,ro"], &disk.0);
    assert!(rb(&["images"]).ok().out.contains("busybox"));
    rb(&["image", "inspect", "busybox"]).ok();
    rb(&["history", "busybox"]).ok();
    rb(&["ps", "-a"]).ok();
    rb(&["save", "-o", "saved.tar", "busybox"]).ok();
    scene.write("Dockerfile", "FROM busybox\nRUN true\n");
    rb(&["build", "."]).refused(1, &["read-only"]);
    rb(&["run", "--rm", "busybox", "true"]).refused(125, &["read-only"]);
    rb(&["tag", "busybox", "other"]).refused(1, &["read-only"]);
    rb(&["rmi", "busybox"]).refused(1, &["read-only"]);
    rb(&["load", "-i", "saved.tar"]).refused(1, &["read-only"]);
    mount(&["-o", "remount,rw"], &disk.0);
    works(&scene, &root);

    let elsewhere = disk.0.join("new");
    mount(&["-o", "remount,ro"], &disk.0);
    scene.rb(&["--root", elsewhere.to_str().expect("UTF-8"), "images"]).refused(1, &["new"]);
}

/// Each command names what is wrong with the state directory, and changes nothing in it.
#[test]
fn state_directories_that_are_wrong() {
    let scene = Scene::with_busybox();
    scene.write("Dockerfile", "FROM busybox\nRUN true\n");
    let refused = |root: &Path, words: &[&str]| {
        let root = root.to_str().expect("UTF-8");
        scene.rb(&["--root", root, "images"]).refused(1, words);
        scene.rb(&["--root", root, "build", "."]).refused(1, words);
        scene.rb(&["--root", root, "run", "--rm", "busybox", "true"]).refused(125, words);
    };
    let file = scene.write("file", "x");
    refused(&file, &[file.to_str().expect("UTF-8"), "not a directory"]);
    let foreign = scene.work().join("foreign");
    scene.write("foreign/letter", "dear\n");
    refused(&foreign, &["foreign", "neither empty nor a store"]);
    assert_eq!(std::fs::read_dir(&foreign).expect("read").count(), 1);

    let version = scene.root().join("VERSION");
    let text = std::fs::read_to_string(&version).expect("read");
    let number: u32 = text.trim().rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number");
    std::fs::write(&version, text.replace(&number.to_string(), &(number + 1).to_string())).expect("write");
    refused(&scene.root(), &[&format!("version {}", number + 1), "newer", "hint: "]);
    std::fs::write(&version, "something else\n").expect("write");
    refused(&scene.root(), &["VERSION"]);
    std::fs::write(&version, text).expect("write");
    assert_eq!(scene.in_image("busybox", "echo intact"), "intact\n");

    // A database that is none is named, and neither replaced nor made empty.
    let copy = scene.work().join("copy");
    assert!(Command::new("cp").arg("-a").arg(scene.root()).arg(&copy).status().expect("cp").success());
    let database = copy.join("db.sqlite");
    for suffix in ["-wal", "-shm"] {
        drop(std::fs::remove_file(copy.join(format!("db.sqlite{suffix}"))));
    }
    let garbage = b"no database at all, but long enough to be taken for one\n".repeat(200);
    std::fs::write(&database, &garbage).expect("write");
    let named = copy.to_str().expect("UTF-8");
    refused(&copy, &["database", named, "hint: ", "--root"]);
    assert_eq!(std::fs::read(&database).expect("read"), garbage);
    // Nor is one that is cut off, empty, gone, or a directory.
    let whole = std::fs::read(scene.root().join("db.sqlite")).expect("read");
    for bytes in [&whole[..whole.len() / 2 / 4096 * 4096 + 100], b""] {
        std::fs::write(&database, bytes).expect("write");
        refused(&copy, &["database", named, "hint: "]);
        assert_eq!(std::fs::read(&database).expect("read"), bytes);
    }
    std::fs::remove_file(&database).expect("remove");
    refused(&copy, &["database", named, "hint: "]);
    std::fs::create_dir(&database).expect("mkdir");
    refused(&copy, &["database", named, "hint: "]);
}

/// Root without its power over other people's files, as in many a container.
#[test]
fn a_context_that_cannot_be_read() {
    let scene = Scene::with_busybox();
    scene.write("secret", "s");
    scene.write("dir/inside", "i");
    let forbid = |name: &str| {
        let path = scene.work().join(name);
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o000)).expect("chmod");
    };
    forbid("secret");
    forbid("dir");
    for (dockerfile, name) in [("FROM busybox\nCOPY secret /\n", "secret"), ("FROM busybox\nCOPY dir /dir\n", "dir")] {
        scene.write("Dockerfile", dockerfile);
        let build = scene.command(&["build", "-t", "unread", "."]);
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", "--"]);
        command.arg(build.get_program()).args(build.get_args()).current_dir(scene.work()).env_clear();
        command.envs(build.get_envs().filter_map(|(key, value)| Some((key, value?))));
        let said = crate::scene::Said::from(command.output().expect("setpriv"));
        said.refused(1, &[name, "ermission denied"]);
        scene.rb(&["image", "inspect", "unread"]).refused(1, &["unread"]);
    }
    // What is not selected, or ignored, need not be readable.
    scene.write(".dockerignore", "dir\nsecret\n");
    scene.write("Dockerfile", "FROM busybox\nCOPY . /all\n");
    scene.rb(&["build", "-t", "read", "."]).ok();
}

#[test]
fn stages_in_a_circle() {
    let scene = Scene::with_busybox();
    for text in [
        "FROM busybox AS a\nCOPY --from=b /x /y\nFROM busybox AS b\nCOPY --from=a /x /y\n",
        "FROM busybox AS a\nCOPY --from=a /etc/passwd /y\n",
        "FROM a AS a\nRUN true\n",
    ] {
        scene.write("Dockerfile", text);
        let said = scene.rb(&["build", "-t", "round", "."]);
        assert_eq!(said.code, 1, "{said:?}");
        assert!(said.err.contains("ERROR") && !said.err.contains("panicked"), "{text}: {said:?}");
        scene.rb(&["image", "inspect", "round"]).refused(1, &["round"]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, name, &bytes[..]).expect("tar");
    }
    archive.into_inner().expect("tar")
}

/// An archive in docker's form with one layer; `diff_id` is what its config claims of that layer.
fn docker_archive(layer: &[u8], diff_id: &str) -> Vec<(String, Vec<u8>)> {
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]}, "history": [{"created_by": "test"}],
    });
    let config = serde_json::to_vec(&config).expect("JSON");
    let name = format!("{}.json", hex(&sha2::Sha256::digest(&config)));
    let manifest = serde_json::json!([{"Config": name, "RepoTags": ["lies:latest"], "Layers": ["layer.tar"]}]);
    let manifest = serde_json::to_vec(&manifest).expect("JSON");
    vec![("layer.tar".into(), layer.to_vec()), (name, config), ("manifest.json".into(), manifest)]
}

/// Nothing of an archive that lies about its content, or that wants out of its directory, stays.
#[test]
fn archives_that_lie() {
    let scene = Scene::with_busybox();
    let before = scene.rb(&["images", "-a", "--no-trunc"]).ok().out;
    let layer = archive(&[("file".into(), b"content".to_vec())]);
    let digest = format!("sha256:{}", hex(&sha2::Sha256::digest(&layer)));
    let other = format!("sha256:{}", "0".repeat(64));
    let good = docker_archive(&layer, &digest);
    let without = |name: &str| good.iter().filter(|(n, _)| !n.contains(name)).cloned().collect::<Vec<_>>();
    let truncated = |bytes: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(bytes).expect("gzip");
        let whole = gzip.finish().expect("gzip");
        whole[..whole.len() / 2].to_vec()
    };
    let with_manifest = |text: &str| {
        let mut files = without("manifest");
        files.push(("manifest.json".into(), text.as_bytes().to_vec()));
        archive(&files)
    };
    for (what, bytes) in [
        ("wrong digest of a layer", archive(&docker_archive(&layer, &other))),
        ("layer missing", archive(&without("layer"))),
        ("config missing", archive(&without(".json"))),
        ("gzip cut", truncated(&archive(&good))),
        ("gzipped layer cut", archive(&docker_archive(&truncated(&layer), &digest))),
        ("manifest is no JSON", with_manifest("{")),
        ("manifest of another shape", with_manifest("{\"Config\": 1}")),
        ("a path that leaves", with_manifest("[{\"Config\":\"../../etc/passwd\",\"RepoTags\":[],\"Layers\":[]}]")),
        ("a name that is none", {
            let mut files = good.clone();
            let text = String::from_utf8_lossy(&files[2].1).replace("lies:latest", "NOT A NAME");
            files[2].1 = text.into_bytes();
            archive(&files)
        }),
    ] {
        scene.write("lies.tar", bytes);
        let said = scene.rb(&["load", "-i", "lies.tar"]);
        assert!(said.code == 1 && said.err.starts_with("Error: "), "{what}: {said:?}");
        assert!(!said.err.contains("panicked"), "{what}: {said:?}");
        assert_eq!(scene.rb(&["images", "-a", "--no-trunc"]).ok().out, before, "{what}");
    }
    // A digest that the config was named by, asked for in FROM, must be that of what is there.
    scene.write("Dockerfile", format!("FROM busybox@{other}\nRUN true\n"));
    scene.rb(&["build", "--network", "none", "."]).refused(1, &["busybox"]);
    scene.write("good.tar", archive(&good));
    scene.rb(&["load", "-i", "good.tar"]).ok();
    assert_eq!(scene.inspect("lies")["RootFS"]["Layers"][0], digest.as_str());
    assert_eq!(scene.in_image("busybox", "echo intact"), "intact\n");
}

/// The kernel stacks 500 directories at a time; images may have more layers.
#[test]
fn an_image_of_600_layers() {
    let scene = Scene::with_busybox();
    let base = scene.inspect("busybox")["RootFS"]["Layers"][0].as_str().expect("a digest").to_owned();
    scene.rb(&["save", "-o", "busybox.tar", "busybox"]).ok();
    let mut saved = tar::Archive::new(std::fs::File::open(scene.work().join("busybox.tar")).expect("open"));
    let mut lowest = Vec::new();
    for entry in saved.entries().expect("entries") {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry.expect("an entry"), &mut bytes).expect("read");
        if format!("sha256:{}", hex(&sha2::Sha256::digest(&bytes))) == base {
            lowest = bytes;
        }
    }
    let mut layers = vec![lowest];
    layers.extend((0..600).map(|n| archive(&[(format!("n{n}"), n.to_string().into_bytes())])));
    let digests: Vec<String> = layers.iter().map(|l| format!("sha256:{}", hex(&sha2::Sha256::digest(l)))).collect();
    let mut config: serde_json::Value = serde_json::from_slice(&docker_archive(&[], "")[1].1).expect("JSON");
    config["rootfs"]["diff_ids"] = digests.into();
    let names: Vec<String> = (0..layers.len()).map(|n| format!("{n}.tar")).collect();
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": ["deep:latest"], "Layers": names}]);
    let mut files: Vec<(String, Vec<u8>)> = names.iter().cloned().zip(layers).collect();
    files.push(("config.json".into(), serde_json::to_vec(&config).expect("JSON")));
    files.push(("manifest.json".into(), serde_json::to_vec(&manifest).expect("JSON")));
    scene.write("deep.tar", archive(&files));
    scene.rb(&["load", "-q", "-i", "deep.tar"]).ok();
    assert_eq!(scene.in_image("deep", "cat /n599; rm /n1; ls / | grep -c '^n'"), "599599\n");
    scene.write("Dockerfile", "FROM deep\nRUN rm /n2 /n598 && ls / | grep -c '^n' > /count\n");
    scene.rb(&["build", "-q", "--network", "none", "-t", "deeper", "."]).ok();
    assert_eq!(scene.in_image("deeper", "cat /count; ls -d /n2 /n598 2>/dev/null; cat /n3"), "598\n3");
    scene.rb(&["create", "--name", "there", "deeper", "true"]).ok();
    assert_eq!(scene.rb(&["diff", "there"]).ok().out, "");
}
