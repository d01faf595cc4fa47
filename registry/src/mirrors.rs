//! Where to ask for a repository, and over which scheme.
//!
//! Docker's rules: mirrors stand in for docker.io only, are tried in order and the origin last; plain HTTP is spoken to
//! loopback and to hosts the user listed, never to others.

use std::net::IpAddr;

use rbuild_oci::Reference;
use reqwest::header::HeaderMap;
use url::{Host, Url};

use crate::Error;

/// The registry of names without a host.
pub const DOCKER_IO: &str = "docker.io";
/// Where docker.io's API lives.
const DOCKER_IO_API: &str = "registry-1.docker.io";

/// `registry-mirrors` and `insecure-registries` of a daemon.json, validated.
#[derive(Debug, Clone, Default)]
pub struct Mirrors {
    mirrors: Vec<Url>,
    insecure: Vec<Insecure>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Insecure {
    /// `host` or `host:port`.
    Host(String),
    /// Addresses in `base/bits`.
    Network(IpAddr, u8),
    Everyone,
}

impl Mirrors {
    /// # Errors
    /// A mirror is an http or https URL without user, query and fragment; an insecure registry is `host[:port]` or a
    /// network in CIDR form.
    pub fn new(mirrors: &[String], insecure: &[String]) -> Result<Mirrors, Error> {
        let mirrors = mirrors.iter().map(|m| mirror(m)).collect::<Result<_, _>>()?;
        let insecure = insecure.iter().map(|h| insecure_host(h)).collect::<Result<_, _>>()?;
        Ok(Mirrors { mirrors, insecure })
    }

    /// The same, where plain HTTP and unproved certificates will also do for `host`.
    ///
    /// # Errors
    /// As [`Mirrors::new`].
    pub fn believing(mut self, host: &str) -> Result<Mirrors, Error> {
        self.insecure.push(insecure_host(host)?);
        Ok(self)
    }

    /// The same, where plain HTTP and unproved certificates will do for every registry.
    pub fn believing_everyone(mut self) -> Mirrors {
        self.insecure.push(Insecure::Everyone);
        self
    }

    /// The mirrors of docker.io, in order.
    pub fn mirrors(&self) -> &[Url] {
        &self.mirrors
    }

    /// Whether plain HTTP and unproved certificates will do for `host` (`name` or `name:port`).
    pub fn is_insecure(&self, host: &str) -> bool {
        is_loopback(bare_host(host)) || self.is_listed(host)
    }

    /// Whether the user listed `host` as insecure.
    pub(crate) fn is_listed(&self, host: &str) -> bool {
        let bare = bare_host(host);
        let address: Option<IpAddr> = bare.parse().ok();
        self.insecure.iter().any(|i| match i {
            Insecure::Host(h) => h == host || h == bare,
            Insecure::Everyone => true,
            Insecure::Network(base, bits) => address.is_some_and(|a| within(a, *base, *bits)),
        })
    }

    /// The places to ask for `reference`, in order.
    pub(crate) fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, Error> {
        let registry = reference.registry();
        let mut out = Vec::new();
        if registry == DOCKER_IO {
            for url in &self.mirrors {
                let host = authority(url);
                let insecure = self.is_insecure(&host);
                out.push(Endpoint::new(vec![url.clone()], host, insecure));
            }
        }
        out.push(self.origin(registry)?);
        Ok(out)
    }

    /// The registry itself.
    pub(crate) fn origin(&self, registry: &str) -> Result<Endpoint, Error> {
        let host = if registry == DOCKER_IO { DOCKER_IO_API } else { registry };
        let insecure = self.is_insecure(host);
        let url = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}/")).map_err(|e| Error::Options(format!("registry {host:?}: {e}")))
        };
        let schemes = match (insecure, is_loopback(bare_host(host))) {
            (false, _) => vec![url("https")?],
            (true, true) => vec![url("http")?, url("https")?],
            (true, false) => vec![url("https")?, url("http")?],
        };
        Ok(Endpoint::new(schemes, registry.to_owned(), insecure))
    }
}

/// One place that answers for a registry.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// Base URLs to try, each ending in `/`; more than one only while it is unknown whether the host speaks TLS.
    pub schemes: Vec<Url>,
    /// The name under which credentials for it are stored.
    pub credentials: String,
    pub insecure: bool,
    /// The API is at the base itself and not at `v2/` below it.
    pub bare: bool,
    /// The registry that this place answers for, when it is to be told.
    pub asked_for: Option<String>,
    /// It knows what a tag names; else it is only asked for what has a digest.
    pub resolves: bool,
    /// Sent to this place with every request.
    pub headers: HeaderMap,
}

impl Endpoint {
    fn new(schemes: Vec<Url>, credentials: String, insecure: bool) -> Endpoint {
        let headers = HeaderMap::new();
        Endpoint { schemes, credentials, insecure, bare: false, asked_for: None, resolves: true, headers }
    }
}

/// The host with its port when it is not the scheme's own.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

pub(crate) fn is_loopback(bare: &str) -> bool {
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|a| a.is_loopback())
}

fn mirror(text: &str) -> Result<Url, Error> {
    let bad = |why: &str| Error::Options(format!("invalid mirror {text:?}: {why}"));
    let mut url = Url::parse(text).map_err(|e| bad(&e.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("the scheme must be http or https"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(bad("user, query and fragment are not allowed"));
    }
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Ok(url)
}

fn insecure_host(text: &str) -> Result<Insecure, Error> {
    let bad = || Error::Options(format!("invalid insecure registry {text:?}: it must be host[:port] or a network"));
    let text =
        text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).unwrap_or(text).trim_end_matches('/');
    if let Some((base, bits)) = text.split_once('/') {
        let base: IpAddr = base.parse().map_err(|_| bad())?;
        let bits: u8 = bits.parse().map_err(|_| bad())?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        return if bits <= most { Ok(Insecure::Network(base, bits)) } else { Err(bad()) };
    }
    Host::parse(bare_host(text)).map_err(|_| bad())?;
    Ok(Insecure::Host(text.to_owned()))
}

/// Without port and IPv6 brackets.
fn bare_host(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

fn within(address: IpAddr, base: IpAddr, bits: u8) -> bool {
    let (a, b, width) = match (address, base) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    let shift = width - u32::from(bits);
    shift == 128 || (a >> shift) == (b >> shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tries(mirrors: &Mirrors, name: &str) -> Vec<String> {
        let reference = Reference::parse(name).unwrap();
        mirrors.endpoints(&reference).unwrap().iter().flat_map(|e| e.schemes.iter().map(Url::to_string)).collect()
    }

    #[test]
    fn plain_http_only_where_it_is_allowed() {
        let m = Mirrors::new(&[], &["10.0.0.0/8".into(), "reg.lan:5000".into()]).unwrap();
        let everyone = m.clone().believing_everyone();
        assert_eq!(tries(&everyone, "quay.io/a/b"), ["https://quay.io/", "http://quay.io/"]);
        assert_eq!(tries(&m, "busybox"), ["https://registry-1.docker.io/"]);
        assert_eq!(tries(&m, "quay.io/a/b"), ["https://quay.io/"]);
        assert_eq!(tries(&m, "localhost:5000/a"), ["http://localhost:5000/", "https://localhost:5000/"]);
        assert_eq!(tries(&m, "127.9.9.9:1/a"), ["http://127.9.9.9:1/", "https://127.9.9.9:1/"]);
        assert_eq!(tries(&m, "10.1.2.3:5000/a"), ["https://10.1.2.3:5000/", "http://10.1.2.3:5000/"]);
        assert_eq!(tries(&m, "reg.lan:5000/a"), ["https://reg.lan:5000/", "http://reg.lan:5000/"]);
        assert_eq!(tries(&m, "reg.lan:5001/a"), ["https://reg.lan:5001/"]);
        assert_eq!(tries(&m, "11.1.2.3:5000/a"), ["https://11.1.2.3:5000/"]);
    }

    #[test]
    fn mirrors_stand_in_for_docker_io_only() {
        let m = Mirrors::new(&["http://m.lan:80/proxy".into(), "https://n".into()], &[]).unwrap();
        assert_eq!(tries(&m, "busybox"), ["http://m.lan/proxy/", "https://n/", "https://registry-1.docker.io/"]);
        assert_eq!(tries(&m, "quay.io/a/b"), ["https://quay.io/"]);
    }

    #[test]
    fn bad_settings_are_named() {
        for bad in ["ftp://x", "m.lan", "http://u:p@x", "http://x?y"] {
            assert!(Mirrors::new(&[bad.to_owned()], &[]).is_err(), "{bad}");
        }
        for bad in ["10.0.0.0/40", "a/b/c", "a b"] {
            assert!(Mirrors::new(&[], &[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
