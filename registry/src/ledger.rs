//! What the store remembers for us: which blobs a layer is known as, and where blobs have been seen.

use rbuild_oci::{Compression, Descriptor, DiffId, Digest};
use rbuild_store::{Durability, Store, StoreError, rusqlite};

/// A blob that holds a layer.
#[derive(Debug, Clone)]
pub(crate) struct LayerBlob {
    pub descriptor: Descriptor,
    /// How it was made here, so that no bytes need to be kept; empty for one that came from elsewhere.
    pub options: String,
}

/// The compressed blobs that are known to hold `layer`.
pub(crate) fn compressed_blobs(store: &Store, layer: &DiffId) -> Result<Vec<LayerBlob>, StoreError> {
    let compressed = |blob: &Descriptor| !matches!(blob.media_type.layer_compression(), None | Some(Compression::None));
    let known = store.layers().blobs_of(layer)?.into_iter().filter(|(blob, _)| compressed(blob));
    Ok(known.map(|(descriptor, options)| LayerBlob { descriptor, options }).collect())
}

/// Repositories of `registry`, other than `repository`, where the blob was seen, so that it can be mounted from there.
pub(crate) fn origins(
    store: &Store,
    blob: &Digest,
    registry: &str,
    repository: &str,
) -> Result<Vec<String>, StoreError> {
    store.db().read(|tx| {
        let sql =
            "SELECT repository FROM blob_origins WHERE digest = ?1 AND registry = ?2 AND repository <> ?3 ORDER BY 1";
        let mut query = tx.prepare_cached(sql)?;
        let rows = query.query_map((blob.to_string(), registry, repository), |r| r.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    })
}

/// Whether any repository of `registry` is known to have had the blob.
pub(crate) fn is_seen(store: &Store, blob: &Digest, registry: &str) -> Result<bool, StoreError> {
    store.db().read(|tx| {
        let sql = "SELECT 1 FROM blob_origins WHERE digest = ? AND registry = ?";
        Ok(tx.prepare_cached(sql)?.exists((blob.to_string(), registry))?)
    })
}

/// Writes down that `repository` of `registry` has these blobs.
pub(crate) fn remember_origins(
    store: &Store,
    blobs: &[Digest],
    registry: &str,
    repository: &str,
) -> Result<(), StoreError> {
    store.db().write(Durability::Cache, |tx| {
        let sql = "INSERT OR IGNORE INTO blob_origins (digest, registry, repository) VALUES (?, ?, ?)";
        let mut insert = tx.prepare_cached(sql)?;
        for blob in blobs {
            insert.execute((blob.to_string(), registry, repository))?;
        }
        Ok(())
    })
}

/// Where the upload of a blob into a repository was left, as [`remember_upload`] noted it.
pub(crate) fn upload(
    store: &Store,
    registry: &str,
    repository: &str,
    blob: &Digest,
) -> Result<Option<String>, StoreError> {
    store.db().read(|tx| {
        let sql = "SELECT place FROM blob_uploads WHERE registry = ? AND repository = ? AND digest = ?";
        let mut query = tx.prepare_cached(sql)?;
        let mut rows = query.query_map((registry, repository, blob.to_string()), |row| row.get(0))?;
        Ok(rows.next().transpose()?)
    })
}

/// Notes where the upload of a blob is, or with `None` that there is none.
pub(crate) fn remember_upload(
    store: &Store,
    registry: &str,
    repository: &str,
    blob: &Digest,
    place: Option<&str>,
) -> Result<(), StoreError> {
    store.db().write(Durability::Cache, |tx| {
        match place {
            Some(place) => tx
                .prepare_cached(
                    "INSERT OR REPLACE INTO blob_uploads (registry, repository, digest, place) VALUES (?, ?, ?, ?)",
                )?
                .execute((registry, repository, blob.to_string(), place))?,
            None => tx
                .prepare_cached("DELETE FROM blob_uploads WHERE registry = ? AND repository = ? AND digest = ?")?
                .execute((registry, repository, blob.to_string()))?,
        };
        Ok(())
    })
}
