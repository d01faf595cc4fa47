//! All tables of the store, and how an older store becomes a newer one.
//!
//! Each migration is one SQL text that is applied once, in order, inside one transaction; the database's
//! `user_version` counts those applied. Every table has one writing module (named in the design of the store), but only
//! this folder creates and changes them, so that one place knows what a version means.

use rusqlite::Transaction;

const MIGRATIONS: &[&str] = &[
    include_str!("v1.sql"),
    include_str!("v2.sql"),
    include_str!("v3.sql"),
    include_str!("v4.sql"),
    include_str!("v5.sql"),
    include_str!("v6.sql"),
    include_str!("v7.sql"),
];

/// The version this program writes.
pub(crate) const VERSION: u32 = MIGRATIONS.len() as u32;

/// Brings a database of version `from` to [`VERSION`].
pub(crate) fn migrate(tx: &Transaction<'_>, from: u32) -> rusqlite::Result<()> {
    for migration in &MIGRATIONS[from as usize..] {
        tx.execute_batch(migration)?;
    }
    tx.pragma_update(None, "user_version", VERSION)
}
