//! Reads tar archives, strictly.
//!
//! Every command that takes an archive reads it here, so that an archive has one meaning: a PAX size always wins, and
//! what other readers would understand differently is an error that names the entry (a body where none belongs, data
//! after the end mark, a missing end mark, overlapping sparse maps, wrong checksums). Old tar, ustar, PAX and GNU
//! archives are understood, sparse files included. The `tar` crate serves as the codec of the header block only: its
//! iterator guesses where this one refuses.

use std::io::{self, Read};

use rbuild_oci::limits;
use tar::Header;

use super::pax::{self, Extensions};
use super::tar::{BLOCK, Entry, EntryKind, header_of, pax_records};
use crate::error::{Result, StoreError};
use crate::root::Timestamp;

const BUFFER: usize = 256 << 10;

/// A stream of entries. [`Reader::next`] goes to the next entry and skips what was not read of the body before.
pub struct Reader<R> {
    input: Input<R>,
    body: Body,
    ended: bool,
    canonical: bool,
}

/// A piece of a file's content. What lies between two pieces, and after the last one, is a hole.
#[derive(Debug)]
pub struct Piece<'a> {
    pub offset: u64,
    pub bytes: &'a [u8],
}

/// The content of the entry at hand, as far as it has not been read.
#[derive(Default)]
struct Body {
    /// Name for messages.
    name: String,
    /// Pieces to come: offset in the file and length; the first is the one being read. Lengths add up to `stored`.
    pieces: std::collections::VecDeque<(u64, u64)>,
    /// Bytes of content still in the archive.
    stored: u64,
    padding: u64,
    size: u64,
}

impl<R: Read> Reader<R> {
    pub fn new(input: R) -> Reader<R> {
        Reader {
            input: Input { inner: input, buffer: vec![0; BUFFER].into_boxed_slice(), start: 0, end: 0 },
            body: Body::default(),
            ended: false,
            canonical: true,
        }
    }

    /// Whether all entries so far were encoded as our own writer does. (Their choice and order is not looked at.)
    pub fn is_canonical(&self) -> bool {
        self.canonical
    }

    /// The next entry; `None` after the end mark, once everything behind it was seen to be zeros.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] naming the entry, [`StoreError::Io`] for what the input says.
    #[allow(clippy::should_implement_trait)] // it lends nothing, but it fails: `Result<Option<_>>` reads better here
    pub fn next(&mut self) -> Result<Option<Entry>> {
        self.skip_body()?;
        let mut extensions = Extensions::default();
        let mut records = Vec::new();
        loop {
            if self.ended {
                return Ok(None);
            }
            let Some(header) = self.read_header()? else {
                self.ended = true;
                if !extensions.is_empty() {
                    return Err(StoreError::invalid("tar archive", "an extension header has no entry after it"));
                }
                self.input.expect_zeros()?;
                return Ok(None);
            };
            let shown = shown(&raw_name(&header));
            let bad = |reason: String| invalid(&shown, reason);
            let flag = header.as_old().linkflag[0];
            self.canonical &= !matches!(flag, b'g' | b'L' | b'K' | b'V');
            match flag {
                b'x' => {
                    records = self.record(&header, &shown)?;
                    extensions.add_pax(&records).map_err(bad)?;
                }
                b'g' => pax::check_global(&self.record(&header, &shown)?).map_err(bad)?,
                b'L' => set_once(&mut extensions.gnu_path, pax::gnu_name(&self.record(&header, &shown)?).map_err(bad)?)
                    .map_err(bad)?,
                b'K' => set_once(&mut extensions.gnu_link, pax::gnu_name(&self.record(&header, &shown)?).map_err(bad)?)
                    .map_err(bad)?,
                b'V' => {
                    let size = stored_size(&header).map_err(bad)?;
                    self.input.skip(size.next_multiple_of(BLOCK as u64), &shown)?;
                }
                _ => {
                    let entry = self.entry(&header, extensions)?;
                    self.canonical = self.canonical
                        && records == pax_records(&entry)
                        && header.as_bytes() == header_of(&entry).as_bytes();
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// The next piece of the entry's content; `None` at its end.
    ///
    /// # Errors
    /// When the archive ends before the content does.
    pub fn piece(&mut self) -> Result<Option<Piece<'_>>> {
        while self.body.pieces.front().is_some_and(|piece| piece.1 == 0) {
            self.body.pieces.pop_front();
        }
        let Some((offset, len)) = self.body.pieces.front_mut() else {
            return Ok(None);
        };
        let bytes = self.input.take(*len, &self.body.name)?;
        let piece = Piece { offset: *offset, bytes };
        *offset += bytes.len() as u64;
        *len -= bytes.len() as u64;
        self.body.stored -= bytes.len() as u64;
        Ok(Some(piece))
    }

    /// The entry's whole content, holes as zeros.
    ///
    /// # Errors
    /// [`StoreError::Limit`] when it has more than `limit` bytes.
    pub fn read_body(&mut self, limit: u64) -> Result<Vec<u8>> {
        if self.body.size > limit {
            return Err(StoreError::Limit { what: format!("{} in the archive", self.body.name), limit, unit: "bytes" });
        }
        let mut content = vec![0; self.body.size as usize];
        while let Some(piece) = self.piece()? {
            let at = piece.offset as usize;
            content[at..at + piece.bytes.len()].copy_from_slice(piece.bytes);
        }
        Ok(content)
    }

    /// The entry's content as a stream, holes as zeros.
    pub fn body(&mut self) -> impl Read + '_ {
        let size = self.body.size;
        BodyRead { reader: self, at: 0, size }
    }

    fn skip_body(&mut self) -> Result<()> {
        let left = std::mem::take(&mut self.body.stored) + std::mem::take(&mut self.body.padding);
        self.body.pieces.clear();
        self.input.skip(left, &self.body.name)
    }

    /// A header block whose checksum is right, or `None` for the end mark.
    fn read_header(&mut self) -> Result<Option<Header>> {
        let mut header = Header::new_old();
        if !self.input.block(header.as_mut_bytes(), "its end mark")? {
            return Err(StoreError::invalid("tar archive", "it is truncated: it has no end mark"));
        }
        if header.as_bytes().iter().all(|b| *b == 0) {
            let mut second = [0; BLOCK];
            if !self.input.block(&mut second, "its end mark")? {
                return Err(StoreError::invalid("tar archive", "it is truncated: half of its end mark is missing"));
            }
            if second.iter().any(|b| *b != 0) {
                return Err(StoreError::invalid("tar archive", "there is data after the end mark"));
            }
            return Ok(None);
        }
        let said = number(&header.as_old().cksum).filter(|n| *n >= 0);
        let (mut plain, mut signed) = (0i64, 0i64);
        for (at, byte) in header.as_bytes().iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            plain += i64::from(byte);
            signed += i64::from(byte as i8);
        }
        if said != Some(plain) && said != Some(signed) {
            return Err(StoreError::invalid(
                "tar archive",
                "the checksum of a header is wrong: it is damaged or no tar archive",
            ));
        }
        Ok(Some(header))
    }

    /// The content of an extension header.
    fn record(&mut self, header: &Header, shown: &str) -> Result<Vec<u8>> {
        let size = stored_size(header).map_err(|reason| invalid(shown, reason))?;
        if size > limits::ARCHIVE_RECORD {
            return Err(StoreError::Limit {
                what: format!("an extension header of {size} bytes in a tar archive"),
                limit: limits::ARCHIVE_RECORD,
                unit: "bytes",
            });
        }
        let mut bytes = vec![0; size.next_multiple_of(BLOCK as u64) as usize];
        for block in bytes.chunks_exact_mut(BLOCK) {
            if !self.input.block(block, shown)? {
                return Err(truncated(shown));
            }
        }
        bytes.truncate(size as usize);
        Ok(bytes)
    }

    fn entry(&mut self, header: &Header, mut extensions: Extensions) -> Result<Entry> {
        let sparse = std::mem::take(&mut extensions.sparse);
        let pax_name = sparse.name.clone().or(extensions.path.take());
        let raw = pax_name.or(extensions.gnu_path.take()).unwrap_or_else(|| raw_name(header));
        let shown = shown(&raw);
        let bad = |reason: String| invalid(&shown, reason);
        let path = clean(&raw).map_err(bad)?;
        let link = extensions
            .link
            .take()
            .or(extensions.gnu_link.take())
            .unwrap_or_else(|| until_nul(&header.as_old().linkname));
        let stored = match extensions.size {
            Some(size) => size,
            None => stored_size(header).map_err(bad)?,
        };
        let flag = header.as_old().linkflag[0];
        self.body = Body {
            name: shown.clone(),
            stored,
            padding: stored.next_multiple_of(BLOCK as u64) - stored,
            ..Body::default()
        };
        let kind = match flag {
            0 if raw.ends_with(b"/") && stored == 0 => EntryKind::Directory,
            0 | b'0' | b'7' if raw.ends_with(b"/") => return Err(bad("a file's name ends with a slash".into())),
            0 | b'0' | b'7' | b'S' => {
                let (size, pieces) = self.content(header, flag, &sparse, stored)?;
                self.body.size = size;
                self.body.pieces = pieces.into();
                EntryKind::File { size }
            }
            b'1'..=b'6' if stored != 0 => return Err(bad("it has a body, but its type has none".into())),
            b'1' => EntryKind::HardLink {
                target: clean(&link).map_err(|reason| bad(format!("its link target: {reason}")))?,
            },
            b'2' if link.is_empty() => return Err(bad("its link target is empty".into())),
            b'2' => EntryKind::Symlink { target: link },
            b'3' | b'4' => {
                let (major, minor) = device(header).map_err(bad)?;
                if flag == b'3' {
                    EntryKind::CharDevice { major, minor }
                } else {
                    EntryKind::BlockDevice { major, minor }
                }
            }
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => return Err(bad(format!("its type {:?} is not supported", char::from(other)))),
        };
        if path.is_empty() && kind != EntryKind::Directory {
            return Err(bad("the root of the archive is no directory".into()));
        }
        let old = header.as_old();
        let field = |bytes: &[u8], what: &str| number(bytes).ok_or_else(|| bad(format!("its {what} is no number")));
        let mtime = match extensions.mtime {
            Some(mtime) => mtime,
            None => Timestamp::new(field(&old.mtime, "time")?, 0),
        };
        Ok(Entry {
            path,
            kind,
            mode: (field(&old.mode, "mode")? & 0o7777) as u32,
            uid: owner(extensions.uid, &old.uid).map_err(bad)?,
            gid: owner(extensions.gid, &old.gid).map_err(bad)?,
            mtime,
            xattrs: extensions.xattrs,
        })
    }

    /// Size and pieces of a regular file, sparse or not.
    fn content(
        &mut self,
        header: &Header,
        flag: u8,
        sparse: &pax::SparseRecords,
        stored: u64,
    ) -> Result<(u64, Vec<(u64, u64)>)> {
        let shown = self.body.name.clone();
        let bad = |reason: &str| invalid(&shown, reason.to_owned());
        let version = (sparse.major, sparse.minor);
        let (size, map) = if flag == b'S' {
            self.gnu_sparse(header)?
        } else if version == (Some(1), Some(0)) {
            let size = sparse.real_size.ok_or_else(|| bad("it is sparse, but its size is missing"))?;
            (size, self.leading_map()?)
        } else if let (Some(map), None | Some(0)) = (&sparse.map, sparse.major) {
            (sparse.real_size.ok_or_else(|| bad("it is sparse, but its size is missing"))?, map.clone())
        } else if sparse.major.is_some() || sparse.real_size.is_some() {
            return Err(bad("it is sparse in a form that is not supported"));
        } else {
            return Ok((stored, vec![(0, stored)]));
        };
        let mut end = 0u64;
        let mut data = 0u64;
        for (offset, len) in &map {
            let next = offset.checked_add(*len).filter(|next| *offset >= end && *next <= size);
            end = next.ok_or_else(|| bad("its sparse map overlaps or leaves the file"))?;
            data += len;
        }
        if data != self.body.stored {
            return Err(bad("its sparse map does not fit its content"));
        }
        Ok((size, map))
    }

    /// The map of GNU's own sparse format: four pieces in the header, the others in blocks after it.
    fn gnu_sparse(&mut self, header: &Header) -> Result<(u64, Vec<(u64, u64)>)> {
        let shown = self.body.name.clone();
        let bad = || invalid(&shown, "its sparse map is damaged".to_owned());
        let gnu = header.as_gnu().ok_or_else(bad)?;
        let size = unsigned(&gnu.realsize).ok_or_else(bad)?;
        let mut map = Vec::new();
        let mut add = |entries: &[tar::GnuSparseHeader]| {
            for piece in entries.iter().filter(|piece| piece.offset[0] != 0) {
                map.push((unsigned(&piece.offset)?, unsigned(&piece.numbytes)?));
            }
            Some(map.len())
        };
        add(&gnu.sparse).ok_or_else(bad)?;
        let mut more = gnu.isextended[0] == 1;
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            if !self.input.block(block.as_mut_bytes(), &shown)? {
                return Err(truncated(&shown));
            }
            let pieces = add(&block.sparse).ok_or_else(bad)?;
            check_pieces(pieces, &shown)?;
            more = block.isextended[0] == 1;
        }
        Ok((size, map))
    }

    /// The map of PAX's form 1.0: decimal lines before the content, padded to a block.
    fn leading_map(&mut self) -> Result<Vec<(u64, u64)>> {
        let shown = self.body.name.clone();
        let bad = || invalid(&shown, "its sparse map is damaged".to_owned());
        let mut block = [0; BLOCK];
        let mut at = BLOCK;
        let mut number = |reader: &mut Self| -> Result<u64> {
            let mut digits = Vec::new();
            loop {
                if at == BLOCK {
                    reader.body.stored = reader.body.stored.checked_sub(BLOCK as u64).ok_or_else(bad)?;
                    if !reader.input.block(&mut block, &shown)? {
                        return Err(truncated(&shown));
                    }
                    at = 0;
                }
                at += 1;
                match block[at - 1] {
                    b'\n' => return pax::decimal(b"sparse map", &digits).map_err(|_| bad()),
                    digit if digits.len() < 20 => digits.push(digit),
                    _ => return Err(bad()),
                }
            }
        };
        let count = number(self)?;
        check_pieces(count as usize, &shown)?;
        (0..count).map(|_| Ok((number(self)?, number(self)?))).collect()
    }
}

struct BodyRead<'a, R> {
    reader: &'a mut Reader<R>,
    at: u64,
    size: u64,
}

impl<R: Read> Read for BodyRead<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.reader.body.pieces.front().is_some_and(|piece| piece.1 == 0) {
            self.reader.body.pieces.pop_front();
        }
        let room = (self.size - self.at).min(out.len() as u64);
        let next = self.reader.body.pieces.front().map_or(self.size, |piece| piece.0);
        let len = if next > self.at {
            let zeros = room.min(next - self.at) as usize;
            out[..zeros].fill(0);
            zeros
        } else if room == 0 {
            0
        } else {
            let piece = &mut self.reader.body.pieces[0];
            let want = room.min(piece.1);
            let bytes = self.reader.input.take(want, &self.reader.body.name).map_err(io::Error::other)?;
            out[..bytes.len()].copy_from_slice(bytes);
            let len = bytes.len();
            piece.0 += len as u64;
            piece.1 -= len as u64;
            self.reader.body.stored -= len as u64;
            len
        };
        self.at += len as u64;
        Ok(len)
    }
}

/// The bytes of the archive behind one buffer.
struct Input<R> {
    inner: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<R: Read> Input<R> {
    /// Makes at least one byte available; false at the end.
    fn fill(&mut self) -> Result<bool> {
        while self.start == self.end {
            match self.inner.read(&mut self.buffer) {
                Ok(0) => return Ok(false),
                Ok(len) => (self.start, self.end) = (0, len),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(super::from_io("reading the archive", e)),
            }
        }
        Ok(true)
    }

    /// Up to `want` bytes, at least one.
    fn take(&mut self, want: u64, of: &str) -> Result<&[u8]> {
        if !self.fill()? {
            return Err(truncated(of));
        }
        let len = want.min((self.end - self.start) as u64) as usize;
        self.start += len;
        Ok(&self.buffer[self.start - len..self.start])
    }

    /// One whole block, or false at the end of the input.
    fn block(&mut self, block: &mut [u8], of: &str) -> Result<bool> {
        let mut filled = 0;
        while filled < block.len() {
            if !self.fill()? {
                return if filled == 0 { Ok(false) } else { Err(truncated(of)) };
            }
            let bytes = self.take((block.len() - filled) as u64, of)?;
            block[filled..filled + bytes.len()].copy_from_slice(bytes);
            filled += bytes.len();
        }
        Ok(true)
    }

    fn skip(&mut self, mut len: u64, of: &str) -> Result<()> {
        while len > 0 {
            len -= self.take(len, of)?.len() as u64;
        }
        Ok(())
    }

    fn expect_zeros(&mut self) -> Result<()> {
        while self.fill()? {
            if self.buffer[self.start..self.end].iter().any(|b| *b != 0) {
                return Err(StoreError::invalid("tar archive", "there is data after the end mark"));
            }
            self.start = self.end;
        }
        Ok(())
    }
}

fn set_once(slot: &mut Option<Vec<u8>>, value: Vec<u8>) -> std::result::Result<(), String> {
    match slot.replace(value) {
        Some(_) => Err("it has two long names".into()),
        None => Ok(()),
    }
}

fn check_pieces(count: usize, shown: &str) -> Result<()> {
    // The same bound as for a map in a PAX record, where a piece takes four characters at least.
    let limit = limits::ARCHIVE_RECORD / 4;
    if count as u64 > limit {
        return Err(StoreError::Limit { what: format!("the sparse map of tar entry {shown}"), limit, unit: "pieces" });
    }
    Ok(())
}

fn invalid(shown: &str, reason: String) -> StoreError {
    StoreError::invalid(format!("tar entry {shown}"), reason)
}

fn truncated(of: &str) -> StoreError {
    StoreError::invalid("tar archive", format!("it is truncated within {of}"))
}

/// A name for messages: no control characters, not endless.
pub(crate) fn shown(name: &[u8]) -> String {
    let cut = &name[..name.len().min(200)];
    let text: String = String::from_utf8_lossy(cut).chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    if cut.len() < name.len() { text + "…" } else { text }
}

/// Brings a name into the form of [`Entry::path`].
///
/// A leading slash goes, as with every tar; a `..` is refused even where it would stay inside, since no program that
/// packs a tree writes one.
pub(crate) fn clean(raw: &[u8]) -> std::result::Result<Vec<u8>, String> {
    if raw.is_empty() {
        return Err("its name is empty".into());
    }
    let mut path = Vec::with_capacity(raw.len());
    for component in raw.split(|b| *b == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => return Err("a name with .. in it is not allowed".into()),
            _ if component.len() > limits::COMPONENT => {
                return Err(format!(
                    "a component of {} bytes is over the limit of {} bytes",
                    component.len(),
                    limits::COMPONENT
                ));
            }
            _ => {}
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(component);
    }
    if path.len() >= limits::PATH {
        return Err(format!("its name of {} bytes is over the limit of {} bytes", path.len(), limits::PATH));
    }
    Ok(path)
}

/// The name in the header alone. Only POSIX archives have a prefix; GNU uses its place for other things.
fn raw_name(header: &Header) -> Vec<u8> {
    let name = until_nul(&header.as_old().name);
    match header.as_ustar() {
        Some(ustar) if ustar.prefix[0] != 0 => [until_nul(&ustar.prefix).as_slice(), b"/", &name].concat(),
        _ => name,
    }
}

fn until_nul(field: &[u8]) -> Vec<u8> {
    field.split(|b| *b == 0).next().unwrap_or_default().to_vec()
}

fn stored_size(header: &Header) -> std::result::Result<u64, String> {
    unsigned(&header.as_old().size).ok_or_else(|| "its size is no number".into())
}

fn device(header: &Header) -> std::result::Result<(u32, u32), String> {
    let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
        (Some(ustar), _) => (&ustar.dev_major, &ustar.dev_minor),
        (_, Some(gnu)) => (&gnu.dev_major, &gnu.dev_minor),
        _ => return Err("old tar has no device nodes".into()),
    };
    let part =
        |field: &[u8]| unsigned(field).and_then(|n| u32::try_from(n).ok()).ok_or("its device number is no number");
    let (major, minor) = (part(major)?, part(minor)?);
    if major >= 1 << 12 || minor >= 1 << 20 {
        return Err(format!("there is no device {major}:{minor}"));
    }
    Ok((major, minor))
}

/// An owner: never wrapped, never the "unchanged" of `chown`.
fn owner(pax: Option<u64>, field: &[u8]) -> std::result::Result<u32, String> {
    let id = match pax {
        Some(id) => id,
        None => unsigned(field).ok_or("its owner is no number")?,
    };
    u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or_else(|| format!("there is no owner {id}"))
}

fn unsigned(field: &[u8]) -> Option<u64> {
    number(field).and_then(|n| u64::try_from(n).ok())
}

/// A number of a header: octal text, or GNU's binary form (first bit set, then two's complement, big end first).
fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        let mut byte = if negative { first } else { first & 0x7f };
        for next in field[1..].iter().map(Some).chain([None]) {
            value = (value << 8) | i128::from(byte);
            if i64::try_from(value).is_err() {
                return None;
            }
            match next {
                Some(next) => byte = *next,
                None => break,
            }
        }
        return i64::try_from(value).ok();
    }
    let text = field.trim_ascii_start();
    let end = text.iter().position(|b| *b == 0 || *b == b' ').unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if rest.iter().any(|b| *b != 0 && *b != b' ') {
        return None;
    }
    digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}
