//! Blobs on their way out.
//!
//! A layer that was made here is no file: its tar is written again from the snapshot while it is sent. All of a blob is
//! checked against its digest on the way, so a damaged one breaks the connection instead of arriving.

use std::io::{self, Read, Seek as _, SeekFrom};

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use rbuild_oci::{Descriptor, Digest, MediaType};
use rbuild_store::Store;
use tokio::sync::mpsc;

use super::contents::Found;
use super::entry::{Answer, Call, Refusal, Registry, Repository};
use crate::wire::with_header;

/// Bytes read and handed over at once, and pieces under way.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;

impl Registry {
    /// The size of a blob that the repository has.
    pub(super) fn blob(&self, repository: &Repository, digest: &Digest) -> Result<Option<u64>, Refusal> {
        let store = &self.shelf.store;
        let size = match self.shelf.recently(&repository.local, digest) {
            Some(size) => Some(size),
            None => match self.contents.find(store, self.shelf.roots(&repository.local)?, digest)? {
                Some(Found::Blob(size)) => Some(size),
                Some(Found::Document(_)) | None => None,
            },
        };
        // A document may name what is not here: other platforms, foreign layers.
        match size {
            Some(size) if store.layers().has(digest)? => Ok(Some(size)),
            _ => Ok(None),
        }
    }
}

pub(super) async fn get(call: Call, repository: Repository, digest: Digest) -> Answer {
    let wanted = digest.clone();
    let size = call.blocking(move |registry| registry.blob(&repository, &wanted)).await?;
    let size = size.ok_or_else(|| Refusal::no_blob(&digest))?;
    let range = call.header(header::RANGE).map(|text| Range::parse(text, size));
    let (status, from, len) = match range {
        Some(Range::Part { from, len }) => (StatusCode::PARTIAL_CONTENT, from, len),
        Some(Range::Beyond) => {
            let message = format!("the blob has {size} bytes");
            let mut refusal = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", message);
            refusal.header = Some(("content-range", format!("bytes */{size}")));
            return Err(refusal);
        }
        Some(Range::NotUnderstood) | None => (StatusCode::OK, 0, size),
    };
    let body = if call.is_head() {
        Body::empty()
    } else {
        let store = call.registry.shelf.store.clone();
        stream(store, digest.clone(), from, len, size)
    };
    let mut answer = (status, body).into_response();
    if status == StatusCode::PARTIAL_CONTENT {
        answer = with_header(answer, "content-range", &format!("bytes {from}-{}/{size}", from + len - 1));
    }
    Ok(described(answer, &digest, len))
}

fn described(answer: Response, digest: &Digest, len: u64) -> Response {
    let answer = with_header(answer, "content-length", &len.to_string());
    let answer = with_header(answer, "content-type", "application/octet-stream");
    let answer = with_header(answer, "accept-ranges", "bytes");
    let answer = with_header(answer, "etag", &format!("\"{digest}\""));
    with_header(answer, "docker-content-digest", &digest.to_string())
}

pub(super) async fn delete(call: Call, repository: Repository, digest: Digest) -> Answer {
    call.blocking(move |registry| {
        let roots = registry.shelf.roots(&repository.local)?;
        if let Some(Found::Blob(_)) = registry.contents.find(&registry.shelf.store, roots, &digest)? {
            return Err(Refusal::unsupported("a manifest of the repository has this blob; delete that"));
        }
        match registry.shelf.forget_recent(&repository.local, &digest) {
            true => Ok(StatusCode::ACCEPTED.into_response()),
            false => Err(Refusal::no_blob(&digest)),
        }
    })
    .await
}

/// `len` bytes of a blob from `from` on.
fn stream(store: Store, digest: Digest, from: u64, len: u64, size: u64) -> Body {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES);
    tokio::task::spawn_blocking(move || {
        let sent = open(&store, &digest, from, size).and_then(|reader| pump(reader.take(len), &sender));
        if let Err(error) = sent
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            tracing::error!(%digest, %error, "a blob could not be sent");
            // The connection is to break: a short body must not look whole.
            drop(sender.blocking_send(Err(error)));
        }
    });
    Body::from_stream(futures::stream::unfold(receiver, async |mut receiver| {
        let piece = receiver.recv().await?;
        Some((piece, receiver))
    }))
}

fn open(store: &Store, digest: &Digest, from: u64, size: u64) -> io::Result<Box<dyn Read + Send>> {
    if from > 0 && store.blobs().has(digest).map_err(io::Error::other)? {
        let mut file = store.blobs().open(digest).map_err(io::Error::other)?;
        file.seek(SeekFrom::Start(from))?;
        return Ok(Box::new(file));
    }
    let layer = Descriptor::new(MediaType::OciLayer, digest.clone(), size);
    let mut reader = store.layers().open_layer(&layer).map_err(io::Error::other)?;
    io::copy(&mut (&mut reader).take(from), &mut io::sink())?;
    Ok(reader)
}

fn pump(mut reader: io::Take<Box<dyn Read + Send>>, sender: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        (&mut reader).take(PIECE as u64).read_to_end(&mut piece)?;
        let last = piece.len() < PIECE;
        if last && reader.limit() > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // The check of the digest comes with the read that finds the end, before the last piece is handed over.
        if reader.limit() == 0 {
            io::copy(&mut reader.get_mut().take(1), &mut io::sink())?;
        }
        if !piece.is_empty() {
            sender.blocking_send(Ok(piece.into())).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        }
        if reader.limit() == 0 {
            return Ok(());
        }
    }
}

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Range {
    Part {
        from: u64,
        len: u64,
    },
    Beyond,
    /// Several ranges, another unit: the whole is a right answer to these.
    NotUnderstood,
}

impl Range {
    fn parse(text: &str, size: u64) -> Range {
        let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-')) else {
            return Range::NotUnderstood;
        };
        let (from, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
            (Ok(from), Ok(last)) if last >= from => (from, last.saturating_add(1).min(size)),
            (Ok(from), Err(_)) if last.is_empty() => (from, size),
            (Err(_), Ok(suffix)) if first.is_empty() => (size.saturating_sub(suffix), size),
            _ => return Range::NotUnderstood,
        };
        if from >= end { Range::Beyond } else { Range::Part { from, len: end - from } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let part = |from, len| Range::Part { from, len };
        for (text, want) in [
            ("bytes=0-", part(0, 10)),
            ("bytes=3-", part(3, 7)),
            ("bytes=3-5", part(3, 3)),
            ("bytes=3-99", part(3, 7)),
            ("bytes=-4", part(6, 4)),
            ("bytes=-99", part(0, 10)),
            ("bytes=10-", Range::Beyond),
            ("bytes=-0", Range::Beyond),
            ("bytes=18446744073709551615-18446744073709551615", Range::Beyond),
            ("bytes=5-3", Range::NotUnderstood),
            ("bytes=0-1,3-4", Range::NotUnderstood),
            ("bytes=-", Range::NotUnderstood),
            ("lines=1-2", Range::NotUnderstood),
        ] {
            assert_eq!(Range::parse(text, 10), want, "{text}");
        }
        assert_eq!(Range::parse("bytes=0-", 0), Range::Beyond);
    }
}
