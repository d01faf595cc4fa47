//! Reading a cache elsewhere.
//!
//! The image under the cache's own name holds most records, and says which; each record is besides an image under a name
//! of its own. So a reader asks for the one and for the list of names, and then only for records that are not in
//! it yet. A record that cannot be read or breaks a rule is left out and said so; it takes nothing else with it.

use std::collections::HashSet;

use futures::{FutureExt, StreamExt};
use rbuild_registry::PackedLayer;
use rbuild_store::{Snapshot, Store};

use crate::backend::{Backend, Stored};
use crate::error::Error;
use crate::portable::{self, PortableRecord, record_name, record_prefix};

/// Records read at the same time.
const AT_ONCE: usize = 8;
/// Records beside the cache's own image. Each costs two requests.
const LOOSE: usize = 20_000;

/// What a cache elsewhere holds.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// One for each key.
    pub records: Vec<PortableRecord>,
    /// Identities of the records that the cache's own image holds already.
    pub covered: HashSet<String>,
    /// Identities that have a name of their own.
    pub listed: HashSet<String>,
    /// Those of them that are not to be read any more.
    pub gone: HashSet<String>,
    /// What was left out, and why.
    pub complaints: Vec<String>,
    /// Whether there was anything.
    pub exists: bool,
}

/// Reads all records of a cache.
///
/// # Errors
/// The place cannot be reached. What cannot be used of it is a complaint.
pub async fn contents(backend: &dyn Backend) -> Result<Contents, Error> {
    let mut found = Contents::default();
    let mut all: Vec<PortableRecord> = Vec::new();
    match backend.read(None).await {
        Ok(None) => {}
        Ok(Some(stored)) => {
            found.exists = true;
            found.gone = portable::gone(&stored.config).into_iter().collect();
            match portable::read(backend.place(), &stored.manifest, &stored.config) {
                Ok(Some(records)) => {
                    found.covered = records.iter().flat_map(|record| record.covers.clone()).collect();
                    all = records;
                }
                Ok(None) => found.complaints.push(Error::NoCache(backend.place().to_owned()).to_string()),
                Err(error) => found.complaints.push(error.to_string()),
            }
        }
        // Not a cache of ours, or a broken one: what lies beside it may still be good.
        Err(error @ (Error::BuildKit(_) | Error::Refused { .. } | Error::Oci(_))) => {
            found.exists = true;
            found.complaints.push(error.to_string());
        }
        Err(error) => return Err(error),
    }
    let Some(base) = backend.base() else {
        found.records = portable::union(all);
        return Ok(found);
    };
    let names = match backend.names().await {
        Ok(names) => names,
        Err(error) => {
            found.complaints.push(format!("the records beside {} cannot be listed: {error}", backend.place()));
            Vec::new()
        }
    };
    let prefix = record_prefix(base);
    found.listed = names.iter().filter_map(|name| name.strip_prefix(&prefix)).map(str::to_owned).collect();
    let is_read = |identity: &&String| !found.covered.contains(*identity) && !found.gone.contains(*identity);
    let loose = found.listed.iter().filter(is_read).take(LOOSE);
    let read: Vec<_> = loose.map(|identity| one(backend, base, identity).boxed()).collect();
    let mut read = futures::stream::iter(read).buffer_unordered(AT_ONCE);
    while let Some(outcome) = read.next().await {
        found.exists = true;
        match outcome {
            Ok(record) => all.push(record),
            // Removed since it was listed: nobody used it for long.
            Err(Error::NotFound(_)) => {}
            Err(error) => found.complaints.push(error.to_string()),
        }
    }
    drop(read);
    found.records = portable::union(all);
    Ok(found)
}

/// One record beside the cache's own image.
async fn one(backend: &dyn Backend, base: &str, identity: &str) -> Result<PortableRecord, Error> {
    let name = record_name(base, identity);
    let what = format!("the record {name} of {}", backend.place());
    let Some(Stored { manifest, config }) = backend.read(Some(&name)).await? else {
        return Err(Error::NotFound(what));
    };
    let read = portable::read(&what, &manifest, &config)?.ok_or_else(|| Error::NoCache(what.clone()))?;
    let [mut record] = <[PortableRecord; 1]>::try_from(read)
        .map_err(|records| Error::refused(&what, format!("it holds {} records", records.len())))?;
    // Whoever put another record under this name wants it taken for something it is not.
    if record.identity() != identity {
        return Err(Error::refused(&what, "it holds a record of another name"));
    }
    record.detail = Some(manifest.config);
    record.covers = vec![identity.to_owned()];
    Ok(record)
}

/// All that is known of the execution behind a record: what came with it, and if that leaves out of what its inputs were
/// made, what the record's own document says.
///
/// # Errors
/// That document cannot be had, or is another record's.
pub async fn execution(
    backend: &dyn Backend,
    record: &PortableRecord,
) -> Result<Option<rbuild_solver::RunRecord>, Error> {
    if !portable::lacks_parts(record.run.as_ref()) {
        return Ok(record.run.clone());
    }
    let Some(detail) = &record.detail else { return Ok(record.run.clone()) };
    let config = backend.config(detail).await?;
    #[derive(serde::Deserialize)]
    struct Only {
        records: Vec<Described>,
    }
    #[derive(serde::Deserialize)]
    struct Described {
        key: rbuild_solver::CacheKey,
        run: Option<rbuild_solver::RunRecord>,
    }
    let what = || format!("the description of the record {} of {}", record.key, backend.place());
    let member = config.cache.ok_or_else(|| Error::refused(what(), "it is none"))?;
    let only: Only = serde_json::from_value(member).map_err(|error| Error::refused(what(), error.to_string()))?;
    let own = only.records.into_iter().find(|described| described.key == record.key);
    own.map(|described| described.run).ok_or_else(|| Error::refused(what(), "it is of another record"))
}

/// Notes of brought layers how new they are: an image made of them dates itself as it does where they were made.
///
/// # Errors
/// The store cannot be read or written.
pub fn date(layers: &[PackedLayer], top: Option<&Snapshot>, store: &Store) -> rbuild_store::Result<()> {
    let Some(top) = top else { return Ok(()) };
    for (layer, id) in layers.iter().zip(store.snapshots().chain(top.id())?) {
        let row = store.snapshots().row(&id)?;
        if row.newest.is_none() && layer.newest.is_some() && row.diff_id.as_ref() == Some(&layer.diff_id) {
            let size = row.tar_size.unwrap_or(layer.size);
            store.snapshots().set_dated_layer(&id, &layer.diff_id, size, layer.newest)?;
        }
    }
    Ok(())
}
