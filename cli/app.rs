//! What every command is given: settings, printers and, when it asks, the engine.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rbuild_engine::images::Images;
use rbuild_engine::oci::Reference;
use rbuild_engine::registry::{Client, ClientOptions, Mirrors, Proxies, Roots};
use rbuild_engine::runtime::network::BridgeOptions;
use rbuild_engine::{Engine, EngineOptions};

use crate::args::Globals;
use crate::credentials::CredentialStore;
use crate::error::CliError;
use crate::host_files::HostFiles;
use crate::manifest_lists::ManifestLists;
use crate::registry_access::RegistryAccess;
use crate::settings::{DaemonConfig, Settings};
use crate::terminal::{clean, tell};

/// The bundles of certificates that distributions keep, the first that is there.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// One invocation of the program.
pub struct App {
    pub settings: Settings,
    engine: OnceLock<Engine>,
}

impl App {
    /// # Errors
    /// No place for the state directory.
    pub fn new(globals: &Globals) -> Result<Self, CliError> {
        Ok(Self { settings: Settings::from_environment(globals)?, engine: OnceLock::new() })
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

    /// As [`App::engine`], for the first caller alone: registries are spoken to as `access` says.
    ///
    /// # Errors
    /// As [`App::engine`], or what `access` names cannot be used.
    pub fn engine_with(&self, access: &RegistryAccess) -> Result<&Engine, CliError> {
        if !access.is_given() || self.engine.get().is_some() {
            return self.engine();
        }
        let mut options = self.engine_options()?;
        access.apply(&mut options.registry)?;
        let engine = Engine::open(options)?;
        Ok(self.engine.get_or_init(|| engine))
    }

    /// The images of the engine.
    ///
    /// # Errors
    /// As [`App::engine`].
    pub fn images(&self) -> Result<Images, CliError> {
        Ok(self.engine()?.images()?)
    }

    fn engine_options(&self) -> Result<EngineOptions, CliError> {
        let config = self.settings.daemon_config()?;
        let driver = self.settings.storage_driver.clone().or(config.storage_driver.clone());
        let driver = driver.map(|name| name.parse()).transpose().map_err(|e| CliError::new(format!("{e}")))?;
        Ok(EngineOptions {
            root: self.settings.root.clone(),
            driver,
            helper: PathBuf::from("/proc/self/exe"),
            // A host without the file has no resolver, and neither have its containers.
            resolv_conf: std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
            registry: self.client_options(&config)?,
            bridge: BridgeOptions::default(),
            device_specs: self.settings.device_specs(&config),
            git: self.settings.git(),
        })
    }

    /// A client for registries that needs no state directory.
    ///
    /// # Errors
    /// The settings make no client.
    pub fn registry_client(&self) -> Result<Client, CliError> {
        let options = self.client_options(&self.settings.daemon_config()?)?;
        Client::new(options).map_err(|e| CliError::new(e.to_string()))
    }

    /// As [`App::registry_client`]; when `insecure`, the registries of `names` may be spoken to as badly as it takes.
    ///
    /// # Errors
    /// The settings make no client.
    pub fn client_for(&self, names: &[Reference], insecure: bool) -> Result<Client, CliError> {
        let mut config = self.settings.daemon_config()?;
        if insecure {
            config.insecure_registries.extend(names.iter().map(|name| name.registry().to_owned()));
        }
        Client::new(self.client_options(&config)?).map_err(|e| CliError::new(e.to_string()))
    }

    /// The lists of manifests that the user is making.
    ///
    /// # Errors
    /// There is no place for them.
    pub fn manifest_lists(&self) -> Result<ManifestLists, CliError> {
        ManifestLists::new(self.settings.docker_config.as_deref())
    }

    /// Docker's credentials, or podman's where docker has none.
    pub fn credentials(&self) -> CredentialStore {
        let fallback = self.settings.non_empty("REGISTRY_AUTH_FILE").map(PathBuf::from);
        CredentialStore::new(self.settings.docker_config.clone(), fallback)
    }

    fn client_options(&self, config: &DaemonConfig) -> Result<ClientOptions, CliError> {
        let mirrors = Mirrors::new(&config.registry_mirrors, &config.insecure_registries);
        let variable = |name: &str| self.settings.either_case(name).map(str::to_owned);
        let credentials = self.credentials();
        let hosts = HostFiles::new(self.settings.certificate_directories());
        Ok(ClientOptions {
            mirrors: mirrors.map_err(|e| CliError::new(e.to_string()))?,
            credentials: Arc::new(move |host: &str| credentials.get(host)),
            rules: Arc::new(move |registry: &str| hosts.rules(registry)),
            roots: roots(self.settings.certificates())?,
            proxies: Proxies {
                http: variable("HTTP_PROXY"),
                https: variable("HTTPS_PROXY"),
                no_proxy: variable("NO_PROXY").unwrap_or_default(),
            },
            undistributable: config.allow_nondistributable_artifacts.clone(),
            ..ClientOptions::default()
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
