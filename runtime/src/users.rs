//! Users and groups as an image names them: its own `/etc/passwd` and `/etc/group`, and nothing of the host's.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use rbuild_store::{Root, Walk};

use crate::error::{Error, Result};

/// The most that is read of `/etc/passwd` or `/etc/group`, in bytes: a hundred thousand entries fit.
pub const DATABASE_LIMIT: u64 = 16 << 20;
/// Longer lines are not entries.
const LINE_LIMIT: usize = 64 << 10;
/// The highest id; one more is the kernel's "no id".
const HIGHEST_ID: u32 = u32::MAX - 1;

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
    /// Groups beside `gid`; none when the group was named by the caller.
    pub additional_gids: Vec<u32>,
    /// The home directory, `/` where the image does not know the user.
    pub home: String,
}

/// Resolves `user`, `uid`, `user:group` and their mixtures in the image at `root`; empty is root.
///
/// What is made of digits is an id, never a name. A name the image does not know, and an id that does not fit, are
/// [`Error::Refused`] with docker's words.
pub fn resolve(root: &Root, spec: &str) -> Result<Account> {
    let (user, group) = match spec.split_once(':') {
        Some((user, group)) => (user, group),
        None => (spec, ""),
    };
    let user = if user.is_empty() { "0" } else { user };
    let uid = id(user)?;
    let mut found = None;
    entries(root, "/etc/passwd", |fields| {
        let [name, _, entry_uid, entry_gid, _, home, ..] = fields else { return true };
        let (Ok(entry_uid), Ok(entry_gid)) = (entry_uid.parse::<u32>(), entry_gid.parse::<u32>()) else { return true };
        if uid.map_or(*name == user, |uid| uid == entry_uid) {
            found = Some(((*name).to_owned(), entry_uid, entry_gid, (*home).to_owned()));
        }
        found.is_none()
    })?;
    let (name, uid, gid, home) = match (found, uid) {
        (Some((name, uid, gid, home)), _) => (Some(name), uid, gid, home),
        (None, Some(uid)) => (None, uid, 0, String::new()),
        (None, None) => {
            return Err(Error::Refused(format!("unable to find user {user}: no matching entries in passwd file")));
        }
    };
    let (gid, additional_gids) = if group.is_empty() {
        (gid, name.map_or(Ok(Vec::new()), |name| memberships(root, &name))?)
    } else {
        (one_group(root, group)?, Vec::new())
    };
    let home = if home.is_empty() { "/".to_owned() } else { home };
    Ok(Account { uid, gid, additional_gids, home })
}

/// Resolves groups given one by one, by name or id.
pub fn resolve_groups(root: &Root, groups: &[String]) -> Result<Vec<u32>> {
    groups.iter().map(|group| one_group(root, group)).collect()
}

fn one_group(root: &Root, group: &str) -> Result<u32> {
    if let Some(gid) = id(group)? {
        return Ok(gid);
    }
    let mut found = None;
    entries(root, "/etc/group", |fields| {
        if let [name, _, gid, ..] = fields
            && *name == group
        {
            found = gid.parse().ok().filter(|&gid| gid <= HIGHEST_ID);
        }
        found.is_none()
    })?;
    found.ok_or_else(|| Error::Refused(format!("unable to find group {group}: no matching entries in group file")))
}

fn memberships(root: &Root, user: &str) -> Result<Vec<u32>> {
    let mut gids = Vec::new();
    entries(root, "/etc/group", |fields| {
        if let [_, _, gid, members, ..] = fields
            && members.split(',').any(|member| member.trim() == user)
            && let Ok(gid) = gid.parse::<u32>()
            && !gids.contains(&gid)
        {
            gids.push(gid);
        }
        true
    })?;
    Ok(gids)
}

/// The number, if it is made of digits alone.
fn id(text: &str) -> Result<Option<u32>> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id <= HIGHEST_ID && digits.len() == text.len() => Ok(Some(id)),
        _ => Err(Error::Refused(format!("invalid id {text}: uids and gids must be in range 0-{HIGHEST_ID}"))),
    }
}

/// Calls `each` with the fields of every line until it says no. A file that is missing has no lines.
fn entries(root: &Root, path: &str, mut each: impl FnMut(&[&str]) -> bool) -> Result<()> {
    let file = match root.open_file(Path::new(path), Walk::InRoot) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(Error::system(format!("open {path} of the image"), error)),
    };
    let reading = |error| Error::system(format!("read {path} of the image"), error);
    let is_regular = file.metadata().map_err(reading)?.is_file();
    if !is_regular {
        return Err(Error::Refused(format!("{path} of the image is not a regular file")));
    }
    let mut reader = BufReader::new(file.take(DATABASE_LIMIT + 1));
    let (mut line, mut total) = (Vec::new(), 0);
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line).map_err(reading)?;
        total += length as u64;
        if total > DATABASE_LIMIT {
            return Err(Error::Refused(format!("{path} of the image is longer than {DATABASE_LIMIT} bytes")));
        }
        if length == 0 {
            return Ok(());
        }
        if length > LINE_LIMIT {
            continue;
        }
        let Ok(text) = std::str::from_utf8(&line) else { continue };
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        if !each(&text.split(':').collect::<Vec<_>>()) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\nbad:x:-1:0::/:\n\
                          www:x:33:33:www:/var/www:\n1000:x:7:7::/x:\nnohome:x:44:45:::\n";
    const GROUP: &str = "root:x:0:\nmail:x:8:www,other\nwww:x:33:\nstaff:x:50: www\n";

    fn image() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/passwd"), PASSWD).unwrap();
        fs::write(dir.path().join("etc/group"), GROUP).unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn names_and_numbers() {
        let (_dir, root) = image();
        let table: &[(&str, u32, u32, &[u32], &str)] = &[
            ("", 0, 0, &[], "/root"),
            ("www", 33, 33, &[8, 50], "/var/www"),
            ("33", 33, 33, &[8, 50], "/var/www"),
            ("www:mail", 33, 8, &[], "/var/www"),
            ("1234", 1234, 0, &[], "/"),
            ("1000", 1000, 0, &[], "/"),
            ("1234:5678", 1234, 5678, &[], "/"),
            (":mail", 0, 8, &[], "/root"),
            ("nohome", 44, 45, &[], "/"),
            ("4294967294", u32::MAX - 1, 0, &[], "/"),
        ];
        for &(spec, uid, gid, groups, home) in table {
            let wanted = Account { uid, gid, additional_gids: groups.to_vec(), home: home.to_owned() };
            assert_eq!(resolve(&root, spec).unwrap(), wanted, "{spec:?}");
        }
        assert_eq!(resolve_groups(&root, &["mail".to_owned(), "999".to_owned()]).unwrap(), [8, 999]);
    }

    #[test]
    fn what_is_not_there_is_refused_with_dockers_words() {
        let (_dir, root) = image();
        let message = |spec: &str| resolve(&root, spec).unwrap_err().to_string();
        assert_eq!(message("x"), "unable to find user x: no matching entries in passwd file");
        assert_eq!(message("0:x"), "unable to find group x: no matching entries in group file");
        for spec in ["4294967295", "4294967296", "99999999999999999999", "-1", "+1", "0:4294967295"] {
            assert!(message(spec).contains("must be in range"), "{spec}");
        }
        assert!(message("bad").starts_with("unable to find user"));
    }

    #[test]
    fn only_regular_files_of_the_image_count() {
        let (dir, root) = image();
        let passwd = dir.path().join("etc/passwd");
        fs::remove_file(&passwd).unwrap();
        assert_eq!(resolve(&root, "7").unwrap().home, "/");
        symlink("/proc/self/environ", &passwd).unwrap();
        assert!(resolve(&root, "www").is_err(), "the host's /proc is not in the image");
        fs::remove_file(&passwd).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &passwd, fifo, rustix::fs::Mode::from_raw_mode(0o600), 0).unwrap();
        assert!(resolve(&root, "www").is_err(), "and does not hang");
        fs::remove_file(&passwd).unwrap();
        fs::File::create(&passwd).unwrap().set_len(1 << 40).unwrap();
        assert!(resolve(&root, "www").unwrap_err().to_string().contains("longer than"));
    }
}
