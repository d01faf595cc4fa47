//! `# check=skip=Rule,…;error=true`: which rules count, and whether a warning is an error.

use crate::{Diagnostic, Dockerfile, LowerOptions};

/// The build argument that goes before the directive.
const ARGUMENT: &str = "BUILDKIT_DOCKERFILE_CHECK";

/// What to do with warnings of rules.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Check {
    skip: Vec<String>,
    skip_all: bool,
    error: bool,
}

impl Check {
    /// The directive alone, for what parsing has to say; a directive that is wrong is reported when lowering.
    pub(crate) fn of_file(file: &Dockerfile) -> Check {
        file.check.as_ref().and_then(|directive| Check::parse(&directive.value).ok()).unwrap_or_default()
    }

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
                // Experimental rules there are none yet.
                "experimental" => {}
                other => {
                    let problem = refuse(format!("invalid check option {option:?}"));
                    return Err(problem.suggest(other, ["skip", "error", "experimental"]));
                }
            }
        }
        Ok(check)
    }

    pub(crate) fn skips(&self, rule: &str) -> bool {
        self.skip_all || self.skip.iter().any(|skipped| skipped.eq_ignore_ascii_case(rule))
    }

    /// Drops what is skipped; an error for the rest, if so wanted. `warned` are rules that parsing warned of.
    pub(super) fn apply(&self, problems: &mut Vec<Diagnostic>, warned: &[&'static str]) {
        problems.retain(|problem| problem.rule.is_none_or(|rule| !self.skips(rule)));
        let parsed = warned.iter().copied().filter(|rule| !self.skips(rule));
        let mut rules: Vec<&str> = problems.iter().filter_map(|problem| problem.rule).chain(parsed).collect();
        if self.error && !rules.is_empty() {
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
        for bad in ["x", "error=maybe", "skipp=A"] {
            assert!(Check::parse(bad).is_err(), "{bad}");
        }
    }
}
