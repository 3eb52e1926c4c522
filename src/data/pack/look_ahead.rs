//! Pieces waiting to be packed, found by age and by length.

use std::collections::VecDeque;

use crate::data::Piece;

/// Tokens that frame every sequence: [CLS] and [SEP].
pub(super) const FRAME: usize = 2;

/// Length of a piece as a sequence, framed.
pub(super) fn framed(piece: &Piece) -> usize {
    piece.len as usize + FRAME
}

/// Waiting pieces. What it answers depends on the pieces and their ages alone, so a buffer filled again with
/// [`LookAhead::waiting`] goes on exactly as the old one would have.
#[derive(Debug)]
pub(super) struct LookAhead {
    /// By age, oldest first; taken ones are `None` until they reach the front.
    by_age: VecDeque<Option<Piece>>,
    /// Serial number of the front of `by_age`.
    front: u64,
    /// Serial numbers of the waiting pieces of each framed length, oldest first. [longest + 1]
    by_length: Vec<VecDeque<u64>>,
    /// Bit n: some piece of framed length n waits. One word for 64 lengths.
    present: Vec<u64>,
    count: usize,
}

impl LookAhead {
    /// For pieces of framed length up to `longest`.
    pub fn new(longest: usize) -> Self {
        LookAhead {
            by_age: VecDeque::new(),
            front: 0,
            by_length: vec![VecDeque::new(); longest + 1],
            present: vec![0; longest / 64 + 1],
            count: 0,
        }
    }

    /// Number of waiting pieces.
    pub fn len(&self) -> usize {
        self.count
    }

    /// The waiting pieces, oldest first.
    pub fn waiting(&self) -> impl Iterator<Item = &Piece> {
        self.by_age.iter().flatten()
    }

    /// Adds the youngest piece, no longer than the longest announced.
    pub fn push(&mut self, piece: Piece) {
        let length = framed(&piece);
        self.by_length[length].push_back(self.front + self.by_age.len() as u64);
        self.present[length / 64] |= 1 << (length % 64);
        self.by_age.push_back(Some(piece));
        self.count += 1;
    }

    /// Framed length of the oldest piece.
    pub fn oldest(&self) -> Option<usize> {
        self.by_age.front()?.as_ref().map(framed)
    }

    /// Removes the oldest piece of a framed length.
    pub fn take(&mut self, length: usize) -> Option<Piece> {
        let serial = self.by_length.get_mut(length)?.pop_front()?;
        if self.by_length[length].is_empty() {
            self.present[length / 64] &= !(1 << (length % 64));
        }
        let piece = self.by_age.get_mut((serial - self.front) as usize)?.take();
        while self.by_age.front().is_some_and(Option::is_none) {
            self.by_age.pop_front();
            self.front += 1;
        }
        self.count -= 1;
        piece
    }

    /// The largest waiting framed length of at most `room`.
    pub fn best(&self, room: usize) -> Option<usize> {
        let room = room.min(self.by_length.len() - 1);
        let mut word = room / 64;
        let mut bits = self.present[word] & (u64::MAX >> (63 - room % 64));
        while bits == 0 {
            word = word.checked_sub(1)?;
            bits = self.present[word];
        }
        Some(word * 64 + 63 - bits.leading_zeros() as usize)
    }

    /// The two waiting framed lengths, the longer first, with the largest sum of at most `room`; of equal sums
    /// the one with the longest longer length.
    pub fn best_pair(&self, room: usize) -> Option<(usize, usize)> {
        let mut found: Option<(usize, usize)> = None;
        let mut longer = self.best(room)?;
        loop {
            let sum = found.map_or(0, |(a, b)| a + b);
            // Both at most `longer`: no better sum can follow.
            if sum == room || 2 * longer <= sum {
                return found;
            }
            if let Some(shorter) = self.partner(longer, room - longer)
                && longer + shorter > sum
            {
                found = Some((longer, shorter));
            }
            match longer.checked_sub(1).and_then(|below| self.best(below)) {
                Some(next) => longer = next,
                None => return found,
            }
        }
    }

    /// The largest length of at most `longer` and `room` that waits beside one piece of length `longer`.
    fn partner(&self, longer: usize, room: usize) -> Option<usize> {
        let partner = self.best(room.min(longer))?;
        if partner < longer || self.by_length[longer].len() > 1 {
            return Some(partner);
        }
        self.best(longer.checked_sub(1)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filled(lengths: &[usize]) -> LookAhead {
        let mut ahead = LookAhead::new(200);
        for (sample, &length) in (0..).zip(lengths) {
            ahead.push(Piece { sample, start: 0, len: (length - FRAME) as u32 });
        }
        ahead
    }

    proptest! {
        #[test]
        fn best_single_and_best_pair_are_those_of_a_full_search(
            lengths in proptest::collection::vec(2usize..200, 0..12), room in 0usize..450
        ) {
            let ahead = filled(&lengths);
            let single = lengths.iter().copied().filter(|&l| l <= room).max();
            prop_assert_eq!(ahead.best(room), single);
            let mut pair = None;
            for (i, &a) in lengths.iter().enumerate() {
                for &b in &lengths[..i] {
                    if a + b <= room {
                        pair = pair.max(Some((a + b, a.max(b))));
                    }
                }
            }
            prop_assert_eq!(ahead.best_pair(room).map(|(a, b)| (a + b, a)), pair);
        }

        #[test]
        fn takes_the_oldest_of_a_length_and_keeps_the_ages(
            lengths in proptest::collection::vec(2usize..8, 0..40), takes in proptest::collection::vec(2usize..8, 0..40)
        ) {
            let mut ahead = filled(&lengths);
            let mut model: Vec<(u64, usize)> = (0..).zip(lengths).collect();
            for length in takes {
                let expected = model.iter().position(|&(_, l)| l == length).map(|i| model.remove(i));
                prop_assert_eq!(ahead.take(length).map(|p| p.sample), expected.map(|(sample, _)| sample));
                prop_assert_eq!(ahead.len(), model.len());
                prop_assert_eq!(ahead.oldest(), model.first().map(|&(_, l)| l));
                prop_assert!(ahead.waiting().map(|p| p.sample).eq(model.iter().map(|&(sample, _)| sample)));
            }
        }
    }
}
