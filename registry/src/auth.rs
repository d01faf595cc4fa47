//! Credentials and the answers to challenges (RFC 7235, RFC 7617, docker's token protocol).
//!
//! The rule that shapes this file: a password is shown to the origin it was stored for, or to that origin's token
//! server when the way there is https (or the registry itself is plain http on the same host), and to nobody else.
//! Tokens are kept per origin and scope and fetched once for all requests that wait for them.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use url::{Host, Url};

use crate::transport::{self, Ask, Transport};
use crate::{Error, text};

/// What is known of the user at one registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    Anonymous,
    Password {
        username: String,
        password: String,
    },
    /// A refresh token, exchanged for access tokens (OAuth 2).
    IdentityToken(String),
    /// An access token, sent as it is.
    RegistryToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credentials::Anonymous => "Anonymous",
            Credentials::Password { .. } => "Password(…)",
            Credentials::IdentityToken(_) => "IdentityToken(…)",
            Credentials::RegistryToken(_) => "RegistryToken(…)",
        })
    }
}

/// Finds the credentials for a registry (`docker.io`, `host` or `host:port`). It may block: a helper program may have
/// to be asked. Its error text is shown to the user.
pub type CredentialSource = Arc<dyn Fn(&str) -> Result<Credentials, String> + Send + Sync>;

/// A source that knows nobody.
pub fn anonymous() -> CredentialSource {
    Arc::new(|_| Ok(Credentials::Anonymous))
}

/// What is to be done with which repositories.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Scope(BTreeMap<String, &'static str>);

impl Scope {
    pub(crate) fn pull(repository: &str) -> Scope {
        Scope(BTreeMap::from([(repository.to_owned(), "pull")]))
    }

    pub(crate) fn push(repository: &str) -> Scope {
        Scope(BTreeMap::from([(repository.to_owned(), "pull,push")]))
    }

    pub(crate) fn delete(repository: &str) -> Scope {
        Scope(BTreeMap::from([(repository.to_owned(), "pull,push,delete")]))
    }

    pub(crate) fn and_pull(mut self, repository: &str) -> Scope {
        self.0.entry(repository.to_owned()).or_insert("pull");
        self
    }

    fn words(&self) -> Vec<String> {
        self.0.iter().map(|(name, actions)| format!("repository:{name}:{actions}")).collect()
    }
}

/// A challenge of a `WWW-Authenticate` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// In lower case.
    pub scheme: String,
    pub parameters: BTreeMap<String, String>,
}

/// Holds the tokens of one client.
pub(crate) struct Authorizer {
    source: CredentialSource,
    known: Mutex<HashMap<String, Credentials>>,
    /// By origin and scope.
    slots: Mutex<HashMap<(String, Scope), SharedSlot>>,
}

/// Held while a token is fetched, so that it is fetched once.
type SharedSlot = Arc<tokio::sync::Mutex<Slot>>;

#[derive(Default)]
struct Slot {
    header: Option<HeaderValue>,
    /// When the header is no longer worth sending.
    until: Option<Instant>,
}

/// Whether a token may serve several requests. Some registries give tokens that are good for one: once a shared one was
/// rejected, a request gets its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    Shared,
    Own,
}

/// Who asks, where, and under which stored name.
#[derive(Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub base: &'a Url,
    pub credentials: &'a str,
    pub scope: &'a Scope,
    pub insecure: bool,
}

/// Tokens without a lifetime, or with a silly one, are trusted this long; a rejected one is replaced at once anyway.
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);
const TOKEN_BODY: u64 = 256 << 10;
const CLIENT_ID: &str = "rbuild";

impl Authorizer {
    pub(crate) fn new(source: CredentialSource) -> Authorizer {
        Authorizer { source, known: Mutex::default(), slots: Mutex::default() }
    }

    /// The header to send before being asked, if an earlier answer still holds.
    pub(crate) async fn header(&self, asker: Asker<'_>) -> Option<HeaderValue> {
        let slot = self.slot(asker);
        let slot = slot.lock().await;
        slot.header.clone().filter(|_| slot.until.is_none_or(|t| Instant::now() < t))
    }

    /// The header that answers `challenges`, after `used` was rejected.
    ///
    /// # Errors
    /// No scheme that is spoken here, no credential, or the token server refused.
    pub(crate) async fn answer(
        &self,
        transport: &Transport,
        asker: Asker<'_>,
        request: &str,
        challenges: &[Challenge],
        used: Option<&HeaderValue>,
        sharing: Sharing,
    ) -> Result<HeaderValue, Error> {
        let slot = self.slot(asker);
        let mut slot = slot.lock().await;
        if let Some(fresh) = slot.header.clone().filter(|h| used != Some(h) && sharing == Sharing::Shared) {
            return Ok(fresh); // somebody else was faster
        }
        let credentials = self.credentials(asker.credentials).await?;
        let find = |scheme: &str| challenges.iter().find(|c| c.scheme == scheme);
        let (header, lifetime) = if let (Credentials::RegistryToken(token), Some(_)) = (&credentials, find("bearer")) {
            (secret_header(&format!("Bearer {token}"))?, None)
        } else if let Some(challenge) = find("bearer") {
            let token = fetch_token(transport, asker, challenge, &credentials, false).await?;
            if matches!(credentials, Credentials::IdentityToken(_)) && !token.refresh_token.is_empty() {
                // It may be good for one use; the answer then holds the next one.
                let next = Credentials::IdentityToken(token.refresh_token.clone());
                self.known.lock().unwrap_or_else(|e| e.into_inner()).insert(asker.credentials.to_owned(), next);
            }
            let (token, lifetime) = token.access(asker)?;
            (secret_header(&format!("Bearer {token}"))?, Some(lifetime))
        } else if find("basic").is_some() {
            let Credentials::Password { username, password } = &credentials else {
                return Err(Error::NoCredentials { request: request.to_owned() });
            };
            (basic(username, password)?, None)
        } else {
            let named: Vec<_> = challenges.iter().map(|c| text::clean(&c.scheme)).collect();
            let reason =
                if named.is_empty() { String::new() } else { format!("unknown challenge {}", named.join(", ")) };
            return Err(Error::Unauthorized { request: request.to_owned(), reason });
        };
        if used == Some(&header) {
            return Err(Error::Unauthorized { request: request.to_owned(), reason: String::new() });
        }
        if sharing == Sharing::Shared {
            slot.until = lifetime.map(|l| Instant::now() + l);
            slot.header = Some(header.clone());
        }
        Ok(header)
    }

    fn slot(&self, asker: Asker<'_>) -> SharedSlot {
        let key = (asker.base.origin().ascii_serialization(), asker.scope.clone());
        self.slots.lock().unwrap_or_else(|e| e.into_inner()).entry(key).or_default().clone()
    }

    async fn credentials(&self, host: &str) -> Result<Credentials, Error> {
        if let Some(known) = self.known.lock().unwrap_or_else(|e| e.into_inner()).get(host) {
            return Ok(known.clone());
        }
        let (source, name) = (self.source.clone(), host.to_owned());
        let failed = |reason: String| Error::Credentials { host: host.to_owned(), reason };
        let found = tokio::task::spawn_blocking(move || source(&name))
            .await
            .map_err(|e| failed(e.to_string()))?
            .map_err(|e| failed(text::clean(&e)))?;
        self.known.lock().unwrap_or_else(|e| e.into_inner()).insert(host.to_owned(), found.clone());
        Ok(found)
    }
}

/// What a token server answered.
#[derive(serde::Deserialize, Default)]
pub(crate) struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<serde_json::Value>,
    /// Offered in exchange for a password, to be stored in its place.
    #[serde(default)]
    pub refresh_token: String,
}

impl Token {
    fn access(self, asker: Asker<'_>) -> Result<(String, Duration), Error> {
        let token = if self.token.is_empty() { self.access_token } else { self.token };
        if token.is_empty() {
            let what = format!("the token server of {}", asker.credentials);
            return Err(Error::Document { what, reason: "the answer holds no token".into() });
        }
        // The server's clock is not believed: only how long the token lives, counted from now, a little less.
        let said = self.expires_in.and_then(|v| v.as_f64()).filter(|s| s.is_finite() && *s > 0.0).unwrap_or(0.0);
        let lifetime = Duration::from_secs_f64(said.min(1e6)).clamp(SHORTEST, LONGEST);
        Ok((token, lifetime - lifetime / 10))
    }
}

/// Asks the token server that `challenge` names; with `offline`, for a refresh token too.
pub(crate) async fn fetch_token(
    transport: &Transport,
    asker: Asker<'_>,
    challenge: &Challenge,
    credentials: &Credentials,
    offline: bool,
) -> Result<Token, Error> {
    let realm = challenge.parameters.get("realm").and_then(|r| Url::parse(r).ok());
    let Some(mut realm) = realm.filter(|r| matches!(r.scheme(), "http" | "https")) else {
        let what = format!("the challenge of {}", asker.credentials);
        return Err(Error::Document { what, reason: "it names no http(s) token realm".into() });
    };
    let ask = Ask::new(Method::GET, realm.clone(), asker.insecure);
    if !may_be_told(&realm, asker.base, *credentials != Credentials::Anonymous) {
        return Err(Error::Refused { request: ask.shown(), what: format!("to log in to {} there", asker.credentials) });
    }
    let service = challenge.parameters.get("service").map(String::as_str).unwrap_or_default();
    let insecure = asker.insecure && realm.host() == asker.base.host();
    let scopes = asker.scope.words();
    let granted = |grant: &[(&str, &str)]| {
        let mut ask = Ask::new(Method::POST, realm.clone(), insecure);
        ask.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        ask.body = Bytes::from(form(grant, service, &scopes, offline));
        ask
    };
    let (ask, header, instead) = if let Credentials::IdentityToken(refresh) = credentials {
        (granted(&[("grant_type", "refresh_token"), ("refresh_token", refresh)]), None, None)
    } else {
        let instead = match credentials {
            Credentials::Password { username, password } => {
                Some(granted(&[("grant_type", "password"), ("username", username), ("password", password)]))
            }
            _ => None,
        };
        {
            let mut query = realm.query_pairs_mut();
            if !service.is_empty() {
                query.append_pair("service", service);
            }
            for scope in &scopes {
                query.append_pair("scope", scope);
            }
            if let Credentials::Password { username, .. } = credentials {
                query.append_pair("account", username);
            }
            if offline {
                query.append_pair("offline_token", "true").append_pair("client_id", CLIENT_ID);
            }
        }
        let header = match credentials {
            Credentials::Password { username, password } => Some(basic(username, password)?),
            _ => None,
        };
        (Ask::new(Method::GET, realm, insecure), header, instead)
    };
    let mut request = ask.shown();
    let mut answer = transport.send(&ask, header.as_ref()).await?;
    if matches!(answer.status().as_u16(), 404 | 405)
        && let Some(ask) = instead
    {
        // A server of OAuth 2 alone, which docker's older form means nothing to.
        request = ask.shown();
        answer = transport.send(&ask, None).await?;
    }
    let status = answer.status();
    if !status.is_success() {
        let reason = transport::reason(answer).await;
        return Err(match status.as_u16() {
            401 => Error::Unauthorized { request, reason },
            403 => Error::Denied { request, reason },
            _ => Error::Status { request, status: status.to_string(), reason },
        });
    }
    let body = transport::body(answer, TOKEN_BODY, &request).await?;
    // What stands in the body may be a token, so a parse error does not quote it.
    serde_json::from_slice(&body)
        .map_err(|_| Error::Document { what: request, reason: "the answer is no token document".into() })
}

/// A request of OAuth 2 (RFC 6749, sections 4.3 and 6), in the form the token specification of the registries gives it.
fn form(grant: &[(&str, &str)], service: &str, scopes: &[String], offline: bool) -> String {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(grant).append_pair("service", service).append_pair("client_id", CLIENT_ID);
    if !scopes.is_empty() {
        form.append_pair("scope", &scopes.join(" "));
    }
    if offline {
        form.append_pair("access_type", "offline");
    }
    form.finish()
}

/// Whether the token server at `realm` may be asked on behalf of `registry`.
fn may_be_told(realm: &Url, registry: &Url, secret: bool) -> bool {
    let same_host = realm.host() == registry.host();
    let literal = !matches!(realm.host(), Some(Host::Domain(_)));
    match realm.scheme() {
        "https" => !secret || same_host || !literal,
        _ => registry.scheme() == "http" && (!secret || same_host),
    }
}

pub(crate) fn basic(username: &str, password: &str) -> Result<HeaderValue, Error> {
    secret_header(&format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}"))))
}

fn secret_header(text: &str) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| Error::Options("a credential holds bytes no header can carry".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The challenges of an answer; malformed ones are left out.
pub(crate) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok()).flat_map(parse_challenges).collect()
}

fn parse_challenges(text: &str) -> Vec<Challenge> {
    let mut out: Vec<Challenge> = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        if end == 0 {
            rest = rest[rest.chars().next().map_or(1, char::len_utf8)..].trim_start();
            continue;
        }
        let (word, after) = rest.split_at(end);
        let after = after.trim_start();
        if let (Some(value), Some(challenge)) = (after.strip_prefix('='), out.last_mut()) {
            let (value, remaining) = parse_value(value.trim_start());
            challenge.parameters.insert(word.to_lowercase(), value);
            rest = remaining.trim_start().trim_start_matches(',').trim_start();
        } else {
            out.push(Challenge { scheme: word.to_lowercase(), parameters: BTreeMap::new() });
            rest = after.trim_start_matches(',').trim_start();
        }
    }
    out
}

fn parse_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_however_they_are_written() {
        let bearer =
            parse_challenges(r#"Bearer realm="https://auth/t?a=b,c",service="reg \"x\"", scope=repository:a:pull"#);
        assert_eq!(bearer.len(), 1);
        assert_eq!(bearer[0].scheme, "bearer");
        assert_eq!(bearer[0].parameters["realm"], "https://auth/t?a=b,c");
        assert_eq!(bearer[0].parameters["service"], "reg \"x\"");
        assert_eq!(bearer[0].parameters["scope"], "repository:a:pull");
        let both: Vec<_> =
            parse_challenges(r#"Negotiate, BASIC realm=x, bearer Realm="r""#).into_iter().map(|c| c.scheme).collect();
        assert_eq!(both, ["negotiate", "basic", "bearer"]);
        for junk in ["", "=", ",,,", "\"", "a=\"b", "Bearer realm=\"\\", "é é=é"] {
            parse_challenges(junk);
        }
    }

    #[test]
    fn a_password_goes_to_its_own_token_server_only() {
        let url = |u: &str| Url::parse(u).unwrap();
        for (realm, registry, told) in [
            ("https://auth.docker.io/token", "https://registry-1.docker.io/", true),
            ("http://auth.docker.io/token", "https://registry-1.docker.io/", false),
            ("https://10.0.0.1/token", "https://registry.example/", false),
            ("https://10.0.0.1/token", "https://10.0.0.1:5000/", true),
            ("http://127.0.0.1:9/token", "http://127.0.0.1:5000/", true),
            ("http://evil.example/token", "http://127.0.0.1:5000/", false),
        ] {
            assert_eq!(may_be_told(&url(realm), &url(registry), true), told, "{realm} for {registry}");
        }
    }

    #[test]
    fn secrets_do_not_print() {
        let c = Credentials::Password { username: "u".into(), password: "hunter2".into() };
        assert!(!format!("{c:?}{:?}", basic("u", "hunter2").unwrap()).contains("hunter2"));
    }
}
