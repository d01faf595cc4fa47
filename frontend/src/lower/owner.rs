//! `user[:group]` and permissions.
//!
//! A user made of digits is a number and nothing else: never looked up as a name, never wrapped.

use rbuild_graph::ops::{ChangeOwner, ModeChange, Owner};

use crate::Diagnostic;

/// Reads `user`, `user:group` or `:group`; `None` when empty. A number without a group is its own group; a name has
/// the group of its entry.
pub(crate) fn parse(text: &str) -> Result<Option<ChangeOwner>, Diagnostic> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let user = one(user)?;
    let group = match (one(group.unwrap_or_default())?, &user) {
        (Some(group), _) => Some(group),
        (None, Some(Owner::Id(id))) => Some(Owner::Id(*id)),
        (None, _) => None,
    };
    if user.is_none() && group.is_none() {
        return Ok(None);
    }
    Ok(Some(ChangeOwner { user, group, names_from: None }))
}

fn one(text: &str) -> Result<Option<Owner>, Diagnostic> {
    if text.is_empty() {
        return Ok(None);
    }
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(Some(Owner::Name(text.to_owned())));
    }
    // The highest number means "no change" to the kernel.
    match text.parse::<u32>() {
        Ok(id) if id != u32::MAX => Ok(Some(Owner::Id(id))),
        _ => Err(Diagnostic::error(format!("user or group id {text} is out of range")).expected("0 to 4294967294")),
    }
}

/// Reads octal digits, or clauses as chmod takes them.
pub(crate) fn mode(text: &str) -> Result<ModeChange, Diagnostic> {
    if let Ok(bits) = u32::from_str_radix(text, 8)
        && bits <= 0o7777
        && !text.starts_with('+')
    {
        return Ok(ModeChange::Bits(bits));
    }
    if !text.is_empty() && text.split(',').all(is_clause) {
        return Ok(ModeChange::Symbolic(text.to_owned()));
    }
    let message = format!("invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777");
    Err(Diagnostic::error(message).expected("octal digits, or clauses such as u=rwX,go=rX"))
}

/// `[ugoa]*([-+=]([rwxXst]*|[ugo]))+`
fn is_clause(text: &str) -> bool {
    let actions = text.trim_start_matches(['u', 'g', 'o', 'a']);
    if !actions.starts_with(['-', '+', '=']) {
        return false;
    }
    actions
        .split(['-', '+', '='])
        .skip(1)
        .all(|permissions| matches!(permissions, "u" | "g" | "o") || permissions.chars().all(|c| "rwxXst".contains(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners() {
        let id = |n| Some(Owner::Id(n));
        let name = |n: &str| Some(Owner::Name(n.into()));
        for (text, user, group) in [
            ("www-data", name("www-data"), None),
            ("a:b", name("a"), name("b")),
            ("1234", id(1234), id(1234)),
            ("1:2", id(1), id(2)),
            (":g", None, name("g")),
            ("007", id(7), id(7)),
        ] {
            let owner = parse(text).unwrap().unwrap();
            assert_eq!((owner.user, owner.group), (user, group), "{text}");
        }
        assert_eq!(parse(""), Ok(None));
        for bad in ["4294967295", "4294967296", "0:99999999999999999999"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn modes() {
        assert_eq!(mode("0755"), Ok(ModeChange::Bits(0o755)));
        for good in ["u=rwX,go=rX", "+x", "a-w", "u+s,g=u", "=", "u=rw-x"] {
            assert_eq!(mode(good), Ok(ModeChange::Symbolic(good.into())), "{good}");
        }
        for bad in ["", "99x", "10000", "u", "rwx", "u=q", "u=rw,,g=r", "+755"] {
            assert!(mode(bad).is_err(), "{bad}");
        }
    }
}
