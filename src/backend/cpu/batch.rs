//! The batch as the ops see it: a checked copy of what the host holds, plus what several ops would
//! otherwise work out each for themselves (which sequence a row is in, which rows show a token).

use crate::backend::{BatchLimits, BatchView, Capacity, Error, Pick, Result};

/// Rows grouped by a key, in row order within each group: a counting sort.
#[derive(Debug, Default)]
pub struct Groups {
    /// Rows of key k are `rows[starts[k]..starts[k + 1]]`.
    starts: Vec<u32>,
    rows: Vec<u32>,
}

impl Groups {
    fn sort(&mut self, keys: &[u32], key_count: usize) {
        self.starts.clear();
        self.starts.resize(key_count + 1, 0);
        for &key in keys {
            self.starts[key as usize + 1] += 1;
        }
        let mut end = 0;
        for start in &mut self.starts {
            end += *start;
            *start = end;
        }
        // Each start serves as the place of its group's next row, and so ends up at the next group's start.
        self.rows.resize(keys.len(), 0);
        for (row, &key) in keys.iter().enumerate() {
            let place = &mut self.starts[key as usize];
            self.rows[*place as usize] = row as u32;
            *place += 1;
        }
        self.starts.rotate_right(1);
        if let Some(first) = self.starts.first_mut() {
            *first = 0;
        }
    }

    /// The rows of a key, ascending.
    pub fn of(&self, key: usize) -> &[u32] {
        match (self.starts.get(key), self.starts.get(key + 1)) {
            (Some(&start), Some(&end)) => &self.rows[start as usize..end as usize],
            _ => &[],
        }
    }
}

/// An uploaded batch.
#[derive(Debug)]
pub struct Batch {
    capacity: Capacity,
    /// [N]
    pub ids: Vec<u32>,
    /// [N]
    pub position_ids: Vec<u32>,
    /// [B+1]
    pub cu_seqlens: Vec<u32>,
    /// [M]
    pub masked_rows: Vec<u32>,
    /// [M]
    pub targets: Vec<u32>,
    /// [B], -1 for none
    pub labels: Vec<i32>,
    /// [B]
    pub label_weights: Vec<f32>,
    /// Multiplies every gradient of the loss.
    pub loss_scale: f32,
    /// Number of the pass, for dropout.
    pub step: u32,
    /// The sequence each row is in. [N]
    pub sequence_of: Vec<u32>,
    /// The first row of each sequence. [B]
    pub first_rows: Vec<u32>,
    /// Rows by token id.
    pub by_id: Groups,
    /// Rows by position.
    pub by_position: Groups,
}

impl Batch {
    /// Room for batches up to `capacity`; holds none yet.
    pub fn new(capacity: Capacity) -> Batch {
        Batch {
            capacity,
            ids: Vec::new(),
            position_ids: Vec::new(),
            cu_seqlens: vec![0],
            masked_rows: Vec::new(),
            targets: Vec::new(),
            labels: Vec::new(),
            label_weights: Vec::new(),
            loss_scale: 0.0,
            step: 0,
            sequence_of: Vec::new(),
            first_rows: Vec::new(),
            by_id: Groups::default(),
            by_position: Groups::default(),
        }
    }

    /// N
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// B
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// The rows of a sequence.
    pub fn rows_of(&self, sequence: usize) -> std::ops::Range<usize> {
        self.cu_seqlens[sequence] as usize..self.cu_seqlens[sequence + 1] as usize
    }

    /// Checks that every target is below `vocab`: that of the layer at hand, not that of the upload.
    pub fn check_targets(&self, op: &str, vocab: usize) -> Result<()> {
        match self.targets.iter().position(|&t| t as usize >= vocab) {
            None => Ok(()),
            Some(i) => wrong(format!("{op}: targets[{i}] is {}, but the layer has {vocab} outputs", self.targets[i])),
        }
    }

    /// Checks that every label is below `classes`: those of the logits at hand, not those of the upload.
    pub fn check_labels(&self, op: &str, classes: usize) -> Result<()> {
        match self.labels.iter().position(|&l| l >= 0 && l as usize >= classes) {
            None => Ok(()),
            Some(i) => wrong(format!("{op}: labels[{i}] is {}, but there are {classes} logits", self.labels[i])),
        }
    }

    /// The packed rows of a pick.
    pub fn picked(&self, pick: Pick) -> &[u32] {
        match pick {
            Pick::Masked => &self.masked_rows,
            Pick::First => &self.first_rows,
        }
    }

    /// Takes over what `view` shows, after checking it.
    pub fn upload(&mut self, view: &BatchView<'_>, limits: &BatchLimits) -> Result<()> {
        check(view, limits, &self.capacity)?;
        copy(&mut self.ids, view.ids);
        copy(&mut self.position_ids, view.position_ids);
        copy(&mut self.cu_seqlens, view.cu_seqlens);
        copy(&mut self.masked_rows, view.masked_rows);
        copy(&mut self.targets, view.targets);
        let sequences = self.sequences();
        copy(&mut self.labels, view.labels);
        self.labels.resize(sequences, -1);
        copy(&mut self.label_weights, view.label_weights);
        self.label_weights.resize(sequences, 1.0);
        (self.loss_scale, self.step) = (view.loss_scale, view.step);
        copy(&mut self.first_rows, &view.cu_seqlens[..sequences]);
        self.sequence_of.clear();
        for sequence in 0..sequences {
            self.sequence_of.resize(view.cu_seqlens[sequence + 1] as usize, sequence as u32);
        }
        self.by_id.sort(view.ids, limits.vocab);
        self.by_position.sort(view.position_ids, limits.positions);
        Ok(())
    }
}

fn copy<T: Copy>(to: &mut Vec<T>, from: &[T]) {
    to.clear();
    to.extend_from_slice(from);
}

fn check(view: &BatchView<'_>, limits: &BatchLimits, capacity: &Capacity) -> Result<()> {
    let tokens = view.ids.len();
    let Some(sequences) = view.cu_seqlens.len().checked_sub(1) else {
        return wrong("cu_seqlens is empty; it holds B+1 prefix sums, 0 first".into());
    };
    for (what, got, capacity) in [
        ("tokens", tokens, capacity.tokens),
        ("sequences", sequences, capacity.sequences),
        ("masked positions", view.masked_rows.len(), capacity.masked),
    ] {
        if got > capacity {
            return Err(Error::Capacity { what, got, capacity });
        }
    }
    same_length("position_ids", view.position_ids.len(), "N", tokens)?;
    same_length("targets", view.targets.len(), "M", view.masked_rows.len())?;
    if !view.labels.is_empty() {
        same_length("labels", view.labels.len(), "B", sequences)?;
    }
    if !view.label_weights.is_empty() {
        same_length("label_weights", view.label_weights.len(), "B", sequences)?;
    }
    check_sequences(view.cu_seqlens, tokens)?;
    below("ids", view.ids, limits.vocab, "the vocabulary has")?;
    below("targets", view.targets, limits.vocab, "the vocabulary has")?;
    below("position_ids", view.position_ids, limits.positions, "the longest sequence has")?;
    below("masked_rows", view.masked_rows, tokens, "the number of tokens is")?;
    if let Some(i) = view.masked_rows.windows(2).position(|w| w[0] >= w[1]) {
        let [a, b] = [view.masked_rows[i], view.masked_rows[i + 1]];
        return wrong(format!("masked_rows[{i}] is {a} and the next is {b}; they must ascend"));
    }
    if let Some((i, &label)) = view.labels.iter().enumerate().find(|&(_, &l)| l < -1 || l >= limits.classes as i32) {
        return wrong(format!("labels[{i}] is {label}, the model has {} classes (-1 = no label)", limits.classes));
    }
    if let Some((i, w)) = view.label_weights.iter().enumerate().find(|(_, w)| !w.is_finite()) {
        return wrong(format!("label_weights[{i}] is {w}"));
    }
    if !view.loss_scale.is_finite() {
        return wrong(format!("loss_scale is {}; a batch without targets has scale 0", view.loss_scale));
    }
    Ok(())
}

fn check_sequences(cu_seqlens: &[u32], tokens: usize) -> Result<()> {
    if cu_seqlens[0] != 0 {
        return wrong(format!("cu_seqlens[0] is {}, expected 0", cu_seqlens[0]));
    }
    if let Some(i) = cu_seqlens.windows(2).position(|w| w[0] > w[1]) {
        let [a, b] = [cu_seqlens[i], cu_seqlens[i + 1]];
        return wrong(format!("cu_seqlens[{i}] is {a} and the next is {b}; prefix sums never fall"));
    }
    let last = cu_seqlens[cu_seqlens.len() - 1];
    if last as usize != tokens {
        return wrong(format!("cu_seqlens ends at {last}, expected N={tokens}"));
    }
    Ok(())
}

fn same_length(what: &str, got: usize, name: &str, expected: usize) -> Result<()> {
    if got == expected { Ok(()) } else { wrong(format!("{what} is [{got}], expected [{name}={expected}]")) }
}

fn below(what: &str, values: &[u32], limit: usize, limit_is: &str) -> Result<()> {
    match values.iter().position(|&v| v as usize >= limit) {
        None => Ok(()),
        Some(i) => wrong(format!("{what}[{i}] is {}, but {limit_is} {limit}", values[i])),
    }
}

fn wrong(why: String) -> Result<()> {
    Err(Error::Batch(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_hold_each_row_once_in_order() {
        let mut groups = Groups::default();
        for keys in [&[3u32, 0, 3, 2, 0, 3][..], &[1], &[]] {
            groups.sort(keys, 4);
            for key in 0..5 {
                let rows: Vec<u32> = (0..keys.len() as u32).filter(|&r| keys[r as usize] as usize == key).collect();
                assert_eq!(groups.of(key), rows);
            }
        }
    }
}
