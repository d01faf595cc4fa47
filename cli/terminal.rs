//! What of outside text may reach a terminal.
//!
//! Step output, labels, names and registry messages come from strangers. Printed raw they could retitle the
//! window, write the clipboard or make the terminal answer as if the user had typed. So they lose every
//! control character except newline and tab before they are shown; bytes that go to a file or a pipe as data
//! stay as they are.

use std::borrow::Cow;
use std::io::{IsTerminal as _, Write as _};

/// Text without control characters (C0, DEL, C1) and without the bidirectional overrides that make text read
/// as what it is not; newline and tab stay. Escape sequences go as a whole, so that no `[31m` litter is left.
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.chars().any(refused) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => skip_sequence(&mut chars),
            // A lone carriage return is how progress bars redraw a line; as a newline it stays readable.
            '\r' if chars.peek() == Some(&'\n') => {}
            '\r' => out.push('\n'),
            c if refused(c) => {}
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// The same for one line: newlines and tabs become spaces.
pub fn clean_line(text: &str) -> String {
    clean(text).replace(['\n', '\t'], " ")
}

/// Writes text to standard error; a terminal gets it cleaned. That nobody reads it is no reason to fail.
pub fn tell(text: &str) {
    let mut err = std::io::stderr().lock();
    let text = if err.is_terminal() { clean(text) } else { Cow::Borrowed(text) };
    drop(err.write_all(text.as_bytes()));
}

fn refused(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Drops the rest of an escape sequence whose ESC was just read.
fn skip_sequence(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match chars.peek() {
        // CSI: parameters and intermediates, then one final byte.
        Some('[') => {
            chars.next();
            for c in chars.by_ref() {
                if ('\u{40}'..='\u{7e}').contains(&c) || c == '\n' {
                    return;
                }
            }
        }
        // OSC, DCS, SOS, PM, APC: up to BEL or ST. An unterminated one must not swallow the next lines.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            while let Some(c) = chars.next_if(|&c| c != '\n') {
                if c == '\u{7}' || c == '\u{9c}' {
                    return;
                }
                if c == '\u{1b}' {
                    chars.next_if_eq(&'\\');
                    return;
                }
            }
        }
        Some(' '..='~') => {
            chars.next();
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_go_text_stays() {
        for (given, want) in [
            ("plain\ttext\n", "plain\ttext\n"),
            ("\u{1b}[31mred\u{1b}[0m", "red"),
            ("\u{1b}]0;title\u{7}after", "after"),
            ("\u{1b}]52;c;aGk=\u{1b}\\after", "after"),
            ("\u{1b}]unterminated\nnext", "\nnext"),
            ("a\u{9b}31mb", "a31mb"),
            ("10%\r20%\r\n", "10%\n20%\n"),
            ("bell\u{7} del\u{7f}", "bell del"),
            ("abc\u{202e}txt", "abctxt"),
            ("umlaut ü 漢", "umlaut ü 漢"),
        ] {
            assert_eq!(clean(given), want, "{given:?}");
        }
    }

    #[test]
    fn a_line_is_one_line() {
        assert_eq!(clean_line("a\nb\tc"), "a b c");
    }
}
