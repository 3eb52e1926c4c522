//! What a posting says of the place of work: the sentences that decide its label, and those that seem to.
//!
//! Plain sentences decide by themselves (`This is a fully remote job.`), denials by what they deny, and the two
//! sentences of a pair, made of the same words in another order, by who does what where. Decoys hold all those words
//! and decide nothing. So words lean to a label, which a small model needs to begin to learn, and none gives it away.

/// What decides: one sentence for a remote posting, the same words for an in-person one.
#[derive(Debug)]
pub(super) struct Pair {
    pub remote: &'static str,
    pub in_person: &'static str,
}

const fn pair(remote: &'static str, in_person: &'static str) -> Pair {
    Pair { remote, in_person }
}

/// The sentences that decide, common ones first.
pub(super) const PAIRS: [Pair; 20] = [
    pair(
        "This {role} is remote, not based in our {city} office.",
        "This {role} is based in our {city} office, not remote.",
    ),
    pair(
        "Remote work is required for this {role}; on-site work is not possible.",
        "On-site work is required for this {role}; remote work is not possible.",
    ),
    pair(
        "You work from home and are not asked to work on site.",
        "You work on site and are not asked to work from home.",
    ),
    pair(
        "We hire for remote work only, so there are no office days.",
        "We hire for office work only, so there are no remote days.",
    ),
    pair("Location: remote (office: never).", "Location: office (remote: never)."),
    pair(
        "Telework is the only option; on-site work is out of the question.",
        "On-site work is the only option; telework is out of the question.",
    ),
    pair("Home working: yes. Office attendance: no.", "Home working: no. Office attendance: yes."),
    pair("On-site days are rare and remote days are the norm.", "Remote days are rare and on-site days are the norm."),
    pair(
        "Expect five days a week at home and none in the office.",
        "Expect five days a week in the office and none at home.",
    ),
    pair("Remote: 100 percent. On site: 0 percent.", "Remote: 0 percent. On site: 100 percent."),
    pair(
        "Working from home is the rule here and coming to the office the exception.",
        "Coming to the office is the rule here and working from home the exception.",
    ),
    pair(
        "We ask nobody to come in and everybody to stay remote.",
        "We ask nobody to stay remote and everybody to come in.",
    ),
    pair("The work is done online and never on the premises.", "The work is done on the premises and never online."),
    pair(
        "Your place of work is your home rather than our {city} site.",
        "Your place of work is our {city} site rather than your home.",
    ),
    pair("Our customers are on site, but you are remote.", "Our customers are remote, but you are on site."),
    pair("All meetings are held by video and none in person.", "All meetings are held in person and none by video."),
    pair(
        "Nobody has to come to {city}; everybody may work from home.",
        "Nobody may work from home; everybody has to come to {city}.",
    ),
    pair(
        "The office is optional and the home desk is where the work happens.",
        "The home desk is optional and the office is where the work happens.",
    ),
    pair(
        "Is remote work possible? Yes. Are office visits required? No.",
        "Is remote work possible? No. Are office visits required? Yes.",
    ),
    pair(
        "The team meets online every week and in the office once a year.",
        "The team meets in the office every week and online once a year.",
    ),
];

/// Plain sentences and denials of a remote posting, common ones first.
pub(super) const REMOTE_SAYS: [&str; 16] = [
    "This is a fully remote {role}.",
    "Office visits are not required.",
    "You work from home every day.",
    "There is no need to come to the office.",
    "The {role} is remote.",
    "You can work from anywhere.",
    "You are not expected on site.",
    "Remote work is the rule here.",
    "On-site work is not part of this {role}.",
    "We are a remote team.",
    "You never commute to our site.",
    "You may live in any city.",
    "Work from your home desk every day.",
    "All of the work is done online.",
    "There are no office days.",
    "Our home office policy has no exceptions.",
];

/// Plain sentences and denials of an in-person posting, common ones first.
pub(super) const IN_PERSON_SAYS: [&str; 16] = [
    "This is a fully on-site {role}.",
    "Remote work is not possible.",
    "You work in our office every day.",
    "There is no option to work from home.",
    "The {role} is on site.",
    "You can not work from anywhere else.",
    "You are expected in the office.",
    "On-site work is the rule here.",
    "Remote work is not part of this {role}.",
    "We are an office team.",
    "You commute to our site and never work from home.",
    "You must live near {city}.",
    "Work at your office desk every day.",
    "All of the work is done in person.",
    "There are no remote days.",
    "Our on-site policy has no exceptions.",
];

/// Sentences that hold the same words and decide nothing; either label may have them, equally often.
pub(super) const DECOYS: [&str; 34] = [
    "No experience with remote tools is required.",
    "Travel to client sites is possible, but not required.",
    "Our remote monitoring platform watches {n} sites.",
    "There is no need to bring a laptop from home.",
    "Our office in {city} is on Main Street.",
    "You can find our remote branches anywhere in {state}.",
    "On-site training is offered every {season}.",
    "Overtime is not expected.",
    "Every day a member of the team visits a home or an office.",
    "Home visits are part of this {role}.",
    "You will support remote branches by phone.",
    "The head office is in {city}, with a smaller office in {other_city}.",
    "Experience with remote support tools is a plus.",
    "Applications are made online and first interviews are held by video.",
    "Lunch at the {city} office is free for those who are there.",
    "Our customers can order online or in person.",
    "We offer home and travel insurance at a staff rate.",
    "You will keep in touch with on-site crews and remote partners alike.",
    "Please do not visit the office without an appointment.",
    "Part of your job is to look after our remote sites in {state}.",
    "The {city} site has an on-site gym and a quiet room.",
    "We help new colleagues find a home in {city}.",
    "Travel to the yearly meeting in {other_city} is paid.",
    "You will manage a remote team of {n} and report to the office in {city}.",
    "Commute costs and home internet are paid in part.",
    "Office software skills are expected.",
    "Our clients are home owners and small offices.",
    "We opened the {city} branch {n} years ago and the {other_city} branch last year.",
    "Training is offered online and on site.",
    "The office dog is called Biscuit.",
    "You will book travel for colleagues who visit remote areas.",
    "We moved our premises from {other_city} to {city}.",
    "Questions about home visits are answered by the office.",
    "We work with people in many cities, in person and by video.",
];

/// Headings above the sentences that decide.
pub(super) const HEADINGS: [&str; 5] =
    ["Location", "Place of work", "Where you will work", "Work arrangement", "Good to know"];

/// Benefits that go somewhat more often with remote work. Being in half the lists of the other kind too, they hint.
pub(super) const REMOTE_LEANING: [&str; 5] = [
    "a laptop and a second screen",
    "an internet allowance",
    "flexible hours across time zones",
    "a headset and a chair",
    "a budget for books",
];

/// Benefits that go somewhat more often with in-person work.
pub(super) const IN_PERSON_LEANING: [&str; 5] =
    ["free parking", "a staff canteen", "a transit pass", "a locker and a uniform", "free fruit and coffee"];

#[cfg(test)]
mod tests {
    use super::*;

    fn words(sentence: &str) -> Vec<String> {
        let letters = |c: char| c.is_alphanumeric() || "{}_-".contains(c);
        let mut words: Vec<String> =
            sentence.to_lowercase().split(|c| !letters(c)).filter(|w| !w.is_empty()).map(str::to_owned).collect();
        words.sort_unstable();
        words
    }

    #[test]
    fn the_sentences_of_a_pair_have_the_same_words_in_another_order() {
        for Pair { remote, in_person } in &PAIRS {
            assert_eq!(words(remote), words(in_person));
            assert_ne!(remote, in_person);
        }
    }

    #[test]
    fn no_sentence_decides_for_both_labels() {
        let mut all: Vec<&str> = (PAIRS.iter().flat_map(|pair| [pair.remote, pair.in_person]))
            .chain(REMOTE_SAYS)
            .chain(IN_PERSON_SAYS)
            .chain(DECOYS)
            .collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
