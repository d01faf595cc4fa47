//! `# check=skip=Rule,…;error=true`: which rules count, and whether a warning is an error.
//!
//! At the top of a file it is a directive for all of it. In a comment right before an instruction it is for that one
//! alone, and may be followed by a reason: `# check=skip=SecretsUsedInArgOrEnv // a dummy for tests`.

use rbuild_graph::Span;

use crate::{Diagnostic, Dockerfile, LowerOptions, Purpose, lint};

/// The build argument that goes before the directive.
const ARGUMENT: &str = "BUILDKIT_DOCKERFILE_CHECK";

/// What to do with warnings of rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Check {
    skip: Vec<String>,
    skip_all: bool,
    /// Rules that count only when they are named.
    experimental: Vec<String>,
    experimental_all: bool,
    error: bool,
}

/// What comments say for one instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalCheck {
    lines: std::ops::RangeInclusive<u32>,
    check: Check,
}

impl LocalCheck {
    /// From the comments before the instruction at `span`. One that cannot be read says nothing: it is a comment.
    pub(crate) fn of(comments: &[String], span: Span) -> Option<LocalCheck> {
        let text = comments.iter().find_map(|comment| local(comment))?;
        let check = Check::parse(text).ok()?;
        Some(LocalCheck { lines: span.line..=span.end_line, check })
    }
}

/// The options in a comment that is for one instruction.
pub(crate) fn local(comment: &str) -> Option<&str> {
    let (key, value) = comment.split_once('=')?;
    key.trim().eq_ignore_ascii_case("check").then(|| value.trim().split(' ').next().unwrap_or_default())
}

impl Check {
    pub(crate) fn of(file: &Dockerfile, options: &LowerOptions) -> Result<Check, Diagnostic> {
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

    /// Names in it that no rule has: likely slips of the pen. A rule of a newer frontend is none of ours to judge, so
    /// they are told only where somebody asks what is wrong with the file.
    pub(super) fn unknown_rules(&self) -> impl Iterator<Item = Diagnostic> {
        let names = self.skip.iter().chain(&self.experimental);
        let unknown = names.filter(|name| !name.eq_ignore_ascii_case("all") && lint::rule(name).is_none());
        unknown.map(|name| {
            let message = format!("check= names {name:?}, and there is no such rule");
            Diagnostic::warning(message)
                .suggest(name, lint::RULES.into_iter().chain(lint::LAYER_RULES).map(|rule| rule.name))
        })
    }

    /// With what is said for one instruction.
    fn with(&self, local: &Check) -> Check {
        let mut both = self.clone();
        both.skip.extend(local.skip.iter().cloned());
        both.experimental.extend(local.experimental.iter().cloned());
        both.skip_all |= local.skip_all;
        both.experimental_all |= local.experimental_all;
        both
    }

    fn skips_at(&self, rule: &str, span: Option<Span>, locals: &[LocalCheck]) -> bool {
        let here = span.and_then(|span| locals.iter().find(|local| local.lines.contains(&span.line)));
        here.map_or_else(|| self.skips(rule), |local| self.with(&local.check).skips(rule))
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
    pub(crate) fn apply(&self, problems: &mut Vec<Diagnostic>, locals: &[LocalCheck], purpose: Purpose) {
        problems.retain(|problem| problem.rule.is_none_or(|rule| !self.skips_at(rule, problem.span, locals)));
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
    fn comments_are_for_one_instruction() {
        let span = Span { start: 0, end: 9, line: 3, end_line: 4 };
        let comments = ["about it".to_owned(), "check=skip=A,B // because".to_owned()];
        let locals = [LocalCheck::of(&comments, span).unwrap()];
        let check = Check::parse("skip=C").unwrap();
        for (rule, want) in [("A", true), ("B", true), ("C", true), ("because", false), ("D", false)] {
            assert_eq!(check.skips_at(rule, Some(span), &locals), want, "{rule}");
        }
        let after = Span { line: 5, end_line: 5, ..span };
        assert!(!check.skips_at("A", Some(after), &locals) && !check.skips_at("A", None, &locals));
        assert_eq!(LocalCheck::of(&["check=nonsense".to_owned()], span), None);
        assert_eq!(LocalCheck::of(&["see check".to_owned()], span), None);
    }

    #[test]
    fn names_of_no_rule_are_found() {
        let unknown = |text: &str| Check::parse(text).unwrap().unknown_rules().map(|p| p.message).collect::<Vec<_>>();
        assert_eq!(unknown("skip=all;experimental=all"), Vec::<String>::new());
        assert_eq!(
            unknown("skip=UndefinedVra,maintainerdeprecated;experimental=Nothing"),
            [
                "check= names \"UndefinedVra\", and there is no such rule (did you mean UndefinedVar?)",
                "check= names \"Nothing\", and there is no such rule",
            ]
        );
    }

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
