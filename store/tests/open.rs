//! Opening: new stores, many processes, what the dead left, what a reboot lost.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rbuild_oci::Digest;
use rbuild_store::{Durability, Store, StoreError, StoreOptions, Target};

fn open(root: &Path) -> Store {
    Store::open(StoreOptions::new(root)).unwrap()
}

fn entries(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_new_store_is_private_and_opens_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("a b,c:d");
    let first = open(&root);
    assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(first.root(), root.canonicalize().unwrap());
    let id = first.id().to_owned();
    drop(first);
    assert_eq!(open(&root).id(), id);
    assert!(entries(&root.join("leases")).is_empty());
    assert!(entries(&root.join("ingest")).is_empty());
}

#[test]
fn what_is_no_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.txt"), "x").unwrap();
    let refused = |root: &Path| Store::open(StoreOptions::new(root)).unwrap_err().to_string();
    assert!(refused(dir.path()).contains("neither empty nor a store"));

    let root = dir.path().join("store");
    drop(open(&root));
    fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(refused(&root).contains("others may write"));
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    drop(open(&root));
    assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);

    fs::write(root.join("VERSION"), "rbuild store 99\n").unwrap();
    let error = Store::open(StoreOptions::new(&root)).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error}");

    let long = dir.path().join("x".repeat(200)).join("y".repeat(200));
    assert!(refused(&long).contains("longer than"));
}

/// Reliability R24. The children are this test binary again, with the store named on their command line.
#[test]
fn twelve_processes_may_create_it_at_once() {
    const NAME: &str = "RBUILD_TEST_CREATE";
    if let Some(root) = std::env::var_os(NAME) {
        let store = open(Path::new(&root));
        let lease = store.lease("test").unwrap();
        store.blobs().put_bytes(b"the same", &lease).unwrap();
        store.blobs().put_bytes(&std::process::id().to_le_bytes(), &lease).unwrap();
        store.flush().unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let program = std::env::current_exe().unwrap();
    let children: Vec<_> = (0..12)
        .map(|_| {
            std::process::Command::new(&program)
                .args(["--exact", "twelve_processes_may_create_it_at_once"])
                .env(NAME, &root)
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let store = open(&root);
    assert_eq!(store.blobs().list().unwrap().len(), 13);
    assert!(entries(&root.join("leases")).is_empty());
    assert!(entries(&root.join("ingest")).is_empty());
}

#[test]
fn threads_may_create_it_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                let store = open(&root);
                let lease = store.lease("test").unwrap();
                store.blobs().put_bytes(b"the same", &lease).unwrap();
            });
        }
    });
    assert_eq!(open(&root).blobs().list().unwrap().len(), 1);
}

#[test]
fn what_the_dead_left_is_swept() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let living = store.lease("living").unwrap();
    let kept = store.blobs().put_bytes(b"kept", &living).unwrap();
    // What a killed process leaves: an unlocked file, rows, half-written things.
    let dead = "99x0123456789abcdef";
    fs::write(dir.path().join("leases").join(dead), "99 test\n").unwrap();
    let ingest = dir.path().join("ingest").join(dead);
    fs::create_dir_all(ingest.join("snapshot-0/fs/deep")).unwrap();
    fs::write(ingest.join("blob-1"), "half").unwrap();
    store
        .db()
        .write(Durability::Named, |tx| {
            tx.execute("INSERT INTO refs (owner, target) VALUES ('lease:' || ?, ?)", [dead, &format!("blob:{kept}")])?;
            tx.execute("INSERT INTO claims (key, lease) VALUES ('k', ?)", [dead])?;
            tx.execute("INSERT INTO intents (kind, json, lease) VALUES ('make', '{}', ?)", [dead])?;
            Ok(())
        })
        .unwrap();
    assert!(!store.is_lease_alive(dead).unwrap());
    let again = open(dir.path());
    assert_eq!(entries(&dir.path().join("leases")), [living.id().to_string()]);
    assert!(!ingest.exists());
    assert!(again.is_lease_alive(&living.id().to_string()).unwrap());
    let owners: Vec<String> = again
        .db()
        .read(|tx| {
            let mut query = tx.prepare("SELECT owner FROM refs UNION ALL SELECT lease FROM claims")?;
            let rows = query.query_map([], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .unwrap();
    assert_eq!(owners, [living.owner()]);
    let left = again.abandoned_intents().unwrap();
    assert_eq!((left.len(), left[0].kind.as_str()), (1, "make"));
    again.settle_intent(left[0].id).unwrap();
    assert!(again.abandoned_intents().unwrap().is_empty());
    drop(living);
    assert!(entries(&dir.path().join("leases")).is_empty());
}

#[test]
fn an_intent_of_the_living_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let lease = store.lease("test").unwrap();
    let intent = lease.intent("make", "{}").unwrap();
    intent.reached(2).unwrap();
    assert!(store.abandoned_intents().unwrap().is_empty());
    drop(lease);
    intent.done().unwrap();
    assert!(store.abandoned_intents().unwrap().is_empty());
}

/// Reliability §1: marked rows of another boot are dropped and their files swept.
#[test]
fn a_reboot_drops_what_was_not_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let lease = store.lease("test").unwrap();
    let flushed = store.blobs().put_bytes(b"flushed", &lease).unwrap();
    let base = store.snapshots().commit(store.snapshots().prepare(&lease, None).unwrap()).unwrap();
    store.flush().unwrap();
    let lost = store.blobs().put_bytes(b"lost", &lease).unwrap();
    let top = store.snapshots().commit(store.snapshots().prepare(&lease, Some(base.id())).unwrap()).unwrap();
    assert!(!store.snapshots().row(base.id()).unwrap().volatile);
    assert!(store.snapshots().row(top.id()).unwrap().volatile);
    store
        .db()
        .write(Durability::Named, |tx| {
            tx.execute("INSERT INTO records VALUES ('k', '', '', 0, 0, 0, 1, NULL)", [])?;
            tx.execute("INSERT INTO refs VALUES ('record:k', 'snapshot:' || ?)", [top.id().as_str()])?;
            tx.execute("UPDATE state SET boot = 'another'", [])?;
            Ok(())
        })
        .unwrap();
    let top_dir = store.snapshots().path(top.id());
    let after = open(dir.path());
    assert!(after.blobs().has(&flushed).unwrap());
    assert!(!after.blobs().has(&lost).unwrap());
    assert_eq!(entries(&dir.path().join("blobs/sha256")), [flushed.hex()]);
    assert!(after.snapshots().row(base.id()).is_ok());
    assert!(after.snapshots().row(top.id()).is_err());
    assert!(!top_dir.exists() && after.snapshots().path(base.id()).exists());
    let left: i64 = after
        .db()
        .read(|tx| {
            Ok(tx.query_row(
                "SELECT (SELECT count(*) FROM records) + (SELECT count(*) FROM refs WHERE owner = 'record:k')",
                [],
                |row| row.get(0),
            )?)
        })
        .unwrap();
    assert_eq!(left, 0);
}

#[test]
fn a_flush_of_many_files_clears_all_marks() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let lease = store.lease("test").unwrap();
    let active = store.snapshots().prepare(&lease, None).unwrap();
    for n in 0..200 {
        fs::write(active.upper().join(n.to_string()), "x").unwrap();
    }
    let snapshot = store.snapshots().commit(active).unwrap();
    store.flush().unwrap();
    assert!(!store.snapshots().row(snapshot.id()).unwrap().volatile);
}

#[test]
fn blobs_are_what_was_verified() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let lease = store.lease("test").unwrap();
    let blobs = store.blobs();
    let wrong = Digest::sha256_of(b"something else");
    let mut writer = blobs.writer(&lease).unwrap();
    writer.write_all(b"content").unwrap();
    assert!(matches!(writer.commit(Some(&wrong), None), Err(StoreError::WrongDigest { .. })));
    let mut writer = blobs.writer(&lease).unwrap();
    writer.write_all(b"content").unwrap();
    assert!(matches!(writer.commit(None, Some(8)), Err(StoreError::WrongSize { expected: 8, found: 7, .. })));
    assert!(entries(lease.ingest().unwrap()).is_empty());

    let sha512: Digest = format!(
        "sha512:{}",
        "ee26b0dd4af7e749aa1a8ee3c10ae9923f618980772e473f8819a5d4940e0db2\
                                              7ac185f8a0e1d5f84f88bc887fd67b143732c304cc5fa9ad8e6f57f50028a8ff"
    )
    .parse()
    .unwrap();
    let mut writer = blobs.writer_for(&sha512, &lease).unwrap();
    writer.write_all(b"test").unwrap();
    assert_eq!(writer.commit(Some(&sha512), Some(4)).unwrap(), (sha512.clone(), 4));
    assert_eq!(blobs.read(&sha512, 4).unwrap(), b"test");
    assert!(matches!(blobs.read(&sha512, 3), Err(StoreError::Limit { limit: 3, .. })));

    // A flipped bit, a cut, a loss: found, named, taken out, and stored again.
    let damages: [fn(&Path); 3] = [
        |path| fs::write(path, "c0ntent").unwrap(),
        |path| fs::write(path, "cont").unwrap(),
        |path| fs::remove_file(path).unwrap(),
    ];
    for damage in damages {
        let digest = blobs.put_bytes(b"content", &lease).unwrap();
        assert_eq!(blobs.read(&digest, 100).unwrap(), b"content");
        damage(&dir.path().join("blobs/sha256").join(digest.hex()));
        let error = blobs.read(&digest, 100).unwrap_err();
        assert!(matches!(error, StoreError::DamagedBlob { .. }), "{error}");
        assert!(!blobs.has(&digest).unwrap());
        assert!(matches!(blobs.read(&digest, 100), Err(StoreError::NoBlob(_))));
    }
    let missing = Target::Blob(wrong);
    assert!(matches!(lease.hold(&missing), Err(StoreError::NoBlob(_))));
}

/// Reliability R17. The child is this test binary again, in a mount namespace where the store is read-only.
#[test]
fn a_read_only_store_can_be_read() {
    const NAME: &str = "RBUILD_TEST_READ_ONLY";
    if let Some(root) = std::env::var_os(NAME) {
        let store = open(Path::new(&root));
        assert!(store.is_read_only());
        assert_eq!(store.blobs().read(&Digest::sha256_of(b"content"), 100).unwrap(), b"content");
        assert_eq!(store.images().list().unwrap().len(), 0);
        assert!(matches!(store.lease("test"), Err(StoreError::ReadOnly { .. })));
        assert!(matches!(store.db().write(Durability::Cache, |_| Ok(())), Err(StoreError::ReadOnly { .. })));
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let lease = store.lease("test").unwrap();
    store.blobs().put_bytes(b"content", &lease).unwrap();
    let before = copies();
    for with_shared_memory in [true, false] {
        if !with_shared_memory {
            fs::remove_file(dir.path().join("db.sqlite-shm")).unwrap();
        }
        let script = "mount --bind \"$1\" \"$1\" && mount -o remount,ro,bind \"$1\" && exec \"$2\" --exact \
                      a_read_only_store_can_be_read";
        let status = std::process::Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .args([dir.path(), &std::env::current_exe().unwrap()])
            .env(NAME, dir.path())
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "with shared memory: {with_shared_memory}");
    }
    assert_eq!(copies(), before);
}

fn copies() -> usize {
    let ours =
        |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().to_string_lossy().starts_with("rbuild-");
    fs::read_dir("/dev/shm").unwrap().map(ours).filter(|ours| *ours).count()
}
