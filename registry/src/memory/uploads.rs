//! Blob uploads: sessions, and blobs mounted from other repositories.

use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use rbuild_oci::Digest;

use super::routes::Call;
use super::{State, Upload};
use crate::wire::{accepted, created, error};

pub(super) fn handle(state: &mut State, call: &Call, name: &str, id: &str) -> Response {
    if call.method == Method::POST && id.is_empty() {
        return start(state, call, name);
    }
    if state.uploads.get(id).is_none_or(|u| u.repository != name) {
        return error(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry");
    }
    match call.method {
        Method::GET => {
            let stands = state.uploads.get(id).map_or(0, |upload| upload.bytes.len() as u64);
            (StatusCode::NO_CONTENT, accepted(name, id, stands).headers().clone()).into_response()
        }
        Method::PATCH if state.behaviour.no_patch => {
            error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "no chunks here")
        }
        Method::PATCH => append(state, call, name, id),
        Method::PUT => finish(state, call, name, id),
        Method::DELETE => {
            state.uploads.remove(id);
            StatusCode::NO_CONTENT.into_response()
        }
        _ => error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "not here"),
    }
}

fn start(state: &mut State, call: &Call, name: &str) -> Response {
    let mounted = call.query("mount").and_then(|d| d.parse::<Digest>().ok()).zip(call.query("from"));
    if let Some((digest, from)) = mounted.filter(|_| !state.behaviour.no_mounts)
        && state.repositories.get(from).is_some_and(|r| r.blobs.contains(&digest))
    {
        state.repositories.entry(name.to_owned()).or_default().blobs.insert(digest.clone());
        return created(&format!("/v2/{name}/blobs/{digest}"), &digest);
    }
    state.next += 1;
    let id = format!("upload-{}", state.next);
    state.uploads.insert(id.clone(), Upload { repository: name.to_owned(), bytes: Vec::new() });
    accepted(name, &id, 0)
}

fn append(state: &mut State, call: &Call, name: &str, id: &str) -> Response {
    let Some(upload) = state.uploads.get_mut(id) else {
        return error(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry");
    };
    if let Some(range) = call.headers.get("content-range").and_then(|r| r.to_str().ok()) {
        let from = range.trim_start_matches("bytes ").split('-').next().and_then(|n| n.parse().ok());
        if from != Some(upload.bytes.len()) {
            return error(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", "not where the upload stands");
        }
    }
    upload.bytes.extend_from_slice(&call.body);
    accepted(name, id, upload.bytes.len() as u64)
}

fn finish(state: &mut State, call: &Call, name: &str, id: &str) -> Response {
    let Some(digest) = call.query("digest").and_then(|d| d.parse::<Digest>().ok()) else {
        return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "no digest");
    };
    let Some(mut upload) = state.uploads.remove(id) else {
        return error(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry");
    };
    upload.bytes.extend_from_slice(&call.body);
    if !digest.matches(&upload.bytes) {
        return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "provided digest did not match uploaded content");
    }
    state.blobs.insert(digest.clone(), Bytes::from(upload.bytes));
    state.repositories.entry(name.to_owned()).or_default().blobs.insert(digest.clone());
    created(&format!("/v2/{name}/blobs/{digest}"), &digest)
}
