//! What documents consist of, remembered by digest: a document never changes, so neither does this.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use rbuild_oci::{Descriptor, Digest, Document, MediaType, limits};
use rbuild_store::{Store, StoreError};

/// One document's own words.
#[derive(Debug)]
pub(super) struct Content {
    pub media_type: MediaType,
    pub size: u64,
    /// Manifests and indexes.
    pub children: Vec<Descriptor>,
    /// Config and layers.
    pub blobs: Vec<Descriptor>,
}

impl Content {
    pub(super) fn of(document: &Document, size: u64) -> Content {
        let (children, blobs) = match document {
            Document::Index(index) => (index.manifests.clone(), Vec::new()),
            Document::Manifest(m) => (Vec::new(), std::iter::once(&m.config).chain(&m.layers).cloned().collect()),
        };
        Content { media_type: document.media_type(), size, children, blobs }
    }
}

/// So many documents are remembered.
const REMEMBERED: usize = 16 << 10;

#[derive(Default)]
pub(super) struct Contents {
    known: Mutex<HashMap<Digest, Arc<Content>>>,
}

/// Something that is below a root.
#[derive(Debug)]
pub(super) enum Found {
    Document(Arc<Content>),
    /// Bytes it has.
    Blob(u64),
}

impl Contents {
    /// What the document of this digest consists of; `None` when it is not in the store.
    pub(super) fn of(&self, store: &Store, digest: &Digest) -> Result<Option<Arc<Content>>, StoreError> {
        if let Some(known) = self.known.lock().unwrap_or_else(|e| e.into_inner()).get(digest) {
            return Ok(Some(known.clone()));
        }
        let bytes = match store.blobs().read(digest, limits::MANIFEST.max(limits::INDEX)) {
            Err(StoreError::NoBlob(_)) => return Ok(None),
            read => read?,
        };
        let content = Arc::new(Content::of(&Document::parse(&bytes, None)?, bytes.len() as u64));
        let mut known = self.known.lock().unwrap_or_else(|e| e.into_inner());
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(digest.clone(), content.clone());
        Ok(Some(content))
    }

    /// Looks for a blob or document at and below `roots`.
    pub(super) fn find(&self, store: &Store, roots: Vec<Digest>, wanted: &Digest) -> Result<Option<Found>, StoreError> {
        let mut seen = HashSet::new();
        let mut queue = roots;
        while let Some(digest) = queue.pop() {
            if !seen.insert(digest.clone()) {
                continue;
            }
            let Some(content) = self.of(store, &digest)? else { continue };
            if digest == *wanted {
                return Ok(Some(Found::Document(content)));
            }
            if let Some(blob) = content.blobs.iter().find(|blob| blob.digest == *wanted) {
                return Ok(Some(Found::Blob(blob.size)));
            }
            queue.extend(content.children.iter().map(|child| child.digest.clone()));
        }
        Ok(None)
    }

    /// All documents below `root`, itself left out.
    pub(super) fn below(&self, store: &Store, root: &Digest) -> Result<HashSet<Digest>, StoreError> {
        let mut seen = HashSet::new();
        let mut queue = vec![root.clone()];
        while let Some(digest) = queue.pop() {
            let Some(content) = self.of(store, &digest)? else { continue };
            for child in &content.children {
                if seen.insert(child.digest.clone()) {
                    queue.push(child.digest.clone());
                }
            }
        }
        Ok(seen)
    }
}
