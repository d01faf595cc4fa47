//! Reliability R14 and R15: a full disk is said plainly, and removing still works on it.

use std::fs;
use std::io::Write;
use std::path::Path;

use rbuild_oci::{Descriptor, Document, ImageConfig, Manifest, Reference};
use rbuild_store::{CollectOptions, NewImage, Records, Store, StoreOptions};

const NAME: &str = "RBUILD_TEST_FULL";

/// The child is this test binary again, in a mount namespace of its own where a small file system can be filled.
#[test]
fn removing_works_on_a_full_disk() {
    if let Some(root) = std::env::var_os(NAME) {
        return on_a_small_disk(Path::new(&root));
    }
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=80m,mode=700 none \"$1\" && exec \"$2\" --exact removing_works_on_a_full_disk";
    let output = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .args([dir.path(), &std::env::current_exe().unwrap()])
        .env(NAME, dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn on_a_small_disk(root: &Path) {
    let store = Store::open(StoreOptions::new(root)).unwrap();
    let lease = store.lease("test").unwrap();
    let config = ImageConfig { os: "linux".into(), architecture: "amd64".into(), ..ImageConfig::default() };
    let config_digest = store.blobs().put_bytes(&config.to_canonical_json(), &lease).unwrap();
    let manifest = Manifest::new(config.descriptor(), Vec::new());
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let digest = store.blobs().put_bytes(&bytes, &lease).unwrap();
    let media_type = Document::Manifest(manifest).media_type();
    let target = Descriptor::new(media_type, digest, bytes.len() as u64);
    let names = vec![Reference::parse("app").unwrap()];
    let image = store.images().put(&NewImage { target, config: config_digest, names }, &lease).unwrap();
    store.blobs().put_bytes(&vec![1; 1 << 20], &lease).unwrap();

    // A blob that does not fit fails, says why, and leaves nothing.
    let mut writer = store.blobs().writer(&lease).unwrap();
    let error = writer.reserve(100 << 20).unwrap_err();
    assert!(error.is_full() && error.hint().unwrap().contains("prune"), "{error}");
    let piece = vec![2; 1 << 20];
    while writer.write_all(&piece).is_ok() {}
    drop(writer);
    assert_eq!(fs::read_dir(lease.ingest().unwrap()).unwrap().count(), 0);

    let mut filler = fs::File::create(root.join("volumes/filler")).unwrap();
    while filler.write_all(&piece).is_ok() {}
    while filler.write_all(&[3]).is_ok() {}
    drop((lease, store));
    let store = Store::open(StoreOptions::new(root)).unwrap();
    assert_eq!(store.images().resolve("app").unwrap().id, image.id);
    store.images().remove(&image.target.digest, false).unwrap();
    let collected = store.collect(&CollectOptions { records: Records::None }).unwrap();
    assert_eq!(collected.blobs.len(), 3);
    assert!(collected.bytes > 1 << 20);
    assert!(!root.join("reserve").exists());
    drop(filler);
    fs::remove_file(root.join("volumes/filler")).unwrap();
    store.collect(&CollectOptions { records: Records::None }).unwrap();
    assert!(root.join("reserve").exists());
}
