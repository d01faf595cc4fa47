//! `rbuild imagetools inspect`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use rbuild_engine::oci::{Descriptor, Document, Reference};
use rbuild_engine::registry::{Client, Fetched};
use serde_json::{Map, Value, json};

use super::DONE;
use crate::app::App;
use crate::commands::reference;
use crate::error::CliError;
use crate::format;
use crate::json_text::indent;
use crate::terminal::clean_line;

/// Show an image of a registry
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image
    #[arg(value_name = "NAME")]
    name: String,
    /// Format with a Go template over Name, Manifest, Image, Provenance and SBOM
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "raw")]
    format: Option<String>,
    /// Show the manifest as it is
    #[arg(long)]
    raw: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let name = reference(&args.name)?;
    if let Some(template) = &args.format {
        format::compile(template)?;
    }
    let client = app.registry_client()?;
    let fetched = client.fetch_manifest(&name).await.map_err(|e| CliError::new(e.to_string()))?;
    if args.raw {
        app.write_out(&fetched.bytes)?;
        return DONE;
    }
    let text = match args.format.as_deref() {
        None => overview(&name, &fetched),
        Some(template) => {
            let value = Inspected { client: &client, name: &name, fetched: &fetched }.value(template).await?;
            match template.trim() {
                "json" | "{{json .}}" => indent(&value.to_string(), "  ") + "\n",
                _ => format::object(template, &value)? + "\n",
            }
        }
    };
    app.print(&text)?;
    DONE
}

fn overview(name: &Reference, fetched: &Fetched) -> String {
    let mut out = String::new();
    lines(
        &mut out,
        "",
        &[
            ("Name:", name.canonical()),
            ("MediaType:", super::imagetools_create::shown_type(fetched).to_owned()),
            ("Digest:", fetched.descriptor.digest.to_string()),
        ],
    );
    let Document::Index(index) = &fetched.document else { return out };
    out.push_str("\nManifests:\n");
    for (at, child) in index.manifests.iter().enumerate() {
        if at > 0 {
            out.push('\n');
        }
        let mut about = vec![
            ("Name:", format!("{}@{}", name.canonical(), child.digest)),
            ("MediaType:", child.media_type.as_str().to_owned()),
        ];
        if let Some(platform) = &child.platform {
            about.push(("Platform:", platform.to_string()));
        }
        if let Some(kind) = &child.artifact_type {
            about.push(("ArtifactType:", kind.clone()));
        }
        lines(&mut out, "  ", &about);
        if !child.annotations.is_empty() {
            out.push_str("  Annotations:\n");
            let widest = child.annotations.keys().map(|key| key.len() + 1).max().unwrap_or(0);
            for (key, value) in &child.annotations {
                let key = format!("{key}:");
                // Writing to a string cannot fail.
                let _ = writeln!(out, "    {:widest$} {}", clean_line(&key), clean_line(value));
            }
        }
    }
    out
}

/// Names and values, the values below each other.
fn lines(out: &mut String, indent: &str, about: &[(&str, String)]) {
    let widest = about.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    for (key, value) in about {
        let _ = writeln!(out, "{indent}{key:widest$} {}", clean_line(value));
    }
}

struct Inspected<'a> {
    client: &'a Client,
    name: &'a Reference,
    fetched: &'a Fetched,
}

impl Inspected<'_> {
    /// What a template sees. Configs and attestations are fetched when it asks for them.
    async fn value(&self, template: &str) -> Result<Value, CliError> {
        let all = matches!(template.trim(), "json") || template.contains("json .}}");
        let mut manifest: Map<String, Value> =
            serde_json::from_slice(&self.fetched.bytes).map_err(|e| CliError::new(e.to_string()))?;
        let descriptor = &self.fetched.descriptor;
        manifest.insert("mediaType".into(), descriptor.media_type.as_str().into());
        manifest.insert("digest".into(), descriptor.digest.to_string().into());
        manifest.insert("size".into(), descriptor.size.into());
        for (go, name) in [
            ("MediaType", "mediaType"),
            ("Digest", "digest"),
            ("Size", "size"),
            ("SchemaVersion", "schemaVersion"),
            ("Manifests", "manifests"),
            ("Config", "config"),
            ("Layers", "layers"),
            ("Annotations", "annotations"),
        ] {
            if !all && let Some(value) = manifest.get(name).cloned() {
                manifest.insert(go.into(), value);
            }
        }
        let mut value = json!({ "name": self.name.canonical(), "manifest": manifest });
        if all || template.contains(".Image") {
            value["image"] = self.images().await?;
        }
        for (member, wanted) in [("SBOM", "https://spdx.dev/Document"), ("Provenance", "https://slsa.dev/provenance/")]
        {
            if all || template.contains(&format!(".{member}")) {
                let found = self.attested(wanted).await?;
                if !all || found != json!({}) {
                    value[member] = found;
                }
            }
        }
        if !all {
            for (go, name) in [("Name", "name"), ("Manifest", "manifest"), ("Image", "image")] {
                if let Some(found) = value.get(name).cloned() {
                    value[go] = found;
                }
            }
        }
        Ok(value)
    }

    fn children(&self) -> Vec<&Descriptor> {
        match &self.fetched.document {
            Document::Index(index) => index.manifests.iter().collect(),
            Document::Manifest(_) => Vec::new(),
        }
    }

    async fn fetch(&self, child: &Descriptor) -> Result<(Reference, Fetched), CliError> {
        let by_digest = self.name.without_tag().with_digest(child.digest.clone());
        let fetched = self.client.fetch_manifest(&by_digest).await.map_err(|e| CliError::new(e.to_string()))?;
        Ok((by_digest, fetched))
    }

    /// The config, or those of all platforms by their names.
    async fn images(&self) -> Result<Value, CliError> {
        let config = async |name: &Reference, fetched: &Fetched| -> Result<Value, CliError> {
            let config = self.client.config_of(name, fetched).await.map_err(|e| CliError::new(e.to_string()))?;
            serde_json::to_value(config).map_err(|e| CliError::new(e.to_string()))
        };
        if let Document::Manifest(_) = &self.fetched.document {
            return config(self.name, self.fetched).await;
        }
        let mut all = BTreeMap::new();
        for child in self.children() {
            let Some(platform) = child.platform.as_ref().filter(|_| !child.is_attestation()) else { continue };
            let (name, fetched) = self.fetch(child).await?;
            all.insert(platform.to_string(), config(&name, &fetched).await?);
        }
        serde_json::to_value(all).map_err(|e| CliError::new(e.to_string()))
    }

    /// What the attestations of one kind say, by platform when there are several.
    async fn attested(&self, kind: &str) -> Result<Value, CliError> {
        const ABOUT: &str = "vnd.docker.reference.digest";
        const PREDICATE: &str = "in-toto.io/predicate-type";
        let member = if kind.contains("spdx") { "SPDX" } else { "SLSA" };
        let mut found = BTreeMap::new();
        for child in self.children() {
            let Some(about) = child.annotations.get(ABOUT).filter(|_| child.is_attestation()) else { continue };
            let platform = self.children().into_iter().find(|one| one.digest.to_string() == *about);
            let platform = platform.and_then(|one| one.platform.as_ref()).map(ToString::to_string);
            let (name, fetched) = self.fetch(child).await?;
            let Document::Manifest(manifest) = &fetched.document else { continue };
            for layer in &manifest.layers {
                if layer.annotations.get(PREDICATE).is_some_and(|predicate| predicate.starts_with(kind)) {
                    let statement = self.statement(&name, layer).await?;
                    let predicate = statement.get("predicate").cloned().unwrap_or_default();
                    found.insert(platform.clone().unwrap_or_default(), json!({ member: predicate }));
                }
            }
        }
        if found.len() == 1 {
            return Ok(found.into_values().next().unwrap_or_default());
        }
        serde_json::to_value(found).map_err(|e| CliError::new(e.to_string()))
    }

    async fn statement(&self, name: &Reference, layer: &Descriptor) -> Result<Value, CliError> {
        const LARGEST: u64 = 64 << 20;
        let failed = |e: rbuild_engine::registry::Error| CliError::new(e.to_string());
        let stream = self.client.fetch_blob(name, layer).await.map_err(failed)?;
        let bytes = stream.bytes(LARGEST, "the attestation").await.map_err(failed)?;
        serde_json::from_slice(&bytes).map_err(|e| CliError::new(format!("the attestation is no JSON: {e}")))
    }
}
