//! `rbuild manifest inspect`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use rbuild_engine::oci::{Descriptor, Document, Reference};
use rbuild_engine::registry::{Client, Error, Fetched, Part, compose};
use serde_json::Value;

use super::DONE;
use crate::app::App;
use crate::commands::reference;
use crate::error::CliError;
use crate::json_text::indent;

/// Show a manifest or a list of manifests
///
/// A list that was made here and not pushed yet is shown; else what the registry has.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A list made here, and one of its manifests; or what is to be shown
    #[arg(value_name = "[MANIFEST_LIST] MANIFEST", required = true, num_args = 1..=2)]
    names: Vec<String>,
    /// With names and digests; of a list also its manifests
    #[arg(short, long)]
    verbose: bool,
    /// Speak plain HTTP, or TLS with any certificate, where nothing better is spoken
    #[arg(long)]
    insecure: bool,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let name = reference(&args.names[args.names.len() - 1])?;
    let text = match local(&args, app, &name)? {
        Some(text) => text,
        None if args.names.len() > 1 => {
            return Err(CliError::new(format!("no such manifest: {}", name.canonical())));
        }
        None => remote(&args, app, &name).await?,
    };
    app.print(&(text + "\n"))?;
    DONE
}

/// What a list that is made here says.
fn local(args: &Args, app: &App, name: &Reference) -> Result<Option<String>, CliError> {
    let Ok(lists) = app.manifest_lists() else { return Ok(None) };
    if args.names.len() > 1 {
        let Some(one) = lists.get(&reference(&args.names[0])?, name)? else { return Ok(None) };
        let bytes = one.bytes()?;
        let shown = if args.verbose { verbose(name, &one.descriptor, &bytes)? } else { text(&bytes)? };
        return Ok(Some(indent(&shown, "\t")));
    }
    let all = lists.all(name)?;
    if all.is_empty() {
        return Ok(None);
    }
    if args.verbose {
        let shown: Result<Vec<String>, CliError> =
            all.iter().map(|one| verbose(&one.name()?, &one.descriptor, &one.bytes()?)).collect();
        return Ok(Some(indent(&format!("[{}]", shown?.join(",")), "\t")));
    }
    let parts: Result<Vec<Part>, CliError> =
        all.iter().map(|one| Ok(Part { from: one.name()?, descriptor: one.descriptor.clone() })).collect();
    let index = compose(&parts?, BTreeMap::new()).map_err(|e| CliError::new(e.to_string()))?;
    Ok(Some(indent(&text(&index.bytes)?, "   ")))
}

async fn remote(args: &Args, app: &App, name: &Reference) -> Result<String, CliError> {
    let client = app.client_for(std::slice::from_ref(name), args.insecure)?;
    let fetched = fetch(&client, name).await?;
    let Document::Index(index) = &fetched.document else {
        if !args.verbose {
            return Ok(indent(&text(&fetched.bytes)?, "\t"));
        }
        let mut descriptor = fetched.descriptor.clone();
        descriptor.platform = client.platform_of(name, &fetched).await.map_err(|e| CliError::new(e.to_string()))?;
        return Ok(indent(&verbose(name, &descriptor, &fetched.bytes)?, "\t"));
    };
    if !args.verbose {
        return Ok(indent(&text(&fetched.bytes)?, "   "));
    }
    let mut shown = Vec::new();
    for child in &index.manifests {
        let by_digest = name.without_tag().with_digest(child.digest.clone());
        let fetched = fetch(&client, &by_digest).await?;
        let named = Reference::parse(&format!("{}@{}", name.canonical(), child.digest));
        shown.push(verbose(&named.unwrap_or(by_digest), child, &fetched.bytes)?);
    }
    Ok(indent(&format!("[{}]", shown.join(",")), "\t"))
}

/// A manifest or index of a registry, with docker's words for one that is not there.
pub async fn fetch(client: &Client, name: &Reference) -> Result<Fetched, CliError> {
    client.fetch_manifest(name).await.map_err(|error| match error {
        Error::ManifestNotFound { .. } | Error::RepositoryNotFound { .. } | Error::PullDenied { .. } => {
            let reason = format!("no such manifest: {}", name.canonical());
            CliError::new(reason).with_hint(error.to_string())
        }
        error => CliError::new(error.to_string()),
    })
}

/// One manifest with its name and descriptor, as JSON.
fn verbose(name: &Reference, descriptor: &Descriptor, bytes: &[u8]) -> Result<String, CliError> {
    let failed = |e: serde_json::Error| CliError::new(e.to_string());
    let member = match Document::parse(bytes, Some(&descriptor.media_type)) {
        Ok(Document::Manifest(_)) if descriptor.media_type.as_str().starts_with("application/vnd.docker.") => {
            "SchemaV2Manifest"
        }
        _ => "OCIManifest",
    };
    let name = serde_json::to_string(&Value::from(name.canonical())).map_err(failed)?;
    let descriptor = serde_json::to_string(descriptor).map_err(failed)?;
    Ok(format!("{{\"Ref\":{name},\"Descriptor\":{descriptor},\"{member}\":{}}}", text(bytes)?))
}

fn text(bytes: &[u8]) -> Result<String, CliError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| CliError::new("the manifest is not text"))
}
