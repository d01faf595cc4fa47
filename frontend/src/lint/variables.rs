//! Variables without a value, and variables that should have none.

use super::Rule;
use crate::Diagnostic;

pub(super) const SECRETS_USED_IN_ARG_OR_ENV: Rule = Rule {
    name: "SecretsUsedInArgOrEnv",
    description: "Secrets should not be in ARG or ENV, which the image keeps",
    url: "https://docs.docker.com/go/dockerfile/rule/secrets-used-in-arg-or-env/",
    experimental: false,
};

pub(super) const UNDEFINED_VAR: Rule = Rule {
    name: "UndefinedVar",
    description: "Variables should be defined before they are used",
    url: "https://docs.docker.com/go/dockerfile/rule/undefined-var/",
    experimental: false,
};

/// Words that a name of a secret has.
const SECRET: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
/// Words that say it is none: a public key, the file a token is in, the version of a key.
const NO_SECRET: [&str; 3] = ["public", "file", "version"];

/// Whether a name's words, between underscores, say that its value is a secret.
fn is_secret(name: &str) -> bool {
    let has = |list: &[&str]| name.split('_').any(|word| list.iter().any(|other| other.eq_ignore_ascii_case(word)));
    has(&SECRET) && !has(&NO_SECRET)
}

/// `instruction` is ARG or ENV.
pub(crate) fn secret_names<'a>(
    instruction: &'a str,
    names: impl Iterator<Item = &'a str>,
) -> impl Iterator<Item = Diagnostic> {
    names.filter(|name| is_secret(name)).map(move |name| {
        let message = format!("Do not use ARG or ENV instructions for sensitive data ({instruction} {name:?})");
        SECRETS_USED_IN_ARG_OR_ENV.warn(message).hint("RUN --mount=type=secret shows a secret to one step only")
    })
}

/// Names that had no value, and all that have one.
pub(crate) fn undefined_vars<'a>(
    unset: &'a [String],
    known: impl Iterator<Item = &'a str> + Clone,
) -> impl Iterator<Item = Diagnostic> {
    unset.iter().map(move |name| {
        let near = crate::nearest(name, known.clone()).map(|near| format!(" (did you mean ${near}?)"));
        UNDEFINED_VAR.warn(format!("Usage of undefined variable '${name}'{}", near.unwrap_or_default()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_known_by_a_word_of_their_name() {
        for name in ["api_key", "DATABASE_PASSWORD", "GITHUB_TOKEN", "secret_MESSAGE", "AUTH", "_key"] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["KEYBOARD", "monkey", "AUTHOR", "public_key", "PASSWORD_FILE", "TOKEN_VERSION", ""] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
