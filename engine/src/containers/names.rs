//! Names of containers: which are allowed, and one for those that got none.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::error::Error;

const FIRST: [&str; 64] = [
    "amber", "ample", "azure", "balmy", "brave", "breezy", "brisk", "bronze", "calm", "candid", "cheery", "civil",
    "clear", "cosmic", "cozy", "crisp", "daring", "deft", "dewy", "eager", "early", "earthy", "fair", "fleet",
    "fluent", "frank", "frosty", "gentle", "gilded", "glad", "golden", "grand", "hardy", "hazel", "honest", "humble",
    "jolly", "keen", "kind", "lively", "loyal", "lucid", "mellow", "merry", "misty", "neat", "noble", "patient",
    "placid", "polite", "proud", "quick", "quiet", "rapid", "rustic", "serene", "silver", "snowy", "steady", "sunny",
    "tidy", "vivid", "warm", "witty",
];

const SECOND: [&str; 64] = [
    "acorn", "alder", "anchor", "anvil", "badger", "beacon", "birch", "bison", "brook", "canyon", "cedar", "cliff",
    "clover", "comet", "condor", "coral", "crane", "delta", "dune", "eagle", "ember", "falcon", "fern", "fjord",
    "forge", "fox", "glacier", "harbor", "hawk", "heron", "hill", "ibis", "island", "juniper", "kestrel", "lagoon",
    "lark", "lantern", "lynx", "maple", "marten", "meadow", "mesa", "moss", "oak", "orchid", "otter", "owl", "pebble",
    "pine", "plover", "prairie", "quartz", "raven", "reef", "ridge", "river", "robin", "sparrow", "spruce", "summit",
    "thistle", "valley", "willow",
];

/// A name by chance, `attempt` counted from 0: later ones get a digit, so that a full house ends.
pub(super) fn random(attempt: u64) -> String {
    // The hasher's keys come from the system's randomness and differ from call to call.
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(attempt);
    let chance = hasher.finish();
    let first = FIRST[(chance % 64) as usize];
    let second = SECOND[(chance / 64 % 64) as usize];
    match attempt {
        0..4 => format!("{first}_{second}"),
        _ => format!("{first}_{second}{}", chance >> 16 & 7),
    }
}

/// Checks a name the user chose.
pub(super) fn check(name: &str) -> Result<(), Error> {
    let mut bytes = name.bytes();
    let starts = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    let goes_on = name.len() > 1 && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if starts && goes_on && name.len() <= 255 {
        return Ok(());
    }
    Err(Error::invalid(format!("Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["ab", "a.b-c_D9", "0x"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "-a", ".a", "a b", "a/b", "ä1", &"x".repeat(256)] {
            assert!(check(bad).is_err(), "{bad}");
        }
        for attempt in [0, 9] {
            check(&random(attempt)).expect("a random name is a name");
        }
    }
}
