//! Sandboxes as their callers see them. Needs root and `/bin/busybox`.
//!
//! Without the standard harness, because this program is its own helper: a sandbox starts by executing it again.

mod basics;
mod isolation;
mod life;
mod support;

use std::panic::catch_unwind;
use std::process::ExitCode;

type Test = (&'static str, fn());

fn main() -> ExitCode {
    if let Some(code) = rbuild_runtime::helper_main() {
        return ExitCode::from(code as u8);
    }
    if let Some(code) = life::starter_to_be_killed() {
        return code;
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let all = [basics::TESTS, isolation::TESTS, life::TESTS].concat();
    let mut failed = 0;
    for (name, test) in all {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| name.contains(wanted.as_str())) {
            continue;
        }
        let started = std::time::Instant::now();
        let ok = catch_unwind(test).is_ok();
        failed += u32::from(!ok);
        println!("test {name} ... {} ({} ms)", if ok { "ok" } else { "FAILED" }, started.elapsed().as_millis());
    }
    support::clean_up();
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
