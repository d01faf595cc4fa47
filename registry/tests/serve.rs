//! The registry that is served, against the distribution specification 1.1: the four categories of its conformance
//! requirements (pull, push, content discovery, content management), then authentication, TLS, and the client of this
//! crate against it.

mod served;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rbuild_oci::{Descriptor, DiffId, Digest, Index, Manifest, MediaType, Platform, Reference};
use rbuild_registry::serve::{Names, Passwords, ServeOptions};
use rbuild_registry::{Client, ClientOptions, Credentials, Retry};
use rbuild_store::{ImageRecord, NewImage};
use reqwest::{Method, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use served::{Served, config_of, gzip, tar_of};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// A config and one layer, pushed as blobs, and the manifest that names them.
async fn parts(served: &Served, repository: &str, text: &str) -> (Manifest, Vec<u8>) {
    let tar = tar_of("file", text.as_bytes());
    let layer = gzip(&tar);
    let config = config_of(&[Digest::sha256_of(&tar)]);
    let layer = served.push_blob(repository, &layer).await;
    let config = served.push_blob(repository, config.as_bytes()).await;
    let typed = |d: Descriptor, media_type| Descriptor { media_type, ..d };
    let layers = vec![typed(layer, MediaType::OciLayerGzip)];
    let manifest = Manifest::new(typed(config, MediaType::OciConfig), layers);
    let bytes = serde_json::to_vec(&manifest).unwrap();
    (manifest, bytes)
}

async fn push_image(served: &Served, repository: &str, tag: &str) -> Digest {
    let (_, bytes) = parts(served, repository, tag).await;
    let answer = served.put(&format!("{repository}/manifests/{tag}"), MANIFEST, bytes.clone()).await;
    assert_eq!(answer.status(), StatusCode::CREATED, "{}", answer.text().await.unwrap());
    Digest::sha256_of(&bytes)
}

async fn code(answer: reqwest::Response) -> String {
    let body: serde_json::Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    body["errors"][0]["code"].as_str().unwrap().to_owned()
}

// Category 1: pull.

#[tokio::test]
async fn a_manifest_comes_by_tag_and_by_digest() {
    let served = Served::start().await;
    let digest = push_image(&served, "team/app", "v1").await;
    for which in ["v1".to_owned(), digest.to_string()] {
        let head = served.ask(Method::HEAD, &format!("team/app/manifests/{which}")).await;
        assert_eq!(head.status(), StatusCode::OK);
        let length: usize = head.headers()["content-length"].to_str().unwrap().parse().unwrap();
        let answer = served.ask(Method::GET, &format!("team/app/manifests/{which}")).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["docker-content-digest"], digest.to_string().as_str());
        assert_eq!(answer.headers()["content-type"], MANIFEST);
        let bytes = answer.bytes().await.unwrap();
        assert_eq!((bytes.len(), Digest::sha256_of(&bytes)), (length, digest.clone()));
    }
    for missing in ["team/app/manifests/v2", "team/app/manifests/.INVALID", "none/manifests/v1"] {
        for method in [Method::HEAD, Method::GET] {
            assert_eq!(served.ask(method, missing).await.status(), StatusCode::NOT_FOUND, "{missing}");
        }
    }
    assert_eq!(code(served.ask(Method::GET, "none/manifests/v1").await).await, "MANIFEST_UNKNOWN");
    assert_eq!(code(served.ask(Method::GET, "UPPER/manifests/v1").await).await, "NAME_INVALID");
}

#[tokio::test]
async fn a_blob_comes_whole_and_in_parts() {
    let served = Served::start().await;
    let bytes: Vec<u8> = (0..900_000_u32).map(|i| (i % 251) as u8).collect();
    let blob = served.push_blob("a", &bytes).await;
    let path = format!("a/blobs/{}", blob.digest);
    let head = served.ask(Method::HEAD, &path).await;
    assert_eq!(head.headers()["content-length"], bytes.len().to_string().as_str());
    assert_eq!(head.headers()["docker-content-digest"], blob.digest.to_string().as_str());
    assert_eq!(served.ask(Method::GET, &path).await.bytes().await.unwrap(), bytes);
    for (range, want) in [
        ("bytes=10-19", Some(&bytes[10..20])),
        ("bytes=899990-", Some(&bytes[899_990..])),
        ("bytes=-7", Some(&bytes[899_993..])),
        ("bytes=900000-", None),
    ] {
        let answer = served.request(Method::GET, &path).header("range", range).send().await.unwrap();
        match want {
            Some(want) => {
                assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT, "{range}");
                assert!(answer.headers()["content-range"].to_str().unwrap().ends_with("/900000"));
                assert_eq!(answer.bytes().await.unwrap(), want, "{range}");
            }
            None => assert_eq!(answer.status(), StatusCode::RANGE_NOT_SATISFIABLE),
        }
    }
    let missing = format!("a/blobs/{}", Digest::sha256_of(b"never"));
    assert_eq!(code(served.ask(Method::GET, &missing).await).await, "BLOB_UNKNOWN");
    // The blobs of one repository are not another's.
    let elsewhere = format!("b/blobs/{}", blob.digest);
    assert_eq!(served.ask(Method::GET, &elsewhere).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_image_built_here_is_pulled_without_a_push() {
    let served = Served::start().await;
    let tar = tar_of("hello", b"from the store");
    let staged = served.store.layers().stage(tar.as_slice(), &served.lease).unwrap();
    let applied = served.store.layers().stack_anew(staged, None).unwrap();
    let config = config_of(std::slice::from_ref(&applied.diff_id.0));
    let config_digest = served.store.blobs().put_bytes(config.as_bytes(), &served.lease).unwrap();
    let size = served.store.layers().diff(applied.snapshot.id()).unwrap().size;
    let layer = Descriptor::new(MediaType::OciLayer, applied.diff_id.0.clone(), size);
    let config = Descriptor::new(MediaType::OciConfig, config_digest.clone(), config.len() as u64);
    let manifest = Manifest::new(config, vec![layer.clone()]);
    let target = rbuild_store::transfer::put_manifest(served.store.blobs(), &manifest, &served.lease).unwrap();
    let names = vec![Reference::parse("built:here").unwrap()];
    served.store.images().put(&NewImage { target, config: config_digest, names }, &served.lease).unwrap();
    assert!(!served.store.blobs().has(&layer.digest).unwrap(), "its layer is no blob");

    let path = format!("built/blobs/{}", layer.digest);
    let bytes = served.ask(Method::GET, &path).await.bytes().await.unwrap();
    assert_eq!(Digest::sha256_of(&bytes), layer.digest);
    let part = served.request(Method::GET, &path).header("range", "bytes=100-199").send().await.unwrap();
    assert_eq!(part.bytes().await.unwrap(), bytes[100..200]);

    let other = Served::start().await;
    let from = Reference::parse(&format!("{}/built:here", served.host())).unwrap();
    let platform = Platform::host();
    let pulled = client().pull(&from, &platform, &other.store, &other.lease, &|_| {}).await.unwrap();
    assert_eq!(pulled.image.config.rootfs.diff_ids, [DiffId(layer.digest)]);
}

// Category 2: push.

#[tokio::test]
async fn blobs_are_pushed_in_every_way() {
    let served = Served::start().await;
    // POST then PUT, POST with the digest, streamed and chunked.
    let bytes = b"monolithic".to_vec();
    let digest = Digest::sha256_of(&bytes);
    let answer = served.post(&format!("a/blobs/uploads/?digest={digest}"), bytes).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(answer.headers()["location"], format!("/v2/a/blobs/{digest}").as_str());
    assert_eq!(served.ask(Method::GET, &format!("a/blobs/{digest}")).await.bytes().await.unwrap(), "monolithic");

    let place = served.begin("a").await;
    let patch = served.request_at(Method::PATCH, &place).body("stream").send().await.unwrap();
    assert_eq!(patch.status(), StatusCode::ACCEPTED);
    assert_eq!(patch.headers()["range"], "0-5");
    let digest = Digest::sha256_of(b"streamed");
    let put = served.request_at(Method::PUT, &format!("{place}?digest={digest}")).body("ed").send().await.unwrap();
    assert_eq!(put.status(), StatusCode::CREATED);
    assert_eq!(put.headers()["docker-content-digest"], digest.to_string().as_str());

    let empty = Digest::sha256_of(b"");
    let place = served.begin("a").await;
    let put = served.request_at(Method::PUT, &format!("{place}?digest={empty}")).send().await.unwrap();
    assert_eq!(put.status(), StatusCode::CREATED);
    let head = served.ask(Method::HEAD, &format!("a/blobs/{empty}")).await;
    assert_eq!((head.status(), head.headers()["content-length"].as_bytes()), (StatusCode::OK, &b"0"[..]));
}

#[tokio::test]
async fn chunks_come_in_order_or_not_at_all() {
    let served = Served::start().await;
    let place = served.begin("a").await;
    let chunk = async |range: &str, text: &'static str| {
        let request = served.request_at(Method::PATCH, &place).header("content-range", range.to_owned());
        request.body(text).send().await.unwrap()
    };
    assert_eq!(chunk("0-3", "abcd").await.status(), StatusCode::ACCEPTED);
    let wrong = chunk("9-12", "wxyz").await;
    assert_eq!(wrong.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(wrong.headers()["range"], "0-3");
    let stands = served.request_at(Method::GET, &place).send().await.unwrap();
    assert_eq!((stands.status(), stands.headers()["range"].as_bytes()), (StatusCode::NO_CONTENT, &b"0-3"[..]));
    assert!(stands.headers().contains_key("location"));
    assert_eq!(chunk("4-7", "efgh").await.status(), StatusCode::ACCEPTED);
    let digest = Digest::sha256_of(b"abcdefghij");
    let last = served.request_at(Method::PUT, &format!("{place}?digest={digest}")).header("content-range", "8-9");
    assert_eq!(last.body("ij").send().await.unwrap().status(), StatusCode::CREATED);
    let gone = served.request_at(Method::GET, &place).send().await.unwrap();
    assert_eq!(code(gone).await, "BLOB_UPLOAD_UNKNOWN");

    let place = served.begin("a").await;
    assert_eq!(served.request_at(Method::DELETE, &place).send().await.unwrap().status(), StatusCode::NO_CONTENT);
    assert_eq!(served.request_at(Method::GET, &place).send().await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_wrong_digest_is_refused() {
    let served = Served::start().await;
    let wrong = Digest::sha256_of(b"something else");
    let answer = served.post(&format!("a/blobs/uploads/?digest={wrong}"), b"this".to_vec()).await;
    assert_eq!((answer.status(), code(answer).await.as_str()), (StatusCode::BAD_REQUEST, "DIGEST_INVALID"));
    assert_eq!(served.ask(Method::HEAD, &format!("a/blobs/{wrong}")).await.status(), StatusCode::NOT_FOUND);
    let (_, bytes) = parts(&served, "a", "x").await;
    let answer = served.put(&format!("a/manifests/{wrong}"), MANIFEST, bytes).await;
    assert_eq!(code(answer).await, "DIGEST_INVALID");
}

#[tokio::test]
async fn sha512_names_blobs_too() {
    use sha2::Digest as _;
    let served = Served::start().await;
    let hex: String = sha2::Sha512::digest(b"long").iter().map(|b| format!("{b:02x}")).collect();
    let answer = served.post(&format!("a/blobs/uploads/?digest=sha512:{hex}"), b"long".to_vec()).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let bytes = served.ask(Method::GET, &format!("a/blobs/sha512:{hex}")).await.bytes().await.unwrap();
    assert_eq!(bytes, "long");
}

#[tokio::test]
async fn a_cut_upload_goes_on_where_it_stood() {
    let served = Served::start().await;
    let place = served.begin("a").await;
    let mut raw = tokio::net::TcpStream::connect(served.host()).await.unwrap();
    let head = format!("PATCH {place} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabcdef");
    raw.write_all(head.as_bytes()).await.unwrap();
    // Half-closed: the server sees the end of what comes and says so.
    raw.shutdown().await.unwrap();
    let mut said = Vec::new();
    raw.read_to_end(&mut said).await.unwrap();
    drop(raw);
    let stands = served.request_at(Method::GET, &place).send().await.unwrap();
    assert_eq!(stands.headers()["range"], "0-5");
    let digest = Digest::sha256_of(b"abcdefghij");
    let put = served.request_at(Method::PUT, &format!("{place}?digest={digest}")).body("ghij").send().await.unwrap();
    assert_eq!(put.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn blobs_are_mounted_from_where_they_are() {
    let served = Served::start().await;
    let blob = served.push_blob("a", b"shared").await;
    let mount = |from: &str| format!("b/blobs/uploads/?mount={}&from={from}", blob.digest);
    let refused = served.post(&mount("c"), Vec::new()).await;
    assert_eq!(refused.status(), StatusCode::ACCEPTED, "an upload begins instead");
    assert!(refused.headers().contains_key("location"));
    let mounted = served.post(&mount("a"), Vec::new()).await;
    assert_eq!(mounted.status(), StatusCode::CREATED);
    assert_eq!(served.ask(Method::GET, &format!("b/blobs/{}", blob.digest)).await.bytes().await.unwrap(), "shared");
}

#[tokio::test]
async fn manifests_name_only_what_is_there() {
    let served = Served::start().await;
    let (mut manifest, _) = parts(&served, "a", "x").await;
    manifest.layers[0].digest = Digest::sha256_of(b"absent");
    let answer = served.put("a/manifests/v1", MANIFEST, serde_json::to_vec(&manifest).unwrap()).await;
    assert_eq!(code(answer).await, "MANIFEST_BLOB_UNKNOWN");
    for (kind, bytes) in [(MANIFEST, &b"{"[..]), (MANIFEST, br#"{"schemaVersion":1}"#), (INDEX, b"{}")] {
        assert_eq!(code(served.put("a/manifests/v1", kind, bytes.to_vec()).await).await, "MANIFEST_INVALID");
    }
    let large = served.put("a/manifests/v1", MANIFEST, vec![b' '; 5 << 20]).await;
    assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let bad_tag = served.put("a/manifests/.x", MANIFEST, b"{}".to_vec()).await;
    assert_eq!(code(bad_tag).await, "TAG_INVALID");
}

#[tokio::test]
async fn what_is_pushed_is_an_image_of_the_store() {
    let served = Served::start().await;
    let digest = push_image(&served, "team/app", "v1").await;
    let image = served.store.images().get(&Reference::parse("team/app:v1").unwrap()).unwrap().unwrap();
    assert_eq!(image.target.digest, digest);
    let (manifest, config, _) = served.store.images().manifest(&image, &Platform::host()).unwrap();
    let lease = served.store.lease("test").unwrap();
    assert!(served.store.layers().unpack(&manifest, &config, &lease).unwrap().is_some(), "it can be run");
    // Removed here, it is gone there.
    served.store.images().remove(&digest, false).unwrap();
    assert_eq!(served.ask(Method::GET, "team/app/manifests/v1").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_index_takes_over_the_manifests_pushed_before_it() {
    let served = Served::start().await;
    let mut children = Vec::new();
    for (text, architecture) in [("one", "amd64"), ("two", "arm64")] {
        let (_, bytes) = parts(&served, "multi", text).await;
        let digest = Digest::sha256_of(&bytes);
        let answer = served.put(&format!("multi/manifests/{digest}"), MANIFEST, bytes.clone()).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        let mut child = Descriptor::new(MediaType::OciManifest, digest, bytes.len() as u64);
        child.platform = Some(Platform::new("linux", architecture));
        children.push(child);
    }
    assert!(served.store.images().list().unwrap().is_empty(), "a part is no image yet");
    let index = serde_json::to_vec(&Index::new(children.clone())).unwrap();
    assert_eq!(served.put("multi/manifests/v1", INDEX, index.clone()).await.status(), StatusCode::CREATED);
    assert_eq!(served.store.images().list().unwrap().len(), 1);
    served.store.collect(&everything()).unwrap();
    for child in &children {
        let answer = served.ask(Method::GET, &format!("multi/manifests/{}", child.digest)).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let refused = served.ask(Method::DELETE, &format!("multi/manifests/{}", child.digest)).await;
        assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
    let missing = Index::new(vec![Descriptor::new(MediaType::OciManifest, Digest::sha256_of(b"no"), 2)]);
    let answer = served.put("multi/manifests/v2", INDEX, serde_json::to_vec(&missing).unwrap()).await;
    assert_eq!(code(answer).await, "MANIFEST_BLOB_UNKNOWN");
}

fn everything() -> rbuild_store::CollectOptions {
    rbuild_store::CollectOptions { records: rbuild_store::Records::All }
}

// Category 3: content discovery.

#[tokio::test]
async fn tags_are_listed_in_order_and_in_pages() {
    let served = Served::start().await;
    for tag in ["v3", "v1", "v2"] {
        push_image(&served, "team/app", tag).await;
    }
    push_image(&served, "team/app-other", "x").await;
    let list = async |query: &str| {
        let answer = served.ask(Method::GET, &format!("team/app/tags/list{query}")).await;
        let link = answer.headers().get("link").map(|l| l.to_str().unwrap().to_owned());
        let body: serde_json::Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        assert_eq!(body["name"], "team/app");
        let tags: Vec<String> = serde_json::from_value(body["tags"].clone()).unwrap();
        (tags.join(" "), link)
    };
    assert_eq!(list("").await, ("v1 v2 v3".into(), None));
    let (tags, link) = list("?n=2").await;
    assert_eq!((tags.as_str(), link.as_deref()), ("v1 v2", Some("</v2/team/app/tags/list?n=2&last=v2>; rel=\"next\"")));
    assert_eq!(list("?n=2&last=v2").await, ("v3".into(), None));
    assert_eq!(list("?n=0").await, (String::new(), None));
    assert_eq!(list("?last=v1").await, ("v2 v3".into(), None));
    assert_eq!(code(served.ask(Method::GET, "none/tags/list").await).await, "NAME_UNKNOWN");

    let catalog = served.ask(Method::GET, "_catalog?n=1").await;
    assert!(catalog.headers()["link"].to_str().unwrap().contains("last=team%2Fapp"));
    let body: serde_json::Value = serde_json::from_slice(&catalog.bytes().await.unwrap()).unwrap();
    assert_eq!(body["repositories"], serde_json::json!(["team/app"]));
}

#[tokio::test]
async fn referrers_are_found() {
    let served = Served::start().await;
    let subject = push_image(&served, "a", "v1").await;
    let referrers = async |query: &str| -> (Index, bool) {
        let answer = served.ask(Method::GET, &format!("a/referrers/{subject}{query}")).await;
        assert_eq!((answer.status(), answer.headers()["content-type"].as_bytes()), (StatusCode::OK, INDEX.as_bytes()));
        let filtered = answer.headers().contains_key("oci-filters-applied");
        (serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap(), filtered)
    };
    assert!(referrers("").await.0.manifests.is_empty());
    let config = served.push_blob("a", b"{}").await;
    let mut pushed = Vec::new();
    for kind in ["application/x.signature", "application/x.sbom"] {
        let mut manifest = Manifest::new(Descriptor { media_type: MediaType::from(EMPTY), ..config.clone() }, vec![]);
        manifest.artifact_type = Some(kind.into());
        manifest.subject = Some(Descriptor::new(MediaType::OciManifest, subject.clone(), 1));
        manifest.annotations.insert("who".into(), kind.into());
        let bytes = serde_json::to_vec(&manifest).unwrap();
        let digest = Digest::sha256_of(&bytes);
        let answer = served.put(&format!("a/manifests/{digest}"), MANIFEST, bytes).await;
        assert_eq!(answer.headers()["oci-subject"], subject.to_string().as_str());
        pushed.push(digest);
    }
    served.store.collect(&everything()).unwrap();
    let (all, filtered) = referrers("").await;
    assert_eq!((all.manifests.len(), filtered), (2, false));
    let (some, filtered) = referrers("?artifactType=application/x.sbom").await;
    assert!(filtered);
    assert_eq!(some.manifests.len(), 1);
    assert_eq!(
        (&some.manifests[0].digest, some.manifests[0].annotations["who"].as_str()),
        (&pushed[1], "application/x.sbom")
    );
    assert_eq!(served.ask(Method::DELETE, &format!("a/manifests/{}", pushed[1])).await.status(), StatusCode::ACCEPTED);
    assert_eq!(referrers("").await.0.manifests.len(), 1);
    assert_eq!(served.ask(Method::GET, "a/referrers/nonsense").await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn what_is_no_image_has_tags_as_well() {
    let served = Served::start().await;
    let config = served.push_blob("charts", b"{\"name\":\"x\"}").await;
    let config = Descriptor { media_type: MediaType::from("application/vnd.cncf.helm.config.v1+json"), ..config };
    let bytes = serde_json::to_vec(&Manifest::new(config, vec![])).unwrap();
    assert_eq!(served.put("charts/manifests/1.0", MANIFEST, bytes.clone()).await.status(), StatusCode::CREATED);
    assert!(served.store.images().list().unwrap().is_empty());
    served.store.collect(&everything()).unwrap();
    assert_eq!(served.ask(Method::GET, "charts/manifests/1.0").await.bytes().await.unwrap(), bytes);
    // A tag is one thing: an image takes it over.
    push_image(&served, "charts", "1.0").await;
    let answer = served.ask(Method::GET, "charts/manifests/1.0").await;
    assert_ne!(answer.bytes().await.unwrap(), bytes);
    assert_eq!(served.put("charts/manifests/1.0", MANIFEST, bytes.clone()).await.status(), StatusCode::CREATED);
    assert_eq!(served.ask(Method::GET, "charts/manifests/1.0").await.bytes().await.unwrap(), bytes);
    assert_eq!(served.ask(Method::DELETE, "charts/manifests/1.0").await.status(), StatusCode::ACCEPTED);
    assert_eq!(served.ask(Method::GET, "charts/manifests/1.0").await.status(), StatusCode::NOT_FOUND);
}

// Category 4: content management.

#[tokio::test]
async fn tags_manifests_and_blobs_are_deleted() {
    let served = Served::start().await;
    let digest = push_image(&served, "a", "v1").await;
    let (manifest, _) = parts(&served, "a", "v1").await;
    let layer = format!("a/blobs/{}", manifest.layers[0].digest);
    let used = served.ask(Method::DELETE, &layer).await;
    assert_eq!(used.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(served.ask(Method::DELETE, "a/manifests/v1").await.status(), StatusCode::ACCEPTED);
    assert_eq!(served.ask(Method::GET, "a/manifests/v1").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(served.ask(Method::GET, &format!("a/manifests/{digest}")).await.status(), StatusCode::OK);
    assert_eq!(served.ask(Method::DELETE, &format!("a/manifests/{digest}")).await.status(), StatusCode::ACCEPTED);
    assert_eq!(served.ask(Method::GET, &format!("a/manifests/{digest}")).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(served.ask(Method::DELETE, &format!("a/manifests/{digest}")).await.status(), StatusCode::NOT_FOUND);
    assert!(served.store.images().list().unwrap().is_empty());
    assert_eq!(served.ask(Method::DELETE, &layer).await.status(), StatusCode::ACCEPTED);
    assert_eq!(served.ask(Method::GET, &layer).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(served.ask(Method::DELETE, &layer).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_read_only_registry_takes_nothing() {
    let served = Served::start_with(ServeOptions { read_only: true, ..ServeOptions::default() }).await;
    assert_eq!(code(served.post("a/blobs/uploads/", Vec::new()).await).await, "UNSUPPORTED");
    assert_eq!(served.ask(Method::DELETE, "a/manifests/v1").await.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(served.ask(Method::GET, "").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn names_of_the_store_stand_behind_a_prefix() {
    let names = Names::behind("registry.lan:5000").unwrap();
    let served = Served::start_with(ServeOptions { names, ..ServeOptions::default() }).await;
    push_image(&served, "team/app", "v1").await;
    let name = Reference::parse("registry.lan:5000/team/app:v1").unwrap();
    assert!(served.store.images().get(&name).unwrap().is_some());
}

// Authentication, TLS, and our own client.

fn client() -> Client {
    client_as(Credentials::Anonymous)
}

fn client_as(credentials: Credentials) -> Client {
    let retry = Retry { attempts: 4, first: Duration::from_millis(5), longest: Duration::from_millis(50) };
    let credentials = Arc::new(move |_: &str| Ok(credentials.clone()));
    Client::new(ClientOptions { retry, credentials, ..ClientOptions::default() }).unwrap()
}

#[tokio::test]
async fn only_users_come_in() {
    let hash = bcrypt::hash("secret", 4).unwrap();
    let passwords = Some(Passwords::parse(&format!("ann:{hash}\n")).unwrap());
    let served = Served::start_with(ServeOptions { passwords, ..ServeOptions::default() }).await;
    let refused = served.ask(Method::GET, "").await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert!(refused.headers()["www-authenticate"].to_str().unwrap().starts_with("Basic "));
    let credentials = |password: &str| Credentials::Password { username: "ann".into(), password: password.into() };
    assert!(client().log_in(&served.host(), &credentials("wrong")).await.is_err());
    client().log_in(&served.host(), &credentials("secret")).await.unwrap();
    let name = Reference::parse(&format!("{}/none:v1", served.host())).unwrap();
    let error = client_as(credentials("secret")).fetch_manifest(&name).await.unwrap_err();
    assert!(error.to_string().contains("not found"), "{error}");
}

#[tokio::test]
async fn our_client_pushes_to_it_and_pulls_from_it() {
    let first = Served::start().await;
    push_image(&first, "a", "v1").await;
    let image = first.store.images().get(&Reference::parse("a:v1").unwrap()).unwrap().unwrap();
    let second = Served::start().await;
    let to = Reference::parse(&format!("{}/copy:v1", second.host())).unwrap();
    let platform = Platform::host();
    let pushed = client().push(&image, None, &to, &first.store, &first.lease, &|_| {}).await.unwrap();
    assert_eq!(pushed.digest, image.target.digest);
    let copy = second.store.images().get(&Reference::parse("copy:v1").unwrap()).unwrap().unwrap();
    assert_eq!((copy.id.clone(), copy.target.digest.clone()), (image.id.clone(), image.target.digest.clone()));
    let third = Served::start().await;
    let pulled = client().pull(&to, &platform, &third.store, &third.lease, &|_| {}).await.unwrap();
    assert_eq!(pulled.image.id, image.id);
    assert_eq!(client().tags(&to).await.unwrap(), ["v1"]);
}

#[tokio::test]
async fn it_speaks_tls_and_asks_for_certificates() {
    use rbuild_registry::serve::Tls;
    let read = |name: &str| std::fs::read(format!("{}/tests/testdata/tls/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (server, key, authority) = (read("server.pem"), read("server-key.pem"), read("ca.pem"));
    assert!(Tls::new(&server, &server, None).is_err(), "no key");
    assert!(Tls::new(&server, &read("client-key.pem"), None).is_err(), "not its key");
    let (shown, its_key) = (read("client.pem"), read("client-key.pem"));
    for clients in [None, Some(authority.as_slice())] {
        let tls = Some(Tls::new(&server, &key, clients).unwrap());
        let served = Served::start_with(ServeOptions { tls, ..ServeOptions::default() }).await;
        let url = format!("https://{}/v2/", served.host());
        let known = served::http(&authority, Some((&shown, &its_key)));
        assert_eq!(known.get(&url).send().await.unwrap().status(), StatusCode::OK);
        let anybody = served::http(&authority, None).get(&url).send().await;
        assert_eq!(anybody.is_ok(), clients.is_none(), "{anybody:?}");
    }
}

/// A way to a registry that closes every connection which carried more than so many bytes there.
struct Narrow {
    address: std::net::SocketAddr,
    limit: Arc<AtomicU64>,
    carried: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Narrow {
    async fn to(served: &Served) -> Narrow {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (limit, carried) = (Arc::new(AtomicU64::new(u64::MAX)), Arc::new(AtomicU64::new(0)));
        let (host, most, count) = (served.host(), limit.clone(), carried.clone());
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (host, most, count) = (host.clone(), most.clone(), count.clone());
                tokio::spawn(async move {
                    let far = tokio::net::TcpStream::connect(host).await.unwrap();
                    let ((mut from_near, mut to_near), (mut from_far, mut to_far)) =
                        (near.into_split(), far.into_split());
                    let back = tokio::spawn(async move { tokio::io::copy(&mut from_far, &mut to_near).await });
                    let mut there = (&mut from_near).take(most.load(Ordering::Relaxed));
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(len @ 1..) = there.read(&mut buffer).await {
                        count.fetch_add(len as u64, Ordering::Relaxed);
                        if to_far.write_all(&buffer[..len]).await.is_err() {
                            break;
                        }
                    }
                    // What was carried arrives; then the registry sees the end, and its answer is lost.
                    to_far.shutdown().await.ok();
                    back.abort();
                });
            }
        });
        Narrow { address, limit, carried, task }
    }
}

impl Drop for Narrow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn noise(size: usize) -> Vec<u8> {
    let mut state = 7_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..size).map(|_| next()).collect()
}

/// A push over a way that breaks in the middle, and again over one that does not, by a client that knows nothing of the
/// first: how many bytes the second one sent.
async fn pushed_in_two_runs(from: &Served, to: &Served, image: &ImageRecord, breaks_after: u64) -> u64 {
    let narrow = Narrow::to(to).await;
    let name = Reference::parse(&format!("{}/b:v1", narrow.address)).unwrap();
    let run = async || {
        let retry = Retry { attempts: 1, first: Duration::from_millis(5), longest: Duration::from_millis(5) };
        let client = Client::new(ClientOptions { retry, ..ClientOptions::default() }).unwrap();
        client.push(image, None, &name, &from.store, &from.lease, &|_| {}).await
    };
    narrow.limit.store(breaks_after, Ordering::Relaxed);
    run().await.unwrap_err();
    narrow.limit.store(u64::MAX, Ordering::Relaxed);
    let before = narrow.carried.load(Ordering::Relaxed);
    run().await.unwrap();
    assert_eq!(to.store.images().get(&Reference::parse("b:v1").unwrap()).unwrap().unwrap().id, image.id);
    narrow.carried.load(Ordering::Relaxed) - before
}

#[tokio::test]
async fn an_upload_goes_on_in_a_later_run() {
    let (from, to) = (Served::start().await, Served::start().await);
    let tar = tar_of("noise", &noise(6_000_000));
    let mut layer = from.push_blob("a", &tar).await;
    let config = config_of(std::slice::from_ref(&layer.digest));
    let mut config = from.push_blob("a", config.as_bytes()).await;
    // A layer that is compressed as far as its type says is sent as it is.
    let packed = gzip(&tar);
    layer = from.push_blob("a", &packed).await;
    (layer.media_type, config.media_type) = (MediaType::OciLayerGzip, MediaType::OciConfig);
    let manifest = serde_json::to_vec(&Manifest::new(config, vec![layer.clone()])).unwrap();
    assert_eq!(from.put("a/manifests/v1", MANIFEST, manifest).await.status(), StatusCode::CREATED);
    let image = from.store.images().get(&Reference::parse("a:v1").unwrap()).unwrap().unwrap();
    assert!(layer.size > 4_000_000, "it is worth going on with");
    let carried = pushed_in_two_runs(&from, &to, &image, layer.size / 2).await;
    assert!(carried < layer.size * 3 / 4, "{carried} of {} bytes were sent again", layer.size);
}

/// The layer is a snapshot, compressed on its way: made again it is the same, so only the rest of it is sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_compressed_on_its_way_goes_on_in_a_later_run() {
    let (from, to) = (Served::start().await, Served::start().await);
    let tar = tar_of("noise", &noise(6_000_000));
    let staged = from.store.layers().stage(&tar[..], &from.lease).unwrap();
    let applied = from.store.layers().stack_anew(staged, None).unwrap();
    let config = config_of(std::slice::from_ref(&applied.diff_id.0));
    let digest = from.store.blobs().put_bytes(config.as_bytes(), &from.lease).unwrap();
    let described = Descriptor::new(MediaType::OciConfig, digest.clone(), config.len() as u64);
    let layer = Descriptor::new(MediaType::OciLayer, applied.diff_id.0, applied.size);
    let manifest = serde_json::to_vec(&Manifest::new(described, vec![layer])).unwrap();
    let target = from.store.blobs().put_bytes(&manifest, &from.lease).unwrap();
    let target = Descriptor::new(MediaType::OciManifest, target, manifest.len() as u64);
    let new = NewImage { target, config: digest, names: Vec::new() };
    let image = from.store.images().put(&new, &from.lease).unwrap();
    let carried = pushed_in_two_runs(&from, &to, &image, 3_500_000).await;
    assert!((1_000_000..4_000_000).contains(&carried), "{carried} bytes were sent again");
}
