//! BERT's normaliser and pre-tokeniser for ASCII.
//!
//! White space separates whatever the pipeline does, so a text may be looked at one chunk between
//! blanks at a time. In a chunk of ASCII the normaliser only drops control characters and, in
//! uncased models, lowers letters; the pre-tokeniser only parts punctuation. Chunks with anything
//! else (other scripts, or a special token such as `[MASK]`) are handed back as they are.

use super::Error;

/// What a byte is to the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Part of a word.
    Letter,
    /// A word of its own.
    Punctuation,
    /// Dropped, joining what stands on its two sides.
    Control,
    /// Parts chunks. The only white space of ASCII that `clean_text` does not drop as a control character.
    Blank,
    /// Not ASCII.
    Other,
}

/// Settings of the pipeline, as far as they matter for ASCII.
#[derive(Debug)]
pub(super) struct Plain {
    class: [Class; 256],
    lower: [u8; 256],
    /// Tokens found in the raw text before anything else; none holds white space.
    added: Vec<String>,
    /// Bytes with which one of them begins.
    added_first: [bool; 256],
}

/// What stands between two blanks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunk<'a> {
    /// ASCII, for [`Plain::words`].
    Plain(&'a [u8]),
    /// Anything else.
    Other(&'a str),
}

impl Plain {
    /// `added`: contents of the added tokens, each without white space and found in raw text.
    pub fn new(lowercase: bool, added: Vec<String>) -> Result<Self, Error> {
        let unsuitable = |token: &&String| token.is_empty() || token.bytes().any(|b| b.is_ascii_whitespace());
        if let Some(token) = added.iter().find(unsuitable) {
            return Err(Error::Invalid(format!("tokenizer: added token {token:?} holds white space or nothing")));
        }
        let class = std::array::from_fn(|b| match b as u8 {
            b'\t' | b'\n' | b'\r' | b' ' => Class::Blank,
            0..0x20 | 0x7F => Class::Control,
            b if b.is_ascii_punctuation() => Class::Punctuation,
            0..0x80 => Class::Letter,
            _ => Class::Other,
        });
        let lower = std::array::from_fn(|b| if lowercase { (b as u8).to_ascii_lowercase() } else { b as u8 });
        let mut added_first = [false; 256];
        for first in added.iter().filter_map(|token| token.bytes().next()) {
            added_first[usize::from(first)] = true;
        }
        Ok(Plain { class, lower, added, added_first })
    }

    /// Calls `f` with each chunk, in order, until it returns false.
    pub fn chunks<'a>(&self, text: &'a str, mut f: impl FnMut(Chunk<'a>) -> bool) {
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let start = at;
            let (mut ascii, mut added) = (true, false);
            while let Some(&byte) = bytes.get(at) {
                match self.class[usize::from(byte)] {
                    Class::Blank => break,
                    Class::Other => ascii = false,
                    _ => {}
                }
                added |= self.added_first[usize::from(byte)];
                at += 1;
            }
            // Blanks are ASCII, so these are character boundaries.
            let chunk = &text[start..at];
            at += 1;
            if chunk.is_empty() {
                continue;
            }
            let plain = ascii && !(added && self.added.iter().any(|token| chunk.contains(token.as_str())));
            if !f(if plain { Chunk::Plain(chunk.as_bytes()) } else { Chunk::Other(chunk) }) {
                return;
            }
        }
    }

    /// Calls `f` with each normalised word of a plain chunk, in order.
    #[inline]
    pub fn words(&self, chunk: &[u8], mut f: impl FnMut(&[u8])) {
        // Words are short; a longer one goes to the heap.
        let mut short = [0u8; 64];
        let mut long = Vec::new();
        let word: &mut [u8] = if chunk.len() <= short.len() {
            &mut short
        } else {
            long.resize(chunk.len(), 0);
            &mut long
        };
        let mut length = 0;
        for &byte in chunk {
            match self.class[usize::from(byte)] {
                Class::Letter => {
                    word[length] = self.lower[usize::from(byte)];
                    length += 1;
                }
                Class::Punctuation => {
                    if length > 0 {
                        f(&word[..length]);
                        length = 0;
                    }
                    f(&[byte]);
                }
                Class::Control | Class::Blank | Class::Other => {}
            }
        }
        if length > 0 {
            f(&word[..length]);
        }
    }
}

/// Cuts a text at blanks into parts of about `target` bytes, and longer where there is no blank.
pub(super) fn segments(text: &str, target: usize) -> Vec<&str> {
    let mut parts = Vec::with_capacity(text.len() / target.max(1) + 1);
    let mut rest = text;
    while rest.len() > target {
        let blank = rest.as_bytes()[target..].iter().position(|b| matches!(b, b'\t' | b'\n' | b'\r' | b' '));
        let Some(blank) = blank else { break };
        let (part, after) = rest.split_at(target + blank);
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(text: &str) -> Vec<Chunk<'_>> {
        let mut found = Vec::new();
        Plain::new(true, vec!["[MASK]".to_owned()]).unwrap().chunks(text, |chunk| {
            found.push(chunk);
            true
        });
        found
    }

    #[test]
    fn chunks_are_parted_at_blanks_only() {
        assert_eq!(chunks(" \t\r\n "), []);
        assert_eq!(
            chunks("a\tb\u{b}c  [x]\r\n[MASK], caf\u{e9} [MAS"),
            [
                Chunk::Plain(b"a"),
                Chunk::Plain(b"b\x0bc"),
                Chunk::Plain(b"[x]"),
                Chunk::Other("[MASK],"),
                Chunk::Other("caf\u{e9}"),
                Chunk::Plain(b"[MAS"),
            ]
        );
    }

    #[test]
    fn words_are_lowered_cleaned_and_parted_at_punctuation() {
        let plain = Plain::new(true, Vec::new()).unwrap();
        let mut words = Vec::new();
        plain.words(b"It's\x00 C\x07++/\x7f", |word| words.push(String::from_utf8(word.to_vec()).unwrap()));
        assert_eq!(words, ["it", "'", "sc", "+", "+", "/"]);
    }

    #[test]
    fn segments_lose_nothing_and_end_at_blanks() {
        let text = "one two\tthree fourfourfour five ".repeat(50);
        for target in [1, 7, 64, 100_000] {
            let parts = segments(&text, target);
            assert_eq!(parts.concat(), text);
            assert!(parts.iter().skip(1).all(|part| part.starts_with([' ', '\t'])));
        }
        assert_eq!(segments("nothing-to-cut-at", 3), ["nothing-to-cut-at"]);
        assert_eq!(segments("", 3), [""]);
    }
}
