//! The distribution API as a registry sees it: which thing a path means, and what refusals look like. The registry that
//! is served and the one in memory share it.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};

/// What a path below `/v2/` is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What<'a> {
    /// `/v2/` itself: is this a registry, and am I let in.
    Base,
    Catalog,
    /// The rest belong to the repository that stands first.
    Tags(&'a str),
    /// The digest that is referred to.
    Referrers(&'a str, &'a str),
    /// A tag or a digest.
    Manifest(&'a str, &'a str),
    Blob(&'a str, &'a str),
    /// The session; empty to begin one.
    Uploads(&'a str, &'a str),
}

impl<'a> What<'a> {
    /// Repository names have slashes, so a path is read from its end.
    pub(crate) fn parse(path: &'a str) -> Option<What<'a>> {
        let rest = match path.strip_prefix("/v2") {
            Some("" | "/") => return Some(What::Base),
            Some(rest) => rest.strip_prefix('/')?,
            None => return None,
        };
        if rest == "_catalog" {
            return Some(What::Catalog);
        }
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Some(What::Tags(name));
        }
        if let Some(name) = rest.strip_suffix("/blobs/uploads") {
            return Some(What::Uploads(name, ""));
        }
        // The part that stands last decides: `a/blobs/b` may be a repository.
        let markers = ["/blobs/uploads/", "/blobs/", "/manifests/", "/referrers/"];
        let (at, marker) =
            markers.into_iter().filter_map(|m| rest.rfind(m).map(|at| (at, m))).max_by_key(|(at, m)| {
                // `/blobs/` is the beginning of `/blobs/uploads/`.
                (*at, m.len())
            })?;
        let (name, last) = (&rest[..at], &rest[at + marker.len()..]);
        if last.contains('/') {
            return None;
        }
        Some(match marker {
            "/blobs/uploads/" => What::Uploads(name, last),
            "/blobs/" => What::Blob(name, last),
            "/manifests/" => What::Manifest(name, last),
            _ => What::Referrers(name, last),
        })
    }

    pub(crate) fn repository(&self) -> Option<&'a str> {
        match *self {
            What::Base | What::Catalog => None,
            What::Tags(name)
            | What::Referrers(name, _)
            | What::Manifest(name, _)
            | What::Blob(name, _)
            | What::Uploads(name, _) => Some(name),
        }
    }
}

/// A refusal in the form that the specification prescribes ("Error Codes").
pub(crate) fn error(status: StatusCode, code: &str, message: &str) -> Response {
    (status, json(&serde_json::json!({ "errors": [{ "code": code, "message": message }] }))).into_response()
}

pub(crate) fn json(value: &serde_json::Value) -> Response {
    with_header(Response::new(Body::from(value.to_string())), "content-type", "application/json")
}

/// `answer` with one more header; a value that no header can carry is left out.
pub(crate) fn with_header(mut answer: Response, name: &'static str, value: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
    answer
}

/// Where an upload goes on, and how far it has come.
pub(crate) fn accepted(name: &str, id: &str, size: u64) -> Response {
    let answer =
        with_header(StatusCode::ACCEPTED.into_response(), "location", &format!("/v2/{name}/blobs/uploads/{id}"));
    let answer = with_header(answer, "docker-upload-uuid", id);
    with_header(answer, "range", &format!("0-{}", size.saturating_sub(1)))
}

/// A blob or manifest is there now.
pub(crate) fn created(place: &str, digest: &rbuild_oci::Digest) -> Response {
    let answer = with_header(StatusCode::CREATED.into_response(), "docker-content-digest", &digest.to_string());
    with_header(answer, "location", place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_their_end() {
        for (path, want) in [
            ("/v2", Some(What::Base)),
            ("/v2/", Some(What::Base)),
            ("/v2/_catalog", Some(What::Catalog)),
            ("/v2/a/b/tags/list", Some(What::Tags("a/b"))),
            ("/v2/a/b/manifests/v1", Some(What::Manifest("a/b", "v1"))),
            ("/v2/a/blobs/b/manifests/v1", Some(What::Manifest("a/blobs/b", "v1"))),
            ("/v2/a/manifests/b/blobs/sha256:0", Some(What::Blob("a/manifests/b", "sha256:0"))),
            ("/v2/a/blobs/uploads/", Some(What::Uploads("a", ""))),
            ("/v2/a/blobs/uploads", Some(What::Uploads("a", ""))),
            ("/v2/a/blobs/uploads/x1", Some(What::Uploads("a", "x1"))),
            ("/v2/a/referrers/sha256:0", Some(What::Referrers("a", "sha256:0"))),
            ("/v2/a/manifests/b/c", None),
            ("/v2x/", None),
            ("/v1/search", None),
        ] {
            assert_eq!(What::parse(path), want, "{path}");
        }
    }
}
