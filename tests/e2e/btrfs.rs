//! A state directory on btrfs: chosen by itself, the same images as elsewhere, and what is shared is not counted twice.

use serde_json::Value;

use crate::btrfs_disk::Disk;
use crate::scene::{Said, Scene, busybox_archive};

const DOCKERFILE: &str = "FROM busybox
COPY tree /etc/tree
RUN head -c 3000000 /dev/zero > /etc/big && mkdir /etc/d && echo 1 > /etc/d/a && ln /etc/d/a /etc/d/b \\
 && find /etc -exec touch -h -d @1700000000 {} +
RUN rm -r /etc/tree/gone && echo 2 > /etc/tree/kept && rm /etc/tree/swap && mkdir /etc/tree/swap \\
 && find /etc -exec touch -h -d @1700000000 {} +
";

/// The program on a state directory on btrfs.
struct OnBtrfs<'a> {
    scene: &'a Scene,
    root: String,
    _disk: Disk,
}

impl OnBtrfs<'_> {
    fn new(scene: &Scene) -> Option<OnBtrfs<'_>> {
        let disk = Disk::btrfs()?;
        let root = disk.path().join("state").display().to_string();
        let there = OnBtrfs { scene, root, _disk: disk };
        there.rb(&["load", "-q", "-i", busybox_archive().to_str().expect("UTF-8")]).ok();
        Some(there)
    }

    fn rb(&self, arguments: &[&str]) -> Said {
        self.scene.rb(&[&["--root", &self.root], arguments].concat())
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.rb(arguments).ok().out).expect("JSON")
    }
}

fn layers(inspected: &Value) -> Value {
    inspected[0]["RootFS"]["Layers"].clone()
}

#[test]
fn builds_on_btrfs_give_the_same_layers() {
    let scene = Scene::with_busybox();
    scene.write("tree/kept", "kept");
    scene.write("tree/gone/file", "gone");
    scene.write("tree/swap", "a file at first");
    scene.write("Dockerfile", DOCKERFILE);
    let Some(there) = OnBtrfs::new(&scene) else { return };
    let build = ["build", "-q", "--network", "none", "-t", "made", "."];
    scene.rb(&build).ok();
    there.rb(&build).ok();
    let here: Value = serde_json::from_str(&scene.rb(&["image", "inspect", "made"]).ok().out).expect("JSON");
    assert_eq!(layers(&here), layers(&there.json(&["image", "inspect", "made"])));
    // An archive that came from elsewhere gives what it holds, and goes back as it was.
    let archive = scene.work().join("made.tar").display().to_string();
    scene.rb(&["save", "-o", &archive, "made"]).ok();
    there.rb(&["rmi", "-f", "made"]).ok();
    there.rb(&["builder", "prune", "-af"]).ok();
    there.rb(&["load", "-q", "-i", &archive]).ok();
    assert_eq!(layers(&here), layers(&there.json(&["image", "inspect", "made"])));
    let shown = there.rb(&[
        "run",
        "--rm",
        "--network",
        "none",
        "made",
        "sh",
        "-c",
        "cat /etc/d/b /etc/tree/kept; ls -d /etc/tree/*/ /etc/tree/kept",
    ]);
    assert_eq!(shown.ok().out, "1\n2\n/etc/tree/kept\n/etc/tree/swap/\n");
    there.rb(&["system", "check"]).ok();
}

#[test]
fn containers_on_btrfs_write_only_what_they_change() {
    let scene = Scene::new();
    let Some(there) = OnBtrfs::new(&scene) else { return };
    let status = there.json(&["info", "--format", "json"]);
    assert_eq!((&status["Driver"], &status["DriverStatus"][0][1]), (&"btrfs".into(), &"btrfs".into()), "{status}");
    let refused = there.rb(&["--storage-driver", "overlay", "images"]);
    refused.refused(1, &["was made with storage driver btrfs, not overlay", "--root"]);

    let script = "head -c 8000000 /dev/zero | tr '\\0' x > /huge && sync";
    there.rb(&["run", "--name", "maker", "--network", "none", "busybox", "sh", "-c", script]).ok();
    there.rb(&["commit", "maker", "huge"]).ok();
    there.rb(&["rm", "maker"]).ok();
    let script = "printf y | dd of=/huge bs=1 seek=4000000 conv=notrunc 2>/dev/null; rm /etc/passwd; echo new > /new";
    there.rb(&["run", "--name", "small", "--network", "none", "huge", "sh", "-c", script]).ok();
    let size = there.rb(&["ps", "-as", "--format", "{{.Size}}"]).ok().out;
    let written = size.split(' ').next().unwrap_or_default();
    assert!(written.ends_with("kB") || written.ends_with('B') && !written.ends_with("MB"), "{size}");
    let changed = there.rb(&["diff", "small"]).ok().out;
    for line in ["C /huge", "D /etc/passwd", "A /new"] {
        assert!(changed.lines().any(|found| found == line), "{line} in {changed}");
    }
    let kept = there.rb(&["start", "-a", "small"]).ok();
    assert_eq!(kept.code, 0);
    there.rb(&["rm", "small"]).ok();
    there.rb(&["system", "prune", "-af"]).ok();
    for place in ["snapshots", "containers", "ingest"] {
        let path = std::path::Path::new(&there.root).join(place);
        assert_eq!(std::fs::read_dir(&path).expect("a directory").count(), 0, "{place}");
    }
}
