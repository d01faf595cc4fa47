//! Tar entries, and the canonical writer.
//!
//! Layers are regenerated from their snapshots whenever they are needed, so the same tree must give the same bytes on
//! every machine and in every release: one entry always has one encoding here. It is ustar, with a PAX record only for
//! what ustar cannot hold. The `tar` crate serves as the codec of the header block; its builder is not used because it
//! knows neither extended attributes nor a fixed form of PAX records.

use std::collections::BTreeMap;
use std::io::{self, Write};

use tar::Header;

use crate::root::Timestamp;

/// Extended attributes by name, only those that may travel in a layer (see [`travels`]).
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// The size of tar's blocks, in bytes.
pub const BLOCK: usize = 512;

/// Under this key PAX records carry extended attributes.
pub(crate) const PAX_XATTR: &[u8] = b"SCHILY.xattr.";

/// One member of a tar archive, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Components joined by `/`, no `.`, no `..`, no slash at either end. Empty for the root itself.
    pub path: Vec<u8>,
    pub kind: EntryKind,
    /// Permission bits with set-uid, set-gid and sticky: `07777`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    pub xattrs: Xattrs,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    Directory,
    /// A regular file of so many bytes, holes included.
    File {
        size: u64,
    },
    Symlink {
        target: Vec<u8>,
    },
    /// Another name of the entry at `target`, which has the form of [`Entry::path`].
    HardLink {
        target: Vec<u8>,
    },
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// 1980-01-02, which directories get that nobody described (zip files know nothing older).
pub const IMPLIED_TIME: Timestamp = Timestamp { seconds: 315_619_200, nanos: 0 };

/// Whether an extended attribute belongs to the content of a layer: what users set, file capabilities and ACLs.
///
/// Everything else is the machine's own (security labels) or the storage driver's (overlay marks), which an archive
/// must neither show nor set.
pub fn travels(name: &[u8]) -> bool {
    match name {
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        _ => name.starts_with(b"user.") && !name.starts_with(b"user.overlay."),
    }
}

/// Writes canonical tar.
///
/// The caller gives entries in order ([`Writer::entry`]) and, after each [`EntryKind::File`], exactly its size in bytes
/// ([`Writer::body`]). Sub-second times are rounded down.
pub struct Writer<W: Write> {
    out: W,
    written: u64,
    owed: u64,
    padding: usize,
    newest: Option<i64>,
}

impl<W: Write> Writer<W> {
    pub fn new(out: W) -> Writer<W> {
        Writer { out, written: 0, owed: 0, padding: 0, newest: None }
    }

    /// Writes the header of `entry`.
    ///
    /// # Errors
    /// When the body of the entry before is not complete, and what the output says.
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        self.end_body()?;
        self.newest = self.newest.max(Some(entry.mtime.seconds));
        let records = pax_records(entry);
        if !records.is_empty() {
            let mut header = Header::new_ustar();
            fill(&mut header, b"PaxHeader", b'x', 0o644, records.len() as u64, (0, 0), 0);
            self.put(header.as_bytes())?;
            self.put(&records)?;
            self.pad(records.len() as u64)?;
        }
        let header = header_of(entry);
        self.put(header.as_bytes())?;
        if let EntryKind::File { size } = entry.kind {
            self.owed = size;
            self.padding = (BLOCK - (size % BLOCK as u64) as usize) % BLOCK;
        }
        Ok(())
    }

    /// Writes a part of the content of the last entry.
    ///
    /// # Errors
    /// When there are more bytes than the entry's size said.
    pub fn body(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.owed = self
            .owed
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| io::Error::other("the content is longer than the size in its header"))?;
        self.put(bytes)
    }

    /// The newest time of all entries so far, in seconds since 1970.
    pub fn newest(&self) -> Option<i64> {
        self.newest
    }

    /// How many bytes the body of the last entry still lacks.
    pub fn owed(&self) -> u64 {
        self.owed
    }

    /// Writes the end mark; returns the output and how many bytes the archive has.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        self.end_body()?;
        self.put(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok((self.out, self.written))
    }

    fn end_body(&mut self) -> io::Result<()> {
        if self.owed != 0 {
            return Err(io::Error::other(format!(
                "the content is {} bytes shorter than the size in its header",
                self.owed
            )));
        }
        let padding = std::mem::take(&mut self.padding);
        self.put(&[0; BLOCK][..padding])
    }

    fn pad(&mut self, len: u64) -> io::Result<()> {
        let padding = (BLOCK - (len % BLOCK as u64) as usize) % BLOCK;
        self.put(&[0; BLOCK][..padding])
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

const MAX_OCTAL_7: u64 = 0o7_777_777;
const MAX_OCTAL_11: u64 = 0o77_777_777_777;
const NAME: usize = 100;

/// What ustar cannot hold of this entry, as PAX records in the order of their keys.
pub(super) fn pax_records(entry: &Entry) -> Vec<u8> {
    let mut records: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let name = name_of(entry);
    if name.len() > NAME || !name.is_ascii() {
        records.insert(b"path".to_vec(), name);
    }
    if let EntryKind::Symlink { target } | EntryKind::HardLink { target } = &entry.kind
        && (target.len() > NAME || !target.is_ascii())
    {
        records.insert(b"linkpath".to_vec(), target.clone());
    }
    if let EntryKind::File { size } = entry.kind
        && size > MAX_OCTAL_11
    {
        records.insert(b"size".to_vec(), size.to_string().into_bytes());
    }
    for (key, id) in [("uid", entry.uid), ("gid", entry.gid)] {
        if u64::from(id) > MAX_OCTAL_7 {
            records.insert(key.into(), id.to_string().into_bytes());
        }
    }
    if !(0..=MAX_OCTAL_11 as i64).contains(&entry.mtime.seconds) {
        records.insert(b"mtime".to_vec(), entry.mtime.seconds.to_string().into_bytes());
    }
    for (name, value) in &entry.xattrs {
        records.insert([PAX_XATTR, name].concat(), value.clone());
    }
    let mut bytes = Vec::new();
    for (key, value) in &records {
        append_record(&mut bytes, key, value);
    }
    bytes
}

/// One PAX record: its length in decimal, which counts itself, a space, `key=value`, a line end.
fn append_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    out.extend_from_slice(len.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn name_of(entry: &Entry) -> Vec<u8> {
    match entry.kind {
        EntryKind::Directory if entry.path.is_empty() => b"./".to_vec(),
        EntryKind::Directory => [entry.path.as_slice(), b"/"].concat(),
        _ => entry.path.clone(),
    }
}

pub(super) fn header_of(entry: &Entry) -> Header {
    let (kind, size) = match &entry.kind {
        EntryKind::File { size } => (b'0', *size),
        EntryKind::HardLink { .. } => (b'1', 0),
        EntryKind::Symlink { .. } => (b'2', 0),
        EntryKind::CharDevice { .. } => (b'3', 0),
        EntryKind::BlockDevice { .. } => (b'4', 0),
        EntryKind::Directory => (b'5', 0),
        EntryKind::Fifo => (b'6', 0),
    };
    let mut header = Header::new_ustar();
    fill(&mut header, &name_of(entry), kind, entry.mode & 0o7777, size, (entry.uid, entry.gid), entry.mtime.seconds);
    if let Some(ustar) = header.as_ustar_mut() {
        match &entry.kind {
            EntryKind::Symlink { target } | EntryKind::HardLink { target } => text(&mut ustar.linkname, target),
            EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
                octal(&mut ustar.dev_major, u64::from(*major));
                octal(&mut ustar.dev_minor, u64::from(*minor));
            }
            _ => {}
        }
    }
    seal(&mut header);
    header
}

/// Fills in all members that every header has. Numbers that do not fit are 0 (their PAX record counts), texts are cut.
fn fill(header: &mut Header, name: &[u8], kind: u8, mode: u32, size: u64, owner: (u32, u32), mtime: i64) {
    if let Some(ustar) = header.as_ustar_mut() {
        text(&mut ustar.name, name);
        octal(&mut ustar.mode, u64::from(mode));
        octal(&mut ustar.uid, u64::from(owner.0));
        octal(&mut ustar.gid, u64::from(owner.1));
        octal(&mut ustar.size, size);
        octal(&mut ustar.mtime, u64::try_from(mtime).unwrap_or(0));
        ustar.typeflag = [kind];
        octal(&mut ustar.dev_major, 0);
        octal(&mut ustar.dev_minor, 0);
    }
    seal(header);
}

fn text(field: &mut [u8], value: &[u8]) {
    let len = value.len().min(field.len());
    field[..len].copy_from_slice(&value[..len]);
}

fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let fits = value < 1 << (3 * digits);
    let mut rest = if fits { value } else { 0 };
    for at in (0..digits).rev() {
        field[at] = b'0' + (rest & 7) as u8;
        rest >>= 3;
    }
    field[digits] = 0;
}

/// Computes the checksum: six digits, NUL, space, as POSIX tar has always written it.
fn seal(header: &mut Header) {
    header.as_old_mut().cksum = *b"        ";
    let sum: u64 = header.as_bytes().iter().map(|b| u64::from(*b)).sum();
    let field = &mut header.as_old_mut().cksum;
    octal(&mut field[..7], sum);
    field[7] = b' ';
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry {
            path: path.into(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Timestamp::new(1, 0),
            xattrs: Xattrs::new(),
        }
    }

    fn write(entries: &[(Entry, &[u8])]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for (entry, body) in entries {
            writer.entry(entry).unwrap();
            writer.body(body).unwrap();
        }
        let (bytes, size) = writer.finish().unwrap();
        assert_eq!(bytes.len() as u64, size);
        bytes
    }

    #[test]
    fn golden_header() {
        let mut file = entry("etc/motd", EntryKind::File { size: 3 });
        file.uid = 1000;
        file.gid = 5;
        file.mode = 0o4755;
        file.mtime = Timestamp { seconds: 1_700_000_000, nanos: 999_999_999 };
        let bytes = write(&[(file, b"hi\n")]);
        let mut want = vec![0u8; 512];
        for (at, text) in [
            (0, "etc/motd"),
            (100, "0004755"),
            (108, "0001750"),
            (116, "0000005"),
            (124, "00000000003"),
            (136, "14524770400"),
            (156, "0"),
            (257, "ustar\x0000"),
            (329, "0000000"),
            (337, "0000000"),
        ] {
            want[at..at + text.len()].copy_from_slice(text.as_bytes());
        }
        want[148..156].fill(b' ');
        let sum: u32 = want.iter().map(|b| u32::from(*b)).sum();
        want[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert_eq!(bytes[..512], want);
        assert_eq!(&bytes[512..515], b"hi\n");
        assert!(bytes[515..].iter().all(|b| *b == 0));
        assert_eq!(bytes.len(), 512 + 512 + 1024);
    }

    #[test]
    fn pax_only_for_what_ustar_lacks() {
        let long = "d/".repeat(49) + "f";
        assert_eq!(long.len(), 99);
        assert_eq!(pax_records(&entry(&long, EntryKind::File { size: MAX_OCTAL_11 })), b"");
        assert_eq!(pax_records(&entry(&(long.clone() + "x"), EntryKind::Directory)).len(), 111);
        let mut big = entry("f", EntryKind::File { size: MAX_OCTAL_11 + 1 });
        big.uid = 3_000_000;
        big.mtime = Timestamp::new(-5, 0);
        big.xattrs.insert(b"user.b".to_vec(), b"\0=\n".to_vec());
        big.xattrs.insert(b"user.a".to_vec(), Vec::new());
        let records = pax_records(&big);
        let want: &[u8] =
            b"24 SCHILY.xattr.user.a=\n27 SCHILY.xattr.user.b=\0=\n\n12 mtime=-5\n19 size=8589934592\n15 uid=3000000\n";
        assert_eq!(records, want, "{}", String::from_utf8_lossy(&records));
        let link = entry("é", EntryKind::Symlink { target: b"\xff".to_vec() });
        assert_eq!(pax_records(&link), b"14 linkpath=\xff\n11 path=\xc3\xa9\n");
    }

    #[test]
    fn a_record_counts_its_own_length() {
        for (len, want) in [(3, 8), (4, 9), (5, 11), (93, 99), (94, 101)] as [(usize, usize); 5] {
            let mut out = Vec::new();
            append_record(&mut out, b"k", &vec![b'v'; len]);
            assert_eq!(out.len(), want, "{len}");
            assert!(out.starts_with(format!("{want} k=").as_bytes()), "{len}");
        }
    }

    #[test]
    fn a_body_has_the_size_it_said() {
        let mut writer = Writer::new(Vec::new());
        writer.entry(&entry("f", EntryKind::File { size: 2 })).unwrap();
        assert!(writer.body(b"abc").is_err());
        writer.body(b"a").unwrap();
        assert!(writer.finish().is_err());
    }

    #[test]
    fn driver_marks_do_not_travel() {
        for (name, want) in [
            ("user.mime", true),
            ("user.overlay.opaque", false),
            ("trusted.overlay.redirect", false),
            ("security.capability", true),
            ("security.selinux", false),
            ("system.posix_acl_default", true),
        ] {
            assert_eq!(travels(name.as_bytes()), want, "{name}");
        }
    }
}
