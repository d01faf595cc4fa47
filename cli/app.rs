//! What every command is given: settings, printers and, when it asks, the engine.

use std::cell::OnceCell;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use rbuild_engine::registry::{ClientOptions, Credentials, Mirrors, Proxies, Roots};
use rbuild_engine::runtime::network::BridgeOptions;
use rbuild_engine::{Engine, EngineOptions};

use crate::args::Globals;
use crate::error::CliError;
use crate::settings::Settings;
use crate::terminal::{clean, tell};

/// The bundles of certificates that distributions keep, the first that is there.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// One invocation of the program.
pub struct App {
    pub settings: Settings,
    engine: OnceCell<Engine>,
}

impl App {
    /// # Errors
    /// No place for the state directory.
    pub fn new(globals: &Globals) -> Result<Self, CliError> {
        Ok(Self { settings: Settings::from_environment(globals)?, engine: OnceCell::new() })
    }

    /// The engine on the state directory, opened when the first caller asks.
    ///
    /// # Errors
    /// The state directory cannot be used, or its configuration file is wrong.
    pub fn engine(&self) -> Result<&Engine, CliError> {
        if let Some(engine) = self.engine.get() {
            return Ok(engine);
        }
        let engine = Engine::open(self.engine_options()?)?;
        Ok(self.engine.get_or_init(|| engine))
    }

    fn engine_options(&self) -> Result<EngineOptions, CliError> {
        let config = self.settings.daemon_config()?;
        let driver = self.settings.storage_driver.clone().or(config.storage_driver);
        let driver = driver.map(|name| name.parse()).transpose().map_err(|e| CliError::new(format!("{e}")))?;
        let mirrors = Mirrors::new(&config.registry_mirrors, &config.insecure_registries);
        let variable = |name: &str| self.settings.either_case(name).map(str::to_owned);
        let registry = ClientOptions {
            mirrors: mirrors.map_err(|e| CliError::new(e.to_string()))?,
            credentials: Arc::new(credentials),
            roots: roots(self.settings.certificates())?,
            proxies: Proxies {
                http: variable("HTTP_PROXY"),
                https: variable("HTTPS_PROXY"),
                no_proxy: variable("NO_PROXY").unwrap_or_default(),
            },
            ..ClientOptions::default()
        };
        Ok(EngineOptions {
            root: self.settings.root.clone(),
            driver,
            helper: PathBuf::from("/proc/self/exe"),
            // A host without the file has no resolver, and neither have its containers.
            resolv_conf: std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
            registry,
            bridge: BridgeOptions::default(),
        })
    }

    /// Writes text to standard output; a terminal gets it without control characters.
    ///
    /// # Errors
    /// The reader went away, or the disk behind a redirection is full.
    pub fn print(&self, text: &str) -> Result<(), CliError> {
        if std::io::stdout().is_terminal() {
            self.write_out(clean(text).as_bytes())
        } else {
            self.write_out(text.as_bytes())
        }
    }

    /// Writes bytes to standard output, as they are.
    ///
    /// # Errors
    /// As [`App::print`].
    pub fn write_out(&self, bytes: &[u8]) -> Result<(), CliError> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()?;
        Ok(())
    }

    /// Writes a line to standard error.
    pub fn tell(&self, text: &str) {
        tell(&format!("{text}\n"));
    }
}

/// The certificates to believe: those the user named, else the system's, else the ones built in.
fn roots(named: Option<PathBuf>) -> Result<Roots, CliError> {
    if let Some(path) = named {
        let read = std::fs::read(&path);
        return read.map(Roots::Pem).map_err(|e| CliError::new(format!("SSL_CERT_FILE {}: {e}", path.display())));
    }
    Ok(BUNDLES.iter().find_map(|path| std::fs::read(path).ok()).map_or(Roots::BuiltIn, Roots::Pem))
}

/// What docker's configuration knows about a registry: its own entries, and the helper programs it names.
fn credentials(host: &str) -> Result<Credentials, String> {
    use docker_credential::{CredentialRetrievalError as E, DockerCredential};
    let key = if host == "docker.io" { "https://index.docker.io/v1/" } else { host };
    match docker_credential::get_credential(key) {
        Ok(DockerCredential::UsernamePassword(username, password)) => Ok(Credentials::Password { username, password }),
        Ok(DockerCredential::IdentityToken(token)) => Ok(Credentials::IdentityToken(token)),
        Err(E::NoCredentialConfigured | E::ConfigNotFound) => Ok(Credentials::Anonymous),
        Err(error) => Err(error.to_string()),
    }
}
