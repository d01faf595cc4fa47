//! Reliability R1: a process killed at any instant leaves a store that works and holds what was named.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rbuild_oci::{Digest, Document, ImageConfig, Manifest, Reference};
use rbuild_store::{CollectOptions, NewImage, Records, Store, StoreOptions};

const NAME: &str = "RBUILD_TEST_KILLED";

fn open(root: &Path) -> Store {
    Store::open(StoreOptions::new(root)).unwrap()
}

/// Publishes, names, removes and collects until it is killed. Prints each name once it has been given.
fn work(root: &Path) -> ! {
    for n in 0u64.. {
        let store = open(root);
        let lease = store.lease("work").unwrap();
        let active = store.snapshots().prepare(&lease, None).unwrap();
        fs::write(active.upper().join("file"), n.to_string()).unwrap();
        let snapshot = store.snapshots().commit(active).unwrap();
        let top = store.snapshots().prepare(&lease, Some(snapshot.id())).unwrap();
        fs::create_dir_all(top.upper().join("a/b")).unwrap();
        drop(top);
        let mut config = ImageConfig { os: "linux".into(), architecture: "amd64".into(), ..ImageConfig::default() };
        config.config.labels.insert("n".into(), format!("{}-{n}", std::process::id()));
        let config_digest = store.blobs().put_bytes(&config.to_canonical_json(), &lease).unwrap();
        let manifest = Manifest::new(config.descriptor(), Vec::new());
        let bytes = serde_json::to_vec(&manifest).unwrap();
        let digest = store.blobs().put_bytes(&bytes, &lease).unwrap();
        let media_type = Document::Manifest(manifest).media_type();
        let target = rbuild_oci::Descriptor::new(media_type, digest, bytes.len() as u64);
        let name = format!("image:{}-{n}", std::process::id());
        let names = vec![Reference::parse(&name).unwrap()];
        store.images().put(&NewImage { target, config: config_digest, names }, &lease).unwrap();
        println!("named {name}");
        if n % 3 == 2 {
            let old = format!("image:{}-{}", std::process::id(), n - 1);
            println!("removing {old}");
            let image = store.images().resolve(&old).unwrap();
            store.images().remove(&image.target.digest, false).unwrap();
            drop((snapshot, lease));
            store.collect(&CollectOptions { records: Records::None }).unwrap();
        }
    }
    unreachable!("killed before")
}

#[test]
fn a_killed_process_leaves_a_store_that_works() {
    if let Some(root) = std::env::var_os(NAME) {
        work(Path::new(&root));
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let program = std::env::current_exe().unwrap();
    let mut named = Vec::new();
    for round in 0..10u64 {
        let mut children: Vec<_> = (0..2)
            .map(|_| {
                Command::new(&program)
                    .args(["--exact", "a_killed_process_leaves_a_store_that_works", "--nocapture"])
                    .env(NAME, &root)
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap()
            })
            .collect();
        // Times that fall into different parts of the work.
        std::thread::sleep(Duration::from_millis(15 + (round * 37) % 90));
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        for child in &mut children {
            for line in BufReader::new(child.stdout.take().unwrap()).lines() {
                let line = line.unwrap();
                if let Some(name) = line.strip_prefix("named ") {
                    named.push(name.to_owned());
                } else if let Some(name) = line.strip_prefix("removing ") {
                    named.retain(|known| known != name);
                }
            }
        }
        check(&root, &named);
    }
    assert!(!named.is_empty(), "the children did nothing");
}

/// What must hold after every death.
fn check(root: &Path, named: &[String]) {
    let store = open(root);
    let count = |path: &str| fs::read_dir(root.join(path)).unwrap().count();
    assert_eq!((count("leases"), count("ingest")), (0, 0));
    for name in named {
        let image = store.images().resolve(name).unwrap();
        let label = &image.config.config.labels["n"];
        assert_eq!(name, &format!("image:{label}"));
        store.blobs().read(&image.target.digest, 1 << 20).unwrap();
    }
    let whole = |store: &Store| {
        for (digest, size) in store.blobs().list().unwrap() {
            let bytes = fs::read(root.join("blobs/sha256").join(digest.hex())).unwrap();
            assert_eq!((bytes.len() as u64, Digest::sha256_of(&bytes)), (size, digest));
        }
        for row in store.snapshots().list().unwrap() {
            assert!(store.snapshots().path(&row.id).join("file").exists(), "snapshot {}", row.id);
        }
    };
    whole(&store);
    let integrity: String =
        store.db().read(|tx| Ok(tx.query_row("PRAGMA integrity_check", [], |row| row.get(0))?)).unwrap();
    assert_eq!(integrity, "ok");
    store.collect(&CollectOptions { records: Records::None }).unwrap();
    whole(&store);
    assert_eq!(count("blobs/sha256"), store.blobs().list().unwrap().len());
    assert_eq!(count("snapshots"), store.snapshots().list().unwrap().len());
}
