//! What becomes of a build's result: each output that was asked for, in turn.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use rbuild_frontend::Diagnostic;
use rbuild_oci::{Compression, Descriptor, Digest, ImageId, Platform, Reference};
use rbuild_registry::{LayerSource, PackedLayer};
use rbuild_solver::{CacheKey, Event, Events, LogStream, StepId, Unit};
use rbuild_store::archive::{DirectorySink, TarSink};
use rbuild_store::layers::compress::DEFAULT_LEVEL;
use rbuild_store::transfer::{StoreSource, copy};
use rbuild_store::{Lease, NewImage, Root, Snapshot, Store};
use rustix::fd::OwnedFd;

use super::archive::fill;
use super::files;
use super::image::Described;
use super::tar;
use crate::attest::Testimony;
use crate::attest::files::{Written, written};
use crate::context;
use crate::engine::Engine;
use crate::error::Error;
use crate::exchange::Lying;
use crate::output::{Annotated, Annotation, FilesMode, ImageOutput, Keep, Output, Push};
use crate::remote::as_step;
use crate::request::BuildRequest;

/// A finished result for one platform.
pub(crate) struct Built {
    pub(crate) platform: Platform,
    pub(crate) image: Described,
    /// How many layers are the base image's.
    pub(crate) base_layers: usize,
    /// `None` is an empty file tree, or one that lies elsewhere.
    pub(crate) files: Option<Snapshot>,
    /// Where it lies, when no output needs its files here.
    pub(crate) lying: Option<Lying>,
    pub(crate) epoch: Option<i64>,
    /// Keys of all steps, and of the final image's, for caches elsewhere.
    pub(crate) cached: (Vec<CacheKey>, Vec<CacheKey>),
    /// What is to be said about it.
    pub(crate) testimony: Testimony,
    /// What there is to say about the layers that were made just now.
    pub(crate) advice: Vec<Diagnostic>,
}

impl Built {
    /// The file tree, to be read.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub(crate) fn open(&self, store: &Store, lease: &Lease) -> Result<OwnedFd, Error> {
        match &self.files {
            Some(snapshot) => Ok(rbuild_runtime::mount_detached(&store.snapshots().view(snapshot.id())?)?),
            None => context::empty_directory(lease),
        }
    }
}

/// What the outputs gave.
#[derive(Debug, Clone)]
pub(crate) struct Exported {
    pub(crate) image_id: ImageId,
    /// The manifest or index.
    pub(crate) target: Descriptor,
    pub(crate) names: Vec<Reference>,
    /// Whether the store has the image.
    pub(crate) kept: bool,
    pub(crate) pushed: Vec<(Reference, Digest)>,
}

/// The outputs of a request; without any, the image goes to the store under its tags.
pub(crate) fn outputs(request: &BuildRequest) -> Vec<Output> {
    if request.outputs.is_empty() {
        return vec![Output::Image(ImageOutput { names: request.tags.clone(), ..ImageOutput::default() })];
    }
    request.outputs.clone()
}

/// How layers made here are to be compressed, as far as that can be said before they are there: as the first output wants
/// them that has them travel. Those whose times are still to be changed cannot be compressed yet.
pub(crate) fn ahead(outputs: &[Output], has_epoch: bool) -> Option<(Compression, i32)> {
    outputs.iter().find_map(|output| {
        let (packing, usual) = match output {
            Output::Image(image) => (&image.packing, usual(image)),
            Output::Archive { packing, .. } | Output::Layout { packing, .. } => (packing, Compression::Gzip),
            Output::Files { .. } | Output::Tar { .. } | Output::CacheOnly => return None,
        };
        let how = packing.compression.unwrap_or(usual);
        let waits = packing.rewrite_timestamps && has_epoch;
        (how != Compression::None && !waits).then(|| (how, packing.level.unwrap_or(DEFAULT_LEVEL)))
    })
}

/// Whether an output can do with layers that lie elsewhere, compressed as they are. The first `base` are the base image's.
pub(crate) fn takes_from_afar(output: &Output, layers: &[PackedLayer], base: usize, has_epoch: bool) -> bool {
    let (packing, usual) = match output {
        Output::Image(ImageOutput { push: Some(_), keep: Keep::IfHere | Keep::Never, packing, .. }) => (packing, None),
        Output::Archive { packing, .. } | Output::Layout { packing, .. } => (packing, Some(Compression::Gzip)),
        Output::CacheOnly => return true,
        Output::Image(_) | Output::Files { .. } | Output::Tar { .. } => return false,
    };
    if packing.level.is_some() || packing.rewrite_timestamps && has_epoch {
        return false;
    }
    // What the caller does not say, any registry takes as it is.
    let wanted = packing.compression.or(usual.filter(|_| packing.force));
    let changed = if packing.force { layers } else { &layers[base.min(layers.len())..] };
    wanted.is_none_or(|how| changed.iter().all(|layer| layer.blob.media_type.layer_compression() == Some(how)))
}

/// Whether the store knows one of the names that an output is to give: it must not go on to mean something older.
///
/// # Errors
/// The store cannot be read.
pub(crate) fn is_known(output: &Output, store: &Store) -> Result<bool, Error> {
    let Output::Image(ImageOutput { names, push: Some(push), keep: Keep::IfHere, .. }) = output else {
        return Ok(false);
    };
    for name in names.iter().filter(|_| !push.by_digest) {
        if store.images().get(name)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How the layers of an image in the store are compressed when nobody says. A manifest whose layers are compressed only
/// when it is pushed gets whatever types suit registries best.
fn usual(output: &ImageOutput) -> Compression {
    match output.push.is_some() && output.packing.media_types.is_some() {
        true => Compression::Gzip,
        false => Compression::None,
    }
}

/// Says before a build what could not be done after it.
///
/// # Errors
/// An output that the request's platforms or attestations rule out.
pub(crate) fn check(outputs: &[Output], request: &BuildRequest) -> Result<(), Error> {
    let platforms = request.platforms.len();
    let has_index = platforms > 1 || !request.attestations.is_empty();
    for output in outputs {
        let annotations: &[Annotation] = match output {
            Output::Image(ImageOutput { packing, .. })
            | Output::Archive { packing, .. }
            | Output::Layout { packing, .. } => &packing.annotations,
            _ => &[],
        };
        for note in annotations.iter().filter(|n| matches!(n.on, Annotated::Index | Annotated::IndexDescriptor)) {
            if !has_index {
                return Err(Error::invalid("index annotations not supported for single platform export"));
            }
            if let Some(platform) = &note.platform {
                return Err(Error::invalid(format!(
                    "annotation {} is for an index, which is for all platforms, not for {platform} alone",
                    note.key
                )));
            }
        }
        match output {
            Output::Image(ImageOutput { names, push: Some(_), .. }) if names.is_empty() => {
                return Err(Error::invalid("tag is needed when pushing to registry"));
            }
            Output::Archive { several: false, .. } if has_index => {
                return Err(Error::invalid("docker exporter does not currently support exporting manifest lists")
                    .with_hint("type=oci does, and so does the store"));
            }
            Output::Files { split: Some(false), .. } | Output::Tar { split: Some(false), .. } if platforms > 1 => {
                return Err(Error::invalid(
                    "several platforms cannot go to one place without platform-split: their files would mix",
                ));
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
            kept: false,
            pushed: Vec::new(),
        };
        for output in outputs {
            let Some(title) = title(output) else { continue };
            let done = as_step(self.events, title, |step| self.one(output, step)).await?;
            if let Some((image_id, target)) = done.identity {
                (exported.image_id, exported.target) = (image_id, target);
                exported.names = done.names;
                exported.kept |= done.kept;
                exported.pushed.extend(done.pushed);
            }
        }
        Ok(exported)
    }

    async fn one(&self, output: &Output, step: StepId) -> Result<Done, Error> {
        if matches!(output, Output::Archive { .. } | Output::Layout { .. }) {
            let report = |progress| self.report(step, progress);
            for lying in self.results.iter().filter_map(|result| result.lying.as_ref()) {
                lying.bring_packed(self.engine.store(), self.lease, &report).await?;
            }
        }
        let work =
            Work { store: self.engine.store().clone(), lease: self.lease.clone(), results: self.results.clone() };
        let own = output.clone();
        let mut done = tokio::task::spawn_blocking(move || work.run(&own)).await.map_err(Error::internal)??;
        for warning in std::mem::take(&mut done.warnings) {
            self.events.log(step, LogStream::Stderr, format!("WARNING: {warning}\n"));
            self.events.send(Event::Warning { id: Some(step), message: warning, span: None, url: None });
        }
        self.events.log(step, LogStream::Stdout, std::mem::take(&mut done.note));
        if let (Output::Image(ImageOutput { names, push: Some(push), .. }), Some((_, target))) =
            (output, &done.identity)
        {
            done.pushed = self.push(names, *push, target, step).await?;
        }
        Ok(done)
    }

    async fn push(
        &self,
        names: &[Reference],
        how: Push,
        target: &Descriptor,
        step: StepId,
    ) -> Result<Vec<(Reference, Digest)>, Error> {
        let store = self.engine.store();
        let report = |progress| self.report(step, progress);
        let lying = self.results.iter().filter_map(|result| result.lying.as_ref());
        let away: HashMap<Digest, LayerSource> = lying.flat_map(Lying::sources).collect();
        let mut pushed = Vec::new();
        for name in names {
            let registry = match how.insecure {
                true => self.engine.registry_believing(name.registry())?,
                false => self.engine.registry()?.clone(),
            };
            let name = if how.by_digest { name.without_tag() } else { name.clone() };
            let sent = registry.push_target(target, away.clone(), &name, (store, self.lease), &report).await;
            let sent = sent.map_err(|error| {
                let mut error = Error::from(error);
                error.message = format!("failed to push {}: {}", name.canonical(), error.message);
                error
            })?;
            let note = format!("pushing manifest for {}@{} done\n", name.canonical(), sent.digest);
            self.events.log(step, LogStream::Stdout, note);
            pushed.push((name, sent.digest));
        }
        Ok(pushed)
    }

    fn report(&self, step: StepId, progress: rbuild_registry::Progress) {
        let (current, total, done) = (progress.current, progress.total, progress.done);
        let item = progress.blob.to_string();
        self.events.send(Event::Progress { id: step, item, current, total, unit: Unit::Bytes, done });
    }
}

/// BuildKit's names for these steps; `None` is nothing to do.
fn title(output: &Output) -> Option<&'static str> {
    Some(match output {
        Output::Image(_) => "exporting to image",
        Output::Archive { several: false, .. } => "exporting to docker image format",
        Output::Archive { .. } | Output::Layout { .. } => "exporting to oci image format",
        Output::Files { .. } => "exporting to client directory",
        Output::Tar { .. } => "exporting to client tarball",
        Output::CacheOnly => return None,
    })
}

/// What one output gave.
#[derive(Default)]
pub(super) struct Done {
    pub(super) identity: Option<(ImageId, Descriptor)>,
    pub(super) names: Vec<Reference>,
    /// Whether the store has it as an image.
    kept: bool,
    pushed: Vec<(Reference, Digest)>,
    pub(super) note: String,
    pub(super) warnings: Vec<String>,
}

/// The part of an output that waits for disks.
pub(super) struct Work {
    pub(super) store: Store,
    pub(super) lease: Lease,
    pub(super) results: Arc<Vec<Built>>,
}

impl Work {
    fn run(&self, output: &Output) -> Result<Done, Error> {
        match output {
            Output::Image(image) => self.image(image),
            Output::Archive { names, dest, packing, .. } => {
                let (mut done, target) = self.pack(packing, names, Compression::Gzip)?;
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
                let (mut done, target) = self.pack(packing, names, Compression::Gzip)?;
                let mut sink = DirectorySink::new(dest)?;
                copy(&StoreSource::new(&self.store), &target, names, &mut sink)?;
                sink.finish()?;
                done.names.clone_from(names);
                Ok(done)
            }
            Output::Files { dest, split, mode } => self.files(dest, self.is_split(*split), *mode),
            Output::Tar { dest, split } => {
                let split = self.is_split(*split);
                fill(dest, |out| self.tar(split, out))?;
                Ok(Done::default())
            }
            Output::CacheOnly => Ok(Done::default()),
        }
    }

    /// Whether each platform's files get a directory of their own.
    fn is_split(&self, asked: Option<bool>) -> bool {
        asked.unwrap_or(self.results.len() > 1)
    }

    /// The image in the store, as it is unless the caller wants it packed.
    fn image(&self, output: &ImageOutput) -> Result<Done, Error> {
        let (mut done, target) = self.pack(&output.packing, &output.names, usual(output))?;
        let Some((image_id, _)) = &done.identity else { return Err(Error::internal("an image without identity")) };
        let by_digest = output.push.is_some_and(|push| push.by_digest);
        if let Some(why) = self.stays_out(output) {
            done.note = format!("exporting layers done\n{why}\n");
            done.names.clone_from(&output.names);
            return Ok(done);
        }
        let mut names = if by_digest { Vec::new() } else { output.names.clone() };
        let named = |name: &Reference| name.without_tag().with_digest(target.digest.clone());
        if output.canonical {
            names.extend(output.names.iter().map(named));
        }
        if output.names.is_empty() {
            names.extend(output.dangling.iter().map(named));
        }
        let new = NewImage { target: target.clone(), config: image_id.0.clone(), names: names.clone() };
        self.store.images().put(&new, &self.lease)?;
        done.note = format!("exporting layers done\nwriting image {image_id} done\n");
        for name in &names {
            done.note.push_str(&format!("naming to {} done\n", name.canonical()));
        }
        done.names = if by_digest { output.names.clone() } else { names };
        done.kept = true;
        Ok(done)
    }

    /// Why an image does not go into the store, if it does not.
    fn stays_out(&self, output: &ImageOutput) -> Option<String> {
        if output.keep == Keep::Never {
            return Some("not kept in the store, as asked".to_owned());
        }
        let lying = self.results.iter().find_map(|result| result.lying.as_ref())?;
        Some(format!("not kept in the store: its layers stay at {} (--load brings them)", lying.place()))
    }

    fn files(&self, dest: &Path, split: bool, mode: FilesMode) -> Result<Done, Error> {
        let mut done = Done::default();
        for result in self.results.iter() {
            let dest = if split { dest.join(directory_of(&result.platform)) } else { dest.to_owned() };
            let more = self.statements(result, split)?;
            let exported = files::export(result.open(&self.store, &self.lease)?, &dest, result.epoch, mode)?;
            for file in more {
                files::put(&dest, &file.name, &file.content, result.epoch)?;
            }
            done.note.push_str(&format!("copying files {}B done\n", exported.bytes));
            if exported.removed > 0 {
                done.note.push_str(&format!("removing {} files and directories done\n", exported.removed));
            }
            if exported.left_out > 0 {
                let what = format!("{} devices, pipes and sockets were not exported", exported.left_out);
                done.warnings.push(what);
            }
        }
        Ok(done)
    }

    fn tar(&self, split: bool, out: &mut dyn Write) -> Result<(), Error> {
        let prefixes: Vec<OsString> = self.results.iter().map(|result| directory_of(&result.platform)).collect();
        let mut parts = Vec::new();
        for (result, prefix) in self.results.iter().zip(&prefixes) {
            let tree = Root::from_fd(result.open(&self.store, &self.lease)?).map_err(Error::internal)?;
            let more = self.statements(result, split)?;
            parts.push(tar::Part { tree, prefix: split.then_some(prefix.as_os_str()), epoch: result.epoch, more });
        }
        tar::write(parts, out)
    }

    /// The statements about a result, as files beside its own.
    fn statements(&self, result: &Built, split: bool) -> Result<Vec<Written>, Error> {
        if result.testimony.is_empty() {
            return Ok(Vec::new());
        }
        let root = Root::from_fd(result.open(&self.store, &self.lease)?).map_err(Error::internal)?;
        let predicates = result.testimony.predicates(&result.image.manifest.layers);
        // In one directory with others, their names must differ.
        let platform = (self.results.len() > 1 && !split).then_some(&result.platform);
        written(&predicates, &root, platform)
    }
}

/// BuildKit's name for a platform's directory.
fn directory_of(platform: &Platform) -> OsString {
    platform.to_string().replace('/', "_").into()
}
