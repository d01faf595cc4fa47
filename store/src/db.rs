//! The one opener of `db.sqlite`.
//!
//! SQLite in WAL mode, because many short-lived processes share it: it was measured to lose no acknowledged commit
//! under kills and to commit far more often than key-value stores that lock a whole file. Connections are never taken
//! across a fork and nobody but SQLite opens the file (closing any descriptor of it would drop SQLite's locks).
//!
//! Connections are alike and kept in a small pool: a command that asks one thing after the other opens one, and readers
//! are not held up by a writer of the same process. Where there are several, changes go through the one that made the last
//! change: each change makes all other connections forget the pages they have read. Writers of one process queue on a
//! mutex; writers of several processes on SQLite's lock, where a long wait is reported with the pid that is waited for.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use crate::error::{Context, Result, StoreError};
use crate::schema;

/// After this long a waiting writer says for whom it waits, and again each time it has passed.
const PATIENCE: Duration = Duration::from_secs(2);
/// After this long a waiting writer gives up.
const GIVE_UP: Duration = Duration::from_secs(600);
/// Pages in the WAL at which any commit writes them back: each page once, so a build of thousands of steps gains from many.
const CHECKPOINT_PAGES: u32 = 4096;
/// Bytes of the WAL at which a commit that waits for the disk anyway, as the last one of a build does, writes it back and
/// empties it; the first commit of a process does too, for there are commands that never wait for the disk. Small, since
/// the first command after the last one ended reads the WAL once, and a no-op build or a `run` has no time for a long one.
const LONG_WAL: u64 = 1 << 20;
/// What a connection remembers of the pages it has read, in KiB. Keys are hashes: each change touches pages everywhere, and
/// the default of 2 MiB forgets them during a build of a thousand steps.
const CACHED_KIB: u32 = 16 << 10;
/// Connections kept open while nobody uses them.
const IDLE: usize = 4;

/// How a transaction reaches the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// May be lost in a power cut, together with all that came after it. For cache rows.
    Cache,
    /// On disk when the call returns. For what a user named, and for every removal.
    Named,
}

/// The store's database. Several threads may use it at once.
#[derive(Debug)]
pub struct Db {
    path: PathBuf,
    idle: Mutex<Vec<Idle>>,
    /// The number of changes.
    writing: Mutex<u64>,
    read_only: bool,
    copy: Option<TemporaryCopy>,
}

impl Db {
    /// Opens the database at `path`, which must exist and have the current schema.
    pub(crate) fn open(path: &Path) -> Result<Db> {
        let db = Db::new(path, false);
        let connection = db.connect(OpenFlags::empty()).map_err(|error| error.of_database(|| db.root()))?;
        db.keep(Idle { connection, changed: 0 });
        Ok(db)
    }

    /// Opens the database at `path` for reading only. Where SQLite cannot keep its shared memory beside it, on a read-only
    /// file system, a copy with its WAL is read instead, in memory where there is a place for that: opening the file as
    /// immutable would ignore the WAL and show the past.
    pub(crate) fn open_read_only(path: &Path) -> Result<Db> {
        let db = Db::new(path, true);
        if db.read(|_| Ok(())).is_ok() {
            return Ok(db);
        }
        let copy = TemporaryCopy::of(path)?;
        let mut db = Db::new(&copy.dir.join("db.sqlite"), true);
        db.copy = Some(copy);
        db.read(|_| Ok(()))?;
        Ok(db)
    }

    /// Makes or migrates the database. The caller holds the store's version lock alone.
    ///
    /// Returns the version found, 0 for a new one.
    pub(crate) fn prepare(path: &Path, first_state: impl FnOnce(&Transaction<'_>) -> Result<()>) -> Result<u32> {
        let db = Db::new(path, false);
        db.migrate(path, first_state).map_err(|error| error.of_database(|| db.root()))
    }

    fn migrate(&self, path: &Path, first_state: impl FnOnce(&Transaction<'_>) -> Result<()>) -> Result<u32> {
        let connection = self.connect(OpenFlags::SQLITE_OPEN_CREATE)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if found > schema::VERSION {
            let root = path.parent().unwrap_or(path).to_path_buf();
            return Err(StoreError::Newer { root, found, known: schema::VERSION });
        }
        if found < schema::VERSION {
            let tx = patiently(path, || Ok(Transaction::new_unchecked(&connection, TransactionBehavior::Immediate)?))?;
            schema::migrate(&tx, found)?;
            if found == 0 {
                first_state(&tx)?;
            }
            tx.commit()?;
        }
        Ok(found)
    }

    /// Answers one question: `question` sees one state of the database, and must not take long, since a reader that
    /// stays keeps the WAL growing.
    pub fn read<T>(&self, question: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        self.ask(question).map_err(|error| error.of_database(|| self.root()))
    }

    fn ask<T>(&self, question: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let connection = self.connection(For::Reading)?;
        let tx = patiently(&self.path, || {
            let tx = Transaction::new_unchecked(&connection, TransactionBehavior::Deferred)?;
            // Takes the read lock here, where a wait for another process' recovery can be repeated.
            tx.prepare_cached("SELECT generation FROM state")?.query_row([], |row| row.get::<_, i64>(0))?;
            Ok(tx)
        })?;
        let answer = question(&tx)?;
        tx.finish()?;
        Ok(answer)
    }

    /// Changes the database: all of `change` or, when it returns an error, nothing. Must not be nested.
    pub fn write<T>(&self, durability: Durability, change: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        if self.read_only {
            return Err(StoreError::ReadOnly { root: self.root() });
        }
        self.change(durability, change).map_err(|error| error.of_database(|| self.root()))
    }

    fn change<T>(&self, durability: Durability, change: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        *turn += 1;
        let connection = self.connection(For::Change(*turn))?;
        if durability == Durability::Named {
            connection.prepare_cached("PRAGMA synchronous = FULL")?.execute([])?;
        }
        let outcome = begin_change_commit(&self.path, &connection, change);
        if durability == Durability::Named {
            connection.prepare_cached("PRAGMA synchronous = NORMAL")?.execute([])?;
        }
        if durability == Durability::Named || *turn == 1 {
            self.shorten_wal(&connection);
        }
        outcome
    }

    /// Writes a long WAL back, unless somebody reads in it at this moment. It only makes the next opening quicker.
    fn shorten_wal(&self, connection: &Connection) {
        let is_long = std::fs::metadata(wal_of(&self.path)).is_ok_and(|wal| wal.len() > LONG_WAL);
        if !is_long {
            return;
        }
        let shortened = connection.busy_timeout(Duration::ZERO).and_then(|()| {
            let done = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            connection.busy_timeout(PATIENCE).and(done)
        });
        if let Err(error) = shortened {
            tracing::debug!("shortening the WAL of {:?}: {error}", self.path);
        }
    }

    /// The mark for a row whose files may not be on disk yet: the value of its `volatile` column.
    /// [`Store::flush`](crate::Store::flush) takes it away again; a row that still has one after a reboot is dropped.
    pub fn mark(tx: &Transaction<'_>) -> Result<i64> {
        Ok(tx.prepare_cached("SELECT generation FROM state")?.query_row([], |row| row.get(0))?)
    }

    fn new(path: &Path, read_only: bool) -> Db {
        Db { path: path.to_path_buf(), idle: Mutex::default(), writing: Mutex::default(), read_only, copy: None }
    }

    fn root(&self) -> PathBuf {
        self.path.parent().unwrap_or(&self.path).to_path_buf()
    }

    fn connection(&self, purpose: For) -> Result<Pooled<'_>> {
        let found = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let by_change = idle.iter().enumerate().map(|(at, idle)| (idle.changed, at));
            let at = match purpose {
                For::Reading => by_change.min(),
                For::Change(_) => by_change.max(),
            };
            at.map(|(_, at)| idle.swap_remove(at))
        };
        let mut idle = match found {
            Some(idle) => idle,
            None => Idle { connection: self.connect(OpenFlags::empty())?, changed: 0 },
        };
        if let For::Change(number) = purpose {
            idle.changed = number;
        }
        Ok(Pooled { db: self, idle: Some(idle) })
    }

    fn connect(&self, extra: OpenFlags) -> Result<Connection> {
        let access = if self.read_only { OpenFlags::SQLITE_OPEN_READ_ONLY } else { OpenFlags::SQLITE_OPEN_READ_WRITE };
        let flags = access | extra | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.set_prepared_statement_cache_capacity(128);
        connection.busy_timeout(PATIENCE)?;
        if !self.read_only {
            // Else each command, being the last to close, would write back the WAL and sync.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            let settings = format!(
                "PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}; \
                 PRAGMA cache_size = -{CACHED_KIB};"
            );
            patiently(&self.path, || Ok(connection.execute_batch(&settings)?))?;
        }
        Ok(connection)
    }

    fn keep(&self, mut returned: Idle) {
        if !returned.connection.is_autocommit() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE {
            idle.push(returned);
        } else if let Some(oldest) = idle.iter_mut().min_by_key(|idle| idle.changed)
            && oldest.changed < returned.changed
        {
            std::mem::swap(oldest, &mut returned);
        }
    }
}

/// The WAL of the database at `path`.
fn wal_of(path: &Path) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push("-wal");
    PathBuf::from(path)
}

/// A database copied to where it can be opened; it goes with this value.
#[derive(Debug)]
struct TemporaryCopy {
    dir: PathBuf,
}

impl TemporaryCopy {
    fn of(path: &Path) -> Result<TemporaryCopy> {
        use std::os::unix::fs::DirBuilderExt;
        let what = || format!("copying {path:?} to read it");
        let name = format!("rbuild-{}-{:016x}", std::process::id(), crate::lease::random()?);
        let places = ["/dev/shm", "/run", "/tmp"].map(|place| Path::new(place).join(&name));
        let mut made = Err(std::io::ErrorKind::NotFound.into());
        for dir in places {
            made = std::fs::DirBuilder::new().mode(0o700).create(&dir).map(|()| dir);
            if made.is_ok() {
                break;
            }
        }
        let copy = TemporaryCopy { dir: made.context(what)? };
        let target = copy.dir.join("db.sqlite");
        std::fs::copy(path, &target).context(what)?;
        if wal_of(path).exists() {
            std::fs::copy(wal_of(path), wal_of(&target)).context(what)?;
        }
        Ok(copy)
    }
}

impl Drop for TemporaryCopy {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::debug!("removing {:?}: {error}", self.dir);
        }
    }
}

/// Nanoseconds since 1970, as the database keeps times.
pub fn nanos(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |n| -n),
    }
}

/// The time that [`nanos`] made a number of.
pub fn time(nanos: i64) -> SystemTime {
    let distance = Duration::from_nanos(nanos.unsigned_abs());
    if nanos >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
}

/// A connection that nobody uses.
#[derive(Debug)]
struct Idle {
    connection: Connection,
    /// The number of the last change made through it.
    changed: u64,
}

/// What a connection is wanted for.
enum For {
    Reading,
    /// With its number.
    Change(u64),
}

/// A connection that goes back to the pool.
struct Pooled<'a> {
    db: &'a Db,
    idle: Option<Idle>,
}

impl std::ops::Deref for Pooled<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.idle.as_ref().expect("taken only by drop").connection
    }
}

impl Drop for Pooled<'_> {
    fn drop(&mut self) {
        if let Some(idle) = self.idle.take() {
            self.db.keep(idle);
        }
    }
}

fn begin_change_commit<T>(
    path: &Path,
    connection: &Connection,
    change: impl FnOnce(&Transaction<'_>) -> Result<T>,
) -> Result<T> {
    let tx = patiently(path, || Ok(Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?))?;
    let value = change(&tx)?;
    tx.commit()?;
    Ok(value)
}

/// Repeats `attempt` while another process holds the lock it needs, saying so now and then.
fn patiently<T>(path: &Path, attempt: impl Fn() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(StoreError::Database(error)) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                let pid = holder(path);
                if start.elapsed() > GIVE_UP {
                    return Err(StoreError::Busy { pid });
                }
                match pid {
                    Some(pid) => tracing::warn!("waiting for process {pid}, which holds the store's database"),
                    None => tracing::warn!("waiting for another process, which holds the store's database"),
                }
            }
            other => return other,
        }
    }
}

/// The process that holds a write lock on the database, as the kernel lists it. (The file itself must not be opened.)
fn holder(path: &Path) -> Option<u32> {
    let mut shm = path.as_os_str().to_owned();
    shm.push("-shm");
    let inode = rustix::fs::stat(Path::new(&shm)).ok()?.st_ino.to_string();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    // 1: POSIX  ADVISORY  WRITE 1234 08:02:5678 120 120
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "POSIX", _, "WRITE", pid, file, ..] = words[..] else { return None };
        (file.rsplit(':').next() == Some(&inode)).then(|| pid.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> (tempfile::TempDir, Db) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db.sqlite");
        let found = Db::prepare(&path, |tx| {
            tx.execute("INSERT INTO state VALUES (1, 'id', 'overlay', 'boot', 1, 0)", [])?;
            Ok(())
        });
        assert_eq!(found.unwrap(), 0);
        assert_eq!(Db::prepare(&path, |_| panic!("it is there")).unwrap(), schema::VERSION);
        let db = Db::open(&path).unwrap();
        (dir, db)
    }

    #[test]
    fn who_waits_learns_for_whom() {
        let (_dir, db) = database();
        assert_eq!(holder(&db.path), None);
        let held = db.write(Durability::Cache, |_| Ok(holder(&db.path))).unwrap();
        assert_eq!(held, Some(std::process::id()));
    }

    #[test]
    fn changes_go_through_one_connection() {
        let (_dir, db) = database();
        drop([db.connection(For::Reading).unwrap(), db.connection(For::Reading).unwrap()]);
        assert_eq!(db.idle.lock().unwrap().len(), 2);
        for round in 0..5 {
            db.write(Durability::Cache, |_| Ok(())).unwrap();
            let reader = db.connection(For::Reading).unwrap();
            assert_eq!(reader.idle.as_ref().unwrap().changed, 0, "round {round}: the one that changes was taken");
            db.write(Durability::Named, |_| Ok(())).unwrap();
        }
        let mut changed: Vec<u64> = db.idle.lock().unwrap().iter().map(|idle| idle.changed).collect();
        changed.sort_unstable();
        assert_eq!(changed, [0, 10]);
        // Of too many, the one that made the last change stays.
        let writer = db.connection(For::Change(11)).unwrap();
        let readers: Vec<_> = (0..IDLE).map(|_| db.connection(For::Reading).unwrap()).collect();
        drop(readers);
        drop(writer);
        assert_eq!(db.idle.lock().unwrap().iter().map(|idle| idle.changed).max(), Some(11));
    }

    #[test]
    fn a_change_is_whole_or_nothing() {
        let (_dir, db) = database();
        let count = || db.read(|tx| Ok(tx.query_row("SELECT count(*) FROM claims", [], |row| row.get::<_, i64>(0))?));
        let failed = db.write(Durability::Named, |tx| {
            tx.execute("INSERT INTO claims VALUES ('k', 'l')", [])?;
            Err::<(), _>(StoreError::NoSnapshot("x".into()))
        });
        assert!(matches!(failed, Err(StoreError::NoSnapshot(_))));
        assert_eq!(count().unwrap(), 0);
        db.write(Durability::Named, |tx| Ok(tx.execute("INSERT INTO claims VALUES ('k', 'l')", [])?)).unwrap();
        assert_eq!(count().unwrap(), 1);
        // Readers see the last whole state while a change is under way.
        let seen = db.write(Durability::Cache, |tx| {
            tx.execute("DELETE FROM claims", [])?;
            count()
        });
        assert_eq!((seen.unwrap(), count().unwrap()), (1, 0));
    }

    #[test]
    fn a_long_wal_is_written_back() {
        let (_dir, db) = database();
        let length = || std::fs::metadata(wal_of(&db.path)).unwrap().len();
        let fill = |from: usize| {
            for n in from..from + 40 {
                let text = format!("{n:0>40000}");
                db.write(Durability::Cache, |tx| Ok(tx.execute("INSERT INTO claims VALUES (?, 'l')", [text])?))
                    .unwrap();
            }
            assert!(length() > LONG_WAL);
        };
        let named = || db.write(Durability::Named, |tx| Ok(tx.execute("DELETE FROM claims", [])?)).unwrap();
        fill(0);
        assert_eq!(named(), 40);
        assert!(length() <= LONG_WAL, "{}", length());
        // A reader is not waited for, and sees what it saw.
        fill(100);
        db.read(|tx| {
            let count = || tx.query_row("SELECT count(*) FROM claims", [], |row| row.get::<_, i64>(0));
            assert_eq!(count()?, 40);
            assert_eq!(named(), 40);
            assert_eq!(count()?, 40);
            Ok(())
        })
        .unwrap();
        assert!(length() > LONG_WAL);
        assert_eq!(named(), 0);
        assert!(length() <= LONG_WAL, "{}", length());
        // Another program does not find it long for ever, though nothing it does waits for the disk.
        fill(200);
        Db::open(&db.path).unwrap().write(Durability::Cache, |_| Ok(())).unwrap();
        assert!(length() <= LONG_WAL, "{}", length());
    }

    #[test]
    fn a_newer_database_is_left_alone() {
        let (_dir, db) = database();
        db.write(Durability::Named, |tx| Ok(tx.pragma_update(None, "user_version", 99)?)).unwrap();
        let error = Db::prepare(&db.path, |_| Ok(())).unwrap_err();
        assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error}");
    }

    #[test]
    fn times_survive() {
        for offset in [0i64, 1, -1, 1_700_000_000_123_456_789, -5_000_000_001] {
            assert_eq!(nanos(time(offset)), offset);
        }
    }
}
