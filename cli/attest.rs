//! `--attest`, `--provenance` and `--sbom`, as buildx reads them.

use rbuild_engine::{Attestations, ProvenanceMode, ProvenanceOptions, SlsaVersion};

use crate::error::CliError;
use crate::mounts::split_fields;
use crate::terminal::clean_line;

/// What is to be said about the result.
#[derive(Debug, Default, clap::Args)]
pub struct AttestArgs {
    /// Statement that goes with the result: type=provenance or type=sbom, with their options
    #[arg(long, value_name = "type=TYPE[,...]")]
    attest: Vec<String>,
    /// How the result was made, as SLSA provenance: true, false, or options such as mode=min,version=v1
    #[arg(long, value_name = "BOOL|mode=min|max[,...]")]
    provenance: Option<String>,
    /// The packages in the result (of dpkg and apk), as SPDX: true or false
    #[arg(long, value_name = "BOOL")]
    sbom: Option<String>,
}

impl AttestArgs {
    /// # Errors
    /// An option that is no such thing, or one that was given twice.
    pub fn read(&self) -> Result<Attestations, CliError> {
        let short = |kind: &str, value: &Option<String>| {
            let value = value.as_deref().filter(|value| !value.is_empty())?;
            Some(match boolean(value) {
                Some(wanted) => format!("type={kind},disabled={}", !wanted),
                None => format!("type={kind},{value}"),
            })
        };
        let all = self.attest.iter().cloned();
        let all = all.chain(short("provenance", &self.provenance)).chain(short("sbom", &self.sbom));
        let mut found = Attestations::default();
        let mut seen: Vec<String> = Vec::new();
        for text in all {
            let Attest { kind, disabled, attributes } = Attest::read(&text)?;
            if seen.contains(&kind) {
                return Err(CliError::new(format!("duplicate attestation field {}", clean_line(&kind))));
            }
            match kind.as_str() {
                "provenance" => found.provenance = Some(provenance(&attributes)?).filter(|_| !disabled),
                "sbom" => {
                    sbom(&attributes)?;
                    found.sbom = !disabled;
                }
                other => {
                    let message = format!("attestations of type {} are not supported", clean_line(other));
                    return Err(CliError::new(message).with_hint("types are provenance and sbom"));
                }
            }
            seen.push(kind);
        }
        Ok(found)
    }
}

struct Attest {
    kind: String,
    disabled: bool,
    attributes: Vec<(String, String)>,
}

impl Attest {
    fn read(text: &str) -> Result<Attest, CliError> {
        let mut attest = Attest { kind: String::new(), disabled: false, attributes: Vec::new() };
        for field in split_fields(text) {
            let invalid = || CliError::new(format!("invalid value {}", clean_line(&field)));
            let (key, value) = field.split_once('=').ok_or_else(invalid)?;
            match key.trim().to_lowercase().as_str() {
                "type" => value.clone_into(&mut attest.kind),
                "disabled" => attest.disabled = boolean(value).ok_or_else(invalid)?,
                _ => attest.attributes.push((key.trim().to_owned(), value.to_owned())),
            }
        }
        match attest.kind.is_empty() {
            true => Err(CliError::new("attestation type not specified")),
            false => Ok(attest),
        }
    }
}

fn provenance(attributes: &[(String, String)]) -> Result<ProvenanceOptions, CliError> {
    let mut options = ProvenanceOptions::default();
    for (key, value) in attributes {
        let truth = || {
            boolean(value).ok_or_else(|| CliError::new(format!("failed to parse {key} flag {:?}", clean_line(value))))
        };
        match key.as_str() {
            "mode" => {
                options.mode = match value.as_str() {
                    "min" => ProvenanceMode::Min,
                    "max" | "full" => ProvenanceMode::Max,
                    other => return Err(CliError::new(format!("invalid mode {:?}", clean_line(other)))),
                }
            }
            "version" => {
                options.version = match value.as_str() {
                    "v1" => SlsaVersion::V1,
                    "v0.2" => SlsaVersion::V02,
                    other => {
                        let message = format!("invalid provenance SLSA version: {}", clean_line(other));
                        return Err(CliError::new(message).with_hint("versions are v1 and v0.2"));
                    }
                }
            }
            "builder-id" => options.builder_id.clone_from(value),
            "reproducible" => options.reproducible = truth()?,
            "inline-only" => options.inline_only = truth()?,
            "filename" if value.is_empty() || value.contains('/') => {
                return Err(CliError::new(format!("invalid provenance filename {:?}", clean_line(value))));
            }
            "filename" => options.filename.clone_from(value),
            other => {
                let message = format!("option {} of attestation type=provenance is not supported", clean_line(other));
                let hint = "options are mode, version, builder-id, reproducible, inline-only and filename";
                return Err(CliError::new(message).with_hint(hint));
            }
        }
    }
    Ok(options)
}

fn sbom(attributes: &[(String, String)]) -> Result<(), CliError> {
    match attributes.first() {
        None => Ok(()),
        Some((key, _)) => {
            let message = format!("option {} of attestation type=sbom is not supported", clean_line(key));
            Err(CliError::new(message)
                .with_hint("no image with a scanner is run: the databases of dpkg and apk in the result are read"))
        }
    }
}

/// As Go reads one.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(attest: &[&str], provenance: Option<&str>, sbom: Option<&str>) -> Result<Attestations, String> {
        let owned = |text: &str| text.to_owned();
        let attest = attest.iter().map(|text| owned(text)).collect();
        let args = AttestArgs { attest, provenance: provenance.map(owned), sbom: sbom.map(owned) };
        args.read().map_err(|error| error.message)
    }

    #[test]
    fn short_forms_and_long_ones() {
        assert!(read(&[], None, None).unwrap().provenance.is_none());
        for off in ["false", "0", "disabled=true", ""] {
            let found = read(&[], Some(off), Some("false")).unwrap();
            assert!(found.provenance.is_none() && !found.sbom, "{off}");
        }
        assert_eq!(read(&[], Some("true"), None).unwrap().provenance, Some(ProvenanceOptions::default()));
        let found = read(&["type=provenance,mode=min,version=v0.2,builder-id=https://x,inline-only=true"], None, None);
        let options = found.unwrap().provenance.unwrap();
        assert_eq!((options.mode, options.version), (ProvenanceMode::Min, SlsaVersion::V02));
        assert_eq!((options.builder_id.as_str(), options.inline_only), ("https://x", true));
        assert!(read(&["type=sbom"], Some("mode=max,reproducible=1"), None).unwrap().sbom);
    }

    #[test]
    fn what_is_no_attestation_is_named() {
        for (attest, provenance, sbom, want) in [
            (&["mode=min"][..], None, None, "attestation type not specified"),
            (&["type=provenance"], Some("true"), None, "duplicate attestation field provenance"),
            (&["type=x"], None, None, "attestations of type x are not supported"),
            (&["provenance"], None, None, "invalid value provenance"),
            (&["type=sbom,disabled=maybe"], None, None, "invalid value disabled=maybe"),
            (&[], Some("mode=most"), None, "invalid mode \"most\""),
            (&[], Some("version=v3"), None, "invalid provenance SLSA version: v3"),
            (&[], Some("reproducible=x"), None, "failed to parse reproducible flag \"x\""),
            (&[], Some("filename=a/b"), None, "invalid provenance filename \"a/b\""),
            (&[], Some("speed=1"), None, "option speed of attestation type=provenance is not supported"),
            (&[], None, Some("generator=img"), "option generator of attestation type=sbom is not supported"),
        ] {
            assert_eq!(read(attest, provenance, sbom).unwrap_err(), want);
        }
    }
}
