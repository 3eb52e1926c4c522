//! What every backend asks of a batch before it takes it, and the one sort that several ops would otherwise each make.

use super::{BatchLimits, BatchView, Capacity, Error, Result};

/// Rows grouped by a key, in row order within each group: a counting sort.
#[derive(Debug, Default)]
pub struct Groups {
    /// Rows of key k are `rows[starts[k]..starts[k + 1]]`.
    starts: Vec<u32>,
    rows: Vec<u32>,
}

impl Groups {
    /// Groups `keys[row]` for every row; keys are below `key_count`.
    pub fn sort(&mut self, keys: &[u32], key_count: usize) {
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

    /// All rows, those of the smallest key first.
    pub fn order(&self) -> &[u32] {
        &self.rows
    }

    /// The rows of a key, ascending.
    pub fn of(&self, key: usize) -> &[u32] {
        match (self.starts.get(key), self.starts.get(key + 1)) {
            (Some(&start), Some(&end)) => &self.rows[start as usize..end as usize],
            _ => &[],
        }
    }
}

/// Every rule that a batch keeps; the error says which it breaks, and where.
///
/// # Errors
///
/// [`Error::Capacity`], or [`Error::Batch`] for any other rule.
pub fn check(view: &BatchView<'_>, limits: &BatchLimits, capacity: &Capacity) -> Result<()> {
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

/// Checks that every target is below `vocab`.
///
/// # Errors
///
/// [`Error::Batch`]
pub fn check_targets(op: &str, targets: &[u32], vocab: usize) -> Result<()> {
    match targets.iter().position(|&t| t as usize >= vocab) {
        None => Ok(()),
        Some(i) => wrong(format!("{op}: targets[{i}] is {}, but the layer has {vocab} outputs", targets[i])),
    }
}

/// Checks that every label is below `classes`.
///
/// # Errors
///
/// [`Error::Batch`]
pub fn check_labels(op: &str, labels: &[i32], classes: usize) -> Result<()> {
    match labels.iter().position(|&l| l >= 0 && l as usize >= classes) {
        None => Ok(()),
        Some(i) => wrong(format!("{op}: labels[{i}] is {}, but there are {classes} logits", labels[i])),
    }
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
