//! Modes as `chmod` takes them.

use rbuild_graph::ops::ModeChange;

/// The mode of an entry that had `mode` after `change`.
///
/// # Errors
/// A symbolic mode that is none, in words for people.
pub fn apply(change: &ModeChange, mode: u32, is_dir: bool) -> Result<u32, String> {
    match change {
        ModeChange::Bits(bits) => Ok(bits & 0o7777),
        ModeChange::Symbolic(text) => symbolic(text, mode, is_dir),
    }
}

/// `[ugoa]*([-+=]([rwxXst]*|[ugo]))+` and commas between several (POSIX `chmod`). Without a class it is `a`; there is no
/// umask in an image.
fn symbolic(text: &str, mut mode: u32, is_dir: bool) -> Result<u32, String> {
    let bad = || format!("invalid mode {text:?}: expected octal digits or a symbolic mode such as u=rwX,go=rX");
    for clause in text.split(',') {
        let at = clause.find(['+', '-', '=']).ok_or_else(bad)?;
        let (classes, mut actions) = clause.split_at(at);
        let mut who = 0;
        for class in classes.chars() {
            who |= match class {
                'u' => 0o4700,
                'g' => 0o2070,
                'o' => 0o1007,
                'a' => 0o7777,
                _ => return Err(bad()),
            };
        }
        if classes.is_empty() {
            who = 0o7777;
        }
        while let Some(operator) = actions.chars().next() {
            actions = &actions[1..];
            let end = actions.find(['+', '-', '=']).unwrap_or(actions.len());
            let (permissions, rest) = actions.split_at(end);
            let bits = permission_bits(permissions, mode, is_dir).ok_or_else(bad)? & who;
            mode = match operator {
                '+' => mode | bits,
                '-' => mode & !bits,
                // The set-id bits of a directory stay unless they are named.
                _ => mode & !(who & if is_dir { 0o1777 } else { 0o7777 }) | bits,
            };
            actions = rest;
        }
    }
    Ok(mode)
}

fn permission_bits(text: &str, mode: u32, is_dir: bool) -> Option<u32> {
    let spread = |three: u32| three << 6 | three << 3 | three;
    match text {
        "u" => return Some(spread(mode >> 6 & 7)),
        "g" => return Some(spread(mode >> 3 & 7)),
        "o" => return Some(spread(mode & 7)),
        _ => {}
    }
    text.chars().try_fold(0, |bits, letter| {
        Some(
            bits | match letter {
                'r' => 0o444,
                'w' => 0o222,
                'x' => 0o111,
                'X' if is_dir || mode & 0o111 != 0 => 0o111,
                'X' => 0,
                's' => 0o6000,
                't' => 0o1000,
                _ => return None,
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbolic_modes_mean_what_chmod_means() {
        for (text, before, is_dir, after) in [
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o700, true, 0o755),
            ("+x", 0o644, false, 0o755),
            ("a-w", 0o666, false, 0o444),
            ("go=", 0o777, false, 0o700),
            ("g=u", 0o740, false, 0o770),
            ("u+s,+t", 0o755, false, 0o5755),
            ("ug+w-x", 0o555, false, 0o665),
            ("o=rw", 0o2755, true, 0o2756),
        ] {
            assert_eq!(symbolic(text, before, is_dir).unwrap(), after, "{text} on {before:o}");
        }
        for bad in ["", "rwx", "u", "z+x", "u+q", "u=rw,", "888"] {
            assert!(symbolic(bad, 0o644, false).is_err(), "{bad:?} was accepted");
        }
    }
}
