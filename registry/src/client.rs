//! The distribution API: manifests, blobs, tags, log-in.
//!
//! Each call walks the endpoints of its reference (mirrors, then the origin), answers challenges, and checks what comes
//! before anybody sees it: documents against their digest, blobs in [`crate::download`].

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rbuild_oci::{Descriptor, Digest, Document, ImageConfig, Manifest, MediaType, Platform, Reference, limits};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Response, StatusCode};
use url::Url;

use crate::auth::{self, Asker, Authorizer, CredentialSource, Credentials, Scope, Sharing};
use crate::download::{BlobStream, Download};
use crate::hosts::{self, Hosts, RulesSource};
use crate::mirrors::{Endpoint, Mirrors};
use crate::transport::{self, Ask, Proxies, Retry, Transport};
use crate::{Error, Roots};

/// Everything a client needs to know from outside.
#[derive(Clone)]
pub struct ClientOptions {
    pub mirrors: Mirrors,
    pub credentials: CredentialSource,
    /// What is configured for single registries.
    pub rules: RulesSource,
    pub roots: Roots,
    /// PEM bundles believed besides `roots`.
    pub extra_roots: Vec<Vec<u8>>,
    pub proxies: Proxies,
    pub user_agent: String,
    pub retry: Retry,
    /// Blobs on their way at once.
    pub parallel: usize,
    /// Registries that get layers, too, which their publishers do not let others distribute.
    pub undistributable: Vec<String>,
}

impl Default for ClientOptions {
    /// Anonymous, direct, built-in roots.
    fn default() -> ClientOptions {
        ClientOptions {
            mirrors: Mirrors::default(),
            credentials: auth::anonymous(),
            rules: hosts::no_rules(),
            roots: Roots::default(),
            extra_roots: Vec::new(),
            proxies: Proxies::default(),
            user_agent: concat!("rbuild/", env!("CARGO_PKG_VERSION")).to_owned(),
            retry: Retry::default(),
            parallel: 4,
            undistributable: Vec::new(),
        }
    }
}

/// A client for any number of registries. Cheap to clone; clones share connections and tokens.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

pub(crate) struct Inner {
    pub(crate) transport: Transport,
    authorizer: Authorizer,
    mirrors: Mirrors,
    hosts: Hosts,
    parallel: usize,
    undistributable: Vec<String>,
    /// Which of an endpoint's schemes its host speaks.
    bases: Mutex<HashMap<String, Url>>,
}

/// A manifest or index as it came, its digest checked.
#[derive(Debug, Clone)]
pub struct Fetched {
    pub descriptor: Descriptor,
    pub bytes: Bytes,
    pub document: Document,
}

/// An image of one platform, known down to its config; no layer was touched.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What the reference names: a manifest, or the index it was chosen from.
    pub target: Fetched,
    /// The platform's manifest; the same as `target` when that is no index.
    pub chosen: Fetched,
    pub manifest: Manifest,
    pub config: ImageConfig,
    pub config_bytes: Bytes,
}

/// An endpoint whose scheme is settled.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub base: Url,
    pub credentials: String,
    pub insecure: bool,
    bare: bool,
    asked_for: Option<String>,
    headers: HeaderMap,
}

impl Access {
    /// `path` is below `/v2/` and made of validated parts only.
    pub(crate) fn url(&self, path: &str) -> Result<Url, Error> {
        let below = if self.bare { "" } else { "v2/" };
        let url = self.base.join(&format!("{below}{path}"));
        let mut url = url.map_err(|e| Error::Options(format!("{path:?}: {e}")))?;
        if let Some(registry) = &self.asked_for {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        Ok(url)
    }

    pub(crate) fn ask(&self, method: Method, path: &str) -> Result<Ask, Error> {
        Ok(self.ask_at(method, self.url(path)?))
    }

    /// A request to a place that the registry named, with what is configured for it while that is at its own origin.
    pub(crate) fn ask_at(&self, method: Method, url: Url) -> Ask {
        let own = url.origin() == self.base.origin();
        let mut ask = Ask::new(method, url, self.insecure && own);
        if own {
            ask.own.clone_from(&self.headers);
        }
        ask
    }
}

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// Tag lists are read page by page, up to this many bytes a page and so many pages.
const TAG_PAGE: u64 = 8 << 20;
const TAG_PAGES: usize = 1000;

impl Client {
    /// # Errors
    /// A user agent that no header can carry.
    pub fn new(options: ClientOptions) -> Result<Client, Error> {
        let ClientOptions {
            mirrors,
            credentials,
            rules,
            roots,
            extra_roots,
            proxies,
            user_agent,
            retry,
            parallel,
            undistributable,
        } = options;
        let transport = Transport::new(roots, extra_roots, proxies, &user_agent, retry)?;
        let authorizer = Authorizer::new(credentials);
        let hosts = Hosts::new(rules);
        let inner = Inner {
            transport,
            authorizer,
            mirrors,
            hosts,
            parallel: parallel.max(1),
            undistributable,
            bases: Mutex::default(),
        };
        Ok(Client { inner: Arc::new(inner) })
    }

    /// The manifest or index that `reference` names. A digest in the reference is proved; else the registry's own word
    /// about the digest must agree with the bytes.
    pub async fn fetch_manifest(&self, reference: &Reference) -> Result<Fetched, Error> {
        let (fetched, _) = self.fetch_named(reference).await?;
        Ok(fetched)
    }

    /// What `reference` names, without its bytes where the registry can say (HEAD), which rate limits spare.
    pub async fn digest(&self, reference: &Reference) -> Result<Descriptor, Error> {
        for endpoint in self.endpoints(reference)?.into_iter().filter(|endpoint| endpoint.resolves) {
            let Ok(access) = self.access(&endpoint).await else { continue };
            if let Ok(Some(found)) = self.head_manifest(&access, reference).await {
                return Ok(found);
            }
        }
        Ok(self.fetch_manifest(reference).await?.descriptor)
    }

    /// The image of `platform` under `reference`, with its config.
    pub async fn resolve(&self, reference: &Reference, platform: &Platform) -> Result<Resolved, Error> {
        Ok(self.resolve_at(reference, platform).await?.0)
    }

    /// A blob, verified while it streams; cuts are resumed.
    pub async fn fetch_blob(&self, reference: &Reference, blob: &Descriptor) -> Result<BlobStream, Error> {
        Ok(BlobStream::new(Download::new(self.clone(), self.endpoints(reference)?, reference, blob)))
    }

    /// All tags of the repository, in the registry's order.
    pub async fn tags(&self, reference: &Reference) -> Result<Vec<String>, Error> {
        let repository = reference.repository();
        let scope = Scope::pull(repository);
        self.anywhere(reference, async |access| {
            let mut tags = Vec::new();
            let mut next = Some(access.url(&format!("{repository}/tags/list"))?);
            for _ in 0..TAG_PAGES {
                let Some(url) = next.take() else { break };
                let ask = Ask::new(Method::GET, url, access.insecure);
                let request = ask.shown();
                let answer = self.call(&access, &scope, &ask).await?;
                if !answer.status().is_success() {
                    return Err(pull_failure(reference, &request, answer).await);
                }
                next = next_page(&access, &ask.url, answer.headers());
                #[derive(serde::Deserialize)]
                struct Page {
                    #[serde(default)]
                    tags: Option<Vec<String>>,
                }
                let body = transport::body(answer, TAG_PAGE, &request).await?;
                let page: Page = serde_json::from_slice(&body)
                    .map_err(|e| Error::Document { what: request, reason: crate::clean(&e.to_string()) })?;
                tags.extend(page.tags.unwrap_or_default());
            }
            Ok(tags)
        })
        .await
    }

    /// Tries `credentials` at a registry, as `login` does. Gives the identity token that the registry would rather see
    /// stored than the password, if it offers one.
    ///
    /// # Errors
    /// The registry does not take them, or cannot be reached.
    pub async fn log_in(&self, registry: &str, credentials: &Credentials) -> Result<Option<String>, Error> {
        let access = self.access(&self.origin_of(registry)?).await?;
        let ask = access.ask(Method::GET, "")?;
        let transport = &self.inner.transport;
        let answer = transport.send(&ask, None).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return match answer.status() {
                s if s.is_success() || s == StatusCode::NOT_FOUND => Ok(None),
                _ => Err(failure(&ask.shown(), answer).await),
            };
        }
        let challenges = auth::challenges(answer.headers());
        let scope = Scope::default();
        let asker = Asker { base: &access.base, credentials: registry, scope: &scope, insecure: access.insecure };
        let mut identity = None;
        if let (Some(challenge), Credentials::Password { .. }) =
            (challenges.iter().find(|c| c.scheme == "bearer"), credentials)
        {
            let token = auth::fetch_token(transport, asker, challenge, credentials, true).await?;
            identity = Some(token.refresh_token).filter(|t| !t.is_empty());
        }
        let given = credentials.clone();
        let authorizer = Authorizer::new(Arc::new(move |_| Ok(given.clone())));
        let header = authorizer.answer(transport, asker, &ask.shown(), &challenges, None, Sharing::Shared).await?;
        let answer = transport.send(&ask, Some(&header)).await?;
        match answer.status() {
            s if s.is_success() => Ok(identity),
            StatusCode::UNAUTHORIZED => {
                let status = StatusCode::UNAUTHORIZED;
                Err(Error::Unauthorized {
                    request: ask.shown(),
                    reason: format!("login attempt to {} failed with status: {status}", ask.url),
                })
            }
            _ => Err(failure(&ask.shown(), answer).await),
        }
    }

    pub(crate) fn parallel(&self) -> usize {
        self.inner.parallel
    }

    /// Whether the user lets this registry have what is not to be distributed.
    pub(crate) fn gets_all(&self, registry: &str) -> bool {
        self.inner.undistributable.iter().any(|allowed| allowed == registry)
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.inner.transport
    }

    pub(crate) fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, Error> {
        self.inner.hosts.endpoints(reference, &self.inner.mirrors, &self.inner.transport)
    }

    /// Where what is pushed goes.
    pub(crate) fn target(&self, reference: &Reference) -> Result<Endpoint, Error> {
        self.inner.hosts.target(reference.registry(), &self.inner.mirrors, &self.inner.transport)
    }

    pub(crate) fn origin_of(&self, registry: &str) -> Result<Endpoint, Error> {
        self.inner.hosts.origin(registry, &self.inner.mirrors, &self.inner.transport)
    }

    /// Like [`Client::resolve`]; also gives the endpoints with the one that answered first.
    pub(crate) async fn resolve_at(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<(Resolved, Vec<Endpoint>), Error> {
        let (target, endpoints) = self.fetch_named(reference).await?;
        let (chosen, manifest) = self.descend(reference, &endpoints, target.clone(), platform).await?;
        let what = format!("the config of {}", reference.familiar());
        if !manifest.config.media_type.is_config() {
            let reason = format!("the config has the type {}", crate::clean(manifest.config.media_type.as_str()));
            return Err(Error::Document {
                what: reference.familiar(),
                reason: format!("this is not a container image: {reason}"),
            });
        }
        let download = Download::new(self.clone(), endpoints.clone(), reference, &manifest.config);
        let config_bytes = BlobStream::new(download).bytes(limits::CONFIG, &what).await?;
        let config = ImageConfig::parse(&config_bytes)?;
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            let reason =
                format!("it lists {} layers, the manifest {}", config.rootfs.diff_ids.len(), manifest.layers.len());
            return Err(Error::Document { what, reason });
        }
        if let Some(layer) = manifest.layers.iter().find(|l| !l.media_type.is_layer()) {
            let reason = format!("unsupported layer type {}", crate::clean(layer.media_type.as_str()));
            return Err(Error::Document { what: reference.familiar(), reason });
        }
        Ok((Resolved { target, chosen, manifest, config, config_bytes }, endpoints))
    }

    /// From an index down to the platform's manifest.
    async fn descend(
        &self,
        reference: &Reference,
        endpoints: &[Endpoint],
        mut fetched: Fetched,
        platform: &Platform,
    ) -> Result<(Fetched, Manifest), Error> {
        for _ in 0..=limits::INDEX_DEPTH {
            let index = match &fetched.document {
                Document::Manifest(manifest) => {
                    let manifest = manifest.clone();
                    return Ok((fetched, manifest));
                }
                Document::Index(index) => index,
            };
            let child = crate::choose(index, platform)
                .ok_or_else(|| Error::NoPlatform { reference: reference.familiar(), platform: platform.to_string() })?;
            let child = child.clone();
            let by_digest = reference.without_tag().with_digest(child.digest.clone());
            let next = self.fetch_from(&by_digest, endpoints).await?.0;
            if next.descriptor.size != child.size {
                let what = format!("manifest {}", child.digest);
                return Err(Error::WrongSize { what, expected: child.size, actual: next.descriptor.size });
            }
            fetched = next;
        }
        Err(Error::Document {
            what: reference.familiar(),
            reason: format!("indexes nest over the limit of {}", limits::INDEX_DEPTH),
        })
    }

    async fn fetch_named(&self, reference: &Reference) -> Result<(Fetched, Vec<Endpoint>), Error> {
        let endpoints = self.endpoints(reference)?;
        self.fetch_from(reference, &endpoints).await
    }

    /// Tries `endpoints` in order; gives them back with the one that answered first.
    async fn fetch_from(
        &self,
        reference: &Reference,
        endpoints: &[Endpoint],
    ) -> Result<(Fetched, Vec<Endpoint>), Error> {
        let mut last = None;
        for (at, endpoint) in endpoints.iter().enumerate() {
            if !endpoint.resolves && reference.digest().is_none() {
                continue;
            }
            let attempt = async {
                let access = self.access(endpoint).await?;
                self.get_manifest(&access, reference).await
            };
            match attempt.await {
                Ok(fetched) => {
                    let mut order = endpoints.to_vec();
                    order[..=at].rotate_right(1);
                    return Ok((fetched, order));
                }
                Err(e) if e.try_elsewhere() => {
                    tracing::debug!(endpoint = endpoint.credentials, error = %e, "no manifest there");
                    last = Some(e);
                }
                Err(e) => return Err(e),
            }
        }
        Err(last.unwrap_or_else(|| Error::Options("no endpoint to ask".into())))
    }

    async fn get_manifest(&self, access: &Access, reference: &Reference) -> Result<Fetched, Error> {
        let ask = self.manifest_ask(access, Method::GET, reference)?;
        let request = ask.shown();
        let answer = self.call(access, &Scope::pull(reference.repository()), &ask).await?;
        if !answer.status().is_success() {
            return Err(pull_failure(reference, &request, answer).await);
        }
        let content_type = header(answer.headers(), &CONTENT_TYPE).map(MediaType::from);
        let said: Option<Digest> = header(answer.headers(), &CONTENT_DIGEST).and_then(|d| d.parse().ok());
        let what = format!("manifest for {}", reference.familiar());
        let bytes = transport::body(answer, limits::MANIFEST, &what).await?;
        for expected in reference.digest().into_iter().chain(said.as_ref()) {
            if !expected.matches(&bytes) {
                let actual = Digest::sha256_of(&bytes);
                return Err(Error::WrongDigest { what, expected: expected.clone(), actual });
            }
        }
        let document = Document::parse(&bytes, content_type.as_ref())?;
        let digest = reference.digest().cloned().unwrap_or_else(|| Digest::sha256_of(&bytes));
        let descriptor = Descriptor::new(document.media_type(), digest, bytes.len() as u64);
        Ok(Fetched { descriptor, bytes, document })
    }

    async fn head_manifest(&self, access: &Access, reference: &Reference) -> Result<Option<Descriptor>, Error> {
        let ask = self.manifest_ask(access, Method::HEAD, reference)?;
        let answer = self.call(access, &Scope::pull(reference.repository()), &ask).await?;
        if !answer.status().is_success() {
            return Ok(None);
        }
        let headers = answer.headers();
        let digest: Option<Digest> = header(headers, &CONTENT_DIGEST).and_then(|d| d.parse().ok());
        let kind = header(headers, &CONTENT_TYPE).map(MediaType::from).filter(|t| t.is_manifest() || t.is_index());
        let size = header(headers, &reqwest::header::CONTENT_LENGTH).and_then(|n| n.parse().ok());
        let agreed = digest.filter(|d| reference.digest().is_none_or(|want| want == d));
        Ok(agreed.zip(kind).zip(size).map(|((digest, kind), size)| Descriptor::new(kind, digest, size)))
    }

    pub(crate) fn manifest_ask(&self, access: &Access, method: Method, reference: &Reference) -> Result<Ask, Error> {
        let which = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        let mut ask = access.ask(method, &format!("{}/manifests/{which}", reference.repository()))?;
        for kind in
            [MediaType::OciIndex, MediaType::DockerManifestList, MediaType::OciManifest, MediaType::DockerManifest]
        {
            if let Ok(value) = HeaderValue::from_str(kind.as_str()) {
                ask.headers.append(ACCEPT, value);
            }
        }
        Ok(ask)
    }

    /// `work` at each endpoint in turn until one does it.
    async fn anywhere<T, W, F>(&self, reference: &Reference, work: W) -> Result<T, Error>
    where
        W: Fn(Access) -> F,
        F: Future<Output = Result<T, Error>>,
    {
        let mut last = None;
        for endpoint in self.endpoints(reference)?.into_iter().filter(|endpoint| endpoint.resolves) {
            let outcome = match self.access(&endpoint).await {
                Ok(access) => work(access).await,
                Err(e) => Err(e),
            };
            match outcome {
                Err(e) if e.try_elsewhere() => last = Some(e),
                done => return done,
            }
        }
        Err(last.unwrap_or_else(|| Error::Options("no endpoint to ask".into())))
    }

    /// Settles over which scheme a host is spoken to. Hosts with one possible scheme are not asked.
    pub(crate) async fn access(&self, endpoint: &Endpoint) -> Result<Access, Error> {
        let found = |base: Url| Access {
            base,
            credentials: endpoint.credentials.clone(),
            insecure: endpoint.insecure,
            bare: endpoint.bare,
            asked_for: endpoint.asked_for.clone(),
            headers: endpoint.headers.clone(),
        };
        let Some((first, others)) = endpoint.schemes.split_first() else {
            return Err(Error::Options(format!("no address for {}", endpoint.credentials)));
        };
        if others.is_empty() {
            return Ok(found(first.clone()));
        }
        let known =
            |this: &Client| this.inner.bases.lock().unwrap_or_else(|e| e.into_inner()).get(first.as_str()).cloned();
        if let Some(base) = known(self) {
            return Ok(found(base));
        }
        let mut failed = 0;
        loop {
            let mut error = None;
            for base in &endpoint.schemes {
                let ask = found(base.clone()).ask(Method::GET, "")?;
                match self.inner.transport.send_once(&ask, None).await {
                    // A TLS server answers plain requests with 400.
                    Ok(answer) if base.scheme() == "https" || answer.status() != StatusCode::BAD_REQUEST => {
                        let mut bases = self.inner.bases.lock().unwrap_or_else(|e| e.into_inner());
                        bases.insert(first.to_string(), base.clone());
                        return Ok(found(base.clone()));
                    }
                    Ok(answer) => error = error.or(Some(failure(&ask.shown(), answer).await)),
                    Err(e) => error = error.or(Some(e)),
                }
            }
            failed += 1;
            if failed >= 3 {
                return Err(error.unwrap_or_else(|| Error::Options("no address to ask".into())));
            }
            tokio::time::sleep(self.inner.transport.retry.pause(failed, None)).await;
        }
    }

    /// Sends `ask`, answering challenges of its own origin. Any final answer is handed back, also a refusal.
    pub(crate) async fn call(&self, access: &Access, scope: &Scope, ask: &Ask) -> Result<Response, Error> {
        let asker = asker(access, scope);
        let mut used = self.authorization(access, scope, &ask.url).await;
        let mut rejected = 0;
        loop {
            let answer = self.inner.transport.send(ask, used.as_ref()).await?;
            let own = answer.url().origin() == access.base.origin();
            if answer.status() != StatusCode::UNAUTHORIZED || !own || ask.url.origin() != access.base.origin() {
                return Ok(answer);
            }
            rejected += 1;
            if rejected > 2 {
                return Ok(answer);
            }
            let sharing = if rejected > 1 { Sharing::Own } else { Sharing::Shared };
            let challenges = auth::challenges(answer.headers());
            let request = ask.shown();
            let (authorizer, transport) = (&self.inner.authorizer, &self.inner.transport);
            match authorizer.answer(transport, asker, &request, &challenges, used.as_ref(), sharing).await {
                Err(Error::Unauthorized { .. }) if rejected > 1 => return Ok(answer),
                fresh => used = Some(fresh?),
            }
        }
    }

    /// The header for `url`, if it lies at the origin of `access` and a token is at hand.
    pub(crate) async fn authorization(&self, access: &Access, scope: &Scope, url: &Url) -> Option<HeaderValue> {
        if url.origin() != access.base.origin() {
            return None;
        }
        self.inner.authorizer.header(asker(access, scope)).await
    }

    /// Replaces the token that `answer` rejected, for a request that its sender has to make anew.
    pub(crate) async fn reauthorize(
        &self,
        access: &Access,
        scope: &Scope,
        request: &str,
        answer: &Response,
        used: Option<&HeaderValue>,
    ) -> Result<(), Error> {
        let challenges = auth::challenges(answer.headers());
        let (authorizer, transport) = (&self.inner.authorizer, &self.inner.transport);
        authorizer.answer(transport, asker(access, scope), request, &challenges, used, Sharing::Shared).await.map(drop)
    }
}

fn asker<'a>(access: &'a Access, scope: &'a Scope) -> Asker<'a> {
    Asker { base: &access.base, credentials: &access.credentials, scope, insecure: access.insecure }
}

pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

pub(crate) fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    header(headers, &CONTENT_DIGEST).and_then(|d| d.parse().ok())
}

/// The `rel="next"` page of a list, when it lies at the same origin.
pub(crate) fn next_page(access: &Access, current: &Url, headers: &HeaderMap) -> Option<Url> {
    let link = header(headers, &reqwest::header::LINK)?;
    let (target, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
    rest.contains("next").then(|| current.join(target).ok())?.filter(|u| u.origin() == access.base.origin())
}

/// A failed answer in pull's words.
pub(crate) async fn pull_failure(reference: &Reference, request: &str, answer: Response) -> Error {
    let status = answer.status();
    let name = reference.familiar_name();
    match status {
        StatusCode::NOT_FOUND => {
            let reason = transport::reason(answer).await;
            if reason.starts_with("name unknown") {
                Error::RepositoryNotFound { name, reason }
            } else {
                Error::ManifestNotFound { reference: reference.familiar(), reason }
            }
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let reason = transport::reason(answer).await;
            let reason =
                if reason.is_empty() { "denied: requested access to the resource is denied".into() } else { reason };
            Error::PullDenied { name, reason }
        }
        _ => failure(request, answer).await,
    }
}

/// A failed answer in general words.
pub(crate) async fn failure(request: &str, answer: Response) -> Error {
    let (request, status) = (request.to_owned(), answer.status());
    let reason = transport::reason(answer).await;
    match status {
        StatusCode::UNAUTHORIZED => Error::Unauthorized { request, reason },
        StatusCode::FORBIDDEN => Error::Denied { request, reason },
        _ => Error::Status { request, status: status.to_string(), reason },
    }
}
