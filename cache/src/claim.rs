//! Who is at work on what, across processes.
//!
//! A claim is a row: key and lease. It is not a lock. It keeps nobody from running the same; it only tells those who would
//! rather wait whom to wait for, and they stop waiting when the claimant is done, dead (its lease can be locked) or
//! stopped. Whoever then runs it too does no harm, since the first result committed is the one that stays.

use std::collections::HashSet;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use rbuild_solver::{CacheKey, Claim, ClaimGuard};
use rbuild_store::rusqlite::{OptionalExtension, Transaction, params};
use rbuild_store::{Durability, Lease, Result, Store};

/// Pauses between looks at the claimant: short at first, since many steps are.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// The claims of one process.
pub(crate) struct Claims {
    store: Store,
    lease: Lease,
    /// Claimed here and not released. A row of ours that is not in here was left by a release that failed.
    held: Mutex<HashSet<CacheKey>>,
}

impl Claims {
    pub(crate) fn new(store: Store, lease: Lease) -> Claims {
        Claims { store, lease, held: Mutex::default() }
    }

    pub(crate) fn claim(self: &Arc<Self>, key: CacheKey) -> Result<Claim> {
        let mut taken_from: Option<String> = None;
        loop {
            let claimant = self.insert(key, taken_from.as_deref())?;
            let Some(claimant) = claimant else {
                self.held().insert(key);
                return Ok(Claim::Mine(ClaimGuard::new(Held { claims: self.clone(), key })));
            };
            if self.is_at_work(key, &claimant)? {
                let pid = pid_of(&claimant);
                let over = self.clone().wait(key, claimant);
                return Ok(Claim::Theirs { pid, over: over.boxed() });
            }
            taken_from = Some(claimant);
        }
    }

    /// Makes the row, taking it from the lease `dead` if it is that one's. Gives the lease that has it otherwise.
    fn insert(&self, key: CacheKey, dead: Option<&str>) -> Result<Option<String>> {
        self.store.db().write(Durability::Cache, |tx| {
            let made = tx
                .prepare_cached(
                    "INSERT INTO claims (key, lease) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET lease = ?2 WHERE lease = ?3",
                )?
                .execute(params![key.to_string(), self.lease.id().to_string(), dead])?;
            if made > 0 {
                return Ok(None);
            }
            claimant(tx, key)
        })
    }

    /// Whether the lease belongs to a process that lives and runs.
    fn is_at_work(&self, key: CacheKey, lease: &str) -> Result<bool> {
        if lease == self.lease.id().to_string() {
            return Ok(self.held().contains(&key));
        }
        Ok(self.store.is_lease_alive(lease)? && !pid_of(lease).is_some_and(is_stopped))
    }

    /// Ends when `lease` has the claim no more, or is not at work any more. No lock is held meanwhile, in the database or
    /// elsewhere. When the database cannot be asked the wait is over too: whoever waits asks again, and gets the error.
    async fn wait(self: Arc<Self>, key: CacheKey, lease: String) {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            match self.store.db().read(|tx| claimant(tx, key)) {
                Ok(Some(current)) if current == lease => {}
                _ => return,
            }
            if !self.is_at_work(key, &lease).unwrap_or(false) {
                return;
            }
        }
    }

    /// Strikes out our claim as part of `tx`; [`Claims::released`] follows once that is committed.
    pub(crate) fn release_in(&self, tx: &Transaction<'_>, key: CacheKey) -> Result<()> {
        tx.prepare_cached("DELETE FROM claims WHERE key = ? AND lease = ?")?
            .execute(params![key.to_string(), self.lease.id().to_string()])?;
        Ok(())
    }

    pub(crate) fn released(&self, key: CacheKey) {
        self.held().remove(&key);
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashSet<CacheKey>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A claim of ours. Dropped without a result, it lets others have a go.
struct Held {
    claims: Arc<Claims>,
    key: CacheKey,
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.claims.held().remove(&self.key) {
            return;
        }
        let released = self.claims.store.db().write(Durability::Cache, |tx| self.claims.release_in(tx, self.key));
        if let Err(error) = released {
            // The row goes with the lease, at the latest when somebody finds that dead.
            tracing::debug!("releasing the claim of {}: {error}", self.key);
        }
    }
}

fn claimant(tx: &Transaction<'_>, key: CacheKey) -> Result<Option<String>> {
    let mut query = tx.prepare_cached("SELECT lease FROM claims WHERE key = ?")?;
    Ok(query.query_row([key.to_string()], |row| row.get(0)).optional()?)
}

/// The process of a lease: its id begins with the number, before an `x`.
fn pid_of(lease: &str) -> Option<u32> {
    lease.split_once('x')?.0.parse().ok()
}

/// Whether a process is stopped, by a signal or a debugger: it may stay so for ever.
fn is_stopped(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name, in brackets, can hold anything; the state follows the last bracket.
    stat.rsplit_once(')').is_some_and(|(_, rest)| matches!(rest.trim_start().chars().next(), Some('T' | 't')))
}
