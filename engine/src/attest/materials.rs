//! What a build was made from: images, repositories, files of web servers, each with the digest it had.
//!
//! Images are named by package URLs, as BuildKit does. Addresses are written without the credentials that may be in them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use rbuild_executor::Value;
use rbuild_executor::sources::git::redacted;
use rbuild_graph::ops::{GitSource, Op, SourceOp};
use rbuild_graph::{BuildGraph, Vertex, VertexId};
use rbuild_oci::{Digest, Platform, Reference};
use rbuild_solver::{InputContent, KeySpec, OpError, OpFactory, PartValue, Ran, RunContext, RunOp};
use serde_json::json;

/// Something from outside.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Material {
    pub(crate) uri: String,
    /// Name of the algorithm, and the digest.
    pub(crate) digest: (String, String),
}

impl Material {
    pub(crate) fn image(reference: &Reference, platform: &Platform, digest: &Digest) -> Material {
        Material { uri: package_url(reference, Some(platform)), digest: named(digest) }
    }

    pub(crate) fn file(url: &str, digest: &Digest) -> Material {
        Material { uri: redacted(url), digest: named(digest) }
    }

    pub(crate) fn repository(source: &GitSource, commit: &str) -> Material {
        let algorithm = if commit.len() == 64 { "sha256" } else { "sha1" };
        Material { uri: git_address(source), digest: (algorithm.to_owned(), commit.to_owned()) }
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        json!({"uri": self.uri, "digest": {&self.digest.0: self.digest.1}})
    }
}

fn named(digest: &Digest) -> (String, String) {
    (digest.algorithm().name().to_owned(), digest.hex().to_owned())
}

/// The address of a repository with its fragment.
pub(crate) fn git_address(source: &GitSource) -> String {
    let remote = redacted(&source.remote);
    match (source.reference.as_deref().unwrap_or_default(), source.subdir.as_deref().unwrap_or_default()) {
        ("", "") => remote,
        (reference, "") => format!("{remote}#{reference}"),
        (reference, subdir) => format!("{remote}#{reference}:{subdir}"),
    }
}

/// The package URL of an image (purl specification, type `docker`).
pub(crate) fn package_url(reference: &Reference, platform: Option<&Platform>) -> String {
    let mut url = format!("pkg:docker/{}", reference.familiar_name());
    if let Some(tag) = reference.tag() {
        url.push_str(&format!("@{tag}"));
    }
    let digest = reference.digest().map(|digest| format!("digest={digest}"));
    let platform = platform.map(|platform| format!("platform={}", platform.to_string().replace('/', "%2F")));
    let qualifiers: Vec<String> = digest.into_iter().chain(platform).collect();
    if qualifiers.is_empty() { url } else { format!("{url}?{}", qualifiers.join("&")) }
}

/// Remembers what the sources of a build turned out to be.
#[derive(Clone, Default)]
pub(crate) struct Witness(Arc<Mutex<BTreeMap<String, String>>>);

impl Witness {
    /// A factory whose sources are remembered once their keys are known.
    pub(crate) fn wrap(&self, factory: OpFactory<Value>) -> OpFactory<Value> {
        let witness = self.clone();
        Arc::new(move |vertex: &Vertex| {
            let inner = factory(vertex)?;
            let Some(name) = address(&vertex.op) else { return Ok(inner) };
            Ok(Arc::new(Watched { inner, name, witness: witness.clone() }) as Arc<dyn RunOp<Value>>)
        })
    }

    fn note(&self, name: &str, key: &KeySpec) {
        let pinned = key.parts.iter().find_map(|part| match (part.name.as_str(), &part.value) {
            ("commit", PartValue::Text(text)) => Some(text.clone()),
            ("checksum" | "content", PartValue::Digest(digest)) => Some(digest.clone()),
            _ => None,
        });
        if let Some(pinned) = pinned {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), pinned);
        }
    }

    /// What these vertices brought in, each once, in order.
    pub(crate) fn materials(&self, graph: &BuildGraph, vertices: &[VertexId]) -> Vec<Material> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |id: &VertexId| {
            let op = &graph.vertex(*id).op;
            let pinned = || known.get(&address(op)?);
            match op {
                Op::Source(SourceOp::Image(image)) => {
                    Some(Material::image(&image.reference, &image.platform, image.digest.as_ref()?))
                }
                Op::Source(SourceOp::Http(http)) => Some(Material::file(&http.url, &pinned()?.parse().ok()?)),
                Op::Source(SourceOp::Git(git)) => Some(Material::repository(git, pinned()?)),
                _ => None,
            }
        };
        let mut all: Vec<Material> = vertices.iter().filter_map(of).collect();
        all.sort();
        all.dedup();
        all
    }
}

/// Names a source whose content is found out during the build.
fn address(op: &Op) -> Option<String> {
    match op {
        Op::Source(SourceOp::Http(http)) => Some(http.url.clone()),
        Op::Source(SourceOp::Git(git)) => {
            Some(format!("{} {}", git.remote, git.reference.as_deref().unwrap_or_default()))
        }
        _ => None,
    }
}

struct Watched {
    inner: Arc<dyn RunOp<Value>>,
    name: String,
    witness: Witness,
}

impl RunOp<Value> for Watched {
    fn key(&self) -> BoxFuture<'_, Result<KeySpec, OpError>> {
        async move {
            let key = self.inner.key().await?;
            self.witness.note(&self.name, &key);
            Ok(key)
        }
        .boxed()
    }

    fn content(&self, input: usize, value: &Value) -> BoxFuture<'_, Result<InputContent, OpError>> {
        self.inner.content(input, value)
    }

    fn run(&self, inputs: Vec<Value>, context: RunContext) -> BoxFuture<'_, Result<Ran<Value>, OpError>> {
        self.inner.run(inputs, context)
    }

    fn needs_permit(&self) -> bool {
        self.inner.needs_permit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_package_urls() {
        let platform = Platform::parse("linux/arm64/v8").unwrap().normalized();
        let url = |name: &str| package_url(&Reference::parse(name).unwrap(), Some(&platform));
        assert_eq!(url("busybox"), "pkg:docker/busybox@latest?platform=linux%2Farm64");
        assert_eq!(url("docker/dockerfile:1"), "pkg:docker/docker/dockerfile@1?platform=linux%2Farm64");
        assert_eq!(url("ghcr.io/a/b:v1"), "pkg:docker/ghcr.io/a/b@v1?platform=linux%2Farm64");
        let digest = Digest::sha256_of(b"x");
        assert_eq!(url(&format!("a@{digest}")), format!("pkg:docker/a?digest={digest}&platform=linux%2Farm64"));
    }

    #[test]
    fn addresses_keep_no_credentials() {
        let source = GitSource {
            remote: "https://user:hunter2@host/r.git".to_owned(),
            reference: Some("main".to_owned()),
            subdir: Some("d".to_owned()),
            checksum: None,
            keep_git_dir: false,
            submodules: true,
        };
        let material = Material::repository(&source, &"a".repeat(40));
        assert!(material.uri.ends_with("host/r.git#main:d") && !material.uri.contains("hunter2"), "{material:?}");
        assert_eq!(material.digest.0, "sha1");
        let file = Material::file("https://u:hunter2@host/f", &Digest::sha256_of(b""));
        assert!(!file.uri.contains("hunter2"), "{file:?}");
    }
}
