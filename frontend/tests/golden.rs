//! Each folder of `testdata` is a Dockerfile and what it must become.
//!
//! `facts.json` adds to what `testdata/facts.json` knows of images; `args.json` holds the caller's choices. Run with
//! `RBUILD_UPDATE_GOLDEN=1` to write `expected.txt` anew, and read the difference before committing it.

mod dump;

use std::collections::BTreeMap;
use std::path::Path;

use rbuild_frontend::{FactRequest, Facts, ImageFact, LowerOptions, NamedContext, Outcome, Purpose, lower, parse};
use rbuild_oci::{Digest, ImageConfig, Platform, Reference};
use serde::Deserialize;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Args {
    build_args: BTreeMap<String, String>,
    target: Option<String>,
    labels: BTreeMap<String, String>,
    platforms: Vec<String>,
    no_cache_filter: Vec<String>,
    epoch: Option<i64>,
    context_date: Option<i64>,
    ignore: Vec<String>,
    /// `check`, or a build.
    purpose: Option<String>,
    /// `name` to an image, or to null for files.
    contexts: BTreeMap<String, Option<String>>,
}

fn options(args: Args) -> LowerOptions {
    let mut options = LowerOptions::new(Platform::new("linux", "amd64"));
    options.build_args = args.build_args;
    options.target = args.target;
    options.labels = args.labels.into_iter().collect();
    options.platforms = args.platforms.iter().map(|text| Platform::parse(text).unwrap()).collect();
    options.no_cache_filter = args.no_cache_filter;
    options.source_date_epoch = args.epoch;
    options.context_date = args.context_date;
    options.ignore = args.ignore;
    if let Some(purpose) = args.purpose {
        assert_eq!(purpose, "check");
        options.purpose = Purpose::Check;
    }
    for (name, image) in args.contexts {
        let context = match image {
            Some(image) => NamedContext::Image(Reference::parse(&image).unwrap()),
            None => NamedContext::Local,
        };
        options.contexts.insert(name, context);
    }
    options
}

fn json<T: for<'de> Deserialize<'de> + Default>(path: &Path) -> T {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display())),
        Err(_) => T::default(),
    }
}

/// Answers requests until the outcome is settled.
fn settle(text: &[u8], options: &LowerOptions, known: &BTreeMap<String, ImageConfig>) -> String {
    let (file, parsed) = parse(text, "Dockerfile");
    let mut out = String::new();
    dump::diagnostics(&mut out, text, &parsed);
    let mut facts = Facts::default();
    loop {
        let (outcome, problems) = lower(&file, options, &facts);
        let Outcome::Missing(requests) = outcome else {
            dump::diagnostics(&mut out, text, &problems);
            dump::outcome(&mut out, &outcome);
            return out;
        };
        let mut unknown = false;
        for request in &requests {
            let FactRequest::ImageConfig { reference, platform, span, near } = request else { unreachable!() };
            let (reference, platform) = (reference.clone(), platform.clone());
            let line = span.map_or(0, |span| span.line);
            out.push_str(&format!("asks for {reference} {platform} (line {line})"));
            let near = near.as_ref().map_or(String::new(), |near| format!(" near {near}"));
            match known.get(&reference.familiar()) {
                Some(config) => {
                    out.push_str(&format!("{near}\n"));
                    let digest = Digest::sha256_of(reference.canonical().as_bytes());
                    let mut config = config.clone();
                    config.architecture.clone_from(&platform.architecture);
                    facts.images.insert((reference, platform), ImageFact { digest, config, pinned: true });
                }
                None => {
                    unknown = true;
                    out.push_str(&format!("{near}: unknown\n"));
                }
            }
        }
        if unknown {
            return out;
        }
    }
}

#[test]
fn every_folder_gives_what_it_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let update = std::env::var_os("RBUILD_UPDATE_GOLDEN").is_some();
    let common: BTreeMap<String, ImageConfig> = json(&root.join("facts.json"));
    let mut folders: Vec<_> =
        std::fs::read_dir(&root).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    assert!(folders.len() > 10, "the folders are there");
    let mut differ = Vec::new();
    for folder in folders {
        let text = std::fs::read(folder.join("Dockerfile")).unwrap();
        let mut known = common.clone();
        known.extend(json::<BTreeMap<String, ImageConfig>>(&folder.join("facts.json")));
        let got = settle(&text, &options(json(&folder.join("args.json"))), &known);
        let expected = folder.join("expected.txt");
        if update {
            std::fs::write(&expected, &got).unwrap();
        } else if std::fs::read_to_string(&expected).unwrap_or_default() != got {
            differ.push(format!("{}:\n{got}", folder.display()));
        }
    }
    assert!(differ.is_empty(), "these differ from expected.txt:\n\n{}", differ.join("\n"));
}
