//! What the rows of a file look like: told by its name, else by its first bytes.

use std::path::Path;

use super::super::{Error, Result};

/// What the rows of a file look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Comma-separated with a header row; fields may be quoted and then hold commas and newlines
    Csv,
    /// As CSV, separated by tabs
    Tsv,
    /// One JSON object a line
    Jsonl,
    /// One posting a line, in a column named text
    Txt,
    /// Apache Parquet
    Parquet,
}

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, one member or several.
    Gzip,
    /// Zstandard, one frame or several.
    Zstd,
}

const GZIP: &[u8] = b"\x1F\x8B";
const ZSTD: &[u8] = b"\x28\xB5\x2F\xFD";
/// Skippable zstd frames, with which pzstd and seekable files begin: 0x184D2A50 to 0x184D2A5F, little endian.
const ZSTD_SKIPPABLE: &[u8] = b"\x2A\x4D\x18";

impl Compression {
    /// As many first bytes as [`Compression::of_bytes`] needs.
    pub(super) const MAGIC: usize = ZSTD.len();

    /// The compression that a file's name says: .gz, .zst or none.
    pub fn of_name(path: &Path) -> Compression {
        match path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("gz") => Compression::Gzip,
            Some("zst") => Compression::Zstd,
            _ => Compression::None,
        }
    }

    /// The compression that a file's first bytes show.
    pub(super) fn of_bytes(magic: &[u8]) -> Compression {
        match magic {
            _ if magic.starts_with(GZIP) => Compression::Gzip,
            _ if magic.starts_with(ZSTD) => Compression::Zstd,
            [0x50..=0x5F, rest @ ..] if rest.starts_with(ZSTD_SKIPPABLE) => Compression::Zstd,
            _ => Compression::None,
        }
    }
}

/// What can be opened, for errors and help.
pub(super) const SUPPORTED: &str =
    "inputs are .csv, .tsv, .jsonl, .txt (each also .gz or .zst), .parquet, or - for standard input";

/// Files that are neither text nor one of our compressions: first bytes, name, what to do.
const FOREIGN: [(&[u8], &str, &str); 7] = [
    (b"PK\x03\x04", "a zip archive (or a spreadsheet)", "unpack it, or export it as CSV"),
    (b"BZh", "bzip2 data", "unpack it with bunzip2"),
    (b"\xFD7zXZ\0", "xz data", "unpack it with unxz"),
    (b"\x04\x22\x4D\x18", "lz4 data", "unpack it with lz4 -d"),
    (b"\xFF\xFE", "UTF-16 text", "convert it with iconv -f UTF-16 -t UTF-8"),
    (b"\xFE\xFF", "UTF-16 text", "convert it with iconv -f UTF-16 -t UTF-8"),
    (b"SQLite format 3\0", "an SQLite database", "export the table as CSV"),
];

/// A first line is taken for column names only where each name is at most this long.
const LONGEST_NAME: usize = 40;

impl Format {
    /// The format that a file's name says, past .gz and .zst; `None` where it says none.
    pub fn of_name(path: &Path) -> Option<Format> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let name = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
        match name.rsplit_once('.')?.1 {
            "csv" => Some(Format::Csv),
            "tsv" => Some(Format::Tsv),
            "jsonl" | "ndjson" => Some(Format::Jsonl),
            "txt" => Some(Format::Txt),
            "parquet" => Some(Format::Parquet),
            _ => None,
        }
    }

    /// The format of a stream by its first bytes.
    pub(super) fn sniff(name: &Path, head: &[u8]) -> Result<Format> {
        not_foreign(name, head)?;
        let head = head.trim_ascii_start();
        if head.starts_with(b"{") {
            return Ok(Format::Jsonl);
        }
        if head.starts_with(b"[") && head.get(1..).is_some_and(|rest| rest.trim_ascii_start().starts_with(b"{")) {
            return Err(json_array(name));
        }
        let line = head.split(|&b| b == b'\n' || b == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let separated_by = |separator: char| line.contains(separator) && line.split(separator).all(is_column_name);
        Ok(match () {
            () if separated_by('\t') => Format::Tsv,
            () if separated_by(',') || is_single_name(&line) => Format::Csv,
            () => Format::Txt,
        })
    }

    /// The format itself, unless the first bytes contradict it.
    pub(super) fn agree(self, name: &Path, head: &[u8]) -> Result<Format> {
        not_foreign(name, head)?;
        match self {
            Format::Jsonl if starts_an_array(head) => Err(json_array(name)),
            Format::Csv | Format::Tsv if head.starts_with(b"{\"") => Err(Error::File {
                path: name.to_owned(),
                why: "begins with {\" as JSONL does, not with a header row; rename it to .jsonl".to_owned(),
            }),
            format => Ok(format),
        }
    }
}

/// Whether a field of the first line reads as a column's name: short, and not begun by the space that follows a
/// comma in prose.
fn is_column_name(field: &str) -> bool {
    field.len() <= LONGEST_NAME && !field.starts_with(' ') && !field.ends_with(['.', '!', '?', ':'])
}

/// A one-column file: its header is one word of letters, digits and underscores, begun by a lower-case letter.
fn is_single_name(line: &str) -> bool {
    let name = line.trim_matches('"');
    name.len() <= LONGEST_NAME
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn starts_an_array(head: &[u8]) -> bool {
    let mut tokens = head.iter().filter(|b| !b.is_ascii_whitespace());
    tokens.next() == Some(&b'[') && tokens.next() == Some(&b'{')
}

fn json_array(name: &Path) -> Error {
    let why = "is one JSON array, not one object a line; convert it with: jq -c '.[]'".to_owned();
    Error::File { path: name.to_owned(), why }
}

/// The error for Parquet where it can only be read from front to back.
pub(super) fn parquet_in_a_stream(name: &Path) -> Error {
    let why = "Parquet cannot be read from a stream; save it as a .parquet file and name that".to_owned();
    Error::File { path: name.to_owned(), why }
}

fn not_foreign(name: &Path, head: &[u8]) -> Result<()> {
    let error = |why: String| Err(Error::File { path: name.to_owned(), why });
    if head.starts_with(b"PAR1") {
        if name.as_os_str() == "-" {
            return Err(parquet_in_a_stream(name));
        }
        return error("is a Parquet file; rename it to .parquet".to_owned());
    }
    if let Some((_, what, advice)) = FOREIGN.iter().find(|(magic, _, _)| head.starts_with(magic)) {
        return error(format!("is {what}; {advice}"));
    }
    // The first bytes only: a stray NUL inside a posting is no reason to refuse the file.
    if head.iter().take(16).any(|&b| b == 0) {
        return error(format!("holds binary data, not text; {SUPPORTED}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_by_name() {
        let of = |name: &str| Format::of_name(Path::new(name));
        assert_eq!(of("a/postings.csv"), Some(Format::Csv));
        assert_eq!(of("POSTINGS.TSV.GZ"), Some(Format::Tsv));
        assert_eq!(of("p.2024.jsonl.zst"), Some(Format::Jsonl));
        assert_eq!(of("p.txt"), Some(Format::Txt));
        assert_eq!(of("p.parquet"), Some(Format::Parquet));
        assert_eq!(of("p.json"), None);
        assert_eq!(of("csv"), None);
        assert_eq!(of("postings.gz"), None);
    }

    #[test]
    fn formats_by_first_bytes() {
        let sniff = |head: &str| Format::sniff(Path::new("-"), head.as_bytes()).unwrap();
        assert_eq!(sniff("  \n{\"text\": 1}"), Format::Jsonl);
        assert_eq!(sniff("id\ttext, long\n1\tx\n"), Format::Tsv);
        assert_eq!(sniff("id,\"Job Title\",text\r\n1,a,b\r\n"), Format::Csv);
        assert_eq!(sniff("text\nWe hire.\n"), Format::Csv);
        assert_eq!(sniff("Engineer wanted, apply now\n"), Format::Txt);
        assert_eq!(sniff("Engineer\n"), Format::Txt);
        assert_eq!(sniff(""), Format::Txt);
        assert!(Format::sniff(Path::new("-"), b"[\n {\"text\": 1}]").is_err());
        assert!(Format::sniff(Path::new("-"), b"PAR1").is_err());
        assert!(Format::sniff(Path::new("-"), b"PK\x03\x04").is_err());
        assert!(Format::sniff(Path::new("-"), b"i\0d\0").is_err());
    }
}
