//! Damaged files: bytes flipped, files cut, stretches left out or repeated, numbers made huge, fields dropped.

use handbert::philox::{below, philox4x32};

/// What a number is replaced by.
const NUMBERS: [&str; 16] = [
    "0",
    "-1",
    "1",
    "0.5",
    "65536",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "1e999",
    "null",
    "\"7\"",
    "[]",
];

/// Damages files; the same ones in the same way, for a seed.
#[derive(Debug, Clone)]
pub struct Damage {
    seed: u32,
    drawn: u32,
}

impl Damage {
    /// The stream of a seed.
    pub fn new(seed: u32) -> Self {
        Damage { seed, drawn: 0 }
    }

    /// An index into what has `len` entries; 0 where that is none.
    pub fn index(&mut self, len: usize) -> usize {
        self.drawn += 1;
        below(philox4x32([self.drawn, 0, 0, 0], [self.seed, 0xda3a_6ed0])[0], len.max(1) as u32) as usize
    }

    /// A copy of a file with one to three things wrong.
    pub fn of(&mut self, valid: &[u8]) -> Vec<u8> {
        let mut bytes = valid.to_vec();
        for _ in 0..=self.index(3) {
            self.once(&mut bytes);
        }
        bytes
    }

    /// The same for a file that begins with the length of its header, as eight bytes: only the header is damaged, and
    /// the length is that of what became of it.
    pub fn of_header(&mut self, valid: &[u8]) -> Vec<u8> {
        let Some((length, rest)) = valid.split_first_chunk::<8>() else { return self.of(valid) };
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let header = self.of(header);
        [&(header.len() as u64).to_le_bytes(), header.as_slice(), data].concat()
    }

    fn once(&mut self, bytes: &mut Vec<u8>) {
        let at = self.index(bytes.len());
        match self.index(8) {
            0 => {
                let bit = self.index(8);
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << bit);
            }
            1 => bytes.truncate(at),
            2 => drop(bytes.splice(self.stretch(bytes.len()), [])),
            3 => {
                let stretch = self.stretch(bytes.len());
                let again = bytes[stretch].to_vec();
                drop(bytes.splice(at..at, again));
            }
            4 | 5 => {
                let Some(number) = self.number(bytes) else { return };
                drop(bytes.splice(number, NUMBERS[self.index(NUMBERS.len())].bytes()));
            }
            6 => drop(bytes.splice(self.field(bytes), [])),
            _ => {
                let field = self.field(bytes);
                let again = bytes[field.clone()].to_vec();
                drop(bytes.splice(field.start..field.start, again));
            }
        }
    }

    /// Up to 64 bytes somewhere.
    fn stretch(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.index(len);
        start..(start + self.index(64)).min(len)
    }

    /// The digits of a number, the next one after some place.
    fn number(&mut self, bytes: &[u8]) -> Option<std::ops::Range<usize>> {
        let from = self.index(bytes.len());
        let start = from + bytes.get(from..)?.iter().position(u8::is_ascii_digit)?;
        let digits = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        Some(start..start + digits)
    }

    /// What stands between two commas or line ends, the second one included.
    fn field(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let from = self.index(bytes.len());
        let ends = |byte: &u8| matches!(byte, b',' | b'\n');
        let start = bytes[..from].iter().rposition(ends).map_or(0, |i| i + 1);
        let end = bytes[from..].iter().position(ends).map_or(bytes.len(), |i| from + i + 1);
        start..end
    }
}
