//! What steps' keys were made of, kept longer than the steps' results: with these a later miss is explained.
//!
//! A row of `traces` for each key that ever ran here (or came with an imported record), found by the key or by the step as
//! people wrote it. A row is compact: paths share their beginnings, and of a content hash the first eight bytes stay,
//! enough to tell the changed from the unchanged. So a copy of 50,000 files takes about a megabyte here. Rows with many
//! paths and others are counted apart, and the oldest go.

use std::time::SystemTime;

use rbuild_solver::{CacheKey, ContentHash, KeyPart, PartValue, RunRecord};
use rbuild_store::db::nanos;
use rbuild_store::rusqlite::{OptionalExtension, Transaction, params};
use rbuild_store::{Db, Durability, Result, StoreError};

/// How many traces stay, and of those over 64 KiB (the number in the index that finds them).
const KEPT: i64 = 8192;
const KEPT_LARGE: i64 = 64;
/// What the labels of traces from elsewhere begin with.
const IMPORTED: char = '\u{2}';
/// Bytes of a content hash that are kept.
const SHORT: usize = 8;

/// A step as people wrote it: its name without stage, number and platform.
pub fn label(name: &str) -> &str {
    match name.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((_, text)) => text,
        None => name,
    }
}

/// Where a step stood: its stage and its number there. `None` for what is no instruction of a stage.
pub fn place(name: &str) -> Option<(&str, u32)> {
    let (number, _) = name.strip_prefix('[')?.split_once("] ")?;
    let (before, _) = number.rsplit_once('/')?;
    let (stage, at) = before.rsplit_once(' ').unwrap_or(("", before));
    Some((stage.trim_end(), at.parse().ok()?))
}

/// The instruction: `RUN`.
pub fn verb(name: &str) -> &str {
    label(name).split(' ').next().unwrap_or_default()
}

/// What two steps have in common that stand in the same place and are of the same kind. No step is written so.
pub(crate) fn spot(name: &str) -> Option<String> {
    let (stage, at) = place(name)?;
    Some(format!("\u{1}{stage}\u{1}{at}\u{1}{}", verb(name)))
}

/// The beginning of a content hash: what a trace keeps of it.
pub fn short(hash: &ContentHash) -> &[u8] {
    &hash.as_bytes()[..SHORT]
}

/// A trace that was kept.
#[derive(Debug, Clone)]
pub struct Trace {
    pub key: CacheKey,
    /// When the step first ran under this key.
    pub made: SystemTime,
    /// Content hashes among the parts of inputs are cut short ([`short`]).
    pub record: RunRecord,
}

/// Keeps what `record` says about a key; what was kept of that key before stays.
///
/// # Errors
/// The database cannot be written.
pub fn keep(tx: &Transaction<'_>, key: CacheKey, record: &RunRecord) -> Result<()> {
    let trace = encode(record)?;
    tx.prepare_cached("INSERT OR IGNORE INTO traces (key, label, size, made, trace) VALUES (?, ?, ?, ?, ?)")?.execute(
        params![
            key.to_string(),
            label(&record.name),
            i64::try_from(trace.len()).unwrap_or(i64::MAX),
            nanos(SystemTime::now()),
            trace
        ],
    )?;
    Ok(())
}

/// Keeps what a record from elsewhere says, for comparison: under names of its own, because the step never ran here. It
/// takes the place of a description that left out what the inputs were made of.
///
/// # Errors
/// The database cannot be written.
pub(crate) fn keep_imported(tx: &Transaction<'_>, key: CacheKey, record: &RunRecord) -> Result<()> {
    let trace = encode(record)?;
    let names = [Some(label(&record.name).to_owned()), spot(&record.name)];
    let or = if crate::portable::lacks_parts(Some(record)) { "IGNORE" } else { "REPLACE" };
    let sql = format!("INSERT OR {or} INTO traces (key, label, size, made, trace) VALUES (?, ?, ?, ?, ?)");
    let mut insert = tx.prepare_cached(&sql)?;
    for (n, name) in names.iter().enumerate() {
        if let Some(name) = name {
            let size = i64::try_from(trace.len()).unwrap_or(i64::MAX);
            let name = format!("{IMPORTED}{name}");
            insert.execute(params![imported(key, n).to_string(), name, size, nanos(SystemTime::now()), trace])?;
        }
    }
    Ok(())
}

/// The name of a trace from elsewhere.
fn imported(key: CacheKey, n: usize) -> CacheKey {
    CacheKey::of(format!("imported {n} {key}").as_bytes())
}

/// The trace of a key that came from elsewhere.
///
/// # Errors
/// The database cannot be read.
pub fn find_imported(db: &Db, key: CacheKey) -> Result<Option<Trace>> {
    find(db, imported(key, 0))
}

/// Traces from elsewhere of steps written as `name` is, then of those in its place, that came before `before`, at most
/// `most` of each.
///
/// # Errors
/// The database cannot be read.
pub fn like_imported(db: &Db, name: &str, before: SystemTime, most: u32) -> Result<Vec<CacheKey>> {
    let mut keys = like(db, &format!("{IMPORTED}{}", label(name)), before, most)?;
    if let Some(spot) = spot(name) {
        keys.extend(like(db, &format!("{IMPORTED}{spot}"), before, most)?);
    }
    Ok(keys)
}

/// The trace of a key.
///
/// # Errors
/// The database cannot be read.
pub fn find(db: &Db, key: CacheKey) -> Result<Option<Trace>> {
    db.read(|tx| {
        let mut query = tx.prepare_cached("SELECT made, trace FROM traces WHERE key = ?")?;
        let row = query.query_row([key.to_string()], |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?))).optional()?;
        Ok(row
            .and_then(|(made, bytes)| Some(Trace { key, made: rbuild_store::db::time(made), record: decode(&bytes)? })))
    })
}

/// Keys under which this step ran before `before`, the newest first, at most `most`.
///
/// # Errors
/// The database cannot be read.
pub fn like(db: &Db, label: &str, before: SystemTime, most: u32) -> Result<Vec<CacheKey>> {
    db.read(|tx| {
        let sql = "SELECT key FROM traces WHERE label = ? AND made < ? ORDER BY made DESC LIMIT ?";
        let mut query = tx.prepare_cached(sql)?;
        let keys = query.query_map(params![label, nanos(before), most], |row| row.get::<_, String>(0))?;
        let keys = keys.collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(keys.iter().filter_map(|key| key.parse().ok()).collect())
    })
}

/// Removes the oldest where there are too many.
///
/// # Errors
/// The database cannot be written.
pub fn trim(db: &Db) -> Result<()> {
    db.write(Durability::Cache, |tx| {
        tx.prepare_cached(
            "DELETE FROM traces WHERE made < (SELECT made FROM traces ORDER BY made DESC LIMIT 1 OFFSET ?)",
        )?
        .execute([KEPT])?;
        tx.prepare_cached(
            "DELETE FROM traces WHERE size > 65536 AND made <
             (SELECT made FROM traces WHERE size > 65536 ORDER BY made DESC LIMIT 1 OFFSET ?)",
        )?
        .execute([KEPT_LARGE])?;
        Ok(())
    })
}

/// The record as JSON without what its inputs are made of, with its length before it; then that, input by input.
fn encode(record: &RunRecord) -> Result<Vec<u8>> {
    let head = serde_json::to_vec(&without_parts(record))
        .map_err(|error| StoreError::invalid("trace of a step", error.to_string()))?;
    let mut out = Vec::with_capacity(head.len() + 16);
    number(&mut out, head.len());
    out.extend_from_slice(&head);
    for input in &record.inputs {
        number(&mut out, input.parts.len());
        let mut before: &[u8] = b"";
        for part in &input.parts {
            let name = part.name.as_bytes();
            let shared = name.iter().zip(before).take_while(|(a, b)| a == b).count();
            number(&mut out, shared);
            bytes(&mut out, &name[shared..]);
            match &part.value {
                PartValue::Content(hash) => {
                    out.push(b'c');
                    out.extend_from_slice(short(hash));
                }
                PartValue::Text(text) => {
                    out.push(b't');
                    bytes(&mut out, text.as_bytes());
                }
                PartValue::Digest(digest) => {
                    out.push(b'd');
                    bytes(&mut out, digest.as_bytes());
                }
            }
            before = name;
        }
    }
    Ok(out)
}

/// A record as its row in `records` has it: what its inputs are made of is in its trace.
pub(crate) fn without_parts(record: &RunRecord) -> RunRecord {
    let mut record = record.clone();
    record.inputs.iter_mut().for_each(|input| input.parts = Vec::new());
    record
}

/// `None` for what this program did not write.
fn decode(all: &[u8]) -> Option<RunRecord> {
    let mut rest = all;
    let length = read_number(&mut rest)?;
    let (head, after) = rest.split_at_checked(length)?;
    rest = after;
    let mut record: RunRecord = serde_json::from_slice(head).ok()?;
    for input in &mut record.inputs {
        let count = read_number(&mut rest)?;
        let mut before: Vec<u8> = Vec::new();
        // Each takes at least three bytes: a count that lies allocates no more than the blob itself.
        let mut parts = Vec::with_capacity(count.min(rest.len() / 3));
        for _ in 0..count {
            let shared = read_number(&mut rest)?;
            let tail = read_bytes(&mut rest)?;
            before.truncate(shared);
            before.extend_from_slice(tail);
            let (kind, after) = rest.split_first()?;
            rest = after;
            let value = match kind {
                b'c' => {
                    let (hash, after) = rest.split_at_checked(SHORT)?;
                    rest = after;
                    let mut whole = [0; 32];
                    whole[..SHORT].copy_from_slice(hash);
                    PartValue::Content(ContentHash::from_bytes(whole))
                }
                b't' => PartValue::Text(String::from_utf8(read_bytes(&mut rest)?.to_vec()).ok()?),
                b'd' => PartValue::Digest(String::from_utf8(read_bytes(&mut rest)?.to_vec()).ok()?),
                _ => return None,
            };
            // A name cut within a character never was one of ours; the name of a path may hold anything else.
            parts.push(KeyPart { name: String::from_utf8(before.clone()).ok()?, value });
        }
        input.parts = parts;
    }
    Some(record)
}

/// Seven bits a byte, the lowest first.
fn number(out: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn read_number(rest: &mut &[u8]) -> Option<usize> {
    let mut number = 0usize;
    for shift in (0..usize::BITS).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        number |= (usize::from(*byte & 0x7f)).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    number(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn read_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = read_number(rest)?;
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rbuild_solver::{RecordedInput, Usage};

    use super::*;

    fn record(parts: Vec<KeyPart>) -> RunRecord {
        RunRecord {
            name: "[build 2/3] COPY . /src".into(),
            build: "b".into(),
            parts: vec![KeyPart::text("op", "file")],
            inputs: vec![RecordedInput {
                key: CacheKey::of(b"k"),
                selector: Some(".".into()),
                content: Some(ContentHash::of(b"c")),
                parts,
            }],
            results: vec![],
            started: SystemTime::UNIX_EPOCH,
            took: Duration::ZERO,
            usage: Usage::default(),
        }
    }

    #[test]
    fn a_trace_is_read_back_and_is_small() {
        let path = |n: u32| format!("src/module-{:03}/file-{n:05}.rs", n / 100);
        let parts: Vec<KeyPart> =
            (0..50_000).map(|n| KeyPart::content(path(n), ContentHash::of(&n.to_le_bytes()))).collect();
        let bytes = encode(&record(parts.clone())).unwrap();
        assert!(bytes.len() < 50_000 * 24, "{} bytes", bytes.len());
        let back = decode(&bytes).unwrap();
        assert_eq!(without_parts(&back), without_parts(&record(parts.clone())));
        for (part, back) in parts.iter().zip(&back.inputs[0].parts) {
            let (PartValue::Content(a), PartValue::Content(b)) = (&part.value, &back.value) else { panic!() };
            assert_eq!((&part.name, short(a)), (&back.name, short(b)));
        }
        let odd = vec![KeyPart::text("é/ü", "x\ny"), KeyPart::digest("è", "sha256:1"), KeyPart::text("", "")];
        assert_eq!(decode(&encode(&record(odd.clone())).unwrap()).unwrap().inputs[0].parts, odd);
    }

    #[test]
    fn a_damaged_trace_is_none() {
        let bytes =
            encode(&record(vec![KeyPart::text("a", "b"), KeyPart::content("ab", ContentHash::of(b""))])).unwrap();
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_none(), "{cut} of {} bytes", bytes.len());
        }
        assert!(decode(&[0xff; 64]).is_none());
    }

    #[test]
    fn steps_have_places() {
        assert_eq!(place("[build  2/15] RUN x"), Some(("build", 2)));
        assert_eq!(place("[linux/amd64 build 2/5] RUN x"), Some(("linux/amd64 build", 2)));
        assert_eq!(place("[2/5] RUN x"), Some(("", 2)));
        assert_eq!(place("RUN x"), None);
        assert_eq!(spot("[build 2/5] RUN x"), spot("[build  2/15] RUN y"));
        assert_ne!(spot("[build 2/5] RUN x"), spot("[build 2/5] COPY x y"));
    }

    #[test]
    fn a_label_has_no_number() {
        for (name, want) in [
            ("[build 2/5] RUN make", "RUN make"),
            ("[linux/arm64 1/1] COPY [\"a b\", \"/x] y\"]", "COPY [\"a b\", \"/x] y\"]"),
            ("RUN [ -f x ] && y", "RUN [ -f x ] && y"),
        ] {
            assert_eq!(label(name), want);
        }
    }
}
