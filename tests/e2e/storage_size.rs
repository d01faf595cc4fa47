//! `--storage-opt size=`: how much a container may write, where the file system counts.

use std::path::Path;

use crate::btrfs_disk::Disk;
use crate::scene::{Scene, busybox_archive};

/// Writes so many megabytes to its writable layer.
fn writing(megabytes: u32) -> String {
    format!("dd if=/dev/zero of=/etc/big bs=1M count={megabytes} conv=fsync 2>/dev/null && echo written")
}

fn limits_what_is_written(disk: Option<Disk>) {
    let Some(disk) = disk else { return };
    let scene = Scene::new();
    let root = disk.path().join("state").display().to_string();
    let rb = |arguments: &[&str]| scene.rb(&[&["--root", &root], arguments].concat());
    rb(&["load", "-q", "-i", busybox_archive().to_str().expect("UTF-8")]).ok();
    let limited = ["run", "--name", "limited", "--network", "none", "--storage-opt", "size=24m", "busybox", "sh", "-c"];
    let said = rb(&[&limited[..], &[&writing(64)]].concat());
    assert!(said.code == 1 && said.out.is_empty(), "{said:#?}");
    assert_eq!(rb(&["inspect", "-f", "{{.HostConfig.StorageOpt.size}}", "limited"]).ok().out, "25165824\n");
    rb(&["rm", "limited"]).ok();
    // Less fits, also when it was removed and written again; and others are not held to it.
    let script = format!("{}; rm /etc/big; sync; {}", writing(12), writing(12));
    rb(&[&limited[..], &[&script]].concat()).ok();
    assert_eq!(rb(&["logs", "limited"]).ok().out, "written\nwritten\n");
    assert_eq!(rb(&["run", "--rm", "--network", "none", "busybox", "sh", "-c", &writing(64)]).ok().out, "written\n");
    rb(&["rm", "limited"]).ok();
    assert_eq!(std::fs::read_dir(Path::new(&root).join("containers")).expect("a directory").count(), 0);
}

#[test]
fn on_btrfs_a_container_writes_what_it_may() {
    limits_what_is_written(Disk::btrfs());
}

#[test]
fn on_xfs_a_container_writes_what_it_may() {
    limits_what_is_written(Disk::xfs());
}

#[test]
fn on_ext4_a_container_writes_what_it_may() {
    limits_what_is_written(Disk::ext4());
}

#[test]
fn what_cannot_be_limited_is_refused() {
    let scene = Scene::with_busybox();
    let run =
        |option: &str| scene.rb(&["run", "--rm", "--network", "none", "--storage-opt", option, "busybox", "true"]);
    run("size=1g").refused(125, &["--storage-opt is supported only for", "prjquota"]);
    run("size=x").refused(125, &["size=x"]);
    run("speed=1").refused(125, &["unknown option speed"]);
    assert_eq!(std::fs::read_dir(scene.root().join("containers")).expect("a directory").count(), 0);
}
