//! Reliability R42: at every fail point, a death and an error of the disk leave a store that is whole and works.

#[path = "fixture/disk.rs"]
mod disk;

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;

use rbuild_oci::{Digest, Document, ImageConfig, Manifest, Reference};
use rbuild_store::faults::POINTS;
use rbuild_store::snapshots::Subvolumes;
use rbuild_store::{
    CheckOptions, CollectOptions, Fault, Faults, NewImage, Records, Result, Store, StoreError, StoreOptions,
};

const ROOT: &str = "RBUILD_TEST_FAULTS_ROOT";
const POINT: &str = "RBUILD_TEST_FAULTS_POINT";
const FAULT: &str = "RBUILD_TEST_FAULTS_FAULT";
/// How the child says that the fault was told, and not a mishap.
const TOLD: i32 = 7;

fn open(root: &Path, faults: Faults) -> Result<Store> {
    // On btrfs that is its driver.
    let subvolumes = Some(Arc::new(rbuild_runtime::disk::Btrfs) as Arc<dyn Subvolumes>);
    Store::open(StoreOptions { faults, subvolumes, ..StoreOptions::new(root) })
}

/// Publishes a file tree and an image that is named by it.
fn publish(store: &Store, name: &str) -> Result<Digest> {
    let lease = store.lease("test")?;
    let active = store.snapshots().prepare(&lease, None)?;
    fs::write(active.upper().join("file"), name).map_err(|e| StoreError::io("writing", e))?;
    let snapshot = store.snapshots().commit(active)?;
    let layer = store.layers().diff(snapshot.id())?;
    let mut config = ImageConfig { os: "linux".into(), architecture: "amd64".into(), ..ImageConfig::default() };
    config.rootfs.diff_ids.push(layer.diff_id.clone());
    let config_digest = store.blobs().put_bytes(&config.to_canonical_json(), &lease)?;
    let layers = vec![rbuild_oci::Descriptor::new(
        rbuild_oci::MediaType::oci_layer(rbuild_oci::Compression::None),
        layer.diff_id.0.clone(),
        layer.size,
    )];
    let manifest = Manifest::new(config.descriptor(), layers);
    let bytes = serde_json::to_vec(&manifest).expect("JSON");
    let digest = store.blobs().put_bytes(&bytes, &lease)?;
    let target =
        rbuild_oci::Descriptor::new(Document::Manifest(manifest).media_type(), digest.clone(), bytes.len() as u64);
    let names = vec![Reference::parse(name)?];
    store.images().put(&NewImage { target, config: config_digest, names }, &lease)?;
    Ok(digest)
}

/// Everything that a store does, once.
fn work(root: &Path, faults: Faults) -> Result<()> {
    let store = open(root, faults)?;
    publish(&store, "kept:1")?;
    let gone = publish(&store, "gone:1")?;
    store.images().remove(&gone, false)?;
    store.collect(&CollectOptions { records: Records::None })?;
    Ok(())
}

/// In a process of its own: it may be killed.
fn child() {
    let [root, point, fault] = [ROOT, POINT, FAULT].map(|name| std::env::var(name).expect("given by the parent"));
    let fault = match fault.as_str() {
        "kill" => Fault::Kill,
        number => Fault::Error(number.parse().expect("an error number")),
    };
    match work(Path::new(&root), Faults::at(&point, fault).expect("a point")) {
        // Whoever drops a lease can only be warned.
        Ok(()) => {}
        Err(error) if error.to_string().contains(&format!("at {point}")) => std::process::exit(TOLD),
        Err(error) => panic!("{error}"),
    }
}

fn run(root: &Path, point: &str, fault: &str) -> ExitStatus {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "every_fail_point", "--nocapture"])
        .env(ROOT, root)
        .env(POINT, point)
        .env(FAULT, fault)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("it starts")
}

#[test]
fn every_fail_point() {
    if std::env::var_os(ROOT).is_some() {
        return child();
    }
    let temp = tempfile::tempdir().unwrap();
    // Killed; EIO; ENOSPC.
    try_points(temp.path(), POINTS, &["kill", "5", "28"]);
    // Where snapshots are subvolumes: a death between that and its row.
    if let Some(disk) = disk::Disk::btrfs() {
        let of_snapshots =
            |point: &&&str| ["snapshot.", "collect.", "lease."].iter().any(|kind| point.starts_with(kind));
        let points: Vec<&str> = POINTS.iter().filter(of_snapshots).copied().collect();
        assert!(points.len() > 4, "{points:?}");
        try_points(&disk.path(), &points, &["kill"]);
    }
}

fn try_points(temp: &Path, points: &[&str], faults: &[&str]) {
    for point in points {
        for fault in faults {
            let root = temp.join(format!("{point}-{fault}"));
            let status = run(&root, point, fault);
            match *fault {
                "kill" => assert_eq!(status.signal(), Some(9), "{point} was not reached"),
                _ if point.starts_with("lease.") => {
                    assert!(matches!(status.code(), Some(0 | TOLD)), "{point} {fault}: {status}")
                }
                _ => assert_eq!(status.code(), Some(TOLD), "{point} {fault}"),
            }
            let store = open(&root, Faults::default()).unwrap_or_else(|e| panic!("{point} {fault}: {e}"));
            let checked = store.check(&CheckOptions { deep: true, repair: false }).unwrap();
            assert_eq!(checked.problems, [], "{point} {fault}");
            // What has a name is whole, and the work can be done again.
            let named: Vec<_> = store.images().list().unwrap();
            for image in named {
                store.blobs().read(&image.target.digest, 1 << 20).unwrap();
            }
            drop(store);
            work(&root, Faults::default()).unwrap_or_else(|e| panic!("again after {point} {fault}: {e}"));
            let store = open(&root, Faults::default()).unwrap();
            let kept = store.images().resolve("kept:1").unwrap();
            let (_, config, _) = store.images().manifest(&kept, &rbuild_oci::Platform::host()).unwrap();
            let mut tar = Vec::new();
            let diff_id = &config.rootfs.diff_ids[0];
            std::io::Read::read_to_end(&mut store.layers().open_diff(diff_id).unwrap(), &mut tar).unwrap();
            assert_eq!(Digest::sha256_of(&tar), diff_id.0);
            let checked = store.check(&CheckOptions { deep: true, repair: false }).unwrap();
            assert_eq!((checked.problems, checked.leftovers), (vec![], vec![]), "{point} {fault}");
        }
    }
}
