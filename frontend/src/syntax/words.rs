//! Quotes, escapes and variables within a word: the rules of BuildKit's shell lexer.
//!
//! `$v`, `${v}`, `${v:-w}` with `-`, `+` and `?` (with or without the colon), `${v#p}`, `##`, `%`, `%%`, `${v/p/r}` and
//! `//`; words within are expanded too. Nothing here runs a shell. Text from outside decides how deep and how long an
//! expansion gets, so depth, length and work have bounds.

use rbuild_oci::limits;
use thiserror::Error;

use super::patterns::WordPattern;

/// `${a:-${b}}` in each other.
const DEPTH: usize = 64;

/// Where values come from.
pub(crate) trait Variables {
    fn value(&self, name: &str) -> Option<&str>;
}

/// No variable is set.
pub(crate) struct NoVariables;

impl Variables for NoVariables {
    fn value(&self, _: &str) -> Option<&str> {
        None
    }
}

/// How much text a file may still expand to. What is thrown away again counts, for it was made.
#[derive(Debug, Clone)]
pub(crate) struct Budget(u64);

impl Budget {
    /// Bytes of text, and steps of matching, for all expansions and environments of one file.
    const FILE: u64 = 1 << 28;

    pub(crate) fn new() -> Budget {
        Budget(Budget::FILE)
    }

    pub(crate) fn spend(&mut self, amount: usize) -> Result<(), WordError> {
        self.0 = self.0.checked_sub(amount as u64).ok_or(WordError::Work)?;
        Ok(())
    }
}

/// Why a word cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum WordError {
    #[error("unexpected end of statement while looking for matching {0}")]
    Unclosed(&'static str),
    #[error("syntax error: {0}")]
    Syntax(&'static str),
    #[error("unsupported modifier ({0}) in substitution")]
    Modifier(String),
    #[error("{name}: {message}")]
    Required { name: String, message: String },
    #[error("invalid pattern ({pattern}) in substitution: invalid escape '\\{escaped}'")]
    Pattern { pattern: String, escaped: String },
    #[error("variables are nested more than {DEPTH} levels deep")]
    Depth,
    #[error("a word expands to more than {} bytes", limits::EXPANSION)]
    Length,
    #[error("the file expands to more than {} bytes of text", Budget::FILE)]
    Work,
}

/// What a word becomes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Expanded {
    pub(crate) text: String,
    /// The same, split at spaces that are not quoted.
    pub(crate) words: Vec<String>,
    /// Names that had no value, in order.
    pub(crate) unmatched: Vec<String>,
}

/// How a word is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lexer {
    pub(crate) escape: char,
    /// Keep the quotes.
    pub(crate) raw_quotes: bool,
    /// Keep the escapes.
    pub(crate) raw_escapes: bool,
    /// Quotes are plain characters.
    pub(crate) plain_quotes: bool,
    /// Leave `$v` as it stands when `v` has no value.
    pub(crate) keep_unset: bool,
}

impl Lexer {
    pub(crate) fn new(escape: char) -> Lexer {
        Lexer { escape, raw_quotes: false, raw_escapes: false, plain_quotes: false, keep_unset: false }
    }

    /// Expands a word.
    ///
    /// # Errors
    /// Quotes or braces without end, a variable that is required, a bound that is passed.
    pub(crate) fn expand(
        &self,
        word: &str,
        variables: &dyn Variables,
        budget: &mut Budget,
    ) -> Result<Expanded, WordError> {
        let mut run = Run {
            lexer: *self,
            rest: word,
            variables,
            budget,
            depth: 0,
            raw_escapes: self.raw_escapes,
            unmatched: Vec::new(),
        };
        let output = run.until(None)?;
        Ok(Expanded { text: output.text, words: output.words, unmatched: run.unmatched })
    }
}

struct Run<'a> {
    lexer: Lexer,
    rest: &'a str,
    variables: &'a dyn Variables,
    budget: &'a mut Budget,
    depth: usize,
    raw_escapes: bool,
    unmatched: Vec<String>,
}

/// Text and the words it splits into.
#[derive(Default)]
struct Output {
    text: String,
    words: Vec<String>,
    word: String,
}

impl Output {
    /// Text that splits at spaces.
    fn split(&mut self, text: &str) {
        self.text.push_str(text);
        for c in text.chars() {
            if !c.is_whitespace() {
                self.word.push(c);
            } else if !self.word.is_empty() {
                self.words.push(std::mem::take(&mut self.word));
            }
        }
    }

    /// Text that does not.
    fn whole(&mut self, text: &str) {
        self.text.push_str(text);
        self.word.push_str(text);
    }

    fn end(mut self) -> Output {
        if !self.word.is_empty() {
            self.words.push(std::mem::take(&mut self.word));
        }
        self
    }
}

impl<'a> Run<'a> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    /// Takes characters while they fit.
    fn take_while(&mut self, fits: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !fits(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn check(&mut self, text: &str, added: usize) -> Result<(), WordError> {
        self.budget.spend(added)?;
        if text.len() > limits::EXPANSION { Err(WordError::Length) } else { Ok(()) }
    }

    /// Up to the character, which is taken too; up to the end without one.
    fn until(&mut self, stop: Option<char>) -> Result<Output, WordError> {
        let mut output = Output::default();
        while let Some(c) = self.peek() {
            let before = output.text.len();
            if stop == Some(c) {
                self.next();
                return Ok(output.end());
            }
            match c {
                '$' => output.split(&self.dollar()?),
                '<' => output.whole(&self.angle()),
                '\'' if !self.lexer.plain_quotes => output.whole(&self.single_quoted()?),
                '"' if !self.lexer.plain_quotes => output.whole(&self.double_quoted()?),
                _ if c == self.lexer.escape => {
                    self.next();
                    if self.raw_escapes {
                        output.whole(c.encode_utf8(&mut [0; 4]));
                    }
                    match self.next() {
                        Some(escaped) => output.whole(escaped.encode_utf8(&mut [0; 4])),
                        None => break,
                    }
                }
                _ => {
                    self.next();
                    output.split(c.encode_utf8(&mut [0; 4]));
                }
            }
            let added = output.text.len() - before;
            self.check(&output.text, added)?;
        }
        match stop {
            None => Ok(output.end()),
            Some('/') => Err(WordError::Unclosed("/")),
            Some(_) => Err(WordError::Unclosed("}")),
        }
    }

    /// `<<` holds the spaces behind it, so that a heredoc is one word.
    fn angle(&mut self) -> String {
        self.next();
        if self.peek() != Some('<') {
            return "<".into();
        }
        self.next();
        format!("<<{}", self.take_while(char::is_whitespace))
    }

    fn single_quoted(&mut self) -> Result<String, WordError> {
        self.next();
        let inner = self.take_while(|c| c != '\'');
        self.next().ok_or(WordError::Unclosed("single-quote"))?;
        Ok(if self.lexer.raw_quotes { format!("'{inner}'") } else { inner.to_owned() })
    }

    fn double_quoted(&mut self) -> Result<String, WordError> {
        self.next();
        let mut text = String::new();
        if self.lexer.raw_quotes {
            text.push('"');
        }
        loop {
            let before = text.len();
            match self.peek().ok_or(WordError::Unclosed("double-quote"))? {
                '"' => {
                    self.next();
                    if self.lexer.raw_quotes {
                        text.push('"');
                    }
                    return Ok(text);
                }
                '$' => text.push_str(&self.dollar()?),
                c if c == self.lexer.escape => {
                    self.next();
                    if self.raw_escapes {
                        text.push(c);
                    }
                    match self.peek() {
                        None => {}
                        Some(escaped) if escaped == '"' || escaped == '$' || escaped == c => {
                            self.next();
                            text.push(escaped);
                        }
                        Some(_) => text.push(c),
                    }
                }
                c => {
                    self.next();
                    text.push(c);
                }
            }
            let added = text.len() - before;
            self.check(&text, added)?;
        }
    }

    fn dollar(&mut self) -> Result<String, WordError> {
        self.next();
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".into());
            }
            return Ok(match self.value(name) {
                None if self.lexer.keep_unset => format!("${name}"),
                value => value.unwrap_or_default().to_owned(),
            });
        }
        self.next();
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(WordError::Depth);
        }
        let value = self.braces();
        self.depth -= 1;
        value
    }

    /// Behind `${`.
    fn braces(&mut self) -> Result<String, WordError> {
        match self.peek() {
            None => return Err(WordError::Syntax("missing '}'")),
            Some('{' | '}' | ':') => return Err(WordError::Syntax("bad substitution")),
            Some(_) => {}
        }
        let name = self.name();
        match self.next() {
            Some('}') => Ok(match self.value(name) {
                None if self.lexer.keep_unset => format!("${{{name}}}"),
                value => value.unwrap_or_default().to_owned(),
            }),
            Some(':') => match self.next() {
                Some(modifier @ ('#' | '%')) => Err(WordError::Modifier(format!(":{modifier}"))),
                Some(modifier) => self.modified(name, modifier, true),
                None => Err(WordError::Syntax("missing '}'")),
            },
            Some(modifier @ ('+' | '-' | '?' | '#' | '%')) => self.modified(name, modifier, false),
            Some('/') => self.replaced(name),
            Some(other) => Err(WordError::Modifier(other.to_string())),
            None => Err(WordError::Syntax("missing '}'")),
        }
    }

    fn modified(&mut self, name: &str, modifier: char, colon: bool) -> Result<String, WordError> {
        let word = self.operand(Some('}'), matches!(modifier, '#' | '%'), "missing '}'")?;
        // A variable with a word in its place is meant to be without a value at times.
        let value = if matches!(modifier, '-' | '+') { self.variables.value(name) } else { self.value(name) };
        let value = value.map(str::to_owned);
        let sign = if colon { format!(":{modifier}") } else { modifier.to_string() };
        if value.is_none() && self.lexer.keep_unset {
            return Ok(format!("${{{name}{sign}{word}}}"));
        }
        let unset = value.as_ref().is_none_or(|value| colon && value.is_empty());
        let missing = value.is_none();
        let value = value.unwrap_or_default();
        match modifier {
            '-' => Ok(if unset { word } else { value }),
            '+' => Ok(if unset { String::new() } else { word }),
            '?' if unset => {
                let standard = format!("is not allowed to be {}", if missing { "unset" } else { "empty" });
                let message = if word.is_empty() { standard } else { word };
                Err(WordError::Required { name: name.to_owned(), message })
            }
            '?' => Ok(value),
            '#' | '%' => {
                let (longest, pattern) = match word.strip_prefix(modifier) {
                    Some(rest) => (true, rest),
                    None => (false, word.as_str()),
                };
                self.budget.spend(value.len().saturating_mul(pattern.len() + 1))?;
                let pattern = WordPattern::parse(pattern)?;
                Ok(match modifier {
                    '#' => pattern.without_prefix(&value, longest),
                    _ => pattern.without_suffix(&value, longest),
                })
            }
            _ => Err(WordError::Modifier(sign)),
        }
    }

    fn replaced(&mut self, name: &str) -> Result<String, WordError> {
        let all = self.peek() == Some('/');
        if all {
            self.next();
        }
        let pattern = self.operand(Some('/'), true, "missing '/' in ${}")?;
        let replacement = self.operand(Some('}'), true, "missing '}'")?;
        let value = self.value(name);
        if value.is_none() && self.lexer.keep_unset {
            return Ok(format!("${{{name}/{pattern}/{replacement}}}"));
        }
        let value = value.unwrap_or_default();
        self.budget.spend(value.len().saturating_mul(pattern.len() + 1))?;
        let text = WordPattern::parse(&pattern)?.replace(value, &replacement, all)?;
        self.check(&text, text.len())?;
        Ok(text)
    }

    /// A word within braces. An end that comes too early has one error, wherever it was noticed.
    fn operand(&mut self, stop: Option<char>, raw: bool, missing: &'static str) -> Result<String, WordError> {
        let outer = std::mem::replace(&mut self.raw_escapes, raw);
        let result = self.until(stop);
        self.raw_escapes = outer;
        match result {
            Ok(output) => Ok(output.text),
            Err(error @ (WordError::Depth | WordError::Length | WordError::Work)) => Err(error),
            Err(_) if self.rest.is_empty() => Err(WordError::Syntax(missing)),
            Err(error) => Err(error),
        }
    }

    fn name(&mut self) -> &'a str {
        match self.peek() {
            Some(c) if c.is_ascii_digit() => self.take_while(|c| c.is_ascii_digit()),
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => {
                let (name, rest) = self.rest.split_at(1);
                self.rest = rest;
                name
            }
            _ => self.take_while(|c| c.is_alphanumeric() || c == '_'),
        }
    }

    fn value(&mut self, name: &str) -> Option<&'a str> {
        let value = self.variables.value(name);
        if value.is_none() && !self.unmatched.iter().any(|seen| seen == name) && self.unmatched.len() < DEPTH {
            self.unmatched.push(name.to_owned());
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pairs(&'static [(&'static str, &'static str)]);

    impl Variables for Pairs {
        fn value(&self, name: &str) -> Option<&str> {
            self.0.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
        }
    }

    const ENV: Pairs = Pairs(&[
        ("A", "arg"),
        ("EMPTY", ""),
        ("P", "/usr/local/lib.tar.gz"),
        ("T", "two words"),
        ("STARS", "a*b*c"),
        ("Ü", "umlaut"),
    ]);

    fn expand(word: &str) -> Result<String, String> {
        Lexer::new('\\').expand(word, &ENV, &mut Budget::new()).map(|e| e.text).map_err(|e| e.to_string())
    }

    #[test]
    fn words_become_text() {
        for (word, want) in [
            ("$A", "arg"),
            ("${A}b", "argb"),
            ("$Ab", ""),
            ("a$", "a$"),
            ("$Ü", "umlaut"),
            (r"\$A", "$A"),
            (r"a\ b", "a b"),
            (r#""q $A""#, "q arg"),
            ("'s $A'", "s $A"),
            (r#"'sq "dq"'"#, r#"sq "dq""#),
            (r#""a\"b\$c\\d\e""#, r#"a"b$c\d\e"#),
            ("${U:-w}${U-w}", "ww"),
            ("${EMPTY:-w}${EMPTY-w}", "w"),
            ("${A:+w}${A+w}${U+w}${EMPTY:+w}", "ww"),
            ("${EMPTY+w}", "w"),
            ("${A:?no}", "arg"),
            ("${U:-${A}x}", "argx"),
            ("${U:-'q}'}", "q}"),
            ("${P#*/}|${P##*/}", "usr/local/lib.tar.gz|lib.tar.gz"),
            ("${P%.*}|${P%%.*}", "/usr/local/lib.tar|/usr/local/lib"),
            ("${P/usr/opt}", "/opt/local/lib.tar.gz"),
            ("${P//\\//-}", "-usr-local-lib.tar.gz"),
            ("${P/l*l/X}", "/usr/Xib.tar.gz"),
            (r"${STARS//\*/+}", "a+b+c"),
            ("${STARS#a?}", "b*c"),
            ("${A%g}${A%x}", "ararg"),
            ("$1$?", ""),
            ("${T}", "two words"),
        ] {
            assert_eq!(expand(word).as_deref(), Ok(want), "{word}");
        }
    }

    #[test]
    fn mistakes_have_buildkits_words() {
        for (word, want) in [
            ("'a", "unexpected end of statement while looking for matching single-quote"),
            ("\"a", "unexpected end of statement while looking for matching double-quote"),
            ("${", "syntax error: missing '}'"),
            ("${}", "syntax error: bad substitution"),
            ("${:x}", "syntax error: bad substitution"),
            ("${A", "syntax error: missing '}'"),
            ("${A:-", "syntax error: missing '}'"),
            ("${A/x}", "syntax error: missing '/' in ${}"),
            ("${A^}", "unsupported modifier (^) in substitution"),
            ("${A:*}", "unsupported modifier (:*) in substitution"),
            ("${A:##x}", "unsupported modifier (:#) in substitution"),
            ("${A:%x}", "unsupported modifier (:%) in substitution"),
            ("${A=x}", "unsupported modifier (=) in substitution"),
            ("${U?}", "U: is not allowed to be unset"),
            ("${EMPTY:?}", "EMPTY: is not allowed to be empty"),
            ("${U:?give it}", "U: give it"),
            (r"${A#\x}", r"invalid pattern (\x) in substitution: invalid escape '\x'"),
        ] {
            assert_eq!(expand(word), Err(want.to_owned()), "{word}");
        }
    }

    #[test]
    fn options_keep_what_they_say() {
        let env = Pairs(&[("A", "x")]);
        let lexer = Lexer { raw_quotes: true, keep_unset: true, ..Lexer::new('\\') };
        let text = |word: &str| lexer.expand(word, &env, &mut Budget::new()).unwrap().text;
        assert_eq!(text(r#"echo "$A" '$A' $U ${U} ${U:-w} \"q"#), r#"echo "x" '$A' $U ${U} ${U:-w} "q"#);
        let lexer = Lexer { plain_quotes: true, ..Lexer::new('\\') };
        assert_eq!(lexer.expand(r#"it's "$A""#, &env, &mut Budget::new()).unwrap().text, r#"it's "x""#);
        let words = Lexer::new('\\').expand(r#" a  "b c"$T ${X:-1 2}<< E$Y"#, &ENV, &mut Budget::new()).unwrap();
        assert_eq!(words.words, ["a", "b ctwo", "words", "1", "2<< E"]);
        assert_eq!(words.unmatched, ["Y"], "a variable with a word in its place is not missing");
        assert_eq!(Lexer::new('`').expand(r"C:\$A`$", &ENV, &mut Budget::new()).unwrap().text, r"C:\arg$");
    }

    #[test]
    fn bounds_hold() {
        let nested = |n: usize| format!("{}x{}", "${U:-".repeat(n), "}".repeat(n));
        assert_eq!(expand(&nested(64)).as_deref(), Ok("x"));
        assert_eq!(expand(&nested(10_000)), Err(WordError::Depth.to_string()));
        assert_eq!(expand(&"x".repeat(limits::EXPANSION + 1)), Err(WordError::Length.to_string()));
        let mut small = Budget(10);
        let thrown_away = "${A:+${A}}${U:+${A}}${U:+${A}}${U:+${A}}";
        assert_eq!(Lexer::new('\\').expand(thrown_away, &ENV, &mut small), Err(WordError::Work));
    }
}
