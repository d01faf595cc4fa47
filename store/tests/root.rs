//! Walks beneath a directory, and the attacks on them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rbuild_store::root::{Dir, Kind, Root, Timestamp, Walk, node};

const ELOOP: i32 = 40;
const EXDEV: i32 = 18;
const EINVAL: i32 = 22;

fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

/// A directory with a root in it and something outside it that nobody may reach.
fn setup() -> (tempfile::TempDir, Root, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("top");
    fs::create_dir_all(top.join("etc/deep")).unwrap();
    fs::write(dir.path().join("outside"), "secret").unwrap();
    fs::write(top.join("outside"), "inner").unwrap();
    fs::write(top.join("etc/file"), "file").unwrap();
    symlink("/outside", top.join("absolute")).unwrap();
    symlink("../../outside", top.join("etc/up")).unwrap();
    symlink("etc", top.join("link")).unwrap();
    symlink(dir.path().join("outside"), top.join("host")).unwrap();
    (dir, Root::open(&top).unwrap(), top)
}

#[test]
fn links_and_dots_never_leave() {
    let (_dir, root, _) = setup();
    let read = |path: &str, how| root.open_file(Path::new(path), how).map(|f| io::read_to_string(f).unwrap());
    for path in ["absolute", "/absolute", "etc/up", "../../outside", "etc/../../../outside", "link/../outside"] {
        assert_eq!(read(path, Walk::InRoot).unwrap(), "inner", "{path}");
    }
    assert_eq!(read("host", Walk::InRoot).unwrap_err().kind(), ErrorKind::NotFound);
    for path in ["absolute", "etc/up", "../outside", "host"] {
        assert_eq!(errno(read(path, Walk::Beneath)), EXDEV, "{path}");
    }
    assert_eq!(read("link/file", Walk::Beneath).unwrap(), "file");
    assert_eq!(errno(read("link/file", Walk::NoLinks)), ELOOP);
    assert_eq!(errno(read("link", Walk::NoLinks)), ELOOP);
    assert_eq!(root.read_link(Path::new("link"), Walk::NoLinks).unwrap(), Path::new("etc"));
    assert_eq!(root.lstat(Path::new("absolute"), Walk::InRoot).unwrap().kind, Kind::Symlink);
    assert_eq!(root.stat(Path::new("absolute"), Walk::InRoot).unwrap().kind, Kind::File);
    for how in [Walk::InRoot, Walk::Beneath, Walk::NoLinks] {
        assert_eq!(root.open_dir(Path::new("/"), how).unwrap().metadata().unwrap(), root.top().metadata().unwrap());
    }
}

#[test]
fn magic_links_lead_nowhere() {
    let root = Root::open(Path::new("/")).unwrap();
    for path in ["proc/self/root/etc", "proc/self/cwd", "proc/self/fd/0"] {
        assert_eq!(errno(root.walk(Path::new(path), Walk::InRoot)), ELOOP, "{path}");
    }
}

#[test]
fn what_is_no_file_is_not_opened() {
    let (_dir, root, _) = setup();
    root.mknod(Path::new("fifo"), Walk::NoLinks, Kind::Fifo, 0o644, 0).unwrap();
    // Opening it for real would block for ever.
    assert_eq!(errno(root.open_file(Path::new("fifo"), Walk::InRoot)), EINVAL);
    assert_eq!(errno(root.open_file(Path::new("etc"), Walk::InRoot)), 21);
    assert_eq!(root.lstat(Path::new("fifo"), Walk::NoLinks).unwrap().mode, 0o644);
}

#[test]
fn names_are_single_and_plain() {
    let (_dir, root, _) = setup();
    let top = root.top();
    for bad in ["", ".", "..", "a/b", "/", "etc/"] {
        assert_eq!(errno(top.mkdir(name(bad), 0o755)), EINVAL, "{bad:?}");
        assert_eq!(errno(top.stat(name(bad))), EINVAL, "{bad:?}");
        assert_eq!(errno(top.set_xattr(name(bad), name("user.a"), b"")), EINVAL, "{bad:?}");
    }
    for bad in ["", "/", "etc/..", "etc/."] {
        assert_eq!(errno(root.unlink(Path::new(bad), Walk::InRoot)), EINVAL, "{bad:?}");
    }
    let (dir, last) = root.parent(Path::new("/etc/deep//"), Walk::InRoot).unwrap();
    assert_eq!((dir.metadata().unwrap().inode, last), (top.stat(name("etc")).unwrap().inode, OsString::from("deep")));
}

#[test]
fn directories_are_made_inside() {
    let (dir, root, top) = setup();
    root.mkdir_all(Path::new("link/a/b"), Walk::InRoot, 0o750).unwrap();
    assert_eq!(fs::metadata(top.join("etc/a/b")).unwrap().mode() & 0o7777, 0o750);
    root.mkdir_all(Path::new("/x/../../../y/z"), Walk::InRoot, 0o755).unwrap();
    assert!(top.join("y/z").is_dir() && !dir.path().join("y").exists());
    assert_eq!(errno(root.mkdir_all(Path::new("link/c"), Walk::NoLinks, 0o755)), ELOOP);
    root.mkdir_all(Path::new("etc/deep"), Walk::NoLinks, 0o700).unwrap();
}

#[test]
fn a_rename_elsewhere_does_not_fail_a_walk() {
    let (dir, root, _) = setup();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    fs::write(&a, "").unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fs::rename(&a, &b).unwrap();
                fs::rename(&b, &a).unwrap();
            }
        });
        for _ in 0..3000 {
            root.walk(Path::new("etc/../etc/deep/../file"), Walk::InRoot).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn attributes_of_links_and_modes_are_exact() {
    let (_dir, root, top) = setup();
    let top_dir = root.top();
    let when = Timestamp::new(-5, 250_000_000);
    top_dir.set_times(name("absolute"), when, when).unwrap();
    assert_eq!(top_dir.stat(name("absolute")).unwrap().modified, when);
    assert_ne!(top_dir.stat(name("outside")).unwrap().modified, when);
    let link = root.walk_to_link(Path::new("absolute"), Walk::InRoot).unwrap();
    let later = Timestamp::new(1 << 33, 1);
    node::set_times(link.as_fd(), later, later).unwrap();
    assert_eq!(top_dir.stat(name("absolute")).unwrap().modified, later);
    assert_eq!(node::read_link(link.as_fd()).unwrap(), Path::new("/outside"));
    for mode in [0o7777, 0o666, 0o4755, 0] {
        drop(top_dir.create_file(name("file"), mode).unwrap());
        assert_eq!(fs::metadata(top.join("file")).unwrap().mode() & 0o7777, mode);
        top_dir.unlink(name("file")).unwrap();
        top_dir.mkdir(name("dir"), mode).unwrap();
        assert_eq!(fs::metadata(top.join("dir")).unwrap().mode() & 0o7777, mode);
        top_dir.rmdir(name("dir")).unwrap();
    }
    let large = vec![7; 3000];
    top_dir.set_xattr(name("etc"), name("user.large"), &large).unwrap();
    top_dir.set_xattr(name("etc"), name("user.a"), b"1").unwrap();
    let all = top_dir.xattrs(name("etc")).unwrap();
    assert_eq!(all, [(OsString::from("user.a"), b"1".to_vec()), (OsString::from("user.large"), large)]);
    let etc = top_dir.open_path(name("etc")).unwrap();
    assert_eq!(node::xattrs(etc.as_fd()).unwrap(), all);
    node::remove_xattr(etc.as_fd(), name("user.a")).unwrap();
    node::remove_xattr(etc.as_fd(), name("user.a")).unwrap();
    assert_eq!(node::xattr(etc.as_fd(), name("user.a")).unwrap(), None);
}

#[test]
fn a_deep_tree_is_removed_with_few_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::open(dir.path()).unwrap();
    let mut at: Dir = root.top().mkdir(name("tree"), 0o755).unwrap();
    for depth in 0..6000 {
        at = at.mkdir(name("d"), 0o755).unwrap();
        if depth % 100 == 0 {
            at.symlink(name("/etc"), name("link")).unwrap();
            at.mkdir(name(".removed-1"), 0).unwrap().create_file(name("f"), 0).unwrap();
        }
    }
    drop(at);
    let before = fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(root.remove_all(Path::new("tree"), Walk::NoLinks).unwrap() > 0);
    assert_eq!(fs::read_dir("/proc/self/fd").unwrap().count(), before);
    assert_eq!(root.read_dir(Path::new(""), Walk::NoLinks).unwrap(), []);
    assert_eq!(root.remove_all(Path::new("tree"), Walk::NoLinks).unwrap(), 0);
}

#[test]
fn removing_does_not_follow_links_and_counts_what_it_frees() {
    let (dir, root, top) = setup();
    let kept = dir.path().join("kept");
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("file"), vec![1; 100_000]).unwrap();
    fs::create_dir(top.join("gone")).unwrap();
    symlink(&kept, top.join("gone/link")).unwrap();
    fs::hard_link(kept.join("file"), top.join("gone/second")).unwrap();
    fs::write(top.join("gone/own"), vec![1; 50_000]).unwrap();
    let freed = root.remove_all(Path::new("gone"), Walk::NoLinks).unwrap();
    assert!((50_000..90_000).contains(&freed), "{freed}");
    assert!(!top.join("gone").exists() && kept.join("file").exists());
}
