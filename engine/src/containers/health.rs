//! The health check of a container: the request's over the image's, and what its monitor is told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rbuild_oci::Healthcheck;
use rbuild_runtime::container::{ExecSpec, HealthProbe};
use rbuild_store::Root;

use super::process;
use super::record::Container;
use super::request::ExecRequest;
use crate::error::Error;

/// Docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;
/// The least time that makes sense, docker's number, in nanoseconds.
const LEAST: i64 = 1_000_000;

/// Refuses what makes no sense, in docker's words.
pub(super) fn check(check: &Healthcheck) -> Result<(), Error> {
    for (name, time) in [
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
    ] {
        if time != 0 && time < LEAST {
            return Err(Error::invalid(format!("{name} in Healthcheck cannot be less than 1ms")));
        }
    }
    if check.retries < 0 {
        return Err(Error::invalid("Retries in Healthcheck cannot be negative"));
    }
    Ok(())
}

/// What is set in the request's, else the image's.
pub(super) fn merge(own: &Healthcheck, image: Option<&Healthcheck>) -> Healthcheck {
    let image = image.cloned().unwrap_or_default();
    let either = |own: i64, image: i64| if own == 0 { image } else { own };
    Healthcheck {
        test: if own.test.is_empty() { image.test } else { own.test.clone() },
        interval: either(own.interval, image.interval),
        timeout: either(own.timeout, image.timeout),
        start_period: either(own.start_period, image.start_period),
        start_interval: either(own.start_interval, image.start_interval),
        retries: either(own.retries, image.retries),
    }
}

/// The probe of a container; `None` when its health is not checked.
pub(super) fn probe(container: &Container, root: &Root, directory: &Path) -> Result<Option<HealthProbe>, Error> {
    let Some(check) = &container.config.healthcheck else { return Ok(None) };
    let command = match check.test.split_first() {
        Some((kind, words)) if kind == "CMD" && !words.is_empty() => words.to_vec(),
        Some((kind, [line])) if kind == "CMD-SHELL" => {
            let shell = container.config.shell.clone();
            let mut words = shell.unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()]);
            words.push(line.clone());
            words
        }
        Some((kind, _)) if kind == "NONE" => return Ok(None),
        None => return Ok(None),
        Some((kind, _)) => {
            return Err(Error::invalid(format!("the health check of {} has an unknown form: {kind}", container.name)));
        }
    };
    let request = ExecRequest { command, ..ExecRequest::default() };
    let time = |nanos: i64, default: Duration| {
        u64::try_from(nanos).ok().filter(|nanos| *nanos > 0).map_or(default, Duration::from_nanos)
    };
    Ok(Some(HealthProbe {
        exec: ExecSpec {
            id: container.id.clone(),
            exec_id: String::new(),
            process: process::exec_process(container, root, &request)?,
            terminal: None,
            stdin: false,
            cgroup_parent: container.host.cgroup_parent.as_ref().map(PathBuf::from),
            seccomp: container.host.seccomp()?,
            runtime: container.host.runtime.as_ref().map(|runtime| runtime.external(directory)),
            ids: container.ids.clone(),
        },
        interval: time(check.interval, INTERVAL),
        timeout: time(check.timeout, TIMEOUT),
        start_period: time(check.start_period, Duration::ZERO),
        start_interval: time(check.start_interval, START_INTERVAL),
        retries: u32::try_from(check.retries).ok().filter(|n| *n > 0).unwrap_or(RETRIES),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_request_sets_stands_over_the_image() {
        let image =
            Healthcheck { test: vec!["CMD".into(), "a".into()], interval: 5, retries: 2, ..Healthcheck::default() };
        let own = Healthcheck { interval: 7, ..Healthcheck::default() };
        let merged = merge(&own, Some(&image));
        assert_eq!((merged.test, merged.interval, merged.retries), (image.test.clone(), 7, 2));
        let none = Healthcheck { test: vec!["NONE".into()], ..Healthcheck::default() };
        assert_eq!(merge(&none, Some(&image)).test, ["NONE"]);
        assert_eq!(merge(&own, None), own);
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |healthcheck: Healthcheck| check(&healthcheck).unwrap_err().message;
        let small = Healthcheck { timeout: 10, ..Healthcheck::default() };
        assert_eq!(refused(small), "Timeout in Healthcheck cannot be less than 1ms");
        let negative = Healthcheck { retries: -1, ..Healthcheck::default() };
        assert_eq!(refused(negative), "Retries in Healthcheck cannot be negative");
        assert!(check(&Healthcheck::default()).is_ok());
    }
}
