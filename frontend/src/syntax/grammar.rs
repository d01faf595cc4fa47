//! What stands in one joined line, by the grammar in `dockerfile.pest`.

use std::ops::Range;

use pest::Parser;
use pest::iterators::Pair;

#[allow(missing_docs)]
mod rules {
    #[derive(pest_derive::Parser)]
    #[grammar = "syntax/dockerfile.pest"]
    pub(super) struct Grammar;
}
use rules::{Grammar, Rule};

/// A word and where it stands in the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) text: String,
    pub(crate) range: Range<usize>,
}

/// The front of a line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Head {
    /// The instruction as written.
    pub(crate) name: Range<usize>,
    /// `--flag=value`, quotes and escapes taken away.
    pub(crate) flags: Vec<Word>,
    /// What follows, without spaces around it.
    pub(crate) rest: Range<usize>,
}

/// Takes a line apart that is not blank.
pub(crate) fn head(line: &str, escape: char) -> Head {
    let rule = if escape == '`' { Rule::head_tick } else { Rule::head };
    let mut head = Head::default();
    let Some(pair) = Grammar::parse(rule, line).ok().and_then(|mut pairs| pairs.next()) else {
        return head;
    };
    let mut end = 0;
    for part in pair.into_inner() {
        let range = part.as_span().start()..part.as_span().end();
        end = range.end;
        match part.as_rule() {
            Rule::instruction => head.name = range,
            Rule::flag | Rule::flag_tick => head.flags.push(Word { text: unquoted(part), range }),
            _ => {}
        }
    }
    head.rest = trimmed(line, end..line.len());
    head
}

fn unquoted(flag: Pair<'_, Rule>) -> String {
    let mut text = String::with_capacity(flag.as_str().len());
    for piece in flag.into_inner() {
        match piece.as_rule() {
            Rule::escaped | Rule::escaped_tick => text.push_str(&piece.as_str()[1..]),
            Rule::lone | Rule::lone_tick => {}
            Rule::flag_plain | Rule::flag_plain_tick => text.push_str(piece.as_str()),
            _ => piece.into_inner().for_each(|inner| match inner.as_rule() {
                Rule::escaped | Rule::escaped_tick => text.push_str(&inner.as_str()[1..]),
                Rule::lone | Rule::lone_tick => {}
                _ => text.push_str(inner.as_str()),
            }),
        }
    }
    text
}

/// Shrinks a range over the spaces at its ends.
pub(crate) fn trimmed(line: &str, range: Range<usize>) -> Range<usize> {
    let text = &line[range.clone()];
    let start = range.start + (text.len() - text.trim_start().len());
    start..start + text.trim().len()
}

/// Words with their quotes and escapes as written.
pub(crate) fn quoted_words(text: &str, escape: char) -> Vec<Word> {
    let rule = if escape == '`' { Rule::words_tick } else { Rule::words };
    collect(rule, text, |rule| matches!(rule, Rule::word | Rule::word_tick)).unwrap_or_default()
}

/// Words between spaces, whatever they hold.
pub(crate) fn bare_words(text: &str) -> Vec<Word> {
    collect(Rule::bare_words, text, |rule| rule == Rule::bare_word).unwrap_or_default()
}

fn collect(rule: Rule, text: &str, wanted: impl Fn(Rule) -> bool) -> Option<Vec<Word>> {
    let pair = Grammar::parse(rule, text).ok()?.next()?;
    let words = pair.into_inner().filter(|part| wanted(part.as_rule()));
    Some(words.map(|w| Word { text: w.as_str().to_owned(), range: w.as_span().start()..w.as_span().end() }).collect())
}

/// What looks like the exec form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Exec {
    Strings(Vec<Word>),
    /// A JSON array with something else in it: a mistake, not the shell form.
    Mixed,
    /// Not a JSON array.
    No,
}

/// Reads the exec form.
pub(crate) fn exec(text: &str) -> Exec {
    if !text.trim_start().starts_with('[') {
        return Exec::No;
    }
    match collect(Rule::exec, text, |rule| rule == Rule::string) {
        Some(mut words) => {
            words.iter_mut().for_each(|word| word.text = json_string(&word.text));
            Exec::Strings(words)
        }
        None if serde_json::from_str::<Vec<serde::de::IgnoredAny>>(text).is_ok() => Exec::Mixed,
        None => Exec::No,
    }
}

/// The value of a JSON string with its quotes; halves of surrogate pairs are replaced, as Go does.
fn json_string(quoted: &str) -> String {
    let inner = &quoted[1..quoted.len() - 1];
    let mut text = String::with_capacity(inner.len());
    let mut units: Vec<u16> = Vec::new();
    let mut chars = inner.chars();
    let flush = |units: &mut Vec<u16>, text: &mut String| {
        text.push_str(&String::from_utf16_lossy(units));
        units.clear();
    };
    while let Some(c) = chars.next() {
        let escaped = if c == '\\' { chars.next() } else { None };
        if escaped == Some('u') {
            let digits: String = chars.by_ref().take(4).collect();
            units.push(u16::from_str_radix(&digits, 16).unwrap_or(0xfffd));
            continue;
        }
        flush(&mut units, &mut text);
        text.push(match escaped {
            None => c,
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some(other) => other,
        });
    }
    flush(&mut units, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(line: &str, escape: char) -> (String, Vec<String>, String) {
        let head = head(line, escape);
        (line[head.name].into(), head.flags.into_iter().map(|f| f.text).collect(), line[head.rest].into())
    }

    #[test]
    fn the_front_of_a_line() {
        let case = |line, escape, name: &str, flags: &[&str], rest: &str| {
            let want = (name.to_owned(), flags.iter().map(|f| (*f).to_owned()).collect(), rest.to_owned());
            assert_eq!(parts(line, escape), want, "{line}");
        };
        case("  RUN  make all  ", '\\', "RUN", &[], "make all");
        case("COPY --from=a --chmod=755 x --y /z", '\\', "COPY", &["--from=a", "--chmod=755"], "x --y /z");
        case(r#"RUN --mount="type=cache,id=a b" x"#, '\\', "RUN", &["--mount=type=cache,id=a b"], "x");
        case(r#"RUN --m='a\'b'c\ d x"#, '\\', "RUN", &["--m=a'bc d"], "x");
        case("RUN --m=`\"x\\ y", '`', "RUN", &["--m=\"x\\"], "y");
        case("RUN -- --x y", '\\', "RUN", &[], "--x y");
        case("CMD -x", '\\', "CMD", &[], "-x");
        case("RUN --open=\"x y", '\\', "RUN", &["--open=x y"], "");
        case("RUN\u{b}x", '\\', "RUN", &[], "x");
        case("RUN", '\\', "RUN", &[], "");
        case("RUN --x\\", '\\', "RUN", &["--x"], "");
    }

    #[test]
    fn words_keep_or_ignore_quotes() {
        let texts = |words: Vec<Word>| words.into_iter().map(|w| w.text).collect::<Vec<_>>();
        assert_eq!(
            texts(quoted_words(r#"A=1 B="two words" C=three\ words D='sq "dq"' E="a\" b" "#, '\\')),
            ["A=1", r#"B="two words""#, r"C=three\ words", r#"D='sq "dq"'"#, r#"E="a\" b""#]
        );
        assert_eq!(texts(quoted_words(r#"a'open quote"#, '\\')), ["a'open quote"]);
        assert_eq!(texts(quoted_words("a\\", '\\')), ["a"]);
        assert_eq!(texts(quoted_words("a` b c\\", '`')), ["a` b", "c\\"]);
        assert_eq!(texts(bare_words("a \"b c\"\td")), ["a", "\"b", "c\"", "d"]);
    }

    #[test]
    fn exec_form_is_json() {
        let strings = |text: &str| match exec(text) {
            Exec::Strings(words) => words.into_iter().map(|w| w.text).collect::<Vec<_>>(),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(strings(r#" [ "a" , "b\n\u00e9\ud83d\ude00\\\"" ] "#), ["a", "b\né😀\\\""]);
        assert_eq!(strings(r#"["\ud83d"]"#), ["\u{fffd}"]);
        assert!(strings("[]").is_empty());
        assert_eq!(exec("[1, \"a\"]"), Exec::Mixed);
        assert_eq!(exec("[\"a\", null]"), Exec::Mixed);
        for shell in ["['a']", "[\"a\",]", "[ -f x ] && y", "[\"a\"] b", "echo [\"a\"]", "", "[\"a\\x\"]"] {
            assert_eq!(exec(shell), Exec::No, "{shell}");
        }
        assert_eq!(exec(&"[".repeat(1 << 20)), Exec::No, "deep nesting is no exec form and no crash");
    }
}
