//! Is the oracle right? Its gradients against central differences of its forward lines, and its
//! functions against values from elsewhere.

use handbert::backend::{AdamW, Dropout, Pick, UpdateLimits};
use handbert::check::batches::{Masks, TestBatch};
use handbert::check::random::Random;
use handbert::check::reference::attention::{Attention, Place};
use handbert::check::reference::cross_entropy::{cross_entropy, smoothed_cross_entropy, top_k};
use handbert::check::reference::embedding::{look_up, look_up_backward};
use handbert::check::reference::gelu::{gelu, gelu_backward};
use handbert::check::reference::layernorm::{layernorm, layernorm_backward, residual_sum};
use handbert::check::reference::linear::{linear, linear_backward};
use handbert::check::reference::optimizer::{State, adamw, grad_norm};
use handbert::check::reference::rows::{gather, relu_dropout, relu_dropout_backward, scatter};
use handbert::check::reference::{add_rows, dot, erf, hadamard, keep, widen};

/// Step of the differences. Their error is h²/6 of the third derivative, plus ε/h of the value.
const H: f64 = 1.0 / 131_072.0;

/// `gradient` is that of `f` at `x`, to 64 h² of the largest value in sight: third derivatives up to
/// four hundred times that large are covered, rounding (ε/h is h²/2) too, and no wrong term is.
fn check_gradient(what: &str, x: &[f64], gradient: &[f64], f: impl Fn(&[f64]) -> f64) {
    assert_eq!(x.len(), gradient.len(), "{what}");
    let largest = gradient.iter().fold(f(x).abs().max(1.0), |a, b| a.max(b.abs()));
    let mut moved = x.to_vec();
    for i in 0..x.len() {
        moved[i] = x[i] + H;
        let above = f(&moved);
        moved[i] = x[i] - H;
        let slope = (above - f(&moved)) / (2.0 * H);
        moved[i] = x[i];
        assert!((slope - gradient[i]).abs() <= 64.0 * H * H * largest, "{what}[{i}]: {} is {slope}", gradient[i]);
    }
}

fn normals(random: &mut Random, len: usize) -> Vec<f64> {
    widen(&random.normals(len, 1.0))
}

#[test]
fn erf_has_its_known_values() {
    let known = [
        (0.0, 0.0),
        (1e-3, 0.001_128_378_790_969_236_5),
        (0.1, 0.112_462_916_018_284_9),
        (0.5, 0.520_499_877_813_046_5),
        (1.0, 0.842_700_792_949_714_9),
        (2.0, 0.995_322_265_018_952_7),
        (2.9, 0.999_958_902_121_900_5),
        (3.1, 0.999_988_351_342_632_8),
        (4.0, 0.999_999_984_582_742_1),
        (5.0, 0.999_999_999_998_462_6),
        (8.0, 1.0),
    ];
    for (x, value) in known {
        assert!((erf(x) - value).abs() <= 16.0 * f64::EPSILON * value, "erf({x}) = {}", erf(x));
        assert_eq!(erf(-x), -erf(x));
    }
    let (below, above) = (erf(3.0 - 1e-12), erf(3.0));
    assert!((above - below).abs() < 1e-15, "series and fraction meet: {below}, {above}");
}

/// From `torch.nn.functional.gelu` in f64.
#[test]
fn gelu_is_torchs() {
    let x = [-3.0, -0.5, 0.0, 1.0, 2.5];
    let y = [-0.004_049_694_094_890_31, -0.154_268_769_362_993_44, 0.0, 0.841_344_746_068_543, 2.484_475_836_685_56];
    let slope =
        [-0.011_945_647_204_183_92, 0.132_504_875_343_837_12, 0.5, 1.083_315_470_587_686_4, 1.037_611_085_908_145];
    let close = |a: f64, b: f64| assert!((a - b).abs() < 16.0 * f64::EPSILON, "{a}, not {b}");
    x.iter().zip(y).for_each(|(&x, y)| close(gelu(x), y));
    gelu_backward(&x, &[1.0; 5]).into_iter().zip(slope).for_each(|(a, b)| close(a, b));
}

#[test]
fn linear_and_gelu_gradients() {
    let (inputs, outputs, rows) = (5, 3, 4);
    let mut random = Random::new(1);
    let [x, weight, bias, c] =
        [rows * inputs, outputs * inputs, outputs, rows * outputs].map(|n| normals(&mut random, n));
    let loss = |x: &[f64], weight: &[f64], bias: &[f64]| {
        dot(&linear(x, weight, bias).iter().map(|&pre| gelu(pre)).collect::<Vec<f64>>(), &c)
    };
    let d_pre = gelu_backward(&linear(&x, &weight, &bias), &c);
    let (mut d_weight, mut d_bias) = (vec![0.0; weight.len()], vec![0.0; outputs]);
    let d_x = linear_backward(&d_pre, &x, &weight, inputs, &mut d_weight);
    add_rows(&d_pre, &mut d_bias);
    check_gradient("d_x", &x, &d_x, |x| loss(x, &weight, &bias));
    check_gradient("d_weight", &weight, &d_weight, |weight| loss(&x, weight, &bias));
    check_gradient("d_bias", &bias, &d_bias, |bias| loss(&x, &weight, bias));
}

#[test]
fn embedding_gradients() {
    let (vocab, width) = (5, 4);
    let mut random = Random::new(2);
    let mut batch = TestBatch::new(&[3, 0, 4], vocab, &mut random);
    batch.ids.iter_mut().for_each(|id| *id = (*id).max(1));
    let [word, position, gamma, beta, c] =
        [vocab * width, 4 * width, width, width, 7 * width].map(|n| normals(&mut random, n));
    let c = hadamard(&c, &keep(&Dropout::new(0.5, 0, 7), 1, 7, width));
    let loss = |word: &[f64], position: &[f64]| {
        dot(&layernorm(&look_up(&batch.view(), word, position, width), &gamma, &beta, 1e-12).0, &c)
    };
    let x = look_up(&batch.view(), &word, &position, width);
    let (_, stats) = layernorm(&x, &gamma, &beta, 1e-12);
    let d_x = layernorm_backward(&c, &x, &stats, &gamma, &mut vec![0.0; width], &mut vec![0.0; width]);
    let (mut d_word, mut d_position) = (vec![0.0; word.len()], vec![0.0; position.len()]);
    look_up_backward(&batch.view(), &d_x, None, width, &mut d_word, &mut d_position);
    check_gradient("d_word", &word, &d_word, |word| loss(word, &position));
    check_gradient("d_position", &position, &d_position, |position| loss(&word, position));
    let (mut padded, padding) = (vec![0.0; word.len()], batch.ids[0]);
    look_up_backward(&batch.view(), &d_x, Some(padding), width, &mut padded, &mut d_position);
    let row = padding as usize * width..(padding as usize + 1) * width;
    d_word[row].fill(0.0);
    assert_eq!(padded, d_word, "the padding row gets nothing, all others what they get without");
}

#[test]
fn layernorm_gradients() {
    let (rows, width) = (3, 8);
    let mut random = Random::new(3);
    let [branch, residual, gamma, beta, c] =
        [rows * width, rows * width, width, width, rows * width].map(|n| normals(&mut random, n));
    let keep = keep(&Dropout::new(0.5, 3, 7), 1, rows, width);
    let loss = |branch: &[f64], residual: &[f64], gamma: &[f64], beta: &[f64]| {
        dot(&layernorm(&residual_sum(branch, Some(residual), &keep), gamma, beta, 1e-12).0, &c)
    };
    let sum = residual_sum(&branch, Some(&residual), &keep);
    let (_, stats) = layernorm(&sum, &gamma, &beta, 1e-12);
    let (mut d_gamma, mut d_beta) = (vec![0.0; width], vec![0.0; width]);
    let d_sum = layernorm_backward(&c, &sum, &stats, &gamma, &mut d_gamma, &mut d_beta);
    check_gradient("d_residual", &residual, &d_sum, |residual| loss(&branch, residual, &gamma, &beta));
    check_gradient("d_branch", &branch, &hadamard(&keep, &d_sum), |branch| loss(branch, &residual, &gamma, &beta));
    check_gradient("d_gamma", &gamma, &d_gamma, |gamma| loss(&branch, &residual, gamma, &beta));
    check_gradient("d_beta", &beta, &d_beta, |beta| loss(&branch, &residual, &gamma, beta));
    for (row, stats) in sum.chunks(width).zip(stats.chunks(2)) {
        let mean = row.iter().sum::<f64>() / width as f64;
        let variance = row.iter().map(|x| x * x).sum::<f64>() / width as f64 - mean * mean;
        assert!((stats[0] - mean).abs() < 1e-14 && (stats[1] * variance.sqrt() - 1.0).abs() < 1e-12);
    }
}

#[test]
fn attention_gradients_and_probabilities() {
    let (heads, width) = (2, 8);
    let first = Place::default();
    let attention = |drop| Attention { cu_seqlens: &[0, 3, 3, 5, 6], heads, width, drop, step: 1, first };
    let mut random = Random::new(4);
    for drop in [Dropout::NONE, Dropout::new(0.3, 2, 7)] {
        let attention = attention(drop);
        let (qkv, c) = (normals(&mut random, 6 * 3 * width), normals(&mut random, 6 * width));
        let loss = |qkv: &[f64]| dot(&attention.forward(qkv).0, &c);
        check_gradient("d_qkv", &qkv, &attention.backward(&qkv, &c), loss);
    }
    let attention = attention(Dropout::NONE);
    let mut qkv = normals(&mut random, 6 * 3 * width);
    // Values of one: whatever the probabilities are, they add up.
    qkv.chunks_mut(3 * width).for_each(|row| row[2 * width..].fill(1.0));
    assert!(attention.forward(&qkv).0.iter().all(|x| (x - 1.0).abs() < 1e-14));
    // Keys of zero: each is as probable as another, and the log-sum-exp is the log of their number.
    qkv.chunks_mut(3 * width).for_each(|row| row[width..2 * width].fill(0.0));
    let lse = attention.forward(&qkv).1;
    let lengths = [3, 3, 3, 2, 2, 1];
    lse.chunks(heads).zip(lengths).for_each(|(lse, n)| assert!((lse[1] - f64::from(n).ln()).abs() < 1e-15));
}

#[test]
fn cross_entropy_gradients() {
    let (classes, scale) = (4, 0.5);
    let mut random = Random::new(5);
    let (labels, weights) = ([2, -1, 0, 3, 1], [1.0, 9.0, 0.5, 2.0, 0.0]);
    let logits = normals(&mut random, labels.len() * classes);
    for smoothing in [0.0, 0.2] {
        let at = |logits: &[f64]| smoothed_cross_entropy(logits, &labels, &weights, scale, smoothing);
        let ce = at(&logits);
        check_gradient("d_logits", &logits, &ce.d_logits, |logits| scale * at(logits).loss);
        assert_eq!((ce.weight, ce.targets), (3.5, 4));
    }
    // Two classes, logits ln 3 and 0, so probabilities 3/4 and 1/4, and targets 0.9 and 0.1.
    let by_hand = -0.9 * 0.75f64.ln() - 0.1 * 0.25f64.ln();
    assert!((smoothed_cross_entropy(&[3.0f64.ln(), 0.0], &[0], &[1.0], 1.0, 0.2).loss - by_hand).abs() < 1e-15);
    let even = cross_entropy(&[0.0; 8], &[0, 1], &[1.0, 1.0], 1.0);
    assert!((even.loss - 2.0 * 4.0f64.ln()).abs() < 1e-15);
    assert_eq!(even.correct, 1);
    let all = top_k(&logits, classes, classes);
    for (row, best) in logits.chunks(classes).zip(&all) {
        assert!((best.iter().map(|(_, p)| p).sum::<f64>() - 1.0).abs() < 1e-14);
        assert!(best.windows(2).all(|two| row[two[0].0 as usize] >= row[two[1].0 as usize]));
    }
}

#[test]
fn relu_gradients_and_rows() {
    let (rows, width) = (6, 8);
    let mut random = Random::new(6);
    let (x, c) = (normals(&mut random, rows * width), normals(&mut random, rows * width));
    let keep = keep(&Dropout::new(0.5, 1, 7), 1, rows, width);
    check_gradient("d_x", &x, &relu_dropout_backward(&x, &keep, &c), |x| dot(&relu_dropout(x, &keep), &c));
    let batch = TestBatch::new(&[0, 4, 0, 2, 0], 10, &mut random).masked(Masks::Some, &mut random);
    for (pick, expected) in
        [(Pick::Masked, vec![Some(1), Some(4)]), (Pick::First, vec![None, Some(0), None, Some(4), None])]
    {
        let picked = handbert::check::reference::rows::picked(&batch.view(), pick);
        assert_eq!(picked, expected);
        let c = &c[..picked.len() * width];
        check_gradient("scatter", &x, &scatter(c, &picked, rows, width), |x| dot(&gather(x, &picked, width), c));
    }
}

/// From `torch.optim.AdamW` after `clip_grad_norm_(…, 1.0)`, in f64: a tensor that decays and one that does not.
#[test]
fn adamw_is_torchs() {
    let mut hyper = AdamW {
        learning_rate: 0.031_25,
        beta1: 0.875,
        beta2: 0.968_75,
        epsilon: 1.0 / 1_048_576.0,
        weight_decay: 0.125,
        max_norm: 1.0,
        step: 0,
        limits: UpdateLimits::NONE,
    };
    let state = |w: &[f64]| State { w: w.to_vec(), m: vec![0.0; w.len()], v: vec![0.0; w.len()] };
    let (mut decays, mut stays) = (state(&[1.0, -2.0, 0.5]), state(&[0.25]));
    let steps = [
        (
            5.099_019_513_592_784_5,
            [0.964_843_800_654_135_7, -1.960_937_537_990_617, 0.498_046_875, 0.218_750_151_961_914_25],
        ),
        (
            0.760_345_316_287_277_4,
            [0.930_056_221_882_076_6, -1.940_702_688_390_046_2, 0.519_486_487_725_040_1, 0.233_078_849_901_898_37],
        ),
        (
            8.321_658_488_546_62,
            [0.906_106_516_069_737_8, -1.929_698_526_843_743_9, 0.524_721_310_457_293_3, 0.220_676_511_141_542_35],
        ),
    ];
    let grads = [[3.0f64, -4.0, 0.0, 1.0], [0.5, 0.25, -0.125, -0.5], [-1.0, 2.0, 0.5, 8.0]];
    for (grads, (norm, w)) in grads.iter().zip(steps) {
        hyper.step += 1;
        assert!((grad_norm::<f64>(grads) - norm).abs() < 1e-14);
        adamw(&mut decays, &grads[..3], hyper.weight_decay, grad_norm(grads), &hyper);
        adamw(&mut stays, &grads[3..], 0.0, grad_norm(grads), &hyper);
        decays.w.iter().chain(&stays.w).zip(w).for_each(|(&got, w)| assert!((got - w).abs() < 1e-14, "{got}, not {w}"));
    }
}
