//! Showing what a fix changes, as a unified diff that `patch` takes.
//!
//! No general comparison of texts: a fix replaces parts of lines and takes out empty ones, so which line became which
//! is known without a search.

use crate::terminal::clean;

/// Lines of context around what changes.
const AROUND: usize = 3;

/// A line of the old text, and what became of it.
struct Row<'a> {
    old: &'a str,
    /// `None`: it is gone.
    new: Option<&'a str>,
}

impl Row<'_> {
    fn changes(&self) -> bool {
        self.new != Some(self.old)
    }
}

/// The difference between a text and the same after its fixes; empty when there is none.
pub fn diff(name: &str, old: &str, new: &str) -> String {
    let mut lines = new.split_inclusive('\n').peekable();
    let row = |old| {
        // Fixes add no line and empty none, so an empty line with no counterpart was taken out.
        let is_gone = is_empty(old) && lines.peek().is_none_or(|new| !is_empty(new));
        Row { old, new: if is_gone { None } else { lines.next() } }
    };
    let rows: Vec<Row<'_>> = old.split_inclusive('\n').map(row).collect();
    let mut text = String::new();
    let mut next = 0;
    while let Some(first) = (next..rows.len()).find(|&at| rows[at].changes()) {
        let mut last = first;
        while let Some(further) = (last + 1..rows.len().min(last + 2 * AROUND + 2)).find(|&at| rows[at].changes()) {
            last = further;
        }
        let (start, end) = (first.saturating_sub(AROUND), rows.len().min(last + AROUND + 1));
        let gone = |rows: &[Row<'_>]| rows.iter().filter(|row| row.new.is_none()).count();
        let (count, taken) = (end - start, gone(&rows[start..end]));
        let line = start + 1;
        text.push_str(&format!("@@ -{line},{count} +{},{} @@\n", line - gone(&rows[..start]), count - taken));
        hunk(&rows[start..end], &mut text);
        next = end;
    }
    if text.is_empty() { text } else { format!("--- {0}\n+++ {0}\n{text}", clean(name)) }
}

fn is_empty(line: &str) -> bool {
    line.trim().is_empty()
}

/// Lines that change together stand together, the old ones first.
fn hunk(rows: &[Row<'_>], text: &mut String) {
    for block in rows.chunk_by(|a, b| a.changes() == b.changes()) {
        if !block[0].changes() {
            block.iter().for_each(|row| push(' ', row.old, text));
            continue;
        }
        block.iter().for_each(|row| push('-', row.old, text));
        block.iter().filter_map(|row| row.new).for_each(|new| push('+', new, text));
    }
}

fn push(mark: char, line: &str, text: &mut String) {
    text.push(mark);
    text.push_str(line);
    if !line.ends_with('\n') {
        text.push_str("\n\\ No newline at end of file\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_is_shown_with_its_neighbours() {
        let old = "1\n2\n3\n4\na \\\n\n\nb\n5\n6\n7\n8\n9\n10\n11\n\nx";
        let new = "1\n2\n3\n4\nA \\\nb\n5\n6\n7\n8\n9\n10\n11\n\nX";
        let want = "--- D\n+++ D\n@@ -2,9 +2,7 @@\n 2\n 3\n 4\n-a \\\n-\n-\n+A \\\n b\n 5\n 6\n@@ -14,4 +12,4 @@\n 10\n 11\n \n-x\n\
                    \\ No newline at end of file\n+X\n\\ No newline at end of file\n";
        assert_eq!(diff("D", old, new), want);
        assert_eq!(diff("D", old, old), "");
    }

    #[test]
    fn near_changes_are_one_hunk() {
        let shown = diff("D", "a\n1\n2\n3\n4\n5\n6\nb\n", "A\n1\n2\n3\n4\n5\n6\nB\n");
        assert_eq!(shown.matches("@@ -").count(), 1, "{shown}");
        let shown = diff("D", "a\n1\n2\n3\n4\n5\n6\n7\nb\n", "A\n1\n2\n3\n4\n5\n6\n7\nB\n");
        assert_eq!(shown.matches("@@ -").count(), 2, "{shown}");
    }
}
