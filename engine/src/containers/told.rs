//! What is told of containers by those who do something with them; their monitors tell of starts and ends.

use std::collections::BTreeMap;

use rbuild_runtime::container::{Told, ToldVolume};
use rbuild_store::{Event, EventKind};

use super::Containers;
use super::record::{Container, MountKind};

impl Containers {
    /// Notes that something happened to a container. `more` stands beside its image, name and labels.
    pub(super) fn tell(&self, container: &Container, action: &str, more: &[(&str, &str)]) {
        let mut attributes = attributes(container);
        attributes.insert("name".to_owned(), container.name.clone());
        attributes.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self.store.events().note(&Event { attributes, ..Event::new(EventKind::Container, action, &container.id) });
    }

    /// What its monitor tells of it, and where.
    pub(super) fn told(&self, container: &Container) -> Told {
        let volumes = container.mounts.iter().filter_map(|mount| match &mount.kind {
            MountKind::Volume { name, .. } => Some(ToldVolume {
                name: name.clone(),
                destination: mount.destination.clone(),
                read_only: mount.read_only,
            }),
            _ => None,
        });
        Told { journal: self.store.events(), attributes: attributes(container), volumes: volumes.collect() }
    }
}

fn attributes(container: &Container) -> BTreeMap<String, String> {
    let mut attributes = container.labels().clone();
    attributes.insert("image".to_owned(), container.image.clone());
    attributes
}
