//! JSON with other white space: what a registry sent is shown with its members in the order they came.

/// `text`, which is valid JSON, with `indent` for each level; as Go's `json.Indent` has it.
pub fn indent(text: &str, indent: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let mut depth = 0_usize;
    let mut chars = text.chars().filter(not_space()).peekable();
    let mut quoted = Quoted::default();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n(indent, depth));
    };
    while let Some(c) = chars.next() {
        if quoted.takes(c) {
            out.push(c);
            continue;
        }
        match c {
            '{' | '[' => {
                out.push(c);
                let closes = if c == '{' { '}' } else { ']' };
                if chars.peek() == Some(&closes) {
                    out.extend(chars.next());
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c => out.push(c),
        }
    }
    out
}

/// Lets everything through but white space between tokens.
fn not_space() -> impl FnMut(&char) -> bool {
    let mut quoted = Quoted::default();
    move |c| quoted.takes(*c) || !c.is_ascii_whitespace()
}

/// Whether one is within a string.
#[derive(Default)]
struct Quoted {
    within: bool,
    escaped: bool,
}

impl Quoted {
    /// Whether `c` belongs to a string, its quotes included.
    fn takes(&mut self, c: char) -> bool {
        if !self.within {
            self.within = c == '"';
            return self.within;
        }
        match c {
            _ if self.escaped => self.escaped = false,
            '\\' => self.escaped = true,
            '"' => self.within = false,
            _ => {}
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_changes_and_nothing_else() {
        let text = r#"{ "b":[1,{"x":"a: {, \" }"}],
            "a":{}, "c":[] }"#;
        let want =
            "{\n  \"b\": [\n    1,\n    {\n      \"x\": \"a: {, \\\" }\"\n    }\n  ],\n  \"a\": {},\n  \"c\": []\n}";
        assert_eq!(indent(text, "  "), want);
        assert_eq!(indent(want, "  "), want);
        assert_eq!(indent("[]", "\t"), "[]");
    }
}
