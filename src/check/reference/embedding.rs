//! Word and position embeddings.

use crate::backend::BatchView;

use super::Scalar;

/// x = word[ids] + position[position_ids].  [N, C]
pub fn look_up<T: Scalar>(batch: &BatchView<'_>, word: &[T], position: &[T], width: usize) -> Vec<T> {
    let row = |table: &[T], i: u32, c: usize| table[i as usize * width + c];
    let token = |(&id, &at): (&u32, &u32)| (0..width).map(move |c| row(word, id, c) + row(position, at, c));
    batch.ids.iter().zip(batch.position_ids).flat_map(token).collect()
}

/// d_word[ids] += d_x except in row `padding_idx`, d_position[position_ids] += d_x.  d_x [N, C]
pub fn look_up_backward<T: Scalar>(
    batch: &BatchView<'_>, d_x: &[T], padding_idx: Option<u32>, width: usize, d_word: &mut [T], d_position: &mut [T],
) {
    for (i, d_x) in d_x.chunks(width).enumerate() {
        let (id, at) = (batch.ids[i], batch.position_ids[i]);
        for (c, &d) in d_x.iter().enumerate() {
            if padding_idx != Some(id) {
                d_word[id as usize * width + c] += d;
            }
            d_position[at as usize * width + c] += d;
        }
    }
}
