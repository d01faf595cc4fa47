//! The word expander: the input is one word of an instruction.
#![no_main]

#[path = "../../frontend/tests/campaign/mod.rs"]
#[allow(dead_code, reason = "libFuzzer makes the inputs here")]
mod campaign;

use campaign::{Input, judge};

libfuzzer_sys::fuzz_target!(|word: &[u8]| {
    let text = [b"FROM scratch\nENV A=a/b.c B=\nLABEL l=".as_slice(), word].concat();
    judge(&Input::File { text, check: false });
});
