//! `rbuild wait`.

use std::process::ExitCode;
use std::time::Duration;

use rbuild_engine::Kind;
use rbuild_engine::containers::{Containers, HealthStatus, Seen, Status};

use crate::app::App;
use crate::batch::each;
use crate::error::CliError;
use crate::units;

/// Wait until containers have ended, or are in another condition, and print their exit codes
///
/// The code of one that has not ended is -1.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to wait for, one of those given: created, running, healthy, unhealthy, paused, exited, stopped or removed
    #[arg(long = "condition", value_name = "CONDITION", value_parser = condition)]
    conditions: Vec<Condition>,
    /// Time between two looks at a condition
    #[arg(short, long, value_name = "TIME", default_value = "250ms", value_parser = interval)]
    interval: Duration,
    #[arg(value_name = "CONTAINER", required = true, num_args = 1..)]
    containers: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Status(Status),
    Health(HealthStatus),
    Removed,
}

impl Condition {
    fn holds(self, seen: Option<&Seen>) -> bool {
        match (self, seen) {
            (Condition::Removed, seen) => seen.is_none(),
            (_, None) => false,
            (Condition::Status(status), Some(seen)) => seen.status == status,
            (Condition::Health(wanted), Some(seen)) => {
                seen.status.is_alive() && seen.state.health.as_ref().is_some_and(|health| health.status == wanted)
            }
        }
    }
}

fn condition(text: &str) -> Result<Condition, String> {
    Ok(match text {
        "created" | "configured" => Condition::Status(Status::Created),
        "running" => Condition::Status(Status::Running),
        "paused" => Condition::Status(Status::Paused),
        "exited" | "stopped" => Condition::Status(Status::Exited),
        "healthy" => Condition::Health(HealthStatus::Healthy),
        "unhealthy" => Condition::Health(HealthStatus::Unhealthy),
        "removed" => Condition::Removed,
        _ => return Err(format!("unknown condition \"{text}\"")),
    })
}

/// `250ms`, `2s`; a number alone is milliseconds.
fn interval(text: &str) -> Result<Duration, String> {
    let time = text.parse().map(Duration::from_millis).ok().or_else(|| units::duration(text));
    time.filter(|time| !time.is_zero()).ok_or_else(|| format!("time: invalid duration \"{text}\""))
}

pub async fn run(args: Args, app: &App) -> Result<ExitCode, CliError> {
    let containers = app.engine()?.containers();
    each(app, &args.containers, |name| {
        let container = containers.find(name)?.container;
        let code = match &args.conditions[..] {
            [] => containers.wait(&container)?,
            conditions => wait_for(&containers, &container.id, conditions, args.interval)?,
        };
        Ok(Some(code.to_string()))
    })
}

fn wait_for(containers: &Containers, id: &str, wanted: &[Condition], interval: Duration) -> Result<i32, CliError> {
    loop {
        let seen = match containers.find(id) {
            Ok(seen) => Some(seen),
            Err(error) if error.kind == Kind::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        if wanted.iter().any(|condition| condition.holds(seen.as_ref())) {
            return Ok(seen.filter(|seen| seen.status == Status::Exited).map_or(-1, |seen| seen.state.exit_code));
        }
        if seen.is_none() {
            return Err(CliError::new(format!("No such container: {id}")));
        }
        std::thread::sleep(interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_and_intervals() {
        assert_eq!(condition("stopped"), Ok(Condition::Status(Status::Exited)));
        assert_eq!(condition("healthy"), Ok(Condition::Health(HealthStatus::Healthy)));
        assert!(condition("odd").is_err());
        assert_eq!(interval("100"), Ok(Duration::from_millis(100)));
        assert_eq!(interval("2s"), Ok(Duration::from_secs(2)));
        assert!(interval("0").is_err() && interval("x").is_err());
        assert!(Condition::Removed.holds(None) && !Condition::Status(Status::Exited).holds(None));
    }
}
