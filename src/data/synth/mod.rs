//! Invents labelled job postings: varied, plausible, and the same for the same seed and index everywhere.
//!
//! In reading order: `place` holds the sentences that decide the label, and why no single word does; `words` and
//! `sectors` what else is said; `writer` fills their templates; `posting` puts a text together;
//! [`file`] writes any number of them.

pub mod file;

mod place;
mod posting;
mod sectors;
mod words;
mod writer;

use sectors::SECTORS;
use writer::{Draws, Facts, Writer};

/// The label of a posting that is worked from anywhere.
pub const REMOTE: &str = "remote";
/// The label of a posting that is worked at the employer's place.
pub const IN_PERSON: &str = "in_person";

/// An invented posting.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SynthRow {
    /// Its index.
    pub id: u64,
    /// The job, in capitals: `Senior Payroll Specialist`.
    pub title: String,
    /// The employer.
    pub company: String,
    /// City and state, of remote jobs too: where the employer is.
    pub location: String,
    /// The posting, 60 to 250 words, in paragraphs.
    pub text: String,
    /// [`REMOTE`], two in five, or [`IN_PERSON`].
    pub label: &'static str,
}

/// The posting of this seed and index: a pure function of both, so rows can be made in any order and number.
pub fn row(seed: u64, index: u64) -> SynthRow {
    let mut draws = Draws::new(seed, index);
    let sector = SECTORS[draws.between(0, SECTORS.len() as u32 - 1) as usize];
    let label = if draws.chance(sector.remote_percent) { REMOTE } else { IN_PERSON };
    let facts = facts(&mut draws, sector);
    let mut writer = Writer::new(draws, facts);
    let text = posting::text(&mut writer, label);
    let Facts { title, company, city, state, .. } = writer.facts;
    SynthRow { id: index, title, company, location: format!("{city}, {state}"), text, label }
}

fn facts(draws: &mut Draws, sector: &'static sectors::Sector) -> Facts {
    let mut title = draws.pick(sector.titles).to_owned();
    if draws.chance(30) {
        title = format!("{} {title}", draws.pick(&words::LEVELS));
    }
    let mut company = draws.pick(&words::COMPANY_NAMES).to_owned();
    if draws.chance(25) {
        company = format!("{company} {}", draws.pick(&words::COMPANY_MIDDLES));
    }
    company = format!("{company} {}", draws.pick(sector.firms));
    let (city, state) = draws.city();
    Facts { sector, title, company, city, state }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    const ROWS: u64 = 6_000;

    #[test]
    fn rows_are_the_same_in_any_order_and_differ_by_seed_and_index() {
        let forward: Vec<SynthRow> = (0..200).map(|index| row(42, index)).collect();
        let backward: Vec<SynthRow> = (0..200).rev().map(|index| row(42, index)).collect();
        assert!(forward.iter().eq(backward.iter().rev()));
        let texts: HashSet<String> =
            forward.into_iter().map(|row| row.text).chain((0..200).map(|index| row(43, index).text)).collect();
        assert_eq!(texts.len(), 400);
        // Indices beyond 32 bits are not folded onto small ones.
        assert_ne!(row(42, 1 << 32).text, row(42, 0).text);
    }

    #[test]
    fn texts_are_whole_and_of_the_promised_length() {
        for index in 0..ROWS {
            let SynthRow { text, .. } = row(7, index);
            let words = text.split_whitespace().count();
            assert!((60..=250).contains(&words), "posting {index} has {words} words");
            // What a template left unfilled, or filled with nothing.
            assert!(!text.contains(['{', '}', '<', '>', '|']) && !text.contains("  "), "posting {index}: {text}");
        }
    }

    /// Share of the postings of each label that hold each word, and the shares of the labels.
    fn shares() -> (HashMap<String, [f64; 2]>, [f64; 2]) {
        let mut holding: HashMap<String, [f64; 2]> = HashMap::new();
        let mut labels = [0.0; 2];
        for index in 0..ROWS {
            let posting = row(11, index);
            let label = usize::from(posting.label == REMOTE);
            labels[label] += 1.0;
            let everything = [posting.title, posting.company, posting.location, posting.text].join(" ").to_lowercase();
            let words: HashSet<&str> = everything.split(|c: char| !c.is_alphanumeric()).collect();
            words.into_iter().for_each(|word| holding.entry(word.to_owned()).or_default()[label] += 1.0);
        }
        holding.values_mut().for_each(|counts| (0..2).for_each(|label| counts[label] /= labels[label]));
        (holding, labels.map(|count| count / ROWS as f64))
    }

    #[test]
    fn no_single_word_gives_the_label_away() {
        let (holding, labels) = shares();
        assert!((0.36..0.44).contains(&labels[1]), "share of remote postings: {labels:?}");
        for (word, [in_person, remote]) in &holding {
            // The area under the ROC curve of "the posting has the word" as a score.
            let area = 0.5 + (remote - in_person).abs() / 2.0;
            assert!(area < 0.65, "{word:?} alone tells the label with area {area:.3}");
        }
    }

    #[test]
    fn the_words_of_the_place_occur_with_both_labels() {
        let (holding, _) = shares();
        for word in
            ["remote", "site", "office", "home", "travel", "commute", "online", "possible", "required", "not", "never"]
        {
            let [in_person, remote] = holding[word];
            assert!(in_person > 0.02 && remote > 0.02, "{word:?} in {in_person:.3} and {remote:.3} of the postings");
        }
    }
}
