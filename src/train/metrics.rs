//! Measures of a classifier, exact and as scikit-learn defines them.

use std::cmp::Ordering;

use super::records::Curves;

/// The most points kept of a curve.
const CURVE_POINTS: usize = 400;

/// How a score ranks positives above negatives: counts at every distinct score, highest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    /// Positives among all rows.
    positives: u64,
    /// Negatives among all rows.
    negatives: u64,
    /// Rows at or above each distinct score.
    cuts: Vec<Cut>,
}

/// What is predicted positive when the threshold is `score`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cut {
    score: f64,
    true_positives: u64,
    false_positives: u64,
}

/// A threshold and the F1 it gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BestThreshold {
    /// Rows with this score or a higher one count as positive.
    pub threshold: f64,
    /// Their F1.
    pub f1: f64,
}

impl Ranking {
    /// Sorts rows of (score, whether positive). Scores that are not numbers rank last.
    pub fn new(rows: impl IntoIterator<Item = (f64, Truth)>) -> Self {
        let number = |score: f64| if score.is_nan() { f64::NEG_INFINITY } else { score };
        let mut rows: Vec<(f64, Truth)> = rows.into_iter().map(|(score, truth)| (number(score), truth)).collect();
        rows.sort_unstable_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal));
        let (mut positives, mut negatives) = (0, 0);
        let mut cuts: Vec<Cut> = Vec::new();
        for (score, truth) in rows {
            match truth {
                Truth::Positive => positives += 1,
                Truth::Negative => negatives += 1,
            }
            let cut = Cut { score, true_positives: positives, false_positives: negatives };
            match cuts.last_mut() {
                Some(last) if last.score == score => *last = cut,
                _ => cuts.push(cut),
            }
        }
        Ranking { positives, negatives, cuts }
    }

    /// Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties
    /// counting half. `None` where there is no such pair. Counted in integers, so exact.
    pub fn roc_auc(&self) -> Option<f64> {
        if self.positives == 0 || self.negatives == 0 {
            return None;
        }
        // Trapezoids under the curve, times two: width in negatives, heights in positives.
        let (mut twice_area, mut tp, mut fp) = (0u128, 0u64, 0u64);
        for cut in &self.cuts {
            twice_area += u128::from(cut.false_positives - fp) * u128::from(cut.true_positives + tp);
            (tp, fp) = (cut.true_positives, cut.false_positives);
        }
        Some(twice_area as f64 / (2 * u128::from(self.positives) * u128::from(self.negatives)) as f64)
    }

    /// Σ (Rₙ - Rₙ₋₁) Pₙ over the distinct scores. `None` where no row is positive.
    pub fn average_precision(&self) -> Option<f64> {
        if self.positives == 0 {
            return None;
        }
        let (mut sum, mut before) = (0.0, 0);
        for cut in &self.cuts {
            sum += (cut.true_positives - before) as f64 * cut.precision();
            before = cut.true_positives;
        }
        Some(sum / self.positives as f64)
    }

    /// The threshold of best F1, the highest of equals. `None` where no row is positive.
    pub fn best_threshold(&self) -> Option<BestThreshold> {
        if self.positives == 0 {
            return None;
        }
        let mut best: Option<BestThreshold> = None;
        for cut in &self.cuts {
            let f1 =
                2.0 * cut.true_positives as f64 / (cut.true_positives + cut.false_positives + self.positives) as f64;
            if best.is_none_or(|b| f1 > b.f1) {
                best = Some(BestThreshold { threshold: cut.score, f1 });
            }
        }
        best
    }

    /// Points of the ROC curve and of the precision-recall curve, thinned to a few hundred.
    pub fn curves(&self) -> Curves {
        let share = |n: u64, of: u64| if of == 0 { 0.0 } else { n as f64 / of as f64 };
        let mut roc = vec![[0.0, 0.0]];
        roc.extend(
            thinned(&self.cuts)
                .map(|c| [share(c.false_positives, self.negatives), share(c.true_positives, self.positives)]),
        );
        // By definition precision is 1 where nothing is recalled yet.
        let mut precision_recall = vec![[0.0, 1.0]];
        precision_recall.extend(thinned(&self.cuts).map(|c| [share(c.true_positives, self.positives), c.precision()]));
        Curves { roc, precision_recall }
    }
}

/// Whether a row belongs to the positive class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truth {
    /// It does.
    Positive,
    /// It does not.
    Negative,
}

impl Cut {
    fn precision(&self) -> f64 {
        self.true_positives as f64 / (self.true_positives + self.false_positives) as f64
    }
}

/// Evenly chosen cuts, the last one among them.
fn thinned(cuts: &[Cut]) -> impl Iterator<Item = &Cut> {
    let stride = cuts.len().div_ceil(CURVE_POINTS).max(1);
    let last = cuts.len().wrapping_sub(1);
    cuts.iter().enumerate().filter(move |(i, _)| (i + 1) % stride == 0 || *i == last).map(|(_, cut)| cut)
}

/// Rows by true class, then by predicted class. [K][K]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    counts: Vec<Vec<u64>>,
}

impl Confusion {
    /// No rows yet.
    pub fn new(classes: usize) -> Self {
        Confusion { counts: vec![vec![0; classes]; classes] }
    }

    /// Counts a row; classes out of range are passed over.
    pub fn add(&mut self, truth: usize, predicted: usize) {
        if let Some(count) = self.counts.get_mut(truth).and_then(|row| row.get_mut(predicted)) {
            *count += 1;
        }
    }

    /// Rows counted.
    pub fn rows(&self) -> u64 {
        self.counts.iter().flatten().sum()
    }

    /// Share of rows on the diagonal.
    pub fn accuracy(&self) -> f64 {
        let right: u64 = (0..self.counts.len()).map(|k| self.counts[k][k]).sum();
        right as f64 / self.rows().max(1) as f64
    }

    /// F1 of a class; 0 where it neither occurs nor is predicted.
    pub fn f1(&self, class: usize) -> f64 {
        let (right, occurs, predicted) = self.of(class);
        if occurs + predicted == 0 { 0.0 } else { 2.0 * right as f64 / (occurs + predicted) as f64 }
    }

    /// Mean F1 of the classes that occur or are predicted.
    pub fn macro_f1(&self) -> f64 {
        let present: Vec<usize> = (0..self.counts.len()).filter(|&k| self.of(k).1 + self.of(k).2 > 0).collect();
        present.iter().map(|&k| self.f1(k)).sum::<f64>() / present.len().max(1) as f64
    }

    /// The counts.
    pub fn into_counts(self) -> Vec<Vec<u64>> {
        self.counts
    }

    /// (rightly predicted, occurring, predicted) rows of a class.
    fn of(&self, class: usize) -> (u64, u64, u64) {
        let right = self.counts[class][class];
        let occurs = self.counts[class].iter().sum();
        let predicted = self.counts.iter().map(|row| row[class]).sum();
        (right, occurs, predicted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranking(scores: &[f64], positive: &[u8]) -> Ranking {
        let truth = |&p: &u8| if p == 1 { Truth::Positive } else { Truth::Negative };
        Ranking::new(scores.iter().copied().zip(positive.iter().map(truth)))
    }

    fn close(got: Option<f64>, expected: f64) {
        let got = got.expect("defined");
        assert!((got - expected).abs() < 1e-12, "{got}, expected {expected}");
    }

    /// scikit-learn 1.9: roc_auc_score, average_precision_score, f1_score, confusion_matrix.
    #[test]
    fn values_of_scikit_learn() {
        let scores = [0.1, 0.4, 0.35, 0.8, 0.4, 0.4, 0.9, 0.05, 0.35, 0.7];
        let truth = [0, 0, 1, 1, 1, 0, 1, 0, 0, 0];
        let r = ranking(&scores, &truth);
        close(r.roc_auc(), 37.0 / 48.0);
        close(r.average_precision(), 0.75);
        let best = r.best_threshold().expect("has positives");
        assert_eq!(best.threshold, 0.8);
        close(Some(best.f1), 2.0 / 3.0);

        let mut confusion = Confusion::new(3);
        for (t, p) in [0, 0, 1, 1, 1, 0, 1, 0, 0, 0].into_iter().zip([0, 1, 1, 1, 0, 0, 1, 1, 0, 0]) {
            confusion.add(t, p);
        }
        close(Some(confusion.accuracy()), 0.7);
        close(Some(confusion.f1(1)), 2.0 / 3.0);
        // The third class neither occurs nor is predicted, so it does not count.
        close(Some(confusion.macro_f1()), 0.696_969_696_969_697);
        assert_eq!(confusion.into_counts(), [[4, 2, 0], [1, 3, 0], [0, 0, 0]]);
    }

    /// Counting pairs one by one, and precision at each positive's rank, on rows with many ties.
    #[test]
    fn brute_force_agrees() {
        let mut state = 1u64;
        let mut next = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        for rows in [2, 3, 10, 57, 200] {
            let scores: Vec<f64> = (0..rows).map(|_| next(12) as f64 / 7.0).collect();
            let mut truth: Vec<u8> = (0..rows).map(|_| next(2) as u8).collect();
            (truth[0], truth[1]) = (0, 1);
            let (mut pairs, mut right) = (0u64, 0.0);
            for i in 0..rows {
                for j in (0..rows).filter(|&j| truth[i] == 1 && truth[j] == 0) {
                    pairs += 1;
                    right += match scores[i].total_cmp(&scores[j]) {
                        Ordering::Greater => 1.0,
                        Ordering::Equal => 0.5,
                        Ordering::Less => 0.0,
                    };
                }
            }
            let r = ranking(&scores, &truth);
            close(r.roc_auc(), right / pairs as f64);

            let at_or_above = |s: f64, p: u8| (0..rows).filter(|&i| scores[i] >= s && truth[i] == p).count() as f64;
            let precision = |s: f64| at_or_above(s, 1) / (at_or_above(s, 1) + at_or_above(s, 0));
            let positives: Vec<f64> = (0..rows).filter(|&i| truth[i] == 1).map(|i| scores[i]).collect();
            close(r.average_precision(), positives.iter().map(|&s| precision(s)).sum::<f64>() / positives.len() as f64);

            let f1 =
                |s: f64| 2.0 * at_or_above(s, 1) / (at_or_above(s, 1) + at_or_above(s, 0) + positives.len() as f64);
            let best = scores.iter().map(|&s| f1(s)).fold(0.0, f64::max);
            close(r.best_threshold().map(|b| b.f1), best);
            close(r.best_threshold().map(|b| f1(b.threshold)), best);
        }
    }

    #[test]
    fn one_class_only_has_no_area() {
        assert_eq!(ranking(&[0.1, 0.2], &[1, 1]).roc_auc(), None);
        assert_eq!(ranking(&[0.1, 0.2], &[0, 0]).roc_auc(), None);
        assert_eq!(ranking(&[0.1, 0.2], &[0, 0]).average_precision(), None);
        assert_eq!(ranking(&[], &[]).best_threshold(), None);
    }

    #[test]
    fn curves_run_from_corner_to_corner_in_few_points() {
        let scores: Vec<f64> = (0..5000).map(|i| f64::from(i) / 5000.0).collect();
        let truth: Vec<u8> = (0..5000).map(|i| u8::from(i % 3 == 0)).collect();
        let curves = ranking(&scores, &truth).curves();
        for (curve, ends) in
            [(&curves.roc, [[0.0, 0.0], [1.0, 1.0]]), (&curves.precision_recall, [[0.0, 1.0], [1.0, 1667.0 / 5000.0]])]
        {
            assert!(curve.len() <= CURVE_POINTS + 2, "{} points", curve.len());
            assert_eq!([curve[0], curve[curve.len() - 1]], ends);
            assert!(curve.windows(2).all(|w| w[0][0] <= w[1][0]));
        }
    }
}
