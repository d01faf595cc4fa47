//! Tries random inputs for as long as wanted: `cargo run --release -p rbuild-frontend --example fuzz -- COUNT [SEED]`.
//!
//! The same campaign as the test of that name, which is bounded. A seed that fails is printed with its input, which
//! then belongs among the tests. An input that takes longer than [`PATIENCE`] counts as a hang.

#[path = "../tests/campaign/mod.rs"]
mod campaign;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use campaign::{Corpus, judge};

const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let (count, first) = match (numbers.next(), numbers.next()) {
        (Some(Ok(count)), None) => (count, 0),
        (Some(Ok(count)), Some(Ok(first))) => (count, first),
        _ => {
            eprintln!("usage: fuzz COUNT [FIRST SEED]");
            return ExitCode::FAILURE;
        }
    };
    let corpus = Corpus::golden();
    let at = AtomicU64::new(first);
    let done = first.saturating_add(count);
    let panics = std::thread::scope(|scope| {
        scope.spawn(|| watch(&at, done, &corpus));
        std::panic::set_hook(Box::new(|_| {}));
        let mut panics = 0u64;
        for seed in first..done {
            at.store(seed, Ordering::Relaxed);
            let input = corpus.input(seed);
            if std::panic::catch_unwind(|| judge(&input)).is_err() {
                panics += 1;
                println!("seed {seed} panics: {input:?}");
            }
        }
        at.store(done, Ordering::Relaxed);
        panics
    });
    println!("{count} inputs, {panics} panics, 0 hangs");
    if panics == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ends the program when one input takes too long: a thread cannot be stopped.
fn watch(at: &AtomicU64, done: u64, corpus: &Corpus) {
    let mut last = (at.load(Ordering::Relaxed), Instant::now());
    while last.0 != done {
        std::thread::sleep(Duration::from_millis(100));
        let now = at.load(Ordering::Relaxed);
        if now != last.0 {
            last = (now, Instant::now());
        } else if last.1.elapsed() > PATIENCE {
            println!("seed {now} hangs: {:?}", corpus.input(now));
            std::process::exit(1);
        }
    }
}
