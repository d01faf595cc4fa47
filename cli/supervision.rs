//! The options of `run` and `create` that say how a container is looked after: health checks and restarts.

use std::collections::BTreeMap;
use std::time::Duration;

use rbuild_engine::containers::{Healthcheck, LOCAL, LogDriver, LogLimits, LogOptions, RestartPolicy};

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
    /// What becomes of its output: json-file, local or none
    #[arg(long, value_name = "DRIVER", default_value = "json-file", hide_default_value = true)]
    log_driver: String,
    /// Option of the log: max-size=BYTES, max-file=N, compress=BOOL, mode=blocking|non-blocking, max-buffer-size=BYTES,
    /// labels=NAMES, env=NAMES, labels-regex=, env-regex=, tag=TEMPLATE
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
    /// A driver that there is not, options that it does not have.
    pub fn log(&self) -> Result<(LogDriver, LogOptions), CliError> {
        let driver = crate::terminal::clean_line(&self.log_driver);
        let mut options = LogOptions::default();
        for option in &self.log_options {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            options.given.insert(name.to_owned(), value.to_owned());
        }
        let (limits, names) = match driver.as_str() {
            "" | "json-file" => (LogLimits::default(), &JSON_FILE[..]),
            "local" => (LOCAL, &JSON_FILE[..LIMITS]),
            "none" if options.given.is_empty() => return Ok((LogDriver::None, options)),
            "none" => return Err(CliError::new("invalid logging opts for driver none")),
            "awslogs" | "etwlogs" | "fluentd" | "gcplogs" | "gelf" | "journald" | "splunk" | "syslog" => {
                let message = format!("the log driver {driver} is not supported: there are json-file, local and none");
                return Err(CliError::new(message));
            }
            other => {
                let message = format!("error looking up logging plugin {other}: plugin \"{other}\" not found");
                return Err(CliError::new(message));
            }
        };
        if let Some(name) = options.given.keys().find(|name| !names.contains(&name.as_str())) {
            let name = crate::terminal::clean_line(name);
            return Err(CliError::new(format!("unknown log opt '{name}' for {driver} log driver")));
        }
        let limits = limits_of(limits, &options.given)?;
        options.buffer = buffer_of(&options.given)?;
        Ok((if driver == "local" { LogDriver::Local(limits) } else { LogDriver::JsonFile(limits) }, options))
    }
}

/// The options of `json-file`, those first that `local` has too.
const JSON_FILE: [&str; 10] = [
    "max-size",
    "max-file",
    "compress",
    "mode",
    "max-buffer-size",
    "labels",
    "labels-regex",
    "env",
    "env-regex",
    "tag",
];
const LIMITS: usize = 5;

fn wrong(name: &str, value: &str, why: &str) -> CliError {
    CliError::new(format!("invalid value \"{}\" for log-opt \"{name}\": {why}", crate::terminal::clean_line(value)))
}

fn limits_of(mut limits: LogLimits, given: &BTreeMap<String, String>) -> Result<LogLimits, CliError> {
    if let Some(value) = given.get("max-size") {
        limits.max_size = match value.as_str() {
            "-1" => None,
            value => Some(values::bytes(value).map_err(|why| wrong("max-size", value, &why))?),
        };
    }
    if let Some(value) = given.get("max-file") {
        limits.max_file = match value.parse() {
            Ok(count) if count > 0 => count,
            _ => return Err(wrong("max-file", value, "max-file cannot be less than 1")),
        };
    }
    if let Some(value) = given.get("compress") {
        limits.compress = match value.as_str() {
            "true" | "1" | "t" | "T" | "TRUE" | "True" => true,
            "false" | "0" | "f" | "F" | "FALSE" | "False" => false,
            _ => return Err(wrong("compress", value, "it is true or false")),
        };
        if limits.compress && (limits.max_file < 2 || limits.max_size.is_none()) {
            return Err(CliError::new("compress cannot be true when max-file is less than 2 or max-size is not set"));
        }
    }
    Ok(limits)
}

/// How much may wait to be written, if the container is not to wait.
fn buffer_of(given: &BTreeMap<String, String>) -> Result<Option<u64>, CliError> {
    let size = given.get("max-buffer-size");
    match given.get("mode").map_or("", String::as_str) {
        "" | "blocking" if size.is_some() => {
            Err(CliError::new("logger: max-buffer-size option is only supported with 'mode=non-blocking'"))
        }
        "" | "blocking" => Ok(None),
        "non-blocking" => match size {
            Some(size) => values::bytes(size).map(Some).map_err(|why| wrong("max-buffer-size", size, &why)),
            None => Ok(Some(1 << 20)),
        },
        other => {
            Err(CliError::new(format!("logger: logging mode not supported: {}", crate::terminal::clean_line(other))))
        }
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

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        supervision: Supervision,
    }

    fn log(options: &[&str]) -> Result<(LogDriver, LogOptions), String> {
        let line = <Line as clap::Parser>::try_parse_from([&["run"], options].concat()).expect("a command line");
        line.supervision.log().map_err(|e| e.message)
    }

    #[test]
    fn log_options() {
        let limited = |max_size, max_file, compress| LogLimits { max_size, max_file, compress };
        let drivers = [
            (&[][..], LogDriver::JsonFile(LogLimits::default())),
            (&["--log-driver", "none"], LogDriver::None),
            (&["--log-driver", "local"], LogDriver::Local(limited(Some(20 << 20), 5, true))),
            (
                &["--log-opt", "max-size=1k", "--log-opt", "max-file=3", "--log-opt", "compress=true"],
                LogDriver::JsonFile(limited(Some(1024), 3, true)),
            ),
        ];
        for (options, want) in drivers {
            assert_eq!(log(options).expect("good").0, want, "{options:?}");
        }
        let buffered = log(&["--log-opt", "mode=non-blocking", "--log-opt", "max-buffer-size=2m"]).expect("good").1;
        assert_eq!(buffered.buffer, Some(2 << 20));
        for (options, part) in [
            (&["--log-driver", "syslog"][..], "the log driver syslog is not supported"),
            (&["--log-driver", "foo"], "plugin \"foo\" not found"),
            (&["--log-driver", "none", "--log-opt", "max-size=1"], "invalid logging opts for driver none"),
            (&["--log-driver", "local", "--log-opt", "tag=x"], "unknown log opt 'tag' for local log driver"),
            (&["--log-opt", "nope=1"], "unknown log opt 'nope' for json-file log driver"),
            (&["--log-opt", "compress=true"], "compress cannot be true"),
            (&["--log-opt", "compress=maybe"], "it is true or false"),
            (&["--log-opt", "max-file=0"], "max-file cannot be less than 1"),
            (&["--log-opt", "max-buffer-size=1m"], "only supported with 'mode=non-blocking'"),
            (&["--log-opt", "mode=fast"], "logging mode not supported: fast"),
        ] {
            assert!(log(options).is_err_and(|why| why.contains(part)), "{options:?}");
        }
    }

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
