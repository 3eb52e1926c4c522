//! Writes invented postings to a file or a stream, in constant memory and in order, on all threads.

use std::fs::File;
use std::io::Write;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::super::source::{Compression, Format};
use super::super::{Error, Result};
use super::{SynthRow, row};
use crate::disk;

/// Rows made at a time by one thread: about a megabyte of text.
const BLOCK: u64 = 1024;
/// Fast levels: the text is regular, higher ones gain little.
const GZIP_LEVEL: u32 = 4;
const ZSTD_LEVEL: i32 = 3;
const COLUMNS: [&str; 6] = ["id", "title", "company", "location", "text", "label"];

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// How many postings, those of index 0 to `rows - 1`.
    pub rows: u64,
    /// Their seed.
    pub seed: u64,
    /// CSV, TSV or JSONL.
    pub format: Format,
    /// How the file is compressed. Each block becomes a member (gzip) or a frame (zstd) of its own, which every reader
    /// joins.
    pub compression: Compression,
}

/// Writes a file under a temporary name in its directory and renames it last; returns its size in bytes. A file of
/// that name is replaced. Runs on rayon's current pool; `progress` is told the rows so far and may stop the work.
///
/// # Errors
/// The format has no writer, the file cannot be created, the disk is full, `progress` stopped the work; nothing is left.
pub fn write_file(path: &Path, job: &Job, progress: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<u64> {
    let partial = Partial::create(path)?;
    let bytes = write_stream(&partial.name, &mut &partial.file, job, progress)?;
    let io = |source| Error::Io { path: path.to_owned(), source };
    partial.file.sync_all().map_err(io)?;
    disk::rename(&partial.name, path).map_err(io)?;
    Ok(bytes)
}

/// Writes to a stream, of which `name` stands in errors; returns the bytes written. See [`write_file`].
///
/// # Errors
/// The format has no writer, the stream cannot be written, `progress` stopped the work.
pub fn write_stream(
    name: &Path, out: &mut dyn Write, job: &Job, progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<u64> {
    let io = |source| Error::Io { path: name.to_owned(), source };
    let blocks_at_once = 2 * rayon::current_num_threads() as u64;
    let (mut bytes, mut next) = (0, 0);
    loop {
        // The first block is written even where it is empty: it has the header row.
        let starts = (0..blocks_at_once).map(|i| next + i * BLOCK).filter(|&start| start < job.rows || start == 0);
        let blocks: Vec<std::io::Result<Vec<u8>>> = (starts.collect::<Vec<u64>>().into_par_iter())
            .map(|start| block(job, start..job.rows.min(start + BLOCK)))
            .collect();
        for block in blocks {
            let block = block.map_err(io)?;
            out.write_all(&block).map_err(io)?;
            bytes += block.len() as u64;
        }
        next += blocks_at_once * BLOCK;
        let done = job.rows.min(next);
        if done == job.rows {
            break;
        }
        if progress(done).is_break() {
            return Err(Error::Invalid(format!("stopped after {done} of {} rows, which are not kept", job.rows)));
        }
    }
    out.flush().map_err(io)?;
    Ok(bytes)
}

/// The bytes of some rows, compressed; those of the first block begin with the header.
fn block(job: &Job, rows: Range<u64>) -> std::io::Result<Vec<u8>> {
    let plain = match job.format {
        Format::Csv => separated(job, rows, b',')?,
        Format::Tsv => separated(job, rows, b'\t')?,
        Format::Jsonl => lines(job, rows)?,
        Format::Txt | Format::Parquet => {
            let why = format!("postings are written as CSV, TSV or JSONL, not as {:?}", job.format);
            return Err(std::io::Error::new(std::io::ErrorKind::Unsupported, why));
        }
    };
    match job.compression {
        Compression::None => Ok(plain),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(GZIP_LEVEL));
            encoder.write_all(&plain)?;
            encoder.finish()
        }
        Compression::Zstd => zstd::encode_all(plain.as_slice(), ZSTD_LEVEL),
    }
}

fn lines(job: &Job, rows: Range<u64>) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    for index in rows {
        serde_json::to_writer(&mut out, &row(job.seed, index))?;
        out.push(b'\n');
    }
    Ok(out)
}

fn separated(job: &Job, rows: Range<u64>, delimiter: u8) -> std::io::Result<Vec<u8>> {
    let mut writer = csv::WriterBuilder::new().delimiter(delimiter).from_writer(Vec::new());
    if rows.start == 0 {
        writer.write_record(COLUMNS)?;
    }
    for index in rows {
        let SynthRow { id, title, company, location, text, label } = row(job.seed, index);
        writer.write_record([id.to_string().as_str(), &title, &company, &location, &text, label])?;
    }
    writer.into_inner().map_err(|error| error.into_error())
}

/// A file under a temporary name, deleted when it goes out of scope before it was renamed.
struct Partial {
    name: PathBuf,
    file: File,
}

impl Partial {
    fn create(path: &Path) -> Result<Partial> {
        let Some(file_name) = path.file_name() else {
            return Err(Error::File { path: path.to_owned(), why: "is no file name".to_owned() });
        };
        let mut name = std::ffi::OsString::from(".");
        name.push(file_name);
        name.push(format!(".{}.partial", std::process::id()));
        let name = path.with_file_name(name);
        let file = File::create(&name).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        Ok(Partial { name, file })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After the rename there is nothing of this name; a failure leaves a file that says what it is.
        let _ = std::fs::remove_file(&self.name);
    }
}
