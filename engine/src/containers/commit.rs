//! An image of what a container has become.

use std::time::SystemTime;

use rbuild_oci::{HistoryEntry, ImageId, Manifest, MediaType, Platform, Reference};
use rbuild_store::{Lease, Snapshot, SnapshotId, StoreError};

use super::Containers;
use super::record::{Container, Seen, Status};
use crate::error::{Error, Kind};
use crate::export::image::{Described, as_oci, publish};

/// How an image is made of a container.
#[derive(Debug, Clone)]
pub struct CommitRequest {
    pub name: Option<Reference>,
    pub author: String,
    pub message: String,
    /// Lines of a Dockerfile that change the configuration.
    pub changes: Vec<String>,
    /// Stop the processes while their files are copied.
    pub pause: bool,
    /// When the image is made.
    pub now: SystemTime,
}

impl Containers {
    /// Makes an image of the container's layer on top of its image, with the container's configuration.
    ///
    /// # Errors
    /// `Invalid` for changes that make no sense.
    pub fn commit(&self, seen: &Seen, request: &CommitRequest) -> Result<ImageId, Error> {
        let container = &seen.container;
        let config = rbuild_frontend::change(&container.config, &request.changes).map_err(|problems| {
            let told: Vec<String> = problems.into_iter().map(|problem| problem.message).collect();
            Error::invalid(told.join("; "))
        })?;
        let lease = self.store.lease("commit")?;
        let image = self.store.images().by_target(&container.image_target)?;
        let image = image.ok_or_else(|| Error::not_found(format!("No such image: {}", container.image_id)))?;
        let (base, mut described, _) = self.store.images().manifest(&image, &Platform::host())?;
        let snapshot = self.frozen_copy(seen, request.pause, &lease)?;
        let layer = self.store.layers().diff(snapshot.id())?;
        let created = rbuild_runtime::logs::rfc3339(request.now.into());
        described.config = config;
        described.author.clone_from(&request.author);
        described.created = Some(created.clone());
        described.rootfs.diff_ids.push(layer.diff_id.clone());
        described.history.push(HistoryEntry {
            created: Some(created),
            author: request.author.clone(),
            created_by: container.args().join(" "),
            comment: request.message.clone(),
            empty_layer: false,
        });
        let mut layers: Vec<_> = base.layers.iter().map(as_oci).collect();
        layers.push(rbuild_oci::Descriptor::new(MediaType::OciLayer, layer.diff_id.0.clone(), layer.size));
        let manifest = Manifest::new(described.descriptor(), layers);
        let names: Vec<Reference> = request.name.iter().cloned().collect();
        let (id, _) = publish(&self.store, &lease, &Described { config: described, manifest }, &names)?;
        self.tell(container, "commit", &[("comment", &request.message), ("imageID", &id.0.to_string())]);
        Ok(id)
    }

    /// The container's layer as a snapshot, copied while its processes stand still.
    fn frozen_copy(&self, seen: &Seen, pause: bool, lease: &Lease) -> Result<Snapshot, Error> {
        let container = &seen.container;
        let frozen = pause && seen.status == Status::Running;
        let cgroup = if frozen { Some(self.cgroup(container)?) } else { None };
        if let Some(cgroup) = &cgroup {
            cgroup.freeze()?;
        }
        let copied = self.layer_copy(container, lease);
        if let Some(cgroup) = &cgroup {
            cgroup.thaw()?;
        }
        copied
    }

    fn layer_copy(&self, container: &Container, lease: &Lease) -> Result<Snapshot, Error> {
        let parent: Option<SnapshotId> =
            container.parent.as_deref().map(str::parse).transpose().map_err(|e: StoreError| Error::internal(e))?;
        let layer = self.directory(&container.id).join("layer");
        Ok(self.store.snapshots().commit_copy(&layer, parent.as_ref(), lease)?)
    }

    /// Makes every process of a container stand still.
    pub fn pause(&self, seen: &Seen) -> Result<(), Error> {
        match seen.status {
            Status::Running => {}
            Status::Paused => {
                return Err(Error::new(Kind::Conflict, format!("container {} is already paused", seen.container.id)));
            }
            _ => return Err(Error::new(Kind::Conflict, format!("container {} is not running", seen.container.id))),
        }
        self.cgroup(&seen.container)?.freeze()?;
        std::fs::write(self.directory(&seen.container.id).join("paused"), "").map_err(Error::internal)?;
        self.tell(&seen.container, "pause", &[]);
        Ok(())
    }

    /// Lets them go on.
    pub fn unpause(&self, seen: &Seen) -> Result<(), Error> {
        if seen.status != Status::Paused {
            return Err(Error::new(Kind::Conflict, format!("container {} is not paused", seen.container.id)));
        }
        self.thaw(&seen.container)?;
        self.tell(&seen.container, "unpause", &[]);
        Ok(())
    }

    pub(super) fn thaw(&self, container: &Container) -> Result<(), Error> {
        self.cgroup(container)?.thaw()?;
        match std::fs::remove_file(self.directory(&container.id).join("paused")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::internal(error)),
            _ => Ok(()),
        }
    }
}
