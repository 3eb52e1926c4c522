//! Every call of an op that a training step or a forward pass makes, each ready to be made on its own.

mod encoder;
mod heads;
mod update;

use super::measure::Effort;
use super::operands::{Cols, Operand, Operands, Role, Set};
use super::ops::{Op, Part, Pass};
use super::shapes::Lengths;
use crate::backend::{Backend, Result, Rows};

/// The most sets of operands.
const MOST_SETS: usize = 256;

/// Makes a call.
pub type Run<B> = fn(&mut Operands<'_, B>, &mut Set<B>) -> Result<()>;

/// A call of an op. It makes one op of [`super::ops`] or several.
pub struct Call<B: Backend> {
    /// What it is called here; the first word is the method of `Backend`.
    pub name: &'static str,
    /// Where it is.
    pub part: Part,
    /// Which way.
    pub pass: Pass,
    /// Names of the ops that it makes.
    pub makes: &'static [&'static str],
    /// What its work is counted as; letters as in model/shapes.rs, S the length of the sequence that a token is in, W
    /// words that occur, A all parameters, e bytes of an activation.
    pub formula: &'static str,
    /// How long sequences are.
    pub lengths: Lengths,
    /// Matrices it works on.
    pub mats: &'static [Operand],
    /// Statistics it works on.
    pub stats: &'static [Operand],
    /// What has to be computed once before it.
    pub prepare: Run<B>,
    /// Makes it.
    pub run: Run<B>,
}

impl<B: Backend> Call<B> {
    /// A call in this part that does nothing as yet.
    fn of(part: Part, pass: Pass) -> Call<B> {
        Call {
            name: "",
            part,
            pass,
            makes: &[],
            formula: "",
            lengths: Lengths::Mixed,
            mats: &[],
            stats: &[],
            prepare: |_, _| Ok(()),
            run: |_, _| Ok(()),
        }
    }

    /// The ops that it makes, of those of a pass; none if it is not part of that pass.
    pub fn ops<'o>(&self, ops: &'o [Op]) -> Vec<&'o Op> {
        let find = |name: &&str| ops.iter().find(|op| (op.part, op.pass, op.name) == (self.part, self.pass, *name));
        self.makes.iter().map(find).collect::<Option<_>>().unwrap_or_default()
    }

    /// How many sets of operands take turns, where a call moves so many bytes, so that none finds its own in a cache; one for
    /// a call on the model's buffers.
    pub fn cold_sets(&self, effort: &Effort, bytes: f64) -> usize {
        let cold = (effort.cold_bytes / bytes).ceil() as usize;
        if self.mats.is_empty() { 1 } else { cold.clamp(1, MOST_SETS) }
    }

    /// So many sets of what it works on, with its batch at hand and what has to come before it computed.
    ///
    /// # Errors
    ///
    /// Those of the backend: no memory for so many sets, or an op that fails.
    pub fn ready(&self, operands: &mut Operands<'_, B>, count: usize) -> Result<Vec<Set<B>>> {
        let mut sets = operands.sets(self.mats, self.stats, count, self.lengths)?;
        operands.upload(self.lengths)?;
        sets.iter_mut().try_for_each(|set| (self.prepare)(operands, set))?;
        Ok(sets)
    }
}

/// All of them, in the order of a step: embeddings, blocks, heads, and back; then the update. At the end attention once more,
/// on sequences of one length.
pub fn all<B: Backend>() -> Vec<Call<B>> {
    let equal = |call: Call<B>| (call.makes == ["attention"]).then_some(Call { lengths: Lengths::Equal, ..call });
    let forward = encoder::forward().into_iter().chain(heads::mlm_forward()).chain(heads::class_forward());
    let backward = heads::mlm_backward().into_iter().chain(heads::class_backward()).chain(encoder::backward());
    let again = encoder::forward().into_iter().chain(encoder::backward()).filter_map(equal);
    forward.chain(backward).chain(update::all()).chain(again).collect()
}

const fn operand(rows: Rows, cols: Cols, role: Role) -> Operand {
    Operand { rows, cols, role }
}

/// [N, C]
const HIDDEN: Operand = operand(Rows::Tokens, Cols::Width, Role::Input);
const HIDDEN_OUT: Operand = Operand { role: Role::Output, ..HIDDEN };
const HIDDEN_IN_PLACE: Operand = Operand { role: Role::InPlace, ..HIDDEN };
/// [N, 3C]
const QKV: Operand = operand(Rows::Tokens, Cols::Qkv, Role::Input);
const QKV_OUT: Operand = Operand { role: Role::Output, ..QKV };
/// [N, F]
const INNER: Operand = operand(Rows::Tokens, Cols::Inner, Role::Input);
const INNER_OUT: Operand = Operand { role: Role::Output, ..INNER };
/// [M, C]
const MASKED: Operand = operand(Rows::Masked, Cols::Width, Role::Input);
const MASKED_OUT: Operand = Operand { role: Role::Output, ..MASKED };
const MASKED_IN_PLACE: Operand = Operand { role: Role::InPlace, ..MASKED };
/// [B, C]
const FIRST: Operand = operand(Rows::Sequences, Cols::Width, Role::Input);
const FIRST_OUT: Operand = Operand { role: Role::Output, ..FIRST };
const FIRST_IN_PLACE: Operand = Operand { role: Role::InPlace, ..FIRST };
/// [B, K]
const LOGITS: Operand = operand(Rows::Sequences, Cols::Classes, Role::Input);
const LOGITS_OUT: Operand = Operand { role: Role::Output, ..LOGITS };
/// [N, 2]
const MOMENTS: Operand = operand(Rows::Tokens, Cols::Moments, Role::Output);
/// [M, 2]
const MASKED_MOMENTS: Operand = operand(Rows::Masked, Cols::Moments, Role::Output);
/// [N, H]
const LSE: Operand = operand(Rows::Tokens, Cols::Heads, Role::Output);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Precision;
    use crate::backend::cpu::Cpu;
    use crate::bench::Load;
    use crate::bench::ops::ops;
    use crate::bench::shapes::base_config;
    use crate::model::{Head, Mode};

    /// Calls of each pass, sequences of one length left out.
    #[test]
    fn every_op_of_every_pass_is_made_by_one_call_of_the_method_it_belongs_to() {
        let load = Load::uniform(65_536, 300.0, 9_830);
        for head in [Head::Mlm, Head::Classifier { classes: 2 }] {
            for mode in [Mode::Training, Mode::Inference] {
                let ops = ops(&base_config(), head, &load, mode, Precision::Bf16);
                let mut made = vec![0; ops.len()];
                for call in all::<Cpu>().iter().filter(|call| call.lengths == Lengths::Mixed) {
                    for op in call.ops(&ops) {
                        made[ops.iter().position(|other| other == op).unwrap()] += 1;
                        assert_eq!(call.name.split(' ').next(), Some(op.call), "{}", call.name);
                    }
                }
                let missed: Vec<_> = ops.iter().zip(&made).filter(|(_, made)| **made != 1).collect();
                assert!(missed.is_empty(), "{head:?} {mode:?}: {missed:?}");
            }
        }
    }

    #[test]
    fn names_are_unique_and_formulas_given() {
        let calls = all::<Cpu>();
        for call in &calls {
            let same = calls.iter().filter(|other| (other.name, other.lengths) == (call.name, call.lengths)).count();
            assert!(same == 1 && !call.formula.is_empty(), "{}", call.name);
        }
    }
}
