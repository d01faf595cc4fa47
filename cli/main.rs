//! The `rbuild` program: decodes the command line, calls the engine, shows what happens.
//!
//! Nothing here is a library and nothing here does the work: a command turns its arguments into a request,
//! lends the engine what the user has (files, environment, terminal), and encodes events and errors.
//! There is no daemon behind it.

#![allow(
    unreachable_pub,
    reason = "nothing of a program can be reached from outside; `pub` says what other modules use"
)]
#![allow(clippy::result_large_err, reason = "an error ends the command: it is made once and moved a few times")]

mod allowed;
mod app;
mod args;
mod attach;
mod attest;
mod batch;
mod caches;
mod call;
mod changes;
mod cid_file;
mod collection;
mod commands;
mod confirm;
mod container_filters;
mod container_options;
mod credentials;
mod diagnostics;
mod error;
mod format;
mod git_context;
mod host_files;
mod image_for_run;
mod isolation_options;
mod json_text;
mod lent;
mod limits;
mod manifest_lists;
mod metadata;
mod mounts;
mod network_options;
mod outputs;
mod places;
mod ports;
mod progress;
mod prune_filter;
mod refused;
mod registry_access;
mod runtimes;
mod settings;
mod signals;
mod supervision;
mod terminal;
mod units;
mod users;
mod values;
mod watched;
mod whole_file;

use std::process::ExitCode;

use app::App;
use args::{Globals, Parsed};
use error::CliError;

/// How long work that was stopped may take to end.
const CLEARING: std::time::Duration = std::time::Duration::from_secs(1);

fn main() -> ExitCode {
    // Sandboxes are set up by this same program, started again: that comes before any thread and any parsing.
    if let Some(code) = rbuild_engine::helper_main() {
        return ExitCode::from(u8::try_from(code).unwrap_or(error::exit::FAILURE));
    }
    match start() {
        Ok(code) => code,
        Err(error) => {
            terminal::tell(&error.render());
            error.exit_code()
        }
    }
}

fn start() -> Result<ExitCode, CliError> {
    match args::parse(std::env::args_os().collect())? {
        Parsed::Print(text) => {
            std::io::Write::write_all(&mut std::io::stdout().lock(), text.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Parsed::Run(cli) => {
            log_to_stderr(&cli.globals);
            let app = App::new(&cli.globals)?;
            let runtime = runtime()?;
            let outcome = runtime.block_on(cli.command.run(&app));
            // What was stopped may clear away; a thread that reads standard input would never come back.
            runtime.shutdown_timeout(CLEARING);
            outcome
        }
    }
}

/// Two workers are enough: they only wait, and blocking work has its own threads, started when first needed.
fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| CliError::new(format!("starting threads: {e}")))
}

fn log_to_stderr(globals: &Globals) {
    use tracing::level_filters::LevelFilter;
    let level = match globals.log_level.as_deref() {
        _ if globals.debug => LevelFilter::DEBUG,
        Some("trace") => LevelFilter::TRACE,
        Some("debug") => LevelFilter::DEBUG,
        Some("info") => LevelFilter::INFO,
        Some("error" | "fatal") => LevelFilter::ERROR,
        _ => LevelFilter::WARN,
    };
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_target(false).init();
}
