//! The bytes of one input: decompressed as their first bytes ask, without a byte order mark.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use super::super::{Error, Result};
use super::format::{Compression, Format, SUPPORTED};

/// Large enough that system calls cost nothing beside decompression and parsing.
const BUFFER: usize = 256 << 10;
/// The most of a stream that is looked at to tell its format.
const HEAD: usize = 64 << 10;
/// The most bytes of one row. Where a quote is never closed, or a file has no line ends, all the rest is one row.
pub(super) const MOST_ROW_BYTES: usize = 256 << 20;
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";
/// zstd --long=31, the largest window there is; memory is taken as the file needs it.
const WINDOW_LOG_MAX: u32 = 31;

/// The decompressed bytes of one input, buffered.
pub(super) struct Input {
    name: PathBuf,
    compression: Compression,
    head: Vec<u8>,
    reader: BufReader<Box<dyn Read + Send>>,
}

impl Input {
    /// Looks at the first bytes of `stream` and prepares to read all of it.
    pub(super) fn new(name: &Path, mut stream: Box<dyn Read + Send>) -> Result<Input> {
        let io = |source| Error::Io { path: name.to_owned(), source };
        let mut magic = Vec::new();
        stream.by_ref().take(Compression::MAGIC as u64).read_to_end(&mut magic).map_err(io)?;
        let compression = Compression::of_bytes(&magic);
        if magic.is_empty() && Compression::of_name(name) != Compression::None {
            let why = "is empty, so not even the start of compressed data is there; fetch or write it again";
            return Err(Error::File { path: name.to_owned(), why: why.to_owned() });
        }
        let raw = Cursor::new(magic).chain(stream);
        let mut bytes: Box<dyn Read + Send> = match compression {
            Compression::None => Box::new(raw),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(BUFFER, raw))),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(BufReader::with_capacity(BUFFER, raw)).map_err(io)?;
                decoder.window_log_max(WINDOW_LOG_MAX).map_err(io)?;
                Box::new(decoder)
            }
        };
        let (mut head, failed) = read_head(&mut *bytes);
        if head.starts_with(BYTE_ORDER_MARK) {
            head.drain(..BYTE_ORDER_MARK.len());
        }
        let resumed = Resumed { head: Cursor::new(head.clone()), failed, rest: bytes };
        let reader = BufReader::with_capacity(BUFFER, Box::new(resumed) as Box<dyn Read + Send>);
        Ok(Input { name: name.to_owned(), compression, head, reader })
    }

    /// The file, or `-`.
    pub(super) fn name(&self) -> &Path {
        &self.name
    }

    /// The first bytes: at least the first line that is not blank, where it is shorter than 64 KiB.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Frees the memory of [`Input::head`] once the format is known.
    pub(super) fn forget_head(&mut self) {
        self.head = Vec::new();
    }

    /// What is buffered, after reading more if that is nothing; empty at the end.
    pub(super) fn fill(&mut self) -> std::io::Result<&[u8]> {
        loop {
            match self.reader.fill_buf() {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // Asked again, because the borrow of the first answer may not outlive the loop's turn.
                Ok(_) => return self.reader.fill_buf(),
                Err(error) => return Err(error),
            }
        }
    }

    /// Passes over `count` bytes of what [`Input::fill`] gave.
    pub(super) fn consume(&mut self, count: usize) {
        self.reader.consume(count);
    }

    /// Appends the bytes up to the next newline, which is included, or up to the end; at most [`MOST_ROW_BYTES`] and one.
    pub(super) fn read_line(&mut self, line: &mut Vec<u8>) -> std::io::Result<usize> {
        self.reader.by_ref().take(MOST_ROW_BYTES as u64 + 1).read_until(b'\n', line)
    }

    /// The fatal error for a row without an end, which begins on this line.
    pub(super) fn endless(&self, line: u64, cause: &str) -> Error {
        let why = format!("the row that begins on line {line} is longer than {} MiB; {cause}", MOST_ROW_BYTES >> 20);
        Error::File { path: self.name.clone(), why }
    }

    /// The fatal error for a stream that failed after `rows` rows.
    pub(super) fn failure(&self, source: std::io::Error, rows: u64) -> Error {
        let what = match self.compression {
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
            Compression::None => return Error::Io { path: self.name.clone(), source },
        };
        if source.raw_os_error().is_some() {
            return Error::Io { path: self.name.clone(), source };
        }
        let read = match rows {
            0 => "before the first row".to_owned(),
            1 => "after 1 row, which was read".to_owned(),
            _ => format!("after {rows} rows, which were read"),
        };
        let why = match source.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                format!("the {what} data is cut short {read}; fetch or write the file again")
            }
            _ => format!("the {what} data is damaged ({source}) {read}; fetch or write the file again"),
        };
        Error::File { path: self.name.clone(), why }
    }
}

/// Opens a regular file or a pipe, with errors that say what can be opened.
pub(super) fn open_file(path: &Path, format: Option<Format>) -> Result<File> {
    let error = |why: String| Error::File { path: path.to_owned(), why };
    let io = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => error(format!("there is no such file; {SUPPORTED}")),
        _ => Error::Io { path: path.to_owned(), source },
    };
    let metadata = std::fs::metadata(path).map_err(io)?;
    if metadata.is_dir() {
        return Err(error(format!("is a directory; name the files in it: {SUPPORTED}")));
    }
    if format.is_none() && metadata.is_file() {
        return Err(error(format!("the extension says no known format; {SUPPORTED}")));
    }
    File::open(path).map_err(io)
}

/// Bytes up to the end of the first line that is not blank, at most [`HEAD`]; what stopped the reading, if not that.
///
/// Not more than needed: a live pipe gives the next line only when it has one.
fn read_head(bytes: &mut dyn Read) -> (Vec<u8>, Option<std::io::Error>) {
    let mut head = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match bytes.read(&mut chunk) {
            Ok(0) => return (head, None),
            Ok(count) => head.extend(chunk.iter().take(count)),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return (head, Some(error)),
        }
        let line_found = head.trim_ascii_start().contains(&b'\n');
        if line_found || head.len() >= HEAD {
            return (head, None);
        }
    }
}

/// A stream whose first bytes were already looked at, and its failure kept for its place.
struct Resumed {
    head: Cursor<Vec<u8>>,
    failed: Option<std::io::Error>,
    rest: Box<dyn Read + Send>,
}

impl Read for Resumed {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        match self.head.read(into)? {
            0 => match self.failed.take() {
                // A decoder that failed may report a clean end when asked again.
                Some(error) => Err(error),
                None => self.rest.read(into),
            },
            count => Ok(count),
        }
    }
}
