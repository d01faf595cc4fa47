//! Filters over the build cache, in buildx's words.

use super::cache::{CacheEntry, CacheKind};
use crate::error::Error;

/// One condition: `type=exec.cachemount`, `id~=ab`, `shared`, `description!=x`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheFilter {
    field: Field,
    relation: Relation,
    value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Id,
    Parents,
    Type,
    Description,
    InUse,
    Mutable,
    Immutable,
    Shared,
    Private,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Is,
    IsNot,
    Contains,
}

impl CacheFilter {
    /// Reads `name`, `name=value`, `name==value`, `name!=value` or `name~=value`. An `id` matches by any part of it.
    ///
    /// # Errors
    /// A name that nothing has, or a value that is neither true nor false where it should be.
    pub fn parse(text: &str) -> Result<CacheFilter, Error> {
        let (name, relation, value) = match text.split_once('=') {
            None => (text, Relation::Is, "true"),
            Some((name, value)) => match (name.strip_suffix('!'), name.strip_suffix('~')) {
                (Some(name), _) => (name, Relation::IsNot, value),
                (_, Some(name)) => (name, Relation::Contains, value),
                _ => (name, Relation::Is, value.strip_prefix('=').unwrap_or(value)),
            },
        };
        let field = match name {
            "id" => Field::Id,
            "parents" | "parent" => Field::Parents,
            "type" => Field::Type,
            "description" => Field::Description,
            "inuse" => Field::InUse,
            "mutable" => Field::Mutable,
            "immutable" => Field::Immutable,
            "shared" => Field::Shared,
            "private" => Field::Private,
            _ => return Err(Error::invalid(format!("invalid filter '{name}'"))),
        };
        let is_text = matches!(field, Field::Id | Field::Parents | Field::Type | Field::Description);
        let value = match value {
            "" | "1" if !is_text => "true",
            "0" if !is_text => "false",
            "true" | "false" => value,
            _ if is_text => value,
            _ => return Err(Error::invalid(format!("invalid filter '{text}': {name} is true or false"))),
        };
        if relation == Relation::Contains && value.contains(['*', '+', '?', '(', '[', '|', '\\', '^', '$', '{']) {
            return Err(Error::invalid(format!("invalid filter '{text}': only plain text can be searched for")));
        }
        // As buildx has it: an id is searched for.
        let relation = if field == Field::Id && relation == Relation::Is { Relation::Contains } else { relation };
        Ok(CacheFilter { field, relation, value: value.to_owned() })
    }

    /// Whether an entry is of this kind.
    pub fn of_kind(kind: CacheKind) -> CacheFilter {
        CacheFilter { field: Field::Type, relation: Relation::Is, value: kind.name().to_owned() }
    }

    pub fn matches(&self, entry: &CacheEntry) -> bool {
        let flag = |value: bool| if value { "true" } else { "false" };
        let found: Vec<&str> = match self.field {
            Field::Id => vec![&entry.id],
            Field::Parents => entry.parents.iter().map(String::as_str).collect(),
            Field::Type => vec![entry.kind.name()],
            Field::Description => vec![&entry.description],
            Field::InUse => vec![flag(entry.in_use)],
            Field::Mutable => vec![flag(entry.mutable)],
            Field::Immutable => vec![flag(!entry.mutable)],
            Field::Shared => vec![flag(entry.shared)],
            Field::Private => vec![flag(!entry.shared)],
        };
        match self.relation {
            Relation::Is => found.contains(&self.value.as_str()),
            Relation::IsNot => !found.contains(&self.value.as_str()),
            Relation::Contains => found.iter().any(|text| text.contains(&self.value)),
        }
    }
}
