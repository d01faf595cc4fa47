//! Docker's credential store: `config.json`, and the helper programs it names.
//!
//! The file is shared with docker and other tools, so members that mean nothing here stay as they are. It is written
//! aside with mode 0600 and renamed over the old one, never through a link. A helper is a fixed program asked a fixed
//! question: its name has no path, it is started without a shell, gets one line, and has bounds in time and size.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rbuild_engine::registry::Credentials;
use serde_json::{Map, Value};

/// The key under which docker.io's credentials lie, for historical reasons.
pub const DOCKER_IO_KEY: &str = "https://index.docker.io/v1/";
const DOCKER_IO: &str = "docker.io";

/// The largest configuration file and the largest answer of a helper, in bytes.
const FILE_LIMIT: u64 = 8 << 20;
const ANSWER_LIMIT: u64 = 1 << 20;
const HELPER_TIME: Duration = Duration::from_secs(30);

/// The user name that means "this is an identity token" to helpers.
const TOKEN_USER: &str = "<token>";

/// Where credentials lie.
#[derive(Debug, Clone)]
pub struct CredentialStore {
    /// Docker's configuration directory.
    dir: Option<PathBuf>,
    /// A file in podman's form, read when docker's has nothing.
    fallback: Option<PathBuf>,
}

/// How credentials were kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    InFile(PathBuf),
    ByHelper,
}

impl CredentialStore {
    pub fn new(dir: Option<PathBuf>, fallback: Option<PathBuf>) -> Self {
        Self { dir, fallback }
    }

    /// The credentials for a registry (`docker.io`, `host`, `host:port`).
    ///
    /// # Errors
    /// A file that is no JSON, or a helper that fails.
    pub fn get(&self, registry: &str) -> Result<Credentials, String> {
        let key = key(registry);
        if let Some(path) = self.path() {
            let config = read(&path)?;
            if let Some(helper) = helper(&config, key)? {
                return from_helper(&helper, key);
            }
            if let Some(found) = from_auths(&config, registry, &path)? {
                return Ok(found);
            }
        }
        match &self.fallback {
            Some(path) => Ok(from_auths(&read(path)?, registry, path)?.unwrap_or(Credentials::Anonymous)),
            None => Ok(Credentials::Anonymous),
        }
    }

    /// Keeps credentials that a registry has accepted.
    ///
    /// # Errors
    /// No home to keep them in, a file that cannot be written, a helper that fails.
    pub fn put(&self, registry: &str, username: &str, secret: &Secret) -> Result<Kept, String> {
        let path = self.path().ok_or("no place for credentials: HOME is not set")?;
        let key = key(registry);
        let mut config = read(&path)?;
        if let Some(helper) = helper(&config, key)? {
            let (user, secret) = match secret {
                Secret::Password(password) => (username, password),
                Secret::IdentityToken(token) => (TOKEN_USER, token),
            };
            let question = serde_json::json!({ "ServerURL": key, "Username": user, "Secret": secret });
            ask(&helper, "store", &question.to_string())?;
            return Ok(Kept::ByHelper);
        }
        let entry = match secret {
            Secret::Password(password) => serde_json::json!({ "auth": encode(&format!("{username}:{password}")) }),
            Secret::IdentityToken(token) => {
                serde_json::json!({ "auth": encode(&format!("{username}:")), "identitytoken": token })
            }
        };
        let auths = config.entry("auths").or_insert_with(|| Value::Object(Map::new()));
        let auths = auths.as_object_mut().ok_or_else(|| format!("{}: \"auths\" is no object", path.display()))?;
        auths.insert(key.to_owned(), entry);
        write(&path, &config)?;
        Ok(Kept::InFile(path))
    }

    /// Forgets the credentials for a registry. Nothing to forget is no error.
    ///
    /// # Errors
    /// As [`CredentialStore::put`].
    pub fn remove(&self, registry: &str) -> Result<(), String> {
        let Some(path) = self.path() else { return Ok(()) };
        let key = key(registry);
        let mut config = read(&path)?;
        if let Some(helper) = helper(&config, key)? {
            ask(&helper, "erase", key)?;
        }
        let Some(auths) = config.get_mut("auths").and_then(Value::as_object_mut) else { return Ok(()) };
        let before = auths.len();
        auths.retain(|stored, _| host_of(stored) != host_of(key));
        if auths.len() != before {
            write(&path, &config)?;
        }
        Ok(())
    }

    fn path(&self) -> Option<PathBuf> {
        self.dir.as_ref().map(|d| d.join("config.json"))
    }
}

/// What is kept for a user.
#[derive(Clone)]
pub enum Secret {
    Password(String),
    IdentityToken(String),
}

/// The registry that an argument of `login` names: schemes and paths are dropped, docker.io's aliases unified.
pub fn registry_name(text: &str) -> &str {
    match host_of(text) {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_IO,
        host => host,
    }
}

fn key(registry: &str) -> &str {
    if registry == DOCKER_IO { DOCKER_IO_KEY } else { registry }
}

/// `https://host/path` and `host/path` are about `host`.
fn host_of(text: &str) -> &str {
    let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    bare.split('/').next().unwrap_or(bare)
}

fn read(path: &Path) -> Result<Map<String, Value>, String> {
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(e) => return Err(failed(&e)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT + 1).read_to_end(&mut bytes).map_err(|e| failed(&e))?;
    if bytes.len() as u64 > FILE_LIMIT {
        return Err(failed(&"the file is too large"));
    }
    if bytes.trim_ascii().is_empty() {
        return Ok(Map::new());
    }
    // The parser's message may quote the file, which holds secrets: only the place is told.
    let parsed: Result<Map<String, Value>, _> = serde_json::from_slice(&bytes);
    parsed.map_err(|e| failed(&format!("not a JSON object (line {}, column {})", e.line(), e.column())))
}

fn write(path: &Path, config: &Map<String, Value>) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(failed)?;
    let mut text = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, format);
    serde::Serialize::serialize(config, &mut serializer).map_err(|e| failed(e.into()))?;
    let aside = dir.join(format!(".config.json.{}", std::process::id()));
    let outcome = (|| {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&aside, path)
    })();
    if outcome.is_err() {
        drop(std::fs::remove_file(&aside));
    }
    outcome.map_err(failed)
}

fn from_auths(config: &Map<String, Value>, registry: &str, path: &Path) -> Result<Option<Credentials>, String> {
    let Some(auths) = config.get("auths").and_then(Value::as_object) else { return Ok(None) };
    let key = key(registry);
    let entry = auths.get(key).or_else(|| auths.iter().find(|(k, _)| host_of(k) == host_of(key)).map(|(_, v)| v));
    let Some(entry) = entry else { return Ok(None) };
    let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|t| !t.is_empty());
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Credentials::IdentityToken(token.to_owned())));
    }
    if let Some(token) = text("registrytoken") {
        return Ok(Some(Credentials::RegistryToken(token.to_owned())));
    }
    if let (Some(username), Some(password)) = (text("username"), text("password")) {
        return Ok(Some(Credentials::Password { username: username.to_owned(), password: password.to_owned() }));
    }
    let Some(auth) = text("auth") else { return Ok(None) };
    let decoded = decode(auth).and_then(|bytes| String::from_utf8(bytes).ok());
    let decoded = decoded.ok_or_else(|| format!("{}: invalid auth configuration file for {key}", path.display()))?;
    let (username, password) =
        decoded.split_once(':').ok_or_else(|| format!("{}: auth of {key} holds no password", path.display()))?;
    Ok(Some(Credentials::Password {
        username: username.to_owned(),
        password: password.trim_end_matches('\0').to_owned(),
    }))
}

/// The helper that answers for a registry: its own, else the one for all.
fn helper(config: &Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    let own = config.get("credHelpers").and_then(|h| h.get(key).or_else(|| h.get(host_of(key))));
    let name = own.or_else(|| config.get("credsStore")).and_then(Value::as_str).filter(|n| !n.is_empty());
    match name {
        Some(name) if name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) => {
            Ok(Some(name.to_owned()))
        }
        Some(name) => Err(format!("credential helper {name:?}: not a plain name")),
        None => Ok(None),
    }
}

fn from_helper(helper: &str, key: &str) -> Result<Credentials, String> {
    let answer = match ask(helper, "get", key) {
        Ok(answer) => answer,
        Err(e) if e.contains("credentials not found") => return Ok(Credentials::Anonymous),
        Err(e) => return Err(e),
    };
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let answer: Answer = serde_json::from_slice(&answer)
        .map_err(|_| format!("docker-credential-{helper}: the answer is not understood"))?;
    Ok(match (answer.username.as_str(), answer.secret) {
        (_, secret) if secret.is_empty() => Credentials::Anonymous,
        (TOKEN_USER, token) => Credentials::IdentityToken(token),
        (username, password) => Credentials::Password { username: username.to_owned(), password },
    })
}

/// Runs a helper with one line of input; gives its output.
fn ask(helper: &str, action: &str, line: &str) -> Result<Vec<u8>, String> {
    let program = format!("docker-credential-{helper}");
    let failed = |e: &dyn std::fmt::Display| format!("{program} {action}: {e}");
    if line.contains(['\n', '\r', '\0']) {
        return Err(failed(&"the question is not one line"));
    }
    let mut child = Command::new(&program)
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| failed(&e))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper may answer without reading.
        drop(stdin.write_all(line.as_bytes()).and_then(|()| stdin.write_all(b"\n")));
    }
    let stdout = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut answer = Vec::new();
        let read = stdout.map_or(Ok(0), |out| out.take(ANSWER_LIMIT + 1).read_to_end(&mut answer));
        read.map(|_| answer)
    });
    let status = wait(&mut child).map_err(|e| failed(&e))?;
    let answer = reader.join().map_err(|_| failed(&"reading failed"))?.map_err(|e| failed(&e))?;
    if answer.len() as u64 > ANSWER_LIMIT {
        return Err(failed(&"the answer is too long"));
    }
    if !status {
        // Helpers write why they fail to standard output.
        return Err(failed(&crate::terminal::clean_line(String::from_utf8_lossy(&answer).trim())));
    }
    Ok(answer)
}

fn wait(child: &mut Child) -> std::io::Result<bool> {
    let end = Instant::now() + HELPER_TIME;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "it does not answer"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn encode(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64_STANDARD.decode(text.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn password(username: &str, password: &str) -> Credentials {
        Credentials::Password { username: username.into(), password: password.into() }
    }

    #[test]
    fn log_in_and_out_leave_the_rest_of_the_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, r#"{"HttpHeaders":{"X":"y"},"auths":{"https://other/v1/":{"auth":"bzpw"}}}"#).unwrap();
        let store = CredentialStore::new(Some(dir.path().into()), None);
        assert_eq!(store.get("reg:5000").unwrap(), Credentials::Anonymous);
        store.put("reg:5000", "u", &Secret::Password("p:q".into())).unwrap();
        store.put("docker.io", "d", &Secret::IdentityToken("t".into())).unwrap();
        assert_eq!(store.get("reg:5000").unwrap(), password("u", "p:q"));
        assert_eq!(store.get("docker.io").unwrap(), Credentials::IdentityToken("t".into()));
        assert_eq!(store.get("other").unwrap(), password("o", "p"), "keys may be URLs");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        store.remove("reg:5000").unwrap();
        assert_eq!(store.get("reg:5000").unwrap(), Credentials::Anonymous);
        let config = read(&path).unwrap();
        assert_eq!(config["HttpHeaders"]["X"], "y");
        assert!(config["auths"].get(DOCKER_IO_KEY).is_some());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left aside");
    }

    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("elsewhere");
        std::fs::write(&target, "{}").unwrap();
        std::os::unix::fs::symlink(&target, dir.path().join("config.json")).unwrap();
        let store = CredentialStore::new(Some(dir.path().into()), None);
        store.put("h", "u", &Secret::Password("p".into())).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "{}");
    }

    #[test]
    fn helpers_are_plain_names_and_errors_hold_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let store = CredentialStore::new(Some(dir.path().into()), None);
        for name in ["../evil", "a/b", "a b", "x;y"] {
            std::fs::write(dir.path().join("config.json"), format!(r#"{{"credsStore":"{name}"}}"#)).unwrap();
            assert!(store.get("h").unwrap_err().contains("not a plain name"), "{name}");
        }
        std::fs::write(dir.path().join("config.json"), r#"{"auths":{"h":{"auth":"secret"#).unwrap();
        assert!(!store.get("h").unwrap_err().contains("secret"));
    }

    #[test]
    fn names_of_registries() {
        for (text, name) in [
            ("https://index.docker.io/v1/", "docker.io"),
            ("docker.io", "docker.io"),
            ("http://localhost:5000/v2/", "localhost:5000"),
            ("quay.io", "quay.io"),
        ] {
            assert_eq!(registry_name(text), name);
        }
    }
}
