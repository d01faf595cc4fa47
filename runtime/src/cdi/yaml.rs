//! YAML as the values JSON has, which is all a specification uses.
//!
//! Numbers are read as Go's YAML library does, which every other reader of these files uses: `0660` is octal. Aliases are
//! refused: they are how a small file becomes a large one, and no specification needs them.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// How deep lists and maps may lie in each other.
const DEEPEST: usize = 32;

/// What is open at a place of the document.
enum Open {
    List(Vec<Value>),
    /// The members, and the name that waits for its value.
    Map(Map<String, Value>, Option<String>),
}

/// Reads the one document of `text`.
///
/// # Errors
/// What is wrong, with its line.
pub(super) fn read(text: &str) -> Result<Value, String> {
    let mut open: Vec<Open> = Vec::new();
    let mut whole: Option<Value> = None;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| error.to_string())?;
        let at = |message: &str| format!("line {}: {message}", span.start.line());
        let value = match event {
            Event::Alias(_) => return Err(at("aliases are not supported")),
            Event::Scalar(text, style, ..) => scalar(&text, style),
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() == DEEPEST => {
                return Err(at("lists and maps lie too deep in each other"));
            }
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Map(Map::new(), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(values)) => Value::Array(values),
                Some(Open::Map(members, _)) => Value::Object(members),
                None => return Err(at("an end without a beginning")),
            },
            _ => continue,
        };
        match open.last_mut() {
            None if whole.is_some() => return Err(at("more than one document")),
            None => whole = Some(value),
            Some(Open::List(values)) => values.push(value),
            Some(Open::Map(members, name)) => match name.take() {
                None => *name = Some(key(value).ok_or_else(|| at("the name of a member is no text"))?),
                Some(name) if members.contains_key(&name) => return Err(at(&format!("{name} is there twice"))),
                Some(name) => drop(members.insert(name, value)),
            },
        }
    }
    whole.ok_or_else(|| "the file is empty".to_owned())
}

fn key(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// What a word without quotes means; one in quotes is text.
fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::String(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number(text).map_or_else(|| Value::String(text.to_owned()), Value::from),
    }
}

fn number(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (digits, radix) = match digits.as_bytes() {
        [b'0', b'x', ..] => (&digits[2..], 16),
        [b'0', b'o', ..] => (&digits[2..], 8),
        [b'0', b'b', ..] => (&digits[2..], 2),
        [b'0', _, ..] => (&digits[1..], 8),
        _ => (digits, 10),
    };
    // A second sign is for the parser to refuse, not for it to read.
    if digits.starts_with(['+', '-']) {
        return None;
    }
    i64::from_str_radix(digits, radix).ok()?.checked_mul(sign)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_of_every_kind() {
        let text = "# a comment\na: 1\nb: [x, 'y', \"0660\", 0660, 0o17, 0x1f, -3]\nc:\n- d: null\n  e: true\n  f: 1.5.0\n\
                    g: |\n  two\n  lines\nh: {}\n1: ''\n";
        let want = json!({"a": 1, "b": ["x", "y", "0660", 432, 15, 31, -3], "c": [{"d": null, "e": true, "f": "1.5.0"}],
            "g": "two\nlines\n", "h": {}, "1": ""});
        assert_eq!(read(text).unwrap(), want);
        assert_eq!(read("{\"json\": [true]}").unwrap(), json!({"json": [true]}));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let deep = "[".repeat(100);
        for (text, want) in [
            ("", "the file is empty"),
            ("a: 1\nb: [", "line 3 column 1"),
            ("a: &x 1\nb: *x\n", "line 2: aliases are not supported"),
            ("a: 1\na: 2\n", "line 2: a is there twice"),
            ("a: 1\n---\nb: 2\n", "more than one document"),
            ("[a]: 1\n", "the name of a member is no text"),
            (&deep, "lie too deep"),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.contains(want), "{text:?}: {said}");
        }
    }
}
