//! `--cache-from` and `--cache-to`, in buildx's syntax and words.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rbuild_engine::registry::LayerPacking;
use rbuild_engine::{CacheMode, CachePlace, CacheSource, CacheTarget, KEEP_AT_LEAST, MediaFamily, PublishOptions};
use rbuild_oci::{Compression, Digest, Reference};

use crate::error::CliError;
use crate::mounts::split_fields;
use crate::outputs::{boolean, compression};
use crate::terminal::clean_line;
use crate::units;

/// The name of a cache in a directory that is given none.
const LATEST: &str = "latest";
/// Kinds of BuildKit's that are known and not here yet.
const NOT_YET: [&str; 3] = ["azblob", "gha", "s3"];

/// The options themselves.
#[derive(Debug, Default, clap::Args)]
pub struct CacheArgs {
    /// Cache of other builds to use: an image name, type=registry,ref=NAME or type=local,src=DIRECTORY; may be repeated
    #[arg(long = "cache-from", value_name = "NAME | type=TYPE[,KEY=VALUE...]")]
    from: Vec<String>,
    /// Where to put the cache of this build: type=registry,ref=NAME[,mode=max][,keep-duration=720h],
    /// type=local,dest=DIRECTORY[,...] or type=inline; may be repeated
    #[arg(long = "cache-to", value_name = "NAME | type=TYPE[,KEY=VALUE...]")]
    to: Vec<String>,
}

impl CacheArgs {
    /// # Errors
    /// A cache that is none, of a kind that is not supported, or with an attribute that its kind does not have.
    pub fn from(&self) -> Result<Vec<CacheSource>, CliError> {
        let mut sources = Vec::new();
        for text in &self.from {
            for entry in entries(text)? {
                sources.push(source(entry)?);
            }
        }
        Ok(sources)
    }

    /// # Errors
    /// As [`CacheArgs::from`].
    pub fn to(&self) -> Result<Vec<CacheTarget>, CliError> {
        let mut targets = Vec::new();
        for text in &self.to {
            for entry in entries(text)? {
                targets.push(target(entry)?);
            }
        }
        Ok(targets)
    }
}

/// One cache: its kind and its attributes in order.
struct Entry {
    kind: String,
    attributes: Vec<(String, String)>,
}

/// What a value means: names alone are caches in registries, anything else is one cache with attributes.
fn entries(text: &str) -> Result<Vec<Entry>, CliError> {
    let fields = split_fields(text);
    if fields.iter().all(|field| !field.contains('=')) {
        let entry =
            |name: &String| Entry { kind: "registry".to_owned(), attributes: vec![("ref".to_owned(), name.clone())] };
        return match fields.iter().any(|field| field.is_empty()) {
            true => Err(CliError::new(format!("invalid value {}", clean_line(text)))),
            false => Ok(fields.iter().map(entry).collect()),
        };
    }
    let mut entry = Entry { kind: String::new(), attributes: Vec::new() };
    for field in &fields {
        let Some((key, value)) = field.split_once('=') else {
            return Err(CliError::new(format!("invalid value {}", clean_line(field))));
        };
        match key.trim().to_ascii_lowercase() {
            key if key == "type" => value.clone_into(&mut entry.kind),
            key => entry.attributes.push((key, value.to_owned())),
        }
    }
    match entry.kind.as_str() {
        "" => Err(CliError::new(format!("type required form> \"{}\"", clean_line(text)))),
        _ => Ok(vec![entry]),
    }
}

impl Entry {
    fn take(&mut self, key: &str) -> Option<String> {
        let found = self.attributes.iter().rposition(|(name, _)| name == key)?;
        let value = self.attributes.swap_remove(found).1;
        self.attributes.retain(|(name, _)| name != key);
        Some(value)
    }

    fn flag(&mut self, key: &str) -> Result<bool, CliError> {
        Ok(self.take(key).map(|value| boolean(key, &value)).transpose()?.unwrap_or(false))
    }

    fn reference(&mut self, what: &str) -> Result<Reference, CliError> {
        let name = self.take("ref").filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| CliError::new(format!("ref is required for the registry cache {what}")))?;
        Reference::parse(&name).map_err(|e| CliError::new(format!("invalid cache \"{}\": {e}", clean_line(&name))))
    }

    fn tag(&mut self) -> Result<String, CliError> {
        let tag = self.take("tag").unwrap_or_else(|| LATEST.to_owned());
        // A tag is what a reference can have as one.
        match Reference::parse(&format!("cache:{tag}")) {
            Ok(_) => Ok(tag),
            Err(error) => Err(CliError::new(format!("invalid tag \"{}\": {error}", clean_line(&tag)))),
        }
    }

    /// Nothing may be left that nobody understood.
    fn done(self, what: &str) -> Result<(), CliError> {
        match self.attributes.first() {
            None => Ok(()),
            Some((key, _)) => {
                Err(CliError::new(format!("unknown attribute {} of the {} cache {what}", clean_line(key), self.kind)))
            }
        }
    }

    fn unknown(&self, what: &str) -> CliError {
        let kind = clean_line(&self.kind);
        if NOT_YET.contains(&self.kind.as_str()) {
            return CliError::new(format!("cache type {kind} is not supported yet"))
                .with_hint("caches are kept in a registry, in a directory (local) or in the image itself (inline)");
        }
        CliError::new(format!("unknown cache {what}: \"{kind}\"")).with_hint("types are registry, local and inline")
    }
}

fn source(mut entry: Entry) -> Result<CacheSource, CliError> {
    let what = "importer";
    let source = match entry.kind.as_str() {
        "registry" => {
            CacheSource::Registry { reference: entry.reference(what)?, insecure: entry.flag("registry.insecure")? }
        }
        "local" => {
            let path = entry.take("src").filter(|path| !path.is_empty());
            let path = path.ok_or_else(|| CliError::new("src is required for the local cache importer"))?;
            let digest = entry.take("digest").map(|text| {
                let parsed = text.parse::<Digest>();
                parsed.map_err(|e| CliError::new(format!("invalid digest \"{}\": {e}", clean_line(&text))))
            });
            CacheSource::Directory { path: PathBuf::from(path), digest: digest.transpose()?, tag: entry.tag()? }
        }
        "inline" => {
            return Err(CliError::new("unknown cache importer: \"inline\"")
                .with_hint("a cache in an image is read by the image's name: --cache-from NAME"));
        }
        _ => return Err(entry.unknown(what)),
    };
    entry.done(what)?;
    Ok(source)
}

fn target(mut entry: Entry) -> Result<CacheTarget, CliError> {
    let what = "exporter";
    let place = match entry.kind.as_str() {
        "registry" => {
            let (reference, insecure) = (entry.reference(what)?, entry.flag("registry.insecure")?);
            if reference.digest().is_some() {
                return Err(CliError::new("a cache is written to a tag, not to a digest"));
            }
            CachePlace::Registry { reference, insecure }
        }
        "local" => {
            let path = entry.take("dest").filter(|path| !path.is_empty());
            let path = path.ok_or_else(|| CliError::new("dest is required for the local cache exporter"))?;
            if Path::new(&path).is_file() {
                return Err(CliError::new(format!("destination directory {} is a file", clean_line(&path))));
            }
            CachePlace::Directory { path: PathBuf::from(path), tag: entry.tag()? }
        }
        "inline" => CachePlace::Inline,
        _ => return Err(entry.unknown(what)),
    };
    let mode = mode(entry.take("mode").as_deref())?;
    if place == CachePlace::Inline {
        if mode == CacheMode::Max {
            return Err(CliError::new("inline cache only supports mode=min"));
        }
        entry.done(what)?;
        return Ok(CacheTarget { place, mode, options: PublishOptions::default(), ignore_error: false });
    }
    let options = publish_options(&mut entry)?;
    let ignore_error = entry.flag("ignore-error")?;
    entry.done(what)?;
    Ok(CacheTarget { place, mode, options, ignore_error })
}

fn mode(word: Option<&str>) -> Result<CacheMode, CliError> {
    match word {
        None | Some("min") => Ok(CacheMode::Min),
        Some("max") => Ok(CacheMode::Max),
        Some(other) => {
            Err(CliError::new(format!("invalid cache mode \"{}\"", clean_line(other)))
                .with_hint("modes are min and max"))
        }
    }
}

fn publish_options(entry: &mut Entry) -> Result<PublishOptions, CliError> {
    let usual = LayerPacking::default();
    let how = entry.take("compression").map(|word| compression(&word)).transpose()?;
    let level = entry.take("compression-level").map(|value| {
        let bad = |_| format!("non-integer value {} specified for compression-level", clean_line(&value));
        value.parse::<i32>().map_err(bad).map_err(CliError::new)
    });
    let packing = LayerPacking {
        compression: how.unwrap_or(usual.compression),
        level: level.transpose()?.unwrap_or(usual.level),
        force: entry.flag("force-compression")?,
    };
    let oci = entry.take("oci-mediatypes").map(|value| boolean("oci-mediatypes", &value)).transpose()?.unwrap_or(true);
    let image = entry.take("image-manifest").map(|value| boolean("image-manifest", &value)).transpose()?;
    if image == Some(false) {
        return Err(CliError::new("image-manifest=false is not supported: a cache is always made of image manifests"));
    }
    if !oci && packing.compression == Compression::Zstd {
        return Err(CliError::new("oci-mediatypes=false has no media type for compression=zstd"));
    }
    let family = if oci { MediaFamily::Oci } else { MediaFamily::Docker };
    let keep = entry.take("keep-duration").map(|text| keep_duration(&text)).transpose()?;
    Ok(PublishOptions { packing, family, keep })
}

fn keep_duration(text: &str) -> Result<Duration, CliError> {
    let bad = || {
        CliError::new(format!("invalid keep-duration \"{}\"", clean_line(text)))
            .with_hint("a time as in 720h: records that no build used for so long are removed")
    };
    match units::duration(text).ok_or_else(bad)? {
        keep if keep < KEEP_AT_LEAST => Err(CliError::new(format!(
            "keep-duration {} is too short: a build that goes on could still read what is removed",
            clean_line(text)
        ))
        .with_hint("the least is 1h")),
        keep => Ok(keep),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(from: &[&str], to: &[&str]) -> CacheArgs {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        CacheArgs { from: owned(from), to: owned(to) }
    }

    #[test]
    fn names_alone_are_registries() {
        let sources = args(&["a,h:5000/b:c", "type=registry,ref=d,registry.insecure=true"], &[]).from().unwrap();
        let shown: Vec<_> = sources
            .iter()
            .map(|source| match source {
                CacheSource::Registry { reference, insecure } => (reference.familiar(), *insecure),
                other => panic!("{other:?}"),
            })
            .collect();
        let want = [("a:latest", false), ("h:5000/b:c", false), ("d:latest", true)];
        assert_eq!(shown, want.map(|(name, insecure)| (name.to_owned(), insecure)));
    }

    #[test]
    fn targets_have_buildkits_attributes() {
        let text = "type=registry,ref=x,mode=max,compression=zstd,compression-level=9,force-compression=1,oci-mediatypes=true,image-manifest=true,ignore-error=true";
        let target = args(&[], &[text]).to().unwrap().remove(0);
        assert_eq!((target.mode, target.ignore_error), (CacheMode::Max, true));
        let want = LayerPacking { compression: Compression::Zstd, level: 9, force: true };
        assert_eq!((target.options.packing, target.options.family), (want, MediaFamily::Oci));
        let target = args(&[], &["type=registry,ref=x,keep-duration=720h"]).to().unwrap().remove(0);
        assert_eq!(target.options.keep, Some(Duration::from_secs(30 * 24 * 3600)));
        let target = args(&[], &["type=local,dest=d,tag=v1"]).to().unwrap().remove(0);
        assert_eq!(target.place, CachePlace::Directory { path: "d".into(), tag: "v1".into() });
        assert_eq!((target.mode, target.ignore_error), (CacheMode::Min, false));
        assert_eq!(args(&[], &["type=inline"]).to().unwrap()[0].place, CachePlace::Inline);
    }

    #[test]
    fn caches_that_are_none() {
        for (text, want) in [
            ("type=s3,bucket=x", "cache type s3 is not supported yet"),
            ("type=gha", "cache type gha is not supported yet"),
            ("type=azblob", "cache type azblob is not supported yet"),
            ("type=nope", "unknown cache exporter: \"nope\""),
            ("ref=x", "type required form> \"ref=x\""),
            ("type=registry", "ref is required for the registry cache exporter"),
            ("type=local", "dest is required for the local cache exporter"),
            ("type=inline,mode=max", "inline cache only supports mode=min"),
            ("type=registry,ref=x,mode=mid", "invalid cache mode \"mid\""),
            ("type=registry,ref=x,image-manifest=false", "image-manifest=false is not supported"),
            ("type=registry,ref=x,oci-mediatypes=false,compression=zstd", "oci-mediatypes=false has no media type"),
            ("type=registry,ref=x,wrong=1", "unknown attribute wrong of the registry cache exporter"),
            ("type=local,dest=d,src=e", "unknown attribute src of the local cache exporter"),
            ("type=local,dest=d,keep-duration=week", "invalid keep-duration \"week\""),
            ("type=registry,ref=x,keep-duration=59m", "keep-duration 59m is too short"),
            ("type=inline,keep-duration=1h", "unknown attribute keep-duration of the inline cache exporter"),
            ("type=local,dest=d,compression=xz", "unsupported compression type xz"),
            ("", "invalid value "),
        ] {
            let error = args(&[], &[text]).to().unwrap_err();
            assert!(error.message.starts_with(want), "{text}: {}", error.message);
        }
        for (text, want) in [
            ("type=inline", "unknown cache importer: \"inline\""),
            ("type=local", "src is required for the local cache importer"),
            ("type=local,src=d,digest=x", "invalid digest \"x\""),
            ("type=local,src=d,mode=max", "unknown attribute mode of the local cache importer"),
        ] {
            let error = args(&[text], &[]).from().unwrap_err();
            assert!(error.message.starts_with(want), "{text}: {}", error.message);
        }
    }
}
