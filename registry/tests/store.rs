//! Whole images between the registry in memory and a store.

use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rbuild_oci::{Descriptor, DiffId, Digest, ImageConfig, Manifest, MediaType, Platform, Reference};
use rbuild_registry::memory::{Access, Action, Behaviour, Fault, Registry, TokenRules};
use rbuild_registry::{Client, ClientOptions, Credentials, Error, Progress, Retry, Stage};
use rbuild_store::check::CheckOptions;
use rbuild_store::{ImageRecord, Lease, NewImage, Store, StoreOptions};

struct Fixture {
    _dir: tempfile::TempDir,
    store: Store,
    lease: Lease,
    client: Client,
}

fn fixture() -> Fixture {
    fixture_as(Credentials::Anonymous)
}

fn fixture_as(credentials: Credentials) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(StoreOptions::new(dir.path().join("root"))).unwrap();
    let lease = store.lease("test").unwrap();
    let retry = Retry { attempts: 4, first: Duration::from_millis(5), longest: Duration::from_millis(50) };
    let credentials = Arc::new(move |_: &str| Ok(credentials.clone()));
    let client = Client::new(ClientOptions { retry, credentials, ..ClientOptions::default() }).unwrap();
    Fixture { _dir: dir, store, lease, client }
}

fn name(registry: &Registry, rest: &str) -> Reference {
    Reference::parse(&format!("{}/{rest}", registry.host())).unwrap()
}

fn amd64() -> Platform {
    Platform::parse("linux/amd64").unwrap()
}

fn tar_of(path: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, path, content).unwrap();
    builder.into_inner().unwrap()
}

fn noise(size: usize) -> Vec<u8> {
    let mut state = 7_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..size).map(|_| next()).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn config_of(layers: &[Vec<u8>]) -> ImageConfig {
    let ids: Vec<String> = layers.iter().map(|l| format!("\"{}\"", Digest::sha256_of(l))).collect();
    let text = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    );
    ImageConfig::parse(text.as_bytes()).unwrap()
}

/// Puts an image with these tars into the registry: the first layer zstd, the others gzip.
fn upstream(registry: &Registry, repository: &str, tag: &str, tars: &[Vec<u8>]) -> Digest {
    let config = config_of(tars);
    let bytes = config.to_canonical_json();
    let size = bytes.len() as u64;
    let digest = registry.put_blob(repository, bytes);
    let config = Descriptor::new(MediaType::OciConfig, digest, size);
    let mut layers = Vec::new();
    for (at, tar) in tars.iter().enumerate() {
        let (kind, bytes) = match at {
            0 => (MediaType::OciLayerZstd, zstd::encode_all(&tar[..], 3).unwrap()),
            _ => (MediaType::OciLayerGzip, gzip(tar)),
        };
        let size = bytes.len() as u64;
        layers.push(Descriptor::new(kind, registry.put_blob(repository, bytes), size));
    }
    let manifest = serde_json::to_vec(&Manifest::new(config, layers)).unwrap();
    registry.put_manifest(repository, Some(tag), MediaType::OciManifest.as_str(), manifest)
}

/// Makes an image in the store as a build does: its layer is a snapshot and no blob.
fn local(fixture: &Fixture, named: &Reference, content: &[u8]) -> ImageRecord {
    let (store, lease) = (&fixture.store, &fixture.lease);
    let tar = tar_of("file", content);
    let staged = store.layers().stage(&tar[..], lease).unwrap();
    let applied = store.layers().stack_anew(staged, None).unwrap();
    let text = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        applied.diff_id.0
    );
    let config = store.blobs().put_bytes(text.as_bytes(), lease).unwrap();
    let described = Descriptor::new(MediaType::OciConfig, config.clone(), text.len() as u64);
    let layer = Descriptor::new(MediaType::OciLayer, applied.diff_id.0, applied.size);
    let manifest = serde_json::to_vec(&Manifest::new(described, vec![layer])).unwrap();
    let digest = store.blobs().put_bytes(&manifest, lease).unwrap();
    let target = Descriptor::new(MediaType::OciManifest, digest, manifest.len() as u64);
    store.images().put(&NewImage { target, config, names: vec![named.clone()] }, lease).unwrap()
}

/// Stages that were told, without those that only count bytes.
async fn pull(fixture: &Fixture, reference: &Reference) -> Result<(ImageRecord, Vec<Stage>), Error> {
    let told = Mutex::new(Vec::new());
    let progress = |p: Progress| told.lock().unwrap().push(p.stage);
    let pulled = fixture.client.pull(reference, &amd64(), &fixture.store, &fixture.lease, &progress).await?;
    let mut stages = told.into_inner().unwrap();
    stages.retain(|s| *s != Stage::Downloading);
    Ok((pulled.image, stages))
}

async fn push(fixture: &Fixture, image: &ImageRecord, reference: &Reference) -> Result<(Digest, Vec<Stage>), Error> {
    let told = Mutex::new(Vec::new());
    let progress = |p: Progress| told.lock().unwrap().push(p.stage);
    let pushed =
        fixture.client.push(image, Some(&amd64()), reference, &fixture.store, &fixture.lease, &progress).await?;
    let mut stages = told.into_inner().unwrap();
    stages.retain(|s| !matches!(s, Stage::Pushing | Stage::Preparing));
    Ok((pushed.digest, stages))
}

/// The content of a path in the image as it is unpacked.
fn content(fixture: &Fixture, image: &ImageRecord, path: &str) -> Vec<u8> {
    let store = &fixture.store;
    let (manifest, config, _) = store.images().manifest(image, &amd64()).unwrap();
    let top = store.layers().unpack(&manifest, &config, &fixture.lease).unwrap().unwrap();
    let chain = store.snapshots().chain(top.id()).unwrap();
    let found = chain.iter().rev().find_map(|id| std::fs::read(store.snapshots().path(id).join(path)).ok());
    found.unwrap_or_else(|| panic!("no {path}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_unpacks_and_names() {
    let registry = Registry::start().await.unwrap();
    let tars = [tar_of("a", b"one"), tar_of("b", &noise(700_000)), tar_of("c", b"three")];
    let digest = upstream(&registry, "team/app", "1", &tars);
    let f = fixture();
    let reference = name(&registry, "team/app:1");
    let (image, stages) = pull(&f, &reference).await.unwrap();
    assert_eq!(image.target.digest, digest);
    let names: Vec<_> = image.names.iter().map(Reference::familiar).collect();
    assert_eq!(names, [reference.familiar(), format!("{}/team/app@{digest}", registry.host())]);
    assert_eq!(content(&f, &image, "b"), noise(700_000));
    assert_eq!(content(&f, &image, "a"), b"one");
    assert_eq!(stages.iter().filter(|s| **s == Stage::PullComplete).count(), 3);
    assert_eq!(registry.count("GET", "/blobs/"), 4);

    registry.clear_log();
    let (again, stages) = pull(&f, &reference).await.unwrap();
    assert_eq!(again.target, image.target);
    assert_eq!(stages, vec![Stage::AlreadyExists; 3]);
    assert_eq!(registry.count("GET", "/blobs/"), 1, "only the config");

    // Another image on the same base brings its own layer only.
    let more = [tars[0].clone(), tars[1].clone(), tar_of("d", b"four")];
    upstream(&registry, "team/app", "2", &more);
    registry.clear_log();
    let (other, _) = pull(&f, &name(&registry, "team/app:2")).await.unwrap();
    assert_eq!(content(&f, &other, "d"), b"four");
    assert_eq!(registry.count("GET", "/blobs/"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_twice_in_one_image() {
    let registry = Registry::start().await.unwrap();
    let tars = [tar_of("x", b"base"), tar_of("a", b"one"), tar_of("a", b"one")];
    upstream(&registry, "a", "1", &tars);
    let f = fixture();
    let (image, _) = pull(&f, &name(&registry, "a:1")).await.unwrap();
    assert_eq!(content(&f, &image, "a"), b"one");
    assert_eq!(image.config.rootfs.diff_ids.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_pull_resumes_and_a_lying_registry_names_nothing() {
    let registry = Registry::start().await.unwrap();
    let tars = [tar_of("a", b"one"), tar_of("b", &noise(700_000))];
    upstream(&registry, "a", "1", &tars);
    let reference = name(&registry, "a:1");
    let big = gzip(&tars[1]);
    let path = format!("/blobs/{}", Digest::sha256_of(&big));
    let f = fixture();
    registry.fault(Fault::new("GET", &path, Action::OtherBytes));
    let error = pull(&f, &reference).await.unwrap_err();
    assert!(error.to_string().contains("digest"), "{error}");
    assert!(f.store.images().list().unwrap().is_empty());

    registry.clear_log();
    registry.fault(Fault::new("GET", &path, Action::CutAfter(300_000)));
    let (image, _) = pull(&f, &reference).await.unwrap();
    assert_eq!(content(&f, &image, "b"), noise(700_000));
    let ranges: Vec<_> = registry.log().into_iter().filter(|r| r.path.contains(&path)).map(|r| r.range).collect();
    assert_eq!(ranges, [None, Some("bytes=300000-".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_what_the_config_says_is_refused() {
    let registry = Registry::start().await.unwrap();
    let digest = upstream(&registry, "a", "1", &[tar_of("a", b"one")]);
    let (_, bytes) = registry.manifest("a", "1").unwrap();
    let mut manifest: Manifest = serde_json::from_slice(&bytes).unwrap();
    let other = gzip(&tar_of("a", b"evil"));
    let size = other.len() as u64;
    manifest.layers[0] = Descriptor::new(MediaType::OciLayerGzip, registry.put_blob("a", other), size);
    let kind = MediaType::OciManifest;
    let changed = registry.put_manifest("a", Some("1"), kind.as_str(), serde_json::to_vec(&manifest).unwrap());
    assert_ne!(changed, digest);
    let f = fixture();
    let error = pull(&f, &name(&registry, "a:1")).await.unwrap_err();
    assert!(error.to_string().contains("digest"), "{error}");
    assert!(f.store.images().list().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_compressed_and_remembers() {
    let registry = Registry::start().await.unwrap();
    let f = fixture();
    let reference = name(&registry, "app:1");
    let image = local(&f, &reference, &noise(3_000_000));
    let (digest, stages) = push(&f, &image, &reference).await.unwrap();
    assert_eq!(stages, [Stage::Pushed]);
    let (stored, bytes) = registry.manifest("app", "1").unwrap();
    assert_eq!(stored, digest);
    let manifest: Manifest = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(manifest.config.digest, image.id.0, "the config is untouched");
    assert_eq!(manifest.media_type, Some(MediaType::DockerManifest), "what every client understands");
    assert_eq!(manifest.layers[0].media_type, MediaType::DockerLayerGzip);
    let blob = registry.blob(&manifest.layers[0].digest).unwrap();
    let mut plain = Vec::new();
    std::io::copy(&mut flate2::read::MultiGzDecoder::new(&blob[..]), &mut plain).unwrap();
    assert_eq!(DiffId(Digest::sha256_of(&plain)), image.config.rootfs.diff_ids[0]);
    assert!(!f.store.blobs().has(&manifest.layers[0].digest).unwrap(), "compressed on the way, not kept");

    let uploads = registry.count("POST", "/uploads/");
    let (_, stages) = push(&f, &image, &name(&registry, "app:2")).await.unwrap();
    assert_eq!(stages, [Stage::LayerAlreadyExists]);
    let (_, stages) = push(&f, &image, &name(&registry, "other:1")).await.unwrap();
    assert_eq!(stages, [Stage::Mounted { from: "app".into() }]);
    assert_eq!(registry.count("POST", "mount="), 1);
    assert_eq!(registry.count("POST", "/uploads/"), uploads + 2, "the mount, and the config's upload");

    // What was pushed comes back as the same image.
    let g = fixture();
    let (pulled, _) = pull(&g, &reference).await.unwrap();
    assert_eq!(pulled.id, image.id);
    assert_eq!(content(&g, &pulled, "file"), noise(3_000_000));
    // And goes out again with the digest it had.
    let elsewhere = Registry::start().await.unwrap();
    let (again, _) = push(&g, &pulled, &name(&elsewhere, "copy:1")).await.unwrap();
    assert_eq!(again, digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_survives_one_fault_of_each_kind() {
    for (method, part, action) in [
        ("HEAD", "/blobs/", Action::Status(500, None)),
        ("POST", "/uploads/", Action::Status(503, Some(0))),
        ("PATCH", "/uploads/", Action::Status(500, None)),
        ("PATCH", "/uploads/", Action::Status(404, None)),
        ("PATCH", "/uploads/", Action::Status(401, None)),
        ("PUT", "/uploads/", Action::Status(502, None)),
        ("PUT", "/uploads/", Action::DoneBut(504)),
        ("PUT", "/manifests/", Action::Status(500, None)),
        ("PUT", "/manifests/", Action::DoneBut(503)),
    ] {
        let registry = Registry::start().await.unwrap();
        let f = fixture();
        let reference = name(&registry, "app:1");
        let image = local(&f, &reference, &noise(400_000));
        let unauthorized = matches!(action, Action::Status(401, _));
        registry.fault(Fault::new(method, part, action.clone()));
        let outcome = push(&f, &image, &reference).await;
        if unauthorized {
            // Without a challenge there is nothing to answer.
            assert!(outcome.is_err());
            continue;
        }
        let (digest, _) = outcome.unwrap_or_else(|e| panic!("{method} {part} {action:?}: {e}"));
        assert_eq!(registry.manifest("app", "1").unwrap().0, digest, "{method} {part} {action:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_with_little_to_offer() {
    let limited = Behaviour { no_head: true, no_patch: true, no_mounts: true, no_ranges: true, ..Behaviour::default() };
    let registry = Registry::start_with(limited).await.unwrap();
    let f = fixture();
    let reference = name(&registry, "app:1");
    let image = local(&f, &reference, &noise(400_000));
    let (digest, _) = push(&f, &image, &reference).await.unwrap();
    assert_eq!(registry.manifest("app", "1").unwrap().0, digest);
    push(&f, &image, &name(&registry, "other:1")).await.unwrap();
    let g = fixture();
    assert_eq!(pull(&g, &reference).await.unwrap().0.id, image.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_lies_about_a_digest_fails_the_push() {
    let wrong = Digest::sha256_of(b"something else").to_string();
    for (method, part) in [("PUT", "/uploads/"), ("PUT", "/manifests/")] {
        let registry = Registry::start().await.unwrap();
        let f = fixture();
        let reference = name(&registry, "app:1");
        let image = local(&f, &reference, b"x");
        registry.fault(Fault::new(method, part, Action::ClaimDigest(wrong.clone())).times(2));
        let error = push(&f, &image, &reference).await.unwrap_err();
        assert!(matches!(error, Error::WrongDigest { .. }), "{part}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pushing_needs_the_password() {
    let access = Access::Basic { username: "u".into(), password: "p".into() };
    let registry = Registry::start_with(Behaviour { access, ..Behaviour::default() }).await.unwrap();
    let f = fixture();
    let reference = name(&registry, "app:1");
    let image = local(&f, &reference, b"x");
    let error = push(&f, &image, &reference).await.unwrap_err().to_string();
    assert!(error.ends_with("no basic auth credentials"), "{error}");
    let f = fixture_as(Credentials::Password { username: "u".into(), password: "p".into() });
    let image = local(&f, &reference, b"x");
    push(&f, &image, &reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_layer_was_compressed_outlives_its_blob() {
    let registry = Registry::start().await.unwrap();
    let f = fixture();
    let reference = name(&registry, "app:1");
    let image = local(&f, &reference, &noise(400_000));
    push(&f, &image, &reference).await.unwrap();
    // The same blob comes back from the registry, and goes again with the image it came with.
    let (pulled, _) = pull(&f, &name(&registry, "app:1")).await.unwrap();
    let (manifest, ..) = f.store.images().manifest(&pulled, &amd64()).unwrap();
    f.store.blobs().remove(&manifest.layers[0].digest).unwrap();
    let (_, stages) = push(&f, &image, &name(&registry, "app:2")).await.unwrap();
    assert_eq!(stages, [Stage::LayerAlreadyExists]);
}

fn with_tokens() -> Behaviour {
    let rules = TokenRules { username: "u".into(), password: "p".into(), ..TokenRules::default() };
    Behaviour { access: Access::Token(rules), ..Behaviour::default() }
}

fn password() -> Credentials {
    Credentials::Password { username: "u".into(), password: "p".into() }
}

/// Everything that the store names is there, whole, and what it should be.
fn verify(fixture: &Fixture, about: &str) {
    let checked = fixture.store.check(&CheckOptions { deep: true, repair: false }).unwrap();
    assert_eq!(checked.problems, [], "{about}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_outlasts_bursts_of_faults() {
    let tars = [tar_of("a", b"one"), tar_of("b", &noise(300_000))];
    let mut faults = vec![("/token", Action::Status(503, Some(0))), ("/blobs/", Action::CutAfter(50))];
    for part in ["/manifests/", "/blobs/"] {
        for action in [Action::Status(429, Some(0)), Action::Status(502, None), Action::ExpireTokens] {
            faults.push((part, action));
        }
    }
    for (part, action) in faults {
        let registry = Registry::start_with(with_tokens()).await.unwrap();
        upstream(&registry, "a", "1", &tars);
        // A token that is worthless as soon as it comes is no burst.
        let times = if matches!(action, Action::ExpireTokens) { 1 } else { 3 };
        registry.fault(Fault::new("GET", part, action.clone()).times(times));
        let f = fixture_as(password());
        let about = format!("{part} {action:?}");
        let (image, _) = pull(&f, &name(&registry, "a:1")).await.unwrap_or_else(|e| panic!("{about}: {e}"));
        assert_eq!(content(&f, &image, "b"), noise(300_000), "{about}");
        verify(&f, &about);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_fails_says_why_and_the_next_one_works() {
    let tars = [tar_of("a", b"one"), tar_of("b", &noise(300_000))];
    for (part, action, times, word) in [
        ("/blobs/", Action::OtherBytes, 1, "digest"),
        ("/blobs/", Action::Oversized(400_000), 1, "bytes"),
        ("/blobs/", Action::Endless, 1, "bytes"),
        ("/blobs/", Action::CutAfter(0), 40, "cut"),
        ("/blobs/", Action::Status(500, None), 40, "500 Internal Server Error"),
        ("/blobs/", Action::Status(429, Some(0)), 40, "429 Too Many Requests"),
        ("/blobs/", Action::Status(404, None), 1, "unknown"),
        ("/manifests/", Action::OtherBytes, 1, "digest"),
        ("/manifests/", Action::Endless, 1, "limit"),
        ("/manifests/", Action::Status(503, None), 40, "503 Service Unavailable"),
    ] {
        let registry = Registry::start().await.unwrap();
        upstream(&registry, "a", "1", &tars);
        registry.fault(Fault::new("GET", part, action.clone()).times(times));
        let f = fixture();
        let about = format!("{part} {action:?}");
        let error = pull(&f, &name(&registry, "a:1")).await.expect_err(&about).to_string();
        assert!(error.contains(word), "{about}: {error}");
        assert!(f.store.images().list().unwrap().is_empty(), "{about}");
        verify(&f, &about);
        registry.forgive();
        let (image, _) = pull(&f, &name(&registry, "a:1")).await.unwrap_or_else(|e| panic!("{about}: {e}"));
        assert_eq!(content(&f, &image, "b"), noise(300_000), "{about}");
        verify(&f, &about);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_outlasts_bursts_and_tokens_that_expire() {
    let mut faults = Vec::new();
    for (method, part) in [
        ("HEAD", "/blobs/"),
        ("POST", "/uploads/"),
        ("PATCH", "/uploads/"),
        ("PUT", "/uploads/"),
        ("PUT", "/manifests/"),
    ] {
        faults.push((method, part, Action::ExpireTokens, 1));
        faults.push((method, part, Action::Status(429, Some(0)), 3));
        faults.push((method, part, Action::Status(503, None), 3));
    }
    for (method, part, action, times) in faults {
        let registry = Registry::start_with(with_tokens()).await.unwrap();
        let f = fixture_as(password());
        let reference = name(&registry, "app:1");
        let image = local(&f, &reference, &noise(400_000));
        registry.fault(Fault::new(method, part, action.clone()).times(times));
        let about = format!("{method} {part} {action:?}");
        let (digest, _) = push(&f, &image, &reference).await.unwrap_or_else(|e| panic!("{about}: {e}"));
        assert_eq!(registry.manifest("app", "1").unwrap().0, digest, "{about}");
        let other = fixture_as(password());
        let (image, _) = pull(&other, &reference).await.unwrap();
        assert_eq!(content(&other, &image, "file"), noise(400_000), "{about}");
        verify(&f, &about);
    }
}

/// A server that gives `bytes` to everybody, as often as asked; what it was asked is kept.
fn web_server(bytes: Vec<u8>) -> (String, Arc<Mutex<Vec<String>>>) {
    use std::io::Read as _;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/layer.tar.gz", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    std::thread::spawn(move || {
        for peer in listener.incoming() {
            let mut peer = peer.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && peer.read(&mut byte).unwrap() == 1 {
                head.push(byte[0]);
            }
            log.lock().unwrap().push(String::from_utf8_lossy(&head).to_lowercase());
            let length = bytes.len();
            // Who has enough may go away.
            drop(write!(peer, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"));
            drop(peer.write_all(&bytes));
        }
    });
    (url, asked)
}

/// An image whose upper layer no registry has, as `kind` says it, in a manifest of that family.
fn with_foreign_layer(registry: &Registry, repository: &str, kind: MediaType, urls: &[String]) -> (Digest, Vec<u8>) {
    let tars = [tar_of("own", b"own"), tar_of("foreign", b"theirs")];
    let config = config_of(&tars).to_canonical_json();
    let size = config.len() as u64;
    let docker = kind == MediaType::DockerForeignLayerGzip;
    let (manifest_type, config_type, own_type) = match docker {
        true => (MediaType::DockerManifest, MediaType::DockerConfig, MediaType::DockerLayerGzip),
        false => (MediaType::OciManifest, MediaType::OciConfig, MediaType::OciLayerGzip),
    };
    let config = Descriptor::new(config_type, registry.put_blob(repository, config), size);
    let own = gzip(&tars[0]);
    let size = own.len() as u64;
    let own = Descriptor::new(own_type, registry.put_blob(repository, own), size);
    let theirs = match kind {
        MediaType::OciForeignLayer => tars[1].clone(),
        MediaType::OciForeignLayerZstd => zstd::encode_all(&tars[1][..], 3).unwrap(),
        _ => gzip(&tars[1]),
    };
    let mut foreign = Descriptor::new(kind, Digest::sha256_of(&theirs), theirs.len() as u64);
    foreign.urls = urls.to_vec();
    let mut manifest = Manifest::new(config, vec![own, foreign]);
    manifest.media_type = Some(manifest_type.clone());
    let bytes = serde_json::to_vec(&manifest).unwrap();
    (registry.put_manifest(repository, Some("v1"), manifest_type.as_str(), bytes), theirs)
}

const FOREIGN: [MediaType; 4] = [
    MediaType::DockerForeignLayerGzip,
    MediaType::OciForeignLayer,
    MediaType::OciForeignLayerGzip,
    MediaType::OciForeignLayerZstd,
];

/// What registries may not give away comes from where its manifest says, without a credential, is kept through an archive
/// with the same digest, and is pushed only where the user says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_layers_come_from_their_address_and_stay_at_home() {
    for kind in FOREIGN {
        let registry = Registry::start_with(with_tokens()).await.unwrap();
        let theirs = with_foreign_layer(&registry, "app", kind.clone(), &[]).1;
        let (url, asked) = web_server(theirs.clone());
        let nowhere = "ftp://host/layer".to_owned();
        let (digest, _) = with_foreign_layer(&registry, "app", kind.clone(), &[nowhere, url]);
        let mut fixture = fixture_as(password());
        let (image, _) = pull(&fixture, &name(&registry, "app:v1")).await.unwrap();
        assert_eq!(image.target.digest, digest, "{kind}");
        assert_eq!(content(&fixture, &image, "foreign"), b"theirs");
        let asked = asked.lock().unwrap().clone();
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert!(asked[0].starts_with("get /layer.tar.gz ") && !asked[0].contains("authorization"), "{asked:?}");

        let mut archive = Vec::new();
        let chosen = rbuild_store::archive::select(&fixture.store, &[name(&registry, "app:v1").familiar()]).unwrap();
        rbuild_store::archive::save(&chosen, &fixture.store, &mut archive).unwrap();
        let other = fixture_as(password());
        let loaded = rbuild_store::archive::load(&archive[..], &other.store, &other.lease, &|_| {}).unwrap();
        assert_eq!(loaded[0].record.target.digest, digest, "{kind}");
        assert_eq!(content(&other, &loaded[0].record, "foreign"), b"theirs");

        let (pushed, stages) = push(&other, &loaded[0].record, &name(&registry, "kept:v1")).await.unwrap();
        assert_eq!(pushed, digest, "{kind}");
        assert!(stages.contains(&Stage::SkippedForeign), "{stages:?}");
        let layer = Digest::sha256_of(&theirs);
        assert!(registry.blob(&layer).is_none(), "it is not ours to give away");
        let retry = Retry { attempts: 2, first: Duration::from_millis(5), longest: Duration::from_millis(50) };
        let credentials = Arc::new(move |_: &str| Ok(password()));
        let undistributable = vec![registry.host()];
        let options = ClientOptions { retry, credentials, undistributable, ..ClientOptions::default() };
        fixture.client = Client::new(options).unwrap();
        let (pushed, stages) = push(&fixture, &image, &name(&registry, "all:v1")).await.unwrap();
        assert_eq!(pushed, digest, "{kind}");
        assert!(!stages.contains(&Stage::SkippedForeign), "{stages:?}");
        assert_eq!(registry.blob(&layer).expect("it is there"), theirs);
        verify(&fixture, "after foreign layers");
    }
}

/// An address that lies, sends too much or is not there leaves nothing; layers that are no foreign ones have no address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_address_of_a_foreign_layer_is_not_believed() {
    let registry = Registry::start().await.unwrap();
    let fixture = fixture();
    let kind = MediaType::OciForeignLayerGzip;
    let theirs = with_foreign_layer(&registry, "app", kind.clone(), &[]).1;
    let nowhere = pull(&fixture, &name(&registry, "app:v1")).await.unwrap_err();
    assert!(nowhere.to_string().contains("not found"), "{nowhere}");
    let mut wrong = theirs.clone();
    wrong[20] ^= 1;
    let (liar, _) = web_server(wrong);
    let (endless, _) = web_server([theirs.clone(), vec![0; 1 << 20]].concat());
    for (url, words) in [(&liar, "digest"), (&endless, "bytes")] {
        with_foreign_layer(&registry, "app", kind.clone(), std::slice::from_ref(url));
        let failed = pull(&fixture, &name(&registry, "app:v1")).await.unwrap_err();
        assert!(failed.to_string().contains(words), "{failed}");
        assert!(fixture.store.images().list().unwrap().is_empty());
    }
    let (honest, asked) = web_server(theirs);
    with_foreign_layer(&registry, "app", kind, &[endless, honest.clone()]);
    pull(&fixture, &name(&registry, "app:v1")).await.unwrap();
    assert_eq!(asked.lock().unwrap().len(), 1, "the next address helps out");
    with_foreign_layer(&registry, "other", MediaType::OciLayerGzip, &[honest]);
    let fresh = fixture_as(Credentials::Anonymous);
    pull(&fresh, &name(&registry, "other:v1")).await.unwrap_err();
    assert_eq!(asked.lock().unwrap().len(), 1, "an ordinary layer is had from its registry or not at all");
    verify(&fixture, "after lying addresses");
}
