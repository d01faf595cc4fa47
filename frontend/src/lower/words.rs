//! How Go prints things: docker's history has its formats, and tools compare them.

const SECOND: i64 = 1_000_000_000;

/// `["a" "b"]`, as `%q` prints a list.
pub(crate) fn quoted_list(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    format!("[{}]", words.join(" "))
}

/// A string as `%q` prints it.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            '\0'..'\u{20}' | '\u{7f}' => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            _ if c.is_control() || (c.is_whitespace() && c != ' ') || c == '\u{feff}' => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            _ => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Nanoseconds as `1h2m3.5s`, `1.5ms`, `0s`.
pub(crate) fn duration(nanoseconds: i64) -> String {
    if nanoseconds == 0 {
        return "0s".into();
    }
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let n = nanoseconds.unsigned_abs();
    let second = SECOND as u64;
    if n < second {
        let (unit, name) =
            [(1_000_000, "ms"), (1_000, "µs"), (1, "ns")].into_iter().find(|(u, _)| n >= *u).unwrap_or((1, "ns"));
        return format!("{sign}{}{name}", decimal(n, unit));
    }
    let (minutes, seconds) = (n / (60 * second), n % (60 * second));
    let (hours, minutes) = (minutes / 60, minutes % 60);
    let seconds = decimal(seconds, second);
    match (hours, minutes) {
        (0, 0) => format!("{sign}{seconds}s"),
        (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
        (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
    }
}

/// `n / unit` without zeros at the end.
fn decimal(n: u64, unit: u64) -> String {
    if n.is_multiple_of(unit) {
        return (n / unit).to_string();
    }
    let width = unit.ilog10() as usize;
    let fraction = format!("{:0width$}", n % unit);
    format!("{}.{}", n / unit, fraction.trim_end_matches('0'))
}

/// Reads `1h30m`, `1.5s`, `300ms`, `0`; nanoseconds.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total: i128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let unit: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => SECOND.into(),
            "m" => 60 * i128::from(SECOND),
            "h" => 3600 * i128::from(SECOND),
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() > 18 {
            return None;
        }
        total += whole.parse::<i128>().unwrap_or(0) * unit;
        let digits = &fraction[..fraction.len().min(15)];
        total += digits.parse::<i128>().unwrap_or(0) * unit / 10i128.pow(digits.len() as u32);
        rest = tail;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_go_both_ways() {
        for (text, want) in [
            ("5m", "5m0s"),
            ("3s", "3s"),
            ("1.5h", "1h30m0s"),
            ("1h2m3.05s", "1h2m3.05s"),
            ("1500us", "1.5ms"),
            ("1ns", "1ns"),
            ("0", "0s"),
            ("-1s", "-1s"),
            (".5s", "500ms"),
        ] {
            assert_eq!(duration(parse_duration(text).unwrap()), want, "{text}");
        }
        for bad in ["", "5", "s", "1x", "1.2.3s", "-", "1s2", "99999999999h", ".s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn words_are_quoted_as_go_does() {
        assert_eq!(quoted_list(&["a b".into(), "\"\\\n\u{1}é".into()]), r#"["a b" "\"\\\n\x01é"]"#);
        assert_eq!(quoted_list(&[]), "[]");
    }
}
