//! Ways to misbehave.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt as _;

/// What goes wrong, for requests of `method` whose path contains `part`, so many times.
#[derive(Debug, Clone)]
pub struct Fault {
    pub method: &'static str,
    pub part: String,
    pub times: usize,
    pub action: Action,
}

#[derive(Debug, Clone)]
pub enum Action {
    /// Answers with this status, and `Retry-After` where given.
    Status(u16, Option<u64>),
    /// Sends so many bytes of the body it promised, then breaks the connection.
    CutAfter(u64),
    /// Replaces the body by other bytes of the same length.
    OtherBytes,
    /// Declares and sends a body of this many bytes.
    Oversized(u64),
    /// Sends an endless body without a length.
    Endless,
    /// Redirects there.
    Redirect(String),
    /// Does what was asked, then answers with this status: the answer of a finished request got lost.
    DoneBut(u16),
    /// Claims this digest in `Docker-Content-Digest`.
    ClaimDigest(String),
    /// Every token that was given out is worthless before this request is looked at.
    ExpireTokens,
    /// Waits before it answers.
    Delay(Duration),
}

impl Fault {
    pub fn new(method: &'static str, part: &str, action: Action) -> Fault {
        Fault { method, part: part.to_owned(), times: 1, action }
    }

    #[must_use]
    pub fn times(mut self, times: usize) -> Fault {
        self.times = times;
        self
    }
}

/// The action of the first fault that fits, used up by one.
pub(super) fn take(faults: &mut Vec<Fault>, method: &str, path: &str) -> Option<Action> {
    let at = faults.iter().position(|f| f.method == method && path.contains(&f.part) && f.times > 0)?;
    faults[at].times -= 1;
    let action = faults[at].action.clone();
    faults.retain(|f| f.times > 0);
    Some(action)
}

/// A body that breaks after `keep` bytes of `bytes`.
pub(super) fn cut(bytes: Bytes, keep: u64) -> Body {
    let kept = bytes.slice(..(keep as usize).min(bytes.len()));
    let pieces = futures::stream::once(async move { Ok(kept) }).chain(futures::stream::once(async {
        // What was sent has to be on its way before the connection breaks.
        tokio::time::sleep(Duration::from_millis(30)).await;
        Err(std::io::Error::other("cut"))
    }));
    Body::from_stream(pieces)
}

pub(super) fn endless() -> Body {
    let piece = Bytes::from(vec![b' '; 64 << 10]);
    Body::from_stream(futures::stream::repeat_with(move || Ok::<_, std::io::Error>(piece.clone())))
}

/// The whole body of an answer made here.
pub(super) async fn whole(answer: Response) -> (axum::http::response::Parts, Bytes) {
    let (parts, body) = answer.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    (parts, bytes)
}
