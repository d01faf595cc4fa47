//! One HTTP request, done properly: redirects, retries, bounds.
//!
//! Redirects are followed here and not by the HTTP library, because what goes along is our decision: the
//! `Authorization` header stays with the origin it was made for, and only http(s) is followed, never from https down
//! to http. Retries are here and not in each caller, so that a reason to give up is written once.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rbuild_oci::limits;
use reqwest::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, USER_AGENT,
};
use reqwest::{Method, Response, StatusCode};
use url::Url;

use crate::tls::{self, Roots};
use crate::{Error, Trust, text};

/// How often and how patiently a request is repeated.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Tries in all, the first included.
    pub attempts: u32,
    /// The pause after the first failure; it doubles each time, with jitter.
    pub first: Duration,
    /// No pause is longer, whatever `Retry-After` says.
    pub longest: Duration,
}

impl Default for Retry {
    fn default() -> Retry {
        Retry { attempts: 6, first: Duration::from_millis(250), longest: Duration::from_secs(30) }
    }
}

impl Retry {
    /// The pause after failure number `failed` (from 1).
    pub(crate) fn pause(&self, failed: u32, asked: Option<Duration>) -> Duration {
        if let Some(asked) = asked {
            return asked.min(self.longest);
        }
        let full = self.first.saturating_mul(1 << failed.saturating_sub(1).min(10)).min(self.longest);
        let random = RandomState::new().build_hasher().finish() % 512;
        full.mul_f64(0.75 + random as f64 / 1024.0)
    }
}

/// Proxies, as the usual variables give them; the caller reads those.
#[derive(Clone, Default)]
pub struct Proxies {
    pub http: Option<String>,
    pub https: Option<String>,
    /// The value of `NO_PROXY`; loopback is always spoken to directly.
    pub no_proxy: String,
}

/// No bytes for this long is a dead peer.
pub(crate) const IDLE: Duration = Duration::from_secs(50);
/// A document of a few megabytes takes no longer.
const DOCUMENT: Duration = Duration::from_secs(120);
const SILENT: &str = "the peer is silent";
const CONNECT: Duration = Duration::from_secs(10);
/// Failed connects are tried this often: refused and unresolvable show within seconds.
const CONNECTS: u32 = 3;
/// Error bodies are read this far.
const ERROR_BODY: u64 = 64 << 10;

/// One request. Its body is small and can be sent again.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    /// Go to the origin of `url` only: they may hold secrets.
    pub own: HeaderMap,
    pub body: Bytes,
    /// Any certificate will do for the host of `url`.
    pub insecure: bool,
}

impl Ask {
    pub(crate) fn new(method: Method, url: Url, insecure: bool) -> Ask {
        Ask { method, url, headers: HeaderMap::new(), own: HeaderMap::new(), body: Bytes::new(), insecure }
    }

    /// How messages call it: `Get "https://host/path"`. A query may hold a signature, so it is left out.
    pub(crate) fn shown(&self) -> String {
        shown(&self.method, &self.url)
    }
}

pub(crate) fn shown(method: &Method, url: &Url) -> String {
    let method = method.as_str();
    let mut url = url.clone();
    url.set_query(None);
    // An address without a host has no place for these, and then nothing of them either.
    if url.set_password(None).and_then(|()| url.set_username("")).is_err() {
        return method.to_string();
    }
    format!("{}{} {:?}", &method[..1], method[1..].to_lowercase(), text::clean(url.as_str()))
}

/// The connections of a client.
pub(crate) struct Transport {
    checked: OnceLock<reqwest::Client>,
    unchecked: OnceLock<reqwest::Client>,
    /// Origins with certificates of their own, and whether they are checked there.
    trusted: Mutex<HashMap<String, Trust>>,
    of_hosts: Mutex<HashMap<(String, bool), reqwest::Client>>,
    roots: Roots,
    extra_roots: Vec<Vec<u8>>,
    proxies: Proxies,
    agent: HeaderValue,
    pub(crate) retry: Retry,
}

impl Transport {
    pub(crate) fn new(
        roots: Roots,
        extra_roots: Vec<Vec<u8>>,
        proxies: Proxies,
        agent: &str,
        retry: Retry,
    ) -> Result<Transport, Error> {
        let agent = HeaderValue::from_str(agent)
            .map_err(|_| Error::Options(format!("user agent {agent:?} is not a header value")))?;
        Ok(Transport {
            checked: OnceLock::new(),
            unchecked: OnceLock::new(),
            trusted: Mutex::default(),
            of_hosts: Mutex::default(),
            roots,
            extra_roots,
            proxies,
            agent,
            retry,
        })
    }

    /// From now on the host of `url` is spoken to with these certificates.
    pub(crate) fn trust(&self, url: &Url, trust: &Trust) {
        if !trust.is_empty() {
            let origin = url.origin().ascii_serialization();
            self.trusted.lock().unwrap_or_else(|e| e.into_inner()).insert(origin, trust.clone());
        }
    }

    /// Sends `ask`, again after 429, 5xx and broken connections. Any other answer is handed back, success or not.
    pub(crate) async fn send(&self, ask: &Ask, authorization: Option<&HeaderValue>) -> Result<Response, Error> {
        let mut failed = 0;
        loop {
            let outcome = self.follow(ask, authorization, None).await;
            failed += 1;
            let pause = match &outcome {
                Ok(answer) if busy(answer.status()) => {
                    if failed >= self.retry.attempts {
                        return outcome.map_err(|f| f.error);
                    }
                    self.retry.pause(failed, retry_after(answer.headers()))
                }
                Err(f) if failed < f.tries.min(self.retry.attempts) => self.retry.pause(failed, None),
                _ => return outcome.map_err(|f| f.error),
            };
            tracing::debug!(request = ask.shown(), failed, ?pause, "trying again");
            tokio::time::sleep(pause).await;
        }
    }

    /// Sends a body that cannot be repeated, once. `pulse` counts what was taken of the body: a peer that neither takes
    /// nor answers is given up.
    pub(crate) async fn send_stream(
        &self,
        ask: &Ask,
        authorization: Option<&HeaderValue>,
        body: reqwest::Body,
        pulse: &AtomicU64,
    ) -> Result<Response, Error> {
        let sent = self.follow(ask, authorization, Some(body));
        let mut sent = std::pin::pin!(sent);
        loop {
            let before = pulse.load(Ordering::Relaxed);
            match tokio::time::timeout(IDLE, &mut sent).await {
                Ok(answer) => return answer.map_err(|f| f.error),
                Err(_) if pulse.load(Ordering::Relaxed) != before => {}
                Err(_) => return Err(Error::Unreachable { request: ask.shown(), reason: SILENT.into() }),
            }
        }
    }

    /// Sends `ask` once, without retries.
    pub(crate) async fn send_once(&self, ask: &Ask, authorization: Option<&HeaderValue>) -> Result<Response, Error> {
        self.follow(ask, authorization, None).await.map_err(|f| f.error)
    }

    async fn follow(
        &self,
        ask: &Ask,
        authorization: Option<&HeaderValue>,
        mut stream: Option<reqwest::Body>,
    ) -> Result<Response, Failure> {
        let refused = |what: String| Failure { error: Error::Refused { request: ask.shown(), what }, tries: 1 };
        let origin = ask.url.origin();
        let replayable = stream.is_none();
        let mut url = ask.url.clone();
        let mut method = ask.method.clone();
        for _ in 0..=limits::REDIRECTS {
            let insecure = ask.insecure && url.origin() == origin;
            let mut request = self
                .client(&url, insecure)
                .map_err(|error| Failure { error, tries: 1 })?
                .request(method.clone(), url.clone())
                .headers(ask.headers.clone())
                .header(USER_AGENT, self.agent.clone());
            if url.origin() == origin {
                let mut own = ask.own.clone();
                own.extend(authorization.map(|value| (AUTHORIZATION, value.clone())));
                // Takes the place of what is there under the same names.
                request = request.headers(own);
            }
            if let Some(body) = stream.take() {
                request = request.body(body);
            } else if !ask.body.is_empty() {
                request = request.body(ask.body.clone());
            }
            let answer = async { request.send().await.map_err(|e| Failure::new(shown(&method, &url), &url, &e)) };
            let answer = if replayable {
                let silent = |_| Failure {
                    error: Error::Unreachable { request: shown(&method, &url), reason: SILENT.into() },
                    tries: 2,
                };
                tokio::time::timeout(IDLE, answer).await.map_err(silent)??
            } else {
                answer.await?
            };
            check_headers(&answer).map_err(&refused)?;
            if !is_redirect(answer.status()) {
                return Ok(answer);
            }
            if !replayable {
                return Err(refused("a redirect of an upload".into()));
            }
            let next = answer
                .headers()
                .get(LOCATION)
                .and_then(|l| l.to_str().ok())
                .and_then(|l| url.join(l).ok())
                .ok_or_else(|| refused("a redirect without a usable Location".into()))?;
            if !matches!(next.scheme(), "http" | "https") {
                return Err(refused(format!("a redirect to the scheme {:?}", next.scheme())));
            }
            if url.scheme() == "https" && next.scheme() == "http" {
                return Err(refused(format!(
                    "a redirect from https down to {:?}",
                    text::clean(next.host_str().unwrap_or(""))
                )));
            }
            if answer.status() == StatusCode::SEE_OTHER && method != Method::HEAD {
                method = Method::GET;
            }
            url = next;
        }
        Err(refused(format!("more than {} redirects", limits::REDIRECTS)))
    }

    /// The connections for `url`: those of its host when that has certificates of its own, else the common ones.
    fn client(&self, url: &Url, insecure: bool) -> Result<reqwest::Client, Error> {
        let origin = url.origin().ascii_serialization();
        let trust = self.trusted.lock().unwrap_or_else(|e| e.into_inner()).get(&origin).cloned();
        if let Some(trust) = trust {
            let mut clients = self.of_hosts.lock().unwrap_or_else(|e| e.into_inner());
            if let Some(client) = clients.get(&(origin.clone(), insecure)) {
                return Ok(client.clone());
            }
            let client = self.connect(insecure, &trust)?;
            clients.insert((origin, insecure), client.clone());
            return Ok(client);
        }
        let slot = if insecure { &self.unchecked } else { &self.checked };
        if let Some(client) = slot.get() {
            return Ok(client.clone());
        }
        let client = self.connect(insecure, &Trust::default())?;
        Ok(slot.get_or_init(|| client).clone())
    }

    fn connect(&self, insecure: bool, trust: &Trust) -> Result<reqwest::Client, Error> {
        let tls = if insecure { tls::unchecked(trust)? } else { tls::checked(&self.roots, &self.extra_roots, trust)? };
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http1_max_headers(200)
            .http2_max_header_list_size(limits::HTTP_HEADERS as u32)
            .resolve_to_addrs("localhost", &[([127, 0, 0, 1], 0).into(), (std::net::Ipv6Addr::LOCALHOST, 0).into()]);
        for (url, wrap) in [
            (&self.proxies.http, reqwest::Proxy::http as fn(String) -> reqwest::Result<reqwest::Proxy>),
            (&self.proxies.https, reqwest::Proxy::https),
        ] {
            if let Some(url) = url.as_ref().filter(|u| !u.is_empty()) {
                let direct = format!("{},localhost,127.0.0.0/8,::1", self.proxies.no_proxy);
                let proxy = wrap(url.clone()).map_err(|_| Error::Options("the proxy is not a usable URL".into()))?;
                builder = builder.proxy(proxy.no_proxy(reqwest::NoProxy::from_string(&direct)));
            }
        }
        builder.build().map_err(|e| Error::Options(format!("the HTTP client cannot be set up: {}", deepest(&e))))
    }
}

/// A request that got no answer, and how often it is worth trying in all.
struct Failure {
    error: Error,
    tries: u32,
}

impl Failure {
    fn new(request: String, url: &Url, error: &reqwest::Error) -> Failure {
        let host = url.host_str().unwrap_or_default();
        let place = format!("{host}:{}", url.port_or_known_default().unwrap_or_default());
        let deep = deepest(error);
        let lookup = error.is_connect() && chain(error).any(|e| e.to_string().to_lowercase().contains("dns"));
        let (reason, tries) = if refused(error) {
            (format!("dial tcp {place}: connect: connection refused"), CONNECTS)
        } else if lookup {
            let deep = if deep.contains("no records found") { "no such host" } else { &deep };
            (format!("dial tcp: lookup {host}: {deep}"), 1)
        } else if error.is_timeout() {
            (format!("dial tcp {place}: connection timed out"), 2)
        } else if error.is_connect() {
            (format!("dial tcp {place}: {deep}"), CONNECTS)
        } else if error.is_builder() {
            (deep, 1)
        } else {
            (deep, u32::MAX)
        };
        Failure { error: Error::Unreachable { request, reason: text::clean(&reason) }, tries }
    }
}

fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |e| e.source())
}

/// The innermost cause: the outer ones repeat the URL with its query.
pub(crate) fn deepest(error: &reqwest::Error) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

pub(crate) fn refused(error: &reqwest::Error) -> bool {
    chain(error)
        .filter_map(|e| e.downcast_ref::<std::io::Error>())
        .any(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
}

pub(crate) fn busy(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
        || (status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED)
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Seconds only: a date would need a trusted clock on both sides.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

fn check_headers(answer: &Response) -> Result<(), String> {
    let bytes: usize = answer.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if bytes > limits::HTTP_HEADERS {
        return Err(format!("an answer with {bytes} bytes of headers"));
    }
    Ok(())
}

/// Refuses a body in a content coding: what is hashed is what came.
pub(crate) fn check_identity(answer: &Response, request: &str) -> Result<(), Error> {
    match answer.headers().get(CONTENT_ENCODING) {
        Some(coding) if coding.as_bytes() != b"identity" => Err(Error::Refused {
            request: request.to_owned(),
            what: "a body in a content encoding that was not asked for".into(),
        }),
        _ => Ok(()),
    }
}

/// The next piece of a body; a reason when it broke or nothing came for too long.
pub(crate) async fn chunk(answer: &mut Response) -> Result<Option<Bytes>, String> {
    match tokio::time::timeout(IDLE, answer.chunk()).await {
        Ok(Ok(chunk)) => Ok(chunk),
        Ok(Err(e)) => Err(text::clean(&deepest(&e))),
        Err(_) => Err(SILENT.into()),
    }
}

/// The whole body, up to `limit`. It has to come within [`DOCUMENT`], however steadily it drips.
pub(crate) async fn body(answer: Response, limit: u64, what: &str) -> Result<Bytes, Error> {
    let late = |_| Error::Unreachable { request: what.to_owned(), reason: "the body takes too long".into() };
    tokio::time::timeout(DOCUMENT, whole_body(answer, limit, what)).await.map_err(late)?
}

async fn whole_body(mut answer: Response, limit: u64, what: &str) -> Result<Bytes, Error> {
    check_identity(&answer, what)?;
    let too_large = || Error::TooLarge { what: what.to_owned(), limit };
    if answer.content_length().is_some_and(|n| n > limit) {
        return Err(too_large());
    }
    let mut out = BytesMut::new();
    loop {
        let broken = |reason| Error::Unreachable { request: what.to_owned(), reason };
        let chunk = chunk(&mut answer).await.map_err(broken)?;
        let Some(chunk) = chunk else { return Ok(out.freeze()) };
        if out.len() as u64 + chunk.len() as u64 > limit {
            return Err(too_large());
        }
        out.extend_from_slice(&chunk);
    }
}

/// What a failed answer says, bounded and cleaned.
pub(crate) async fn reason(mut answer: Response) -> String {
    let page = answer.headers().get(CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"text/html"));
    let mut said = Vec::new();
    while !page && (said.len() as u64) < ERROR_BODY {
        match chunk(&mut answer).await {
            Ok(Some(chunk)) => said.extend_from_slice(&chunk),
            _ => break,
        }
    }
    said.truncate(ERROR_BODY as usize);
    text::reason(&said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_are_bounded_and_obey_the_registry() {
        let retry = Retry { attempts: 9, first: Duration::from_millis(100), longest: Duration::from_secs(2) };
        for (failed, least, most) in [(1, 75, 126), (2, 150, 251), (4, 600, 1001), (12, 1500, 2501)] {
            let pause = retry.pause(failed, None);
            assert!(
                pause >= Duration::from_millis(least) && pause <= Duration::from_millis(most),
                "{failed}: {pause:?}"
            );
        }
        assert_eq!(retry.pause(1, Some(Duration::from_secs(1))), Duration::from_secs(1));
        assert_eq!(retry.pause(1, Some(Duration::from_secs(86400))), Duration::from_secs(2));
    }

    #[test]
    fn neither_a_query_nor_a_password_is_ever_shown() {
        let url = Url::parse("https://user:word@h/p?X-Amz-Signature=abc").unwrap();
        assert_eq!(shown(&Method::HEAD, &url), r#"Head "https://h/p""#);
    }
}
