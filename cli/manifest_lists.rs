//! Lists of manifests that are being made: `manifest create` begins one, `manifest push` sends it.
//!
//! They lie where docker keeps its own, in the directory `manifests` beside `config.json`: a directory for each list, in
//! it a file for each manifest.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rbuild_engine::oci::{Descriptor, Document, Reference};
use serde::{Deserialize, Serialize};

use crate::error::CliError;

/// A manifest of a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Listed {
    /// Canonical.
    #[serde(rename = "Ref")]
    pub reference: String,
    /// With the platform.
    pub descriptor: Descriptor,
    /// The manifest's own bytes, in base64.
    pub raw: String,
}

impl Listed {
    pub fn new(reference: &Reference, descriptor: Descriptor, bytes: &[u8]) -> Self {
        Self { reference: reference.canonical(), descriptor, raw: BASE64_STANDARD.encode(bytes) }
    }

    /// # Errors
    /// The file was changed to something else.
    pub fn bytes(&self) -> Result<Vec<u8>, CliError> {
        let decoded = BASE64_STANDARD.decode(&self.raw);
        decoded.map_err(|_| CliError::new(format!("the manifest kept for {} is no base64", self.reference)))
    }

    /// # Errors
    /// As [`Listed::bytes`].
    pub fn document(&self) -> Result<Document, CliError> {
        Document::parse(&self.bytes()?, Some(&self.descriptor.media_type)).map_err(|e| CliError::new(e.to_string()))
    }

    /// # Errors
    /// The file was changed to something else.
    pub fn name(&self) -> Result<Reference, CliError> {
        Reference::parse(&self.reference).map_err(|e| CliError::new(e.to_string()))
    }
}

/// All lists of a user.
pub struct ManifestLists {
    dir: PathBuf,
}

impl ManifestLists {
    /// # Errors
    /// There is no home to keep them in.
    pub fn new(docker_config: Option<&Path>) -> Result<Self, CliError> {
        let dir = docker_config.ok_or_else(|| CliError::new("no place for manifest lists: HOME is not set"))?;
        Ok(Self { dir: dir.join("manifests") })
    }

    pub fn has(&self, list: &Reference) -> bool {
        self.place(list).is_dir()
    }

    /// The manifests of a list, by name; none for a list that is not there.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn all(&self, list: &Reference) -> Result<Vec<Listed>, CliError> {
        let place = self.place(list);
        let entries = match std::fs::read_dir(&place) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|e| failed(&place, &e))?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(entry.map_err(|e| failed(&place, &e))?.path());
        }
        paths.sort();
        paths.iter().map(|path| read(path)).collect()
    }

    /// One manifest of a list.
    ///
    /// # Errors
    /// As [`ManifestLists::all`].
    pub fn get(&self, list: &Reference, manifest: &Reference) -> Result<Option<Listed>, CliError> {
        let path = self.place(list).join(file_name(manifest));
        if path.is_file() { read(&path).map(Some) } else { Ok(None) }
    }

    /// # Errors
    /// The file cannot be written.
    pub fn put(&self, list: &Reference, listed: &Listed) -> Result<(), CliError> {
        let place = self.place(list);
        std::fs::create_dir_all(&place).map_err(|e| failed(&place, &e))?;
        let path = place.join(file_name(&listed.name()?));
        let text = serde_json::to_vec(listed).map_err(|e| CliError::new(e.to_string()))?;
        crate::whole_file::write(&path, |out| Ok(out.write_all(&text)?))
    }

    /// False when there is no such list.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, list: &Reference) -> Result<bool, CliError> {
        let place = self.place(list);
        match std::fs::remove_dir_all(&place) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            removed => removed.map(|()| true).map_err(|e| failed(&place, &e)),
        }
    }

    fn place(&self, list: &Reference) -> PathBuf {
        self.dir.join(file_name(list))
    }
}

fn read(path: &Path) -> Result<Listed, CliError> {
    let bytes = std::fs::read(path).map_err(|e| failed(path, &e))?;
    serde_json::from_slice(&bytes).map_err(|e| CliError::new(format!("{}: {e}", path.display())))
}

fn failed(path: &Path, error: &std::io::Error) -> CliError {
    CliError::new(format!("{}: {error}", path.display()))
}

/// A reference as one component of a path.
fn file_name(reference: &Reference) -> String {
    reference.canonical().replace(':', "-").replace('/', "_")
}
