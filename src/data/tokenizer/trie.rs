//! Greedy longest-match-first WordPiece over a byte trie.

use super::Error;

/// Marks a node at which no token ends.
const NO_TOKEN: u32 = u32::MAX;

/// Two tries in one table: tokens that begin a word, and tokens that continue one (without their prefix).
#[derive(Debug)]
pub(super) struct Trie {
    nodes: Vec<Node>,
    /// Root of the tokens that begin a word.
    begin: u32,
    /// Root of the tokens that continue one.
    continued: u32,
    unk: u32,
    /// A word of more bytes than this is one [UNK].
    longest: usize,
}

/// The children of a node stand side by side; a child's place is the number of smaller bytes with a child.
#[derive(Debug, Clone)]
struct Node {
    /// Bit b: there is a child for byte b.
    bits: [u64; 4],
    /// Children before each of the four words of `bits`.
    before: [u8; 4],
    first_child: u32,
    /// The token that ends here, or `NO_TOKEN`.
    id: u32,
}

impl Node {
    const EMPTY: Node = Node { bits: [0; 4], before: [0; 4], first_child: 0, id: NO_TOKEN };

    #[inline(always)]
    fn child(&self, byte: u8) -> Option<u32> {
        let (word, bit) = (usize::from(byte >> 6), byte & 63);
        let bits = self.bits[word];
        if bits >> bit & 1 == 0 {
            return None;
        }
        let below = (bits & ((1 << bit) - 1)).count_ones();
        Some(self.first_child + u32::from(self.before[word]) + below)
    }
}

impl Trie {
    /// `vocab`: token and id of every entry of the model; `prefix` marks a continuation; a word of
    /// more than `longest` ASCII characters, or one that cannot be split, is `unk`.
    pub fn new(vocab: &[(&str, u32)], prefix: &str, unk: u32, longest: usize) -> Result<Self, Error> {
        let mut begin: Vec<_> = vocab.iter().map(|&(token, id)| (token.as_bytes(), id)).collect();
        let mut continued: Vec<_> = vocab
            .iter()
            .filter_map(|&(token, id)| Some((token.strip_prefix(prefix)?.as_bytes(), id)))
            .filter(|(rest, _)| !rest.is_empty())
            .collect();
        begin.sort_unstable();
        continued.sort_unstable();
        let bytes: usize = begin.iter().map(|(token, _)| token.len()).sum();
        if bytes > 1 << 30 {
            return Err(Error::Invalid(format!("tokenizer: a vocabulary of {bytes} bytes is too large")));
        }
        let mut trie = Trie { nodes: vec![Node::EMPTY, Node::EMPTY], begin: 0, continued: 1, unk, longest };
        trie.grow(trie.begin, &begin);
        trie.grow(trie.continued, &continued);
        Ok(trie)
    }

    /// Hangs the sorted tokens below an empty root, breadth first.
    fn grow(&mut self, root: u32, tokens: &[(&[u8], u32)]) {
        let mut queue = std::collections::VecDeque::from([(root, tokens, 0usize)]);
        while let Some((node, mut tokens, depth)) = queue.pop_front() {
            while let Some(((_, id), rest)) = tokens.split_first().filter(|((token, _), _)| token.len() == depth) {
                self.nodes[node as usize].id = *id;
                tokens = rest;
            }
            let first_child = self.nodes.len() as u32;
            let mut bits = [0u64; 4];
            for group in tokens.chunk_by(|a, b| a.0[depth] == b.0[depth]) {
                let byte = group[0].0[depth];
                bits[usize::from(byte >> 6)] |= 1 << (byte & 63);
                queue.push_back((self.nodes.len() as u32, group, depth + 1));
                self.nodes.push(Node::EMPTY);
            }
            let count = |word: usize| bits[..word].iter().map(|b| b.count_ones() as u8).sum();
            let parent = &mut self.nodes[node as usize];
            (parent.bits, parent.first_child) = (bits, first_child);
            parent.before = std::array::from_fn(count);
        }
    }

    /// Appends the ids of one normalised ASCII word.
    #[inline]
    pub fn encode(&self, word: &[u8], ids: &mut Vec<u32>) {
        let mark = ids.len();
        if word.len() > self.longest {
            ids.push(self.unk);
            return;
        }
        let (mut rest, mut root) = (word, self.begin);
        while !rest.is_empty() {
            let Some((id, length)) = self.longest_match(root, rest) else {
                ids.truncate(mark);
                ids.push(self.unk);
                return;
            };
            ids.push(id);
            rest = &rest[length..];
            root = self.continued;
        }
    }

    #[inline(always)]
    fn longest_match(&self, root: u32, text: &[u8]) -> Option<(u32, usize)> {
        let mut node = &self.nodes[root as usize];
        let mut best = None;
        for (i, &byte) in text.iter().enumerate() {
            let Some(child) = node.child(byte) else { break };
            node = &self.nodes[child as usize];
            if node.id != NO_TOKEN {
                best = Some((node.id, i + 1));
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_longest_match_first_and_gives_up_whole_words() {
        let vocab =
            [("[UNK]", 0), ("un", 1), ("##aff", 2), ("##able", 3), ("una", 4), ("##a", 5), ("##ffa", 6), ("", 9)];
        let trie = Trie::new(&vocab, "##", 0, 10).unwrap();
        let encode = |word: &str| {
            let mut ids = vec![77];
            trie.encode(word.as_bytes(), &mut ids);
            ids.split_off(1)
        };
        assert_eq!(encode("un"), [1]);
        assert_eq!(encode("una"), [4]);
        assert_eq!(encode("unaffa"), [4, 6]);
        // "una" + "##ff…" fails further on; WordPiece does not go back to "un" + "##aff" + "##able".
        assert_eq!(encode("unaffable"), [0]);
        assert_eq!(encode("unaa"), [4, 5]);
        assert_eq!(encode("aff"), [0]);
        assert_eq!(encode("unaaaaaaaa"), [4, 5, 5, 5, 5, 5, 5, 5]);
        assert_eq!(encode("unaaaaaaaaa"), [0], "eleven characters");
    }

    #[test]
    fn bytes_of_all_four_words_of_the_bitmap_find_their_child() {
        let tokens: Vec<String> = (1..=255u8).map(|b| char::from(b).to_string()).collect();
        let vocab: Vec<(&str, u32)> = tokens.iter().zip(0..).map(|(t, id)| (t.as_str(), id)).collect();
        let trie = Trie::new(&vocab, "##", 999, 100).unwrap();
        for &(token, id) in &vocab {
            let mut ids = Vec::new();
            trie.encode(token.as_bytes(), &mut ids);
            assert_eq!(ids, [id], "{token:?}");
        }
    }
}
