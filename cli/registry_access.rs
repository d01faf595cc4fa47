//! How one command speaks to registries, in the words of `buildah build`: whose name it gives, what it believes, how
//! often it tries.
//!
//! These go for every registry that the command asks, as buildah's do; what is to differ from registry to registry belongs
//! into docker's `config.json` and the files of `certs.d`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rbuild_engine::registry::{ClientOptions, Credentials};

use crate::credentials::CredentialStore;
use crate::error::CliError;
use crate::host_files::read_certificates;
use crate::values;

/// The options.
#[derive(Debug, Default, clap::Args)]
pub struct RegistryAccess {
    /// Name and password for the registries
    #[arg(long, value_name = "USER[:PASSWORD]")]
    creds: Option<String>,
    /// File with credentials for registries, in docker's or podman's form
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Directory with certificates (*.crt, *.cert, *.key) for the registries
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,
    /// Whether registries have to prove who they are
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = clap::builder::BoolishValueParser::new())]
    tls_verify: Option<bool>,
    /// How often to try again what a registry or the network refused (default: 5)
    #[arg(long, value_name = "N")]
    retry: Option<u32>,
    /// Pause before a retry; it doubles with each (default: 250ms)
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    retry_delay: Option<Duration>,
}

impl RegistryAccess {
    /// Whether anything is said.
    pub fn is_given(&self) -> bool {
        let RegistryAccess { creds, authfile, cert_dir, tls_verify, retry, retry_delay } = self;
        creds.is_some()
            || authfile.is_some()
            || cert_dir.is_some()
            || tls_verify.is_some()
            || retry.is_some()
            || retry_delay.is_some()
    }

    /// Changes the options of a client accordingly.
    ///
    /// # Errors
    /// A file that is not there or is none of its kind.
    pub fn apply(&self, options: &mut ClientOptions) -> Result<(), CliError> {
        if let Some(path) = &self.authfile {
            let text =
                std::fs::read(path).map_err(|e| CliError::new(format!("credential file {}: {e}", path.display())))?;
            if let Err(e) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&text) {
                return Err(CliError::new(format!("credential file {}: {e}", path.display())));
            }
            let store = CredentialStore::new(None, Some(path.clone()));
            options.credentials = Arc::new(move |host: &str| store.get(host));
        }
        if let Some(text) = &self.creds {
            let (username, password) = text.split_once(':').unwrap_or((text, ""));
            if username.is_empty() {
                return Err(CliError::new("invalid credentials: there is no user before the colon"));
            }
            let (username, password) = (username.to_owned(), password.to_owned());
            options.credentials = Arc::new(move |_: &str| {
                Ok(Credentials::Password { username: username.clone(), password: password.clone() })
            });
        }
        if let Some(dir) = &self.cert_dir {
            let trust = read_certificates(dir).map_err(CliError::new)?;
            if trust.is_empty() {
                let message = format!("{}: there are no certificates (*.crt, *.cert with *.key)", dir.display());
                return Err(CliError::new(message));
            }
            let rules = options.rules.clone();
            options.rules = Arc::new(move |registry: &str| {
                let mut rules = rules(registry)?;
                rules.trust = trust.clone();
                Ok(rules)
            });
        }
        if self.tls_verify == Some(false) {
            options.mirrors = std::mem::take(&mut options.mirrors).believing_everyone();
        }
        if let Some(retries) = self.retry {
            options.retry.attempts = retries.saturating_add(1);
        }
        if let Some(pause) = self.retry_delay {
            options.retry.first = pause;
            options.retry.longest = options.retry.longest.max(pause);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(access: RegistryAccess) -> Result<ClientOptions, String> {
        assert!(access.is_given());
        let mut options = ClientOptions::default();
        access.apply(&mut options).map_err(|error| error.message)?;
        Ok(options)
    }

    #[test]
    fn each_option_does_what_it_says() {
        let none = RegistryAccess::default();
        assert!(!none.is_given());
        let options = of(RegistryAccess { creds: Some("me:pa:ss".into()), ..Default::default() }).unwrap();
        let Ok(Credentials::Password { username, password }) = (options.credentials)("reg.lan") else { panic!() };
        assert_eq!((username.as_str(), password.as_str()), ("me", "pa:ss"));
        let options = of(RegistryAccess { tls_verify: Some(false), ..Default::default() }).unwrap();
        assert!(options.mirrors.is_insecure("reg.lan:5000"));
        let options = of(RegistryAccess { tls_verify: Some(true), ..Default::default() }).unwrap();
        assert!(!options.mirrors.is_insecure("reg.lan:5000"));
        let pause = Duration::from_secs(60);
        let options = of(RegistryAccess { retry: Some(0), retry_delay: Some(pause), ..Default::default() }).unwrap();
        assert_eq!((options.retry.attempts, options.retry.first, options.retry.longest), (1, pause, pause));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        std::fs::write(&file, r#"{"auths": {"reg.lan": {"auth": "bWU6cHc="}}}"#).unwrap();
        let options = of(RegistryAccess { authfile: Some(file), ..Default::default() }).unwrap();
        assert!(matches!((options.credentials)("reg.lan"), Ok(Credentials::Password { .. })));
        assert!(matches!((options.credentials)("other.lan"), Ok(Credentials::Anonymous)));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        std::fs::write(&file, "[").unwrap();
        let shown = |path: &std::path::Path| path.display().to_string();
        for (access, want) in [
            (RegistryAccess { creds: Some(":x".into()), ..Default::default() }, "invalid credentials".to_owned()),
            (RegistryAccess { authfile: Some(file.clone()), ..Default::default() }, shown(&file)),
            (RegistryAccess { authfile: Some("/no/such".into()), ..Default::default() }, "/no/such: ".to_owned()),
            (RegistryAccess { cert_dir: Some(dir.path().into()), ..Default::default() }, "no certificates".to_owned()),
            (RegistryAccess { cert_dir: Some("/no/such".into()), ..Default::default() }, "/no/such: ".to_owned()),
        ] {
            let said = of(access).map(drop).unwrap_err();
            assert!(said.contains(&want) && !said.contains(":x"), "{want}: {said}");
        }
    }
}
