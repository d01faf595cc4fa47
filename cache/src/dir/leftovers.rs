//! Blobs of a cache directory that nothing leads to any more.
//!
//! A reader may have read the index before a name was taken away, and come for the blobs later. So a blob is first noted, with
//! the time, and removed when it is found unused again after that long.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rbuild_oci::{Descriptor, Digest, Document, Index, limits};
use rbuild_store::{Root, Walk};

use super::{Inner, blob_path};
use crate::error::Error;

/// The file that notes since when blobs are unused, in `ingest`.
pub(super) const UNUSED: &str = "unused";
/// How long a blob stays that nothing leads to.
const GRACE: Duration = Duration::from_secs(3600);
const NOTES: u64 = 64 << 20;

impl Inner {
    /// Removes blobs that were unused for long. Nobody else writes here meanwhile.
    pub(super) fn sweep_blobs(&self, root: &Root, index: &Index) -> Result<(), Error> {
        let mut used = HashSet::new();
        for entry in &index.manifests {
            self.mark(root, entry, 0, &mut used)?;
        }
        let noted = self.bytes(root, &notes(), NOTES)?;
        let noted: BTreeMap<String, u64> =
            noted.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut unused: BTreeMap<String, u64> = BTreeMap::new();
        let what = || self.what("the directory blobs");
        for entry in root.read_dir(Path::new("blobs/sha256"), Walk::NoLinks).map_err(Error::io(what()))? {
            let Some(digest) = digest_of(&entry.name).filter(|digest| !used.contains(digest)) else { continue };
            let name = digest.hex().to_owned();
            let since = noted.get(&name).copied().unwrap_or(now);
            if now.saturating_sub(since) < GRACE.as_secs() {
                unused.insert(name, since);
                continue;
            }
            root.unlink(&blob_path(&digest), Walk::NoLinks).map_err(Error::io(what()))?;
        }
        if unused != noted {
            let bytes = serde_json::to_vec(&unused).map_err(|e| Error::refused(what(), e.to_string()))?;
            self.publish(root, &bytes, &notes())?;
        }
        Ok(())
    }

    /// Notes what a document leads to. What cannot be read keeps anything from being removed.
    fn mark(&self, root: &Root, entry: &Descriptor, depth: usize, used: &mut HashSet<Digest>) -> Result<(), Error> {
        if !used.insert(entry.digest.clone()) {
            return Ok(());
        }
        if depth > limits::INDEX_DEPTH {
            return Err(Error::refused(self.what(&entry.digest.to_string()), "indexes nest too deep"));
        }
        let bytes = self.document(root, entry, limits::MANIFEST.max(limits::INDEX))?;
        match Document::parse(&bytes, Some(&entry.media_type))? {
            Document::Manifest(manifest) => {
                used.extend(manifest.layers.into_iter().chain([manifest.config]).map(|blob| blob.digest));
            }
            Document::Index(index) => {
                for child in &index.manifests {
                    match child.media_type.is_manifest() || child.media_type.is_index() {
                        true => self.mark(root, child, depth + 1, used)?,
                        // BuildKit lists layers in an index.
                        false => drop(used.insert(child.digest.clone())),
                    }
                }
            }
        }
        Ok(())
    }
}

fn notes() -> std::path::PathBuf {
    Path::new("ingest").join(UNUSED)
}

fn digest_of(name: &OsStr) -> Option<Digest> {
    format!("sha256:{}", name.to_str()?).parse().ok()
}
