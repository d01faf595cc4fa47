//! Text that a registry wrote, made fit for a terminal and a message.

/// Longest piece of a registry's text that goes into a message, in characters.
const SHOWN: usize = 400;

/// `text` on one line, without control characters and shortened: what a peer wrote may move no cursor and set no
/// title.
pub fn clean(text: &str) -> String {
    let mut out = String::new();
    for (count, c) in text.trim().chars().enumerate() {
        if count == SHOWN {
            out.push('…');
            break;
        }
        out.push(
            if c.is_control()
                || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            {
                ' '
            } else {
                c
            },
        );
    }
    out
}

/// What an error body of the distribution specification says, as `code words: message`, one for each error.
/// A body that is no such document gives its cleaned beginning, or nothing when it is a web page.
pub(crate) fn reason(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        #[serde(default)]
        errors: Vec<Item>,
        /// Token servers and some proxies answer in one of these instead.
        #[serde(default)]
        details: String,
        #[serde(default)]
        message: String,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(parsed) = serde_json::from_slice::<Body>(body) else {
        let text = String::from_utf8_lossy(body);
        return if text.trim_start().starts_with('<') { String::new() } else { clean(&text) };
    };
    let mut said: Vec<String> = parsed
        .errors
        .iter()
        .map(|e| {
            let code = e.code.to_lowercase().replace('_', " ");
            match (code.as_str(), e.message.as_str()) {
                ("", m) => m.to_owned(),
                (c, "") => c.to_owned(),
                (c, m) => format!("{c}: {m}"),
            }
        })
        .collect();
    if said.is_empty() {
        said.extend([parsed.details, parsed.message].into_iter().filter(|t| !t.is_empty()));
    }
    clean(&said.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_text_cannot_drive_the_terminal() {
        assert_eq!(clean("a\x1b]0;title\x07b\nc\u{202e}d"), "a ]0;title b c d");
        assert_eq!(clean(&"x".repeat(5000)).chars().count(), SHOWN + 1);
    }

    #[test]
    fn error_bodies_become_one_line() {
        for (body, want) in [
            (
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"x":1}}]}"#,
                "manifest unknown: manifest unknown",
            ),
            (r#"{"errors":[{"code":"DENIED","message":"no"},{"code":"UNAUTHORIZED"}]}"#, "denied: no; unauthorized"),
            (r#"{"details":"incorrect username or password"}"#, "incorrect username or password"),
            ("<html><body>gateway</body></html>", ""),
            ("404 page not found\n", "404 page not found"),
        ] {
            assert_eq!(reason(body.as_bytes()), want);
        }
    }
}
