//! What is configured for single registries: mirrors, other addresses, certificates (containerd's `hosts.toml`, docker's
//! and containerd's `certs.d`).
//!
//! The files are read by whoever makes a client, when a registry is first asked; here is what they say, as values. What
//! is said for a host holds for that host only, on whatever way it is reached.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use rbuild_oci::Reference;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use crate::Error;
use crate::mirrors::{Endpoint, Mirrors, authority};
use crate::transport::Transport;

/// Finds what is configured for a registry (`docker.io`, `host` or `host:port`). It may read files. Its error text is
/// shown to the user.
pub type RulesSource = Arc<dyn Fn(&str) -> Result<Rules, String> + Send + Sync>;

/// A source that knows of nothing.
pub fn no_rules() -> RulesSource {
    Arc::new(|_| Ok(Rules::default()))
}

/// What is configured for one registry.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Asked before the registry itself, in this order, each for what it can do.
    pub places: Vec<Place>,
    /// Where the registry itself is, when not at its name.
    pub server: Option<Place>,
    /// For the registry itself at its own name.
    pub trust: Trust,
}

/// An address that answers for a registry.
#[derive(Debug, Clone)]
pub struct Place {
    /// http or https, without user, query and fragment.
    pub url: Url,
    pub trust: Trust,
    /// Any certificate will do.
    pub skip_verify: bool,
    /// The API is at this very path, without `/v2` behind it.
    pub override_path: bool,
    /// What it may be asked for.
    pub offers: Offers,
    /// Sent with every request to it, and to no other host. Names and values.
    pub headers: Vec<(String, String)>,
}

/// What a place may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offers {
    /// Manifests and blobs by their digests.
    pub pull: bool,
    /// What a tag names.
    pub resolve: bool,
    /// What is pushed goes to the first place that takes it.
    pub push: bool,
}

impl Default for Offers {
    /// All of it.
    fn default() -> Offers {
        Offers { pull: true, resolve: true, push: true }
    }
}

/// Certificates for one host.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// PEM bundles of authorities to believe, besides those that are believed everywhere.
    pub roots: Vec<Vec<u8>>,
    /// A certificate chain and its key in PEM, to be shown.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Trust {
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty() && self.identity.is_none()
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trust({} roots, identity: {})", self.roots.len(), self.identity.is_some())
    }
}

/// The rules that were asked for, each once.
pub(crate) struct Hosts {
    source: RulesSource,
    known: Mutex<HashMap<String, Arc<Rules>>>,
}

impl Hosts {
    pub(crate) fn new(source: RulesSource) -> Hosts {
        Hosts { source, known: Mutex::default() }
    }

    fn rules(&self, registry: &str) -> Result<Arc<Rules>, Error> {
        let mut known = self.known.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(rules) = known.get(registry) {
            return Ok(rules.clone());
        }
        let rules = Arc::new((self.source)(registry).map_err(Error::Options)?);
        known.insert(registry.to_owned(), rules.clone());
        Ok(rules)
    }

    /// The places to ask for `reference`, in order; their certificates become known to `transport`.
    pub(crate) fn endpoints(
        &self,
        reference: &Reference,
        mirrors: &Mirrors,
        transport: &Transport,
    ) -> Result<Vec<Endpoint>, Error> {
        let registry = reference.registry();
        let rules = self.rules(registry)?;
        let places = rules.places.iter().filter(|place| place.offers.pull);
        let mut endpoints = places
            .map(|place| place.endpoint(registry, mirrors, transport))
            .collect::<Result<Vec<Endpoint>, Error>>()?;
        let mut usual = mirrors.endpoints(reference)?;
        usual.pop();
        endpoints.extend(usual);
        endpoints.push(self.origin(registry, mirrors, transport)?);
        Ok(endpoints)
    }

    /// Where what is pushed goes: the first place that takes it, else the registry itself.
    pub(crate) fn target(&self, registry: &str, mirrors: &Mirrors, transport: &Transport) -> Result<Endpoint, Error> {
        let rules = self.rules(registry)?;
        match rules.places.iter().find(|place| place.offers.push) {
            Some(place) => place.endpoint(registry, mirrors, transport),
            None => self.origin(registry, mirrors, transport),
        }
    }

    /// The registry itself.
    pub(crate) fn origin(&self, registry: &str, mirrors: &Mirrors, transport: &Transport) -> Result<Endpoint, Error> {
        let rules = self.rules(registry)?;
        if let Some(server) = &rules.server {
            return Ok(Endpoint { credentials: registry.to_owned(), ..server.endpoint(registry, mirrors, transport)? });
        }
        let mut origin = mirrors.origin(registry)?;
        if !rules.trust.is_empty() {
            // Who gives certificates for a host wants them checked, also on this machine.
            origin.schemes.sort_by_key(|url| url.scheme() != "https");
            if !mirrors.is_listed(registry) {
                origin.schemes.retain(|url| url.scheme() == "https");
                origin.insecure = false;
            }
            for url in &origin.schemes {
                transport.trust(url, &rules.trust);
            }
        }
        Ok(origin)
    }
}

impl Place {
    fn endpoint(&self, registry: &str, mirrors: &Mirrors, transport: &Transport) -> Result<Endpoint, Error> {
        let host = authority(&self.url);
        transport.trust(&self.url, &self.trust);
        let insecure = self.skip_verify || (self.trust.is_empty() && mirrors.is_insecure(&host));
        let asked_for = (host != registry).then(|| registry.to_owned());
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let bad = || Error::Options(format!("{host}: {name:?} is no header with a value that can be sent"));
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
            let mut value = HeaderValue::from_str(value).map_err(|_| bad())?;
            value.set_sensitive(true);
            headers.append(name, value);
        }
        let (schemes, bare, resolves) = (vec![self.url.clone()], self.override_path, self.offers.resolve);
        Ok(Endpoint { schemes, credentials: host, insecure, bare, asked_for, resolves, headers })
    }
}
