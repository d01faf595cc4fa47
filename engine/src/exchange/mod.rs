//! One build's caches elsewhere: what it reads from and what it writes to.
//!
//! A build without any has none of this. What is read is asked for when something is missing here for the first time; what
//! is written goes while the build goes on, each step as it ends, so that little is left to do when the last one has. A cache
//! that does not keep its word (a layer that is gone, or is not what it should be) is left out from then on, and the
//! build is done again from where it can be: it is slower then, never wrong.

mod away;
mod request;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use rbuild_cache::import::contents;
use rbuild_cache::publish::{ancestry, local_record};
use rbuild_cache::{
    Backend, DirectoryBackend, Evidence, Imported, LocalCache, Publisher, RegistryBackend, Tiers, stored_record,
};
use rbuild_executor::Value;
use rbuild_graph::BuildGraph;
use rbuild_oci::Reference;
use rbuild_registry::{Client, PackedLayer};
use rbuild_solver::{CacheKey, Event, Events, LogStream, Report, Solver, StepId};
use rbuild_store::{Lease, Store};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::engine::Engine;
use crate::error::{Error, Kind};
use crate::remote::as_step;
use crate::request::BuildRequest;
use crate::stored::ValueCodec;

pub(crate) use away::{Away, AwayTree, Lying, Places};
use away::{Lost, ResultTrees};
pub use request::{CacheMode, CachePlace, CacheSource, CacheTarget};

/// BuildKit's build argument for a cache in the image itself.
const INLINE: &str = "BUILDKIT_INLINE_CACHE";
/// Records sent at the same time while the build goes on.
const AT_ONCE: usize = 2;

/// The caches elsewhere of one build.
pub(crate) struct Exchange {
    engine: Engine,
    lease: Lease,
    events: Events,
    sources: Vec<Arc<dyn Backend>>,
    targets: Vec<Target>,
    inline: bool,
    /// Names of the steps of the final images.
    wanted: Arc<Mutex<HashSet<String>>>,
    places: Mutex<Arc<Places>>,
    lost: Mutex<Lost>,
    evidence: Mutex<Option<Evidence>>,
    sending: Mutex<JoinSet<()>>,
    notes: Notes,
}

/// What people are told although the build goes on.
#[derive(Clone)]
struct Notes {
    events: Events,
    told: Arc<Mutex<Vec<String>>>,
}

impl Notes {
    fn tell(&self, step: Option<StepId>, message: String) {
        self.events.send(Event::Warning { id: step, message: message.clone(), span: None, url: None });
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(message);
    }
}

#[derive(Clone)]
struct Target {
    title: &'static str,
    backend: Arc<dyn Backend>,
    publisher: Arc<Publisher>,
    mode: CacheMode,
    ignore_error: bool,
}

impl Exchange {
    /// The caches that a request names; `None` when it names none.
    ///
    /// # Errors
    /// A name that is none.
    pub(crate) fn open(
        engine: &Engine,
        request: &BuildRequest,
        lease: &Lease,
        events: &Events,
    ) -> Result<Option<Exchange>, Error> {
        let asked = request
            .build_args
            .get(INLINE)
            .is_some_and(|value| matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"));
        let inline = asked || request.cache_to.iter().any(|target| target.place == CachePlace::Inline);
        if request.cache_from.is_empty() && request.cache_to.is_empty() && !inline {
            return Ok(None);
        }
        let sources = request.cache_from.iter().map(|source| source_backend(engine, source));
        let sources = sources.collect::<Result<Vec<_>, Error>>()?;
        let places = Arc::new(Places::new(&sources, events.clone()));
        let mut exchange = Exchange {
            engine: engine.clone(),
            lease: lease.clone(),
            events: events.clone(),
            sources,
            targets: Vec::new(),
            inline,
            wanted: Arc::default(),
            places: Mutex::new(places),
            lost: Mutex::default(),
            evidence: Mutex::default(),
            sending: Mutex::default(),
            notes: Notes { events: events.clone(), told: Arc::default() },
        };
        for target in &request.cache_to {
            exchange.targets.extend(exchange.target(target)?);
        }
        Ok(Some(exchange))
    }

    fn target(&self, target: &request::CacheTarget) -> Result<Option<Target>, Error> {
        let (title, backend): (_, Arc<dyn Backend>) = match &target.place {
            CachePlace::Inline => return Ok(None),
            CachePlace::Registry { reference, insecure } => {
                ("exporting cache to registry", registry(&self.engine, reference, *insecure)?)
            }
            CachePlace::Directory { path, tag } => {
                ("exporting cache to client directory", Arc::new(DirectoryBackend::new(path, tag, None)))
            }
        };
        if backend.base().is_none() {
            return Err(Error::invalid(format!("a cache cannot be written to a digest: {}", backend.place())));
        }
        let trees = Arc::new(ResultTrees { places: self.places() });
        let store = self.engine.store().clone();
        let publisher = Publisher::new(backend.clone(), trees, store, self.lease.clone(), target.options);
        let (publisher, mode, ignore_error) = (Arc::new(publisher), target.mode, target.ignore_error);
        Ok(Some(Target { title, backend, publisher, mode, ignore_error }))
    }

    /// Where a result lies that is not here.
    pub(crate) fn lying(&self, result: &Value) -> Option<Lying> {
        match result {
            Value::Lazy(lazy) => self.places().lying(lazy),
            _ => None,
        }
    }

    fn places(&self) -> Arc<Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A solver that looks into the caches, those left out that did not keep their word, and that sends what it saves.
    ///
    /// # Errors
    /// The store cannot be used.
    pub(crate) fn solver(&self, jobs: usize) -> Result<Solver<Value>, Error> {
        let store = self.engine.store().clone();
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sources: Vec<_> = self.sources.iter().filter(|source| !lost.contains(source.place())).cloned().collect();
        let places = Arc::new(Places::new(&sources, self.events.clone()));
        *self.places.lock().unwrap_or_else(PoisonError::into_inner) = places.clone();
        let lease = store.lease("cache")?;
        let codec = ValueCodec::new(store.clone(), lease.clone()).with_places(places);
        let local = LocalCache::new(store.clone(), lease, codec);
        let notes = self.notes.clone();
        let open = move || {
            let (sources, notes) = (sources.clone(), notes.clone());
            async move {
                let imports: Vec<_> = sources.into_iter().map(|source| import(source, notes.clone()).boxed()).collect();
                futures::future::join_all(imports).await.into_iter().flatten().collect()
            }
            .boxed()
        };
        let tiers = Tiers::new(local, store, Box::new(open), self.send_ahead());
        *self.evidence.lock().unwrap_or_else(PoisonError::into_inner) = Some(tiers.evidence());
        Ok(Solver::new(Arc::new(tiers), jobs))
    }

    /// Says which steps are those of final images.
    pub(crate) fn want(&self, steps: &HashSet<String>) {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).extend(steps.iter().cloned());
    }

    /// Begins to send what is saved from now on.
    fn send_ahead(&self) -> Option<mpsc::UnboundedSender<CacheKey>> {
        if self.targets.is_empty() {
            return None;
        }
        let (saved, mut keys) = mpsc::unbounded_channel::<CacheKey>();
        let (targets, wanted, store) = (self.targets.clone(), self.wanted.clone(), self.engine.store().clone());
        let forward = async move {
            let slots = Arc::new(Semaphore::new(AT_ONCE));
            let mut under_way = JoinSet::new();
            while let Some(key) = keys.recv().await {
                for target in &targets {
                    if target.mode == CacheMode::Min && !is_wanted(&store, &wanted, key) {
                        continue;
                    }
                    let (publisher, slots) = (target.publisher.clone(), slots.clone());
                    under_way.spawn(async move {
                        let _slot = slots.acquire_owned().await;
                        if let Err(error) = publisher.record(key).await {
                            // Tried again at the end, and then it counts.
                            tracing::debug!(%error, "a record was not sent ahead");
                        }
                    });
                }
            }
            under_way.join_all().await;
        };
        self.sending.lock().unwrap_or_else(PoisonError::into_inner).spawn(forward);
        Some(saved)
    }

    /// Keeps what the caches say of steps that ran and left no result, so that people can be told what was different.
    pub(crate) async fn keep_evidence(&self, graph: &BuildGraph, reports: &[Report]) {
        let evidence = self.evidence.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(evidence) = evidence else { return };
        for report in reports.iter().filter(|report| report.missed()) {
            let Some(key) = report.key else { continue };
            if let Err(error) = evidence.keep(&graph.vertex(report.vertex).meta.name, key).await {
                tracing::debug!(%error, "what an import says of a step is not kept");
            }
        }
    }

    /// Whether the build may be tried again, since a cache did not keep its word; it is not asked again, and people are told.
    pub(crate) fn leaves_out_lost(&self) -> bool {
        let lost = self.places().lost();
        for (place, why) in &lost {
            self.lost.lock().unwrap_or_else(PoisonError::into_inner).insert(place.clone());
            let message = format!("the cache {place} is not used any more: {why}");
            self.notes.tell(None, message);
        }
        !lost.is_empty()
    }

    /// What people were told so far.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.notes.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The member for the config of an image with these layers, if the image is to carry its own cache.
    pub(crate) async fn inline(
        &self,
        steps: &[CacheKey],
        layers: &[PackedLayer],
    ) -> Result<Option<serde_json::Value>, Error> {
        if !self.inline {
            return Ok(None);
        }
        let trees = ResultTrees { places: self.places() };
        let mut records = Vec::new();
        for key in steps {
            records.extend(local_record(self.engine.store(), &trees, *key).await?);
        }
        Ok(rbuild_cache::portable::inline_member(&records, layers))
    }

    /// Sends what is left: the records of all `keys`, or of `steps` where only those of the final images are wanted.
    ///
    /// # Errors
    /// A cache that cannot be written, unless its errors are to be ignored.
    pub(crate) async fn export(&self, keys: &[CacheKey], steps: &[CacheKey]) -> Result<(), Error> {
        let store = self.engine.store();
        for target in &self.targets {
            let keys = match target.mode {
                CacheMode::Min => steps.to_vec(),
                CacheMode::Max => ancestry(store, keys)?,
            };
            let sent = as_step(&self.events, target.title, |step| async move {
                self.events.log(step, LogStream::Stdout, "preparing build cache for export\n".to_owned());
                let published = target.publisher.finish(&keys).await?;
                let note = format!(
                    "writing cache image manifest to {} done\n{} records of this build, {} in all\n",
                    target.backend.place(),
                    published.records,
                    published.all
                );
                self.events.log(step, LogStream::Stdout, note);
                if published.removed > 0 {
                    let note = format!("removing {} records that no build used for long done\n", published.removed);
                    self.events.log(step, LogStream::Stdout, note);
                }
                if let Some(why) = published.unremoved {
                    let note = format!("they are not read any more, but their names stay: {why}\n");
                    self.events.log(step, LogStream::Stderr, note);
                }
                Ok::<_, Error>(())
            });
            if let Err(error) = sent.await {
                let message = format!("failed to export the cache to {}: {}", target.backend.place(), error.message);
                if !target.ignore_error {
                    return Err(Error { message, ..error });
                }
                self.notes.tell(None, message);
            }
        }
        Ok(())
    }
}

fn is_wanted(store: &Store, wanted: &Mutex<HashSet<String>>, key: CacheKey) -> bool {
    let record = stored_record(store, key).ok().flatten();
    record.is_some_and(|record| wanted.lock().unwrap_or_else(PoisonError::into_inner).contains(&record.run.name))
}

fn source_backend(engine: &Engine, source: &CacheSource) -> Result<Arc<dyn Backend>, Error> {
    match source {
        CacheSource::Registry { reference, insecure } => registry(engine, reference, *insecure),
        CacheSource::Directory { path, tag, digest } => Ok(Arc::new(DirectoryBackend::new(path, tag, digest.clone()))),
    }
}

fn registry(engine: &Engine, reference: &Reference, insecure: bool) -> Result<Arc<dyn Backend>, Error> {
    let client = match insecure {
        false => engine.registry()?.clone(),
        true => {
            let mut options = engine.options().registry.clone();
            options.mirrors = options.mirrors.believing(reference.registry())?;
            Client::new(options)?
        }
    };
    Ok(Arc::new(RegistryBackend::new(client, reference.clone())))
}

/// Reads what a cache holds. One that cannot be reached is said so and does without.
async fn import(source: Arc<dyn Backend>, notes: Notes) -> Option<Imported> {
    let shown = source.place().strip_prefix("registry:").unwrap_or(source.place()).to_owned();
    let title = format!("importing cache manifest from {shown}");
    let read = as_step(&notes.events, &title, |step| {
        let (source, notes) = (&source, &notes);
        async move {
            let contents = contents(source.as_ref()).await?;
            if !contents.exists {
                return Err(Error::new(Kind::NotFound, format!("{shown}: not found")));
            }
            for complaint in contents.complaints {
                notes.tell(Some(step), complaint);
            }
            Ok(contents.records)
        }
    });
    match read.await {
        Ok(records) => Some(Imported { backend: source, records }),
        Err(error) => {
            // That there is none yet is how every cache begins; the step says it.
            if error.kind != Kind::NotFound {
                let message = format!("the cache {} cannot be used: {}", source.place(), error.message);
                notes.tell(None, message);
            }
            None
        }
    }
}

impl From<rbuild_cache::Error> for Error {
    fn from(error: rbuild_cache::Error) -> Error {
        use rbuild_cache::Error as C;
        match error {
            C::Registry(error) => error.into(),
            C::Store(error) => error.into(),
            C::NotFound(_) => Error::new(Kind::NotFound, error.to_string()),
            C::Io { .. } => Error::new(Kind::Unavailable, error.to_string()),
            _ => Error::invalid(error.to_string()),
        }
    }
}
