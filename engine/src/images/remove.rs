//! Taking names and images away, by docker's rules.
//!
//! A name goes first and the image with its last one. What a container uses stays unless forced; what a running
//! container uses stays whatever is said.

use std::fs::File;

use rbuild_oci::{ChainId, Digest, Reference};
use rbuild_store::lock::{Lock, try_lock};
use rbuild_store::{CollectOptions, Records, Removed, SnapshotId};

use super::filter::ImageFilter;
use super::{Image, Images};
use crate::error::{Error, Kind};

/// What a prune did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    pub removed: Vec<Removed>,
    /// Disk that became free, in bytes.
    pub bytes: u64,
}

/// A container that uses an image.
struct User {
    short_id: String,
    running: bool,
}

impl Images {
    /// Removes what `name` means: a name and, if it was the last one, the image; or an image with all its names, when it
    /// is given by its id. Gives what was done, in order.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Conflict`] when a container needs it, or an id has names in several repositories,
    /// and `force` does not help or was not given.
    ///
    /// Unless `clear`, what it consisted of stays on the disk until something else collects it.
    pub fn remove(&self, name: &str, force: bool, clear: bool) -> Result<Vec<Removed>, Error> {
        let image = match (self.get(name), Reference::parse(name)) {
            // What is no name either has a better reason.
            (Err(error), Err(reason)) if error.kind == Kind::NotFound => {
                return Err(Error::invalid(reason.to_string()));
            }
            (image, _) => image?,
        };
        let users = self.users(&image)?;
        let stack = if clear { self.stack(&image)? } else { Vec::new() };
        let mut removed = match named(&image, name) {
            Some(reference) => self.remove_name(&image, &reference, name, &users, force)?,
            None => self.remove_image(&image, &users, force)?,
        };
        self.tell_removed(&image, &removed);
        if clear && removed.iter().any(|r| matches!(r, Removed::Deleted(_))) {
            let collected = self.store.collect(&CollectOptions { records: Records::None })?;
            removed.extend(gone(&stack, &collected.snapshots));
        }
        Ok(removed)
    }

    /// Removes images that nobody uses: those that dangle, or with `all` those without a container.
    ///
    /// # Errors
    /// The store cannot be changed.
    pub fn prune(&self, all: bool, filter: &ImageFilter) -> Result<Pruned, Error> {
        let limits = filter.limits(self)?;
        let mut removed = Vec::new();
        for mut image in self.list(&ImageFilter::default())? {
            let dangles = image.tags.is_empty() && image.digests.is_empty();
            let whole = image.clone();
            if !limits.take(&mut image) || !self.users(&whole)?.is_empty() {
                continue;
            }
            if all || dangles {
                let stack = self.stack(&whole)?;
                let gone = self.delete(&whole)?;
                self.tell_removed(&whole, &gone);
                removed.push((gone, stack));
            } else {
                self.drop_leftovers(&whole)?;
            }
        }
        let collected = self.store.collect(&CollectOptions { records: Records::None })?;
        // A layer goes with the last of the images that had it.
        let mut left = collected.snapshots;
        let mut lines = Vec::new();
        for (mut image, stack) in removed.into_iter().rev() {
            image.extend(gone(&stack, &left));
            left.retain(|id| stack.iter().all(|(_, other)| other != id));
            lines.push(image);
        }
        Ok(Pruned { removed: lines.into_iter().rev().flatten().collect(), bytes: collected.bytes })
    }

    /// The layers of an image that are unpacked here, each with all that is below it, the topmost first.
    fn stack(&self, image: &Image) -> Result<Vec<(ChainId, SnapshotId)>, Error> {
        let diff_ids = &image.config.rootfs.diff_ids;
        let mut stack = Vec::new();
        for chain in (1..=diff_ids.len()).rev().filter_map(|depth| ChainId::of(&diff_ids[..depth])) {
            if let Some(id) = self.store.snapshots().id_of_chain(&chain)? {
                stack.push((chain, id));
            }
        }
        Ok(stack)
    }

    fn tell_removed(&self, image: &Image, removed: &[Removed]) {
        let id = image.id.0.to_string();
        for one in removed {
            match one {
                Removed::Untagged(name) => self.tell("untag", &id, &name.familiar()),
                Removed::Deleted(gone) => self.tell("delete", &gone.0.to_string(), &gone.0.to_string()),
                Removed::Layer(_) => {}
            }
        }
    }

    fn remove_name(
        &self,
        image: &Image,
        reference: &Reference,
        shown: &str,
        users: &[User],
        force: bool,
    ) -> Result<Vec<Removed>, Error> {
        let repository = reference.without_tag();
        let same = |name: &&Reference| name.without_tag() == repository;
        let tags_left = image.tags.iter().filter(|n| *n != reference).count();
        let same_repository_left = image.tags.iter().filter(same).any(|n| n != reference);
        // Digests of a repository go with its last tag.
        let mut going = vec![reference.clone()];
        if !same_repository_left {
            going.extend(image.digests.iter().filter(same).filter(|n| *n != reference).cloned());
        }
        let digests_left = image.digests.iter().filter(|n| !going.contains(n)).count();
        let last = tags_left + digests_left == 0;
        if let (true, false, Some(user)) = (last, force, users.first()) {
            return Err(Error::new(
                Kind::Conflict,
                format!(
                    "conflict: unable to remove repository reference \"{shown}\" (must force) - container {} is using its referenced image {}",
                    user.short_id,
                    image.id.0.short()
                ),
            ));
        }
        if last && users.is_empty() {
            let mut removed = self.delete(image)?;
            removed.sort_by_key(|r| match r {
                Removed::Untagged(name) => usize::from(name != reference),
                Removed::Deleted(_) | Removed::Layer(_) => 2,
            });
            return Ok(removed);
        }
        let mut removed = Vec::new();
        for name in going {
            if self.store.images().untag(&name)?.is_some() {
                removed.push(Removed::Untagged(name));
            }
        }
        Ok(removed)
    }

    fn remove_image(&self, image: &Image, users: &[User], force: bool) -> Result<Vec<Removed>, Error> {
        let shown = image.id.0.short();
        let conflict = |how: &str, why: String| {
            Err(Error::new(Kind::Conflict, format!("conflict: unable to delete {shown} ({how}) - {why}")))
        };
        if let Some(user) = users.iter().find(|u| u.running) {
            return conflict("cannot be forced", format!("image is being used by running container {}", user.short_id));
        }
        let mut repositories: Vec<Reference> =
            image.tags.iter().chain(&image.digests).map(Reference::without_tag).collect();
        repositories.sort_by_key(Reference::canonical);
        repositories.dedup();
        if !force && (image.tags.len() > 1 || repositories.len() > 1) {
            return conflict("must be forced", "image is referenced in multiple repositories".into());
        }
        match users.first() {
            Some(user) if !force => {
                conflict("must be forced", format!("image is being used by stopped container {}", user.short_id))
            }
            // The container keeps it alive, without a name.
            Some(_) => self.untag_all(image),
            None => self.delete(image),
        }
    }

    fn untag_all(&self, image: &Image) -> Result<Vec<Removed>, Error> {
        let mut removed = Vec::new();
        for name in image.tags.iter().chain(&image.digests) {
            if self.store.images().untag(name)?.is_some() {
                removed.push(Removed::Untagged(name.clone()));
            }
        }
        Ok(removed)
    }

    /// Removes every manifest that is the image; one line says so.
    fn delete(&self, image: &Image) -> Result<Vec<Removed>, Error> {
        let mut removed = Vec::new();
        for target in &image.targets {
            removed.extend(self.store.images().remove(&target.digest, false)?);
        }
        let deleted = removed.iter().any(|r| matches!(r, Removed::Deleted(_)));
        removed.retain(|r| matches!(r, Removed::Untagged(_)));
        if deleted {
            removed.push(Removed::Deleted(image.id.clone()));
        }
        Ok(removed)
    }

    /// Manifests without a name of an image that has names under another one.
    fn drop_leftovers(&self, image: &Image) -> Result<(), Error> {
        for target in &image.targets {
            let record = self.store.images().by_target(&target.digest)?;
            if image.targets.len() > 1 && record.is_some_and(|r| r.names.is_empty()) {
                self.store.images().remove(&target.digest, false)?;
            }
        }
        Ok(())
    }

    /// Whether a container uses it.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn is_used(&self, image: &Image) -> Result<bool, Error> {
        Ok(!self.users(image)?.is_empty())
    }

    fn users(&self, image: &Image) -> Result<Vec<User>, Error> {
        let mut users = Vec::new();
        for target in &image.targets {
            for owner in self.store.images().users(&target.digest)? {
                if let Some(id) = owner.strip_prefix("container:") {
                    users.push(User { short_id: id.chars().take(12).collect(), running: self.is_running(id) });
                }
            }
        }
        users.sort_by_key(|u| !u.running);
        Ok(users)
    }

    /// A running container's monitor holds the lock in its directory.
    fn is_running(&self, id: &str) -> bool {
        if id.contains(['/', '.']) {
            return false;
        }
        let lock = File::open(self.store.root().join("containers").join(id).join("lock"));
        lock.is_ok_and(|file| matches!(try_lock(&file, Lock::Shared), Ok(false)))
    }
}

/// What of a stack of layers was removed, in docker's order.
fn gone(stack: &[(ChainId, SnapshotId)], removed: &[SnapshotId]) -> Vec<Removed> {
    stack.iter().filter(|(_, id)| removed.contains(id)).map(|(chain, _)| Removed::Layer(chain.clone())).collect()
}

/// The name among the image's own that `text` spells; `None` when it is an id.
fn named(image: &Image, text: &str) -> Option<Reference> {
    let asked = Reference::parse(text).ok()?;
    let all = || image.tags.iter().chain(&image.digests);
    if let Some(exact) = all().find(|name| name.canonical() == asked.canonical()) {
        // Digits that begin an id may also be a name: the name goes first, unless it is a whole id.
        return (!is_whole_id(text)).then(|| exact.clone());
    }
    let digest: &Digest = asked.digest()?;
    all().find(|name| name.digest() == Some(digest) && name.without_tag() == asked.without_tag()).cloned()
}

fn is_whole_id(text: &str) -> bool {
    let bare = text.strip_prefix("sha256:").unwrap_or(text);
    bare.len() == 64 && bare.bytes().all(|b| b.is_ascii_hexdigit())
}
