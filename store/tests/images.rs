//! Names, what they lead to, and what goes when they go.

use std::fs;
use std::path::Path;

use rbuild_oci::{Descriptor, DiffId, Digest, Document, ImageConfig, Index, Manifest, MediaType, Platform, Reference};
use rbuild_store::{
    CollectOptions, Collected, Durability, ImageRecord, Lease, NewImage, Records, Removed, Snapshot, Store, StoreError,
    StoreOptions, Target,
};

struct Setup {
    dir: tempfile::TempDir,
    store: Store,
}

fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(StoreOptions::new(dir.path())).unwrap();
    Setup { dir, store }
}

fn name(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

fn config(label: &str, layers: &[DiffId]) -> ImageConfig {
    let mut config = ImageConfig { architecture: "amd64".into(), os: "linux".into(), ..ImageConfig::default() };
    config.config.labels.insert("n".into(), label.into());
    config.rootfs.diff_ids = layers.to_vec();
    config
}

impl Setup {
    fn manifest(&self, label: &str, layers: &[Descriptor], lease: &Lease) -> (Descriptor, Digest) {
        let diffs: Vec<DiffId> = layers.iter().map(|layer| DiffId(layer.digest.clone())).collect();
        let config = config(label, &diffs);
        let config_digest = self.store.blobs().put_bytes(&config.to_canonical_json(), lease).unwrap();
        let manifest = Manifest::new(config.descriptor(), layers.to_vec());
        let bytes = serde_json::to_vec(&manifest).unwrap();
        let media_type = Document::Manifest(manifest).media_type();
        let digest = self.store.blobs().put_bytes(&bytes, lease).unwrap();
        (Descriptor::new(media_type, digest, bytes.len() as u64), config_digest)
    }

    fn image(&self, label: &str, names: &[&str]) -> ImageRecord {
        let lease = self.store.lease("image").unwrap();
        let (target, config) = self.manifest(label, &[], &lease);
        let names = names.iter().map(|text| name(text)).collect();
        self.store.images().put(&NewImage { target, config, names }, &lease).unwrap()
    }

    fn collect(&self) -> Collected {
        self.store.collect(&CollectOptions { records: Records::None }).unwrap()
    }

    fn snapshot(&self, parent: Option<&Snapshot>, layer: &str, lease: &Lease) -> (Snapshot, Descriptor) {
        let active = self.store.snapshots().prepare(lease, parent.map(Snapshot::id)).unwrap();
        fs::write(active.upper().join(layer), vec![1; 20_000]).unwrap();
        let snapshot = self.store.snapshots().commit(active).unwrap();
        let digest = Digest::sha256_of(layer.as_bytes());
        self.store.snapshots().set_layer(snapshot.id(), &DiffId(digest.clone()), 5).unwrap();
        (snapshot, Descriptor::new(MediaType::oci_layer(rbuild_oci::Compression::None), digest, 5))
    }
}

#[test]
fn every_way_to_say_an_image() {
    let setup = setup();
    let images = setup.store.images();
    let image = setup.image("one", &["busybox", "localhost:5000/team/app:v1"]);
    let hex = image.id.0.hex();
    let by_digest = format!("busybox@{}", image.target.digest);
    for text in [
        "busybox",
        "busybox:latest",
        "docker.io/library/busybox",
        "library/busybox:latest",
        "localhost:5000/team/app:v1",
        hex,
        &hex[..12],
        &hex[..1],
        &format!("sha256:{hex}"),
        &format!("sha256:{}", &hex[..20]),
        &by_digest,
        &image.target.digest.to_string(),
        &format!("localhost:5000/team/app@{}", image.target.digest),
    ] {
        assert_eq!(images.resolve(text).unwrap().id, image.id, "{text}");
    }
    let elsewhere = format!("debian@{}", image.target.digest);
    for text in ["busybox:1", "team/app:v1", "nothing", "", "BUSYBOX", "%", "sha256:", elsewhere.as_str()] {
        assert!(images.find(text).unwrap().is_none(), "{text}");
    }
    assert_eq!(images.resolve("nothing").unwrap_err().to_string(), "No such image: nothing:latest");
    assert_eq!(image.names, [name("busybox"), name("localhost:5000/team/app:v1")]);
}

#[test]
fn a_name_goes_before_an_id_and_a_prefix_must_be_plain() {
    let setup = setup();
    let images = setup.store.images();
    let all: Vec<ImageRecord> = (0..40).map(|n| setup.image(&n.to_string(), &[])).collect();
    let first = all.iter().find(|image| image.id.0.hex().starts_with(|c: char| c.is_ascii_alphabetic())).unwrap();
    let digit = &first.id.0.hex()[..1];
    let others: Vec<_> = all.iter().filter(|image| image.id.0.hex().starts_with(digit)).collect();
    match others.len() {
        1 => assert_eq!(images.resolve(digit).unwrap().id, first.id),
        _ => assert!(matches!(images.resolve(digit), Err(StoreError::AmbiguousImage(_)))),
    }
    let other = all.iter().find(|image| image.id != first.id).unwrap();
    images.tag(&other.target.digest, &name(&first.id.0.hex()[..12])).unwrap();
    assert_eq!(images.resolve(&first.id.0.hex()[..12]).unwrap().id, other.id);
    let ambiguous = all.iter().enumerate().find_map(|(n, a)| {
        let rest = &all[n + 1..];
        rest.iter().find(|b| b.id.0.hex()[..1] == a.id.0.hex()[..1]).map(|_| a.id.0.hex()[..1].to_owned())
    });
    let ambiguous = ambiguous.expect("forty ids, sixteen digits");
    assert!(matches!(images.resolve(&ambiguous), Err(StoreError::AmbiguousImage(_))));
}

#[test]
fn a_tag_moves_and_leaves_the_old_image_dangling() {
    let setup = setup();
    let images = setup.store.images();
    let old = setup.image("old", &["app", "app:1"]);
    let new = setup.image("new", &["app"]);
    assert_eq!(images.resolve("app").unwrap().id, new.id);
    assert_eq!(images.resolve(old.id.0.hex()).unwrap().names, [name("app:1")]);
    images.tag(&new.target.digest, &name("app:1")).unwrap();
    assert_eq!(images.resolve(old.id.0.hex()).unwrap().names, []);
    let listed = images.list().unwrap();
    assert_eq!(listed.iter().map(|image| image.id.clone()).collect::<Vec<_>>(), [new.id.clone(), old.id.clone()]);
    assert_eq!(listed[0].names, [name("app:1"), name("app")]);
    let missing = Digest::sha256_of(b"missing");
    assert!(matches!(images.tag(&missing, &name("x")), Err(StoreError::NoImage(_))));
    // Dangling is not garbage: it stays until somebody removes it.
    setup.collect();
    assert_eq!(images.list().unwrap().len(), 2);
}

#[test]
fn putting_again_changes_nothing() {
    let setup = setup();
    let first = setup.image("one", &["app"]);
    let generation = || {
        let read = |tx: &rbuild_store::rusqlite::Transaction<'_>| {
            Ok(tx.query_row("SELECT generation FROM state", [], |row| row.get::<_, i64>(0))?)
        };
        setup.store.db().read(read).unwrap()
    };
    let before = generation();
    let again = setup.image("one", &["app"]);
    assert_eq!((again.created_here, generation()), (first.created_here, before));
    assert_eq!(setup.image("one", &["app", "more"]).names.len(), 2);
}

#[test]
fn an_image_whose_layers_lack_is_refused() {
    let setup = setup();
    let lease = setup.store.lease("test").unwrap();
    let layer = Descriptor::new(MediaType::oci_layer(rbuild_oci::Compression::None), Digest::sha256_of(b"gone"), 4);
    let (target, config) = setup.manifest("x", std::slice::from_ref(&layer), &lease);
    let put = |target: &Descriptor, config: Digest| {
        setup.store.images().put(&NewImage { target: target.clone(), config, names: vec![name("app")] }, &lease)
    };
    let error = put(&target, config.clone()).unwrap_err().to_string();
    assert!(error.contains(&format!("layer {} is not in the store", layer.digest)), "{error}");
    assert!(setup.store.images().list().unwrap().is_empty());
    let (other, _) = setup.manifest("y", &[], &lease);
    let error = put(&other, config.clone()).unwrap_err().to_string();
    assert!(error.contains("no manifest"), "{error}");
    // A layer under a snapshot that the image does not have keeps its place, whatever lies above or below it.
    let (below, _) = setup.snapshot(None, "below", &lease);
    let (own, layer) = setup.snapshot(Some(&below), "own", &lease);
    let (target, config) = setup.manifest("z", &[layer], &lease);
    put(&target, config).unwrap();
    let ids = [below.id().clone(), own.id().clone()];
    drop((below, own, lease));
    setup.collect();
    assert_eq!(setup.store.snapshots().list().unwrap().into_iter().map(|row| row.id).collect::<Vec<_>>(), ids);
}

#[test]
fn names_and_images_go_separately() {
    let setup = setup();
    let images = setup.store.images();
    let image = setup.image("one", &["app", "app:1"]);
    let untagged = images.untag(&name("app")).unwrap().unwrap();
    assert_eq!((untagged.left, &untagged.target), (1, &image.target.digest));
    assert_eq!(images.untag(&name("app")).unwrap(), None);
    setup
        .store
        .db()
        .write(Durability::Named, |tx| {
            let target = Target::Image(image.target.digest.clone()).to_string();
            tx.execute("INSERT INTO refs VALUES ('container:c1', ?)", [target])?;
            Ok(())
        })
        .unwrap();
    let error = images.remove(&image.target.digest, false).unwrap_err();
    assert!(matches!(&error, StoreError::ImageInUse { users, .. } if users == &["container:c1"]), "{error}");
    assert_eq!(images.remove(&image.target.digest, true).unwrap(), [Removed::Untagged(name("app:1"))]);
    assert!(images.find(image.id.0.hex()).unwrap().unwrap().names.is_empty());
    setup.collect();
    assert!(setup.store.blobs().has(&image.id.0).unwrap());
    setup.store.remove_durably(|tx| Ok(tx.execute("DELETE FROM refs WHERE owner = 'container:c1'", [])?)).unwrap();
    assert_eq!(images.remove(&image.target.digest, false).unwrap(), [Removed::Deleted(image.id.clone())]);
    assert!(images.find(image.id.0.hex()).unwrap().is_none());
    let collected = setup.collect();
    assert_eq!(collected.blobs.len(), 2);
    assert!(collected.bytes > 0 && setup.store.blobs().list().unwrap().is_empty());
    assert!(matches!(images.remove(&image.target.digest, false), Err(StoreError::NoImage(_))));
}

#[test]
fn an_index_leads_to_the_manifest_of_a_platform() {
    let setup = setup();
    let lease = setup.store.lease("test").unwrap();
    let mut children = Vec::new();
    let mut configs = Vec::new();
    for platform in ["linux/amd64", "linux/arm64"] {
        let (mut descriptor, config) = setup.manifest(platform, &[], &lease);
        descriptor.platform = Some(Platform::parse(platform).unwrap());
        children.push(descriptor);
        configs.push(config);
    }
    let mut absent = Descriptor::new(MediaType::OciManifest, Digest::sha256_of(b"absent"), 6);
    absent.platform = Some(Platform::parse("linux/s390x").unwrap());
    children.push(absent);
    let index = Index::new(children.clone());
    let bytes = serde_json::to_vec(&index).unwrap();
    let digest = setup.store.blobs().put_bytes(&bytes, &lease).unwrap();
    let target = Descriptor::new(Document::Index(index).media_type(), digest, bytes.len() as u64);
    let new = NewImage { target, config: configs[0].clone(), names: vec![name("multi")] };
    let image = setup.store.images().put(&new, &lease).unwrap();
    drop(lease);
    setup.collect();
    for (platform, child) in ["linux/amd64", "linux/arm64"].iter().zip(&children) {
        let platform = Platform::parse(platform).unwrap();
        let (_, config, descriptor) = setup.store.images().manifest(&image, &platform).unwrap();
        assert_eq!((descriptor.digest, &config.config.labels["n"]), (child.digest.clone(), &platform.to_string()));
    }
    for platform in ["linux/s390x", "linux/riscv64"] {
        let error = setup.store.images().manifest(&image, &Platform::parse(platform).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), format!("image multi:latest has no manifest for platform {platform}"));
    }
}

#[test]
fn collection_takes_what_nothing_keeps_and_nothing_else() {
    let setup = setup();
    let store = &setup.store;
    let lease = store.lease("build").unwrap();
    let (base, base_layer) = setup.snapshot(None, "base", &lease);
    let (middle, middle_layer) = setup.snapshot(Some(&base), "middle", &lease);
    let (cached, _) = setup.snapshot(Some(&base), "cached", &lease);
    let (loose, _) = setup.snapshot(Some(&cached), "loose", &lease);
    let (target, config) = setup.manifest("x", &[base_layer, middle_layer], &lease);
    let new = NewImage { target: target.clone(), config: config.clone(), names: vec![name("app")] };
    store.images().put(&new, &lease).unwrap();
    let stray = store.blobs().put_bytes(b"stray", &lease).unwrap();
    store
        .db()
        .write(Durability::Cache, |tx| {
            tx.execute("INSERT INTO records VALUES ('key', '', '', 0, 0, 0, NULL, NULL)", [])?;
            tx.execute("INSERT INTO refs VALUES ('record:key', 'snapshot:' || ?)", [cached.id().as_str()])?;
            tx.execute("INSERT INTO aliases VALUES ('from', 'key'), ('old', 'gone')", [])?;
            Ok(())
        })
        .unwrap();
    // The living: all of it is leased.
    assert_eq!(setup.collect().removed(), 0);
    let held = store.lease("reader").unwrap();
    let loose_id = store.snapshots().get(loose.id(), &held).unwrap().id().clone();
    let ids = [&base, &middle, &cached, &loose].map(|snapshot| snapshot.id().clone());
    drop((base, middle, cached, loose, lease));
    let collected = setup.collect();
    assert_eq!((collected.snapshots, collected.blobs), (vec![], vec![stray]));
    drop(held);
    let collected = setup.collect();
    assert_eq!(collected.snapshots, [loose_id]);
    assert!(collected.bytes >= 20_000, "{}", collected.bytes);
    // The cache goes on demand, the image's own snapshots stay, found by their layers alone.
    let dropped = store.collect(&CollectOptions { records: Records::All }).unwrap();
    assert_eq!((dropped.records, dropped.snapshots), (vec!["key".to_owned()], vec![ids[2].clone()]));
    let left: Vec<_> = store.snapshots().list().unwrap().into_iter().map(|row| row.id).collect();
    assert_eq!(left, ids[..2]);
    assert_eq!(on_disk(&setup.dir.path().join("snapshots")), [ids[0].to_string(), ids[1].to_string()]);
    store.images().remove(&target.digest, false).unwrap();
    let collected = setup.collect();
    assert_eq!((collected.snapshots.len(), collected.blobs.len()), (2, 2));
    assert!(on_disk(&setup.dir.path().join("snapshots")).is_empty());
    assert!(on_disk(&setup.dir.path().join("blobs/sha256")).is_empty());
    let rows = "SELECT (SELECT count(*) FROM refs) + (SELECT count(*) FROM aliases)";
    let rows = |tx: &rbuild_store::rusqlite::Transaction<'_>| Ok(tx.query_row(rows, [], |row| row.get::<_, i64>(0))?);
    assert_eq!(store.db().read(rows).unwrap(), 0);
}

#[test]
fn an_image_in_use_keeps_its_content_though_its_name_goes() {
    let setup = setup();
    let image = setup.image("one", &["app"]);
    let save = setup.store.lease("save").unwrap();
    save.hold(&Target::Image(image.target.digest.clone())).unwrap();
    setup.store.images().remove(&image.target.digest, false).unwrap();
    setup.collect();
    assert!(setup.store.blobs().has(&image.target.digest).unwrap());
    drop(save);
    assert_eq!(setup.collect().blobs.len(), 2);
}

#[test]
fn strays_are_swept() {
    let setup = setup();
    let blob = setup.dir.path().join("blobs/sha256").join("0".repeat(64));
    fs::write(&blob, vec![1; 10_000]).unwrap();
    let snapshot = setup.dir.path().join("snapshots/zz/fs");
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(snapshot.join("file"), vec![1; 10_000]).unwrap();
    assert!(setup.collect().bytes >= 20_000);
    assert!(!blob.exists() && !snapshot.exists());
}

/// A name is given only when all it leads to is on disk.
#[test]
fn a_name_is_given_after_the_flush() {
    let setup = setup();
    setup.image("one", &["app"]);
    let marked = |tx: &rbuild_store::rusqlite::Transaction<'_>| {
        let sql = "SELECT count(*) FROM blobs WHERE volatile IS NOT NULL";
        Ok(tx.query_row(sql, [], |row| row.get::<_, i64>(0))?)
    };
    assert_eq!(setup.store.db().read(marked).unwrap(), 0);
}

/// Several processes publish, name, remove and collect at once; nothing that has a name is ever broken.
#[test]
fn many_at_once_break_nothing() {
    let setup = setup();
    let root = setup.dir.path();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            scope.spawn(move || {
                for round in 0..12 {
                    let label = format!("{worker}-{round}");
                    let store = Store::open(StoreOptions::new(root)).unwrap();
                    let own = Setup { dir: tempfile::tempdir().unwrap(), store };
                    let image = own.image(&label, &["shared", &format!("own:{worker}")]);
                    let lease = own.store.lease("x").unwrap();
                    own.snapshot(None, &label, &lease);
                    assert_eq!(own.store.images().resolve(&format!("own:{worker}")).unwrap().id, image.id);
                    own.collect();
                    if round % 3 == 0 {
                        own.store.images().remove(&image.target.digest, false).unwrap();
                    }
                }
            });
        }
    });
    let images = setup.store.images().list().unwrap();
    assert_eq!(images.len(), 4 * 8);
    for image in images {
        setup.store.blobs().read(&image.target.digest, 1 << 20).unwrap();
    }
    setup.collect();
    assert!(setup.store.snapshots().list().unwrap().is_empty());
    assert!(on_disk(&root.join("ingest")).is_empty());
}

fn on_disk(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
