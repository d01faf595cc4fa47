//! `# check=skip=Rule,…;error=true`: which rules count, and whether a warning is an error.

use crate::{Diagnostic, Dockerfile, LowerOptions, Purpose, lint};

/// The build argument that goes before the directive.
const ARGUMENT: &str = "BUILDKIT_DOCKERFILE_CHECK";

/// What to do with warnings of rules.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Check {
    skip: Vec<String>,
    skip_all: bool,
    /// Rules that count only when they are named.
    experimental: Vec<String>,
    experimental_all: bool,
    error: bool,
}

impl Check {
    pub(super) fn of(file: &Dockerfile, options: &LowerOptions) -> Result<Check, Diagnostic> {
        if let Some(text) = options.build_args.get(ARGUMENT) {
            return Check::parse(text);
        }
        match &file.check {
            Some(directive) => Check::parse(&directive.value).map_err(|problem| problem.at(directive.span)),
            None => Ok(Check::default()),
        }
    }

    fn parse(text: &str) -> Result<Check, Diagnostic> {
        let mut check = Check::default();
        for option in text.split(';').map(str::trim).filter(|option| !option.is_empty()) {
            let refuse = |message: String| Diagnostic::error(format!("failed to parse check options: {message}"));
            let Some((key, value)) = option.split_once('=') else {
                return Err(
                    refuse(format!("invalid check option {option:?}")).expected("skip=, error= or experimental=")
                );
            };
            let value = value.trim();
            match key.trim() {
                "skip" => {
                    check.skip_all = value.eq_ignore_ascii_case("all");
                    check.skip = value.split(',').map(|rule| rule.trim().to_owned()).collect();
                }
                "error" => {
                    check.error = value.parse().map_err(|_| {
                        refuse(format!("failed to parse check option {key:?} with value {value:?}"))
                            .expected("true or false")
                    })?;
                }
                "experimental" => {
                    check.experimental_all = value.eq_ignore_ascii_case("all");
                    check.experimental = value.split(',').map(|rule| rule.trim().to_owned()).collect();
                }
                other => {
                    let problem = refuse(format!("invalid check option {option:?}"));
                    return Err(problem.suggest(other, ["skip", "error", "experimental"]));
                }
            }
        }
        Ok(check)
    }

    fn skips(&self, rule: &str) -> bool {
        let named = |list: &[String]| list.iter().any(|name| name.eq_ignore_ascii_case(rule));
        if lint::rule(rule).is_some_and(|rule| rule.experimental) {
            // To name such a rule is to want it, also where all others are skipped.
            return !(named(&self.experimental) || self.experimental_all && !self.skip_all) || named(&self.skip);
        }
        self.skip_all || named(&self.skip)
    }

    /// Drops what is skipped; an error for the rest, if so wanted.
    pub(super) fn apply(&self, problems: &mut Vec<Diagnostic>, purpose: Purpose) {
        problems.retain(|problem| problem.rule.is_none_or(|rule| !self.skips(rule)));
        let mut rules: Vec<&str> = problems.iter().filter_map(|problem| problem.rule).collect();
        if self.error && !rules.is_empty() && purpose == Purpose::Build {
            rules.sort_unstable();
            rules.dedup();
            problems.push(Diagnostic::error(format!("lint violation found for rules: {}", rules.join(", "))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let check = Check::parse("skip=A,b; error=true").unwrap();
        assert!(check.skips("a") && check.skips("B") && !check.skips("C") && check.error);
        assert!(Check::parse("skip=all").unwrap().skips("X"));
        let skips = |text: &str| Check::parse(text).unwrap().skips("InvalidDefinitionDescription");
        assert!(skips("") && !skips("experimental=all") && !skips("experimental=invaliddefinitiondescription"));
        assert!(skips("skip=all;experimental=all") && skips("skip=InvalidDefinitionDescription;experimental=all"));
        for bad in ["x", "error=maybe", "skipp=A"] {
            assert!(Check::parse(bad).is_err(), "{bad}");
        }
    }
}
