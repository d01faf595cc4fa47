//! A blob's body that survives cuts.
//!
//! A broken transfer goes on where it stopped (`Range`); a registry that knows no ranges sends all again and what is
//! already there is skipped; an endpoint that gives up is replaced by the next, and behind the last, for layers that are
//! not to be distributed, come the web addresses in their descriptors. Nothing here trusts what comes: the
//! size is enforced while it streams, the digest is for whoever takes the bytes ([`BlobStream`], or the store's writer).

use bytes::Bytes;
use rbuild_oci::{Algorithm, Descriptor, Digest, Reference};
use reqwest::header::{CONTENT_RANGE, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode};
use sha2::Digest as _;
use url::Url;

use crate::auth::Scope;
use crate::client::{Client, failure, header};
use crate::mirrors::Endpoint;
use crate::transport::{Ask, check_identity};
use crate::{Error, transport};

/// The bytes of a blob, not yet verified.
pub(crate) struct Download {
    client: Client,
    endpoints: Vec<Endpoint>,
    /// The endpoint in use; behind the last of them, the web addresses.
    at: usize,
    /// Where a layer that registries may not give away can be had, as its descriptor says.
    addresses: Vec<Url>,
    repository: String,
    registry: String,
    blob: Descriptor,
    /// Bytes handed out.
    received: u64,
    /// Bytes of the current body that were handed out before.
    skip: u64,
    body: Option<Response>,
    /// Cuts since the last byte of progress, and in all.
    failed: u32,
    cuts: u32,
    ranges: bool,
}

/// More web addresses of a layer than this are not tried.
const ADDRESSES: usize = 4;
/// However slowly it goes on, a blob is not worth more requests than this.
const CUTS: u32 = 24;

impl Download {
    pub(crate) fn new(client: Client, endpoints: Vec<Endpoint>, reference: &Reference, blob: &Descriptor) -> Download {
        Download {
            client,
            endpoints,
            at: 0,
            addresses: addresses(blob),
            repository: reference.repository().to_owned(),
            registry: reference.registry().to_owned(),
            blob: blob.clone(),
            received: 0,
            skip: 0,
            body: None,
            failed: 0,
            cuts: 0,
            ranges: true,
        }
    }

    /// Whether the bytes were put together from several answers.
    pub(crate) fn was_cut(&self) -> bool {
        self.cuts > 0
    }

    /// The next bytes; `None` after exactly the declared size.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if self.body.is_none() {
                if self.received == self.blob.size {
                    return Ok(None);
                }
                self.open().await?;
            }
            let Some(body) = self.body.as_mut() else { continue };
            match transport::chunk(body).await {
                Ok(Some(mut chunk)) => {
                    let skipped = self.skip.min(chunk.len() as u64);
                    self.skip -= skipped;
                    let chunk = chunk.split_off(skipped as usize);
                    if chunk.is_empty() {
                        continue;
                    }
                    let received = self.received + chunk.len() as u64;
                    if received > self.blob.size {
                        return Err(self.wrong_size(received));
                    }
                    self.received = received;
                    self.failed = 0;
                    return Ok(Some(chunk));
                }
                Ok(None) if self.received == self.blob.size => {
                    self.body = None;
                    return Ok(None);
                }
                Ok(None) => self.cut("the body ended early".into()).await?,
                // All bytes are there; how the connection ended says nothing.
                Err(_) if self.received == self.blob.size => {
                    self.body = None;
                    return Ok(None);
                }
                Err(reason) => self.cut(reason).await?,
            }
        }
    }

    async fn cut(&mut self, reason: String) -> Result<(), Error> {
        self.body = None;
        self.failed += 1;
        self.cuts += 1;
        tracing::debug!(digest = %self.blob.digest, received = self.received, reason, "transfer cut");
        let retry = self.client.transport().retry;
        if self.failed >= retry.attempts || self.cuts >= CUTS {
            if self.at + 1 < self.places() {
                self.at += 1;
                self.failed = 0;
                self.cuts = 1;
                return Ok(());
            }
            let (digest, received, size) = (self.blob.digest.clone(), self.received, self.blob.size);
            return Err(Error::Interrupted { digest, received, size, reason });
        }
        tokio::time::sleep(retry.pause(self.failed, None)).await;
        Ok(())
    }

    /// Asks the endpoints from the current one on, until one begins to send.
    async fn open(&mut self) -> Result<(), Error> {
        loop {
            match self.open_here().await {
                Ok(body) => {
                    self.body = Some(body);
                    return Ok(());
                }
                Err(e) if e.try_elsewhere() && self.at + 1 < self.places() => {
                    tracing::debug!(digest = %self.blob.digest, error = %e, "trying the next endpoint");
                    self.at += 1;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// How many places there are to ask.
    fn places(&self) -> usize {
        self.endpoints.len() + self.addresses.len()
    }

    async fn open_here(&mut self) -> Result<Response, Error> {
        let Some(endpoint) = self.endpoints.get(self.at) else {
            // Somebody else's server: it is shown no credential, and nothing that is configured for registries.
            let address = self.addresses[self.at - self.endpoints.len()].clone();
            let ask = self.ranged(Ask::new(Method::GET, address, false))?;
            let answer = self.client.transport().send(&ask, None).await?;
            return self.begun(&ask, answer).await;
        };
        let access = self.client.access(endpoint).await?;
        let scope = Scope::pull(&self.repository);
        let ask = access.ask(Method::GET, &format!("{}/blobs/{}", self.repository, self.blob.digest))?;
        let ask = self.ranged(ask)?;
        let answer = self.client.call(&access, &scope, &ask).await?;
        self.begun(&ask, answer).await
    }

    /// Asks for what lacks.
    fn ranged(&self, mut ask: Ask) -> Result<Ask, Error> {
        let from = if self.ranges { self.received } else { 0 };
        if from > 0 {
            let range = HeaderValue::from_str(&format!("bytes={from}-")).map_err(|e| Error::Options(e.to_string()))?;
            ask.headers.insert(RANGE, range);
        }
        Ok(ask)
    }

    /// The body that an answer begins, at the place that was asked for or at the beginning.
    async fn begun(&mut self, ask: &Ask, answer: Response) -> Result<Response, Error> {
        let from = if self.ranges { self.received } else { 0 };
        let request = ask.shown();
        check_identity(&answer, &request)?;
        let (begin, length) = match answer.status() {
            StatusCode::OK => (0, answer.content_length()),
            StatusCode::PARTIAL_CONTENT if from > 0 && range_start(&answer) == Some(from) => {
                (from, answer.content_length())
            }
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => {
                // A registry that misunderstands ranges is asked for all of it.
                self.ranges = false;
                return Box::pin(self.open_here()).await;
            }
            StatusCode::NOT_FOUND => {
                let repository = format!("{}/{}", self.registry, self.repository);
                let reason = transport::reason(answer).await;
                return Err(Error::BlobNotFound { repository, digest: self.blob.digest.clone(), reason });
            }
            _ => return Err(failure(&request, answer).await),
        };
        if let Some(length) = length.filter(|n| begin + n != self.blob.size) {
            return Err(self.wrong_size(begin + length));
        }
        self.skip = self.received - begin;
        Ok(answer)
    }

    fn wrong_size(&self, actual: u64) -> Error {
        Error::WrongSize { what: format!("blob {}", self.blob.digest), expected: self.blob.size, actual }
    }
}

/// The web addresses that the descriptor of a layer gives, if it is one that registries need not have.
fn addresses(blob: &Descriptor) -> Vec<Url> {
    if !blob.media_type.is_foreign_layer() {
        return Vec::new();
    }
    let urls = blob.urls.iter().filter_map(|url| Url::parse(url).ok());
    urls.filter(|url| matches!(url.scheme(), "http" | "https")).take(ADDRESSES).collect()
}

fn range_start(answer: &Response) -> Option<u64> {
    header(answer.headers(), &CONTENT_RANGE)?.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// A blob whose digest is checked when its last byte has come: only after `None` may the bytes be believed.
pub struct BlobStream {
    download: Download,
    hash: Hash,
}

enum Hash {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
    Done,
}

impl BlobStream {
    pub(crate) fn new(download: Download) -> BlobStream {
        let hash = match download.blob.digest.algorithm() {
            Algorithm::Sha512 => Hash::Sha512(sha2::Sha512::new()),
            Algorithm::Sha256 => Hash::Sha256(sha2::Sha256::new()),
        };
        BlobStream { download, hash }
    }

    /// Bytes the blob has in all.
    pub fn size(&self) -> u64 {
        self.download.blob.size
    }

    /// The next bytes; `None` once all have come and the digest is right.
    ///
    /// # Errors
    /// The digest or the size is wrong, or the transfer broke for good.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        if let Some(chunk) = self.download.chunk().await? {
            match &mut self.hash {
                Hash::Sha256(h) => h.update(&chunk),
                Hash::Sha512(h) => h.update(&chunk),
                Hash::Done => {}
            }
            return Ok(Some(chunk));
        }
        let hex = match std::mem::replace(&mut self.hash, Hash::Done) {
            Hash::Sha256(h) => format!("sha256:{}", hex(&h.finalize())),
            Hash::Sha512(h) => format!("sha512:{}", hex(&h.finalize())),
            Hash::Done => return Ok(None),
        };
        let actual: Digest = hex.parse()?;
        let expected = self.download.blob.digest.clone();
        if actual != expected {
            return Err(Error::WrongDigest { what: "the blob that came".into(), expected, actual });
        }
        Ok(None)
    }

    /// All of it, verified, when it is no larger than `limit`.
    pub async fn bytes(mut self, limit: u64, what: &str) -> Result<Bytes, Error> {
        if self.size() > limit {
            return Err(Error::TooLarge { what: what.to_owned(), limit });
        }
        let mut out = bytes::BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            out.extend_from_slice(&chunk);
        }
        Ok(out.freeze())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
