//! Ignore files: the first line of the input is a path, the rest are patterns.
#![no_main]

#[path = "../../frontend/tests/campaign/mod.rs"]
#[allow(dead_code, reason = "libFuzzer makes the inputs here")]
mod campaign;

use campaign::{Input, judge};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (path, text) = input.split_at(input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len()));
    judge(&Input::Ignore { text: text.to_vec(), path: path.to_vec() });
});
