use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use rustix::fs::{FileType, Mode, OFlags};

use super::*;

fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn source() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("d/s")).unwrap();
    fs::write(at("d/f"), "new").unwrap();
    fs::hard_link(at("d/f"), at("g")).unwrap();
    symlink("f", at("d/l")).unwrap();
    fs::set_permissions(at("d/f"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(at("d/s"), fs::Permissions::from_mode(0o750)).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("d/null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), 259)
        .unwrap();
    dir
}

#[test]
fn files_arrive_without_powers() {
    let (from, to) = (source(), tempfile::tempdir().unwrap());
    let dest = to.path().join("not/yet");
    let exported = export(open(from.path()), &dest, Some(1_700_000_000), FilesMode::Copy).unwrap();
    assert_eq!(exported, Exported { bytes: 3, removed: 0, left_out: 1 });
    let file = fs::metadata(dest.join("d/f")).unwrap();
    assert_eq!((file.mode() & 0o7777, file.mtime(), file.nlink()), (0o755, 1_700_000_000, 2));
    assert_eq!(fs::metadata(dest.join("g")).unwrap().ino(), file.ino());
    let dir = fs::metadata(dest.join("d/s")).unwrap();
    assert_eq!((dir.mode() & 0o7777, dir.mtime()), (0o750, 1_700_000_000));
    assert_eq!(fs::read_link(dest.join("d/l")).unwrap(), Path::new("f"));
    assert!(!dest.join("d/null").exists());
    assert_eq!(fs::read_dir(dest.join("d")).unwrap().count(), 3);
}

/// S57: what an earlier export left cannot lead the next one out of the destination.
#[test]
fn links_at_the_destination_are_replaced() {
    let (from, to, outside) = (source(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(outside.path().join("f"), "untouched").unwrap();
    fs::write(outside.path().join("victim"), "untouched").unwrap();
    symlink(outside.path(), to.path().join("d")).unwrap();
    symlink(outside.path().join("victim"), to.path().join("g")).unwrap();
    export(open(from.path()), to.path(), None, FilesMode::Copy).unwrap();
    for name in ["f", "victim"] {
        assert_eq!(fs::read_to_string(outside.path().join(name)).unwrap(), "untouched");
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 2);
    assert_eq!(fs::read_to_string(to.path().join("d/f")).unwrap(), "new");
    assert!(fs::symlink_metadata(to.path().join("g")).unwrap().is_file());
}

#[test]
fn directories_and_files_do_not_replace_each_other() {
    let (from, to) = (source(), tempfile::tempdir().unwrap());
    fs::create_dir(to.path().join("g")).unwrap();
    let error = export(open(from.path()), to.path(), None, FilesMode::Copy).unwrap_err();
    assert_eq!(error.message, "cannot replace to directory /g with file");
    fs::remove_dir_all(to.path().join("g")).unwrap();
    fs::write(to.path().join("d"), "the user's").unwrap();
    let error = export(open(from.path()), to.path(), None, FilesMode::Copy).unwrap_err();
    assert_eq!(error.message, "cannot copy to non-directory: /d");
    assert_eq!(fs::read_to_string(to.path().join("d")).unwrap(), "the user's");
}

#[test]
fn what_the_result_has_not_is_removed_when_asked_for() {
    let (from, to, outside) = (source(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(outside.path().join("f"), "untouched").unwrap();
    fs::create_dir_all(to.path().join("d/old/deep")).unwrap();
    fs::create_dir(to.path().join("g")).unwrap();
    fs::write(to.path().join("stray"), "").unwrap();
    symlink(outside.path(), to.path().join("link")).unwrap();
    let exported = export(open(from.path()), to.path(), None, FilesMode::Delete).unwrap();
    assert_eq!(exported.removed, 4);
    let mut names: Vec<_> = fs::read_dir(to.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["d", "g"]);
    assert!(!to.path().join("d/old").exists());
    assert_eq!(fs::read_to_string(to.path().join("g")).unwrap(), "new");
    assert_eq!(fs::read_to_string(outside.path().join("f")).unwrap(), "untouched");
}

#[test]
fn a_file_more_takes_the_place_of_a_file() {
    let to = tempfile::tempdir().unwrap();
    put(to.path(), "p.json", b"old", None).unwrap();
    put(to.path(), "p.json", b"{}", Some(5)).unwrap();
    let meta = fs::metadata(to.path().join("p.json")).unwrap();
    assert_eq!((meta.len(), meta.mode() & 0o777, meta.mtime()), (2, 0o644, 5));
    fs::create_dir(to.path().join("d")).unwrap();
    assert!(put(to.path(), "d", b"{}", None).unwrap_err().message.starts_with("cannot write /d of the result"));
    assert!(put(to.path(), "../x", b"{}", None).is_err());
}
