//! Blobs on their way in: sessions that can be continued, and blobs that other repositories have.
//!
//! What came stays with its session when a connection breaks, so a client asks how far it got and goes on from there. A
//! session that nobody touches for an hour is given up.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, StatusCode, header};
use axum::response::IntoResponse as _;
use bytes::Bytes;
use futures::StreamExt as _;
use rbuild_oci::{Algorithm, Digest};
use rbuild_store::{BlobWriter, Lease, Store, StoreError};
use tokio::sync::{OwnedMutexGuard, mpsc};

use super::entry::{Answer, Call, Refusal, Registry, Repository};
use crate::wire::{accepted, created, with_header};

/// How long a session waits for its client.
const WAIT: Duration = Duration::from_secs(3600);
/// Sessions at once; each has a file open.
const SESSIONS: usize = 512;
/// A peer that sends nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Uploads {
    sessions: Mutex<HashMap<String, Session>>,
}

struct Session {
    repository: String,
    partial: Arc<tokio::sync::Mutex<Partial>>,
    touched: Instant,
}

/// What has come. The writer is made with the first byte, when it is known by which algorithm to hash.
struct Partial {
    store: Store,
    lease: Lease,
    algorithm: Option<Algorithm>,
    writer: Option<BlobWriter>,
    size: u64,
    /// Writing failed: the session is good for nothing.
    broken: bool,
}

impl Uploads {
    fn begin(
        &self,
        repository: &Repository,
        store: Store,
        lease: Lease,
        algorithm: Option<Algorithm>,
    ) -> Result<String, Refusal> {
        let mut sessions = self.sessions.lock().unwrap_or_else(|e| e.into_inner());
        sessions.retain(|_, session| session.touched.elapsed() < WAIT);
        if sessions.len() >= SESSIONS {
            let mut refusal = Refusal::new(
                StatusCode::TOO_MANY_REQUESTS,
                "TOOMANYREQUESTS",
                format!("{SESSIONS} uploads are under way already"),
            );
            refusal.header = Some(("retry-after", "10".to_owned()));
            return Err(refusal);
        }
        let mut random = [0; 16];
        getrandom(&mut random)?;
        let id: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let partial = Partial { store, lease, algorithm, writer: None, size: 0, broken: false };
        let partial = Arc::new(tokio::sync::Mutex::new(partial));
        let session = Session { repository: repository.name.clone(), partial, touched: Instant::now() };
        sessions.insert(id.clone(), session);
        Ok(id)
    }

    fn get(&self, repository: &Repository, id: &str) -> Result<Arc<tokio::sync::Mutex<Partial>>, Refusal> {
        let mut sessions = self.sessions.lock().unwrap_or_else(|e| e.into_inner());
        let found = sessions.get_mut(id).filter(|session| session.repository == repository.name);
        let session = found.ok_or_else(|| {
            Refusal::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        })?;
        session.touched = Instant::now();
        Ok(session.partial.clone())
    }

    fn end(&self, id: &str) {
        self.sessions.lock().unwrap_or_else(|e| e.into_inner()).remove(id);
    }
}

fn getrandom(bytes: &mut [u8]) -> Result<(), Refusal> {
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(bytes)
        .map_err(|_| Refusal::internal(&"the system has no random numbers"))
}

/// `POST`: takes a blob over from another repository, or takes all of it at once, or begins a session.
pub(super) async fn begin(call: Call, repository: Repository, body: Body) -> Answer {
    if let Some(mounted) = mount(&call, &repository).await? {
        return Ok(mounted);
    }
    let digest = call.query("digest").map(parse).transpose()?;
    let algorithm = match (call.query("digest-algorithm"), &digest) {
        (Some("sha256"), _) => Some(Algorithm::Sha256),
        (Some("sha512"), _) => Some(Algorithm::Sha512),
        (Some(_), _) => return Err(Refusal::bad("UNSUPPORTED", "the digest algorithm is not supported")),
        (None, digest) => digest.as_ref().map(Digest::algorithm),
    };
    let lease = call.blocking(|registry| Ok(registry.shelf.lease()?)).await?;
    let id = call.registry.uploads.begin(&repository, call.registry.shelf.store.clone(), lease, algorithm)?;
    let Some(digest) = digest else { return Ok(accepted(&repository.name, &id, 0)) };
    let partial = call.registry.uploads.get(&repository, &id)?.lock_owned().await;
    let done = finish(&call, &repository, &digest, partial, body).await;
    call.registry.uploads.end(&id);
    done
}

/// A request about a session.
pub(super) async fn go_on(call: Call, repository: Repository, id: String, body: Body) -> Answer {
    let uploads = &call.registry.uploads;
    let partial = uploads.get(&repository, &id)?;
    match call.parts.method {
        Method::GET => {
            let size = partial.lock().await.size;
            let mut answer = accepted(&repository.name, &id, size);
            *answer.status_mut() = StatusCode::NO_CONTENT;
            Ok(answer)
        }
        Method::DELETE => {
            uploads.end(&id);
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Method::PATCH => {
            let partial = partial.lock_owned().await;
            continues(&call, &repository, &id, partial.size)?;
            let (partial, came) = receive(partial, body).await?;
            if partial.broken {
                uploads.end(&id);
            }
            came?;
            Ok(accepted(&repository.name, &id, partial.size))
        }
        Method::PUT => {
            let digest = call.query("digest").ok_or_else(|| Refusal::bad("DIGEST_INVALID", "no digest was given"))?;
            let digest = parse(digest)?;
            let partial = partial.lock_owned().await;
            continues(&call, &repository, &id, partial.size)?;
            let done = finish(&call, &repository, &digest, partial, body).await;
            // After a cut the session can be asked how far it got; any other end is its end.
            if !matches!(&done, Err(refusal) if refusal.code == CUT) {
                uploads.end(&id);
            }
            done
        }
        _ => Err(Refusal::unsupported("this method is not for uploads")),
    }
}

/// The code of the refusal that nobody hears: the peer is gone.
const CUT: &str = "BLOB_UPLOAD_INVALID";

fn parse(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(|_| Refusal::bad("DIGEST_INVALID", "invalid digest"))
}

/// A chunk that says where it belongs must belong where the upload stands.
fn continues(call: &Call, repository: &Repository, id: &str, size: u64) -> Result<(), Refusal> {
    let Some(range) = call.header(header::CONTENT_RANGE) else { return Ok(()) };
    let first = range.trim_start_matches("bytes ").split('-').next().and_then(|n| n.trim().parse::<u64>().ok());
    if first == Some(size) {
        return Ok(());
    }
    let message = format!("the upload stands at {size} bytes");
    let mut refusal = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", message);
    refusal.header = Some(("range", format!("0-{}", size.saturating_sub(1))));
    tracing::debug!(repository = repository.name, id, size, "a chunk out of order");
    Err(refusal)
}

async fn mount(call: &Call, repository: &Repository) -> Result<Option<axum::response::Response>, Refusal> {
    let (Some(digest), Some(from)) = (call.query("mount"), call.query("from")) else { return Ok(None) };
    let digest = parse(digest)?;
    let Some(local) = call.registry.names.local(from) else { return Ok(None) };
    let from = Repository { name: from.to_owned(), local };
    let (to, wanted) = (repository.clone(), digest.clone());
    let mounted = call
        .blocking(move |registry| {
            let Some(size) = registry.blob(&from, &wanted)? else { return Ok(false) };
            registry.shelf.store.blobs().hold(&wanted, &registry.shelf.lease()?)?;
            registry.shelf.came(&to.local, &wanted, size);
            Ok(true)
        })
        .await?;
    Ok(mounted.then(|| created(&format!("/v2/{}/blobs/{digest}", repository.name), &digest)))
}

/// Takes the rest and, when the digest is right, makes the blob known.
async fn finish(
    call: &Call,
    repository: &Repository,
    digest: &Digest,
    mut partial: OwnedMutexGuard<Partial>,
    body: Body,
) -> Answer {
    if partial.writer.is_none() {
        partial.algorithm = Some(digest.algorithm());
    } else if partial.algorithm.unwrap_or(Algorithm::Sha256) != digest.algorithm() {
        let message = "the upload was begun for another digest algorithm (see digest-algorithm)";
        return Err(Refusal::bad("DIGEST_INVALID", message));
    }
    let (mut partial, came) = receive(partial, body).await?;
    came?;
    let (wanted, local) = (digest.clone(), repository.local.clone());
    let kept = call
        .blocking(move |registry: &Registry| {
            let writer = match partial.writer.take() {
                Some(writer) => writer,
                None => registry.shelf.store.blobs().writer_for(&wanted, &partial.lease)?,
            };
            let size = match writer.commit(Some(&wanted), None) {
                Err(StoreError::WrongDigest { .. }) => {
                    let message = "provided digest did not match uploaded content";
                    return Err(Refusal::bad("DIGEST_INVALID", message));
                }
                committed => committed?.1,
            };
            registry.shelf.came(&local, &wanted, size);
            Ok(())
        })
        .await;
    kept?;
    let answer = created(&format!("/v2/{}/blobs/{digest}", repository.name), digest);
    Ok(with_header(answer, "content-length", "0"))
}

/// Writes a body behind what came before. On a task of its own: when the peer goes away, what came is still kept.
async fn receive(
    partial: OwnedMutexGuard<Partial>,
    body: Body,
) -> Result<(OwnedMutexGuard<Partial>, Result<(), Refusal>), Refusal> {
    let (sender, receiver) = mpsc::channel::<Bytes>(16);
    let writing = tokio::task::spawn_blocking(move || write(partial, receiver));
    let received = tokio::spawn(async move {
        let mut pieces = body.into_data_stream();
        let cut = || Refusal::bad(CUT, "the body was cut");
        let came = loop {
            match tokio::time::timeout(SILENCE, pieces.next()).await {
                Ok(None) => break Ok(()),
                Ok(Some(Ok(piece))) => {
                    if sender.send(piece).await.is_err() {
                        break Ok(()); // the writer has its own error to tell
                    }
                }
                Ok(Some(Err(_))) | Err(_) => break Err(cut()),
            }
        };
        drop(sender);
        let (partial, written) = writing.await.map_err(|error| Refusal::internal(&error))?;
        Ok((partial, written.map_err(Refusal::from).and(came)))
    });
    received.await.unwrap_or_else(|error| Err(Refusal::internal(&error)))
}

fn write(
    mut partial: OwnedMutexGuard<Partial>,
    mut pieces: mpsc::Receiver<Bytes>,
) -> (OwnedMutexGuard<Partial>, Result<(), StoreError>) {
    let written = (|| {
        while let Some(piece) = pieces.blocking_recv() {
            let partial = &mut *partial;
            let writer = match &mut partial.writer {
                Some(writer) => writer,
                none => none.insert(
                    partial.store.blobs().writer_by(partial.algorithm.unwrap_or(Algorithm::Sha256), &partial.lease)?,
                ),
            };
            writer.write_all(&piece).map_err(|e| StoreError::io("writing an upload", e))?;
            partial.size += piece.len() as u64;
        }
        Ok(())
    })();
    partial.broken |= written.is_err();
    (partial, written)
}
