//! Names of stages that mean something else already.

use std::collections::HashSet;

use super::Rule;
use crate::{Diagnostic, Dockerfile};

pub(super) const DUPLICATE_STAGE_NAME: Rule = Rule {
    name: "DuplicateStageName",
    description: "Names of stages should be unique",
    url: "https://docs.docker.com/go/dockerfile/rule/duplicate-stage-name/",
    experimental: false,
};

pub(super) const RESERVED_STAGE_NAME: Rule = Rule {
    name: "ReservedStageName",
    description: "Reserved words should not be names of stages",
    url: "https://docs.docker.com/go/dockerfile/rule/reserved-stage-name/",
    experimental: false,
};

const RESERVED: [&str; 2] = ["context", "scratch"];

pub(super) fn check(file: &Dockerfile, problems: &mut Vec<Diagnostic>) {
    let mut seen = HashSet::new();
    for name in file.stages.iter().filter_map(|stage| stage.name.as_ref()) {
        if RESERVED.contains(&name.value.as_str()) {
            let message = format!("Stage name should not use the same name as reserved stage {:?}", name.value);
            problems.push(RESERVED_STAGE_NAME.warn(message).at(name.span));
        }
        if !seen.insert(name.value.as_str()) {
            let message = format!("Duplicate stage name {:?}, stage names should be unique", name.value);
            problems.push(DUPLICATE_STAGE_NAME.warn(message).at(name.span));
        }
    }
}
