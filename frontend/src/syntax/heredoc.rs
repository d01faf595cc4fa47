//! `<<EOF`: the word that opens a heredoc.

use super::words::{Budget, Lexer, NoVariables, WordError};

/// A heredoc of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heredoc {
    /// The word that ends it; also the name of the file.
    pub(crate) name: String,
    /// Whether variables in it count: no part of the word is quoted.
    pub(crate) expand: bool,
    /// `<<-`: tabs at the start of lines go.
    pub(crate) chomp: bool,
    /// With line ends, as written.
    pub(crate) content: String,
}

impl Heredoc {
    /// Reads a word such as `<<EOF`, `3<<-"EOF"` or `<< 'EOF'`; `None` when it is no heredoc.
    ///
    /// # Errors
    /// Quotes without end.
    pub(crate) fn open(word: &str) -> Result<Option<Heredoc>, WordError> {
        let digits = word.trim_start_matches(|c: char| c.is_ascii_digit());
        let Some(rest) = digits.strip_prefix("<<") else { return Ok(None) };
        let (chomp, rest) = match rest.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let rest = rest.trim_start();
        if rest.is_empty() || rest.contains('<') {
            return Ok(None);
        }
        let lexer = Lexer { keep_unset: true, ..Lexer::new('\\') };
        let mut budget = Budget::new();
        let words = lexer.expand(rest, &NoVariables, &mut budget)?.words;
        let raw = Lexer { raw_quotes: true, ..lexer }.expand(rest, &NoVariables, &mut budget)?.words;
        let ([name], [raw]) = (&words[..], &raw[..]) else { return Ok(None) };
        let quotes = |text: &str| text.matches(['\'', '"']).count();
        let expand = quotes(name) == quotes(raw);
        Ok(Some(Heredoc { name: name.clone(), expand, chomp, content: String::new() }))
    }

    /// All heredocs that a line opens, in order.
    ///
    /// # Errors
    /// As [`Heredoc::open`].
    pub(crate) fn all(line: &str) -> Result<Vec<Heredoc>, WordError> {
        let lexer = Lexer { raw_quotes: true, raw_escapes: true, keep_unset: true, ..Lexer::new('\\') };
        // A line with a quote that does not end is the shell's to judge, and has no heredoc here.
        let Ok(expanded) = lexer.expand(line, &NoVariables, &mut Budget::new()) else { return Ok(Vec::new()) };
        expanded.words.iter().filter_map(|word| Heredoc::open(word).transpose()).collect()
    }

    /// The text of the file: without leading tabs if so opened.
    pub(crate) fn text(&self) -> String {
        if !self.chomp {
            return self.content.clone();
        }
        self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_open_heredocs() {
        for (word, want) in [
            ("<<EOF", Some(("EOF", true, false))),
            ("<<-EOF", Some(("EOF", true, true))),
            ("3<<EOF", Some(("EOF", true, false))),
            ("<<\"EOF\"", Some(("EOF", false, false))),
            ("<<'E F'", Some(("E F", false, false))),
            ("<< E", Some(("E", true, false))),
            ("<<\\EOF", Some(("EOF", true, false))),
            ("<<", None),
            ("<<<x", None),
            ("a<<x", None),
        ] {
            let got = Heredoc::open(word).unwrap();
            let got = got.as_ref().map(|h| (h.name.as_str(), h.expand, h.chomp));
            assert_eq!(got, want, "{word}");
        }
        let names = |line: &str| Heredoc::all(line).unwrap().into_iter().map(|h| h.name).collect::<Vec<_>>();
        assert_eq!(names("RUN <<A cat 3<<'B' && echo $((1<<2)) '<<C'"), ["A", "B"]);
        assert_eq!(names("COPY <<a << b /d/"), ["a", "b"]);
        assert!(names("RUN echo '<<A").is_empty());
    }
}
