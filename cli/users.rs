//! `--userns`, `--uidmap`, `--gidmap`: whose users a container has.
//!
//! Docker knows `host`, and remaps every other container of a daemon that was told to; podman's `auto` gives each container
//! ids that no other has. `remap` says for one container what docker says for all.

use rbuild_engine::containers::{IdMaps, IdRange, UserNamespace};

use crate::error::CliError;
use crate::isolation_options::Mode;

/// The user whose ids are meant where none is named, by docker's name for it.
const DEFAULT_USER: &str = "dockremap";

/// Checks the word of `--userns`.
///
/// # Errors
/// It is none, in docker's words; a mode of others that is not done here, by name.
pub fn mode(text: &str) -> Result<Mode, String> {
    parse(text)?;
    Ok(Mode(text.to_owned()))
}

/// `INSIDE:OUTSIDE:N`; without the number one id.
///
/// # Errors
/// It is no such thing.
pub fn range(text: &str) -> Result<IdRange, String> {
    let number = |text: &str| text.parse::<u32>().map_err(|_| format!("invalid id mapping: {text:?} is not a number"));
    match text.split(':').collect::<Vec<_>>()[..] {
        [inside, outside] => Ok(IdRange { inside: number(inside)?, outside: number(outside)?, length: 1 }),
        [inside, outside, length] => {
            Ok(IdRange { inside: number(inside)?, outside: number(outside)?, length: number(length)? })
        }
        _ => Err(format!("invalid id mapping: {text:?}: it should be INSIDE:OUTSIDE:N")),
    }
}

/// What the options mean beside each other. `default` is the machine's wish for who does not say.
///
/// # Errors
/// Maps beside a mode that has its own; maps that the kernel would not take.
pub fn wanted(
    asked: &str,
    users: &[IdRange],
    groups: &[IdRange],
    default: Option<&str>,
) -> Result<UserNamespace, CliError> {
    let parsed = parse(asked).map_err(CliError::new)?;
    if !users.is_empty() || !groups.is_empty() {
        if !matches!(parsed, Asked::Nothing | Asked::Private) {
            return Err(CliError::new(format!("cannot specify both --userns={asked} and --uidmap or --gidmap")));
        }
        let [users, groups] = [(users, groups), (groups, users)].map(|(own, other)| match own.is_empty() {
            true => other.to_vec(),
            false => own.to_vec(),
        });
        let maps =
            IdMaps::new(users, groups).map_err(|e| CliError::new(format!("invalid --uidmap or --gidmap: {e}")))?;
        return Ok(UserNamespace::Maps(maps));
    }
    Ok(match (parsed, default) {
        (Asked::This(mode), _) => mode,
        (Asked::Nothing, None) => UserNamespace::Host,
        (Asked::Nothing | Asked::Private, Some(word)) => remap(word),
        (Asked::Private, None) => remap("default"),
    })
}

enum Asked {
    Nothing,
    /// A user namespace, whichever.
    Private,
    This(UserNamespace),
}

fn parse(text: &str) -> Result<Asked, String> {
    let (word, rest) = text.split_once(':').map_or((text, None), |(word, rest)| (word, Some(rest)));
    Ok(match (word, rest) {
        ("", None) => Asked::Nothing,
        ("private", None) => Asked::Private,
        ("host", None) => Asked::This(UserNamespace::Host),
        ("remap", None) => Asked::This(remap("default")),
        ("remap", Some(who)) if !who.is_empty() && !who.starts_with(':') && !who.ends_with(':') => {
            Asked::This(remap(who))
        }
        ("auto", rest) => Asked::This(auto(rest.unwrap_or_default())?),
        (mode @ ("keep-id" | "nomap" | "ns" | "container"), _) => {
            return Err(format!(
                "the user namespace mode {mode} is not supported; there are host, remap, auto and private"
            ));
        }
        _ => return Err("invalid USER mode".to_owned()),
    })
}

/// `default`, `USER` or `USER:GROUP`.
fn remap(who: &str) -> UserNamespace {
    let (user, group) = who.split_once(':').unwrap_or((who, who));
    let name = |word: &str| if word == "default" { DEFAULT_USER.to_owned() } else { word.to_owned() };
    UserNamespace::Remap { user: name(user), group: name(group) }
}

fn auto(options: &str) -> Result<UserNamespace, String> {
    let (mut size, mut users, mut groups) = (None, Vec::new(), Vec::new());
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", number)) => {
                let number = number.parse::<u32>().ok().filter(|number| *number > 0);
                size = Some(number.ok_or_else(|| format!("invalid USER mode: {option:?} is no number of ids"))?);
            }
            Some(("uidmapping", text)) => users.push(range(text)?),
            Some(("gidmapping", text)) => groups.push(range(text)?),
            _ => return Err(format!("invalid USER mode: unknown option {option:?} of auto")),
        }
    }
    Ok(UserNamespace::Auto { size, users, groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remapped(user: &str, group: &str) -> UserNamespace {
        UserNamespace::Remap { user: user.into(), group: group.into() }
    }

    #[test]
    fn modes_of_users() {
        let of = |asked, default| wanted(asked, &[], &[], default).map_err(|e| e.message);
        for (asked, default, want) in [
            ("", None, UserNamespace::Host),
            ("", Some("default"), remapped("dockremap", "dockremap")),
            ("", Some("ann:staff"), remapped("ann", "staff")),
            ("host", Some("default"), UserNamespace::Host),
            ("remap", Some("ann"), remapped("dockremap", "dockremap")),
            ("remap:ann", None, remapped("ann", "ann")),
            ("remap:1000:100", None, remapped("1000", "100")),
            ("private", None, remapped("dockremap", "dockremap")),
            ("private", Some("ann"), remapped("ann", "ann")),
            ("auto", None, UserNamespace::Auto { size: None, users: Vec::new(), groups: Vec::new() }),
            (
                "auto:size=99,uidmapping=0:1000:1",
                None,
                UserNamespace::Auto {
                    size: Some(99),
                    users: vec![IdRange { inside: 0, outside: 1000, length: 1 }],
                    groups: Vec::new(),
                },
            ),
        ] {
            assert_eq!(of(asked, default), Ok(want), "{asked}");
        }
        for (asked, words) in [
            ("mine", "invalid USER mode"),
            ("host:x", "invalid USER mode"),
            ("remap:", "invalid USER mode"),
            ("auto:size=0", "no number of ids"),
            ("auto:colour=red", "unknown option"),
            ("auto:uidmapping=1", "INSIDE:OUTSIDE:N"),
            ("keep-id", "the user namespace mode keep-id is not supported"),
        ] {
            let message = of(asked, None).expect_err(asked);
            assert!(message.contains(words), "{asked}: {message}");
        }
    }

    #[test]
    fn maps_that_are_spelled_out() {
        let map = [range("0:100000:1000").unwrap(), range("1000:5").unwrap()];
        let both = UserNamespace::Maps(IdMaps::new(map.to_vec(), map.to_vec()).unwrap());
        assert_eq!(wanted("", &map, &[], Some("default")).unwrap(), both);
        assert_eq!(wanted("private", &[], &map, None).unwrap(), both);
        assert!(wanted("auto", &map, &[], None).unwrap_err().message.contains("cannot specify both"));
        let twice = [map[0], map[0]];
        assert!(wanted("", &twice, &[], None).unwrap_err().message.contains("mapped twice"));
        assert!(range("a:b:c").is_err() && range("1").is_err());
    }
}
