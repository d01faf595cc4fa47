//! Whose every byte of the state directory is.
//!
//! Everything below it is counted once, by disk use, and belongs to somebody by the rows that name it. What no row names
//! is a leftover, which the next collection or command takes away; a name that this program never gave is shown as unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rbuild_store::rusqlite::Transaction;
use rbuild_store::{Root, Store, StoreError, snapshots};

use crate::engine::Engine;
use crate::error::Error;

/// Who has a share of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    Images,
    Containers,
    Volumes,
    BuildCache,
    BuildLogs,
    /// Work of commands that run at this moment.
    Running,
    /// The database and the store's own files and directories.
    Store,
    /// What dead processes left; it goes by itself.
    Leftovers,
    /// Not made by this program.
    Unknown,
}

impl Owner {
    pub fn name(self) -> &'static str {
        match self {
            Owner::Images => "Images",
            Owner::Containers => "Containers",
            Owner::Volumes => "Local Volumes",
            Owner::BuildCache => "Build Cache",
            Owner::BuildLogs => "Build Logs",
            Owner::Running => "Running Commands",
            Owner::Store => "Store",
            Owner::Leftovers => "Leftovers",
            Owner::Unknown => "Unknown",
        }
    }
}

/// The share of one owner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Files and directories that are his.
    pub items: usize,
    /// Bytes on the disk.
    pub size: u64,
}

impl Engine {
    /// Whose the disk is. The shares add up to what the state directory takes.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn shares(&self) -> Result<BTreeMap<Owner, Share>, Error> {
        let store = self.store();
        let known = store.db().read(Known::read)?;
        let mut ledger = Ledger { store, known, shares: BTreeMap::new() };
        ledger.all().map_err(|e| Error::internal(format!("measuring {}: {e}", store.root().display())))?;
        Ok(ledger.shares)
    }
}

/// What the database names, and whose it is.
struct Known {
    blobs: BTreeMap<String, Owner>,
    snapshots: BTreeMap<String, Owner>,
    containers: BTreeSet<String>,
    volumes: BTreeSet<String>,
}

impl Known {
    fn read(tx: &Transaction<'_>) -> Result<Known, StoreError> {
        let mut known = Known {
            blobs: texts(tx, "SELECT digest FROM blobs")?
                .into_iter()
                .map(|digest| (digest, Owner::Leftovers))
                .collect(),
            snapshots: BTreeMap::new(),
            containers: texts(tx, "SELECT id FROM containers")?.into_iter().collect(),
            volumes: texts(tx, "SELECT name FROM volumes")?.into_iter().collect(),
        };
        let mut parents = BTreeMap::new();
        for row in snapshots::list_in(tx)? {
            known.snapshots.insert(row.id.to_string(), Owner::Leftovers);
            let below: Vec<String> = row.needs().map(ToString::to_string).collect();
            parents.insert(row.id.to_string(), below);
        }
        // The first who claims a thing has it: so what an image has is not counted as the cache's too.
        for (owner, claims) in [
            (
                Owner::Images,
                "SELECT 'snapshot:' || s.id FROM snapshots s JOIN images i ON i.chain_id = s.chain_id
                 UNION SELECT target FROM refs WHERE owner LIKE 'image:%'",
            ),
            (Owner::Containers, "SELECT target FROM refs WHERE owner LIKE 'container:%'"),
            (Owner::BuildCache, "SELECT target FROM refs WHERE owner LIKE 'record:%'"),
            (Owner::Running, "SELECT target FROM refs WHERE owner LIKE 'lease:%'"),
        ] {
            for target in texts(tx, claims)? {
                match target.split_once(':') {
                    Some(("blob", digest)) => claim(&mut known.blobs, digest, owner),
                    Some(("snapshot", id)) => {
                        let mut queue = vec![id.to_owned()];
                        while let Some(id) = queue.pop() {
                            claim(&mut known.snapshots, &id, owner);
                            queue.extend(parents.get(&id).into_iter().flatten().cloned());
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(known)
    }
}

fn claim(things: &mut BTreeMap<String, Owner>, name: &str, owner: Owner) {
    if let Some(known) = things.get_mut(name)
        && *known == Owner::Leftovers
    {
        *known = owner;
    }
}

struct Ledger<'a> {
    store: &'a Store,
    known: Known,
    shares: BTreeMap<Owner, Share>,
}

impl Ledger<'_> {
    fn all(&mut self) -> io::Result<()> {
        let root = self.store.root().to_owned();
        self.add(Owner::Store, own_size(&root)?);
        for name in names(&root)? {
            let path = root.join(&name);
            match name.as_str() {
                "blobs" => self.blobs(&path)?,
                "snapshots" => {
                    self.each(&path, |known, name| known.snapshots.get(name).copied().unwrap_or(Owner::Leftovers))?
                }
                "containers" => self.each(&path, |known, name| match known.containers.contains(name) {
                    true => Owner::Containers,
                    false => Owner::Leftovers,
                })?,
                "volumes" => self.each(&path, |known, name| match known.volumes.contains(name) {
                    true => Owner::Volumes,
                    false => Owner::Leftovers,
                })?,
                "cachemounts" | "contexts" => self.each(&path, |_, _| Owner::BuildCache)?,
                "builds" => self.each(&path, |_, _| Owner::BuildLogs)?,
                "ingest" | "leases" => self.leased(&path)?,
                "VERSION" | "reserve" | "empty" | "events" | "sandbox" | "daemon.json" | "lost+found" => {
                    self.tree(Owner::Store, &path)?;
                }
                name if name.starts_with("db.sqlite") || name.starts_with("gc.") => self.tree(Owner::Store, &path)?,
                _ => self.tree(Owner::Unknown, &path)?,
            }
        }
        Ok(())
    }

    fn blobs(&mut self, path: &Path) -> io::Result<()> {
        self.add(Owner::Store, own_size(path)?);
        for algorithm in names(path)? {
            self.each(&path.join(&algorithm), |known, name| {
                known.blobs.get(&format!("{algorithm}:{name}")).copied().unwrap_or(Owner::Leftovers)
            })?;
        }
        Ok(())
    }

    /// What lies under the id of a lease is its process', as long as that lives.
    fn leased(&mut self, path: &Path) -> io::Result<()> {
        let store = self.store.clone();
        self.each(path, move |_, name| match store.is_lease_alive(name) {
            Ok(true) => Owner::Running,
            _ => Owner::Leftovers,
        })
    }

    fn each(&mut self, path: &Path, owner: impl Fn(&Known, &str) -> Owner) -> io::Result<()> {
        self.add(Owner::Store, own_size(path)?);
        for name in names(path)? {
            let owner = owner(&self.known, &name);
            self.tree(owner, &path.join(&name))?;
        }
        Ok(())
    }

    fn tree(&mut self, owner: Owner, path: &Path) -> io::Result<()> {
        let size = match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => Root::open(path).and_then(|root| snapshots::disk_use(root.top())),
            Ok(metadata) => Ok(metadata.blocks() * 512),
            Err(error) => Err(error),
        };
        match size {
            // Somebody removed it while we looked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            size => {
                self.add(owner, size?);
                Ok(())
            }
        }
    }

    fn add(&mut self, owner: Owner, size: u64) {
        let share = self.shares.entry(owner).or_default();
        share.items += 1;
        share.size += size;
    }
}

/// Of the directory itself, without what is in it.
fn own_size(path: &Path) -> io::Result<u64> {
    Ok(fs::symlink_metadata(path)?.blocks() * 512)
}

/// The names in a directory, save those that are no text: this program gives none.
fn names(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        names.extend(entry?.file_name().into_string().ok());
    }
    Ok(names)
}

fn texts(tx: &Transaction<'_>, sql: &str) -> Result<Vec<String>, StoreError> {
    let mut query = tx.prepare_cached(sql)?;
    let rows = query.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
