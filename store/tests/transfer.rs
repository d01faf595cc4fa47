//! Images copied between stores and layouts, compressed and rewritten on the way.

mod fixture;

use std::path::Path;

use fixture::{TestStore, run};
use rbuild_oci::{Compression, Descriptor, Digest, ImageConfig, Index, Manifest, MediaType, Reference};
use rbuild_store::archive::{DirectorySink, TarSink};
use rbuild_store::layers::compress::DEFAULT_LEVEL;
use rbuild_store::transfer::{self, ImageSource, StoreSink, StoreSource, copy};
use rbuild_store::{Driver, Snapshot};

fn image(store: &TestStore, snapshots: &[&Snapshot]) -> (Manifest, ImageConfig) {
    let mut config = ImageConfig { os: "linux".into(), architecture: "amd64".into(), ..ImageConfig::default() };
    let mut layers = Vec::new();
    for snapshot in snapshots {
        let id = store.store.layers().diff(snapshot.id()).unwrap();
        layers.push(Descriptor::new(MediaType::OciLayer, id.diff_id.0.clone(), id.size));
        config.rootfs.diff_ids.push(id.diff_id);
    }
    let bytes = config.to_canonical_json();
    let digest = store.store.blobs().put_bytes(&bytes, &store.lease).unwrap();
    (Manifest::new(Descriptor::new(MediaType::OciConfig, digest, bytes.len() as u64), layers), config)
}

fn put(store: &TestStore, manifest: &Manifest) -> Descriptor {
    transfer::put_manifest(store.store.blobs(), manifest, &store.lease).unwrap()
}

#[test]
fn from_store_to_store() {
    let origin = TestStore::new(Driver::Overlay);
    let base = origin.change(None, "echo base >f");
    let top = origin.change(Some(&base), "echo top >g");
    let (manifest, _) = image(&origin, &[&base, &top]);
    let target = put(&origin, &manifest);
    let other = TestStore::new(Driver::Vfs);
    let name = Reference::parse("copied:here").unwrap();
    let mut sink = StoreSink::new(&other.store, &other.lease);
    let source = StoreSource::new(&origin.store);
    let copied = copy(&source, &target, std::slice::from_ref(&name), &mut sink).unwrap();
    assert_eq!(copied.blobs, 4);
    assert_eq!(copy(&source, &target, &[], &mut sink).unwrap().blobs, 0);
    let record = other.store.images().get(&name).unwrap().unwrap();
    assert_eq!(record.target.digest, target.digest);
    let snapshot = other.store.snapshots().by_chain_id(&record.chain_id.unwrap(), &other.lease).unwrap().unwrap();
    assert_eq!(other.show(&snapshot, "cat f g"), "base\ntop\n");
}

#[test]
fn compressed_into_a_layout() {
    let origin = TestStore::new(Driver::Overlay);
    let base = origin.change(None, "head -c 3000000 /dev/zero >f");
    let (manifest, config) = image(&origin, &[&base]);
    for (how, media_type) in
        [(Compression::Gzip, MediaType::OciLayerGzip), (Compression::Zstd, MediaType::OciLayerZstd)]
    {
        let pack = || {
            let ids = &config.rootfs.diff_ids;
            transfer::compressed(&origin.store, &manifest, ids, how, DEFAULT_LEVEL, false, &origin.lease).unwrap()
        };
        let packed = pack();
        assert_eq!(pack(), packed, "compressing again gives something else");
        let out = origin.outside().join("layout");
        let mut sink = DirectorySink::new(&out).unwrap();
        copy(&StoreSource::new(&origin.store), &packed, &[], &mut sink).unwrap();
        sink.finish().unwrap();
        let index: Index = serde_json::from_slice(&std::fs::read(out.join("index.json")).unwrap()).unwrap();
        assert_eq!(index.manifests[0].digest, packed.digest);
        let blob = |digest: &Digest| std::fs::read(out.join("blobs/sha256").join(digest.hex())).unwrap();
        let manifest: Manifest = serde_json::from_slice(&blob(&packed.digest)).unwrap();
        let layer = &manifest.layers[0];
        assert_eq!(layer.media_type, media_type);
        let bytes = blob(&layer.digest);
        assert!(Digest::sha256_of(&bytes) == layer.digest && bytes.len() as u64 == layer.size && bytes.len() < 100_000);
        assert!(!has_part(&out), "something unfinished was left");
        // The same as an archive is an image for others.
        let mut archive = Vec::new();
        let mut sink = TarSink::new(&mut archive).unwrap();
        copy(&StoreSource::new(&origin.store), &packed, &[Reference::parse("a:b").unwrap()], &mut sink).unwrap();
        sink.finish().unwrap();
        let other = TestStore::new(Driver::Overlay);
        let loaded = rbuild_store::archive::load(archive.as_slice(), &other.store, &other.lease, &|_| {}).unwrap();
        assert_eq!(loaded[0].record.target.digest, packed.digest);
        assert!(other.store.blobs().has(&layer.digest).unwrap(), "the manifest's own layer has to stay");
    }
}

fn has_part(dir: &Path) -> bool {
    let (_, found) = run("find", &[dir.to_str().unwrap(), "-name", "*.part"], b"");
    !found.is_empty()
}

#[test]
fn no_file_newer_than_the_epoch() {
    let origin = TestStore::new(Driver::Overlay);
    let base = origin.change(None, "echo base >f; t .");
    let top = origin.change(Some(&base), "echo new >g; echo old >h; touch -d @1000000000 h; ln g i; t .");
    let (manifest, config) = image(&origin, &[&base, &top]);
    let (clamped, new) = transfer::clamped(&origin.store, &manifest, &config, 1, 1_600_000_000, &origin.lease).unwrap();
    assert_eq!(clamped.layers[0], manifest.layers[0]);
    assert_ne!(new.rootfs.diff_ids[1], config.rootfs.diff_ids[1]);
    let source = StoreSource::new(&origin.store);
    let mut tar = Vec::new();
    std::io::copy(&mut source.open(&clamped.layers[1]).unwrap(), &mut tar).unwrap();
    let (ok, listing) = run("tar", &["--utc", "-tvf", "-"], &tar);
    let times: Vec<&str> = listing.lines().map(|line| line.split_whitespace().nth(3).unwrap()).collect();
    assert!(ok, "{listing}");
    assert_eq!(times, ["2020-09-13", "2001-09-09", "2020-09-13"], "{listing}");
    let snapshot = origin.store.layers().unpack(&clamped, &new, &origin.lease).unwrap().unwrap();
    assert_eq!(origin.show(&snapshot, "cat f g h; stat -c %h i"), "base\nnew\nold\n2\n");
}
