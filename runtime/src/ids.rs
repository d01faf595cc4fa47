//! Ids of a user namespace: which users and groups of the machine those inside are, the ranges that `/etc/subuid` and
//! `/etc/subgid` give to a user for it, and finding a range that nobody has.

use serde::{Deserialize, Serialize};

/// The kernel's own for who is not mapped.
const NOBODY: u32 = 65534;
/// Lines the kernel takes in one map.
const MOST_RANGES: usize = 340;

/// `length` ids in a row: those from `inside` on are the machine's from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    pub inside: u32,
    pub outside: u32,
    pub length: u32,
}

/// Ids of the machine that somebody may use: the first, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    pub first: u32,
    pub length: u32,
}

/// The users and groups of one user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IdMaps {
    pub users: Vec<IdRange>,
    pub groups: Vec<IdRange>,
}

/// Why there is no such map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("an id range without ids")]
    Empty,
    #[error("the ids from {0} on do not fit into 32 bits")]
    TooHigh(u32),
    #[error("the id {0} is mapped twice")]
    Twice(u32),
    #[error("more than {MOST_RANGES} id ranges")]
    TooMany,
    #[error("the id 0 inside is not mapped: the container would have no root")]
    NoRoot,
    #[error("no {wanted} ids in a row are free")]
    NoneFree { wanted: u32 },
}

impl IdMaps {
    /// Each user inside as the user of its number plus something, and the groups likewise.
    ///
    /// # Errors
    /// What the kernel would refuse: overlapping ranges, too many of them; a map without root.
    pub fn new(users: Vec<IdRange>, groups: Vec<IdRange>) -> Result<Self, IdError> {
        for map in [&users, &groups] {
            check(map)?;
        }
        Ok(Self { users, groups })
    }

    /// Which user of the machine one inside is; `None` for nobody.
    pub fn user(&self, inside: u32) -> Option<u32> {
        outside(&self.users, inside)
    }

    pub fn group(&self, inside: u32) -> Option<u32> {
        outside(&self.groups, inside)
    }

    /// Owner and group of a file as the machine has them, for those that it has inside.
    pub fn owner_outside(&self, (uid, gid): (u32, u32)) -> (u32, u32) {
        (self.user(uid).unwrap_or(NOBODY), self.group(gid).unwrap_or(NOBODY))
    }

    /// Owner and group of a file as they are inside, for those that the machine has.
    pub fn owner_inside(&self, (uid, gid): (u32, u32)) -> (u32, u32) {
        (inside(&self.users, uid).unwrap_or(NOBODY), inside(&self.groups, gid).unwrap_or(NOBODY))
    }

    /// The text of a map as the kernel reads it.
    pub(crate) fn kernel_text(map: &[IdRange]) -> String {
        map.iter().map(|range| format!("{} {} {}\n", range.inside, range.outside, range.length)).collect()
    }
}

fn check(map: &[IdRange]) -> Result<(), IdError> {
    if map.len() > MOST_RANGES {
        return Err(IdError::TooMany);
    }
    for (n, range) in map.iter().enumerate() {
        if range.length == 0 {
            return Err(IdError::Empty);
        }
        for first in [range.inside, range.outside] {
            // The last number is the kernel's for "no id".
            if first.checked_add(range.length).is_none() {
                return Err(IdError::TooHigh(first));
            }
        }
        for other in &map[..n] {
            for (a, b) in [(range.inside, other.inside), (range.outside, other.outside)] {
                if overlap((a, range.length), (b, other.length)) {
                    return Err(IdError::Twice(a.max(b)));
                }
            }
        }
    }
    if outside(map, 0).is_none() { Err(IdError::NoRoot) } else { Ok(()) }
}

fn overlap(a: (u32, u32), b: (u32, u32)) -> bool {
    a.0 < b.0.saturating_add(b.1) && b.0 < a.0.saturating_add(a.1)
}

fn outside(map: &[IdRange], id: u32) -> Option<u32> {
    let range = map.iter().find(|range| overlap((id, 1), (range.inside, range.length)))?;
    Some(range.outside + (id - range.inside))
}

fn inside(map: &[IdRange], id: u32) -> Option<u32> {
    let range = map.iter().find(|range| overlap((id, 1), (range.outside, range.length)))?;
    Some(range.inside + (id - range.outside))
}

/// The ranges that a file like `/etc/subuid` gives to a user, in the file's order. `names` are those by which the user
/// may be called there: his name, his number. Lines that are none are passed over, as shadow does.
pub fn subordinate(text: &str, names: &[&str]) -> Vec<Allowed> {
    let line = |line: &str| {
        let mut fields = line.trim().split(':');
        let (name, first, length) = (fields.next()?, fields.next()?, fields.next()?);
        let (first, length) = (first.trim().parse().ok()?, length.trim().parse().ok()?);
        (names.contains(&name) && length > 0).then_some(Allowed { first, length })
    };
    text.lines().filter(|line| !line.trim_start().starts_with('#')).filter_map(line).collect()
}

/// The number that a file like `/etc/passwd` or `/etc/group` gives to a name, or the name that it gives to a number.
pub fn other_name(text: &str, name: &str) -> Option<String> {
    let is_number = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (known, _, number) = (fields.next()?, fields.next()?, fields.next()?);
        match is_number {
            true => (number == name).then(|| known.to_owned()),
            false => (known == name).then(|| number.to_owned()),
        }
    })
}

/// All of what is allowed, from id 0 inside on, one range after the other: docker's `userns-remap`.
pub fn consecutive(allowed: &[Allowed]) -> Vec<IdRange> {
    let mut next = 0_u32;
    let mut map = Vec::new();
    for range in allowed {
        let length = range.length.min(u32::MAX - next);
        if length > 0 {
            map.push(IdRange { inside: next, outside: range.first, length });
        }
        next = next.saturating_add(length);
    }
    map
}

/// A map of the ids inside below `size`: `fixed` as they are, the others to ids that are allowed and that nobody has, in
/// as few ranges as there are gaps between the fixed ones.
///
/// # Errors
/// Nowhere are enough ids free.
pub fn allot(size: u32, fixed: &[IdRange], allowed: &[Allowed], taken: &[Allowed]) -> Result<Vec<IdRange>, IdError> {
    let mut taken = taken.to_vec();
    taken.extend(fixed.iter().map(|range| Allowed { first: range.outside, length: range.length }));
    let mut map = fixed.to_vec();
    let mut next = 0;
    let mut fixed: Vec<&IdRange> = fixed.iter().collect();
    fixed.sort_by_key(|range| range.inside);
    let ends = fixed.iter().map(|range| (range.inside, range.inside.saturating_add(range.length)));
    for (end, resume) in ends.chain([(size, size)]) {
        let end = end.min(size);
        if end > next {
            let wanted = end - next;
            let first = first_free(wanted, allowed, &taken).ok_or(IdError::NoneFree { wanted })?;
            taken.push(Allowed { first, length: wanted });
            map.push(IdRange { inside: next, outside: first, length: wanted });
        }
        next = next.max(resume);
    }
    map.sort_by_key(|range| range.inside);
    Ok(map)
}

/// The first of so many allowed ids in a row that nobody has.
fn first_free(wanted: u32, allowed: &[Allowed], taken: &[Allowed]) -> Option<u32> {
    allowed.iter().find_map(|range| {
        let end = u64::from(range.first) + u64::from(range.length);
        let mut first = range.first;
        loop {
            if u64::from(first) + u64::from(wanted) > end.min(u64::from(u32::MAX)) {
                return None;
            }
            let hit = taken.iter().filter(|one| overlap((first, wanted), (one.first, one.length)));
            match hit.map(|one| one.first.saturating_add(one.length)).max() {
                None => return Some(first),
                Some(after) => first = after,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(inside: u32, outside: u32, length: u32) -> IdRange {
        IdRange { inside, outside, length }
    }

    #[test]
    fn ids_go_both_ways() {
        let map = vec![range(0, 1000, 1), range(1, 100_000, 65535)];
        let maps = IdMaps::new(map.clone(), vec![range(0, 100_000, 10)]).unwrap();
        assert_eq!((maps.user(0), maps.user(1), maps.user(65536)), (Some(1000), Some(100_000), None));
        assert_eq!(maps.owner_outside((5, 10)), (100_004, NOBODY));
        assert_eq!(maps.owner_inside((100_004, 100_009)), (5, 9));
        assert_eq!(maps.owner_inside((0, 0)), (NOBODY, NOBODY));
        assert_eq!(IdMaps::kernel_text(&map), "0 1000 1\n1 100000 65535\n");
    }

    #[test]
    fn what_the_kernel_would_refuse() {
        let of = |map: Vec<IdRange>| IdMaps::new(map.clone(), map).unwrap_err();
        assert_eq!(of(vec![range(0, 5, 0)]), IdError::Empty);
        assert_eq!(of(vec![range(0, u32::MAX, 2)]), IdError::TooHigh(u32::MAX));
        assert_eq!(of(vec![range(0, 100, 10), range(9, 200, 10)]), IdError::Twice(9));
        assert_eq!(of(vec![range(0, 100, 10), range(10, 105, 10)]), IdError::Twice(105));
        assert_eq!(of(vec![range(1, 100, 10)]), IdError::NoRoot);
        assert_eq!(of(Vec::new()), IdError::NoRoot);
    }

    #[test]
    fn files_of_subordinate_ids() {
        let text = "# comment\nann:100000:65536\nbob:1:2:3\n1000:300000:10\nann:bad:1\nann:5:0\nann:200000:5\n";
        let allowed = |first, length| Allowed { first, length };
        assert_eq!(
            subordinate(text, &["ann", "1000"]),
            [allowed(100_000, 65536), allowed(300_000, 10), allowed(200_000, 5)]
        );
        assert_eq!(subordinate(text, &["carl"]), []);
        let passwd = "root:x:0:0::/:/bin/sh\nann:x:1000:1000::/:/bin/sh\n";
        assert_eq!(other_name(passwd, "ann").as_deref(), Some("1000"));
        assert_eq!(other_name(passwd, "1000").as_deref(), Some("ann"));
        assert_eq!(other_name(passwd, "bob"), None);
        let map = consecutive(&subordinate(text, &["ann"]));
        assert_eq!(map, [range(0, 100_000, 65536), range(65536, 200_000, 5)]);
    }

    #[test]
    fn a_range_that_nobody_has() {
        let allowed = [Allowed { first: 1000, length: 100 }, Allowed { first: 5000, length: 1000 }];
        let taken = [Allowed { first: 1010, length: 20 }];
        let of = |size, fixed: &[IdRange]| allot(size, fixed, &allowed, &taken);
        assert_eq!(of(10, &[]).unwrap(), [range(0, 1000, 10)]);
        assert_eq!(of(11, &[]).unwrap(), [range(0, 1030, 11)]);
        assert_eq!(of(100, &[]).unwrap(), [range(0, 5000, 100)]);
        assert_eq!(of(1001, &[]), Err(IdError::NoneFree { wanted: 1001 }));
        // A number of its own within: what is left goes around it.
        assert_eq!(of(20, &[range(5, 0, 1)]).unwrap(), [range(0, 1000, 5), range(5, 0, 1), range(6, 1030, 14)]);
        // Its outside is taken too.
        assert_eq!(of(6, &[range(5, 1000, 1)]).unwrap(), [range(0, 1001, 5), range(5, 1000, 1)]);
        assert_eq!(of(3, &[range(0, 7, 10)]).unwrap(), [range(0, 7, 10)]);
    }
}
