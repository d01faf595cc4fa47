//! Compressed streams: told by their content, bounded in memory, and made reproducibly.
//!
//! What comes in may be gzip, zstd, bzip2 or xz whatever its name says. What goes out is gzip or zstd. Gzip is written
//! as a row of members of a fixed amount of input, each compressed for itself: then all cores can work, and the bytes
//! do not depend on how many there are (the size grows by less than half a percent). A single deflate stream would
//! keep one core busy while the others wait. A member is a whole buffer, so libdeflate can make it: half the work of a
//! streaming encoder for the same size.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::mpsc::{self, Receiver, TryRecvError};

use libdeflater::CompressionLvl;
use rbuild_oci::{Compression, limits};

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    Plain,
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

impl Codec {
    /// Tells by the first bytes of a stream; six are enough.
    pub fn detect(start: &[u8]) -> Codec {
        match start {
            [0x1f, 0x8b, 8, ..] => Codec::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Codec::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Codec::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Codec::Xz,
            _ => Codec::Plain,
        }
    }

    /// What a layer's media type would say; `None` where the image specification has no word for it.
    pub fn compression(self) -> Option<Compression> {
        match self {
            Codec::Plain => Some(Compression::None),
            Codec::Gzip => Some(Compression::Gzip),
            Codec::Zstd => Some(Compression::Zstd),
            Codec::Bzip2 | Codec::Xz => None,
        }
    }
}

/// A stream that has been decompressed once, if it needed to be. What is compressed inside stays so.
///
/// Memory is bounded by the format: a zstd window of 128 MiB, an xz dictionary of 256 MiB at most; what asks for more
/// fails when it is read.
pub struct Decompressed<'a> {
    pub codec: Codec,
    inner: Box<dyn Read + Send + 'a>,
}

impl<'a> Decompressed<'a> {
    /// Looks at the start of `input` and sets up what it needs.
    ///
    /// # Errors
    /// What reading the first bytes says.
    pub fn new(input: impl Read + Send + 'a) -> io::Result<Decompressed<'a>> {
        let mut start = Vec::with_capacity(6);
        let mut input = input;
        (&mut input).take(6).read_to_end(&mut start)?;
        let codec = Codec::detect(&start);
        let input = BufReader::with_capacity(128 << 10, io::Cursor::new(start).chain(input));
        let inner: Box<dyn Read + Send + 'a> = match codec {
            Codec::Plain => Box::new(input),
            Codec::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            Codec::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(input)?;
                decoder.window_log_max(limits::ZSTD_WINDOW_LOG)?;
                Box::new(decoder)
            }
            Codec::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
            Codec::Xz => Box::new(xz(input)?),
        };
        Ok(Decompressed { codec, inner })
    }
}

impl Read for Decompressed<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.inner.read(out)
    }
}

fn xz(input: impl BufRead) -> io::Result<impl Read> {
    use liblzma::stream::{CONCATENATED, Stream};
    let stream = Stream::new_stream_decoder(limits::XZ_MEMORY, CONCATENATED).map_err(io::Error::other)?;
    Ok(liblzma::bufread::XzDecoder::new_stream(input, stream))
}

/// Input bytes of one gzip member.
const MEMBER: usize = 1 << 20;

/// How hard to compress when nobody said: the size that BuildKit's gzip has, and zstd 3.
pub const DEFAULT_LEVEL: i32 = -1;
/// The level of libdeflate whose output is as large as that of BuildKit's default: some 2 % more than `gzip -6`.
const GZIP_LEVEL: i32 = 2;

/// What is remembered of how a blob was compressed: the same words, the same bytes.
pub fn made_with(how: Compression, level: i32) -> String {
    match how {
        Compression::None => "none".to_owned(),
        Compression::Gzip if level == DEFAULT_LEVEL => format!("libdeflate:{GZIP_LEVEL}"),
        Compression::Gzip => format!("libdeflate:{level}"),
        Compression::Zstd => format!("zstd:{level}"),
    }
}

/// Compresses what is written to it. [`Compressor::finish`] must be called: what is dropped is an unfinished stream.
pub enum Compressor<W: Write> {
    Plain(W),
    Gzip(ParallelGzip<W>),
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Compressor<W> {
    /// `level` is the codec's own scale or [`DEFAULT_LEVEL`].
    ///
    /// # Errors
    /// When the level is none of the codec's.
    pub fn new(out: W, how: Compression, level: i32) -> io::Result<Compressor<W>> {
        let wrong = |range: &str| {
            let message = format!("compression level {level} is not in the range {range}");
            Err(io::Error::new(io::ErrorKind::InvalidInput, message))
        };
        match how {
            Compression::None => Ok(Compressor::Plain(out)),
            Compression::Gzip => match level {
                DEFAULT_LEVEL => Ok(Compressor::Gzip(ParallelGzip::new(out, GZIP_LEVEL))),
                0..=9 => Ok(Compressor::Gzip(ParallelGzip::new(out, level))),
                _ => wrong("0 to 9"),
            },
            Compression::Zstd => {
                let level = match level {
                    DEFAULT_LEVEL => 3,
                    0..=22 => level,
                    _ => return wrong("0 to 22"),
                };
                let mut encoder = zstd::Encoder::new(out, level)?;
                // One worker and several give the same bytes, none gives others.
                encoder.multithread(rayon::current_num_threads().clamp(1, 8) as u32)?;
                Ok(Compressor::Zstd(encoder))
            }
        }
    }

    /// Writes what is left and gives the output back.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Compressor::Plain(mut out) => {
                out.flush()?;
                Ok(out)
            }
            Compressor::Gzip(gzip) => gzip.finish(),
            Compressor::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Compressor::Plain(out) => out.write(bytes),
            Compressor::Gzip(gzip) => gzip.write(bytes),
            Compressor::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // a flush inside the stream would change its bytes
    }
}

/// Gzip in members of [`MEMBER`] bytes of input. They are compressed side by side while more comes in, and written in
/// their order.
pub struct ParallelGzip<W: Write> {
    out: W,
    level: i32,
    current: Vec<u8>,
    /// Members under way, the oldest first.
    coming: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    /// So many at most: memory does not grow with the input.
    most: usize,
    any: bool,
}

impl<W: Write> ParallelGzip<W> {
    fn new(out: W, level: i32) -> ParallelGzip<W> {
        let most = 2 * rayon::current_num_threads().max(1);
        ParallelGzip { out, level, current: Vec::new(), coming: VecDeque::new(), most, any: false }
    }

    fn finish(mut self) -> io::Result<W> {
        if !self.current.is_empty() || !self.any {
            self.begin()?;
        }
        while !self.coming.is_empty() {
            self.take()?;
        }
        self.out.flush()?;
        Ok(self.out)
    }

    /// Has the current member compressed.
    fn begin(&mut self) -> io::Result<()> {
        self.any = true;
        let input = std::mem::take(&mut self.current);
        let level = self.level;
        let (sender, receiver) = mpsc::sync_channel(1);
        // Nobody takes it when the output failed.
        rayon::spawn(move || drop(sender.send(member(&input, level))));
        self.coming.push_back(receiver);
        if self.coming.len() > self.most { self.take() } else { Ok(()) }
    }

    /// Writes the oldest member when it is ready.
    fn take(&mut self) -> io::Result<()> {
        let Some(oldest) = self.coming.pop_front() else { return Ok(()) };
        let lost = || io::Error::other("a member of the stream was not compressed");
        let member = loop {
            match oldest.try_recv() {
                Ok(member) => break member,
                Err(TryRecvError::Disconnected) => return Err(lost()),
                // A thread of the pool does some of the pool's work; another one waits.
                Err(TryRecvError::Empty) => match rayon::yield_now() {
                    Some(rayon::Yield::Executed) => {}
                    Some(rayon::Yield::Idle) => std::thread::yield_now(),
                    None => break oldest.recv().map_err(|_| lost())?,
                },
            }
        };
        self.out.write_all(&member?)
    }
}

/// One member of a gzip stream.
fn member(input: &[u8], level: i32) -> io::Result<Vec<u8>> {
    let level = CompressionLvl::new(level).map_err(|_| io::Error::other("no such level of compression"))?;
    let mut compressor = libdeflater::Compressor::new(level);
    let mut out = vec![0; compressor.gzip_compress_bound(input.len())];
    let len = compressor.gzip_compress(input, &mut out).map_err(io::Error::other)?;
    out.truncate(len);
    Ok(out)
}

impl<W: Write> Write for ParallelGzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.current.capacity() == 0 {
            self.current.reserve_exact(MEMBER);
        }
        let len = bytes.len().min(MEMBER - self.current.len());
        self.current.extend_from_slice(&bytes[..len]);
        if self.current.len() == MEMBER {
            self.begin()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(len: usize) -> Vec<u8> {
        let mut state = 1u32;
        (0..len)
            .map(|at| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if at % 3 == 0 { (state >> 24) as u8 } else { b'a' }
            })
            .collect()
    }

    fn compress(input: &[u8], how: Compression) -> Vec<u8> {
        let mut out = Compressor::new(Vec::new(), how, DEFAULT_LEVEL).unwrap();
        out.write_all(input).unwrap();
        out.finish().unwrap()
    }

    fn decompress(input: &[u8]) -> io::Result<(Codec, Vec<u8>)> {
        let mut stream = Decompressed::new(input)?;
        let mut out = Vec::new();
        stream.read_to_end(&mut out)?;
        Ok((stream.codec, out))
    }

    #[test]
    fn what_went_in_comes_out() {
        for len in [0, 1, MEMBER - 1, MEMBER, 2 * MEMBER + 5] {
            let input = sample(len);
            for (how, codec) in [(Compression::Gzip, Codec::Gzip), (Compression::Zstd, Codec::Zstd)] {
                let packed = compress(&input, how);
                assert!(decompress(&packed).unwrap() == (codec, input.clone()), "{len} bytes as {codec:?}");
                let cut = decompress(&packed[..packed.len() - 1]);
                assert!(cut.is_err(), "{len} bytes as {codec:?} were accepted without their end");
            }
        }
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(b"hello").unwrap();
        assert_eq!(decompress(&xz.finish().unwrap()).unwrap(), (Codec::Xz, b"hello".to_vec()));
        let mut bz = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bz.write_all(b"hello").unwrap();
        assert_eq!(decompress(&bz.finish().unwrap()).unwrap(), (Codec::Bzip2, b"hello".to_vec()));
        assert_eq!(decompress(b"plain").unwrap(), (Codec::Plain, b"plain".to_vec()));
    }

    #[test]
    fn bytes_do_not_depend_on_the_number_of_threads() {
        let input = sample(9 * MEMBER + 7);
        for how in [Compression::Gzip, Compression::Zstd] {
            let with = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| compress(&input, how))
            };
            assert!(with(1) == with(3), "{how:?}");
        }
    }

    #[test]
    fn a_window_that_is_too_large_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(28).unwrap();
        encoder.write_all(&sample(1 << 16)).unwrap();
        assert!(decompress(&encoder.finish().unwrap()).is_err());
        // The stream's header alone announces the dictionary; encoding with it would need gigabytes here.
        let announced = [0xfdu8, b'7', b'z', b'X', b'Z', 0, 0, 4, 0xe6, 0xd6, 0xb4, 0x46, 2, 0, 0x21, 1, 36, 0, 0, 0];
        let crc = crc32(&announced[12..]);
        let stream = [&announced[..], &crc.to_le_bytes(), &[1, 0, 0, b'x', 0]].concat();
        let error = decompress(&stream).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum()
    }
}
