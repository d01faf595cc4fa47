//! The records that come before a tar entry: PAX extended headers and GNU's long names.
//!
//! They are parsed strictly, since readers that disagree about them have been a way to smuggle entries: a key twice, a
//! wrong length or a NUL in a name is an error, not a guess.

use rbuild_oci::limits;

use super::tar::{PAX_XATTR, Xattrs, travels};
use crate::root::Timestamp;

/// What extension records say about the entry that follows.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: Xattrs,
    pub(super) sparse: SparseRecords,
    pub(super) gnu_path: Option<Vec<u8>>,
    pub(super) gnu_link: Option<Vec<u8>>,
    pub(super) has_pax: bool,
}

/// GNU's records about sparse files, in the three forms it has had in PAX archives.
#[derive(Debug, Default)]
pub(super) struct SparseRecords {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Offset and length of each piece of data.
    pub(super) map: Option<Vec<(u64, u64)>>,
    /// An offset whose length has not come yet (form 0.0).
    offset: Option<u64>,
}

impl Extensions {
    pub(super) fn is_empty(&self) -> bool {
        !self.has_pax && self.gnu_path.is_none() && self.gnu_link.is_none()
    }

    /// Adds the records of one PAX `x` header.
    pub(super) fn add_pax(&mut self, bytes: &[u8]) -> Result<(), String> {
        if std::mem::replace(&mut self.has_pax, true) {
            return Err("it has two PAX headers".into());
        }
        for record in Records(bytes) {
            let (key, value) = record?;
            self.add(key, value)?;
        }
        if self.sparse.offset.is_some() {
            return Err("its sparse map ends with an offset".into());
        }
        Ok(())
    }

    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        if value.is_empty() && !key.starts_with(PAX_XATTR) {
            return Ok(()); // takes back what a global header said; those say nothing here
        }
        match key {
            b"path" => set(&mut self.path, key, name(value)?),
            b"linkpath" => set(&mut self.link, key, name(value)?),
            b"size" => set(&mut self.size, key, decimal(key, value)?),
            b"uid" => set(&mut self.uid, key, decimal(key, value)?),
            b"gid" => set(&mut self.gid, key, decimal(key, value)?),
            b"mtime" => set(&mut self.mtime, key, moment(value)?),
            _ if key.starts_with(b"GNU.sparse.") => self.sparse.add(&key[b"GNU.sparse.".len()..], value),
            _ => match key.strip_prefix(PAX_XATTR) {
                Some(attribute) if travels(attribute) => {
                    if attribute.contains(&0) {
                        return Err("the name of an extended attribute has a NUL in it".into());
                    }
                    match self.xattrs.insert(attribute.to_vec(), value.to_vec()) {
                        Some(_) => Err(twice(key)),
                        None => Ok(()),
                    }
                }
                _ => Ok(()), // times of access, names of owners, comments, what other programs keep for themselves
            },
        }
    }
}

impl SparseRecords {
    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        match key {
            b"major" => set(&mut self.major, key, decimal(key, value)?),
            b"minor" => set(&mut self.minor, key, decimal(key, value)?),
            b"name" => set(&mut self.name, key, name(value)?),
            b"size" | b"realsize" => set(&mut self.real_size, key, decimal(key, value)?),
            b"map" => set(&mut self.map, key, parse_map(value)?),
            b"offset" => set(&mut self.offset, key, decimal(key, value)?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or("its sparse map has a length without an offset")?;
                self.map.get_or_insert_default().push((offset, decimal(key, value)?));
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Refuses a PAX `g` header that would change how entries are read; git's comment and the like pass.
pub(super) fn check_global(bytes: &[u8]) -> Result<(), String> {
    for record in Records(bytes) {
        let (key, _) = record?;
        let means_something = matches!(key, b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime")
            || key.starts_with(PAX_XATTR)
            || key.starts_with(b"GNU.sparse.");
        if means_something {
            return Err(format!("a global header sets {} for all entries, which is not supported", key.escape_ascii()));
        }
    }
    Ok(())
}

/// The text of a GNU `L` or `K` entry: up to its NUL.
pub(super) fn gnu_name(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    if bytes[end..].iter().any(|b| *b != 0) {
        return Err("its long name has a NUL in it".into());
    }
    name(&bytes[..end])
}

/// Offsets and lengths in turn, separated by commas (form 0.1).
fn parse_map(value: &[u8]) -> Result<Vec<(u64, u64)>, String> {
    let numbers: Vec<u64> =
        value.split(|b| *b == b',').map(|n| decimal(b"GNU.sparse.map", n)).collect::<Result<_, _>>()?;
    if !numbers.len().is_multiple_of(2) {
        return Err("its sparse map ends with an offset".into());
    }
    Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

fn set<T>(slot: &mut Option<T>, key: &[u8], value: T) -> Result<(), String> {
    match slot.replace(value) {
        Some(_) => Err(twice(key)),
        None => Ok(()),
    }
}

fn twice(key: &[u8]) -> String {
    format!("its PAX header has {} twice", key.escape_ascii())
}

fn name(value: &[u8]) -> Result<Vec<u8>, String> {
    if value.contains(&0) {
        return Err("its name has a NUL in it".into());
    }
    if value.len() > limits::PATH {
        return Err(format!("its name of {} bytes is over the limit of {} bytes", value.len(), limits::PATH));
    }
    Ok(value.to_vec())
}

pub(super) fn decimal(key: &[u8], value: &[u8]) -> Result<u64, String> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let number = if digits { std::str::from_utf8(value).ok().and_then(|v| v.parse().ok()) } else { None };
    number.filter(|n| i64::try_from(*n).is_ok()).ok_or_else(|| {
        let shown = &value[..value.len().min(40)];
        format!("{} is {:?}, which is no size or id", key.escape_ascii(), String::from_utf8_lossy(shown))
    })
}

/// Decimal seconds, maybe negative, maybe with a fraction.
fn moment(value: &[u8]) -> Result<Timestamp, String> {
    let wrong = || format!("its time {:?} is no time", String::from_utf8_lossy(&value[..value.len().min(40)]));
    let text = std::str::from_utf8(value).map_err(|_| wrong())?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let whole: i64 = whole.parse().map_err(|_| wrong())?;
    let nanos = fraction.bytes().chain(std::iter::repeat(b'0')).take(9).fold(0u32, |n, b| n * 10 + u32::from(b - b'0'));
    Ok(match (negative, nanos) {
        (false, nanos) => Timestamp { seconds: whole, nanos },
        (true, 0) => Timestamp::new(-whole, 0),
        (true, nanos) => Timestamp { seconds: -whole - 1, nanos: 1_000_000_000 - nanos },
    })
}

/// Splits `length key=value\n` records.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let wrong = || "its PAX header is damaged".to_owned();
        let parsed = (|| {
            let space = self.0.iter().take(8).position(|b| *b == b' ').ok_or_else(wrong)?;
            let len = decimal(b"length", &self.0[..space]).map_err(|_| wrong())? as usize;
            if len <= space + 1 || len > self.0.len() {
                return Err(wrong());
            }
            let (record, rest) = self.0.split_at(len);
            let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(wrong)?;
            let equals = record.iter().position(|b| *b == b'=').filter(|at| *at > 0).ok_or_else(wrong)?;
            self.0 = rest;
            Ok((&record[..equals], &record[equals + 1..]))
        })();
        if parsed.is_err() {
            self.0 = &[];
        }
        Some(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Extensions, String> {
        let mut extensions = Extensions::default();
        extensions.add_pax(bytes)?;
        Ok(extensions)
    }

    #[test]
    fn records_are_strict() {
        for bytes in [
            &b"9 path=a\n9 path=b\n"[..],
            b"8 path=a\n",
            b"11 path=a\n",
            b"9 path=a ",
            b"7 =abc\n\n",
            b"path=a\n",
            b"-9 path=a\n",
            b"10 path=a\0\n",
            b"10 size=-1\n",
            b"9 size=0x1",
            b"30 size=99999999999999999999\n",
            b"99999999999999999999 path=a\n",
            b"5 a\n\n",
        ] {
            assert!(parse(bytes).is_err(), "{} was accepted", bytes.escape_ascii());
        }
        let good = parse(b"9 path=a\n12 size=123\n20 comment=a comment").err();
        assert!(good.is_some(), "a record without line end was accepted");
        let good = parse(b"9 path=a\n12 size=123\n29 SCHILY.xattr.user.x=a=b\0\n\n").unwrap();
        assert_eq!((good.path.as_deref(), good.size), (Some(&b"a"[..]), Some(123)));
        assert_eq!(good.xattrs[&b"user.x"[..]], b"a=b\0\n");
    }

    #[test]
    fn times() {
        for (text, want) in [
            ("0", Some((0, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-3", Some((-3, 0))),
            ("1.0000000009", Some((1, 0))),
            ("", None),
            ("1e3", None),
            (".5", None),
            ("--1", None),
        ] {
            let got = moment(text.as_bytes()).ok().map(|t| (t.seconds, t.nanos));
            assert_eq!(got, want, "{text}");
        }
    }

    #[test]
    fn global_headers_may_only_comment() {
        assert!(check_global(b"13 comment=x\n").is_ok());
        assert!(check_global(b"9 path=a\n").is_err());
    }
}
