//! One build, from a request to an image in the store.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rbuild_executor::sources::git::GitOptions;
use rbuild_executor::{ContextCopies, DeviceSettings, ExecSettings, Executor, ExecutorError, Value, brought};
use rbuild_frontend::ignore::IgnoreFile;
use rbuild_frontend::{Diagnostic, Lowered, lint};
use rbuild_graph::Edge;
use rbuild_graph::ops::Network;
use rbuild_graph::{BuildGraph, VertexId};
use rbuild_oci::{Platform, Reference, limits};
use rbuild_solver::{Build, CacheKey, Events, LogStream, Outcome, SolveError, StepId, StepKind};
use rbuild_store::{Event, EventKind, Lease, Root, Snapshot};

use crate::attest::materials::{Material, Witness};
use crate::attest::provenance::{Asked, Evidence, Graph, ProvenanceOptions};
use crate::attest::{Testimony, sbom};
use crate::context::{self, Directory, LocalSession};
use crate::emulation;
use crate::engine::{Engine, JOBS};
use crate::error::{Error, FailedStep, Kind, SourceText};
use crate::exchange::{Exchange, Lying};
use crate::export::image::{Described, Finished};
use crate::export::results::{self, Built, Exported, Exporter};
use crate::export::squash::{self, Kept, Squash};
use crate::frontends::dockerfile::{lower_options, understand};
use crate::history::recording::Recording;
use crate::layers::{Ahead, LayerHasher};
use crate::lending::Lending;
use crate::output::Output;
use crate::remote::{self, as_step};
use crate::request::{BuildContext, BuildRequest, BuildResult, DockerfileSource};
use crate::resolve::BaseImages;

/// Processes one RUN step may have at a time: enough for any compiler, too few for a fork bomb to take the machine.
const PIDS_LIMIT: i64 = 32_768;
/// Names that are tried when the request names no Dockerfile.
const USUAL_NAMES: [&str; 3] = ["Dockerfile", "dockerfile", "Containerfile"];

impl Engine {
    /// Builds an image and gives it its names. Dropping the future cancels the build; nothing half-made stays visible.
    ///
    /// # Errors
    /// [`Kind::Invalid`] with every mistake of the Dockerfile, [`Kind::Failed`] with the step and the end of its log, and
    /// what images, registries and the store say.
    pub async fn build(&self, request: BuildRequest, events: Events) -> Result<BuildResult, Error> {
        let lease = self.store().lease("build")?;
        let recording = Recording::start(self.store(), &lease, &request);
        let events = recording.observe(events);
        let built = self.build_recorded(request, lease, events, &recording).await;
        let build = recording.id().to_owned();
        recording.end(built.as_ref().err());
        if let Ok(result) = &built {
            self.tell_built(&build, result);
        }
        built.map_err(|error| Error { build: Some(build), ..error })
    }

    /// Notes in the journal of events that there is an image, and its names.
    fn tell_built(&self, build: &str, result: &BuildResult) {
        let journal = self.store().events();
        let id = result.image_id.0.to_string();
        let names = result.names.iter().filter(|_| result.kept);
        let names: Vec<String> = names.map(Reference::familiar).collect();
        let built = Event::new(EventKind::Builder, "build", build).with("image", id.as_str());
        journal.note(&built.with("name", names.join(",")));
        for name in names {
            journal.note(&Event::new(EventKind::Image, "tag", id.as_str()).with("name", name));
        }
    }

    async fn build_recorded(
        &self,
        request: BuildRequest,
        lease: Lease,
        events: Events,
        recording: &Recording,
    ) -> Result<BuildResult, Error> {
        let outputs = results::outputs(&request);
        results::check(&outputs, &request)?;
        let mut record = Record::of(&request, &lease);
        let (request, brought) = remote::bring(self, request, &lease, &events).await?;
        record.brought(brought.context, brought.materials);
        let inputs = Inputs::load(&request, &lease, &events)?;
        let (file, parsed) = rbuild_frontend::parse(inputs.source.text.as_bytes(), &inputs.source.name);
        let images = Arc::new(BaseImages::new(self.clone(), lease.clone(), request.pull, brought.images));
        let patterns = inputs.ignore.patterns().map(str::to_owned).collect();
        let mut options = lower_options(&request, patterns);
        options.context_date = remote::context_date(&request, brought.modified, &inputs.source.text);
        let understood = understand(&file, &options, &inputs.source, parsed, &images, &events).await?;
        recording.arguments(&inputs.source.text);
        warn(&events, &understood.warnings);
        let (git, _agent) = (brought.git, brought.agent);
        let exchange = Exchange::open(self, &request, &lease, &events)?;
        let source = inputs.source.clone();
        let job = Job { engine: self, request: &request, lease, events, source, git, record, exchange, recording };
        let (mut result, advice) = job.run(inputs, understood.lowered, images, &outputs).await?;
        let advice = lint::wanted(&file, &options, advice);
        warn(&job.events, &advice);
        result.warnings = understood.warnings;
        result.warnings.extend(advice);
        Ok(result)
    }
}

fn warn(events: &Events, warnings: &[Diagnostic]) {
    for warning in warnings.iter().filter(|diagnostic| !diagnostic.is_error()) {
        events.send(rbuild_solver::Event::Warning {
            id: None,
            message: warning.message.clone(),
            span: warning.span,
            url: warning.url.map(str::to_owned),
        });
    }
}

/// What the client of a build gave: its files, its Dockerfile, its ignore file.
pub(crate) struct Inputs {
    root: OwnedFd,
    pub(crate) source: SourceText,
    pub(crate) ignore: IgnoreFile,
}

impl Inputs {
    pub(crate) fn load(request: &BuildRequest, lease: &Lease, events: &Events) -> Result<Inputs, Error> {
        let root = match &request.context {
            BuildContext::Directory(path) | BuildContext::Unpacked(path) => context::open_directory(path)?,
            _ => context::empty_directory(lease)?,
        };
        let step =
            events.step("[internal] load build definition from Dockerfile", Vec::new(), None, StepKind::Internal);
        events.started(step);
        let loaded = Inputs::dockerfile(request, &root);
        let outcome = match &loaded {
            Ok(loaded) => {
                let note = format!("transferring dockerfile: {}B done\n", loaded.text.len());
                events.log(step, LogStream::Stdout, note);
                Outcome::Done
            }
            Err(error) => Outcome::Failed(error.message.clone()),
        };
        events.finished(step, outcome);
        let loaded = loaded?;
        let ignore = match (&request.ignore_file, &request.context) {
            (Some(path), _) => {
                Inputs::ignore_file(&root, Some(context::read_host_file(path, limits::DOCKERFILE)?), events)?
            }
            (None, BuildContext::Unpacked(_)) => IgnoreFile::default(),
            (None, _) => Inputs::ignore_file(&root, loaded.ignore, events)?,
        };
        let text = String::from_utf8(loaded.text).map_err(|error| {
            let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
            Error::invalid(format!("{}:{line}: the line is not valid UTF-8", loaded.name))
                .with_hint("save the file as UTF-8")
        })?;
        Ok(Inputs { root, source: SourceText { name: loaded.name, text }, ignore })
    }

    /// The ignore file, as a step of its own: what it hides is the commonest reason for a file that is "not found".
    fn ignore_file(root: &OwnedFd, beside: Option<Vec<u8>>, events: &Events) -> Result<IgnoreFile, Error> {
        let step = events.step("[internal] load .dockerignore", Vec::new(), None, StepKind::Internal);
        events.started(step);
        let loaded = context::ignore_file(root, beside);
        let outcome = loaded.as_ref().map_or_else(|error| Outcome::Failed(error.message.clone()), |_| Outcome::Done);
        events.finished(step, outcome);
        loaded
    }

    fn dockerfile(request: &BuildRequest, root: &OwnedFd) -> Result<Loaded, Error> {
        match (&request.dockerfile, &request.context) {
            (DockerfileSource::Text(text), _) => {
                Ok(Loaded { name: "Dockerfile".to_owned(), text: text.clone(), ignore: None })
            }
            (DockerfileSource::File(Some(path)), BuildContext::Unpacked(_)) => {
                match context::read_file(root, path, limits::DOCKERFILE)? {
                    Some(text) => Ok(Loaded { name: path.display().to_string(), text, ignore: None }),
                    None => Err(context::missing_dockerfile(path)),
                }
            }
            (DockerfileSource::File(Some(path)), _) => Loaded::from_host(path),
            (DockerfileSource::File(None), BuildContext::Directory(dir) | BuildContext::Unpacked(dir)) => {
                for name in USUAL_NAMES {
                    if let Some(text) = context::read_file(root, Path::new(name), limits::DOCKERFILE)? {
                        let ignore = PathBuf::from(format!("{name}.dockerignore"));
                        let ignore = context::read_file(root, &ignore, limits::DOCKERFILE)?;
                        return Ok(Loaded { name: name.to_owned(), text, ignore });
                    }
                }
                Err(context::missing_dockerfile(&dir.join("Dockerfile")))
            }
            (DockerfileSource::File(None) | DockerfileSource::Remote(_), _) => {
                Err(Error::invalid("a build without a context needs the Dockerfile itself"))
            }
        }
    }
}

struct Loaded {
    name: String,
    text: Vec<u8>,
    /// Of `<Dockerfile>.dockerignore`.
    ignore: Option<Vec<u8>>,
}

impl Loaded {
    fn from_host(path: &Path) -> Result<Loaded, Error> {
        let text = context::read_host_file(path, limits::DOCKERFILE)?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(".dockerignore");
        let beside = PathBuf::from(beside);
        let ignore = if beside.exists() { Some(context::read_host_file(&beside, limits::DOCKERFILE)?) } else { None };
        let name = path.file_name().map_or_else(|| "Dockerfile".into(), |name| name.to_string_lossy().into_owned());
        Ok(Loaded { name, text, ignore })
    }
}

/// What is written down for provenance, if anybody wants some.
struct Record(Option<Recorded>);

struct Recorded {
    asked: Asked,
    context: Option<Material>,
    materials: Vec<Material>,
    started: SystemTime,
    build: String,
}

impl Record {
    fn of(request: &BuildRequest, lease: &Lease) -> Record {
        let wanted = request.attestations.provenance.is_some() || request.report.is_some();
        Record(wanted.then(|| Recorded {
            asked: Asked::of(request),
            context: None,
            materials: Vec::new(),
            started: SystemTime::now(),
            build: lease.id().to_string(),
        }))
    }

    fn is_wanted(&self) -> bool {
        self.0.is_some()
    }

    fn brought(&mut self, context: Option<Material>, materials: Vec<Material>) {
        if let Some(recorded) = &mut self.0 {
            (recorded.context, recorded.materials) = (context, materials);
        }
    }

    fn evidence(&self, lowered: &Lowered, witness: &Witness, source: &SourceText) -> Evidence {
        let roots: Vec<Edge> = lowered.result.into_iter().collect();
        let vertices = lowered.graph.reachable(&roots);
        let recorded = self.0.as_ref();
        let mut materials = witness.materials(&lowered.graph, &vertices);
        materials
            .extend(lowered.base.iter().map(|base| Material::image(&base.reference, &base.platform, &base.digest)));
        materials.extend(recorded.iter().flat_map(|recorded| recorded.materials.clone()));
        // A date that the caller fixed stands for a result that does not depend on when it was made.
        let run = recorded.filter(|_| lowered.source_date_epoch.is_none());
        Evidence {
            asked: recorded.map(|recorded| recorded.asked.clone()).unwrap_or_default(),
            context: recorded.and_then(|recorded| recorded.context.clone()),
            materials,
            dockerfile: source.clone(),
            graph: Graph::of(&lowered.graph, lowered.result, &vertices),
            run: run.map(|recorded| (recorded.build.clone(), recorded.started)),
        }
    }
}

/// Provenance for each platform.
type Reports = Vec<(Platform, serde_json::Value)>;

/// A build in progress.
struct Job<'a> {
    engine: &'a Engine,
    request: &'a BuildRequest,
    lease: Lease,
    events: Events,
    source: SourceText,
    /// The caches elsewhere, when the request names any.
    exchange: Option<Exchange>,
    git: Option<GitOptions>,
    record: Record,
    recording: &'a Recording,
}

impl Job<'_> {
    /// The result, still without warnings, and what there is to advise about its layers.
    async fn run(
        &self,
        inputs: Inputs,
        lowered: Vec<Lowered>,
        images: Arc<BaseImages>,
        outputs: &[Output],
    ) -> Result<(BuildResult, Vec<Diagnostic>), Error> {
        let executor = Arc::new(self.executor(inputs, images.clone())?);
        loop {
            let done = self.attempt(&executor, &lowered, &images, outputs).await;
            match (done, &self.exchange) {
                (Err(_), Some(exchange)) if exchange.leaves_out_lost() => {}
                (done, _) => {
                    let (Exported { image_id, target, names, kept, pushed }, advice, provenance) = done?;
                    let source_text = self.source.clone();
                    let notes = self.exchange.as_ref().map(Exchange::notes).unwrap_or_default();
                    let (build, warnings) = (self.recording.id().to_owned(), Vec::new());
                    let result = BuildResult {
                        build,
                        image_id,
                        target,
                        names,
                        kept,
                        pushed,
                        warnings,
                        notes,
                        source_text,
                        provenance,
                    };
                    return Ok((result, advice));
                }
            }
        }
    }

    /// One try. There is another only when a cache elsewhere did not keep its word.
    async fn attempt(
        &self,
        executor: &Arc<Executor>,
        lowered: &[Lowered],
        images: &BaseImages,
        outputs: &[Output],
    ) -> Result<(Exported, Vec<Diagnostic>, Reports), Error> {
        let solver = match &self.exchange {
            Some(exchange) => exchange.solver(self.request.jobs.unwrap_or(JOBS))?,
            None => self.engine.solver(self.request.jobs)?,
        };
        let build = solver.build(self.events.clone()).named(self.lease.id().to_string());
        // Where the result is only cached, its files are not needed.
        let needs_files =
            self.request.attestations.sbom || outputs.iter().any(|output| !matches!(output, Output::CacheOnly));
        let platforms = lowered.iter().map(|lowered| self.platform(lowered, executor, &build, images, needs_files));
        let results = Arc::new(futures::future::try_join_all(platforms).await?);
        let cached: (Vec<_>, Vec<_>) = results.iter().map(|result| result.cached.clone()).unzip();
        let provenance = self.reports(&results);
        let advice = advice_of(&results);
        let exporter = Exporter { engine: self.engine, lease: &self.lease, events: &self.events, results };
        let exported = exporter.all(outputs).await?;
        if let Some(exchange) = &self.exchange {
            exchange.export(&cached.0.concat(), &cached.1.concat()).await?;
        }
        Ok((exported, advice, provenance))
    }

    /// The provenance that the caller alone wants to see.
    fn reports(&self, results: &[Built]) -> Reports {
        let Some(mode) = self.request.report else { return Vec::new() };
        let usual = ProvenanceOptions { mode, ..ProvenanceOptions::default() };
        let options = self.request.attestations.provenance.as_ref().unwrap_or(&usual);
        let options = ProvenanceOptions { mode, ..options.clone() };
        let of = |built: &Built| {
            let evidence = built.testimony.evidence.as_ref()?;
            Some((built.platform.clone(), evidence.predicate(&options, &built.image.manifest.layers)))
        };
        results.iter().filter_map(of).collect()
    }

    /// Solves what one platform needs and describes its image.
    async fn platform(
        &self,
        lowered: &Lowered,
        executor: &Arc<Executor>,
        build: &Build<Value>,
        images: &BaseImages,
        needs_files: bool,
    ) -> Result<Built, Error> {
        let base_layers = match &lowered.base {
            Some(base) => images.layers(&base.reference, &base.platform).await?,
            None => Vec::new(),
        };
        let outputs = results::outputs(self.request);
        let travelling = results::ahead(&outputs, lowered.source_date_epoch.is_some());
        let ahead = travelling.map(|(how, level)| Ahead { how, level, lease: self.lease.clone() });
        let hasher = LayerHasher::new(self.engine.store().clone(), base_layers.len(), ahead);
        let graph = Arc::new(lowered.graph.clone());
        emulation::check(&graph)?;
        permitted(executor, &graph, lowered.result).map_err(|error| failure(error, Some(&self.source)))?;
        let steps: HashSet<String> = lowered
            .history
            .iter()
            .filter_map(|step| step.edge)
            .map(|edge| graph.vertex(edge.vertex).meta.name.clone())
            .collect();
        if let Some(exchange) = &self.exchange {
            exchange.want(&steps);
        }
        let witness = self.record.is_wanted().then(Witness::default);
        let factory = executor.factory();
        let factory = witness.as_ref().map_or(factory.clone(), |witness| witness.wrap(factory));
        let ops = hasher.wrap(factory, steps);
        let edges: Vec<_> = lowered.result.into_iter().collect();
        let solved = build.solve(graph.clone(), &edges, ops.clone()).await;
        let reports = build.reports(&graph);
        if let (Err(_), Some(exchange)) = (&solved, &self.exchange) {
            exchange.keep_evidence(&graph, &reports).await;
        }
        self.recording.keys(&graph, &reports, solved.is_err());
        let result = match solved {
            Ok(solved) => solved.into_iter().next().map_or(Value::Scratch, |solved| solved.value),
            Err(error) => return Err(failure(error, Some(&self.source))),
        };
        let lying = self.lying(&result, &outputs, base_layers.len(), lowered.source_date_epoch.is_some())?;
        let result = match needs_files && lying.is_none() {
            true => brought(result).await.map_err(|error| Error::new(Kind::Unavailable, error.to_string()))?,
            false => result,
        };
        let advice = hasher.settle().await;
        let (files, below, epoch) = (result.snapshot().cloned(), base_layers.len(), lowered.source_date_epoch);
        let evidence = witness.map(|witness| self.record.evidence(lowered, &witness, &self.source));
        let store = self.engine.store();
        let finished = Finished { store, build, graph: graph.clone(), ops, lowered, base_layers, result, epoch };
        let mut image = finished.describe(self.exchange.is_some()).await?;
        let cached = match &self.exchange {
            Some(exchange) => {
                let keys = cached_keys(build, &graph, lowered);
                let layers = finished.packed(&image);
                image.carry(exchange.inline(&keys.1, &layers).await?);
                keys
            }
            None => Default::default(),
        };
        let (image, files, below) = self.squashed(image, files, below, lowered).await?;
        let provenance = self.request.attestations.provenance.clone();
        let testimony = Testimony { evidence, provenance, packages: None };
        let platform = lowered.platform.clone();
        let base_layers = below;
        let mut built = Built { platform, image, base_layers, files, lying, epoch, cached, testimony, advice };
        if self.request.attestations.sbom {
            built = as_step(&self.events, "[internal] list packages for the SBOM", |step| self.scanned(built, step))
                .await?;
        }
        Ok(built)
    }

    /// Where the result lies, if all `outputs` can take it from there as it is.
    fn lying(
        &self,
        result: &Value,
        outputs: &[Output],
        base_layers: usize,
        has_epoch: bool,
    ) -> Result<Option<Lying>, Error> {
        let lying = self.exchange.as_ref().and_then(|exchange| exchange.lying(result));
        let Some(lying) = lying.filter(|_| self.request.squash.is_none() && !self.request.attestations.sbom) else {
            return Ok(None);
        };
        for output in outputs {
            if !results::takes_from_afar(output, &lying.layers, base_layers, has_epoch)
                || results::is_known(output, self.engine.store())?
            {
                return Ok(None);
            }
        }
        Ok(Some(lying))
    }

    /// The image with the layers made one that are to be one, its files, and how many layers are the base image's then.
    async fn squashed(
        &self,
        image: Described,
        files: Option<Snapshot>,
        below: usize,
        lowered: &Lowered,
    ) -> Result<(Described, Option<Snapshot>, usize), Error> {
        let (Some(squash), Some(snapshot)) = (self.request.squash, files.clone()) else {
            return Ok((image, files, below));
        };
        let kept = match squash {
            Squash::New => {
                Kept { layers: below, history: lowered.base.as_ref().map_or(0, |base| base.config.history.len()) }
            }
            Squash::All => Kept { layers: 0, history: 0 },
        };
        as_step(&self.events, "[internal] squash layers", |_| async {
            let (store, lease) = (self.engine.store().clone(), self.lease.clone());
            let work = move || squash::squash(&store, &lease, image, snapshot, kept);
            let (image, files) = tokio::task::spawn_blocking(work).await.map_err(Error::internal)??;
            Ok((image, Some(files), kept.layers))
        })
        .await
    }

    /// The result with the list of its packages.
    async fn scanned(&self, mut built: Built, step: StepId) -> Result<Built, Error> {
        let (store, lease) = (self.engine.store().clone(), self.lease.clone());
        let work = move || {
            let root = Root::from_fd(built.open(&store, &lease)?).map_err(Error::internal)?;
            let created = built.image.config.created.clone().unwrap_or_default();
            let scanned = sbom::scan(&root, &created)?;
            built.testimony.packages = Some(scanned.document);
            Ok::<_, Error>((built, scanned.warning))
        };
        let (built, warning) = tokio::task::spawn_blocking(work).await.map_err(Error::internal)??;
        if let Some(warning) = warning {
            let (message, id) = (warning.to_owned(), Some(step));
            self.events.send(rbuild_solver::Event::Warning { id, message, span: None, url: None });
        }
        Ok(built)
    }

    fn executor(&self, inputs: Inputs, images: Arc<BaseImages>) -> Result<Executor, Error> {
        let id = session_id(&self.lease);
        let indexes = self.engine.store().root().join("contexts");
        let stays = matches!(self.request.context, BuildContext::Directory(_));
        let main = Directory::new(inputs.root, inputs.ignore, stays.then_some(indexes.as_path()));
        let lending = Lending::open(self.request, &indexes)?;
        Ok(Executor {
            store: self.engine.store().clone(),
            lease: self.lease.clone(),
            sandbox: self.engine.sandbox()?,
            networks: self.engine.namespaces().clone(),
            session: Arc::new(LocalSession::new(id, main, lending)),
            copies: ContextCopies::default(),
            images,
            web: self.engine.registry()?.clone(),
            git: self.git.clone(),
            settings: ExecSettings {
                default_network: self.request.network,
                allow_host_network: self.request.allow_host_network || self.request.network == Network::Host,
                allow_insecure: self.request.allow_insecure,
                devices: DeviceSettings {
                    directories: self.engine.options().device_specs.clone(),
                    grants: self.request.devices.clone(),
                },
                pids_limit: Some(PIDS_LIMIT),
                limits: self.request.limits.clone(),
                resolv_conf: self.engine.options().resolv_conf.clone(),
                host_gateway: self.engine.host_gateway(),
            },
        })
    }
}

/// Whether every step that leads to `result` may do what it asks for.
fn permitted(executor: &Executor, graph: &BuildGraph, result: Option<Edge>) -> Result<(), SolveError> {
    let roots: Vec<Edge> = result.into_iter().collect();
    for id in graph.reachable(&roots) {
        let vertex = graph.vertex(id);
        executor.permits(&vertex.op).map_err(|error| SolveError::Failed {
            vertex: id,
            name: vertex.meta.name.clone(),
            span: vertex.meta.span,
            source: Arc::new(error),
        })?;
    }
    Ok(())
}

/// The keys of all steps of a graph, and those of the final image's steps.
fn cached_keys(build: &Build<Value>, graph: &Arc<BuildGraph>, lowered: &Lowered) -> (Vec<CacheKey>, Vec<CacheKey>) {
    let reports = build.reports(graph);
    let keys: Vec<(VertexId, CacheKey)> =
        reports.into_iter().filter_map(|report| Some((report.vertex, report.key?))).collect();
    let last = lowered.history.iter().filter_map(|step| step.edge).chain(lowered.result);
    let last: HashSet<VertexId> = last.map(|edge| edge.vertex).collect();
    let of_last = keys.iter().filter(|(vertex, _)| last.contains(vertex)).map(|(_, key)| *key).collect();
    (keys.iter().map(|(_, key)| *key).collect(), of_last)
}

/// What there is to say about all layers, in the order of the file. Platforms differ in bytes and hardly in what is to
/// be done, so the first that has something to say of a step by a rule speaks for all.
fn advice_of(results: &[Built]) -> Vec<Diagnostic> {
    let mut advice: Vec<Diagnostic> = Vec::new();
    for built in results {
        let is_new =
            |found: &&Diagnostic| !advice.iter().any(|said| (said.span, said.rule) == (found.span, found.rule));
        let new: Vec<Diagnostic> = built.advice.iter().filter(is_new).cloned().collect();
        advice.extend(new);
    }
    advice.sort_by_key(|found| found.span.map_or(usize::MAX, |span| span.start));
    advice
}

/// Unique among the builds of all processes: a lease's id, and a count for several builds under one lease.
fn session_id(lease: &Lease) -> String {
    static BUILDS: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", lease.id(), BUILDS.fetch_add(1, Ordering::Relaxed))
}

/// A failed solve in the engine's terms.
pub(crate) fn failure(error: SolveError, source: Option<&SourceText>) -> Error {
    match error {
        SolveError::Failed { name, span, source: cause, .. } => {
            let known = cause.downcast_ref::<ExecutorError>();
            let kind = match known {
                Some(ExecutorError::Process { status, .. }) => Kind::Failed(status.code()),
                Some(ExecutorError::SourceNotFound { .. }) => Kind::NotFound,
                Some(ExecutorError::Unsupported { .. }) => Kind::Unsupported,
                Some(ExecutorError::Cancelled(_)) => Kind::Cancelled,
                Some(ExecutorError::Store(_) | ExecutorError::Runtime(_) | ExecutorError::Start(_)) => Kind::Internal,
                _ => Kind::Invalid,
            };
            let prefix = match known {
                Some(ExecutorError::SourceNotFound { .. }) => "failed to compute cache key: ",
                _ => "",
            };
            let mut failed = Error::new(kind, format!("{prefix}{cause}"));
            failed.hints = known.map(ExecutorError::hints).unwrap_or_default();
            failed.span = span;
            failed.source_text = source.cloned();
            let log_tail = match known {
                Some(ExecutorError::Process { log_tail, .. }) => log_tail.clone(),
                _ => Vec::new(),
            };
            failed.step = Some(FailedStep { name, log_tail });
            failed
        }
        SolveError::Cache { name, source: cause, .. } => {
            Error::internal(format!("the build cache failed at {name:?}: {cause}"))
        }
        SolveError::Cancelled => Error::new(Kind::Cancelled, "the build was cancelled"),
        other => Error::internal(other),
    }
}
