//! `HEALTHCHECK`: how to find out whether a container does its work.

use rbuild_oci::Healthcheck;

use super::flags::{FlagKind, FlagSpec};
use super::input::Input;
use super::{Instruction, Text};
use crate::Diagnostic;
use crate::lower::stage::StageRun;
use crate::lower::words::{duration, parse_duration};
use crate::syntax::grammar::{self, Exec};

pub(super) const FLAGS: &[FlagSpec] = &[
    FlagSpec { name: "interval", help: "is the time between two checks, 30s if not said", kind: FlagKind::Text },
    FlagSpec { name: "timeout", help: "is how long one check may take, 30s if not said", kind: FlagKind::Text },
    FlagSpec { name: "start-period", help: "is the time in which failures do not count", kind: FlagKind::Text },
    FlagSpec { name: "start-interval", help: "is the time between checks while starting", kind: FlagKind::Text },
    FlagSpec { name: "retries", help: "is how many failures in a row make it unhealthy", kind: FlagKind::Text },
];

const MILLISECOND: i64 = 1_000_000;

#[derive(Debug, Clone)]
pub(crate) struct Health(Healthcheck);

pub(super) fn read(input: &mut Input<'_>) -> Option<Instruction> {
    let rest = input.line.rest();
    let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let command = command.trim();
    let test = match kind.to_uppercase().as_str() {
        "" => return input.refuse("HEALTHCHECK requires at least one argument"),
        "NONE" if !command.is_empty() => return input.refuse("HEALTHCHECK NONE takes no arguments"),
        "NONE" => {
            return Some(Instruction::Healthcheck(Health(Healthcheck {
                test: vec!["NONE".into()],
                ..Default::default()
            })));
        }
        "CMD" => test_command(input, command)?,
        other => {
            let problem = Diagnostic::error(format!("Unknown type {other:?} in HEALTHCHECK (try CMD)"));
            let span = input.line.span_of(input.line.head.rest.clone());
            return input.report(problem.at(span).expected("CMD or NONE"));
        }
    };
    let health = Healthcheck {
        test,
        interval: interval(input, "interval")?,
        timeout: interval(input, "timeout")?,
        start_period: interval(input, "start-period")?,
        start_interval: interval(input, "start-interval")?,
        retries: retries(input)?,
    };
    Some(Instruction::Healthcheck(Health(health)))
}

fn test_command(input: &mut Input<'_>, command: &str) -> Option<Vec<String>> {
    let test = match grammar::exec(command) {
        Exec::Strings(words) => {
            let words = words.into_iter().map(|word| word.text);
            std::iter::once("CMD".to_owned()).chain(words).collect()
        }
        Exec::No if command.is_empty() => Vec::new(),
        Exec::No => vec!["CMD-SHELL".to_owned(), command.to_owned()],
        Exec::Mixed => {
            return input.refuse("when using JSON array syntax, arrays must be comprised of strings only");
        }
    };
    if test.len() < 2 {
        return input.refuse("Missing command after HEALTHCHECK CMD");
    }
    Some(test)
}

fn interval(input: &mut Input<'_>, flag: &str) -> Option<i64> {
    let Some(Text { value, span }) = input.flags.take(flag).filter(|text| !text.value.is_empty()) else {
        return Some(0);
    };
    let problem = match parse_duration(&value) {
        Some(time) if time == 0 || time >= MILLISECOND => return Some(time),
        Some(_) => Diagnostic::error(format!("Interval {flag:?} cannot be less than 1ms")),
        None => Diagnostic::error(format!("time: invalid duration {value:?}")).expected("a time such as 30s or 1m30s"),
    };
    input.report(problem.at(span))
}

fn retries(input: &mut Input<'_>) -> Option<i64> {
    let Some(Text { value, span }) = input.flags.take("retries").filter(|text| !text.value.is_empty()) else {
        return Some(0);
    };
    let problem = match value.parse::<i32>() {
        Ok(retries) if retries >= 0 => return Some(retries.into()),
        Ok(retries) => Diagnostic::error(format!("--retries cannot be negative ({retries})")),
        Err(_) => {
            Diagnostic::error(format!("strconv.ParseInt: parsing {value:?}: invalid syntax")).expected("a number")
        }
    };
    input.report(problem.at(span))
}

impl Health {
    pub(super) fn lower(&self, stage: &mut StageRun<'_, '_>) -> Result<(), Diagnostic> {
        stage.once("HEALTHCHECK");
        let health = &self.0;
        stage.metadata(format!(
            "HEALTHCHECK {{Test:[{}] Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
            health.test.join(" "),
            duration(health.interval),
            duration(health.timeout),
            duration(health.start_period),
            duration(health.start_interval),
            health.retries
        ));
        stage.state.config.healthcheck = Some(health.clone());
        Ok(())
    }
}
