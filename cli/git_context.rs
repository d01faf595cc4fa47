//! What git says of a build's context, for labels and provenance, as buildx tells it.
//!
//! Read from the files below `.git`; git itself is not started. Only a context that is a directory of this machine has it.

use std::collections::BTreeMap;
use std::path::Path;

use rbuild_engine::history::Revision;

use crate::settings::Settings;

/// What to tell, and what of it is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct GitContext {
    /// `BUILDX_GIT_LABELS`: labels for the result, before those of the command line.
    pub labels: Vec<(String, String)>,
    /// For provenance, unless `BUILDX_GIT_INFO` is off.
    pub vcs: BTreeMap<String, String>,
}

impl GitContext {
    /// `provenance` is whether anybody is told any; `file` is the Dockerfile's path, if it is named.
    pub fn of(context: &Path, file: Option<&Path>, provenance: bool, settings: &Settings) -> GitContext {
        let labels = match settings.variable("BUILDX_GIT_LABELS") {
            Some("full") => true,
            text => text.and_then(boolean).unwrap_or(false),
        };
        let info = provenance && settings.variable("BUILDX_GIT_INFO").and_then(boolean).unwrap_or(true);
        let mut told = GitContext::default();
        if !labels && !info {
            return told;
        }
        let Ok(context) = context.canonicalize() else { return told };
        let (Some(top), Some(revision)) = (Revision::work_tree(&context), Revision::of(&context)) else { return told };
        let dirty = settings.variable("BUILDX_GIT_CHECK_DIRTY").and_then(boolean).unwrap_or(false);
        let commit = if dirty && revision.modified { revision.commit + "-dirty" } else { revision.commit };
        let within = |path: &Path| path.strip_prefix(&top).ok().map(|path| path.display().to_string());
        if labels {
            let mut label = |name: &str, value: String| told.labels.push((name.to_owned(), value));
            label("org.opencontainers.image.revision", commit.clone());
            revision.remote.iter().for_each(|remote| label("org.opencontainers.image.source", remote.clone()));
            let file = file.map_or_else(|| Some(context.join("Dockerfile")), |file| std::path::absolute(file).ok());
            if let Some(path) = file.and_then(|file| within(&file)) {
                label("com.docker.image.source.entrypoint", path);
            }
        }
        if info {
            told.vcs.insert("revision".into(), commit);
            told.vcs.extend(revision.remote.map(|remote| ("source".to_owned(), remote)));
            let place = within(&context).map(|path| if path.is_empty() { ".".to_owned() } else { path });
            told.vcs.extend(place.map(|path| ("localdir:context".to_owned(), path)));
        }
        told
    }
}

fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Globals;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn told(variables: &[(&str, &str)], provenance: bool) -> GitContext {
        let dir = tempfile::tempdir().unwrap();
        let git = dir.path().join(".git");
        std::fs::create_dir_all(git.join("objects")).unwrap();
        std::fs::create_dir_all(dir.path().join("app")).unwrap();
        std::fs::write(git.join("HEAD"), COMMIT).unwrap();
        std::fs::write(git.join("config"), "[remote \"origin\"]\n\turl = https://user:pw@host/r.git\n").unwrap();
        let mut variables: Vec<_> = variables.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        variables.push(("HOME".into(), "/h".into()));
        let settings = Settings::from_variables(&Globals::default(), variables, true).unwrap();
        GitContext::of(&dir.path().join("app"), None, provenance, &settings)
    }

    #[test]
    fn labels_and_provenance_as_asked_for() {
        assert_eq!(told(&[], false), GitContext::default());
        assert_eq!(told(&[("BUILDX_GIT_INFO", "0")], true), GitContext::default());
        let vcs = told(&[], true).vcs;
        assert_eq!((vcs["revision"].as_str(), vcs["localdir:context"].as_str()), (COMMIT, "app"));
        assert!(!vcs["source"].contains("pw"), "{vcs:?}");
        let labels = told(&[("BUILDX_GIT_LABELS", "1")], false).labels;
        assert_eq!(labels[0], ("org.opencontainers.image.revision".to_owned(), COMMIT.to_owned()));
        assert_eq!(labels[2], ("com.docker.image.source.entrypoint".to_owned(), "app/Dockerfile".to_owned()));
        assert_eq!(told(&[("BUILDX_GIT_LABELS", "maybe")], false), GitContext::default());
    }
}
