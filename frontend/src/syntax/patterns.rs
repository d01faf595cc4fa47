//! Patterns within `${v#p}` and `${v/p/r}`: `*`, `?` and escapes, no classes, and no character class syntax.
//!
//! Matched by keeping the set of live positions, so time is the product of pattern and value, which callers charge to
//! the [`Budget`](super::words::Budget). As in BuildKit, `*` and `?` stop at a line's end.

use super::words::WordError;

/// A compiled pattern.
pub(super) struct WordPattern(Vec<Piece>);

#[derive(Clone, Copy, PartialEq)]
enum Piece {
    Char(char),
    Any,
    Star,
}

impl WordPattern {
    pub(super) fn parse(text: &str) -> Result<WordPattern, WordError> {
        let mut pieces = Vec::with_capacity(text.len());
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            pieces.push(match c {
                '*' => Piece::Star,
                '?' => Piece::Any,
                // The escape is the substitution's, not the pattern's.
                '\\' if matches!(chars.peek(), Some('}' | '/')) => continue,
                '\\' => match chars.next() {
                    Some(escaped @ ('*' | '?' | '\\')) => Piece::Char(escaped),
                    other => {
                        let escaped = other.map(String::from).unwrap_or_default();
                        return Err(WordError::Pattern { pattern: text.to_owned(), escaped });
                    }
                },
                _ => Piece::Char(c),
            });
        }
        Ok(WordPattern(pieces))
    }

    pub(super) fn without_prefix(&self, value: &str, longest: bool) -> String {
        let chars: Vec<char> = value.chars().collect();
        let end = self.find(&chars, 0, true, longest).map_or(0, |(_, end)| end);
        chars[end..].iter().collect()
    }

    pub(super) fn without_suffix(&self, value: &str, longest: bool) -> String {
        let reversed = WordPattern(self.0.iter().rev().copied().collect());
        let chars: Vec<char> = value.chars().rev().collect();
        let end = reversed.find(&chars, 0, true, longest).map_or(0, |(_, end)| end);
        chars[end..].iter().rev().collect()
    }

    /// The first match, or all of them, replaced.
    pub(super) fn replace(&self, value: &str, replacement: &str, all: bool) -> Result<String, WordError> {
        let chars: Vec<char> = value.chars().collect();
        let mut text = String::with_capacity(value.len());
        let (mut at, mut last_end) = (0, None);
        while let Some((start, end)) = self.find(&chars, at, false, true) {
            text.extend(&chars[at..start]);
            // An empty match right behind a match is none.
            if start != end || last_end != Some(start) {
                text.push_str(replacement);
            }
            (at, last_end) = (end, Some(end));
            if start == end {
                match chars.get(end) {
                    Some(c) => text.push(*c),
                    None => break,
                }
                at += 1;
            }
            if !all {
                break;
            }
            if text.len() > rbuild_oci::limits::EXPANSION {
                return Err(WordError::Length);
            }
        }
        text.extend(chars.get(at..).unwrap_or_default());
        Ok(text)
    }

    /// The leftmost match from `from` on, and of those at that place the longest or the shortest.
    fn find(&self, chars: &[char], from: usize, anchored: bool, longest: bool) -> Option<(usize, usize)> {
        let end = self.0.len();
        // By position in the pattern, where the leftmost match that got there began.
        let mut live: Vec<Option<usize>> = vec![None; end + 1];
        let mut best: Option<(usize, usize)> = None;
        for at in from..=chars.len() {
            if best.is_none() && (!anchored || at == from) {
                live[0] = earlier(live[0], at);
            }
            for i in 0..end {
                if let Some(start) = live[i].filter(|_| self.0[i] == Piece::Star) {
                    live[i + 1] = earlier(live[i + 1], start);
                }
            }
            if let Some(start) = live[end].filter(|start| best.is_none_or(|(best, _)| *start <= best)) {
                best = Some((start, at));
                if !longest {
                    return best;
                }
            }
            let Some(c) = chars.get(at) else { break };
            let mut next = vec![None; end + 1];
            let useful = |start: &usize| best.is_none_or(|(best, _)| *start <= best);
            for (i, piece) in self.0.iter().enumerate() {
                let Some(start) = live[i].filter(useful) else { continue };
                let to = match piece {
                    Piece::Char(own) if own == c => i + 1,
                    Piece::Any if *c != '\n' => i + 1,
                    Piece::Star if *c != '\n' => i,
                    _ => continue,
                };
                next[to] = earlier(next[to], start);
            }
            live = next;
            if (best.is_some() || anchored) && live.iter().all(Option::is_none) {
                break;
            }
        }
        best
    }
}

fn earlier(old: Option<usize>, new: usize) -> Option<usize> {
    Some(old.map_or(new, |old| old.min(new)))
}
