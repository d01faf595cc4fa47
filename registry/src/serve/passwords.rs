//! Who may come in: a file in the form of `htpasswd -B`.
//!
//! Only bcrypt: the other forms of that file (MD5, SHA-1, crypt, plain) do not protect a password, so a line in one of
//! them is refused by name instead of being ignored.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rbuild_oci::Digest;

use crate::Error;

/// Users and the bcrypt hashes of their passwords.
#[derive(Debug, Clone, Default)]
pub struct Passwords {
    users: Arc<HashMap<String, String>>,
    /// Digests of `Authorization` values that were right: bcrypt is slow by design and a push asks hundreds of times.
    proved: Arc<Mutex<HashSet<Digest>>>,
}

/// So many proofs are remembered.
const REMEMBERED: usize = 1024;
/// What an unknown user's password is compared with, so that the time of an answer does not tell who exists.
const NOBODY: &str = "$2b$10$CwTycUXWue0Thq9StjUM0uJ8i1zqjz2d0n4E9kZbTAQpG1jS2QvJa";

impl Passwords {
    /// Reads the text of a password file: `user:hash` lines, empty lines and comments.
    ///
    /// # Errors
    /// A line of another form, a hash that is not bcrypt, or nobody at all.
    pub fn parse(text: &str) -> Result<Passwords, Error> {
        let mut users = HashMap::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = |why: String| Error::Options(format!("password file, line {}: {why}", at + 1));
            let (user, hash) = line.split_once(':').ok_or_else(|| bad("it is not user:hash".into()))?;
            if !["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|kind| hash.starts_with(kind)) {
                return Err(bad(format!(
                    "the password of {user:?} is not hashed with bcrypt (htpasswd -B makes these)"
                )));
            }
            users.insert(user.to_owned(), hash.to_owned());
        }
        if users.is_empty() {
            return Err(Error::Options("the password file names nobody".into()));
        }
        Ok(Passwords { users: Arc::new(users), proved: Arc::default() })
    }

    /// Whether the value of an `Authorization` header names a user with the right password. Takes its time: not for
    /// threads that must not block.
    pub(super) fn admits(&self, header: &str) -> bool {
        let proof = Digest::sha256_of(header.as_bytes());
        if self.remembers(&proof) {
            return true;
        }
        let Some((user, password)) = basic(header) else { return false };
        let (hash, known) = match self.users.get(&user) {
            Some(hash) => (hash.as_str(), true),
            None => (NOBODY, false),
        };
        let right = bcrypt::verify(password, hash).unwrap_or(false) && known;
        if right {
            let mut proved = self.proved.lock().unwrap_or_else(|e| e.into_inner());
            if proved.len() >= REMEMBERED {
                proved.clear();
            }
            proved.insert(proof);
        }
        right
    }

    fn remembers(&self, proof: &Digest) -> bool {
        self.proved.lock().unwrap_or_else(|e| e.into_inner()).contains(proof)
    }
}

fn basic(header: &str) -> Option<(String, String)> {
    let (scheme, value) = header.split_once(' ')?;
    let decoded = BASE64_STANDARD.decode(value.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    let (user, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(text))
    }

    #[test]
    fn only_the_right_password_comes_in() {
        let hash = bcrypt::hash("s3cret:colon", 4).unwrap();
        let passwords = Passwords::parse(&format!("# team\n\nann:{hash}\n")).unwrap();
        for _ in 0..2 {
            assert!(passwords.admits(&header("ann:s3cret:colon")));
            assert!(!passwords.admits(&header("ann:s3cret")));
            assert!(!passwords.admits(&header("bob:s3cret:colon")));
            assert!(!passwords.admits(&header("ann")));
            assert!(!passwords.admits("Bearer x"));
            assert!(!passwords.admits(""));
        }
    }

    #[test]
    fn weak_hashes_are_refused_by_name() {
        for text in ["ann:$apr1$x$y", "ann:{SHA}x", "ann:plain", "ann", "", "# nobody"] {
            assert!(Passwords::parse(text).is_err(), "{text:?}");
        }
        let error = Passwords::parse("ann:{SHA}x").unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("bcrypt") && !error.contains("{SHA}"), "{error}");
    }
}
