//! What files say about single registries: containerd's `hosts.toml`, and the certificates of docker's `certs.d`.
//!
//! Both have a directory for each registry, named `host` or `host:port` (containerd also writes `host_port_`). The first
//! directory of the registry that says something is believed. What a `hosts.toml` can say and is not done is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rbuild_engine::registry::{Offers, Place, Rules, Trust};
use serde::Deserialize;
use toml::{Table, Value};
use url::Url;

/// The directories of directories, the user's own first.
#[derive(Debug, Clone)]
pub struct HostFiles {
    dirs: Vec<PathBuf>,
}

impl HostFiles {
    pub fn new(dirs: Vec<PathBuf>) -> Self {
        Self { dirs }
    }

    /// What is said about a registry (`docker.io`, `host`, `host:port`).
    ///
    /// # Errors
    /// A file cannot be read, or says what is not understood.
    pub fn rules(&self, registry: &str) -> Result<Rules, String> {
        let mut names = vec![registry.to_owned()];
        if let Some((host, port)) = registry.rsplit_once(':') {
            names.push(format!("{host}_{port}_"));
        }
        for dir in &self.dirs {
            for name in names.iter().map(String::as_str).chain(["_default"]) {
                let dir = dir.join(name);
                let hosts = dir.join("hosts.toml");
                if hosts.is_file() {
                    return read_hosts(&hosts, registry);
                }
                if dir.is_dir() && name != "_default" {
                    let trust = read_certificates(&dir)?;
                    if !trust.is_empty() {
                        return Ok(Rules { trust, ..Rules::default() });
                    }
                }
            }
        }
        Ok(Rules::default())
    }
}

/// Docker's directory: authorities in `*.crt`, certificates to show in `*.cert` with their keys in `*.key`.
///
/// # Errors
/// A file that cannot be read, or a certificate and a key of which one is missing.
pub fn read_certificates(dir: &Path) -> Result<Trust, String> {
    let failed = |e: std::io::Error| format!("{}: {e}", dir.display());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    let mut trust = Trust::default();
    for path in &paths {
        match path.extension().and_then(|e| e.to_str()) {
            Some("crt") => trust.roots.push(read(path)?),
            Some("cert") => {
                let key = path.with_extension("key");
                if !key.is_file() {
                    return Err(format!("missing key {} for client certificate {}", key.display(), path.display()));
                }
                trust.identity = Some((read(path)?, read(&key)?));
            }
            Some("key") if !path.with_extension("cert").is_file() => {
                let certificate = path.with_extension("cert");
                let (key, certificate) = (path.display(), certificate.display());
                return Err(format!("missing client certificate {certificate} for key {key}"));
            }
            _ => {}
        }
    }
    Ok(trust)
}

/// One address of a `hosts.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Host {
    capabilities: Option<Vec<String>>,
    ca: Option<Texts>,
    client: Option<Clients>,
    skip_verify: bool,
    override_path: bool,
    header: BTreeMap<String, Texts>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Several(Vec<String>),
}

/// A file with certificate and key, or one for each.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Clients {
    One(String),
    Several(Vec<String>),
    Pairs(Vec<(String, String)>),
}

fn read_hosts(path: &Path, registry: &str) -> Result<Rules, String> {
    let failed = |why: String| format!("{}: {why}", path.display());
    let text = String::from_utf8(read(path)?).map_err(|_| failed("not text".into()))?;
    let mut table: Table = text.parse().map_err(|e: toml::de::Error| failed(e.message().to_owned()))?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    let hosts = match table.remove("host") {
        None => Table::new(),
        Some(Value::Table(hosts)) => hosts,
        Some(_) => return Err(failed("host is no table".into())),
    };
    let server = match table.remove("server") {
        None => None,
        Some(Value::String(server)) => Some(server),
        Some(_) => return Err(failed("server is no text".into())),
    };
    let mut rules = Rules::default();
    let about = |value: Table| -> Result<Host, String> {
        Value::Table(value).try_into().map_err(|e: toml::de::Error| failed(e.message().to_owned()))
    };
    // What stands at the top is about the server.
    let own = about(table)?;
    let server = server.unwrap_or_default();
    if server.is_empty() {
        rules.trust = own.trust(dir)?;
        if own.skip_verify || own.override_path || !own.header.is_empty() {
            rules.server = Some(own.place(&format!("https://{}", own_host(registry)), dir).map_err(failed)?);
        }
    } else {
        rules.server = Some(own.place(&server, dir).map_err(failed)?);
    }
    for (address, value) in hosts {
        let Value::Table(value) = value else { return Err(failed(format!("host {address:?} is no table"))) };
        rules.places.push(about(value)?.place(&address, dir).map_err(failed)?);
    }
    Ok(rules)
}

/// Where a registry's API is.
fn own_host(registry: &str) -> &str {
    if registry == "docker.io" { "registry-1.docker.io" } else { registry }
}

impl Host {
    /// What it may be asked for; everything, when nothing is said.
    fn offers(&self) -> Result<Offers, String> {
        let Some(all) = &self.capabilities else { return Ok(Offers::default()) };
        if let Some(other) = all.iter().find(|one| !["pull", "resolve", "push"].contains(&one.as_str())) {
            return Err(format!("the capability {other:?} is not known"));
        }
        let has = |what: &str| all.iter().any(|one| one == what);
        Ok(Offers { pull: has("pull"), resolve: has("resolve"), push: has("push") })
    }

    fn place(&self, address: &str, dir: &Path) -> Result<Place, String> {
        let address = if address.contains("://") { address.to_owned() } else { format!("https://{address}") };
        let bad = |why: &dyn std::fmt::Display| format!("host {address:?}: {why}");
        let mut url = Url::parse(&address).map_err(|e| bad(&e))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(bad(&"the scheme must be http or https"));
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return Err(bad(&"user, query and fragment are not allowed"));
        }
        if !url.path().ends_with('/') {
            let path = format!("{}/", url.path());
            url.set_path(&path);
        }
        let trust = self.trust(dir)?;
        let headers = self.header.iter().flat_map(|(name, values)| {
            let values = match values {
                Texts::One(one) => std::slice::from_ref(one),
                Texts::Several(several) => several,
            };
            values.iter().map(|value| (name.clone(), value.clone()))
        });
        let (skip_verify, override_path) = (self.skip_verify, self.override_path);
        let offers = self.offers().map_err(|e| bad(&e))?;
        Ok(Place { url, trust, skip_verify, override_path, offers, headers: headers.collect() })
    }

    fn trust(&self, dir: &Path) -> Result<Trust, String> {
        let file = |name: &String| read(&dir.join(name));
        let roots = match &self.ca {
            None => Vec::new(),
            Some(Texts::One(one)) => vec![file(one)?],
            Some(Texts::Several(several)) => several.iter().map(file).collect::<Result<_, _>>()?,
        };
        let both = |name: &String| file(name).map(|pem| Some((pem.clone(), pem)));
        let identity = match &self.client {
            None => None,
            Some(Clients::One(one)) => both(one)?,
            Some(Clients::Several(several)) => match several.first() {
                Some(first) => both(first)?,
                None => None,
            },
            Some(Clients::Pairs(pairs)) => match pairs.first() {
                Some((certificate, key)) if key.is_empty() => both(certificate)?,
                Some((certificate, key)) => Some((file(certificate)?, file(key)?)),
                None => None,
            },
        };
        Ok(Trust { roots, identity })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(files: &[(&str, &str)], registry: &str) -> Result<Rules, String> {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
            std::fs::write(path, text).expect("write");
        }
        HostFiles::new(vec![dir.path().join("absent"), dir.path().to_owned()]).rules(registry)
    }

    #[test]
    fn hosts_toml_names_places_in_its_order() {
        let text = r#"
            server = "https://upstream.example"
            ca = "ca.pem"
            [host."http://z.lan:5000"]
              capabilities = ["pull", "resolve"]
            [host."https://a.lan/prefix/v2/x"]
              override_path = true
              skip_verify = true
              client = [["c.pem", "k.pem"]]
            [host."https://push.lan"]
              capabilities = ["push"]
            [host."https://push.lan".header]
              x-one = "1"
              x-two = ["a", "b"]
        "#;
        let files = [
            ("r.lan:5000/hosts.toml", text),
            ("r.lan:5000/ca.pem", "A"),
            ("r.lan:5000/c.pem", "C"),
            ("r.lan:5000/k.pem", "K"),
        ];
        let found = rules(&files, "r.lan:5000").unwrap();
        let server = found.server.unwrap();
        assert_eq!((server.url.as_str(), server.trust.roots), ("https://upstream.example/", vec![b"A".to_vec()]));
        let places: Vec<&str> = found.places.iter().map(|place| place.url.as_str()).collect();
        assert_eq!(places, ["http://z.lan:5000/", "https://a.lan/prefix/v2/x/", "https://push.lan/"]);
        let offers: Vec<Offers> = found.places.iter().map(|place| place.offers).collect();
        let pull = Offers { pull: true, resolve: true, push: false };
        assert_eq!(offers, [pull, Offers::default(), Offers { pull: false, resolve: false, push: true }]);
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let headers = [header("x-one", "1"), header("x-two", "a"), header("x-two", "b")];
        assert_eq!(found.places[2].headers, headers);
        assert!(found.places[1].override_path && found.places[1].skip_verify);
        assert_eq!(found.places[1].trust.identity, Some((b"C".to_vec(), b"K".to_vec())));
        assert!(rules(&files, "other.lan").unwrap().places.is_empty());
    }

    #[test]
    fn directories_of_certificates() {
        let files = [("r_5000_/ca.crt", "A"), ("r_5000_/x.cert", "C"), ("r_5000_/x.key", "K"), ("r_5000_/notes", "")];
        let found = rules(&files, "r:5000").unwrap();
        assert_eq!(found.trust.roots, [b"A".to_vec()]);
        assert_eq!(found.trust.identity, Some((b"C".to_vec(), b"K".to_vec())));
        assert!(rules(&files[..2], "r:5000").unwrap_err().contains("missing key"));
        assert!(rules(&files[2..], "r:5000").unwrap_err().contains("missing client certificate"));
        let everywhere = [("_default/hosts.toml", "[host.\"https://m.lan\"]\n")];
        assert_eq!(rules(&everywhere, "any.lan").unwrap().places.len(), 1);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (text, word) in [
            ("server = 1", "server"),
            ("[host.\"https://a\".header]\nx = 1", "hosts.toml"),
            ("[host.\"https://a\"]\ncapabilities = [\"fly\"]", "fly"),
            ("[host.\"https://a\"]\ndial_timeout = \"1s\"", "dial_timeout"),
            ("[host.\"ftp://a\"]", "scheme"),
            ("[host.\"https://u:p@a\"]", "user"),
            ("[host.\"https://a\"]\nca = \"absent\"", "absent"),
            ("= x", "hosts.toml"),
        ] {
            let error = rules(&[("r/hosts.toml", text)], "r").unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
