//! What a text comes to: the graph and config of each of its stages.

use rbuild_oci::ImageConfig;

use crate::{Facts, LowerOptions, Lowered, Outcome, lower, parse};

use super::edits::AUTHORS;

/// Each stage of a file is lowered as a target of its own, which is quadratic; a file of more stages is compared by what
/// the caller wants built of it.
const MOST_STAGES: usize = 64;

/// Everything that a change of form must not change.
pub(super) struct Meaning {
    targets: Vec<Vec<Lowered>>,
}

impl Meaning {
    /// `None` for a text that cannot be built.
    pub(super) fn of(text: &str, options: &LowerOptions, facts: &Facts) -> Option<Meaning> {
        let (file, _) = parse(text.as_bytes(), "Dockerfile");
        let lowered = |target: Option<String>| {
            let options = LowerOptions { target, ..options.clone() };
            match lower(&file, &options, facts).0 {
                Outcome::Lowered(lowered) => Some(lowered),
                Outcome::Missing(_) | Outcome::Failed => None,
            }
        };
        let mut targets = vec![lowered(options.target.clone())?];
        if options.target.is_none() && file.stages().len() <= MOST_STAGES {
            for index in 0..file.stages().len() {
                targets.push(lowered(Some(index.to_string()))?);
            }
        }
        Some(Meaning { targets })
    }

    /// Whether it is the same as before, but for what a fix of the rule is to change.
    pub(super) fn keeps(&self, before: &Meaning, rule: &str) -> bool {
        let all = |meaning: &Meaning| meaning.targets.iter().map(Vec::len).collect::<Vec<_>>();
        let pairs = || self.targets.iter().flatten().zip(before.targets.iter().flatten());
        all(self) == all(before) && pairs().all(|(after, before)| is_same(before, after, rule))
    }
}

fn is_same(before: &Lowered, after: &Lowered, rule: &str) -> bool {
    let vertices = |lowered: &Lowered| {
        let vertices = lowered.graph.ids().map(|id| lowered.graph.vertex(id));
        vertices.map(|v| (v.op.clone(), v.inputs.clone(), v.meta.ignore_cache)).collect::<Vec<_>>()
    };
    // The words of a line are in its history, and they are what changes.
    let history =
        |lowered: &Lowered| lowered.history.iter().map(|step| (step.entry.empty_layer, step.edge)).collect::<Vec<_>>();
    before.platform == after.platform
        && before.result == after.result
        && before.base == after.base
        && before.contexts == after.contexts
        && before.source_date_epoch == after.source_date_epoch
        && history(before) == history(after)
        && vertices(before) == vertices(after)
        && has_author(before, after, rule)
        && compared(&before.config, rule) == compared(&after.config, rule)
}

/// A label that takes an author's place says the same.
fn has_author(before: &Lowered, after: &Lowered, rule: &str) -> bool {
    let label = after.config.config.labels.get(AUTHORS);
    rule != "MaintainerDeprecated"
        || label == before.config.config.labels.get(AUTHORS)
        || label == Some(&before.config.author)
}

/// The part of a config that a fix leaves alone.
fn compared(config: &ImageConfig, rule: &str) -> ImageConfig {
    let mut config = config.clone();
    config.history.clear();
    match rule {
        "MaintainerDeprecated" => {
            config.author.clear();
            config.config.labels.remove(AUTHORS);
        }
        "JSONArgsRecommended" => (config.config.cmd, config.config.entrypoint) = (None, None),
        _ => {}
    }
    config
}
