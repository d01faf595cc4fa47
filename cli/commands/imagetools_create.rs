//! `rbuild imagetools create`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use rbuild_engine::oci::{Descriptor, Digest, Document, MediaType, Platform, Reference};
use rbuild_engine::registry::{Client, Composed, Error, Fetched, Part, compose};

use super::DONE;
use crate::app::App;
use crate::commands::reference;
use crate::error::CliError;
use crate::json_text::indent;

/// Make an image of images that are in registries, without bringing them here
///
/// One index, or one image with --prefer-index=false, is copied as it is; several become one index.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Images: a name, a digest in the repository of --tag, or a descriptor as JSON
    #[arg(value_name = "SOURCE")]
    sources: Vec<String>,
    /// Add to what the tag is already
    #[arg(long)]
    append: bool,
    /// Put an annotation on the index: KEY=VALUE, also behind index:
    #[arg(long, value_name = "ANNOTATION")]
    annotation: Vec<String>,
    /// Show what would be pushed
    #[arg(long)]
    dry_run: bool,
    /// Read a source from a file
    #[arg(short, long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Only these platforms of the sources
    #[arg(short, long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<String>,
    /// Make an index of a single image too
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "true", value_name = "BOOL", value_parser = clap::builder::BoolishValueParser::new())]
    prefer_index: bool,
    /// What it is to be called
    #[arg(short, long, value_name = "NAME")]
    tag: Vec<String>,
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let tags = args.tag.iter().map(|tag| reference(tag)).collect::<Result<Vec<_>, _>>()?;
    if tags.is_empty() && !args.dry_run {
        return Err(CliError::new("can't push with no tags specified, please set --tag or --dry-run"));
    }
    if args.append && tags.is_empty() {
        return Err(CliError::new("can't append with no tags specified, please set --tag"));
    }
    let platforms = args.platform.iter().map(|text| Platform::parse(text)).collect::<Result<Vec<_>, _>>();
    let platforms = platforms.map_err(|e| CliError::new(e.to_string()))?;
    let client = app.registry_client()?;
    let sources = Sources { client: &client, tags: &tags };
    let fetched = sources.all(&args).await?;
    let (composed, parts) = sources.compose(&args, &platforms, fetched).await?;
    if args.dry_run {
        let text = String::from_utf8_lossy(&composed.bytes).into_owned();
        app.print(&(indent(&text, "  ") + "\n"))?;
        return DONE;
    }
    for tag in &tags {
        for (from, fetched) in &parts {
            client.relay(from, fetched, tag).await.map_err(failed)?;
        }
        let pushed = client.put_manifest(tag, &composed.media_type, composed.bytes.clone()).await.map_err(failed)?;
        app.tell(&format!("pushed {}@{}", tag.canonical(), pushed.digest));
    }
    DONE
}

fn failed(error: Error) -> CliError {
    CliError::new(error.to_string())
}

/// A document and the repository it is in.
type Found = (Reference, Fetched);

struct Sources<'a> {
    client: &'a Client,
    tags: &'a [Reference],
}

impl Sources<'_> {
    async fn all(&self, args: &Args) -> Result<Vec<Found>, CliError> {
        let mut texts = Vec::new();
        for path in &args.file {
            let text = std::fs::read_to_string(path);
            texts.push(text.map_err(|e| CliError::new(format!("{}: {e}", path.display())))?);
        }
        texts.extend(args.sources.iter().cloned());
        if texts.is_empty() {
            return Err(CliError::new("no sources specified"));
        }
        let mut found = Vec::new();
        if args.append {
            for tag in self.tags {
                match self.client.fetch_manifest(tag).await {
                    Err(Error::ManifestNotFound { .. } | Error::RepositoryNotFound { .. }) => {}
                    fetched => found.push((tag.clone(), fetched.map_err(failed)?)),
                }
            }
        }
        for text in &texts {
            found.push(self.one(text.trim()).await?);
        }
        Ok(found)
    }

    /// What one source means: a descriptor, a digest, a name.
    async fn one(&self, text: &str) -> Result<Found, CliError> {
        let mut described: Option<Descriptor> = None;
        let name = if text.starts_with('{') {
            let descriptor: Descriptor =
                serde_json::from_str(text).map_err(|e| CliError::new(format!("invalid descriptor: {e}")))?;
            let name = self.in_tags(&descriptor.digest)?;
            described = Some(descriptor);
            name
        } else if let Ok(digest) = text.parse::<Digest>() {
            self.in_tags(&digest)?
        } else {
            reference(text)?
        };
        let mut fetched = self.client.fetch_manifest(&name).await.map_err(failed)?;
        if let Some(descriptor) = described {
            fetched.descriptor.platform = descriptor.platform;
            fetched.descriptor.annotations = descriptor.annotations;
        }
        Ok((name, fetched))
    }

    /// A digest alone is about the repository of the tags.
    fn in_tags(&self, digest: &Digest) -> Result<Reference, CliError> {
        let Some((first, others)) = self.tags.split_first() else {
            return Err(CliError::new(format!("no repository for {digest}: name one with --tag")));
        };
        if others.iter().any(|tag| tag.without_tag() != first.without_tag()) {
            return Err(CliError::new("multiple repositories specified as tags, can't determine one for a digest"));
        }
        Ok(first.without_tag().with_digest(digest.clone()))
    }

    /// What is to be put, and what it consists of.
    async fn compose(
        &self,
        args: &Args,
        platforms: &[Platform],
        found: Vec<Found>,
    ) -> Result<(Composed, Vec<Found>), CliError> {
        let annotations = annotations(&args.annotation)?;
        if let [(_, only)] = found.as_slice()
            && annotations.is_empty()
            && platforms.is_empty()
            && (matches!(only.document, Document::Index(_)) || !args.prefer_index)
        {
            let (media_type, bytes) = (only.descriptor.media_type.clone(), only.bytes.clone());
            return Ok((Composed { media_type, bytes }, found));
        }
        let mut parts = Vec::new();
        for (from, fetched) in &found {
            let described = fetched.descriptor.platform.clone();
            for mut part in self.client.parts(from, fetched).await.map_err(failed)? {
                part.descriptor.platform = described.clone().or(part.descriptor.platform);
                parts.push(part);
            }
        }
        if !platforms.is_empty() {
            parts = chosen(parts, platforms)?;
        }
        let composed = compose(&parts, annotations).map_err(failed)?;
        let mut all = Vec::new();
        for part in parts {
            let by_digest = part.from.without_tag().with_digest(part.descriptor.digest.clone());
            let known = found.iter().find(|(_, one)| one.descriptor.digest == part.descriptor.digest);
            let fetched = match known {
                Some((_, fetched)) => fetched.clone(),
                None => self.client.fetch_manifest(&by_digest).await.map_err(failed)?,
            };
            all.push((by_digest, fetched));
        }
        Ok((composed, all))
    }
}

/// The parts for these platforms, with the attestations about them.
fn chosen(parts: Vec<Part>, platforms: &[Platform]) -> Result<Vec<Part>, CliError> {
    const ABOUT: &str = "vnd.docker.reference.digest";
    let fits = |part: &Part| {
        let have = part.descriptor.platform.as_ref();
        !part.descriptor.is_attestation() && platforms.iter().any(|want| have.is_some_and(|p| p.matches(want)))
    };
    for want in platforms {
        if !parts.iter().any(|part| part.descriptor.platform.as_ref().is_some_and(|p| p.matches(want))) {
            return Err(CliError::new(format!("no source has the platform {want}")));
        }
    }
    let digests: Vec<String> = parts.iter().filter(|p| fits(p)).map(|p| p.descriptor.digest.to_string()).collect();
    let about = |part: &Part| part.descriptor.annotations.get(ABOUT).is_some_and(|digest| digests.contains(digest));
    Ok(parts.into_iter().filter(|part| fits(part) || about(part)).collect())
}

/// `KEY=VALUE` and `index:KEY=VALUE`; other places are not the index.
fn annotations(texts: &[String]) -> Result<BTreeMap<String, String>, CliError> {
    let mut all = BTreeMap::new();
    for text in texts {
        let text = text.strip_prefix("index:").unwrap_or(text);
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| CliError::new(format!("invalid annotation {text:?}, expected key=value")))?;
        if key.starts_with("manifest") && key.contains(':') {
            return Err(CliError::new(format!("annotation {key:?}: only the index can be annotated")));
        }
        all.insert(key.to_owned(), value.to_owned());
    }
    Ok(all)
}

/// How tools write the type of a document that says none.
pub fn shown_type(fetched: &Fetched) -> &str {
    match &fetched.descriptor.media_type {
        MediaType::Other(text) if text.is_empty() => "unknown",
        known => known.as_str(),
    }
}
