//! What every place for caches promises, whether it is a directory or a repository of a registry.

use std::path::Path;

use rbuild_cache::portable::{self, MediaFamily, PortableRecord, Written, write_record};
use rbuild_cache::{Backend, DirectoryBackend, RegistryBackend};
use rbuild_oci::{Descriptor, Digest, Reference};
use rbuild_registry::memory::Registry;
use rbuild_registry::{Client, ClientOptions, LayerPacking, PackedLayer};
use rbuild_store::{Lease, Store, StoreOptions};
use tempfile::TempDir;

use crate::key;

/// A store, and what keeps things in it.
struct Machine {
    store: Store,
    lease: Lease,
    _root: TempDir,
}

impl Machine {
    fn new() -> Machine {
        let root = TempDir::new().unwrap();
        let store = Store::open(StoreOptions::new(root.path().join("store"))).unwrap();
        let lease = store.lease("test").unwrap();
        Machine { store, lease, _root: root }
    }

    /// Puts a layer of one file there.
    async fn layer(&self, backend: &dyn Backend, text: &str) -> PackedLayer {
        let active = self.store.snapshots().prepare(&self.lease, None).unwrap();
        std::fs::write(active.upper().join("file"), text).unwrap();
        let snapshot = self.store.snapshots().commit(active).unwrap();
        let made = self.store.layers().diff(snapshot.id()).unwrap();
        let put = || backend.put_layer(&made.diff_id, LayerPacking::default(), &self.store, &self.lease);
        let blob = put().await.unwrap();
        assert_eq!(put().await.unwrap(), blob, "the same again");
        PackedLayer { blob, diff_id: made.diff_id, size: made.size, newest: made.newest }
    }

    async fn bring(&self, backend: &dyn Backend, layers: &[PackedLayer]) -> Result<String, String> {
        let brought = backend.bring(layers, &self.store, &self.lease, &|_| {}).await.map_err(|e| e.to_string())?;
        let top = self.store.snapshots().path(brought.unwrap().id());
        Ok(std::fs::read_to_string(top.join("file")).unwrap())
    }
}

/// The digest of a layer that is passed on.
async fn passed_on(backend: &dyn Backend, layer: &Descriptor) -> Result<Digest, String> {
    let source = backend.source(layer);
    let pass = move || {
        let mut bytes = Vec::new();
        (source.bytes)(&mut bytes).map_err(|error| error.to_string())?;
        Ok(Digest::sha256_of(&bytes))
    };
    tokio::task::spawn_blocking(pass).await.unwrap()
}

fn document(name: &str, layers: Vec<PackedLayer>) -> Written {
    let record = PortableRecord {
        key: key(name),
        aliases: vec![],
        name: name.to_owned(),
        outputs: vec![Some(layers)],
        run: None,
        detail: None,
        covers: vec![],
        used: None,
    };
    write_record(&record, MediaFamily::Oci).unwrap()
}

/// `open` gives the same place each time, as another program would open it.
async fn keeps_its_promises(open: &dyn Fn(Option<Digest>) -> Box<dyn Backend>) {
    let (here, there) = (Machine::new(), Machine::new());
    let backend = open(None);
    let backend = backend.as_ref();
    let base = backend.base().expect("a cache that can be written has a name").to_owned();
    // What nobody wrote is not there, and that is no error.
    assert!(backend.read(None).await.unwrap().is_none());
    assert!(backend.read(Some("other")).await.unwrap().is_none());
    assert_eq!(backend.names().await.unwrap(), Vec::<String>::new());
    let nothing = Descriptor::new(rbuild_oci::MediaType::OciLayerGzip, Digest::sha256_of(b"nothing"), 7);
    assert!(!backend.has(&nothing, "", &here.store, &here.lease).await.unwrap());

    let (one, two) = (here.layer(backend, "one").await, here.layer(backend, "two").await);
    for layer in [&one, &two] {
        assert!(backend.has(&layer.blob, "", &here.store, &here.lease).await.unwrap());
    }
    let written = document("first", vec![one.clone()]);
    backend.put(&base, &written, &here.store, &here.lease).await.unwrap();
    backend.put("beside", &document("second", vec![two.clone()]), &here.store, &here.lease).await.unwrap();

    // Whoever opens it next finds both, whole.
    let again = open(None);
    let mut names = again.names().await.unwrap();
    names.sort();
    let mut expected = vec![base.clone(), "beside".to_owned()];
    expected.sort();
    assert_eq!(names, expected);
    let stored = again.read(None).await.unwrap().expect("it was written");
    assert_eq!(again.config(&stored.manifest.config).await.unwrap(), stored.config);
    let records = portable::read(again.place(), &stored.manifest, &stored.config).unwrap().unwrap();
    assert_eq!((records.len(), records[0].key), (1, key("first")));
    assert_eq!(records[0].outputs, [Some(vec![one.clone()])]);
    let beside = again.read(Some("beside")).await.unwrap().expect("it was written");
    assert_eq!(beside.manifest.layers.len(), 1);
    assert_eq!(there.bring(again.as_ref(), std::slice::from_ref(&one)).await.unwrap(), "one");
    assert_eq!(there.bring(again.as_ref(), std::slice::from_ref(&two)).await.unwrap(), "two");

    // Layers come as they are, or are passed on, without being unpacked.
    let packed = Machine::new();
    let both = [one.clone(), two.clone()];
    again.bring_packed(&both, &packed.store, &packed.lease, &|_| {}).await.unwrap();
    for layer in &both {
        assert!(packed.store.blobs().has(&layer.blob.digest).unwrap());
        assert_eq!(passed_on(again.as_ref(), &layer.blob).await.unwrap(), layer.blob.digest);
    }
    assert!(packed.store.snapshots().list().unwrap().is_empty());
    assert!(passed_on(again.as_ref(), &nothing).await.is_err());

    // A name can be taken away, and then is as if nobody had given it; others stay.
    backend.put("third", &document("third", vec![two.clone()]), &here.store, &here.lease).await.unwrap();
    for _ in 0..2 {
        backend.remove(&["third".to_owned(), "never".to_owned()]).await.unwrap();
        assert!(open(None).read(Some("third")).await.unwrap().is_none());
        assert_eq!(open(None).names().await.unwrap().len(), 2);
    }
    assert!(open(None).read(Some("beside")).await.unwrap().is_some());

    // A name can be taken over; what it named before goes on being had by its digest, as one image and no cache's name.
    backend.put(&base, &document("third", vec![two.clone()]), &here.store, &here.lease).await.unwrap();
    let stored = open(None).read(None).await.unwrap().expect("it was written");
    let records = portable::read("it", &stored.manifest, &stored.config).unwrap().unwrap();
    assert_eq!(records[0].key, key("third"));
    let kept = open(Some(Digest::sha256_of(&written.manifest)));
    assert_eq!(kept.base(), None);
    if let Some(stored) = kept.read(None).await.unwrap() {
        let records = portable::read("it", &stored.manifest, &stored.config).unwrap().unwrap();
        assert_eq!(records[0].key, key("first"));
    }

    // Bytes are checked: a layer that is another's is refused, and nothing of it stays.
    let empty = Machine::new();
    let forged = PackedLayer { diff_id: two.diff_id.clone(), ..one.clone() };
    assert!(empty.bring(again.as_ref(), &[forged]).await.is_err());
    let gone = PackedLayer { blob: nothing, ..one };
    assert!(empty.bring(again.as_ref(), std::slice::from_ref(&gone)).await.is_err());
    assert!(again.bring_packed(&[gone], &empty.store, &empty.lease, &|_| {}).await.is_err());
    assert!(empty.store.snapshots().list().unwrap().is_empty());
}

#[tokio::test]
async fn a_directory_keeps_its_promises() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cache");
    keeps_its_promises(&|digest| Box::new(DirectoryBackend::new(&path, "main", digest))).await;
}

#[tokio::test]
async fn a_repository_keeps_its_promises() {
    let registry = Registry::start().await.unwrap();
    let client = Client::new(ClientOptions::default()).unwrap();
    keeps_its_promises(&|digest| {
        let name = match digest {
            Some(digest) => format!("{}/a/cache@{digest}", registry.host()),
            None => format!("{}/a/cache:main", registry.host()),
        };
        Box::new(RegistryBackend::new(client.clone(), Reference::parse(&name).unwrap()))
    })
    .await;
}

/// An image that carries its own cache is a cache too, wherever it lies: it is read, its layers come, and records of other
/// layers than its own are none of it.
#[tokio::test]
async fn an_image_that_carries_its_own_keeps_its_promises() {
    let dir = TempDir::new().unwrap();
    let registry = Registry::start().await.unwrap();
    let client = Client::new(ClientOptions::default()).unwrap();
    let name = Reference::parse(&format!("{}/a/app:main", registry.host())).unwrap();
    let backends: [Box<dyn Backend>; 2] = [
        Box::new(DirectoryBackend::new(&dir.path().join("cache"), "main", None)),
        Box::new(RegistryBackend::new(client, name)),
    ];
    for backend in &backends {
        let backend = backend.as_ref();
        let (here, there) = (Machine::new(), Machine::new());
        let (one, two) = (here.layer(backend, "one").await, here.layer(backend, "two").await);
        let record = |name: &str, layers: Vec<PackedLayer>| PortableRecord {
            key: key(name),
            aliases: vec![key("other")],
            name: name.to_owned(),
            outputs: vec![Some(layers)],
            run: None,
            detail: None,
            covers: vec![],
            used: None,
        };
        let records = [record("lower", vec![one.clone()]), record("upper", vec![one.clone(), two.clone()])];
        let foreign = record("foreign", vec![two.clone()]);
        let mut written = document("image", vec![one.clone(), two.clone()]);
        let mut config: serde_json::Value = serde_json::from_slice(&written.config).unwrap();
        let all = [&records[..], &[foreign]].concat();
        let member = portable::inline_member(&all, &[one.clone(), two.clone()]).unwrap();
        let old = config.as_object_mut().unwrap().iter_mut().find(|(_, value)| value.get("records").is_some()).unwrap();
        *old.1 = member;
        written.config = serde_json::to_vec(&config).unwrap();
        let digest = Digest::sha256_of(&written.config);
        let mut manifest: serde_json::Value = serde_json::from_slice(&written.manifest).unwrap();
        manifest["config"]["digest"] = digest.to_string().into();
        manifest["config"]["size"] = written.config.len().into();
        written.manifest = serde_json::to_vec(&manifest).unwrap();
        backend.put("main", &written, &here.store, &here.lease).await.unwrap();

        let found = rbuild_cache::import::contents(backend).await.unwrap();
        assert_eq!((found.exists, &found.complaints), (true, &vec![]), "{}", backend.place());
        let mut keys: Vec<_> = found.records.iter().map(|record| record.key).collect();
        keys.sort_unstable();
        let mut want = vec![key("lower"), key("upper")];
        want.sort_unstable();
        assert_eq!(keys, want, "{}", backend.place());
        let upper = found.records.iter().find(|record| record.key == key("upper")).unwrap();
        assert_eq!(upper.outputs, records[1].outputs);
        let layers = upper.outputs[0].clone().unwrap();
        assert_eq!(there.bring(backend, &layers).await.unwrap(), "two");
    }
}

/// What a writer left that was killed goes with the next one; what one at work has there stays.
#[tokio::test]
async fn leftovers_in_a_directory_go_with_the_next_writer() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cache");
    let machine = Machine::new();
    let write = async |backend: &DirectoryBackend, text: &str| machine.layer(backend, text).await;
    let first = DirectoryBackend::new(&path, "main", None);
    write(&first, "one").await;
    let aside = |path: &Path| std::fs::write(path.join("ingest/1234-0-99"), "half a layer").unwrap();
    let is_there = |path: &Path| path.join("ingest/1234-0-99").exists();
    aside(&path);
    let second = DirectoryBackend::new(&path, "main", None);
    write(&second, "two").await;
    assert!(is_there(&path), "the first is still at work");
    drop((first, second));
    let third = DirectoryBackend::new(&path, "main", None);
    write(&third, "three").await;
    assert!(!is_there(&path));
}
