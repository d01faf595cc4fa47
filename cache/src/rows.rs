//! Records as the exchange with other machines sees them.

use std::time::SystemTime;

use rbuild_oci::Reference;
use rbuild_solver::{CacheKey, KeyPart, RunRecord};
use rbuild_store::db::nanos;
use rbuild_store::rusqlite::{OptionalExtension, params};
use rbuild_store::{Db, Durability, Result, Store, StoreError, Target};

use crate::trace;

/// Bytes of an execution's description that travels.
const LONGEST: usize = 4 << 20;

/// A record as it is kept here.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredRecord {
    /// One for each output, as the codec wrote them.
    pub outputs: Vec<serde_json::Value>,
    pub run: RunRecord,
    /// Sorted.
    pub aliases: Vec<CacheKey>,
}

/// As [`stored_record`], with what its inputs were made of: what a record says to other machines.
///
/// # Errors
/// The database cannot be read.
pub(crate) fn described_record(store: &Store, key: CacheKey) -> Result<Option<StoredRecord>> {
    let Some(mut stored) = stored_record(store, key)? else { return Ok(None) };
    let known = trace::find(store.db(), key)?;
    let known = known.map_or_else(|| trace::find_imported(store.db(), key), |known| Ok(Some(known)))?;
    if let Some(known) = known {
        for (input, traced) in stored.run.inputs.iter_mut().zip(known.record.inputs) {
            input.parts = traced.parts;
        }
    }
    for input in stored.run.inputs.iter_mut().filter(|input| input.content.is_none() && input.parts.is_empty()) {
        input.parts.extend(stored_record(store, input.key)?.and_then(|base| base_image(&base.run)));
    }
    // One that is too long for any reader travels without.
    let json = |run: &RunRecord| serde_json::to_vec(run).map_or(usize::MAX, |text| text.len());
    if json(&stored.run) > LONGEST {
        stored.run = trace::without_parts(&stored.run);
    }
    Ok(Some(stored))
}

/// What a base image is called, and the digest that this stood for, as a part of what rests on it.
fn base_image(run: &RunRecord) -> Option<KeyPart> {
    if !run.parts.contains(&KeyPart::text("op", "image")) {
        return None;
    }
    let image = Reference::parse(trace::label(&run.name).strip_prefix("FROM ")?.split(' ').next()?).ok()?;
    let digest = image.digest()?.to_string();
    let name = image.familiar();
    let name = name.strip_suffix(&format!("@{digest}")).unwrap_or(&name);
    Some(KeyPart::digest(name, digest))
}

/// The record of a canonical key.
///
/// # Errors
/// The database cannot be read.
pub fn stored_record(store: &Store, key: CacheKey) -> Result<Option<StoredRecord>> {
    let name = key.to_string();
    let row: Option<(String, String, Vec<String>)> = store.db().read(|tx| {
        let mut query = tx.prepare_cached("SELECT result, record FROM records WHERE key = ?")?;
        let row: Option<(String, String)> =
            query.query_row([&name], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let Some((result, record)) = row else { return Ok(None) };
        let mut query = tx.prepare_cached("SELECT from_key FROM aliases WHERE to_key = ?")?;
        let aliases = query.query_map([&name], |row| row.get(0))?;
        Ok(Some((result, record, aliases.collect::<rbuild_store::rusqlite::Result<_>>()?)))
    })?;
    let Some((result, record, aliases)) = row else { return Ok(None) };
    let (Ok(outputs), Ok(run)) = (serde_json::from_str(&result), serde_json::from_str(&record)) else {
        return Ok(None);
    };
    let mut aliases: Vec<CacheKey> = aliases.iter().filter_map(|alias| alias.parse().ok()).collect();
    aliases.sort_unstable();
    Ok(Some(StoredRecord { outputs, run, aliases }))
}

/// Makes a record from elsewhere known here, unless there is one of that key: what was made here is never replaced, nor
/// do its names come to mean anything else.
///
/// # Errors
/// The database cannot be written.
pub(crate) fn adopt(store: &Store, key: CacheKey, record: &StoredRecord, origin: &str) -> Result<()> {
    let invalid = |error: serde_json::Error| StoreError::invalid("record", error.to_string());
    let result = serde_json::to_string(&record.outputs).map_err(invalid)?;
    let run = serde_json::to_string(&trace::without_parts(&record.run)).map_err(invalid)?;
    let cost = i64::try_from(record.run.took.as_nanos()).unwrap_or(i64::MAX);
    store.db().write(Durability::Cache, |tx| {
        let now = nanos(SystemTime::now());
        let new = tx
            .prepare_cached(
                "INSERT OR IGNORE INTO records (key, result, record, cost, created, used, volatile, origin) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![key.to_string(), result, run, cost, now, now, Db::mark(tx)?, origin])?;
        trace::keep_imported(tx, key, &record.run)?;
        if new == 0 {
            return Ok(());
        }
        for alias in &record.aliases {
            tx.prepare_cached("INSERT OR IGNORE INTO aliases (from_key, to_key) VALUES (?, ?)")?
                .execute(params![alias.to_string(), key.to_string()])?;
        }
        Ok(())
    })
}

/// Writes down what a record from elsewhere says, without its result.
///
/// # Errors
/// The database cannot be written.
pub(crate) fn keep_evidence(store: &Store, key: CacheKey, run: &RunRecord) -> Result<()> {
    store.db().write(Durability::Cache, |tx| trace::keep_imported(tx, key, run))
}

/// Replaces an output of a record, which now needs `target` to be of use. Nothing happens when somebody was faster.
///
/// # Errors
/// The database cannot be written.
pub fn replace_output(
    store: &Store,
    key: CacheKey,
    old: &serde_json::Value,
    new: &serde_json::Value,
    target: &Target,
) -> Result<()> {
    store.db().write(Durability::Cache, |tx| {
        let name = key.to_string();
        let mut query = tx.prepare_cached("SELECT result FROM records WHERE key = ?")?;
        let result: Option<String> = query.query_row([&name], |row| row.get(0)).optional()?;
        let Some(mut outputs) = result.and_then(|text| serde_json::from_str::<Vec<serde_json::Value>>(&text).ok())
        else {
            return Ok(());
        };
        if !outputs.contains(old) {
            return Ok(());
        }
        outputs.iter_mut().filter(|output| *output == old).for_each(|output| *output = new.clone());
        let result = serde_json::Value::Array(outputs).to_string();
        tx.prepare_cached("UPDATE records SET result = ?, volatile = ? WHERE key = ?")?.execute(params![
            result,
            Db::mark(tx)?,
            name
        ])?;
        tx.prepare_cached("INSERT OR IGNORE INTO refs (owner, target) VALUES (?, ?)")?
            .execute(params![crate::local::owner(key), target.to_string()])?;
        Ok(())
    })
}
