//! What else is wrong with a file that cannot be built anyway.
//!
//! A mistake of the text, or of the plan of stages, ends a build before its instructions are lowered, and their mistakes
//! would come one run later. So they are lowered here on images that are made up, and what they complain of is told if
//! it cannot follow from what was made up or left out: it is about one instruction, which uses no variable, and not
//! about a stage or an image it names.

use rbuild_graph::Span;
use rbuild_oci::{Digest, HistoryEntry, ImageConfig};

use super::{Round, Thoroughness};
use crate::{Diagnostic, Dockerfile, FactRequest, Facts, ImageFact, LowerOptions};

/// Made-up images have no triggers, so they bring no new ones.
const ROUNDS: usize = 2;

pub(super) fn mistakes(file: &Dockerfile, options: &LowerOptions) -> Vec<Diagnostic> {
    let mut facts = Facts::default();
    let mut options = options.clone();
    options.platforms.truncate(1);
    for _ in 0..ROUNDS {
        let round = Round::of(file, &options, &facts, Thoroughness::Mistakes);
        if round.missing.is_empty() {
            let certain =
                |problem: &Diagnostic| problem.is_error() && problem.span.is_some_and(|s| is_certain(file, s));
            return round.problems.into_iter().filter(certain).collect();
        }
        for request in round.missing {
            let FactRequest::ImageConfig { reference, platform, .. } = request;
            let config = ImageConfig {
                architecture: platform.architecture.clone(),
                os: platform.os.clone(),
                history: vec![HistoryEntry::default()],
                ..ImageConfig::default()
            };
            let digest = Digest::sha256_of(reference.canonical().as_bytes());
            facts.images.insert((reference, platform), ImageFact { digest, config, pinned: true });
        }
    }
    Vec::new()
}

/// Whether what is said of this place depends on the instruction alone.
fn is_certain(file: &Dockerfile, span: Span) -> bool {
    let holds = |outer: Span| outer.start <= span.start && span.end <= outer.end;
    let before = file.stages.partition_point(|stage| stage.span.start <= span.start);
    let Some(stage) = before.checked_sub(1).and_then(|index| file.stages.get(index)) else { return false };
    let before = stage.commands.partition_point(|command| command.span.start <= span.start);
    let command = before.checked_sub(1).and_then(|index| stage.commands.get(index));
    command.is_some_and(|command| {
        holds(command.span)
            && !command.text.contains('$')
            && !command.sources().iter().any(|source| source.span == span)
    })
}
