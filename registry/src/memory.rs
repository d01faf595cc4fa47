//! A strict registry in memory, on loopback, for tests.
//!
//! Strict: a manifest whose blobs are missing is refused, a digest that does not fit is refused, an upload must be
//! continued where it stands. Tests that pass against something lenient prove little. It can be told to misbehave
//! ([`Fault`]) and writes down every request, so that a test can count them.

mod faults;
mod routes;
mod uploads;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use rbuild_oci::Digest;

pub use faults::{Action, Fault};

/// Who may do what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Access {
    #[default]
    Open,
    /// HTTP basic authentication.
    Basic { username: String, password: String },
    /// Docker's token protocol, with the token server at `/token` of the same address.
    Token(TokenRules),
}

/// How the token server behaves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenRules {
    pub username: String,
    pub password: String,
    /// Anybody may pull.
    pub public: bool,
    /// A token is good for one request.
    pub one_use: bool,
    /// Offered to those who ask for an offline token, and accepted as an identity token.
    pub refresh_token: String,
    /// Each identity token is good for one exchange, whose answer holds the next.
    pub rotating: bool,
    /// The token server knows OAuth 2 alone.
    pub oauth_only: bool,
    /// Stands in the challenge in place of the registry's own `/token`.
    pub realm: Option<String>,
}

/// Whether manifests and tags can be removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Removal {
    #[default]
    ByTag,
    /// By digest alone, with all its tags, as before tags could be removed.
    ByDigest,
    Never,
}

/// How strict or limited the registry is beyond the defaults.
#[derive(Debug, Clone, Default)]
pub struct Behaviour {
    pub access: Access,
    /// `Range` is not understood.
    pub no_ranges: bool,
    /// Mounting a blob of another repository always starts an upload instead.
    pub no_mounts: bool,
    /// PATCH is not understood; only a POST followed by one PUT with everything.
    pub no_patch: bool,
    /// HEAD is not understood.
    pub no_head: bool,
    /// What a manifest is removed by.
    pub removal: Removal,
    /// The referrers API is there.
    pub referrers: bool,
    /// What a search finds, as JSON; without it there is no search.
    pub search: Option<String>,
    /// Blobs are answered by a redirect to this base with the same path.
    pub redirect_blobs: Option<String>,
}

/// A request as it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// With the query.
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
    /// The value of `X-Test`.
    pub test: Option<String>,
}

/// The registry; it stops when dropped. Must be started within a tokio runtime.
pub struct Registry {
    address: SocketAddr,
    state: Shared,
    server: tokio::task::JoinHandle<()>,
}

pub(crate) type Shared = Arc<Mutex<State>>;

#[derive(Default)]
pub(crate) struct State {
    address: String,
    behaviour: Behaviour,
    blobs: HashMap<Digest, Bytes>,
    repositories: BTreeMap<String, Repository>,
    uploads: HashMap<String, Upload>,
    tokens: HashMap<String, Grant>,
    faults: Vec<Fault>,
    log: Vec<Request>,
    next: u64,
    /// Identity tokens that were exchanged.
    exchanges: u64,
}

#[derive(Default)]
pub(crate) struct Repository {
    /// Digests of blobs that belong to this repository.
    blobs: std::collections::HashSet<Digest>,
    manifests: BTreeMap<Digest, (String, Bytes)>,
    tags: BTreeMap<String, Digest>,
}

pub(crate) struct Upload {
    repository: String,
    bytes: Vec<u8>,
}

/// What a token allows: repository and whether it may push.
#[derive(Clone)]
pub(crate) struct Grant {
    scopes: Vec<(String, bool)>,
}

impl Registry {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// The port cannot be had.
    pub async fn start() -> std::io::Result<Registry> {
        Registry::start_with(Behaviour::default()).await
    }

    /// As [`Registry::start`], with `behaviour`.
    pub async fn start_with(behaviour: Behaviour) -> std::io::Result<Registry> {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let state: Shared = Arc::new(Mutex::new(State { address: address.to_string(), behaviour, ..State::default() }));
        let router = routes::router(state.clone());
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::warn!(%error, "the registry stopped");
            }
        });
        Ok(Registry { address, state, server })
    }

    /// `127.0.0.1:port`, as it stands in a reference.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Changes how it behaves from now on.
    pub fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.lock().behaviour);
    }

    /// Misbehaves on request.
    pub fn fault(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Behaves from now on.
    pub fn forgive(&self) {
        self.lock().faults.clear();
    }

    /// Every token that was given out is worthless from now on.
    pub fn expire_tokens(&self) {
        self.lock().tokens.clear();
    }

    /// The requests so far, in order.
    pub fn log(&self) -> Vec<Request> {
        self.lock().log.clone()
    }

    /// How many requests had this method and a path that contains `part`.
    pub fn count(&self, method: &str, part: &str) -> usize {
        self.lock().log.iter().filter(|r| r.method == method && r.path.contains(part)).count()
    }

    pub fn clear_log(&self) {
        self.lock().log.clear();
    }

    /// Puts a blob in place.
    pub fn put_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256_of(&bytes);
        let mut state = self.lock();
        state.blobs.insert(digest.clone(), bytes);
        state.repositories.entry(repository.to_owned()).or_default().blobs.insert(digest.clone());
        digest
    }

    /// Puts a manifest in place, unchecked, under its digest and, if given, a tag.
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256_of(&bytes);
        let mut state = self.lock();
        let repository = state.repositories.entry(repository.to_owned()).or_default();
        repository.manifests.insert(digest.clone(), (media_type.to_owned(), bytes));
        if let Some(tag) = tag {
            repository.tags.insert(tag.to_owned(), digest.clone());
        }
        digest
    }

    /// The manifest under a tag.
    pub fn manifest(&self, repository: &str, tag: &str) -> Option<(Digest, Bytes)> {
        let state = self.lock();
        let repository = state.repositories.get(repository)?;
        let digest = repository.tags.get(tag)?;
        let (_, bytes) = repository.manifests.get(digest)?;
        Some((digest.clone(), bytes.clone()))
    }

    pub fn blob(&self, digest: &Digest) -> Option<Bytes> {
        self.lock().blobs.get(digest).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}
