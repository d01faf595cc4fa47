//! Selecting, hashing and copying on plain directories: `below` is any directory, so no mount is needed.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use rbuild_executor::files::below::Below;
use rbuild_executor::files::copy::{CopyRules, copy};
use rbuild_executor::files::hash;
use rbuild_executor::files::select::{Query, Selected, select};
use rbuild_executor::files::walk::PathFilter;
use rbuild_executor::files::writer::{Found, Look, TreeWriter};
use rbuild_executor::{ExecutorError, files};
use rbuild_graph::pattern::Patterns;
use rbuild_solver::ContentHash;
use rustix::fs::{Mode, OFlags};

fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn write(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

struct Ignored(Patterns);

impl PathFilter for Ignored {
    fn excludes(&self, path: &[u8], is_dir: bool) -> bool {
        self.0.excludes(path, is_dir)
    }
    fn reincludes_below(&self, path: &[u8]) -> bool {
        self.0.may_bring_back_below(path)
    }
}

fn ignoring(patterns: &[&str]) -> Arc<dyn PathFilter> {
    Arc::new(Ignored(Patterns::new(patterns.iter().copied()).unwrap()))
}

fn find(root: &Path, sources: &[&str], hidden: Option<&Arc<dyn PathFilter>>) -> Result<Vec<Selected>, ExecutorError> {
    let sources: Vec<Vec<u8>> = sources.iter().map(|s| s.as_bytes().to_vec()).collect();
    let query = Query {
        sources: &sources,
        wildcards: true,
        deep: false,
        allow_empty: true,
        follow_links: true,
        hidden,
        exclude: None,
    };
    select(open(root).as_fd(), &query)
}

fn rules(dest: &str) -> CopyRules {
    CopyRules {
        dest: dest.as_bytes().to_vec(),
        owner: Some((0, 0)),
        mode: None,
        timestamp: None,
        implied_time: 315_619_200,
        contents_only: true,
        parents: false,
        replace: false,
    }
}

/// Copies `source` of `from` to `dest` over `below`; the upper directory and whether anything changed.
fn put(from: &Path, source: &str, dest: &str, below: &Path) -> Result<(tempfile::TempDir, bool), ExecutorError> {
    let upper = tempfile::tempdir().unwrap();
    let selected = find(from, &[source], None)?;
    let mut writer = TreeWriter::new(upper.path(), Some(open(below).into()))?;
    copy(&mut writer, open(from).as_fd(), &selected, &rules(dest))?;
    let changed = writer.finish()?;
    Ok((upper, changed))
}

fn content(root: &Path, source: &str) -> ContentHash {
    let mut all = Vec::new();
    for one in find(root, &[source], None).unwrap() {
        all.extend(hash::tree(open(root).as_fd(), &one.tree, hash::Reading::default()).unwrap());
    }
    hash::combine(all.iter().map(|found| (found.path.as_slice(), &found.hash)))
}

#[test]
fn times_do_not_count_and_everything_else_does() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "d/a", "1");
    write(dir.path(), "d/b", "2");
    let before = content(dir.path(), "d");
    fs::File::open(dir.path().join("d/a")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(content(dir.path(), "d"), before, "a time counted");
    write(dir.path(), "other", "outside of the selection");
    assert_eq!(content(dir.path(), "d"), before, "a file outside counted");

    type Change<'a> = (&'a str, &'a dyn Fn(&Path));
    let changes: [Change<'_>; 6] = [
        ("a byte", &|d| fs::write(d.join("d/a"), "x").unwrap()),
        ("a mode", &|d| fs::set_permissions(d.join("d/b"), fs::Permissions::from_mode(0o600)).unwrap()),
        ("an owner", &|d| std::os::unix::fs::chown(d.join("d/b"), Some(7), None).unwrap()),
        ("a name", &|d| fs::rename(d.join("d/b"), d.join("d/c")).unwrap()),
        ("a directory", &|d| fs::create_dir(d.join("d/e")).unwrap()),
        ("a link", &|d| symlink("a", d.join("d/l")).unwrap()),
    ];
    let mut seen = vec![before];
    for (what, change) in changes {
        change(dir.path());
        let now = content(dir.path(), "d");
        assert!(!seen.contains(&now), "{what} did not count");
        seen.push(now);
    }
}

#[test]
fn a_source_that_is_not_there_says_why() {
    let dir = tempfile::tempdir().unwrap();
    for path in ["d/eee/y", "file", "README.md"] {
        write(dir.path(), path, path);
    }
    symlink("nowhere/at all", dir.path().join("loose")).unwrap();
    symlink("../..", dir.path().join("d/up")).unwrap();
    symlink("round", dir.path().join("round")).unwrap();
    for (source, want) in [
        ("d/eeee/y", "did you mean d/eee/y?"),
        ("d/eeee/nothing", "there is no d/eeee; did you mean d/eee?"),
        ("d/eee/z", "did you mean d/eee/y?"),
        ("readme.md", "did you mean README.md?"),
        ("loose", "loose is a symbolic link to nowhere/at all, which is not there"),
        ("d/up/loose/x", "loose is a symbolic link to nowhere/at all, which is not there"),
        ("round", "round is a symbolic link to round, which is not there"),
        ("file/x", "file is a file, not a directory"),
        ("d/up/fil", "did you mean file?"),
    ] {
        let Err(ExecutorError::SourceNotFound { path, hints }) = find(dir.path(), &[source], None) else {
            panic!("{source} was found");
        };
        assert_eq!((path, hints), (format!("/{source}"), vec![want.to_owned()]));
    }
    let Err(ExecutorError::SourceNotFound { hints, .. }) = find(dir.path(), &["entirely/else"], None) else { panic!() };
    assert!(hints.is_empty(), "{hints:?}");
    let empty = tempfile::tempdir().unwrap();
    let Err(ExecutorError::SourceNotFound { hints, .. }) = find(empty.path(), &["x"], None) else { panic!() };
    assert_eq!(hints, ["there are no files at all to copy from"]);
}

#[test]
fn what_is_ignored_does_not_exist() {
    let dir = tempfile::tempdir().unwrap();
    for path in ["a.md", "keep.md", "d/x", "d/keep/y", "e/z"] {
        write(dir.path(), path, path);
    }
    let hidden = ignoring(&["*.md", "!keep.md", "d", "!d/keep/y", "e"]);
    let found = find(dir.path(), &["."], Some(&hidden)).unwrap();
    let names: Vec<String> = found[0]
        .tree
        .dirs
        .iter()
        .flat_map(|dir| {
            let path = String::from_utf8(dir.path.clone()).unwrap();
            dir.entries.iter().map(move |entry| format!("{path}/{}", entry.name.to_str().unwrap()))
        })
        .collect();
    assert_eq!(names, ["/keep.md", "d/keep/y"]);
    let Err(ExecutorError::SourceNotFound { hints, .. }) = find(dir.path(), &["a.md"], Some(&hidden)) else {
        panic!("an ignored file was found");
    };
    assert!(hints[0].contains(".dockerignore"), "{hints:?}");
    let Err(ExecutorError::SourceNotFound { hints, .. }) = find(dir.path(), &["keeep.md"], Some(&hidden)) else {
        panic!("a missing file was found");
    };
    assert_eq!(hints, ["did you mean keep.md?"]);
}

#[test]
fn sources_stay_within_their_root() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    write(&root, "in", "inside");
    write(dir.path(), "out", "outside");
    symlink("../../../../out", root.join("up")).unwrap();
    symlink("/in", root.join("absolute")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    assert_eq!(find(&root, &["../../in"], None).unwrap()[0].path, b"in");
    assert_eq!(find(&root, &["absolute"], None).unwrap()[0].tree.path, b"in");
    for outside in ["up", "loop", "../out"] {
        assert!(matches!(find(&root, &[outside], None), Err(ExecutorError::SourceNotFound { .. })), "{outside}");
    }
}

#[test]
fn parents_are_copied_up_as_they_were() {
    let (below, from) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir_all(below.path().join("a/b")).unwrap();
    fs::set_permissions(below.path().join("a"), fs::Permissions::from_mode(0o711)).unwrap();
    let old = filetime(below.path().join("a"), 1000);
    write(from.path(), "f", "new");
    let (upper, changed) = put(from.path(), "f", "/a/b/", below.path()).unwrap();
    assert!(changed);
    let parent = fs::metadata(upper.path().join("a")).unwrap();
    assert_eq!((parent.permissions().mode() & 0o7777, parent.mtime()), (0o711, old));
    assert_eq!(fs::read_to_string(upper.path().join("a/b/f")).unwrap(), "new");
}

fn filetime(path: impl AsRef<Path>, seconds: u64) -> i64 {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    fs::File::open(path).unwrap().set_modified(time).unwrap();
    seconds as i64
}

#[test]
fn links_at_the_destination_lead_within_the_tree() {
    let (below, from) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir_all(below.path().join("real/sub")).unwrap();
    symlink("/real", below.path().join("abs")).unwrap();
    symlink("../../../../../../../etc", below.path().join("esc")).unwrap();
    write(from.path(), "f", "x");
    let (upper, _) = put(from.path(), "f", "/abs/sub/g", below.path()).unwrap();
    assert!(upper.path().join("real/sub/g").is_file());
    let (upper, _) = put(from.path(), "f", "/esc/rbuild-escaped", below.path()).unwrap();
    assert!(upper.path().join("etc/rbuild-escaped").is_file());
    assert!(!Path::new("/etc/rbuild-escaped").exists());
}

#[test]
fn directories_merge_and_files_are_replaced() {
    let (below, from) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(below.path(), "t/same", "old");
    write(below.path(), "t/keep", "kept");
    write(below.path(), "t/sub/x", "x");
    write(from.path(), "d/same", "new");
    write(from.path(), "d/sub/y", "y");
    let (upper, _) = put(from.path(), "d", "/t", below.path()).unwrap();
    assert_eq!(fs::read_to_string(upper.path().join("t/same")).unwrap(), "new");
    assert!(upper.path().join("t/sub/y").is_file() && !upper.path().join("t/keep").exists());

    write(from.path(), "clash/sub", "a file where a directory is");
    assert!(matches!(put(from.path(), "clash", "/t", below.path()), Err(ExecutorError::FileOnDirectory { .. })));
    write(from.path(), "clash2/keep/deep", "a directory where a file is");
    assert!(matches!(put(from.path(), "clash2", "/t", below.path()), Err(ExecutorError::DirectoryOnFile { .. })));
}

#[test]
fn nothing_copied_is_nothing_changed() {
    let (below, from) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(below.path().join("w")).unwrap();
    fs::create_dir(from.path().join("empty")).unwrap();
    let (upper, changed) = put(from.path(), "empty", "/w/", below.path()).unwrap();
    assert!(!changed && fs::read_dir(upper.path()).unwrap().next().is_none());
    let (_, changed) = put(from.path(), "*.none", "/x/", below.path()).unwrap();
    assert!(!changed);
}

#[test]
fn modes_links_and_times_arrive() {
    let (below, from) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(from.path(), "d/suid", "x");
    fs::set_permissions(from.path().join("d/suid"), fs::Permissions::from_mode(0o4755)).unwrap();
    std::os::unix::fs::chown(from.path().join("d/suid"), Some(5), Some(6)).unwrap();
    fs::set_permissions(from.path().join("d/suid"), fs::Permissions::from_mode(0o4755)).unwrap();
    filetime(from.path().join("d/suid"), 77);
    fs::hard_link(from.path().join("d/suid"), from.path().join("d/twin")).unwrap();
    symlink("nowhere", from.path().join("d/broken")).unwrap();
    let (upper, _) = put(from.path(), "d", "/d", below.path()).unwrap();
    let meta = fs::metadata(upper.path().join("d/suid")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime()), (0o4755, 0, 0, 77));
    assert_eq!(meta.ino(), fs::metadata(upper.path().join("d/twin")).unwrap().ino());
    assert_eq!(fs::read_link(upper.path().join("d/broken")).unwrap(), Path::new("nowhere"));
}

#[test]
fn a_file_that_changed_after_the_walk_is_an_error() {
    let (upper, from) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(from.path(), "f", "as it was");
    let selected = find(from.path(), &["f"], None).unwrap();
    write(from.path(), "f", "and as it is now");
    let mut writer = TreeWriter::new(upper.path(), None).unwrap();
    let copied = copy(&mut writer, open(from.path()).as_fd(), &selected, &rules("/f"));
    assert!(matches!(copied, Err(ExecutorError::Changed { .. })), "{copied:?}");
}

#[test]
fn what_was_removed_is_gone_and_can_come_back() {
    let (upper, below) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(below.path(), "d/old", "old");
    let mut writer = TreeWriter::new(upper.path(), Some(open(below.path()).into())).unwrap();
    writer.remove(b"d").unwrap();
    assert_eq!(writer.look(b"d").unwrap(), Found::Absent);
    assert_eq!(writer.look(b"d/old").unwrap(), Found::Absent);
    let look = Look { mode: 0o755, uid: 0, gid: 0, mtime: (5, 0) };
    writer.make_dirs(b"d", &look).unwrap();
    writer.write_file(b"d/new", b"new", &look).unwrap();
    assert_eq!(writer.look(b"d/old").unwrap(), Found::Absent, "the old content shows through");
    assert!(writer.finish().unwrap());
    let mut value = [0u8; 4];
    let top = open(&upper.path().join("d"));
    assert_eq!(rustix::fs::fgetxattr(&top, c"trusted.overlay.opaque", &mut value), Ok(1));
    assert_eq!(files::meta::Meta::of_fd(&top).unwrap().mtime.0, 5);
}

/// A stack of overlay's directories, read here and shown by the kernel.
#[test]
fn layers_that_are_looked_through_are_what_a_mount_shows() {
    let dir = tempfile::tempdir().unwrap();
    let layers: Vec<_> = ["upper", "middle", "lower"].map(|name| dir.path().join(name)).to_vec();
    for path in ["upper/d", "upper/o", "upper/now-dir", "middle/d/e", "lower/d/e", "lower/o", "lower/now-file"] {
        fs::create_dir_all(dir.path().join(path)).unwrap();
    }
    for file in ["upper/d/a", "upper/o/new", "upper/now-file", "middle/d/e/m", "middle/x", "middle/gone", "lower/d/a"] {
        write(dir.path(), file, file);
    }
    for file in ["lower/d/c", "lower/d/e/l", "lower/o/old", "lower/now-dir", "lower/now-file/y", "lower/x"] {
        write(dir.path(), file, file);
    }
    symlink("d", layers[1].join("link")).unwrap();
    for gone in ["upper/gone", "upper/d/c", "middle/lost"] {
        let device = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join(gone), device, Mode::empty(), 0).unwrap();
    }
    let opaque = open(&layers[0].join("o"));
    rustix::fs::fsetxattr(&opaque, c"trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty()).unwrap();
    fs::set_permissions(layers[1].join("d"), fs::Permissions::from_mode(0o700)).unwrap();

    let upper = tempfile::tempdir().unwrap();
    let view = rbuild_store::Mounts::Overlay { lowers: layers.clone(), upper: None, work: None };
    let mounted = rbuild_runtime::mount_detached(&view).unwrap();
    let shown = TreeWriter::new(upper.path(), Some(mounted.into())).unwrap();
    let stacked = TreeWriter::new(upper.path(), Some(Below::stacked(&layers).unwrap())).unwrap();
    let paths = [
        "d",
        "d/a",
        "d/c",
        "d/e",
        "d/e/m",
        "d/e/l",
        "o",
        "o/new",
        "o/old",
        "now-file",
        "now-file/y",
        "now-dir",
        "now-dir/z",
        "gone",
        "lost",
        "x",
        "link",
        "link/a",
        "nothing",
        "nothing/at/all",
    ];
    let mut seen = std::collections::BTreeSet::new();
    for path in paths {
        let (shown, stacked) = (shown.look(path.as_bytes()).unwrap(), stacked.look(path.as_bytes()).unwrap());
        // The numbers of directories are the mount's own.
        let plain = |found: Found| match found {
            Found::Directory(meta) => format!("directory {:o} {}", meta.mode, meta.uid),
            Found::Other(meta) => format!("other {} {:?}", meta.size, meta.mtime),
            other => format!("{other:?}"),
        };
        seen.insert(plain(shown.clone()));
        assert_eq!(plain(stacked), plain(shown), "{path}");
    }
    assert!(seen.len() > 6, "little was compared: {seen:?}");
    for path in ["d/e/l", "d/a", "o/old", "gone"] {
        let read = |writer: &TreeWriter| {
            let file = writer.open_existing(path.as_bytes()).map(fs::File::from);
            file.and_then(|file| std::io::read_to_string(file).map_err(|_| rustix::io::Errno::IO))
        };
        assert_eq!(read(&stacked), read(&shown), "{path}");
    }
}
