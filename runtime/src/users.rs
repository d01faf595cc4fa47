//! Who `user[:group]` is in an image.
//!
//! Looked up in the image's own `/etc/passwd` and `/etc/group`, which are opened beneath its root, must be regular files
//! and are read line by line up to a limit; the machine's own users play no part. Digits are an id and never a name.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use rbuild_store::{Root, Walk};

use crate::error::Error;

/// Bytes of a user database that are read; what is larger is refused.
const LIMIT: u64 = 8 << 20;
/// Names of a database that are told when another is not there.
const KNOWN: usize = 500;
/// Groups a process can be in, as the kernel counts them.
const GROUPS: usize = 65_536;

/// A process's user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, ascending; empty when the group was named explicitly.
    pub groups: Vec<u32>,
    /// The home directory; `/` for somebody the image does not know.
    pub home: String,
}

/// The identity that `text` (`user`, `uid`, `user:group`, …; empty is root) has in the tree at `root`.
///
/// # Errors
/// In docker's words: a name that is not there, an id out of range; a database that is no regular file or too large.
pub fn resolve(root: &Root, text: &str) -> Result<Identity, Error> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let wanted = Wanted::parse(user, "user")?;
    let entry = find(root, "etc/passwd", |fields| {
        let [name, _, uid, gid, _, home, ..] = fields else { return None };
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        wanted.is(name, uid).then(|| Entry { name: (*name).to_owned(), uid, gid, home: (*home).to_owned() })
    })?;
    let entry = match (entry, &wanted) {
        (Some(entry), _) => entry,
        (None, Wanted::Id(uid)) => Entry { name: String::new(), uid: *uid, gid: 0, home: "/".into() },
        (None, Wanted::Name(name)) => {
            return Err(unknown(root, "user", name, "passwd"));
        }
    };
    let home = if entry.home.is_empty() { "/".to_owned() } else { entry.home };
    if let Some(group) = group {
        return Ok(Identity { uid: entry.uid, gid: group_id(root, group)?, groups: Vec::new(), home });
    }
    let groups = memberships(root, &entry.name)?;
    Ok(Identity { uid: entry.uid, gid: entry.gid, groups, home })
}

/// The id of a group in the tree at `root`.
///
/// # Errors
/// As [`resolve`].
pub fn group_id(root: &Root, text: &str) -> Result<u32, Error> {
    let wanted = Wanted::parse(text, "group")?;
    if let Wanted::Id(gid) = wanted {
        return Ok(gid);
    }
    let found = find(root, "etc/group", |fields| {
        let [name, _, gid, ..] = fields else { return None };
        let gid = gid.parse().ok()?;
        wanted.is(name, gid).then_some(gid)
    })?;
    found.ok_or_else(|| unknown(root, "group", text, "group"))
}

/// The highest number that the image's databases name, nobody's apart.
///
/// # Errors
/// As [`resolve`].
pub fn highest_id(root: &Root) -> Result<u32, Error> {
    const NOBODY: u32 = 65534;
    let mut highest = 0;
    let mut see = |id: Option<&&str>| {
        let id = id.and_then(|id| id.parse::<u32>().ok()).filter(|id| *id < NOBODY);
        highest = highest.max(id.unwrap_or(0));
    };
    find::<()>(root, "etc/passwd", |fields| {
        see(fields.get(2));
        see(fields.get(3));
        None
    })?;
    find::<()>(root, "etc/group", |fields| {
        see(fields.get(2));
        None
    })?;
    Ok(highest)
}

/// What the database has instead is told along, for whoever wants to guess what was meant.
fn unknown(root: &Root, what: &'static str, name: &str, file: &'static str) -> Error {
    let mut known = Vec::new();
    let read = find::<()>(root, &format!("etc/{file}"), |fields| {
        let name = fields.first().filter(|name| !name.is_empty() && known.len() < KNOWN);
        known.extend(name.map(|name| (*name).to_owned()));
        None
    });
    // It was read a moment ago; if it cannot be any more there is only less to tell.
    drop(read);
    Error::UnknownName { what, name: name.to_owned(), file, known }
}

struct Entry {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// A name or a number.
enum Wanted<'a> {
    Id(u32),
    Name(&'a str),
}

impl Wanted<'_> {
    fn parse<'a>(text: &'a str, what: &str) -> Result<Wanted<'a>, Error> {
        if text.bytes().all(|b| b.is_ascii_digit()) {
            // The largest number stands for "leave it alone" in the kernel's calls.
            let id = text.parse::<u32>().ok().filter(|id| *id < u32::MAX - 1);
            let out_of_range = || Error::Refused(format!("{what}s specified must be in range 0-4294967293: {text}"));
            return id.map(Wanted::Id).ok_or_else(out_of_range);
        }
        Ok(Wanted::Name(text))
    }

    fn is(&self, name: &str, id: u32) -> bool {
        match self {
            Wanted::Id(wanted) => *wanted == id,
            Wanted::Name(wanted) => *wanted == name,
        }
    }
}

/// The groups that list `user` as a member.
fn memberships(root: &Root, user: &str) -> Result<Vec<u32>, Error> {
    let mut groups = Vec::new();
    if user.is_empty() {
        return Ok(groups);
    }
    find::<()>(root, "etc/group", |fields| {
        if let [_, _, gid, members, ..] = fields
            && let Ok(gid) = gid.parse()
            && members.split(',').any(|member| member == user)
            && groups.len() < GROUPS
        {
            groups.push(gid);
        }
        None
    })?;
    groups.sort_unstable();
    groups.dedup();
    Ok(groups)
}

/// The first line of a database that `pick` takes. A database that does not exist has no lines; lines that are not
/// UTF-8 are nobody's.
fn find<T>(root: &Root, path: &str, mut pick: impl FnMut(&[&str]) -> Option<T>) -> Result<Option<T>, Error> {
    let Some(file) = open(root, path)? else { return Ok(None) };
    let mut lines = BufReader::new(file.take(LIMIT));
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines.read_until(b'\n', &mut line) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(source) => return Err(Error::System { action: format!("read /{path}"), source }),
        }
        let Ok(text) = std::str::from_utf8(&line) else { continue };
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let fields: Vec<&str> = text.split(':').collect();
        if let Some(found) = pick(&fields) {
            return Ok(Some(found));
        }
    }
}

fn open(root: &Root, path: &str) -> Result<Option<File>, Error> {
    let refuse = |why: &str| Err(Error::Refused(format!("/{path} of the image {why}")));
    match root.stat(Path::new(path), Walk::InRoot) {
        Ok(meta) if meta.kind != rbuild_store::root::Kind::File => return refuse("is not a regular file"),
        Ok(meta) if meta.size > LIMIT => return refuse("is over the limit of 8 MiB"),
        Ok(_) => {}
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(Error::System { action: format!("look at /{path}"), source }),
    }
    match root.open_file(Path::new(path), Walk::InRoot) {
        Ok(file) => Ok(Some(file)),
        Err(source) => Err(Error::System { action: format!("open /{path}"), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(passwd: &str, group: &str) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(dir.path().join("etc/group"), group).unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn names_and_numbers_are_looked_up_in_the_image() {
        let (_dir, root) = image(
            "root:x:0:0::/root:/bin/sh\n\nbad line\napp:x:1000:1000::/home/app:/bin/sh\n42:x:7:7::/odd:/bin/sh\n",
            "root:x:0:\napp:x:1000:\nwheel:x:10:app,root\nvideo:x:5:app\n",
        );
        let cases = [
            ("", (0, 0, vec![10], "/root")),
            ("app", (1000, 1000, vec![5, 10], "/home/app")),
            ("1000", (1000, 1000, vec![5, 10], "/home/app")),
            ("app:wheel", (1000, 10, vec![], "/home/app")),
            ("app:77", (1000, 77, vec![], "/home/app")),
            ("5000", (5000, 0, vec![], "/")),
            ("42", (42, 0, vec![], "/")),
        ];
        for (text, (uid, gid, groups, home)) in cases {
            let want = Identity { uid, gid, groups, home: home.into() };
            assert_eq!(resolve(&root, text).unwrap(), want, "{text:?}");
        }
        let message = |text| resolve(&root, text).unwrap_err().to_string();
        assert_eq!(message("nobody"), "unable to find user nobody: no matching entries in passwd file");
        assert_eq!(message("app:none"), "unable to find group none: no matching entries in group file");
        for wrapped in ["4294967296", "4294967295", "99999999999999999999"] {
            assert!(message(wrapped).contains("must be in range"), "{wrapped}");
        }
    }

    #[test]
    fn a_database_that_is_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc/passwd")).unwrap();
        assert!(resolve(&Root::open(dir.path()).unwrap(), "app").is_err());
        std::fs::remove_dir(dir.path().join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("../../../../etc/passwd", dir.path().join("etc/passwd")).unwrap();
        let found = resolve(&Root::open(dir.path()).unwrap(), "root");
        assert!(found.is_err(), "a link led to the machine's own users: {found:?}");
    }
}
