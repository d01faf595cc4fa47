//! Health checks: a probe run again and again inside a running container, and what its results add up to.
//!
//! The rules are docker's: a success makes the container healthy at once; `retries` failures in a row make it unhealthy;
//! failures within the start period do not count until the first success; the next probe begins an interval after the
//! last one ended. One thread per life of a container, which sleeps between probes.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::book::Book;
use super::enter;
use super::teller::Teller;
use crate::container::{ContainerSpec, Health, HealthProbe, HealthStatus, ProbeResult};
use crate::error::{Error, Result};
use crate::sandbox::{Running, Stdio};

/// Bytes of a probe's output that are kept, docker's number.
const OUTPUT: usize = 4096;
/// Results that are kept, docker's number.
const RESULTS: usize = 5;

/// Probes that run as long as this is not dropped.
pub(super) struct Probing(Arc<Over>);

/// Whether the container's life is over.
#[derive(Default)]
struct Over {
    over: Mutex<bool>,
    changed: Condvar,
}

impl Over {
    /// Waits; whether it is over.
    fn within(&self, time: Duration) -> bool {
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(over, time, |over| !*over);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        *self.0.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.changed.notify_all();
    }
}

/// Begins to probe the container whose first process is `pid`; `None` for one that has no probe.
pub(super) fn probe(spec: &ContainerSpec, pid: i32, book: &Arc<Book>, teller: &Arc<Teller>) -> Option<Probing> {
    let probe = spec.health.clone()?;
    let over = Arc::new(Over::default());
    let (theirs, book, teller, spec) = (Arc::clone(&over), Arc::clone(book), Arc::clone(teller), spec.clone());
    let work = move || watch(&spec, &probe, pid, (&book, &teller), &theirs);
    if let Err(error) = thread::Builder::new().name("health".into()).spawn(work) {
        tracing::warn!(%error, "the container's health is not checked");
    }
    Some(Probing(over))
}

fn watch(spec: &ContainerSpec, probe: &HealthProbe, pid: i32, (book, teller): (&Book, &Teller), over: &Over) {
    let begun = Instant::now();
    loop {
        let starting = begun.elapsed() < probe.start_period;
        let healthy = book.health().is_some_and(|health| health.status == HealthStatus::Healthy);
        if over.within(if starting && !healthy { probe.start_interval } else { probe.interval }) {
            return;
        }
        // A frozen process answers nobody.
        if spec.directory.join("paused").exists() {
            continue;
        }
        let result = run(spec, probe, pid);
        if over.within(Duration::ZERO) {
            return;
        }
        let counts = begun.elapsed() >= probe.start_period;
        if let Some(status) = book.change_health(|health| note(health, result, counts, probe.retries)) {
            teller.note(&format!("health_status: {}", status.as_str()), &[]);
        }
    }
}

/// Adds a result to what is known. `counts` says that the start period is over.
fn note(health: &mut Health, result: ProbeResult, counts: bool, retries: u32) {
    if result.exit_code == 0 {
        health.failing_streak = 0;
        health.status = HealthStatus::Healthy;
    } else if counts || health.status != HealthStatus::Starting {
        health.failing_streak += 1;
        if health.failing_streak >= retries {
            health.status = HealthStatus::Unhealthy;
        }
    }
    health.log.push(result);
    let surplus = health.log.len().saturating_sub(RESULTS);
    health.log.drain(..surplus);
}

/// One probe, at most as long as it may take.
fn run(spec: &ContainerSpec, probe: &HealthProbe, pid: i32) -> ProbeResult {
    let start = super::now();
    let (exit_code, output) = match start_probe(spec, probe, pid) {
        Ok((running, output)) => finish(running, output, probe.timeout),
        Err(error) => (-1, error.to_string()),
    };
    ProbeResult { start, end: super::now(), exit_code, output }
}

type Output = thread::JoinHandle<Vec<u8>>;

fn start_probe(spec: &ContainerSpec, probe: &HealthProbe, pid: i32) -> Result<(Running, [Output; 2])> {
    let mut running = enter(spec.sandbox_options(), &probe.exec, pid, Stdio::Output)?;
    let read = |stream: Option<OwnedFd>| {
        let read = move || stream.map_or_else(Vec::new, |stream| head(File::from(stream)));
        let spawned = thread::Builder::new().name("probe".into()).spawn(read);
        spawned.map_err(|e| Error::system("start a thread", e))
    };
    let outputs = [read(running.stdout.take())?, read(running.stderr.take())?];
    Ok((running, outputs))
}

/// The beginning of a stream, which is read to its end all the same: a full pipe would stop the probe.
fn head(mut stream: File) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        let room = OUTPUT - kept.len();
        kept.extend_from_slice(&buffer[..length.min(room)]);
    }
    kept
}

fn finish(running: Running, outputs: [Output; 2], timeout: Duration) -> (i32, String) {
    let running = Arc::new(running);
    let (sender, ended) = std::sync::mpsc::channel();
    let waiting = Arc::clone(&running);
    let wait = move || {
        let _ = sender.send(waiting.wait());
    };
    if let Err(error) = thread::Builder::new().name("probe".into()).spawn(wait) {
        return (-1, error.to_string());
    }
    let code = match ended.recv_timeout(timeout) {
        Ok(Ok(exit)) => exit.status(),
        Ok(Err(error)) => return (-1, error.to_string()),
        Err(_) => {
            let _ = running.kill(Signal::KILL);
            let _ = running.end();
            let _ = ended.recv();
            return (-1, format!("Health check exceeded timeout ({})", shown(timeout)));
        }
    };
    let [stdout, stderr] = outputs.map(|output| output.join().unwrap_or_default());
    let mut text = String::from_utf8_lossy(&stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&stderr));
    let end = text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= OUTPUT).last();
    text.truncate(end.unwrap_or(0));
    (code, text)
}

/// A time as Go prints it, which is what docker says here: `500ms`, `1.5s`, `2m0s`.
fn shown(time: Duration) -> String {
    let (minutes, rest) = (time.as_secs() / 60, time.as_secs_f64() % 60.0);
    match minutes {
        0 if time < Duration::from_secs(1) => format!("{}ms", time.as_millis()),
        0 => format!("{rest}s"),
        1..60 => format!("{minutes}m{rest}s"),
        _ => format!("{}h{}m{rest}s", minutes / 60, minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(exit_code: i32) -> ProbeResult {
        ProbeResult { start: String::new(), end: String::new(), exit_code, output: String::new() }
    }

    /// Results as `(exit code, after the start period)`, and what they add up to with two retries.
    #[test]
    fn results_add_up() {
        use HealthStatus::{Healthy, Starting, Unhealthy};
        for (results, status, streak) in [
            (&[][..], Starting, 0),
            (&[(0, true)], Healthy, 0),
            (&[(1, true)], Starting, 1),
            (&[(1, true), (1, true)], Unhealthy, 2),
            (&[(1, true), (0, true), (1, true)], Healthy, 1),
            (&[(1, false), (1, false), (1, false)], Starting, 0),
            (&[(1, false), (1, false), (1, true)], Starting, 1),
            (&[(0, false), (1, false), (1, false)], Unhealthy, 2),
            (&[(1, true), (-1, true), (0, true)], Healthy, 0),
        ] {
            let mut health = Health::default();
            for &(code, counts) in results {
                note(&mut health, result(code), counts, 2);
            }
            assert_eq!((health.status, health.failing_streak), (status, streak), "{results:?}");
        }
    }

    #[test]
    fn only_the_last_results_are_kept() {
        let mut health = Health::default();
        for code in 0..8 {
            note(&mut health, result(code), true, 3);
        }
        assert_eq!(health.log.iter().map(|r| r.exit_code).collect::<Vec<_>>(), [3, 4, 5, 6, 7]);
    }

    #[test]
    fn times_are_shown_as_go_does() {
        for (millis, text) in
            [(500, "500ms"), (1000, "1s"), (1500, "1.5s"), (30_000, "30s"), (90_000, "1m30s"), (3_600_000, "1h0m0s")]
        {
            assert_eq!(shown(Duration::from_millis(millis)), text);
        }
    }
}
