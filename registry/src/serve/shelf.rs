//! What a registry keeps besides the images of its store.
//!
//! The store knows images by name. A registry also gets manifests without a tag (parts of an index that is still to come,
//! images pushed by digest), manifests that are no images (signatures, charts), and blobs whose manifest is on its way.
//! The first two are rows of their own, with references that keep what they consist of; the last are held by a lease
//! that changes hands every hour, so that a push that was given up costs no disk for long.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rbuild_oci::{Descriptor, Digest, Reference};
use rbuild_store::rusqlite::{Transaction, params};
use rbuild_store::{Durability, Lease, Store, StoreError};

/// How long a blob waits at least for the manifest that names it.
const WAIT: Duration = Duration::from_secs(3600);

pub(super) struct Shelf {
    pub store: Store,
    recent: Mutex<Recent>,
}

/// Blobs that came, by repository, with their sizes.
type Blobs = HashMap<String, HashMap<Digest, u64>>;

struct Recent {
    lease: Lease,
    blobs: Blobs,
    /// Those of the hour before.
    older: Option<(Lease, Blobs)>,
    since: Instant,
}

/// A manifest that is kept for the registry's sake.
pub(super) struct Kept<'a> {
    pub descriptor: &'a Descriptor,
    pub subject: Option<&'a Digest>,
    /// What it consists of, itself included.
    pub blobs: &'a [Digest],
    pub tag: Option<&'a str>,
}

impl Shelf {
    pub(super) fn new(store: Store) -> Result<Shelf, StoreError> {
        let lease = store.lease("registry serve")?;
        let recent = Recent { lease, blobs: Blobs::new(), older: None, since: Instant::now() };
        Ok(Shelf { store, recent: Mutex::new(recent) })
    }

    /// The lease for what comes now.
    pub(super) fn lease(&self) -> Result<Lease, StoreError> {
        let mut recent = self.recent();
        if recent.since.elapsed() > WAIT {
            let fresh = self.store.lease("registry serve")?;
            let lease = mem::replace(&mut recent.lease, fresh);
            let blobs = mem::take(&mut recent.blobs);
            recent.older = Some((lease, blobs));
            recent.since = Instant::now();
        }
        Ok(recent.lease.clone())
    }

    /// A blob was pushed to, or mounted into, a repository.
    pub(super) fn came(&self, repository: &Reference, blob: &Digest, size: u64) {
        self.recent().blobs.entry(repository.canonical()).or_default().insert(blob.clone(), size);
    }

    /// The size of a blob that came lately.
    pub(super) fn recently(&self, repository: &Reference, blob: &Digest) -> Option<u64> {
        let (recent, name) = (self.recent(), repository.canonical());
        let older = recent.older.as_ref().map(|(_, blobs)| blobs);
        [Some(&recent.blobs), older].into_iter().flatten().find_map(|blobs| blobs.get(&name)?.get(blob).copied())
    }

    /// The repository is to forget a blob that came lately; false when none did.
    pub(super) fn forget_recent(&self, repository: &Reference, blob: &Digest) -> bool {
        let (mut recent, name) = (self.recent(), repository.canonical());
        let mut gone = recent.blobs.get_mut(&name).and_then(|blobs| blobs.remove(blob)).is_some();
        if let Some((_, blobs)) = &mut recent.older {
            gone |= blobs.get_mut(&name).and_then(|blobs| blobs.remove(blob)).is_some();
        }
        gone
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The tags of a repository and the digests they name.
    pub(super) fn tags(&self, repository: &Reference) -> Result<BTreeMap<String, Digest>, StoreError> {
        let name = repository.canonical();
        let rows = self.store.db().read(|tx| {
            let mut rows = pairs(tx, "SELECT tag, digest FROM served_tags WHERE repository = ?", params![name])?;
            // Canonical names of a repository with a tag begin so, and no others do.
            rows.extend(pairs(
                tx,
                "SELECT substr(name, length(?1) + 2), target FROM names WHERE name >= ?1 || ':' AND name < ?1 || ';'",
                params![name],
            )?);
            Ok(rows)
        })?;
        rows.into_iter().map(|(tag, digest)| Ok((tag, digest.parse()?))).collect()
    }

    /// What one tag names.
    pub(super) fn tagged(&self, name: &Reference) -> Result<Option<Digest>, StoreError> {
        let (repository, tag) = (name.without_tag().canonical(), name.tag().unwrap_or_default());
        let rows = self.store.db().read(|tx| {
            let mut rows = pairs(tx, "SELECT name, target FROM names WHERE name = ?", params![name.canonical()])?;
            rows.extend(pairs(
                tx,
                "SELECT tag, digest FROM served_tags WHERE repository = ? AND tag = ?",
                params![repository, tag],
            )?);
            Ok(rows)
        })?;
        rows.into_iter().next().map(|(_, digest)| Ok(digest.parse()?)).transpose()
    }

    /// Every document that a repository has by itself: what its tags and digests name, and what is kept for it.
    pub(super) fn roots(&self, repository: &Reference) -> Result<Vec<Digest>, StoreError> {
        let name = repository.canonical();
        let found = self.store.db().read(|tx| {
            let sql = "SELECT DISTINCT target FROM names
                       WHERE name >= ?1 || ':' AND name < ?1 || ';' OR name >= ?1 || '@' AND name < ?1 || 'A'
                       UNION SELECT digest FROM served_manifests WHERE repository = ?1";
            let mut query = tx.prepare_cached(sql)?;
            let rows = query.query_map([&name], |row| row.get::<_, String>(0))?;
            Ok(rows.collect::<Result<Vec<_>, _>>()?)
        })?;
        found.iter().map(|digest| Ok(digest.parse()?)).collect()
    }

    /// The names, without tags, of all repositories.
    pub(super) fn repositories(&self) -> Result<BTreeSet<Reference>, StoreError> {
        let names = self.store.db().read(|tx| {
            let sql = "SELECT name FROM names UNION SELECT repository FROM served_manifests";
            let mut query = tx.prepare_cached(sql)?;
            let rows = query.query_map([], |row| row.get::<_, String>(0))?;
            Ok(rows.collect::<Result<Vec<_>, _>>()?)
        })?;
        names.iter().map(|name| Ok(Reference::parse_untagged(name)?.without_tag())).collect()
    }

    /// Keeps a manifest for a repository, under a tag if it has one.
    pub(super) fn keep(&self, repository: &Reference, kept: &Kept<'_>) -> Result<(), StoreError> {
        let (name, digest) = (repository.canonical(), kept.descriptor.digest.to_string());
        let descriptor = serde_json::to_string(kept.descriptor).map_err(std::io::Error::from);
        let descriptor = descriptor.map_err(|e| StoreError::io("writing a descriptor", e))?;
        self.store.db().write(Durability::Named, |tx| {
            tx.prepare_cached(
                "INSERT INTO served_manifests (repository, digest, descriptor, subject) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (repository, digest) DO UPDATE SET descriptor = ?3, subject = ?4",
            )?
            .execute(params![name, digest, descriptor, kept.subject.map(ToString::to_string)])?;
            for blob in kept.blobs {
                tx.prepare_cached(
                    "INSERT OR IGNORE INTO refs (owner, target) SELECT ?1, 'blob:' || digest FROM blobs WHERE digest = ?2",
                )?
                .execute(params![owner(&name, &digest), blob.to_string()])?;
            }
            if let Some(tag) = kept.tag {
                tx.prepare_cached("INSERT OR REPLACE INTO served_tags (repository, tag, digest) VALUES (?, ?, ?)")?
                    .execute(params![name, tag, digest])?;
            }
            Ok(())
        })
    }

    /// No longer keeps these manifests for a repository; with `unless_referring` those with a subject stay. Says how
    /// many went.
    pub(super) fn drop_kept<'a>(
        &self,
        repository: &Reference,
        digests: impl IntoIterator<Item = &'a Digest>,
        unless_referring: bool,
    ) -> Result<usize, StoreError> {
        let name = repository.canonical();
        let digests: Vec<String> = digests.into_iter().map(ToString::to_string).collect();
        self.store.db().write(Durability::Named, |tx| {
            let mut gone = 0;
            for digest in &digests {
                let rows = tx
                    .prepare_cached(
                        "DELETE FROM served_manifests
                         WHERE repository = ?1 AND digest = ?2 AND NOT (?3 AND subject IS NOT NULL)",
                    )?
                    .execute(params![name, digest, unless_referring])?;
                if rows > 0 {
                    tx.prepare_cached("DELETE FROM refs WHERE owner = ?")?.execute([owner(&name, digest)])?;
                    tx.prepare_cached("DELETE FROM served_tags WHERE repository = ? AND digest = ?")?
                        .execute([&name, digest])?;
                }
                gone += rows;
            }
            Ok(gone)
        })
    }

    /// Takes away a tag that names no image; false when there is none.
    pub(super) fn untag(&self, name: &Reference) -> Result<bool, StoreError> {
        let (repository, tag) = (name.without_tag().canonical(), name.tag().unwrap_or_default());
        self.store.db().write(Durability::Named, |tx| {
            let sql = "DELETE FROM served_tags WHERE repository = ? AND tag = ?";
            Ok(tx.prepare_cached(sql)?.execute(params![repository, tag])? > 0)
        })
    }

    /// The manifests of a repository that refer to `subject`.
    pub(super) fn referrers(&self, repository: &Reference, subject: &Digest) -> Result<Vec<Descriptor>, StoreError> {
        let rows = self.store.db().read(|tx| {
            let sql = "SELECT digest, descriptor FROM served_manifests WHERE repository = ? AND subject = ? ORDER BY 1";
            pairs(tx, sql, params![repository.canonical(), subject.to_string()])
        })?;
        let read =
            |text: &str| serde_json::from_str(text).map_err(|e| StoreError::invalid("descriptor", e.to_string()));
        rows.iter().map(|(_, text)| read(text)).collect()
    }
}

/// Who keeps what a kept manifest consists of, in the store's table of references.
fn owner(repository: &str, digest: &str) -> String {
    format!("served:{repository}@{digest}")
}

fn pairs(
    tx: &Transaction<'_>,
    sql: &str,
    parameters: impl rbuild_store::rusqlite::Params,
) -> Result<Vec<(String, String)>, StoreError> {
    let mut query = tx.prepare_cached(sql)?;
    let rows = query.query_map(parameters, |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
