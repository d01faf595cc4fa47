//! The whole frontend: any bytes as a Dockerfile.
#![no_main]

#[path = "../../frontend/tests/campaign/mod.rs"]
#[allow(dead_code, reason = "libFuzzer makes the inputs here")]
mod campaign;

use campaign::{Input, judge};

libfuzzer_sys::fuzz_target!(|text: &[u8]| judge(&Input::File { text: text.to_vec(), check: false }));
