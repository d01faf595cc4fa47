//! A blob's way into a registry.
//!
//! The bytes come from a function that can make them again. When digest and size are known beforehand, it is one PUT after
//! the POST; when they are only known at the end (a layer compressed on the way), a PATCH carries the stream and an empty
//! PUT names the digest.
//!
//! An upload that broke goes on where the registry says it stands, also in a later run of the program: where it was is
//! written down, for a known blob under its digest, for a stream under the name of what it is made of. The registry's word
//! is not trusted for that, and neither is it that the same bytes were made again, since the digest that the last request
//! names is of all of them; when it does not fit, the upload starts anew.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rbuild_oci::{Digest, Sha256};
use rbuild_store::Store;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, LOCATION, RANGE};
use reqwest::{Method, Response, StatusCode};
use tokio::sync::mpsc;
use url::Url;

use crate::auth::Scope;
use crate::client::{Access, Client, content_digest, failure, header};
use crate::transport::{Ask, busy};
use crate::{Error, ledger};

/// Writes all bytes of a blob, each time it is called.
pub type Produce = Arc<dyn Fn(&mut dyn Write) -> io::Result<()> + Send + Sync>;

/// What to upload.
#[derive(Clone)]
pub(crate) struct Content {
    pub produce: Produce,
    pub named: Named,
}

/// What a blob is called before its bytes are made.
#[derive(Clone)]
pub(crate) enum Named {
    /// Its digest and size.
    Blob(Digest, u64),
    /// They show at the end; the same name gives the same bytes again.
    Stream(Digest),
}

impl Content {
    fn known(&self) -> Option<(&Digest, u64)> {
        match &self.named {
            Named::Blob(digest, size) => Some((digest, *size)),
            Named::Stream(_) => None,
        }
    }

    fn name(&self) -> &Digest {
        let (Named::Blob(name, _) | Named::Stream(name)) = &self.named;
        name
    }

    /// Small blobs are sent again sooner than it is written down where they are.
    fn is_worth_noting(&self) -> bool {
        self.known().is_none_or(|(_, size)| size >= WORTH)
    }
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Uploaded {
    /// The registry took it over from another of its repositories.
    Mounted {
        from: String,
    },
    Sent {
        digest: Digest,
        size: u64,
    },
}

/// Where blobs go.
#[derive(Clone)]
pub(crate) struct Destination {
    pub client: Client,
    pub access: Access,
    pub repository: String,
    pub sessions: Sessions,
}

/// Where uploads that are not finished go on, by blob.
#[derive(Clone, Default)]
pub(crate) struct Sessions {
    known: Arc<Mutex<HashMap<Digest, Url>>>,
    /// Remembers them for later runs.
    store: Option<Store>,
}

impl Sessions {
    pub(crate) fn kept_in(store: &Store) -> Sessions {
        Sessions { store: Some(store.clone()), ..Sessions::default() }
    }
}

/// Bytes handed over at once, and pieces under way: memory stays flat whatever the blob's size.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;
/// From this size on it is written down where the upload of a blob is.
const WORTH: u64 = 1 << 20;

impl Destination {
    pub(crate) fn scope(&self) -> Scope {
        Scope::push(&self.repository)
    }

    /// Whether the blob is there. A registry that cannot say counts as "no".
    pub(crate) async fn has(&self, digest: &Digest) -> Result<bool, Error> {
        let ask = self.access.ask(Method::HEAD, &format!("{}/blobs/{digest}", self.repository))?;
        let answer = self.client.call(&self.access, &self.scope(), &ask).await?;
        match answer.status() {
            s if s.is_success() => Ok(true),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(failure(&ask.shown(), answer).await),
            _ => Ok(false),
        }
    }

    /// Brings `content` there. `mount` names a repository of the same registry that has the blob. `progress` is told how
    /// many bytes were taken; it starts again when the upload does.
    pub(crate) async fn put(
        &self,
        content: &Content,
        mount: Option<&str>,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Uploaded, Error> {
        let retry = self.client.transport().retry;
        let mut mount = mount;
        let mut failed = 0;
        loop {
            let attempt = self.attempt(content, mount.take(), progress).await;
            let broken = match attempt {
                Ok(done) => {
                    self.remember(content, None).await;
                    return Ok(done);
                }
                Err(Broken { again: false, error, .. }) => return Err(error),
                Err(broken) => broken,
            };
            failed += 1;
            // The answer may have got lost after the blob arrived.
            let made = broken.made.as_ref().map(|(digest, size)| (digest, *size));
            if let Some((digest, size)) = made.or(content.known())
                && let Ok(true) = self.has(digest).await
            {
                self.remember(content, None).await;
                return Ok(Uploaded::Sent { digest: digest.clone(), size });
            }
            if failed >= retry.attempts {
                return Err(broken.error);
            }
            tracing::debug!(error = %broken.error, "uploading again");
            tokio::time::sleep(retry.pause(failed, None)).await;
        }
    }

    async fn attempt(
        &self,
        content: &Content,
        mount: Option<&str>,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Uploaded, Broken> {
        if let Some((place, from)) = self.unfinished(content).await {
            let gone_on = self.go_on(content, place, from, progress).await;
            // What the registry did not like is not tried a second time from there. A connection that broke is no reason.
            if gone_on.as_ref().is_err_and(|broken| !matches!(broken.error, Error::Unreachable { .. })) {
                self.remember(content, None).await;
            }
            return gone_on;
        }
        let place = match self.begin(content, mount).await? {
            Begun::Mounted(from) => return Ok(Uploaded::Mounted { from }),
            Begun::At(place) => place,
        };
        self.remember(content, Some(&place)).await;
        let (digest, size) = match content.known() {
            Some((digest, size)) => {
                let ask = self.octets(Method::PUT, with_digest(place, digest));
                let (answer, made) = self.stream(&ask, content, 0, Some(size), progress).await?;
                self.finished(&ask, answer, &made).await?;
                (digest.clone(), size)
            }
            None => {
                let ask = self.octets(Method::PATCH, place);
                let (answer, made) = self.stream(&ask, content, 0, None, progress).await?;
                let place = self.location(&ask, answer, StatusCode::ACCEPTED, Some(&made)).await?;
                let ask = self.octets(Method::PUT, with_digest(place, &made.0));
                let answer = self.client.call(&self.access, &self.scope(), &ask).await;
                let answer = answer.map_err(|error| Broken { error, again: true, made: Some(made.clone()) })?;
                self.finished(&ask, answer, &made).await?;
                made
            }
        };
        Ok(Uploaded::Sent { digest, size })
    }

    /// Sends what lacks of an upload that stands at `from`.
    async fn go_on(
        &self,
        content: &Content,
        place: Url,
        from: u64,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Uploaded, Broken> {
        let size = content.known().map(|(_, size)| size);
        tracing::debug!(name = %content.name(), from, size, "an upload goes on");
        let mut ask = self.octets(Method::PATCH, place);
        if let Some(size) = size {
            let range = HeaderValue::from_str(&format!("{from}-{}", size - 1));
            ask.headers.insert(CONTENT_RANGE, range.map_err(|e| Error::Options(e.to_string()))?);
        }
        let (answer, made) = self.stream(&ask, content, from, size.map(|size| size - from), progress).await?;
        let place = self.location(&ask, answer, StatusCode::ACCEPTED, Some(&made)).await?;
        let digest = content.known().map_or_else(|| made.0.clone(), |(digest, _)| digest.clone());
        let ask = self.octets(Method::PUT, with_digest(place, &digest));
        let answer = self.client.call(&self.access, &self.scope(), &ask).await;
        let answer = answer.map_err(|error| Broken { error, again: true, made: Some(made.clone()) })?;
        self.finished(&ask, answer, &made).await?;
        Ok(Uploaded::Sent { digest, size: made.1 })
    }

    /// Where the upload of a blob was left, and how many bytes the registry has of it.
    async fn unfinished(&self, content: &Content) -> Option<(Url, u64)> {
        let place = self.remembered(content).await?;
        let size = content.known().map_or(u64::MAX, |(_, size)| size);
        let ask = self.octets(Method::GET, place.clone());
        let answer = self.client.call(&self.access, &self.scope(), &ask).await.ok()?;
        let stands = header(answer.headers(), &RANGE).and_then(|range| range.rsplit('-').next()?.parse::<u64>().ok());
        // "0-0" is one byte or none.
        let last = stands.filter(|last| answer.status() == StatusCode::NO_CONTENT && *last > 0 && *last + 1 < size);
        let Some(last) = last else {
            self.remember(content, None).await;
            return None;
        };
        let next = header(answer.headers(), &LOCATION).and_then(|place| ask.url.join(place).ok());
        let next = next.filter(|next| next.origin() == place.origin()).unwrap_or(place);
        Some((next, last + 1))
    }

    async fn remembered(&self, content: &Content) -> Option<Url> {
        let known = self.sessions.known.lock().unwrap_or_else(|e| e.into_inner()).get(content.name()).cloned();
        if known.is_some() || !content.is_worth_noting() {
            return known;
        }
        let (store, digest) = (self.sessions.store.clone()?, content.name().clone());
        let (registry, repository) = (self.access.credentials.clone(), self.repository.clone());
        let found = tokio::task::spawn_blocking(move || ledger::upload(&store, &registry, &repository, &digest)).await;
        // What cannot be read is not known: the upload starts anew.
        let place = Url::parse(&found.ok()?.ok()??).ok()?;
        // Only where this registry is spoken to now.
        (place.origin() == self.access.base.origin()).then_some(place)
    }

    /// Notes where the upload of a blob is; `None` when there is nothing to go on with.
    async fn remember(&self, content: &Content, place: Option<&Url>) {
        let digest = content.name().clone();
        {
            let mut known = self.sessions.known.lock().unwrap_or_else(|e| e.into_inner());
            match place {
                Some(place) => known.insert(digest.clone(), place.clone()),
                None => known.remove(&digest),
            };
        }
        if !content.is_worth_noting() {
            return;
        }
        let Some(store) = self.sessions.store.clone() else { return };
        let (registry, repository) = (self.access.credentials.clone(), self.repository.clone());
        let place = place.map(Url::to_string);
        let noted = tokio::task::spawn_blocking(move || {
            ledger::remember_upload(&store, &registry, &repository, &digest, place.as_deref())
        });
        if let Ok(Err(error)) = noted.await {
            tracing::debug!(%error, "an upload could not be noted");
        }
    }

    /// Asks the registry to take a blob over from another repository; false when it will not.
    pub(crate) async fn mount(&self, digest: &Digest, from: &str) -> Result<bool, Error> {
        match self.try_mount(digest, from).await {
            Ok(Some(Begun::Mounted(_))) => Ok(true),
            Ok(_) => Ok(false),
            Err(broken) => Err(broken.error),
        }
    }

    /// Who may not read the other repository still may upload: then there is nothing.
    async fn try_mount(&self, digest: &Digest, from: &str) -> Result<Option<Begun>, Broken> {
        let mut ask = self.access.ask(Method::POST, &format!("{}/blobs/uploads/", self.repository))?;
        ask.url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
        ask.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        let Ok(answer) = self.client.call(&self.access, &self.scope().and_pull(from), &ask).await else {
            return Ok(None);
        };
        match answer.status() {
            StatusCode::CREATED => Ok(Some(Begun::Mounted(from.to_owned()))),
            StatusCode::ACCEPTED => {
                self.location(&ask, answer, StatusCode::ACCEPTED, None).await.map(|place| Some(Begun::At(place)))
            }
            _ => Ok(None),
        }
    }

    async fn begin(&self, content: &Content, mount: Option<&str>) -> Result<Begun, Broken> {
        if let (Some(from), Some((digest, _))) = (mount, content.known())
            && let Some(begun) = self.try_mount(digest, from).await?
        {
            return Ok(begun);
        }
        let mut ask = self.access.ask(Method::POST, &format!("{}/blobs/uploads/", self.repository))?;
        ask.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        let answer = self.client.call(&self.access, &self.scope(), &ask).await?;
        self.location(&ask, answer, StatusCode::ACCEPTED, None).await.map(Begun::At)
    }

    /// Sends the body while it is made, without its first `skip` bytes. Gives the digest and size of what was made.
    async fn stream(
        &self,
        ask: &Ask,
        content: &Content,
        skip: u64,
        length: Option<u64>,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(Response, (Digest, u64)), Broken> {
        let (sender, receiver) = mpsc::channel::<Bytes>(PIECES);
        let produce = content.produce.clone();
        let made = tokio::task::spawn_blocking(move || -> io::Result<(Digest, u64)> {
            let mut sink = Sink { sender, piece: Vec::with_capacity(PIECE), hash: Sha256::new(), size: 0, skip };
            produce(&mut sink)?;
            sink.flush()?;
            Ok((sink.hash.finish(), sink.size))
        });
        let pulse = Arc::new(AtomicU64::new(skip));
        let taken = pulse.clone();
        let stream = futures::stream::unfold(receiver, move |mut receiver| {
            let taken = taken.clone();
            async move {
                let piece: Bytes = receiver.recv().await?;
                taken.fetch_add(piece.len() as u64, Ordering::Relaxed);
                Some((Ok::<_, io::Error>(piece), receiver))
            }
        });
        let mut ask = ask.clone();
        if let Some(length) = length {
            ask.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        let scope = self.scope();
        let used = self.client.authorization(&self.access, &scope, &ask.url).await;
        let body = reqwest::Body::wrap_stream(stream);
        let sending = self.client.transport().send_stream(&ask, used.as_ref(), body, &pulse);
        let answer = watched(sending, &pulse, progress).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                // A failure to make the bytes shows as a broken body: the cause is worth more than the effect.
                let error = match made.await {
                    Ok(Err(e)) if e.kind() != io::ErrorKind::BrokenPipe => return Err(cannot_read(e)),
                    _ => error,
                };
                return Err(Broken { error, again: true, made: None });
            }
        };
        if answer.status() == StatusCode::UNAUTHORIZED && ask.url.origin() == self.access.base.origin() {
            self.client.reauthorize(&self.access, &scope, &ask.shown(), &answer, used.as_ref()).await?;
            let error = failure(&ask.shown(), answer).await;
            return Err(Broken { error, again: true, made: None });
        }
        if !answer.status().is_success() {
            return Err(self.refused(&ask, answer, None).await);
        }
        match made.await {
            Ok(Ok(made)) => Ok((answer, made)),
            Ok(Err(e)) if e.kind() == io::ErrorKind::BrokenPipe => {
                let what = "an answer before the body was read".into();
                Err(Broken { error: Error::Refused { request: ask.shown(), what }, again: true, made: None })
            }
            Ok(Err(e)) => Err(cannot_read(e)),
            Err(e) => Err(Error::Options(format!("the task that makes the blob failed: {e}")).into()),
        }
    }

    async fn finished(&self, ask: &Ask, answer: Response, made: &(Digest, u64)) -> Result<(), Broken> {
        if !answer.status().is_success() {
            return Err(self.refused(ask, answer, Some(made)).await);
        }
        match content_digest(answer.headers()) {
            Some(claimed) if claimed.algorithm() == made.0.algorithm() && claimed != made.0 => {
                let what = "the blob the registry says it stored".into();
                Err(Error::WrongDigest { what, expected: made.0.clone(), actual: claimed }.into())
            }
            _ => Ok(()),
        }
    }

    async fn refused(&self, ask: &Ask, answer: Response, made: Option<&(Digest, u64)>) -> Broken {
        let status = answer.status();
        // A session that is gone, and bytes that were garbled on the way, deserve another try.
        let again = busy(status) || matches!(status.as_u16(), 400 | 404 | 416);
        Broken { error: failure(&ask.shown(), answer).await, again, made: made.cloned() }
    }

    /// Where the upload goes on.
    async fn location(
        &self,
        ask: &Ask,
        answer: Response,
        want: StatusCode,
        made: Option<&(Digest, u64)>,
    ) -> Result<Url, Broken> {
        if answer.status() != want && !answer.status().is_success() {
            return Err(self.refused(ask, answer, made).await);
        }
        let place = header(answer.headers(), &LOCATION).and_then(|l| ask.url.join(l).ok());
        let place = place.filter(|u| matches!(u.scheme(), "http" | "https"));
        let downgrade = place.as_ref().is_some_and(|u| ask.url.scheme() == "https" && u.scheme() == "http");
        match place.filter(|_| !downgrade) {
            Some(place) => Ok(place),
            None => {
                let what = "an upload without a usable Location".into();
                Err(Error::Refused { request: ask.shown(), what }.into())
            }
        }
    }

    fn octets(&self, method: Method, url: Url) -> Ask {
        let mut ask = self.access.ask_at(method, url);
        ask.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        ask
    }
}

enum Begun {
    Mounted(String),
    At(Url),
}

/// An attempt that did not succeed.
struct Broken {
    error: Error,
    again: bool,
    /// What was sent completely, if it was.
    made: Option<(Digest, u64)>,
}

impl From<Error> for Broken {
    fn from(error: Error) -> Broken {
        Broken { error, again: false, made: None }
    }
}

fn cannot_read(error: io::Error) -> Broken {
    Error::Options(format!("reading what is to be pushed: {error}")).into()
}

fn with_digest(mut place: Url, digest: &Digest) -> Url {
    place.query_pairs_mut().append_pair("digest", &digest.to_string());
    place
}

/// Tells `progress` about `pulse` while `sending` goes on.
async fn watched<T>(sending: impl Future<Output = T>, pulse: &AtomicU64, progress: &(dyn Fn(u64) + Send + Sync)) -> T {
    let mut sending = std::pin::pin!(sending);
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(100));
    loop {
        tokio::select! {
            done = &mut sending => {
                progress(pulse.load(Ordering::Relaxed));
                return done;
            }
            _ = tick.tick() => progress(pulse.load(Ordering::Relaxed)),
        }
    }
}

/// Hashes, counts and hands over in pieces.
struct Sink {
    sender: mpsc::Sender<Bytes>,
    piece: Vec<u8>,
    hash: Sha256,
    size: u64,
    /// Bytes that are hashed and not handed over.
    skip: u64,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        let skipped = self.skip.min(bytes.len() as u64);
        self.skip -= skipped;
        self.piece.extend_from_slice(&bytes[skipped as usize..]);
        if self.piece.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE)));
        self.sender.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
