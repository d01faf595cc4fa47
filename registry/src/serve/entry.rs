//! Requests: who asks, may they, and who answers.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, header};
use axum::response::Response;
use rbuild_oci::{Digest, Reference};
use rbuild_store::StoreError;

use super::contents::Contents;
use super::shelf::Shelf;
use super::uploads::Uploads;
use super::{Names, Passwords, blobs, lists, manifests, uploads};
use crate::wire::{What, error, json, with_header};

/// Everything the answers are made from.
pub(super) struct Registry {
    pub shelf: Shelf,
    pub contents: Contents,
    pub uploads: Uploads,
    pub names: Names,
    passwords: Option<Passwords>,
    read_only: bool,
}

impl Registry {
    pub(super) fn new(shelf: Shelf, names: Names, passwords: Option<Passwords>, read_only: bool) -> Registry {
        let (contents, uploads) = (Contents::default(), Uploads::default());
        Registry { shelf, contents, uploads, names, passwords, read_only }
    }
}

pub(super) type Shared = Arc<Registry>;

/// One request: everything but its body.
pub(super) struct Call {
    pub registry: Shared,
    pub parts: Parts,
    query: Vec<(String, String)>,
}

/// The repository that a request is about.
#[derive(Clone)]
pub(super) struct Repository {
    /// As the peer calls it.
    pub name: String,
    /// As the store calls it, without tag.
    pub local: Reference,
}

impl Call {
    pub(super) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.parts.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(super) fn is_head(&self) -> bool {
        self.parts.method == Method::HEAD
    }

    /// Does work that blocks.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Registry) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let registry = self.registry.clone();
        tokio::task::spawn_blocking(move || work(&registry))
            .await
            .unwrap_or_else(|error| Err(Refusal::internal(&error)))
    }
}

/// Why a request is not answered as it wished (specification, "Error Codes").
#[derive(Debug)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: String,
    /// One more header.
    pub header: Option<(&'static str, String)>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { status, code, message: message.into(), header: None }
    }

    pub(super) fn bad(code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(super) fn no_manifest(which: &str) -> Refusal {
        let message = format!("manifest {} unknown", crate::clean(which));
        Refusal::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", message)
    }

    pub(super) fn no_blob(digest: &Digest) -> Refusal {
        Refusal::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", format!("blob {digest} unknown to registry"))
    }

    pub(super) fn no_repository(name: &str) -> Refusal {
        Refusal::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", format!("repository {name} not known to registry"))
    }

    pub(super) fn unsupported(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message)
    }

    /// What a peer is told about what went wrong here is that something did; the log has the rest.
    pub(super) fn internal(error: &dyn std::fmt::Display) -> Refusal {
        tracing::error!(%error, "a request failed");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", "the registry failed; its log says why")
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Refusal {
        if error.is_full() {
            tracing::error!(%error, "the disk is full");
            return Refusal::new(StatusCode::INSUFFICIENT_STORAGE, "UNKNOWN", "the registry's disk is full");
        }
        Refusal::internal(&error)
    }
}

pub(super) type Answer = Result<Response, Refusal>;

pub(super) fn router(registry: Shared) -> Router {
    Router::new().fallback(entry).with_state(registry)
}

async fn entry(State(registry): State<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let query = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
    let call = Call { registry, parts, query };
    let answer = match dispatch(call, body).await {
        Ok(answer) => answer,
        Err(refusal) => {
            let answer = error(refusal.status, refusal.code, &refusal.message);
            match refusal.header {
                Some((name, value)) => with_header(answer, name, &value),
                None => answer,
            }
        }
    };
    tracing::info!(%method, path = crate::clean(&path), status = answer.status().as_u16(), "request");
    with_header(answer, "docker-distribution-api-version", "registry/2.0")
}

async fn dispatch(call: Call, body: Body) -> Answer {
    let path = call.parts.uri.path().to_owned();
    let what = What::parse(&path);
    if what.is_some() {
        admit(&call).await?;
    }
    let Some(what) = what else {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "no such page"));
    };
    let reading = matches!(call.parts.method, Method::GET | Method::HEAD);
    if !reading && call.registry.read_only {
        return Err(Refusal::unsupported("this registry is read-only"));
    }
    let repository = match what.repository() {
        None => None,
        Some(name) => {
            let local = call.registry.names.local(name);
            let local = local.ok_or_else(|| Refusal::bad("NAME_INVALID", "invalid repository name"))?;
            Some(Repository { name: name.to_owned(), local })
        }
    };
    let method = call.parts.method.clone();
    match (what, repository, method) {
        (What::Base, _, Method::GET | Method::HEAD) => Ok(json(&serde_json::json!({}))),
        (What::Catalog, _, Method::GET) => lists::catalog(call).await,
        (What::Tags(_), Some(repository), Method::GET) => lists::tags(call, repository).await,
        (What::Referrers(_, digest), Some(repository), Method::GET) => {
            lists::referrers(call, repository, digest_of(digest)?).await
        }
        (What::Manifest(_, which), Some(repository), Method::GET | Method::HEAD) => {
            manifests::get(call, repository, which.to_owned()).await
        }
        (What::Manifest(_, which), Some(repository), Method::PUT) => {
            manifests::put(call, repository, which.to_owned(), body).await
        }
        (What::Manifest(_, which), Some(repository), Method::DELETE) => {
            manifests::delete(call, repository, which.to_owned()).await
        }
        (What::Blob(_, digest), Some(repository), Method::GET | Method::HEAD) => {
            blobs::get(call, repository, digest_of(digest)?).await
        }
        (What::Blob(_, digest), Some(repository), Method::DELETE) => {
            blobs::delete(call, repository, digest_of(digest)?).await
        }
        (What::Uploads(_, ""), Some(repository), Method::POST) => uploads::begin(call, repository, body).await,
        (What::Uploads(_, id), Some(repository), _) if !id.is_empty() => {
            uploads::go_on(call, repository, id.to_owned(), body).await
        }
        _ => Err(Refusal::unsupported("this method is not for this page")),
    }
}

fn digest_of(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(|_| Refusal::bad("DIGEST_INVALID", format!("{:?} is no digest", crate::clean(text))))
}

/// Lets those in who are known, and everybody where nobody needs to be.
async fn admit(call: &Call) -> Result<(), Refusal> {
    let Some(passwords) = call.registry.passwords.clone() else { return Ok(()) };
    let shown = call.header(header::AUTHORIZATION).unwrap_or_default().to_owned();
    if !shown.is_empty() && call.blocking(move |_| Ok(passwords.admits(&shown))).await? {
        return Ok(());
    }
    let mut refusal = Refusal::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required");
    refusal.header = Some(("www-authenticate", "Basic realm=\"rbuild registry\"".to_owned()));
    Err(refusal)
}
