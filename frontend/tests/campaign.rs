//! Random inputs, the same ones each time: no one of them panics, and what must hold for all of them holds.
//!
//! More of them by hand: `cargo run --release -p rbuild-frontend --example fuzz -- 1000000`.

#[path = "campaign/mod.rs"]
mod inputs;

use inputs::{Corpus, Input, judge};

/// As many as end in seconds without optimisation.
const COUNT: u64 = 12_000;

/// Found by chance: a message with a line end in it.
#[test]
fn a_substitution_that_ends_with_its_line() {
    for text in ["FROM scratch\nCOPY <<A /a\n${x\nA\n", "FROM scratch\nCOPY <<A /a\n${x:?a\nb}\nA\n"] {
        judge(&Input::File { text: text.into(), check: false });
    }
}

#[test]
fn no_random_input_breaks_the_frontend() {
    let corpus = Corpus::golden();
    for seed in 0..COUNT {
        let input = corpus.input(seed);
        if let Err(panic) = std::panic::catch_unwind(|| judge(&input)) {
            eprintln!("seed {seed}: {input:?}");
            std::panic::resume_unwind(panic);
        }
    }
}
