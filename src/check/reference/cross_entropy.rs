//! Cross-entropy of logits, over the vocabulary or over classes.

use super::{Scalar, sum};

/// What a loss op adds to the tally, and the gradient of its logits.
#[derive(Debug, Clone)]
pub struct CrossEntropy<T> {
    /// Σ weight × cross-entropy.
    pub loss: T,
    /// Σ weight, of the rows with a label.
    pub weight: T,
    /// Rows with a label.
    pub targets: u64,
    /// Of these, rows whose largest logit is the label's.
    pub correct: u64,
    /// (softmax - q) × weight × scale; zero without a label. [R, K]
    pub d_logits: Vec<T>,
}

/// Index of the largest, and the log of the sum of the exponentials.
fn max_and_lse<T: Scalar>(logits: &[T]) -> (usize, T) {
    let best = (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
    (best, logits[best] + sum(logits.iter().map(|&x| (x - logits[best]).exp())).ln())
}

/// logits [R, K]; a label of -1 counts nothing. q = onehot.
pub fn cross_entropy<T: Scalar>(logits: &[T], labels: &[i32], weights: &[T], scale: T) -> CrossEntropy<T> {
    smoothed_cross_entropy(logits, labels, weights, scale, T::default())
}

/// The same with q = (1 - smoothing) onehot + smoothing / K.
pub fn smoothed_cross_entropy<T: Scalar>(
    logits: &[T], labels: &[i32], weights: &[T], scale: T, smoothing: T,
) -> CrossEntropy<T> {
    let (zero, one) = (T::default(), T::of(1.0));
    let mut out = CrossEntropy { loss: zero, weight: zero, targets: 0, correct: 0, d_logits: Vec::new() };
    let classes = logits.len() / labels.len().max(1);
    for ((&label, &weight), row) in labels.iter().zip(weights).zip(logits.chunks(classes.max(1))) {
        let Ok(label) = usize::try_from(label) else {
            out.d_logits.extend(vec![zero; classes]);
            continue;
        };
        let (best, lse) = max_and_lse(row);
        let q = |k: usize| (if k == label { one - smoothing } else { zero }) + smoothing / T::of(classes as f64);
        out.loss += weight * sum(row.iter().enumerate().map(|(k, &x)| q(k) * (lse - x)));
        out.weight += weight;
        out.targets += 1;
        out.correct += u64::from(best == label);
        out.d_logits.extend((0..classes).map(|k| ((row[k] - lse).exp() - q(k)) * weight * scale));
    }
    out
}

/// The `k` most probable of each row with their probabilities, best first.
pub fn top_k<T: Scalar>(logits: &[T], vocab: usize, k: usize) -> Vec<Vec<(u32, T)>> {
    let row = |row: &[T]| {
        let (_, lse) = max_and_lse(row);
        let mut order: Vec<usize> = (0..vocab).collect();
        order.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).expect("logits are numbers"));
        order[..k].iter().map(|&i| (i as u32, (row[i] - lse).exp())).collect()
    };
    logits.chunks(vocab).map(row).collect()
}
