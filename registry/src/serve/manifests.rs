//! Manifests: what becomes an image of the store, and what is only kept for the registry.

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse as _;
use futures::StreamExt as _;
use rbuild_oci::{Descriptor, Digest, Document, ImageConfig, Manifest, MediaType, Reference, limits};
use rbuild_store::{CollectOptions, Lease, NewImage, Records, StoreError, transfer};

use super::contents::{Content, Found};
use super::entry::{Answer, Call, Refusal, Registry, Repository};
use super::shelf::Kept;
use crate::wire::{created, with_header};

/// A tag or a digest, as it stands in a path.
#[derive(Clone)]
enum Which {
    Tag(Reference),
    Digest(Digest),
}

impl Which {
    fn parse(text: &str, repository: &Repository) -> Result<Which, Refusal> {
        if let Ok(digest) = text.parse() {
            return Ok(Which::Digest(digest));
        }
        match repository.local.with_tag(text) {
            Ok(name) => Ok(Which::Tag(name)),
            Err(_) if text.contains(':') => Err(Refusal::bad("DIGEST_INVALID", "invalid digest")),
            Err(_) => Err(Refusal::bad("TAG_INVALID", "invalid tag")),
        }
    }
}

pub(super) async fn get(call: Call, repository: Repository, text: String) -> Answer {
    // A tag that cannot be is a manifest that is not.
    let which = Which::parse(&text, &repository).map_err(|_| Refusal::no_manifest(&text))?;
    let (digest, content, bytes) = call
        .blocking(move |registry| {
            let store = &registry.shelf.store;
            let found = registry.manifest(&repository, &which)?;
            let (digest, content) = found.ok_or_else(|| Refusal::no_manifest(&text))?;
            let bytes = store.blobs().read(&digest, limits::MANIFEST.max(limits::INDEX))?;
            Ok((digest, content, bytes))
        })
        .await?;
    let body = if call.is_head() { Body::empty() } else { Body::from(bytes) };
    let answer = with_header(body.into_response(), "content-length", &content.size.to_string());
    let answer = with_header(answer, "content-type", content.media_type.as_str());
    let answer = with_header(answer, "etag", &format!("\"{digest}\""));
    Ok(with_header(answer, "docker-content-digest", &digest.to_string()))
}

impl Registry {
    fn manifest(
        &self,
        repository: &Repository,
        which: &Which,
    ) -> Result<Option<(Digest, std::sync::Arc<Content>)>, Refusal> {
        let (shelf, store) = (&self.shelf, &self.shelf.store);
        let digest = match which {
            Which::Tag(name) => match shelf.tagged(name)? {
                Some(digest) => digest,
                None => return Ok(None),
            },
            Which::Digest(digest) => match self.contents.find(store, shelf.roots(&repository.local)?, digest)? {
                Some(Found::Document(content)) => return Ok(Some((digest.clone(), content))),
                _ => return Ok(None),
            },
        };
        Ok(self.contents.of(store, &digest)?.map(|content| (digest, content)))
    }
}

pub(super) async fn put(call: Call, repository: Repository, text: String, body: Body) -> Answer {
    let which = Which::parse(&text, &repository)?;
    let kind = call.header(header::CONTENT_TYPE).map(MediaType::from);
    let bytes = whole(body).await?;
    let place = format!("/v2/{}/manifests/", repository.name);
    let (digest, subject) =
        call.blocking(move |registry| Pushing::check(registry, &repository, which, kind, bytes)?.keep()).await?;
    let answer = created(&format!("{place}{digest}"), &digest);
    Ok(match subject {
        Some(subject) => with_header(answer, "oci-subject", &subject.to_string()),
        None => answer,
    })
}

async fn whole(body: Body) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|_| Refusal::bad("MANIFEST_INVALID", "the manifest was cut"))?;
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > limits::MANIFEST {
            let message = format!("the manifest is over the limit of {} bytes", limits::MANIFEST);
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "MANIFEST_INVALID", message));
        }
    }
    Ok(bytes)
}

/// A manifest that was looked at and may be kept.
struct Pushing<'a> {
    registry: &'a Registry,
    repository: &'a Repository,
    which: Which,
    lease: Lease,
    descriptor: Descriptor,
    document: Document,
    subject: Option<Digest>,
    content: Content,
}

impl<'a> Pushing<'a> {
    /// The bytes must be a manifest of the type they came as, have the digest they were put under, and name nothing that
    /// the repository does not have.
    fn check(
        registry: &'a Registry,
        repository: &'a Repository,
        which: Which,
        kind: Option<MediaType>,
        bytes: Vec<u8>,
    ) -> Result<Pushing<'a>, Refusal> {
        let invalid = |e: rbuild_oci::OciError| Refusal::bad("MANIFEST_INVALID", crate::clean(&e.to_string()));
        let document = Document::parse(&bytes, kind.as_ref()).map_err(invalid)?;
        let digest = match &which {
            Which::Digest(named) if !named.matches(&bytes) => {
                return Err(Refusal::bad("DIGEST_INVALID", "the manifest has another digest"));
            }
            Which::Digest(named) => named.clone(),
            Which::Tag(_) => Digest::sha256_of(&bytes),
        };
        let size = bytes.len() as u64;
        let content = Content::of(&document, size);
        let lease = registry.shelf.lease()?;
        let (subject, artifact_type, annotations) = match &document {
            Document::Manifest(m) => (&m.subject, m.artifact_type.clone(), &m.annotations),
            Document::Index(i) => (&i.subject, i.artifact_type.clone(), &i.annotations),
        };
        // Who lists referrers is told what a manifest is by its config when it does not say so itself.
        let implied = match &document {
            Document::Manifest(m) => Some(m.config.media_type.as_str().to_owned()).filter(|t| !t.is_empty()),
            Document::Index(_) => None,
        };
        let mut descriptor = Descriptor::new(document.media_type(), digest.clone(), size);
        descriptor.artifact_type = artifact_type.filter(|t| !t.is_empty()).or(implied);
        descriptor.annotations = annotations.clone();
        let subject = subject.as_ref().map(|s| s.digest.clone());
        let pushing = Pushing { registry, repository, which, lease, descriptor, document, subject, content };
        pushing.has_all()?;
        let mut writer = registry.shelf.store.blobs().writer_for(&digest, &pushing.lease)?;
        let written = std::io::Write::write_all(&mut writer, &bytes);
        written.map_err(|e| StoreError::io(format!("writing manifest {digest}"), e))?;
        writer.commit(Some(&digest), Some(size))?;
        Ok(pushing)
    }

    fn has_all(&self) -> Result<(), Refusal> {
        let store = &self.registry.shelf.store;
        let unknown = |digest: &Digest| {
            let message = format!("manifest references {digest}, which the repository does not have");
            Refusal::bad("MANIFEST_BLOB_UNKNOWN", message)
        };
        for blob in self.content.blobs.iter().filter(|blob| !blob.media_type.is_foreign_layer()) {
            match self.registry.blob(self.repository, &blob.digest)? {
                None => return Err(unknown(&blob.digest)),
                Some(size) if size != blob.size => {
                    let message = format!("{} has {size} bytes, not {}", blob.digest, blob.size);
                    return Err(Refusal::bad("MANIFEST_INVALID", message));
                }
                Some(_) => store.blobs().hold(&blob.digest, &self.lease)?,
            };
        }
        for child in &self.content.children {
            let which = Which::Digest(child.digest.clone());
            if self.registry.manifest(self.repository, &which)?.is_none() {
                return Err(unknown(&child.digest));
            }
            store.blobs().hold(&child.digest, &self.lease)?;
        }
        Ok(())
    }

    /// An image with a tag becomes one of the store; what has no tag yet, is no image or refers to something is kept.
    fn keep(&self) -> Result<(Digest, Option<Digest>), Refusal> {
        let (shelf, local, digest) = (&self.registry.shelf, &self.repository.local, &self.descriptor.digest);
        let config = self.image_config()?;
        let tag = match &self.which {
            Which::Tag(name) => Some(name),
            Which::Digest(_) => None,
        };
        let becomes_image = tag.zip(config);
        if self.subject.is_some() || becomes_image.is_none() {
            let mut blobs = vec![digest.clone()];
            blobs.extend(self.content.blobs.iter().map(|blob| blob.digest.clone()));
            for child in self.registry.contents.below(&shelf.store, digest)? {
                let below = self.registry.contents.of(&shelf.store, &child)?;
                blobs.extend(below.iter().flat_map(|c| &c.blobs).map(|blob| blob.digest.clone()));
                blobs.push(child);
            }
            let tag = tag.filter(|_| becomes_image.is_none()).and_then(|name| name.tag());
            shelf.keep(
                local,
                &Kept { descriptor: &self.descriptor, subject: self.subject.as_ref(), blobs: &blobs, tag },
            )?;
            if let (Some(_), Which::Tag(name)) = (tag, &self.which) {
                shelf.store.images().untag(name)?;
            }
        }
        if let Some((name, config)) = becomes_image {
            let target = Descriptor::new(self.descriptor.media_type.clone(), digest.clone(), self.descriptor.size);
            let names = vec![name.clone(), local.with_digest(digest.clone())];
            shelf.store.images().put(&NewImage { target, config, names }, &self.lease)?;
            shelf.untag(name)?;
            let mut covered = self.registry.contents.below(&shelf.store, digest)?;
            covered.insert(digest.clone());
            shelf.drop_kept(local, &covered, true)?;
        }
        Ok((digest.clone(), self.subject.clone()))
    }

    /// The config by which the store may list this as an image, if it is one.
    fn image_config(&self) -> Result<Option<Digest>, Refusal> {
        let store = &self.registry.shelf.store;
        let manifest = match &self.document {
            Document::Manifest(manifest) => Some(manifest.clone()),
            Document::Index(_) => {
                transfer::choose(&transfer::StoreSource::new(store), &self.descriptor, 0)?.map(|(_, manifest)| manifest)
            }
        };
        let Some(manifest) = manifest.filter(is_image) else { return Ok(None) };
        let bytes = store.blobs().read(&manifest.config.digest, limits::CONFIG);
        let fits = bytes
            .ok()
            .and_then(|bytes| ImageConfig::parse(&bytes).ok())
            .is_some_and(|config| config.rootfs.diff_ids.len() == manifest.layers.len());
        Ok(fits.then_some(manifest.config.digest))
    }
}

/// Foreign layers are not here, so an image that has some can be passed on and not be run.
fn is_image(manifest: &Manifest) -> bool {
    let known = |layer: &Descriptor| layer.media_type.is_layer() && !layer.media_type.is_foreign_layer();
    manifest.config.media_type.is_config() && manifest.layers.iter().all(known)
}

pub(super) async fn delete(call: Call, repository: Repository, text: String) -> Answer {
    let which = Which::parse(&text, &repository)?;
    call.blocking(move |registry| {
        let gone = match which {
            Which::Tag(name) => registry.untag(&name)?,
            Which::Digest(digest) => registry.remove(&repository, &digest)?,
        };
        if !gone {
            return Err(Refusal::no_manifest(&text));
        }
        registry.shelf.store.collect(&CollectOptions { records: Records::None })?;
        Ok(StatusCode::ACCEPTED.into_response())
    })
    .await
}

impl Registry {
    /// Takes a tag away. The image stays, by its digest, as long as the repository has it by that.
    fn untag(&self, name: &Reference) -> Result<bool, Refusal> {
        if self.shelf.untag(name)? {
            return Ok(true);
        }
        let images = self.shelf.store.images();
        let Some(untagged) = images.untag(name)? else { return Ok(false) };
        if untagged.left == 0 {
            // An image that was built here has no name by digest; the tag is all it had in the repository.
            images.tag(&untagged.target, &name.without_tag().with_digest(untagged.target.clone()))?;
        }
        Ok(true)
    }

    /// Takes a manifest out of a repository, with all names it has there.
    fn remove(&self, repository: &Repository, digest: &Digest) -> Result<bool, Refusal> {
        let images = self.shelf.store.images();
        let mut gone = self.shelf.drop_kept(&repository.local, [digest], false)? > 0;
        if let Some(image) = images.get(&repository.local.with_digest(digest.clone()))? {
            for name in image.names.iter().filter(|name| name.without_tag() == repository.local) {
                gone |= images.untag(name)?.is_some();
            }
            let left = images.by_target(digest)?;
            if left.is_some_and(|image| image.names.is_empty()) {
                match images.remove(digest, false) {
                    Err(StoreError::ImageInUse { .. }) => {}
                    removed => drop(removed?),
                }
            }
        }
        if !gone {
            let roots = self.shelf.roots(&repository.local)?;
            if let Some(Found::Document(_)) = self.contents.find(&self.shelf.store, roots, digest)? {
                return Err(Refusal::unsupported("an index of the repository has this manifest; delete that"));
            }
        }
        Ok(gone)
    }
}
