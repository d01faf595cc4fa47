//! The distribution API over [`State`].

use axum::Router;
use axum::body::Body;
use axum::extract::{Request as HttpRequest, State as Extract};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use rbuild_oci::{Descriptor, Digest, Document, Index, MediaType};

use super::faults::{self, Action};
use super::{Access, Grant, Removal, Request, Shared, State, TokenRules, uploads};
use crate::wire::{What, error, json, with_header};

/// One request, its body read.
pub(super) struct Call {
    pub method: Method,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Call {
    pub(super) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }
}

pub(super) fn router(state: Shared) -> Router {
    Router::new().fallback(entry).with_state(state)
}

async fn entry(Extract(state): Extract<Shared>, request: HttpRequest) -> Response {
    let (parts, body) = request.into_parts();
    let full = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let query = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let text = |name| parts.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let fault = {
        let mut state = state.lock().unwrap_or_else(|e| e.into_inner());
        state.log.push(Request {
            method: parts.method.to_string(),
            path: full.clone(),
            range: text(header::RANGE),
            authorization: text(header::AUTHORIZATION),
            test: parts.headers.get("x-test").and_then(|v| v.to_str().ok()).map(str::to_owned),
        });
        let fault = faults::take(&mut state.faults, parts.method.as_str(), &full);
        if matches!(fault, Some(Action::ExpireTokens)) {
            state.tokens.clear();
        }
        fault
    };
    match &fault {
        Some(Action::Status(status, after)) => {
            let mut answer =
                error(StatusCode::from_u16(*status).unwrap_or(StatusCode::IM_A_TEAPOT), "UNKNOWN", "told to fail");
            if let Some(seconds) = after {
                answer.headers_mut().insert(header::RETRY_AFTER, (*seconds).into());
            }
            return answer;
        }
        Some(Action::Redirect(to)) => return redirect(to),
        Some(Action::Delay(pause)) => tokio::time::sleep(*pause).await,
        Some(Action::Endless) => return Response::new(faults::endless()),
        Some(Action::Oversized(size)) => return Response::new(Body::from(vec![b' '; *size as usize])),
        _ => {}
    }
    let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else {
        return error(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", "the body was cut");
    };
    let call = Call { method: parts.method, path: parts.uri.path().to_owned(), query, headers: parts.headers, body };
    let answer = {
        let mut state = state.lock().unwrap_or_else(|e| e.into_inner());
        dispatch(&mut state, &call)
    };
    spoil(answer, fault).await
}

async fn spoil(answer: Response, fault: Option<Action>) -> Response {
    match fault {
        Some(Action::CutAfter(keep)) => {
            let (mut parts, bytes) = faults::whole(answer).await;
            parts.headers.insert(header::CONTENT_LENGTH, bytes.len().into());
            Response::from_parts(parts, faults::cut(bytes, keep))
        }
        Some(Action::OtherBytes) => {
            let (parts, bytes) = faults::whole(answer).await;
            Response::from_parts(parts, Body::from(bytes.iter().map(|b| b ^ 1).collect::<Vec<_>>()))
        }
        Some(Action::DoneBut(status)) => {
            error(StatusCode::from_u16(status).unwrap_or(StatusCode::IM_A_TEAPOT), "UNKNOWN", "the answer got lost")
        }
        Some(Action::ClaimDigest(digest)) => with_header(answer, "docker-content-digest", &digest),
        _ => answer,
    }
}

fn dispatch(state: &mut State, call: &Call) -> Response {
    if call.path == "/token" {
        return token(state, call);
    }
    if let Some(found) = state.behaviour.search.as_ref().filter(|_| call.path == "/v1/search") {
        return with_header(Response::new(Body::from(found.clone())), "content-type", "application/json");
    }
    let Some(what) = What::parse(&call.path) else {
        return error(StatusCode::NOT_FOUND, "NOT_FOUND", "no such page");
    };
    let push = !matches!(call.method, Method::GET | Method::HEAD);
    if let Err(denied) = allow(state, call, what.repository(), push) {
        return *denied;
    }
    if what == What::Base {
        return json(&serde_json::json!({}));
    }
    if call.method == Method::HEAD && state.behaviour.no_head {
        return error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "HEAD is not supported");
    }
    match what {
        What::Tags(name) => tags(state, name),
        What::Manifest(name, which) if call.method == Method::DELETE => remove_manifest(state, name, which),
        What::Manifest(name, which) if push => put_manifest(state, call, name, which),
        What::Manifest(name, which) => get_manifest(state, call, name, which),
        What::Blob(name, digest) if !push => get_blob(state, call, name, digest),
        What::Uploads(name, id) => uploads::handle(state, call, name, id),
        What::Referrers(name, digest) if !push && state.behaviour.referrers => referrers(state, name, digest),
        _ => error(StatusCode::NOT_FOUND, "NAME_INVALID", "no such page"),
    }
}

fn allow(state: &mut State, call: &Call, repository: Option<&str>, push: bool) -> Result<(), Box<Response>> {
    let given = call.header(header::AUTHORIZATION).unwrap_or_default().to_owned();
    match state.behaviour.access.clone() {
        Access::Open => Ok(()),
        Access::Basic { username, password } => {
            if given == basic(&username, &password) {
                return Ok(());
            }
            Err(Box::new(challenge("Basic realm=\"memory\"")))
        }
        Access::Token(rules) => {
            let grant = given.strip_prefix("Bearer ").and_then(|t| state.tokens.get(t)).cloned();
            let ok = grant.is_some_and(|g| {
                repository.is_none_or(|name| g.scopes.iter().any(|(n, may_push)| n == name && (*may_push || !push)))
            });
            if rules.one_use && ok {
                state.tokens.remove(given.trim_start_matches("Bearer "));
            }
            if ok {
                return Ok(());
            }
            let realm = rules.realm.unwrap_or_else(|| format!("http://{}/token", state.address));
            let actions = if push { "pull,push" } else { "pull" };
            let scope = repository.map(|name| format!(",scope=\"repository:{name}:{actions}\"")).unwrap_or_default();
            Err(Box::new(challenge(&format!("Bearer realm=\"{realm}\",service=\"memory\"{scope}"))))
        }
    }
}

fn challenge(text: &str) -> Response {
    let answer = error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required");
    with_header(answer, "www-authenticate", text)
}

fn token(state: &mut State, call: &Call) -> Response {
    let Access::Token(rules) = state.behaviour.access.clone() else {
        return error(StatusCode::NOT_FOUND, "NOT_FOUND", "no token server here");
    };
    if rules.oauth_only && call.method != Method::POST {
        return error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "OAuth 2 alone");
    }
    let form: Vec<(String, String)> = url::form_urlencoded::parse(&call.body).into_owned().collect();
    let sent = |name: &str| form.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let identity = match rules.rotating {
        true => format!("{}{}", rules.refresh_token, state.exchanges),
        false => rules.refresh_token.clone(),
    };
    let known = match (&call.method, sent("grant_type")) {
        (&Method::POST, Some("password")) => {
            (sent("username"), sent("password")) == (Some(&rules.username), Some(&rules.password))
        }
        (&Method::POST, Some("refresh_token")) => !identity.is_empty() && sent("refresh_token") == Some(&identity),
        (&Method::POST, _) => false,
        _ => call.header(header::AUTHORIZATION) == Some(basic(&rules.username, &rules.password).as_str()),
    };
    let anonymous = call.method == Method::GET && call.header(header::AUTHORIZATION).is_none();
    if !known && !anonymous {
        return (StatusCode::UNAUTHORIZED, json(&serde_json::json!({"details": "incorrect username or password"})))
            .into_response();
    }
    let asked = call.query.iter().chain(&form).filter(|(n, _)| n == "scope").flat_map(|(_, v)| v.split(' '));
    let scopes = asked.filter_map(|s| grant(s, &rules, known)).collect();
    state.next += 1;
    let token = format!("token-{}", state.next);
    state.tokens.insert(token.clone(), Grant { scopes });
    let mut answer = serde_json::json!({ "token": token, "expires_in": 300 });
    let offline = call.query("offline_token") == Some("true") || sent("access_type") == Some("offline");
    let rotated = rules.rotating && sent("grant_type") == Some("refresh_token");
    if rotated && known {
        state.exchanges += 1;
        answer["refresh_token"] = format!("{}{}", rules.refresh_token, state.exchanges).into();
    } else if known && offline && !identity.is_empty() {
        answer["refresh_token"] = identity.into();
    }
    json(&answer)
}

fn grant(scope: &str, rules: &TokenRules, known: bool) -> Option<(String, bool)> {
    let (name, actions) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
    (known || rules.public).then(|| (name.to_owned(), known && actions.split(',').any(|a| a == "push")))
}

fn tags(state: &State, name: &str) -> Response {
    let Some(repository) = state.repositories.get(name) else { return unknown_name() };
    let tags: Vec<_> = repository.tags.keys().collect();
    json(&serde_json::json!({ "name": name, "tags": tags }))
}

/// The manifests that have this one as their subject.
fn referrers(state: &State, name: &str, digest: &str) -> Response {
    let mut found = Vec::new();
    for (digest_of, (kind, bytes)) in state.repositories.get(name).into_iter().flat_map(|r| &r.manifests) {
        let Ok(document) = Document::parse(bytes, None) else { continue };
        let (subject, artifact_type, annotations) = match document {
            Document::Manifest(m) => (m.subject, m.artifact_type, m.annotations),
            Document::Index(i) => (i.subject, i.artifact_type, i.annotations),
        };
        if subject.is_some_and(|s| s.digest.to_string() == digest) {
            let (kind, size) = (MediaType::from(kind.as_str()), bytes.len() as u64);
            let descriptor = Descriptor::new(kind, digest_of.clone(), size);
            found.push(Descriptor { artifact_type, annotations, ..descriptor });
        }
    }
    let index = serde_json::to_value(Index::new(found)).unwrap_or_default();
    with_header(json(&index), "content-type", MediaType::OciIndex.as_str())
}

fn get_manifest(state: &State, call: &Call, name: &str, which: &str) -> Response {
    let Some(repository) = state.repositories.get(name) else { return unknown_name() };
    let digest: Option<Digest> = which.parse().ok().or_else(|| repository.tags.get(which).cloned());
    let Some((digest, (kind, bytes))) = digest.and_then(|d| repository.manifests.get_key_value(&d)) else {
        return error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown");
    };
    let accepted =
        call.headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).any(|v| v.contains(kind.as_str()));
    if !accepted && !kind.contains("v1+pretty") {
        return error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "no manifest of an accepted type");
    }
    let answer = sized(call, bytes.clone());
    with_header(with_header(answer, "content-type", kind), "docker-content-digest", &digest.to_string())
}

fn put_manifest(state: &mut State, call: &Call, name: &str, which: &str) -> Response {
    let invalid = |why: &str| error(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", why);
    let kind = call.header(header::CONTENT_TYPE).unwrap_or_default().to_owned();
    let document = match Document::parse(&call.body, Some(&MediaType::from(kind.as_str()))) {
        Ok(document) => document,
        Err(e) => return invalid(&e.to_string()),
    };
    let digest = Digest::sha256_of(&call.body);
    let repository = state.repositories.entry(name.to_owned()).or_default();
    let missing = match &document {
        Document::Manifest(m) => std::iter::once(&m.config).chain(&m.layers).any(|d| {
            let elsewhere = d.media_type.is_foreign_layer() && !d.urls.is_empty();
            let here = state.blobs.get(&d.digest).filter(|_| repository.blobs.contains(&d.digest));
            !elsewhere && here.is_none_or(|b| b.len() as u64 != d.size)
        }),
        Document::Index(i) => i.manifests.iter().any(|d| !repository.manifests.contains_key(&d.digest)),
    };
    if missing {
        return error(
            StatusCode::BAD_REQUEST,
            "MANIFEST_BLOB_UNKNOWN",
            "a blob of the manifest is not in the repository",
        );
    }
    match which.parse::<Digest>() {
        Ok(named) if named != digest => return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "not this digest"),
        Ok(_) => {}
        Err(_) => drop(repository.tags.insert(which.to_owned(), digest.clone())),
    }
    repository.manifests.insert(digest.clone(), (kind, call.body.clone()));
    let answer = with_header(StatusCode::CREATED.into_response(), "docker-content-digest", &digest.to_string());
    let subject = match document {
        Document::Manifest(m) => m.subject,
        Document::Index(i) => i.subject,
    };
    match subject.filter(|_| state.behaviour.referrers) {
        Some(subject) => with_header(answer, "oci-subject", &subject.digest.to_string()),
        None => answer,
    }
}

fn remove_manifest(state: &mut State, name: &str, which: &str) -> Response {
    let cannot = || error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the operation is unsupported");
    let how = state.behaviour.removal;
    let Some(repository) = state.repositories.get_mut(name) else { return unknown_name() };
    let gone = match which.parse::<Digest>() {
        _ if how == Removal::Never => return cannot(),
        Err(_) if how == Removal::ByDigest => return cannot(),
        Err(_) => repository.tags.remove(which).is_some(),
        Ok(digest) => {
            repository.tags.retain(|_, other| *other != digest);
            repository.manifests.remove(&digest).is_some()
        }
    };
    match gone {
        true => StatusCode::ACCEPTED.into_response(),
        false => error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown"),
    }
}

fn get_blob(state: &State, call: &Call, name: &str, digest: &str) -> Response {
    let digest: Option<Digest> = digest.parse().ok();
    let found = digest.filter(|d| state.repositories.get(name).is_some_and(|r| r.blobs.contains(d)));
    let Some(bytes) = found.and_then(|d| state.blobs.get(&d)) else {
        return error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "blob unknown to registry");
    };
    if let Some(base) = state.behaviour.redirect_blobs.as_ref().filter(|_| call.method == Method::GET) {
        return redirect(&format!("{base}{}", call.path));
    }
    let from =
        call.header(header::RANGE).and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match from.filter(|_| !state.behaviour.no_ranges) {
        Some(from) if from >= bytes.len() => error(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", "past the end"),
        Some(from) => {
            let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            let mut answer = with_header(sized(call, bytes.slice(from..)), "content-range", &range);
            *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
            answer
        }
        None => sized(call, bytes.clone()),
    }
}

/// An answer with a length, and with the body unless only the head was asked for.
fn sized(call: &Call, bytes: Bytes) -> Response {
    let length = bytes.len().to_string();
    let body = if call.method == Method::HEAD { Body::empty() } else { Body::from(bytes) };
    with_header(Response::new(body), "content-length", &length)
}

fn redirect(to: &str) -> Response {
    with_header(StatusCode::TEMPORARY_REDIRECT.into_response(), "location", to)
}

pub(super) fn unknown_name() -> Response {
    error(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "repository name not known to registry")
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}")))
}
