//! Advice about what steps wrote: bytes that an image ships for nothing.
//!
//! Looked for only in the layers of a result and only when a step really ran, next to the hashing of its layer and
//! before anybody waits for that. So a build from the cache costs nothing more; it also does not repeat the advice,
//! which belongs to the run that wrote the bytes. Keeping findings in the database was the alternative: a table, a
//! migration and a query in every build, to say again what was said.

use std::collections::BTreeMap;

use rbuild_frontend::{Diagnostic, lint};
use rbuild_graph::Span;
use rbuild_store::layers::Change;
use rbuild_store::{SnapshotId, Store, StoreError};

/// Less than this is not worth a line to anybody, in bytes.
const WORTH_SAYING: u64 = 100_000;

/// Where a package manager keeps what it can fetch again.
struct Cache {
    owner: &'static str,
    /// A directory. One that begins with `/` is wherever a home is.
    place: &'static str,
    remedy: &'static str,
}

const APT: &str = "add rm -rf /var/lib/apt/lists/* to the same RUN, or mount caches at /var/lib/apt and /var/cache/apt";
const APK: &str = "use apk add --no-cache, or mount a cache at /var/cache/apk";
const DNF: &str = "add dnf clean all to the same RUN, or mount a cache at /var/cache/dnf";
const PIP: &str = "use pip install --no-cache-dir, or RUN --mount=type=cache,target=/root/.cache/pip";
const NPM: &str = "add npm cache clean --force to the same RUN, or RUN --mount=type=cache,target=/root/.npm";

const CACHES: [Cache; 15] = [
    Cache { owner: "apt", place: "var/lib/apt/lists", remedy: APT },
    Cache { owner: "apt", place: "var/cache/apt", remedy: APT },
    Cache { owner: "apk", place: "var/cache/apk", remedy: APK },
    Cache { owner: "apk", place: "etc/apk/cache", remedy: APK },
    Cache { owner: "dnf", place: "var/cache/dnf", remedy: DNF },
    Cache { owner: "dnf", place: "var/cache/libdnf5", remedy: DNF },
    Cache { owner: "yum", place: "var/cache/yum", remedy: "add yum clean all to the same RUN" },
    Cache { owner: "zypper", place: "var/cache/zypp", remedy: "add zypper clean --all to the same RUN" },
    Cache { owner: "pacman", place: "var/cache/pacman/pkg", remedy: "add pacman -Scc --noconfirm to the same RUN" },
    Cache { owner: "pip", place: "/.cache/pip", remedy: PIP },
    Cache { owner: "uv", place: "/.cache/uv", remedy: "use uv --no-cache, or mount a cache at /root/.cache/uv" },
    Cache { owner: "npm", place: "/.npm/_cacache", remedy: NPM },
    Cache { owner: "yarn", place: "/.cache/yarn", remedy: "add yarn cache clean to the same RUN" },
    Cache { owner: "go", place: "/.cache/go-build", remedy: "mount a cache at /root/.cache/go-build" },
    Cache { owner: "composer", place: "/.composer/cache", remedy: "use composer --no-cache" },
];

/// What was found in one layer.
#[derive(Debug, Default)]
struct Tally {
    repeated: Option<Found>,
    removed: Vec<Found>,
    /// By the index of the cache.
    caches: BTreeMap<usize, Found>,
}

/// Files with something in common.
#[derive(Debug)]
struct Found {
    /// The first of them, or the directory that has them all.
    path: String,
    files: u64,
    bytes: u64,
}

impl Found {
    fn new(path: &[u8]) -> Found {
        Found { path: String::from_utf8_lossy(path).into_owned(), files: 0, bytes: 0 }
    }

    fn add(&mut self, files: u64, bytes: u64) {
        self.files += files;
        self.bytes += bytes;
    }
}

/// What there is to say about the layer of a snapshot that stands on `base` layers of an image.
///
/// # Errors
/// The snapshot cannot be read.
pub(crate) fn of_layer(
    store: &Store,
    snapshot: &SnapshotId,
    base: usize,
    span: Option<Span>,
) -> Result<Vec<Diagnostic>, StoreError> {
    let mut tally = Tally::default();
    store.layers().changes(snapshot, base, &mut |change| tally.add(change))?;
    Ok(tally.diagnostics().into_iter().map(|found| Diagnostic { span, ..found }).collect())
}

impl Tally {
    fn add(&mut self, change: Change<'_>) {
        match change {
            Change::Written { path, bytes } => {
                if let Some((index, directory)) = cache_of(path) {
                    self.caches.entry(index).or_insert_with(|| Found::new(directory)).add(1, bytes);
                }
            }
            Change::Repeated { path, bytes } => {
                self.repeated.get_or_insert_with(|| Found::new(path)).add(1, bytes);
            }
            Change::Removed { path, files, bytes } => {
                self.removed.push(Found { files, bytes, ..Found::new(path) });
            }
        }
    }

    fn diagnostics(self) -> Vec<Diagnostic> {
        let worth = |found: &Found| found.bytes >= WORTH_SAYING;
        let repeated = self.repeated.into_iter().filter(worth);
        let mut said: Vec<Diagnostic> =
            repeated.map(|found| lint::files_stored_again(&found.path, found.files, found.bytes)).collect();
        // Many small ones may be worth saying together; the largest stands for them.
        if let Some(largest) = self.removed.iter().max_by_key(|found| found.bytes) {
            let sum = |of: fn(&Found) -> u64| self.removed.iter().map(of).sum::<u64>();
            let all = Found { path: largest.path.clone(), files: sum(|f| f.files), bytes: sum(|f| f.bytes) };
            if worth(&all) {
                said.push(lint::deleted_files_remain(&all.path, all.files, all.bytes));
            }
        }
        let caches = self.caches.into_iter().filter(|(_, found)| worth(found));
        said.extend(caches.map(|(index, found)| {
            lint::package_cache_in_layer(CACHES[index].owner, &found.path, found.bytes, CACHES[index].remedy)
        }));
        said
    }
}

/// Which cache a file belongs to, and the directory of that.
fn cache_of(path: &[u8]) -> Option<(usize, &[u8])> {
    CACHES.iter().enumerate().find_map(|(index, cache)| {
        let place = cache.place.as_bytes();
        let end = if place.starts_with(b"/") {
            let at = path.windows(place.len()).position(|window| window == place)?;
            at + place.len()
        } else {
            path.strip_prefix(place).map(|_| place.len())?
        };
        (path.get(end) == Some(&b'/')).then(|| (index, &path[..end]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_known_by_their_places() {
        let owner = |path: &str| {
            cache_of(path.as_bytes()).map(|(i, at)| (CACHES[i].owner, String::from_utf8_lossy(at).into_owned()))
        };
        let is = |owner: &'static str, at: &str| Some((owner, at.to_owned()));
        assert_eq!(owner("var/lib/apt/lists/deb_x"), is("apt", "var/lib/apt/lists"));
        assert_eq!(owner("root/.cache/pip/http/1"), is("pip", "root/.cache/pip"));
        assert_eq!(owner("home/me/.npm/_cacache/x/y"), is("npm", "home/me/.npm/_cacache"));
        for other in ["var/lib/apt/listsx/y", "opt/var/lib/apt/lists/y", "root/.cache/pipx/y", "var/lib/apt/lists", ""]
        {
            assert_eq!(owner(other), None, "{other}");
        }
    }

    #[test]
    fn little_is_not_worth_saying() {
        let said = |changes: &[Change<'_>]| {
            let mut tally = Tally::default();
            changes.iter().for_each(|change| tally.add(*change));
            tally.diagnostics().into_iter().map(|found| found.rule.unwrap_or_default()).collect::<Vec<_>>()
        };
        let (much, little) = (WORTH_SAYING, WORTH_SAYING - 1);
        assert_eq!(said(&[Change::Written { path: b"usr/bin/x", bytes: much }]), Vec::<&str>::new());
        let repeated = |bytes| Change::Repeated { path: b"a", bytes };
        assert_eq!(said(&[repeated(little)]), Vec::<&str>::new());
        assert_eq!(said(&[repeated(little), repeated(1)]), ["FilesStoredAgain"]);
        let removed = |bytes| Change::Removed { path: b"a", files: 1, bytes };
        assert_eq!(said(&[removed(little), removed(1)]), ["DeletedFilesRemain"]);
        let cached = |bytes| Change::Written { path: b"var/cache/apk/x", bytes };
        assert_eq!(said(&[cached(little)]), Vec::<&str>::new());
        assert_eq!(said(&[cached(much), removed(much), repeated(much)]).len(), 3);
    }
}
