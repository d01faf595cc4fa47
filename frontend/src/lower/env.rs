//! Variables in the order they were set.

use std::collections::HashMap;

use crate::syntax::words::Variables;

/// An environment: order as set first, value as set last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Env {
    entries: Vec<(String, String)>,
    index: HashMap<String, usize>,
    /// Bytes of all names and values.
    bytes: usize,
}

impl Env {
    /// From `NAME=value` strings.
    pub(crate) fn of(entries: &[String]) -> Env {
        let mut env = Env::default();
        for entry in entries {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            env.set(name, value);
        }
        env
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        match self.index.get(name) {
            Some(at) => {
                let old = &mut self.entries[*at].1;
                self.bytes = self.bytes - old.len() + value.len();
                value.clone_into(old);
            }
            None => {
                self.index.insert(name.to_owned(), self.entries.len());
                self.entries.push((name.to_owned(), value.to_owned()));
                self.bytes += name.len() + value.len() + 1;
            }
        }
    }

    pub(crate) fn strings(&self) -> Vec<String> {
        self.entries.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Variables for Env {
    fn value(&self, name: &str) -> Option<&str> {
        self.index.get(name).map(|at| self.entries[*at].1.as_str())
    }
}
