//! What every driver of snapshots keeps to. One suite, run for each.

#[path = "fixture/disk.rs"]
mod disk;

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use disk::Disk;
use rbuild_oci::{ChainId, DiffId, Digest};
use rbuild_store::root::{Kind, Timestamp, node};
use rbuild_store::snapshots::{DEEPEST, Subvolumes};
use rbuild_store::{Driver, Lease, Mounts, Root, Snapshot, Store, StoreError, StoreOptions, Walk};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

struct Setup {
    dir: tempfile::TempDir,
    store: Store,
    lease: Lease,
    _disk: Option<Disk>,
}

fn setup(driver: Driver) -> Setup {
    try_setup(driver).unwrap()
}

/// `None` where there is no disk for the driver.
fn try_setup(driver: Driver) -> Option<Setup> {
    let (disk, dir) = match driver {
        Driver::Btrfs => {
            let disk = Disk::btrfs()?;
            let dir = tempfile::tempdir_in(disk.path()).unwrap();
            (Some(disk), dir)
        }
        Driver::Overlay | Driver::Vfs => (None, tempfile::tempdir().unwrap()),
    };
    let store = Store::open(options(driver, &dir.path().join("store"))).unwrap();
    let lease = store.lease("test").unwrap();
    Some(Setup { dir, store, lease, _disk: disk })
}

fn options(driver: Driver, root: &Path) -> StoreOptions {
    let subvolumes = Some(Arc::new(rbuild_runtime::disk::Btrfs) as Arc<dyn Subvolumes>);
    StoreOptions { driver: Some(driver), subvolumes, ..StoreOptions::new(root) }
}

impl Setup {
    /// A snapshot on `parent` made by `write` through the mounts.
    fn make(&self, parent: Option<&Snapshot>, write: impl FnOnce(&Path)) -> Snapshot {
        let active = self.store.snapshots().prepare(&self.lease, parent.map(Snapshot::id)).unwrap();
        see(active.mounts().unwrap(), |path| write(path));
        self.store.snapshots().commit(active).unwrap()
    }

    fn view<T>(&self, snapshot: &Snapshot, look: impl FnOnce(&Path) -> T) -> T {
        see(&self.store.snapshots().view(snapshot.id()).unwrap(), look)
    }

    fn ingest(&self) -> Vec<String> {
        names(self.lease.ingest().unwrap())
    }
}

/// Mounts, attached nowhere, and hands over a path that leads there.
fn see<T>(mounts: &Mounts, look: impl FnOnce(&Path) -> T) -> T {
    let (lowers, upper, work) = match mounts {
        Mounts::Bind { source, .. } => return look(source),
        Mounts::Overlay { lowers, upper, work } => (lowers, upper, work),
    };
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    let set = |key: &str, value: &Path| rustix::mount::fsconfig_set_string(fs.as_fd(), key, value).unwrap();
    for option in ["index", "metacopy", "redirect_dir"] {
        set(option, Path::new("off"));
    }
    let joined = lowers.iter().map(|p| p.to_str().unwrap()).collect::<Vec<_>>().join(":");
    match joined.len() < 250 {
        true => set("lowerdir", Path::new(&joined)),
        false => lowers.iter().for_each(|lower| set("lowerdir+", lower)),
    }
    if let (Some(upper), Some(work)) = (upper, work) {
        set("upperdir", upper);
        set("workdir", work);
    }
    rustix::mount::fsconfig_create(fs.as_fd()).unwrap();
    let mount = rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    look(Path::new(&format!("/proc/self/fd/{}/", mount.as_raw_fd())))
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn what_was_written_is_there(setup: Setup) {
    let empty = setup.make(None, |_| {});
    setup.view(&empty, |path| {
        assert!(names(path).is_empty());
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o755);
    });
    let base = setup.make(Some(&empty), |path| {
        fs::create_dir(path.join("d")).unwrap();
        fs::write(path.join("d/old"), "old").unwrap();
        fs::write(path.join("d/changed"), "1").unwrap();
        fs::write(path.join("gone"), "gone").unwrap();
    });
    let top = setup.make(Some(&base), |path| {
        fs::write(path.join("d/changed"), "22").unwrap();
        fs::write(path.join("d/new"), "new").unwrap();
        fs::remove_file(path.join("gone")).unwrap();
    });
    let again = setup.make(Some(&top), |path| {
        fs::remove_dir_all(path.join("d")).unwrap();
        fs::create_dir(path.join("d")).unwrap();
        fs::write(path.join("d/only"), "").unwrap();
    });
    setup.view(&base, |path| {
        assert_eq!(names(path), ["d", "gone"]);
        assert_eq!(fs::read_to_string(path.join("d/changed")).unwrap(), "1");
    });
    setup.view(&top, |path| {
        assert_eq!(names(path), ["d"]);
        assert_eq!(names(&path.join("d")), ["changed", "new", "old"]);
        assert_eq!(fs::read_to_string(path.join("d/changed")).unwrap(), "22");
    });
    setup.view(&again, |path| assert_eq!(names(&path.join("d")), ["only"]));
    let chain = setup.store.snapshots().chain(again.id()).unwrap();
    assert_eq!(chain, [empty.id(), base.id(), top.id(), again.id()].map(Clone::clone));
    assert_eq!(again.parent(), Some(top.id()));
}

fn the_upper_directory_and_what_is_below_are_as_promised(setup: Setup) {
    let base = setup.make(None, |path| fs::write(path.join("below"), "x").unwrap());
    let active = setup.store.snapshots().prepare(&setup.lease, Some(base.id())).unwrap();
    fs::write(active.upper().join("direct"), "y").unwrap();
    match active.below() {
        Some(mounts) => see(mounts, |path| assert_eq!(names(path), ["below"])),
        None => assert_eq!(names(active.upper()), ["below", "direct"]),
    }
    assert_eq!(active.below().is_some(), setup.store.driver() == Driver::Overlay);
    assert!(active.upper().starts_with(setup.lease.ingest().unwrap()));
    let top = setup.store.snapshots().commit(active).unwrap();
    setup.view(&top, |path| assert_eq!(names(path), ["below", "direct"]));
    assert!(setup.store.snapshots().path(top.id()).join("direct").exists());
    assert!(setup.ingest().is_empty());
}

fn what_is_dropped_leaves_nothing(setup: Setup) {
    let base = setup.make(None, |path| fs::write(path.join("f"), "x").unwrap());
    let active = setup.store.snapshots().prepare(&setup.lease, Some(base.id())).unwrap();
    fs::create_dir_all(active.upper().join("a/b/c")).unwrap();
    drop(active);
    assert!(setup.ingest().is_empty());
    assert_eq!(setup.store.snapshots().list().unwrap().len(), 1);
    let missing = "zz".parse().unwrap();
    let error = setup.store.snapshots().prepare(&setup.lease, Some(&missing)).unwrap_err();
    assert!(matches!(error, StoreError::NoSnapshot(_)), "{error}");
    assert!(setup.ingest().is_empty());
}

fn the_root_looks_like_its_parents(setup: Setup) {
    let when = Timestamp::new(1_000_000_000, 5);
    let base = setup.make(None, |path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o1711)).unwrap();
        let root = Root::open(path).unwrap();
        let root = root.top().as_fd();
        node::set_owner(root, 12, 34).unwrap();
        node::set_xattr(root, OsStr::new("user.mark"), b"m").unwrap();
        node::set_mode(root, 0o1711).unwrap();
        node::set_times(root, when, when).unwrap();
    });
    let top = setup.make(Some(&base), |_| {});
    let metadata = setup.view(&top, |path| fs::metadata(path).unwrap());
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (12, 34, 0o1711));
    let own = setup.store.snapshots().open(top.id()).unwrap();
    assert_eq!(own.top().metadata().unwrap().modified, when);
    let xattrs = node::xattrs(own.top().as_fd()).unwrap();
    assert_eq!(xattrs.iter().filter(|(name, _)| name == "user.mark").count(), 1);
    assert!(xattrs.iter().all(|(name, _)| !name.to_string_lossy().starts_with("trusted.overlay.opaque")));
}

fn everything_a_tree_can_hold_comes_through(setup: Setup) {
    let when = Timestamp::new(981_173_106, 789_000_000);
    let base = setup.make(None, |path| {
        let root = Root::open(path).unwrap();
        let top = root.top();
        fs::create_dir(path.join("dir")).unwrap();
        fs::write(path.join("dir/one"), "linked").unwrap();
        fs::hard_link(path.join("dir/one"), path.join("two")).unwrap();
        symlink("dir/one", path.join("link")).unwrap();
        fs::hard_link(path.join("link"), path.join("dir/second-link")).unwrap();
        top.mknod(OsStr::new("null"), Kind::CharDevice, 0o666, rustix::fs::makedev(1, 3)).unwrap();
        top.mknod(OsStr::new("fifo"), Kind::Fifo, 0o640, 0).unwrap();
        let sparse = fs::File::create(path.join("sparse")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        sparse.write_all_at(b"middle", 32 << 20).unwrap();
        fs::write(path.join("setuid"), "#!").unwrap();
        top.set_owner(OsStr::new("setuid"), 7, 8).unwrap();
        top.set_mode(OsStr::new("setuid"), 0o6711).unwrap();
        top.set_xattr(OsStr::new("setuid"), OsStr::new("user.x"), b"\0\xff").unwrap();
        let odd = <OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"odd\xff\n");
        fs::write(path.join(odd), "").unwrap();
        for name in ["link", "setuid", "null", "dir"] {
            top.set_times(OsStr::new(name), when, when).unwrap();
        }
    });
    let top = setup.make(Some(&base), |path| fs::write(path.join("new"), "").unwrap());
    setup.view(&top, |path| {
        let root = Root::open(path).unwrap();
        let stat = |name: &str| root.lstat(Path::new(name), Walk::NoLinks).unwrap();
        assert_eq!(stat("dir/one").inode, stat("two").inode);
        assert_eq!(stat("two").links, 2);
        assert_eq!(stat("link").inode, stat("dir/second-link").inode);
        assert_eq!((stat("null").kind, stat("null").rdev), (Kind::CharDevice, rustix::fs::makedev(1, 3)));
        assert_eq!((stat("fifo").kind, stat("fifo").mode), (Kind::Fifo, 0o640));
        assert_eq!(stat("sparse").size, 64 << 20);
        assert!(stat("sparse").disk < 1 << 20, "holes were filled");
        let mut middle = [0; 6];
        fs::File::open(path.join("sparse")).unwrap().read_exact_at(&mut middle, 32 << 20).unwrap();
        assert_eq!(&middle, b"middle");
        let setuid = stat("setuid");
        assert_eq!((setuid.uid, setuid.gid, setuid.mode), (7, 8, 0o6711));
        let value = root.top().xattr(OsStr::new("setuid"), OsStr::new("user.x")).unwrap();
        assert_eq!(value.unwrap(), b"\0\xff");
        for name in ["link", "setuid", "null", "dir"] {
            assert_eq!(stat(name).modified, when, "{name}");
        }
        assert_eq!(root.read_dir(Path::new(""), Walk::NoLinks).unwrap().len(), 9);
    });
}

fn ids_are_not_used_again_and_users_protect(setup: Setup) {
    let snapshots = setup.store.snapshots();
    let base = setup.make(None, |_| {});
    let top = setup.make(Some(&base), |_| {});
    assert!(matches!(snapshots.remove(base.id()), Err(StoreError::SnapshotInUse(_))));
    drop(setup.lease);
    let (base, top) = {
        // The last handles: with them the lease goes.
        let handles = (base, top);
        (handles.0.id().clone(), handles.1.id().clone())
    };
    assert!(matches!(snapshots.remove(&base), Err(StoreError::SnapshotInUse(_))));
    assert_eq!(snapshots.users(&base).unwrap(), [format!("snapshot:{top}")]);
    snapshots.remove(&top).unwrap();
    assert!(!snapshots.path(&top).exists());
    assert!(matches!(snapshots.remove(&top), Err(StoreError::NoSnapshot(_))));
    let lease = setup.store.lease("test").unwrap();
    assert!(matches!(snapshots.get(&top, &lease), Err(StoreError::NoSnapshot(_))));
    let held = snapshots.get(&base, &lease).unwrap();
    assert!(matches!(snapshots.remove(&base), Err(StoreError::SnapshotInUse(_))));
    let next = snapshots.commit(snapshots.prepare(&lease, None).unwrap()).unwrap();
    assert!(*next.id() != top && *next.id() != base);
    drop((held, next, lease));
    snapshots.remove(&base).unwrap();
}

fn a_lost_directory_is_a_missing_snapshot(setup: Setup) {
    let base = setup.make(None, |_| {});
    fs::rename(setup.store.snapshots().path(base.id()).parent().unwrap(), setup.dir.path().join("lost")).unwrap();
    let error = setup.store.snapshots().get(base.id(), &setup.lease).unwrap_err();
    assert!(error.is_not_found(), "{error}");
}

fn chains_are_known_by_their_layers(setup: Setup) {
    let snapshots = setup.store.snapshots();
    let base = setup.make(None, |_| {});
    let middle = setup.make(Some(&base), |_| {});
    let top = setup.make(Some(&middle), |_| {});
    let [a, b, c] = ["a", "b", "c"].map(|text| DiffId(Digest::sha256_of(text.as_bytes())));
    let find = |layers: &[DiffId]| {
        let found = snapshots.by_chain_id(&ChainId::of(layers).unwrap(), &setup.lease).unwrap();
        found.map(|snapshot| snapshot.id().clone())
    };
    // In any order, since layers are hashed while later ones are being made.
    snapshots.set_layer(top.id(), &c, 3).unwrap();
    snapshots.set_layer(middle.id(), &b, 2).unwrap();
    assert_eq!(find(&[a.clone(), b.clone()]), None);
    snapshots.set_layer(base.id(), &a, 1).unwrap();
    assert_eq!(find(std::slice::from_ref(&a)).as_ref(), Some(base.id()));
    assert_eq!(find(&[a.clone(), b.clone()]).as_ref(), Some(middle.id()));
    assert_eq!(find(&[a.clone(), b.clone(), c.clone()]).as_ref(), Some(top.id()));
    assert_eq!(find(&[b.clone(), c]), None);
    assert_eq!(snapshots.by_diff_id(&b).unwrap(), [middle.id().clone()]);
    let row = snapshots.row(middle.id()).unwrap();
    assert_eq!((row.diff_id, row.tar_size, row.driver), (Some(b), Some(2), setup.store.driver()));
}

fn a_layer_of_ones_own_outlives_the_lease(setup: Setup) {
    let base = setup.make(None, |path| fs::write(path.join("base"), "x").unwrap());
    let snapshots = setup.store.snapshots();
    let home = setup.dir.path().join("container");
    let mounts = snapshots.make_layer(&home, Some(base.id())).unwrap();
    see(&mounts, |path| {
        fs::write(path.join("own"), "y").unwrap();
        fs::remove_file(path.join("base")).unwrap();
    });
    assert_eq!(snapshots.layer_mounts(&home, Some(base.id())).unwrap(), mounts);
    see(&mounts, |path| assert_eq!(names(path), ["own"]));
    let copy = snapshots.commit_copy(&home, Some(base.id()), &setup.lease).unwrap();
    see(&mounts, |path| fs::write(path.join("later"), "z").unwrap());
    setup.view(&copy, |path| assert_eq!(names(path), ["own"]));
    assert_eq!(copy.parent(), Some(base.id()));
}

fn a_stack_has_a_limit(setup: Setup) {
    let mut top = setup.make(None, |path| fs::write(path.join("lowest"), "x").unwrap());
    let id = |n: usize| format!("t{n}");
    let driver = setup.store.driver();
    setup
        .store
        .db()
        .write(rbuild_store::Durability::Cache, |tx| {
            // The rows and directories of a tall stack, without the time to make each by the book.
            for n in 2..=DEEPEST {
                let parent = if n == 2 { top.id().to_string() } else { id(n - 1) };
                tx.execute(
                    "INSERT INTO snapshots (id, parent, driver, created, used) VALUES (?, ?, ?, 0, 0)",
                    (id(n), parent, driver.to_string()),
                )?;
                let fs_path = setup.store.root().join("snapshots").join(id(n)).join("fs");
                fs::create_dir_all(fs_path.parent().unwrap()).unwrap();
                if driver == Driver::Btrfs {
                    let above = fs::File::open(fs_path.parent().unwrap()).unwrap();
                    rbuild_runtime::disk::Btrfs.create(above.as_fd(), OsStr::new("fs")).unwrap();
                } else {
                    fs::create_dir(&fs_path).unwrap();
                }
                if driver.is_whole() {
                    fs::write(fs_path.join("lowest"), "x").unwrap();
                }
            }
            Ok(())
        })
        .unwrap();
    top = setup.store.snapshots().get(&id(DEEPEST).parse().unwrap(), &setup.lease).unwrap();
    // Whoever mounts so many folds them; this test's own mounts do not.
    if let Mounts::Overlay { lowers, .. } = setup.store.snapshots().view(top.id()).unwrap() {
        assert_eq!(lowers.len(), DEEPEST);
    }
    let active = setup.store.snapshots().prepare(&setup.lease, Some(top.id())).unwrap();
    let one_more = setup.store.snapshots().commit(active).unwrap();
    let error = setup.store.snapshots().prepare(&setup.lease, Some(one_more.id())).unwrap_err();
    assert!(matches!(error, StoreError::TooDeep { limit: DEEPEST, .. }), "{error}");
}

fn sizes_are_counted(setup: Setup) {
    let base = setup.make(None, |path| {
        fs::write(path.join("a"), vec![1; 100_000]).unwrap();
        fs::hard_link(path.join("a"), path.join("b")).unwrap();
    });
    let size = setup.store.snapshots().size(base.id()).unwrap();
    assert!((100_000..130_000).contains(&size), "{size}");
    assert_eq!(setup.store.snapshots().row(base.id()).unwrap().size, Some(size));
}

macro_rules! contract {
    ($driver:ident: $($case:ident)*) => {
        #[allow(non_snake_case)]
        mod $driver {
            $(#[test]
            fn $case() {
                // Mounting, owners and devices need privileges.
                if super::is_root() && let Some(setup) = super::try_setup(super::Driver::$driver) {
                    super::$case(setup);
                }
            })*
        }
    };
}

macro_rules! drivers {
    ($($cases:ident)*) => {
        contract!(Overlay: $($cases)*);
        contract!(Vfs: $($cases)*);
        contract!(Btrfs: $($cases)*);
    };
}

drivers! {
    what_was_written_is_there
    the_upper_directory_and_what_is_below_are_as_promised
    what_is_dropped_leaves_nothing
    the_root_looks_like_its_parents
    everything_a_tree_can_hold_comes_through
    ids_are_not_used_again_and_users_protect
    a_lost_directory_is_a_missing_snapshot
    chains_are_known_by_their_layers
    a_layer_of_ones_own_outlives_the_lease
    a_stack_has_a_limit
    sizes_are_counted
}

#[test]
fn overlay_layers_can_be_stacked_afterwards() {
    let setup = setup(Driver::Overlay);
    let snapshots = setup.store.snapshots();
    let [mut upper, lower] = [(); 2].map(|()| snapshots.prepare(&setup.lease, None).unwrap());
    fs::write(upper.upper().join("upper"), "").unwrap();
    fs::write(lower.upper().join("lower"), "").unwrap();
    let lower = snapshots.commit(lower).unwrap();
    upper.set_parent(Some(&lower)).unwrap();
    let upper = snapshots.commit(upper).unwrap();
    assert_eq!(snapshots.chain(upper.id()).unwrap(), [lower.id().clone(), upper.id().clone()]);
    let vfs = self::setup(Driver::Vfs);
    let mut active = vfs.store.snapshots().prepare(&vfs.lease, None).unwrap();
    assert!(matches!(active.set_parent(None), Err(StoreError::Unsupported(_))));
}

#[test]
fn a_new_store_takes_what_works() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(StoreOptions::new(dir.path())).unwrap();
    let is_overlay = fs::read_to_string("/proc/filesystems").unwrap().contains("overlay") && is_root();
    assert_eq!(store.driver(), if is_overlay { Driver::Overlay } else { Driver::Vfs });
    assert!(names(&dir.path().join("ingest")).is_empty());
}

#[test]
fn ids_are_numbers() {
    for bad in ["", "A", "../x", "a/b", "a b", "zzzzzzzzzzzzzz"] {
        assert!(bad.parse::<rbuild_store::SnapshotId>().is_err(), "{bad:?}");
    }
}

/// The devicemapper example: a byte changed in a huge file costs a block, not the file.
#[test]
fn btrfs_shares_what_is_not_changed() {
    let Some(setup) = try_setup(Driver::Btrfs) else { return };
    let base = setup.make(None, |path| fs::write(path.join("huge"), vec![1; 16 << 20]).unwrap());
    let top = setup.make(Some(&base), |path| {
        let file = fs::OpenOptions::new().write(true).open(path.join("huge")).unwrap();
        file.write_all_at(b"2", 5 << 20).unwrap();
        fs::write(path.join("small"), "x").unwrap();
    });
    setup.store.flush().unwrap();
    let [below, own] = [&base, &top].map(|snapshot| setup.store.snapshots().size(snapshot.id()).unwrap());
    assert!(below >= 16 << 20, "{below}");
    assert!((1..1 << 20).contains(&own), "{own}");
    setup.view(&base, |path| assert_eq!(fs::read(path.join("huge")).unwrap()[5 << 20], 1));
    setup.view(&top, |path| assert_eq!(fs::read(path.join("huge")).unwrap()[5 << 20], b'2'));
    // The container's layer too.
    let home = setup.dir.path().join("container");
    see(&setup.store.snapshots().make_layer(&home, Some(top.id())).unwrap(), |path| {
        let file = fs::OpenOptions::new().write(true).open(path.join("huge")).unwrap();
        file.write_all_at(b"3", 6 << 20).unwrap();
    });
    let written = setup.store.snapshots().layer_bytes(&home, Some(top.id())).unwrap().unwrap();
    assert!((1..1 << 20).contains(&written), "{written}");
}

#[test]
fn btrfs_snapshots_are_read_only_and_hold_no_others() {
    let Some(setup) = try_setup(Driver::Btrfs) else { return };
    let base = setup.make(None, |path| fs::write(path.join("file"), "x").unwrap());
    let error = fs::write(setup.store.snapshots().path(base.id()).join("file"), "y").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let active = setup.store.snapshots().prepare(&setup.lease, Some(base.id())).unwrap();
    let inner = fs::File::open(active.upper()).unwrap();
    rbuild_runtime::disk::Btrfs.create(inner.as_fd(), OsStr::new("nested")).unwrap();
    fs::write(active.upper().join("nested/file"), "").unwrap();
    let error = setup.store.snapshots().commit(active).unwrap_err();
    assert!(error.to_string().contains("a subvolume of btrfs in a snapshot"), "{error}");
    // What was refused is gone, with the subvolume in it.
    assert!(setup.ingest().is_empty());
}

/// Times and sizes alone do not make a file the same: the file system says what was written.
#[test]
fn btrfs_finds_changes_that_nothing_shows() {
    let Some(setup) = try_setup(Driver::Btrfs) else { return };
    let when = Timestamp::new(1_600_000_000, 0);
    let write = |path: &Path, name: &str, text: &str| {
        fs::write(path.join(name), text).unwrap();
        Root::open(path).unwrap().top().set_times(OsStr::new(name), when, when).unwrap();
    };
    let base = setup.make(None, |path| ["a", "b"].iter().for_each(|name| write(path, name, "1")));
    let top = setup.make(Some(&base), |path| write(path, "b", "2"));
    let mut told = Vec::new();
    let mut tar = Vec::new();
    setup.store.layers().write_tar(top.id(), &mut tar).unwrap();
    let mut reader = rbuild_store::layers::read::Reader::new(tar.as_slice());
    while let Some(member) = reader.next().unwrap() {
        told.push(String::from_utf8(member.path).unwrap());
    }
    told.retain(|name| !name.is_empty() && name != "./");
    assert_eq!(told, ["b"]);
    assert!(setup.store.layers().diff(top.id()).unwrap().size > 1024);
}

#[test]
fn a_store_keeps_its_driver() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(options(Driver::Vfs, dir.path())).unwrap());
    let error = Store::open(options(Driver::Overlay, dir.path())).unwrap_err();
    assert!(error.to_string().ends_with("was made with storage driver vfs, not overlay"), "{error}");
    assert!(error.hint().unwrap().contains("--root"));
    assert_eq!(Store::open(StoreOptions::new(dir.path())).unwrap().driver(), Driver::Vfs);
}

#[test]
fn btrfs_is_taken_where_the_disk_is_one_and_refused_elsewhere() {
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    let error = Store::open(options(Driver::Btrfs, &shm.path().join("store"))).unwrap_err();
    assert!(error.to_string().contains("takes a btrfs file system"), "{error}");
    let Some(disk) = Disk::btrfs() else { return };
    let root = disk.path().join("store");
    let store = Store::open(StoreOptions { driver: None, ..options(Driver::Btrfs, &root) }).unwrap();
    assert_eq!(store.driver(), Driver::Btrfs);
    assert!(names(&root.join("ingest")).is_empty());
    // Without the calls there is overlay.
    let other = Store::open(StoreOptions::new(disk.path().join("other"))).unwrap();
    assert_ne!(other.driver(), Driver::Btrfs);
}
