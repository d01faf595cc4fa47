//! Results in the store's database.
//!
//! A result is a row in `records`, the names it is found by are rows in `aliases`, and what it needs to be of use (a
//! snapshot, a blob) are rows in `refs`, written in the same transaction, so that collection keeps it. The row carries the
//! mark of the current flush generation: after a death it is trusted, after a power cut before the flush it is gone.
//!
//! All calls ask the database where they are, on the thread that polls them: each is one short statement or transaction
//! of some ten to a hundred microseconds, less than it costs to hand it to another thread and back.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures::future::{self, BoxFuture, FutureExt};
use rbuild_solver::{Cache, CacheError, CacheKey, Claim, Entry, Keep, RunRecord};
use rbuild_store::db::nanos;
use rbuild_store::rusqlite::{OptionalExtension, Transaction, params};
use rbuild_store::{Db, Durability, Lease, Result, Store, Target};

use crate::claim::Claims;
use crate::trace;

/// How many names a result has at most. Each edit of a step whose content comes out the same leaves one; a name that is
/// forgotten costs hashing that content again.
const NAMES: usize = 64;
/// How old the time of last use may be before it is written again: a build that finds everything writes nothing.
const USED: Duration = Duration::from_secs(3600);

/// How results of type `R` are written down.
pub trait Stored<R>: Send + Sync {
    /// The result as data, and what must stay in the store for that to be of use. `None` for a result that cannot
    /// outlive its process; it is not saved.
    fn encode(&self, value: &R) -> Option<Encoded>;

    /// The result again, with everything it names in hand and kept from collection. `None` when something it names is no
    /// longer there.
    fn decode(&self, data: &serde_json::Value) -> Option<R>;
}

/// A result as data.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    pub data: serde_json::Value,
    pub targets: Vec<Target>,
}

/// The results kept in one store.
pub struct LocalCache<C> {
    store: Store,
    codec: C,
    claims: Arc<Claims>,
    /// Keys that were used and whose row says that this was long ago.
    used: Mutex<HashSet<CacheKey>>,
}

impl<C> LocalCache<C> {
    /// The results in `store`. `lease` stands for this process where others ask who is at work.
    pub fn new(store: Store, lease: Lease, codec: C) -> LocalCache<C> {
        let claims = Arc::new(Claims::new(store.clone(), lease));
        LocalCache { store, codec, claims, used: Mutex::default() }
    }

    /// What is written down about the execution that gave the result of `canonical`, and where that comes from: `None` when
    /// it ran here, else the cache it was imported from, such as `registry:host/name:tag`. What its inputs are made of
    /// comes from its trace: hashes of single paths are cut short there.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn record(&self, canonical: CacheKey) -> Result<Option<(RunRecord, Option<String>)>> {
        let row: Option<(String, Option<String>)> = self.store.db().read(|tx| {
            let mut query = tx.prepare_cached("SELECT record, origin FROM records WHERE key = ?")?;
            Ok(query.query_row([canonical.to_string()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
        })?;
        let Some((text, origin)) = row else { return Ok(None) };
        let Ok(mut record) = serde_json::from_str::<RunRecord>(&text) else { return Ok(None) };
        if let Some(made_of) = trace::find(self.store.db(), canonical)? {
            for (input, traced) in record.inputs.iter_mut().zip(made_of.record.inputs) {
                input.parts = traced.parts;
            }
        }
        Ok(Some((record, origin)))
    }

    fn find(&self, key: CacheKey) -> Result<Option<CacheKey>> {
        let found: Option<String> = self.store.db().read(|tx| {
            let mut query = tx.prepare_cached(
                "SELECT key FROM records WHERE key = ?1 UNION ALL SELECT to_key FROM aliases JOIN records ON key = to_key WHERE from_key = ?1 LIMIT 1",
            )?;
            Ok(query.query_row([key.to_string()], |row| row.get(0)).optional()?)
        })?;
        Ok(found.and_then(|found| found.parse().ok()))
    }

    fn read<R>(&self, key: CacheKey) -> Result<Option<Vec<R>>>
    where
        C: Stored<R>,
    {
        let row: Option<(String, i64)> = self.store.db().read(|tx| {
            let mut query = tx.prepare_cached("SELECT result, used FROM records WHERE key = ?")?;
            Ok(query.query_row([key.to_string()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
        })?;
        let Some((text, used)) = row else { return Ok(None) };
        // Not within the question: decoding takes what the result names, and that writes.
        let data: Option<Vec<serde_json::Value>> = serde_json::from_str(&text).ok();
        let outputs = data.and_then(|data| data.iter().map(|value| self.codec.decode(value)).collect::<Option<_>>());
        if outputs.is_none() {
            tracing::debug!("the result of {key} is lost");
            self.forget(key, &text)?;
        } else if used.saturating_add(nanos_of(USED)) < nanos(SystemTime::now()) {
            self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        }
        Ok(outputs)
    }

    /// Removes a row that is of no use, unless somebody has replaced it meanwhile.
    fn forget(&self, key: CacheKey, result: &str) -> Result<()> {
        self.store.db().write(Durability::Cache, |tx| {
            let gone = tx
                .prepare_cached("DELETE FROM records WHERE key = ? AND result = ?")?
                .execute(params![key.to_string(), result])?;
            if gone > 0 {
                tx.prepare_cached("DELETE FROM refs WHERE owner = ?")?.execute([owner(key)])?;
            }
            Ok(())
        })
    }

    fn write<R>(&self, entry: Entry<R>) -> Result<()>
    where
        C: Stored<R>,
    {
        let Some(outputs) = entry.outputs.iter().map(|value| self.codec.encode(value)).collect::<Option<Vec<_>>>()
        else {
            return Ok(());
        };
        let targets: Vec<String> =
            outputs.iter().flat_map(|output| &output.targets).map(|target| target.to_string()).collect();
        let result = serde_json::Value::Array(outputs.into_iter().map(|output| output.data).collect()).to_string();
        let made_of = RunRecord { results: targets.clone(), ..entry.record };
        let cost = nanos_of(made_of.took);
        let record = serde_json::to_string(&trace::without_parts(&made_of))
            .map_err(|error| rbuild_store::StoreError::invalid("record", error.to_string()))?;
        self.store.db().write(Durability::Cache, |tx| {
            let key = entry.key.to_string();
            if entry.keep == Keep::Newest {
                tx.prepare_cached("DELETE FROM records WHERE key = ?")?.execute([&key])?;
                tx.prepare_cached("DELETE FROM refs WHERE owner = ?")?.execute([owner(entry.key)])?;
            }
            let now = nanos(SystemTime::now());
            let new = tx
                .prepare_cached(
                    "INSERT OR IGNORE INTO records (key, result, record, cost, created, used, volatile) VALUES (?, ?, ?, ?, ?, ?, ?)",
                )?
                .execute(params![key, result, record, cost, now, now, Db::mark(tx)?])?;
            if new > 0 {
                for target in &targets {
                    tx.prepare_cached("INSERT OR IGNORE INTO refs (owner, target) VALUES (?, ?)")?
                        .execute(params![owner(entry.key), target])?;
                }
            }
            trace::keep(tx, entry.key, &made_of)?;
            name(tx, &entry.aliases, entry.key)?;
            // With the row there, the claim has served: one transaction for both.
            self.claims.release_in(tx, entry.key)?;
            self.write_used(tx)
        })?;
        self.claims.released(entry.key);
        Ok(())
    }

    fn write_used(&self, tx: &Transaction<'_>) -> Result<()> {
        let used = std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner));
        for key in used {
            // Never backwards: a clock that was wrong must not make a result look unused.
            tx.prepare_cached("UPDATE records SET used = max(used, ?) WHERE key = ?")?
                .execute(params![nanos(SystemTime::now()), key.to_string()])?;
        }
        Ok(())
    }
}

impl<C> Drop for LocalCache<C> {
    fn drop(&mut self) {
        if self.used.get_mut().unwrap_or_else(PoisonError::into_inner).is_empty() {
            return;
        }
        if let Err(error) = self.store.db().write(Durability::Cache, |tx| self.write_used(tx)) {
            tracing::debug!("writing when results were last used: {error}");
        }
    }
}

/// Makes names for a result, and forgets some where there are too many. Which ones is chance: names are hashes.
fn name(tx: &Transaction<'_>, names: &[CacheKey], canonical: CacheKey) -> Result<()> {
    let names = &names[..names.len().min(NAMES)];
    if names.is_empty() {
        return Ok(());
    }
    let to = canonical.to_string();
    let there: usize = tx
        .prepare_cached("SELECT count(*) FROM aliases WHERE to_key = ?")?
        .query_row([&to], |row| row.get::<_, i64>(0))?
        .try_into()
        .unwrap_or(0);
    let excess = (there + names.len()).saturating_sub(NAMES);
    if excess > 0 {
        tx.prepare_cached(
            "DELETE FROM aliases WHERE from_key IN (SELECT from_key FROM aliases WHERE to_key = ? LIMIT ?)",
        )?
        .execute(params![to, i64::try_from(excess).unwrap_or(i64::MAX)])?;
    }
    for from in names.iter().filter(|from| **from != canonical) {
        tx.prepare_cached("INSERT OR REPLACE INTO aliases (from_key, to_key) VALUES (?, ?)")?
            .execute(params![from.to_string(), to])?;
    }
    Ok(())
}

fn owner(key: CacheKey) -> String {
    format!("record:{key}")
}

fn nanos_of(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// An answer that is there already.
fn ready<'a, T: Send + 'a>(answer: Result<T>) -> BoxFuture<'a, std::result::Result<T, CacheError>> {
    future::ready(answer.map_err(|error| Arc::new(error) as CacheError)).boxed()
}

impl<R: Send + Sync + 'static, C: Stored<R>> Cache<R> for LocalCache<C> {
    fn resolve(&self, key: CacheKey) -> BoxFuture<'_, std::result::Result<Option<CacheKey>, CacheError>> {
        ready(self.find(key))
    }

    fn load(&self, canonical: CacheKey) -> BoxFuture<'_, std::result::Result<Option<Vec<R>>, CacheError>> {
        ready(self.read(canonical))
    }

    fn save(&self, entry: Entry<R>) -> BoxFuture<'_, std::result::Result<(), CacheError>> {
        ready(self.write(entry))
    }

    fn alias(&self, from: Vec<CacheKey>, canonical: CacheKey) -> BoxFuture<'_, std::result::Result<(), CacheError>> {
        ready(self.store.db().write(Durability::Cache, |tx| name(tx, &from, canonical)))
    }

    fn claim(&self, key: CacheKey) -> BoxFuture<'_, std::result::Result<Claim, CacheError>> {
        ready(self.claims.claim(key))
    }
}
