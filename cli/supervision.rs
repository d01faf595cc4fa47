//! The options of `run` and `create` that say how a container is looked after: health checks and restarts.

use std::time::Duration;

use rbuild_engine::containers::{Healthcheck, LogDriver, LogLimits, RestartPolicy};

use crate::error::CliError;
use crate::values;

/// How the container is looked after while it runs.
#[derive(Debug, clap::Args)]
pub struct Supervision {
    /// Command that finds out whether the container does its work, for its shell
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Time between two of these checks (default 30s)
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    health_interval: Option<Duration>,
    /// Failures in a row that make the container unhealthy (default 3)
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    health_retries: Option<i64>,
    /// Time between two checks while the container starts (default 5s)
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    health_start_interval: Option<Duration>,
    /// Time in which failures do not count
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    health_start_period: Option<Duration>,
    /// Time after which a check has failed (default 30s)
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    health_timeout: Option<Duration>,
    /// Do not check its health, whatever the image says
    #[arg(long)]
    no_healthcheck: bool,
    /// Run the program under an init that passes signals on and takes in orphans
    #[arg(long)]
    pub init: bool,
    /// What becomes of its output: json-file or none
    #[arg(long, value_name = "DRIVER", default_value = "json-file", hide_default_value = true, value_parser = ["json-file", "none"])]
    log_driver: String,
    /// Limit of the log: max-size=BYTES or max-file=N
    #[arg(long = "log-opt", value_name = "NAME=VALUE")]
    log_options: Vec<String>,
    /// When to start it again after its end: no, always, unless-stopped, on-failure or on-failure:N
    #[arg(long, value_name = "POLICY", default_value = "no", value_parser = restart_policy)]
    pub restart: RestartPolicy,
}

impl Supervision {
    /// The health check in place of the image's; `None` leaves the image's.
    ///
    /// # Errors
    /// Options that exclude each other.
    pub fn healthcheck(&self) -> Result<Option<Healthcheck>, CliError> {
        let nanos = |time: Option<Duration>| time.map_or(0, |time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX));
        let check = Healthcheck {
            test: self
                .health_cmd
                .iter()
                .filter(|cmd| !cmd.is_empty())
                .flat_map(|cmd| ["CMD-SHELL".to_owned(), cmd.clone()])
                .collect(),
            interval: nanos(self.health_interval),
            timeout: nanos(self.health_timeout),
            start_period: nanos(self.health_start_period),
            start_interval: nanos(self.health_start_interval),
            retries: self.health_retries.unwrap_or(0),
        };
        if self.health_retries.is_some_and(|retries| retries < 0) {
            return Err(CliError::new("--health-retries cannot be negative"));
        }
        match (self.no_healthcheck, check == Healthcheck::default()) {
            (true, false) => Err(CliError::new("--no-healthcheck conflicts with --health-* options")),
            (true, true) => Ok(Some(Healthcheck { test: vec!["NONE".to_owned()], ..check })),
            (false, true) => Ok(None),
            (false, false) => Ok(Some(check)),
        }
    }
}

impl Supervision {
    /// What becomes of its output.
    ///
    /// # Errors
    /// Options that the driver does not have.
    pub fn log(&self) -> Result<LogDriver, CliError> {
        let mut limits = LogLimits::default();
        for option in &self.log_options {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let wrong = |why: String| CliError::new(format!("invalid value \"{value}\" for log-opt \"{name}\": {why}"));
            match name {
                _ if self.log_driver == "none" => {
                    return Err(CliError::new(format!("unknown log opt '{name}' for none log driver")));
                }
                "max-size" if value == "-1" => limits.max_size = None,
                "max-size" => limits.max_size = Some(values::bytes(value).map_err(wrong)?),
                "max-file" => match value.parse() {
                    Ok(count) if count > 0 => limits.max_file = count,
                    _ => return Err(wrong("max-file cannot be less than 1".to_owned())),
                },
                "compress" | "labels" | "labels-regex" | "env" | "env-regex" | "tag" | "mode" | "max-buffer-size" => {
                    return Err(CliError::new(format!("--log-opt {name} is not supported yet")));
                }
                _ => return Err(CliError::new(format!("unknown log opt '{name}' for json-file log driver"))),
            }
        }
        Ok(if self.log_driver == "none" { LogDriver::None } else { LogDriver::JsonFile(limits) })
    }
}

/// `no`, `always`, `unless-stopped`, `on-failure[:N]`.
///
/// # Errors
/// In docker's words.
pub fn restart_policy(text: &str) -> Result<RestartPolicy, String> {
    let (name, most) = text.split_once(':').map_or((text, None), |(name, most)| (name, Some(most)));
    let most = match most {
        None => None,
        Some(most) => Some(most.parse::<i64>().map_err(|_| "maximum retry count must be an integer".to_owned())?),
    };
    match (name, most) {
        ("" | "no", None | Some(0)) => Ok(RestartPolicy::Never),
        ("always", None | Some(0)) => Ok(RestartPolicy::Always),
        ("unless-stopped", None | Some(0)) => Ok(RestartPolicy::UnlessStopped),
        ("on-failure", most) => match u32::try_from(most.unwrap_or(0)) {
            Ok(most) => Ok(RestartPolicy::OnFailure { most }),
            Err(_) => Err("invalid restart policy: maximum retry count cannot be negative".to_owned()),
        },
        ("no" | "always" | "unless-stopped", Some(_)) => {
            Err("invalid restart policy: maximum retry count can only be used with 'on-failure'".to_owned())
        }
        (name, _) => Err(format!(
            "invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_policies() {
        for (text, want) in [
            ("no", Ok(RestartPolicy::Never)),
            ("", Ok(RestartPolicy::Never)),
            ("always", Ok(RestartPolicy::Always)),
            ("unless-stopped", Ok(RestartPolicy::UnlessStopped)),
            ("on-failure", Ok(RestartPolicy::OnFailure { most: 0 })),
            ("on-failure:3", Ok(RestartPolicy::OnFailure { most: 3 })),
            ("on-failure:x", Err("maximum retry count must be an integer")),
            ("on-failure:-1", Err("invalid restart policy: maximum retry count cannot be negative")),
            ("always:3", Err("invalid restart policy: maximum retry count can only be used with 'on-failure'")),
        ] {
            assert_eq!(restart_policy(text), want.map_err(str::to_owned), "{text}");
        }
        assert!(restart_policy("sometimes").unwrap_err().contains("unknown policy 'sometimes'"));
    }
}
