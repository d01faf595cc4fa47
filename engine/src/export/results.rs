//! What becomes of a build's result: each output that was asked for, in turn.

use std::ffi::OsString;
use std::io::Write;
use std::sync::Arc;

use rbuild_frontend::Diagnostic;
use rbuild_oci::{Compression, Descriptor, Digest, ImageId, Index, MediaType, Platform, Reference};
use rbuild_solver::{Event, Events, LogStream, StepId, Unit};
use rbuild_store::archive::{DirectorySink, TarSink};
use rbuild_store::transfer::{StoreSource, copy};
use rbuild_store::{Lease, NewImage, Root, Snapshot, Store};
use rustix::fd::OwnedFd;

use super::archive::fill;
use super::files;
use super::image::{Described, write_documents};
use super::pack::Packer;
use super::timestamps::{Times, change_times};
use crate::context;
use crate::engine::Engine;
use crate::error::Error;
use crate::output::{Annotated, Annotation, Output, Packing};
use crate::remote::as_step;
use crate::request::BuildRequest;

/// A finished result for one platform.
pub(crate) struct Built {
    pub(crate) platform: Platform,
    pub(crate) image: Described,
    /// How many layers are the base image's.
    pub(crate) base_layers: usize,
    /// `None` is an empty file tree.
    pub(crate) files: Option<Snapshot>,
    pub(crate) epoch: Option<i64>,
    /// What there is to say about the layers that were made just now.
    pub(crate) advice: Vec<Diagnostic>,
}

/// What the outputs gave.
#[derive(Debug, Clone)]
pub(crate) struct Exported {
    pub(crate) image_id: ImageId,
    /// The manifest or index.
    pub(crate) target: Descriptor,
    pub(crate) names: Vec<Reference>,
    pub(crate) pushed: Vec<(Reference, Digest)>,
}

/// The outputs of a request; without any, the image goes to the store under its tags.
pub(crate) fn outputs(request: &BuildRequest) -> Vec<Output> {
    if request.outputs.is_empty() {
        return vec![Output::Image { names: request.tags.clone(), push: false, packing: Packing::default() }];
    }
    request.outputs.clone()
}

/// Says before a build what could not be done after it.
///
/// # Errors
/// An output that this number of platforms rules out.
pub(crate) fn check(outputs: &[Output], platforms: usize) -> Result<(), Error> {
    for output in outputs {
        let annotations: &[Annotation] = match output {
            Output::Image { packing, .. } | Output::Archive { packing, .. } | Output::Layout { packing, .. } => {
                &packing.annotations
            }
            _ => &[],
        };
        if platforms < 2 && annotations.iter().any(|note| note.on == Annotated::Index) {
            return Err(Error::invalid("index annotations not supported for single platform export"));
        }
        match output {
            Output::Image { names, push: true, .. } if names.is_empty() => {
                return Err(Error::invalid("tag is needed when pushing to registry"));
            }
            Output::Image { push: true, .. } if platforms > 1 => {
                return Err(Error::unsupported("pushing several platforms under one name is not supported yet"));
            }
            Output::Archive { several: false, .. } if platforms > 1 => {
                return Err(Error::invalid("docker exporter does not currently support exporting manifest lists"));
            }
            Output::Tar { .. } if platforms > 1 => {
                return Err(Error::unsupported("a tar archive of several platforms is not supported yet"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Makes all outputs of a build.
pub(crate) struct Exporter<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) lease: &'a Lease,
    pub(crate) events: &'a Events,
    pub(crate) results: Arc<Vec<Built>>,
}

impl Exporter<'_> {
    /// # Errors
    /// The first output that fails; those before it stand.
    pub(crate) async fn all(&self, outputs: &[Output]) -> Result<Exported, Error> {
        let first = self.results.first().ok_or_else(|| Error::internal("the build has no result"))?;
        let mut exported = Exported {
            image_id: first.image.config.image_id(),
            target: first.image.manifest_descriptor()?,
            names: Vec::new(),
            pushed: Vec::new(),
        };
        for output in outputs {
            let Some(title) = title(output) else { continue };
            let done = as_step(self.events, title, |step| self.one(output, step)).await?;
            if let Some((image_id, target)) = done.identity {
                (exported.image_id, exported.target) = (image_id, target);
                exported.names = done.names;
                exported.pushed.extend(done.pushed);
            }
        }
        Ok(exported)
    }

    async fn one(&self, output: &Output, step: StepId) -> Result<Done, Error> {
        let work =
            Work { store: self.engine.store().clone(), lease: self.lease.clone(), results: self.results.clone() };
        let own = output.clone();
        let mut done = tokio::task::spawn_blocking(move || work.run(&own)).await.map_err(Error::internal)??;
        for warning in std::mem::take(&mut done.warnings) {
            self.events.send(Event::Warning { id: Some(step), message: warning, span: None, url: None });
        }
        self.events.log(step, LogStream::Stdout, std::mem::take(&mut done.note));
        if let (Output::Image { names, push: true, .. }, Some((_, target))) = (output, &done.identity) {
            done.pushed = self.push(names, target, step).await?;
        }
        Ok(done)
    }

    async fn push(
        &self,
        names: &[Reference],
        target: &Descriptor,
        step: StepId,
    ) -> Result<Vec<(Reference, Digest)>, Error> {
        let store = self.engine.store();
        let image = store.images().by_target(&target.digest)?;
        let image = image.ok_or_else(|| Error::internal("the image is not in the store"))?;
        let report = |progress: rbuild_registry::Progress| {
            let (current, total, done) = (progress.current, progress.total, progress.done);
            let item = progress.blob.to_string();
            self.events.send(Event::Progress { id: step, item, current, total, unit: Unit::Bytes, done });
        };
        let mut pushed = Vec::new();
        for name in names {
            let registry = self.engine.registry()?;
            let sent = registry.push(&image, None, name, store, self.lease, &report).await.map_err(|error| {
                let mut error = Error::from(error);
                error.message = format!("failed to push {}: {}", name.canonical(), error.message);
                error
            })?;
            let note = format!("pushing manifest for {}@{} done\n", name.canonical(), sent.digest);
            self.events.log(step, LogStream::Stdout, note);
            pushed.push((name.clone(), sent.digest));
        }
        Ok(pushed)
    }
}

/// BuildKit's names for these steps; `None` is nothing to do.
fn title(output: &Output) -> Option<&'static str> {
    Some(match output {
        Output::Image { .. } => "exporting to image",
        Output::Archive { several: false, .. } => "exporting to docker image format",
        Output::Archive { .. } | Output::Layout { .. } => "exporting to oci image format",
        Output::Files { .. } => "exporting to client directory",
        Output::Tar { .. } => "exporting to client tarball",
        Output::CacheOnly => return None,
    })
}

/// What one output gave.
#[derive(Default)]
struct Done {
    identity: Option<(ImageId, Descriptor)>,
    names: Vec<Reference>,
    pushed: Vec<(Reference, Digest)>,
    note: String,
    warnings: Vec<String>,
}

/// The part of an output that waits for disks.
struct Work {
    store: Store,
    lease: Lease,
    results: Arc<Vec<Built>>,
}

impl Work {
    fn run(&self, output: &Output) -> Result<Done, Error> {
        match output {
            Output::Image { names, packing, .. } => self.image(names, packing),
            Output::Archive { names, dest, packing, .. } => {
                let (mut done, target) = self.pack(packing, Compression::Gzip)?;
                fill(dest, |out| {
                    let mut sink = TarSink::new(out)?;
                    copy(&StoreSource::new(&self.store), &target, names, &mut sink)?;
                    Ok(sink.finish()?)
                })?;
                done.names.clone_from(names);
                Ok(done)
            }
            Output::Layout { names, dest, packing } => {
                if dest.exists() && !dest.is_dir() {
                    return Err(Error::invalid(format!("destination directory {} is a file", dest.display())));
                }
                let (mut done, target) = self.pack(packing, Compression::Gzip)?;
                let mut sink = DirectorySink::new(dest)?;
                copy(&StoreSource::new(&self.store), &target, names, &mut sink)?;
                sink.finish()?;
                done.names.clone_from(names);
                Ok(done)
            }
            Output::Files { dest, split } => {
                let mut done = Done::default();
                for result in self.results.iter() {
                    let own = split.unwrap_or(self.results.len() > 1);
                    let dest = if own { dest.join(directory_of(&result.platform)) } else { dest.clone() };
                    let exported = files::export(self.open(result)?, &dest, result.epoch)?;
                    done.note.push_str(&format!("copying files {}B done\n", exported.bytes));
                    if exported.left_out > 0 {
                        let what = format!("{} devices, pipes and sockets were not exported", exported.left_out);
                        done.warnings.push(what);
                    }
                }
                Ok(done)
            }
            Output::Tar { dest, split } => {
                let result = &self.results[0];
                let prefix = split.unwrap_or(false).then(|| directory_of(&result.platform));
                fill(dest, |out| self.tar(result, prefix, out))?;
                Ok(Done::default())
            }
            Output::CacheOnly => Ok(Done::default()),
        }
    }

    /// The image in the store, as it is unless the caller wants it packed.
    fn image(&self, names: &[Reference], packing: &Packing) -> Result<Done, Error> {
        let (mut done, target) = self.pack(packing, Compression::None)?;
        let Some((image_id, _)) = &done.identity else { return Err(Error::internal("an image without identity")) };
        let new = NewImage { target, config: image_id.0.clone(), names: names.to_vec() };
        self.store.images().put(&new, &self.lease)?;
        done.note = format!("exporting layers done\nwriting image {image_id} done\n");
        for name in names {
            done.note.push_str(&format!("naming to {} done\n", name.canonical()));
        }
        done.names = names.to_vec();
        Ok(done)
    }

    /// Packs every platform's image and writes what describes them.
    fn pack(&self, packing: &Packing, usual: Compression) -> Result<(Done, Descriptor), Error> {
        let packer = Packer { store: &self.store, lease: &self.lease, packing, usual };
        let mut done = Done::default();
        let mut manifests: Vec<(Digest, Descriptor)> = Vec::new();
        for result in self.results.iter() {
            if packing.rewrite_timestamps && result.epoch.is_none() && done.warnings.is_empty() {
                let message = "rewrite-timestamp is specified, but no source-date-epoch was found";
                done.warnings.push(message.to_owned());
            }
            let packed = packer.pack(&result.image, result.base_layers, result.epoch)?;
            let (config, mut manifest) = write_documents(&self.store, &self.lease, &packed)?;
            if self.results.len() > 1 {
                manifest.platform = Some(packed.config.platform());
            }
            manifests.push((config, manifest));
        }
        let host = Platform::host();
        let of_host = self.results.iter().position(|result| host.matches(&result.platform)).unwrap_or(0);
        let config = manifests[of_host].0.clone();
        let target = match manifests.as_slice() {
            [(_, one)] => one.clone(),
            _ => self.index(manifests.into_iter().map(|(_, manifest)| manifest).collect(), packing)?,
        };
        done.identity = Some((ImageId(config), target.clone()));
        Ok((done, target))
    }

    fn index(&self, manifests: Vec<Descriptor>, packing: &Packing) -> Result<Descriptor, Error> {
        let mut index = Index::new(manifests);
        for note in packing.annotations.iter().filter(|note| note.on == Annotated::Index) {
            index.annotations.insert(note.key.clone(), note.value.clone());
        }
        let bytes = serde_json::to_vec(&index).map_err(Error::internal)?;
        let digest = self.store.blobs().put_bytes(&bytes, &self.lease)?;
        Ok(Descriptor::new(MediaType::OciIndex, digest, bytes.len() as u64))
    }

    /// The result's file tree, to be read.
    fn open(&self, result: &Built) -> Result<OwnedFd, Error> {
        match &result.files {
            Some(snapshot) => Ok(rbuild_runtime::mount_detached(&self.store.snapshots().view(snapshot.id())?)?),
            None => context::empty_directory(&self.lease),
        }
    }

    fn tar(&self, result: &Built, prefix: Option<OsString>, out: &mut dyn Write) -> Result<(), Error> {
        if prefix.is_some() {
            return Err(Error::unsupported("platform-split of a tar archive is not supported yet"));
        }
        let root = Root::from_fd(self.open(result)?).map_err(Error::internal)?;
        let Some(epoch) = result.epoch else {
            rbuild_store::layers::write_tree(root, out)?;
            return Ok(());
        };
        let (reader, writer) = std::io::pipe().map_err(Error::internal)?;
        std::thread::scope(|scope| {
            let written = scope.spawn(move || rbuild_store::layers::write_tree(root, writer));
            let changed = change_times(reader, out, Times::All(epoch)).map(drop);
            match written.join() {
                // A writer that fails because nobody reads any more is not what went wrong.
                Ok(Err(error)) if changed.is_ok() => Err(error.into()),
                Ok(_) => changed,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

/// BuildKit's name for a platform's directory.
fn directory_of(platform: &Platform) -> OsString {
    platform.to_string().replace('/', "_").into()
}
