//! Copies between registries, and manifests that refer to others.

use std::time::Duration;

use rbuild_oci::{Descriptor, Digest, Index, Manifest, MediaType, Platform, Reference};
use rbuild_registry::memory::{Action, Behaviour, Fault, Registry};
use rbuild_registry::{Client, ClientOptions, Retry};

fn client() -> Client {
    let retry = Retry { attempts: 4, first: Duration::from_millis(5), longest: Duration::from_millis(50) };
    Client::new(ClientOptions { retry, ..ClientOptions::default() }).unwrap()
}

fn name(registry: &Registry, rest: &str) -> Reference {
    Reference::parse(&format!("{}/{rest}", registry.host())).unwrap()
}

/// An index of one image with one layer.
fn index(registry: &Registry, repository: &str) -> (Digest, Digest) {
    let blob = |bytes: Vec<u8>, kind| {
        let size = bytes.len() as u64;
        Descriptor::new(kind, registry.put_blob(repository, bytes), size)
    };
    let layer = blob(vec![7; 300_000], MediaType::OciLayer);
    let config = format!(
        r#"{{"architecture":"arm64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        layer.digest
    );
    let manifest = Manifest::new(blob(config.into_bytes(), MediaType::OciConfig), vec![layer.clone()]);
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let size = bytes.len() as u64;
    let digest = registry.put_manifest(repository, None, MediaType::OciManifest.as_str(), bytes);
    let mut child = Descriptor::new(MediaType::OciManifest, digest, size);
    child.platform = Some(Platform::new("linux", "arm64"));
    let bytes = serde_json::to_vec(&Index::new(vec![child])).unwrap();
    (registry.put_manifest(repository, Some("v1"), MediaType::OciIndex.as_str(), bytes), layer.digest)
}

async fn copy(client: &Client, from: &Reference, to: &Reference) -> Result<(), rbuild_registry::Error> {
    let fetched = client.fetch_manifest(from).await?;
    client.relay(from, &fetched, to).await?;
    client.put_manifest(to, &fetched.descriptor.media_type, fetched.bytes).await.map(drop)
}

#[tokio::test]
async fn a_copy_survives_faults_on_both_sides() {
    let (from, to) = (Registry::start().await.unwrap(), Registry::start().await.unwrap());
    let (digest, layer) = index(&from, "a");
    from.fault(Fault::new("GET", "/blobs/", Action::CutAfter(1000)).times(2));
    from.fault(Fault::new("GET", "/manifests/", Action::Status(503, None)));
    to.fault(Fault::new("POST", "/blobs/uploads/", Action::Status(429, Some(0))));
    to.fault(Fault::new("PUT", "/blobs/uploads/", Action::Status(500, None)));
    copy(&client(), &name(&from, "a:v1"), &name(&to, "b:v2")).await.unwrap();
    assert_eq!(to.manifest("b", "v2").unwrap().0, digest);
    assert_eq!(to.blob(&layer).unwrap().len(), 300_000);
}

#[tokio::test]
async fn within_one_registry_blobs_are_mounted() {
    let registry = Registry::start().await.unwrap();
    let (digest, _) = index(&registry, "a");
    copy(&client(), &name(&registry, "a:v1"), &name(&registry, "b:v1")).await.unwrap();
    assert_eq!(registry.manifest("b", "v1").unwrap().0, digest);
    assert_eq!(registry.count("GET", "/blobs/"), 0, "no byte came here");
    registry.clear_log();
    copy(&client(), &name(&registry, "a:v1"), &name(&registry, "a:v2")).await.unwrap();
    assert_eq!(registry.count("POST", ""), 0, "the repository has it all");
}

#[tokio::test]
async fn wrong_bytes_are_not_passed_on() {
    let (from, to) = (Registry::start().await.unwrap(), Registry::start().await.unwrap());
    let (_, layer) = index(&from, "a");
    from.fault(Fault::new("GET", &format!("/blobs/{layer}"), Action::OtherBytes).times(100));
    assert!(copy(&client(), &name(&from, "a:v1"), &name(&to, "b:v1")).await.is_err());
    assert!(to.manifest("b", "v1").is_none() && to.blob(&layer).is_none());
}

#[tokio::test]
async fn referrers_are_found_and_noted() {
    for referrers in [true, false] {
        let registry = Registry::start_with(Behaviour { referrers, ..Behaviour::default() }).await.unwrap();
        let (subject, _) = index(&registry, "a");
        let (client, image) = (client(), name(&registry, "a:v1"));
        assert!(client.referrers(&image, &subject, None).await.unwrap().is_empty());
        for kind in ["application/x.one", "application/x.two", "application/x.one"] {
            let config = Descriptor::new(MediaType::from(kind), registry.put_blob("a", "{}"), 2);
            let mut manifest = Manifest::new(config, vec![]);
            manifest.subject = Some(Descriptor::new(MediaType::OciIndex, subject.clone(), 1));
            manifest.artifact_type = Some(kind.into());
            let bytes = serde_json::to_vec(&manifest).unwrap();
            let to = image.with_digest(Digest::sha256_of(&bytes));
            client.put_manifest(&to, &MediaType::OciManifest, bytes.into()).await.unwrap();
        }
        assert_eq!(client.referrers(&image, &subject, None).await.unwrap().len(), 2, "{referrers}");
        let one = client.referrers(&image, &subject, Some("application/x.one")).await.unwrap();
        assert_eq!(one.len(), 1);
        let tag = format!("sha256-{}", subject.hex());
        assert_eq!(registry.manifest("a", &tag).is_some(), !referrers, "the list is for those that need it");
    }
}
