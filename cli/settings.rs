//! What the surroundings say: environment, home directory, configuration files.
//!
//! The only place of the program that reads them; everything below is given values. So what a build depends
//! on can be read off its request, and tests need no environment.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rbuild_engine::usage::policy::CachePolicy;
use rbuild_engine::{GitOptions, GitSsh};
use serde::Deserialize;

use crate::args::Globals;
use crate::collection::BuilderConfig;
use crate::error::CliError;

/// State directory of root, where every user of the machine finds the same images.
const SYSTEM_ROOT: &str = "/var/lib/rbuild";

/// Read once at the start; files are read when asked for.
#[derive(Debug)]
pub struct Settings {
    /// The state directory: images, cache, containers.
    pub root: PathBuf,
    /// `--storage-driver`, else the root's configuration, else what works there.
    pub storage_driver: Option<String>,
    /// Where docker's `config.json` with credentials lies, if there is a home at all.
    pub docker_config: Option<PathBuf>,
    /// `--cdi-spec-dir`.
    cdi_spec_dirs: Vec<PathBuf>,
    variables: Vec<(OsString, OsString)>,
}

/// The configuration file: docker's `daemon.json`, of which these members mean something here.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct DaemonConfig {
    pub registry_mirrors: Vec<String>,
    pub insecure_registries: Vec<String>,
    /// Registries that get foreign layers, too.
    pub allow_nondistributable_artifacts: Vec<String>,
    pub storage_driver: Option<String>,
    pub cdi_spec_dirs: Option<Vec<PathBuf>>,
    /// By the names that `--runtime` gives.
    pub runtimes: BTreeMap<String, RuntimeConfig>,
    pub default_runtime: Option<String>,
    builder: BuilderConfig,
}

/// A program that makes sandboxes.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RuntimeConfig {
    pub path: PathBuf,
    pub runtime_args: Vec<String>,
}

impl DaemonConfig {
    /// How the build cache is collected.
    ///
    /// # Errors
    /// A size, time or filter that is none.
    pub fn cache_policy(&self) -> Result<CachePolicy, CliError> {
        self.builder.cache_policy()
    }
}

impl Settings {
    /// # Errors
    /// No place for the state directory: neither root, nor `--root`, nor a home directory.
    pub fn from_environment(globals: &Globals) -> Result<Self, CliError> {
        Self::from_variables(globals, std::env::vars_os().collect(), rustix::process::geteuid().is_root())
    }

    /// The same from variables that are given.
    pub fn from_variables(
        globals: &Globals,
        variables: Vec<(OsString, OsString)>,
        is_root: bool,
    ) -> Result<Self, CliError> {
        let find = |name: &str| {
            variables
                .iter()
                .find(|(k, _)| k == name)
                .map(|(_, v)| PathBuf::from(v))
                .filter(|v| !v.as_os_str().is_empty())
        };
        let root = globals
            .root
            .clone()
            .or_else(|| find("RBUILD_ROOT"))
            .or_else(|| is_root.then(|| PathBuf::from(SYSTEM_ROOT)))
            .or_else(|| find("XDG_DATA_HOME").filter(|p| p.is_absolute()).map(|p| p.join("rbuild")))
            .or_else(|| find("HOME").map(|p| p.join(".local/share/rbuild")))
            .ok_or_else(|| {
                CliError::new("no state directory: HOME is not set").with_hint("name one with --root or RBUILD_ROOT")
            })?;
        let root = std::path::absolute(&root)
            .map_err(|e| CliError::new(format!("state directory {}: {e}", root.display())))?;
        let docker_config = find("DOCKER_CONFIG").or_else(|| find("HOME").map(|p| p.join(".docker")));
        let (storage_driver, cdi_spec_dirs) = (globals.storage_driver.clone(), globals.cdi_spec_dirs.clone());
        Ok(Self { root, storage_driver, docker_config, cdi_spec_dirs, variables })
    }

    /// Where files that describe devices lie: as the command line says, else the configuration, else the usual places.
    pub fn device_specs(&self, config: &DaemonConfig) -> Vec<PathBuf> {
        match (&self.cdi_spec_dirs[..], &config.cdi_spec_dirs) {
            ([], None) => ["/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi"].map(PathBuf::from).to_vec(),
            ([], Some(configured)) => configured.clone(),
            (given, _) => given.to_vec(),
        }
    }

    /// A variable, when it is set and is text.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(k, _)| k == name).and_then(|(_, v)| v.to_str())
    }

    /// A variable as it is, text or not.
    pub fn raw_variable(&self, name: &str) -> Option<&OsStr> {
        self.variables.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_os_str())
    }

    /// A variable that is set to something.
    pub fn non_empty(&self, name: &str) -> Option<&str> {
        self.variable(name).filter(|v| !v.is_empty())
    }

    /// `NO_COLOR` asks for plain text (any value but the empty one), and so does a dumb terminal.
    pub fn colour(&self) -> bool {
        self.non_empty("NO_COLOR").is_none() && self.variable("TERM") != Some("dumb")
    }

    /// A bundle of certificates to trust besides the system's.
    pub fn certificates(&self) -> Option<PathBuf> {
        self.non_empty("SSL_CERT_FILE").map(PathBuf::from)
    }

    /// Where files about single registries lie: the user's, this program's, containerd's and docker's.
    pub fn certificate_directories(&self) -> Vec<PathBuf> {
        let own = self.docker_config.as_ref().map(|dir| dir.join("certs.d"));
        let system = ["/etc/rbuild/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"].map(PathBuf::from);
        own.into_iter().chain(system).collect()
    }

    /// A variable that is known in capitals and in small letters, as the proxy variables are.
    pub fn either_case(&self, name: &str) -> Option<&str> {
        self.non_empty(name).or_else(|| self.non_empty(&name.to_lowercase()))
    }

    /// Git and what it may see of the environment, if it is installed.
    pub fn git(&self) -> Option<GitOptions> {
        let mut environment: Vec<(String, OsString)> = Vec::new();
        for name in ["http_proxy", "https_proxy", "no_proxy", "all_proxy"] {
            for name in [name.to_owned(), name.to_uppercase()] {
                environment.extend(self.non_empty(&name).map(|value| (name.clone(), value.into())));
            }
        }
        environment.extend(self.certificates().map(|path| ("GIT_SSL_CAINFO".to_owned(), path.into_os_string())));
        let home = self.non_empty("HOME").map(PathBuf::from);
        let known = home.map(|home| home.join(".ssh/known_hosts")).into_iter();
        let known_hosts = known.chain(["/etc/ssh/ssh_known_hosts".into()]).filter(|path| path.is_file()).collect();
        let agent = self.non_empty("SSH_AUTH_SOCK").map(PathBuf::from);
        let ssh = self.program("ssh").map(|program| GitSsh { program, agent, known_hosts });
        Some(GitOptions { program: self.program("git")?, environment, ssh, secrets: std::collections::BTreeMap::new() })
    }

    /// Where a program is, by the absolute directories of `PATH`.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        let path = &self.variables.iter().find(|(k, _)| k == "PATH")?.1;
        let found = std::env::split_paths(path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(name));
        found.into_iter().find(|file| file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok())
    }

    /// The configuration of this root: the file named by `RBUILD_CONFIG`, else `daemon.json` in the root.
    ///
    /// # Errors
    /// A file that cannot be read (unless it is only absent and was not asked for) or is not JSON.
    pub fn daemon_config(&self) -> Result<DaemonConfig, CliError> {
        let (path, asked) = match self.non_empty("RBUILD_CONFIG") {
            Some(path) => (PathBuf::from(path), true),
            None => (self.root.join("daemon.json"), false),
        };
        match std::fs::read(&path) {
            Ok(bytes) => parse_daemon_config(&bytes, &path),
            // A root that is no directory has none either; whoever opens the root says so.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) && !asked => {
                Ok(DaemonConfig::default())
            }
            Err(e) => Err(CliError::new(format!("configuration file {}: {e}", path.display()))),
        }
    }
}

fn parse_daemon_config(bytes: &[u8], path: &Path) -> Result<DaemonConfig, CliError> {
    if bytes.trim_ascii().is_empty() {
        return Ok(DaemonConfig::default());
    }
    serde_json::from_slice(bytes).map_err(|e| CliError::new(format!("configuration file {}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)], is_root: bool) -> Result<Settings, CliError> {
        let variables = variables.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        Settings::from_variables(&Globals::default(), variables, is_root)
    }

    #[test]
    fn where_the_state_lies() {
        for (variables, is_root, want) in [
            (&[][..], true, "/var/lib/rbuild"),
            (&[("RBUILD_ROOT", "/r")], true, "/r"),
            (&[("HOME", "/h")], false, "/h/.local/share/rbuild"),
            (&[("HOME", "/h"), ("XDG_DATA_HOME", "/d")], false, "/d/rbuild"),
            (&[("HOME", "/h"), ("XDG_DATA_HOME", "relative")], false, "/h/.local/share/rbuild"),
            (&[("RBUILD_ROOT", "")], true, "/var/lib/rbuild"),
        ] {
            assert_eq!(settings(variables, is_root).unwrap().root, Path::new(want), "{variables:?}");
        }
        assert!(settings(&[], false).is_err());
    }

    #[test]
    fn configuration_files() {
        let path = Path::new("daemon.json");
        let config = parse_daemon_config(br#"{"registry-mirrors": ["http://m:1"], "log-driver": "x"}"#, path).unwrap();
        assert_eq!(config.registry_mirrors, ["http://m:1"]);
        assert!(parse_daemon_config(b"", path).unwrap().registry_mirrors.is_empty());
        assert!(parse_daemon_config(b"{", path).unwrap_err().message.contains("daemon.json"));
    }
}
