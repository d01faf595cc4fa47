//! Manifests put into a registry, and images copied from one registry to another without being kept here.
//!
//! A blob that the target lacks is mounted when both repositories are of one registry, else it passes through: read from
//! the one, checked, and written to the other, a piece at a time.

use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use rbuild_oci::{Descriptor, Digest, Document, MediaType, Reference, limits};
use reqwest::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};

use crate::client::{Client, Fetched, content_digest, failure};
use crate::upload::{Content, Destination, Named, Produce, Sessions};
use crate::{Error, Pushed, referrers};

const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

impl Client {
    /// Brings a manifest or index, as it was fetched from `from`, with all it consists of into the repository of `to`,
    /// where it has no name yet. Gives the digests of the manifests that were sent.
    ///
    /// # Errors
    /// The source does not have a part, or the target does not take it. What arrived stays there, unnamed.
    pub async fn relay(&self, from: &Reference, fetched: &Fetched, to: &Reference) -> Result<(), Error> {
        if from.registry() == to.registry() && from.repository() == to.repository() {
            return Ok(());
        }
        let relay = Relay { from: from.clone(), destination: self.destination(to).await? };
        relay.document(fetched, 0).await
    }

    /// Puts a manifest or index under the tag of `to`, or its digest when there is no tag. What it consists of is there.
    ///
    /// # Errors
    /// The registry does not take it.
    pub async fn put_manifest(&self, to: &Reference, kind: &MediaType, bytes: Bytes) -> Result<Pushed, Error> {
        self.destination(to).await?.manifest(to.tag(), kind, bytes).await
    }

    /// A layer of the repository of `from`, to be passed on without being kept here.
    ///
    /// Its bytes are asked for on the runtime that is current now; whoever writes them may block.
    pub fn layer_source(&self, from: &Reference, layer: &Descriptor) -> LayerSource {
        LayerSource { repository: Some(from.clone()), bytes: self.through(from, layer) }
    }

    /// The bytes of a blob of a repository. They are asked for on a thread that may block.
    fn through(&self, from: &Reference, blob: &Descriptor) -> Produce {
        let (client, from, blob) = (self.clone(), from.clone(), blob.clone());
        let runtime = tokio::runtime::Handle::current();
        Arc::new(move |out: &mut dyn Write| {
            let mut stream = runtime.block_on(client.fetch_blob(&from, &blob)).map_err(io::Error::other)?;
            while let Some(piece) = runtime.block_on(stream.chunk()).map_err(io::Error::other)? {
                out.write_all(&piece)?;
            }
            Ok(())
        })
    }

    pub(crate) async fn destination(&self, to: &Reference) -> Result<Destination, Error> {
        let access = self.access(&self.target(to)?).await?;
        let (client, repository) = (self.clone(), to.repository().to_owned());
        Ok(Destination { client, access, repository, sessions: Sessions::default() })
    }
}

/// A compressed layer that lies elsewhere and may pass through here.
#[derive(Clone)]
pub struct LayerSource {
    /// The repository that has it: its own registry can mount it from there.
    pub repository: Option<Reference>,
    /// Writes its bytes, whose digest was checked when it returns without an error. What `out` refuses is its error of
    /// the kind `BrokenPipe`.
    pub bytes: Produce,
}

struct Relay {
    from: Reference,
    destination: Destination,
}

impl Relay {
    /// What `fetched` consists of, then itself, by its digest.
    fn document<'a>(
        &'a self,
        fetched: &'a Fetched,
        depth: usize,
    ) -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>> {
        Box::pin(async move {
            match &fetched.document {
                Document::Manifest(manifest) => {
                    let blobs = std::iter::once(&manifest.config).chain(&manifest.layers);
                    let blobs: Vec<Descriptor> = blobs
                        .filter(|blob| !blob.media_type.is_foreign_layer() || blob.urls.is_empty())
                        .cloned()
                        .collect();
                    futures::stream::iter(blobs)
                        .map(|blob| async move { self.blob(blob).await })
                        .buffer_unordered(self.destination.client.parallel())
                        .try_collect::<()>()
                        .await?;
                }
                Document::Index(_) if depth >= limits::INDEX_DEPTH => {
                    let reason = format!("indexes nest over the limit of {}", limits::INDEX_DEPTH);
                    return Err(Error::Document { what: self.from.familiar(), reason });
                }
                Document::Index(index) => {
                    for child in &index.manifests {
                        let by_digest = self.from.without_tag().with_digest(child.digest.clone());
                        let child = self.destination.client.fetch_manifest(&by_digest).await?;
                        self.document(&child, depth + 1).await?;
                    }
                }
            }
            let bytes = fetched.bytes.clone();
            self.destination.manifest(None, &fetched.descriptor.media_type, bytes).await.map(drop)
        })
    }

    async fn blob(&self, blob: Descriptor) -> Result<(), Error> {
        if self.destination.has(&blob.digest).await? {
            return Ok(());
        }
        let same = self.destination.access.credentials == self.from.registry();
        let from = Some(self.from.repository()).filter(|_| same);
        let content = Content {
            produce: self.destination.client.through(&self.from, &blob),
            named: Named::Blob(blob.digest.clone(), blob.size),
        };
        self.destination.put(&content, from, &|_| {}).await.map(drop)
    }
}

impl Destination {
    /// Puts a manifest or index under `tag`, or under its digest. A registry that does not know referrers gets them in
    /// the list that the specification gives such ones.
    pub(crate) async fn manifest(&self, tag: Option<&str>, kind: &MediaType, bytes: Bytes) -> Result<Pushed, Error> {
        let digest = Digest::sha256_of(&bytes);
        let name = tag.map_or_else(|| digest.to_string(), str::to_owned);
        let mut ask = self.access.ask(Method::PUT, &format!("{}/manifests/{name}", self.repository))?;
        let kind =
            HeaderValue::from_str(kind.as_str()).map_err(|_| Error::Options("a media type is no header".into()))?;
        ask.headers.insert(CONTENT_TYPE, kind);
        ask.body = bytes;
        let size = ask.body.len() as u64;
        let answer = self.client.call(&self.access, &self.scope(), &ask).await?;
        if answer.status() != StatusCode::CREATED && !answer.status().is_success() {
            return Err(failure(&ask.shown(), answer).await);
        }
        match content_digest(answer.headers()) {
            Some(actual) if actual.algorithm() == digest.algorithm() && actual != digest => {
                let what = "the manifest the registry says it stored".into();
                return Err(Error::WrongDigest { what, expected: digest, actual });
            }
            _ => {}
        }
        if !answer.headers().contains_key(SUBJECT) {
            referrers::note(self, &ask.body, &digest).await?;
        }
        Ok(Pushed { digest, size })
    }
}
