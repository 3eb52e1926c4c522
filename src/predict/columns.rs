//! The columns that labelling adds to a row, and their names.

use std::collections::HashSet;

use serde_json::{Map, Number, Value};

use super::classify::Decision;
use super::{Error, Result};
use crate::data::Row;

/// Put before a name that the input already has.
const PREFIX: &str = "predicted_";

/// Which scores are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scores {
    /// Of the label given.
    #[default]
    Best,
    /// Of every label, a column each.
    All,
}

/// The columns that labelling adds, under names that no input column has.
#[derive(Debug, Clone, PartialEq)]
pub struct Added {
    label: String,
    score: String,
    /// A column for each class, or none.
    each: Vec<String>,
    classes: Vec<String>,
    decision: Decision,
}

impl Added {
    /// `label`, `score` and, with [`Scores::All`], one `score_<label>` a class. A name that is among
    /// `columns` gets the prefix `predicted_`, as often as it takes; with a prefix of the user's own,
    /// every name gets that one.
    ///
    /// # Errors
    /// The user's prefix gives a name that a column has.
    pub fn new(
        columns: &[String], classes: &[String], scores: Scores, prefix: Option<&str>, decision: Decision,
    ) -> Result<Self> {
        let mut taken: HashSet<String> = columns.iter().cloned().collect();
        let mut free = |name: String| -> Result<String> {
            let mut name = prefix.unwrap_or_default().to_owned() + &name;
            while !taken.insert(name.clone()) {
                if prefix.is_some() {
                    return Err(Error::Invalid(format!(
                        "the input already has a column {name:?}; choose another --prefix"
                    )));
                }
                name.insert_str(0, PREFIX);
            }
            Ok(name)
        };
        let (label, score) = (free("label".to_owned())?, free("score".to_owned())?);
        let each = match scores {
            Scores::Best => Vec::new(),
            Scores::All => classes.iter().map(|class| free(format!("score_{class}"))).collect::<Result<_>>()?,
        };
        Ok(Added { label, score, each, classes: classes.to_vec(), decision })
    }

    /// The names, in the order of [`Added::put`].
    pub fn names(&self) -> impl Iterator<Item = &String> {
        [&self.label, &self.score].into_iter().chain(&self.each)
    }

    /// The name of an added column that the row already uses: JSONL rows may differ.
    pub fn clash(&self, row: &Row) -> Option<&String> {
        self.names().find(|name| row.fields.contains_key(*name))
    }

    /// Adds the columns to a row.
    pub fn put(&self, fields: &mut Map<String, Value>, probabilities: &[f32]) {
        let class = self.decision.class(probabilities);
        let score = |i: usize| probabilities.get(i).map_or(Value::Null, |&p| shortest(p));
        fields.insert(self.label.clone(), self.classes.get(class).cloned().map_or(Value::Null, Value::String));
        fields.insert(self.score.clone(), score(class));
        for (i, name) in self.each.iter().enumerate() {
            fields.insert(name.clone(), score(i));
        }
    }
}

/// 0.1f32 as 0.1, not as 0.10000000149; null for what is not finite.
fn shortest(p: f32) -> Value {
    p.to_string().parse().ok().and_then(Number::from_f64).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(added: &Added) -> Vec<&str> {
        added.names().map(String::as_str).collect()
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|&n| n.to_owned()).collect()
    }

    fn added(columns: &[&str], scores: Scores, prefix: Option<&str>) -> Result<Added> {
        Added::new(&strings(columns), &strings(&["in_person", "remote"]), scores, prefix, Decision::MostProbable)
    }

    #[test]
    fn names_that_are_taken_get_a_prefix() {
        let of = |columns: &[&str], scores| added(columns, scores, None).unwrap();
        assert_eq!(names(&of(&["text"], Scores::Best)), ["label", "score"]);
        assert_eq!(names(&of(&["text", "label"], Scores::Best)), ["predicted_label", "score"]);
        assert_eq!(names(&of(&["label", "predicted_label"], Scores::Best)), ["predicted_predicted_label", "score"]);
        assert_eq!(
            names(&of(&["score_remote"], Scores::All)),
            ["label", "score", "score_in_person", "predicted_score_remote"]
        );
    }

    #[test]
    fn a_prefix_of_the_users_own_is_never_changed() {
        assert_eq!(names(&added(&["label"], Scores::Best, Some("m1_")).unwrap()), ["m1_label", "m1_score"]);
        let error = added(&["m1_score"], Scores::Best, Some("m1_")).unwrap_err().to_string();
        assert!(error.contains("m1_score") && error.contains("--prefix"), "{error}");
        // Two classes never share a column either.
        let twice = Added::new(&[], &strings(&["a", "a"]), Scores::All, None, Decision::MostProbable).unwrap();
        assert_eq!(names(&twice)[2..], ["score_a", "predicted_score_a"]);
    }

    #[test]
    fn columns_stand_after_the_inputs() {
        let mut fields = serde_json::from_str(r#"{"b": 1, "a": null}"#).unwrap();
        added(&["b", "a"], Scores::All, None).unwrap().put(&mut fields, &[0.1, 0.9]);
        let expected = r#"{"b":1,"a":null,"label":"remote","score":0.9,"score_in_person":0.1,"score_remote":0.9}"#;
        assert_eq!(serde_json::to_string(&fields).unwrap(), expected);
    }

    #[test]
    fn a_score_that_is_no_number_is_null() {
        assert_eq!(shortest(f32::NAN), Value::Null);
        assert_eq!(shortest(1e-30).to_string(), "1e-30");
        assert_eq!(shortest(1.0).to_string(), "1.0");
    }
}
