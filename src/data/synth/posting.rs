//! Puts a posting together: which sections it has, in which order, and where it says what decides its label.

use super::place::{DECOYS, HEADINGS, IN_PERSON_LEANING, IN_PERSON_SAYS, PAIRS, REMOTE_LEANING, REMOTE_SAYS};
use super::writer::Writer;
use super::{REMOTE, words};

/// A part of a posting: a heading or none, then sentences or bullets.
struct Section {
    heading: Option<&'static str>,
    items: Vec<String>,
    style: Style,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Sentences,
    Bullets,
}

/// A posting shorter than this says more of the company.
const FEWEST_WORDS: usize = 60;

/// The text of a posting with this label.
pub(super) fn text(writer: &mut Writer, label: &'static str) -> String {
    let opening = sentences(writer, &words::OPENINGS, 1);
    let mut sections = vec![duties(writer)];
    if writer.draws.chance(90) {
        sections.push(needs(writer));
    }
    if writer.draws.chance(55) {
        let count = writer.draws.between(1, 2) as usize;
        sections.push(sentences(writer, &words::ABOUT, count));
    }
    if writer.draws.chance(65) {
        sections.push(offer(writer, label));
    }
    if writer.draws.chance(45) {
        let count = writer.draws.between(1, 2) as usize;
        sections.push(sentences(writer, &words::HOURS, count));
    }
    // Most postings keep to the usual order, the others to none.
    if writer.draws.chance(40) {
        writer.draws.shuffle(&mut sections);
    }
    if writer.draws.chance(75) {
        let count = writer.draws.between(1, 2) as usize;
        sections.push(sentences(writer, &words::APPLY, count));
    }
    sections.insert(0, opening);
    say_the_place(writer, label, &mut sections);
    while words_in(&sections) < FEWEST_WORDS {
        let more = sentences(writer, &words::ABOUT, 2);
        sections.insert(1, more);
    }
    lay_out(writer, &sections)
}

fn words_in(sections: &[Section]) -> usize {
    sections.iter().flat_map(|section| &section.items).map(|item| item.split_whitespace().count()).sum()
}

fn sentences(writer: &mut Writer, templates: &[&str], count: usize) -> Section {
    let chosen = writer.draws.sample(templates, count);
    let items = chosen.into_iter().map(|template| filled(writer, template)).collect();
    Section { heading: None, items, style: Style::Sentences }
}

fn filled(writer: &mut Writer, template: &str) -> String {
    let mut sentence = String::new();
    writer.sentence(template, &mut sentence);
    sentence
}

/// Items without full stops, some from the sector's list and some from the common one.
fn listed(writer: &mut Writer, heading: &'static str, own: &[&str], common: &[&str], count: usize) -> Section {
    let from_own = if own.is_empty() { 0 } else { writer.draws.between(1, count as u32 - 1) as usize };
    let mut templates = writer.draws.sample(own, from_own);
    templates.extend(writer.draws.sample(common, count - from_own));
    writer.draws.shuffle(&mut templates);
    let style = if writer.draws.chance(60) { Style::Bullets } else { Style::Sentences };
    let mut items: Vec<String> = templates.into_iter().map(|template| filled(writer, template)).collect();
    if style == Style::Sentences {
        items.iter_mut().for_each(|item| item.push('.'));
    }
    Section { heading: Some(heading), items, style }
}

fn duties(writer: &mut Writer) -> Section {
    let (heading, count) = (writer.draws.pick(&words::DUTY_HEADINGS), writer.draws.between(2, 4) as usize);
    let own = writer.facts.sector.tasks;
    listed(writer, heading, own, &words::DUTIES, count)
}

fn needs(writer: &mut Writer) -> Section {
    let (heading, count) = (writer.draws.pick(&words::NEED_HEADINGS), writer.draws.between(1, 3) as usize);
    listed(writer, heading, &[], &words::NEEDS, count)
}

/// Pay, benefits or both.
fn offer(writer: &mut Writer, label: &'static str) -> Section {
    let mut items = Vec::new();
    let pay = writer.draws.chance(60);
    if pay {
        let template = writer.draws.pick(&words::PAY);
        items.push(filled(writer, template));
    }
    if !pay || writer.draws.chance(70) {
        items.push(benefits(writer, label));
    }
    let heading = writer.draws.chance(60).then(|| writer.draws.pick(&words::BENEFIT_HEADINGS));
    Section { heading, items, style: Style::Sentences }
}

/// Two to four benefits in a sentence. One in four lists has one that leans to a kind of work, two times in three its
/// own.
fn benefits(writer: &mut Writer, label: &'static str) -> String {
    let count = writer.draws.between(2, 4) as usize;
    let mut templates = writer.draws.sample(&words::BENEFITS, count);
    if writer.draws.chance(25) {
        let own = writer.draws.chance(66);
        let leaning = if own == (label == REMOTE) { &REMOTE_LEANING } else { &IN_PERSON_LEANING };
        templates.pop();
        templates.push(writer.draws.pick(leaning));
        writer.draws.shuffle(&mut templates);
    }
    let mut sentence = writer.draws.pick(&words::BENEFIT_LEADS).to_owned();
    let last = templates.len() - 1;
    for (i, template) in templates.into_iter().enumerate() {
        sentence.push_str(match i {
            0 => " ",
            _ if i == last => " and ",
            _ => ", ",
        });
        writer.fill(template, &mut sentence);
    }
    sentence.push('.');
    sentence
}

/// Says what decides the label, in most postings one to three times, and what only seems to.
fn say_the_place(writer: &mut Writer, label: &'static str, sections: &mut Vec<Section>) {
    let count = match writer.draws.between(0, 99) {
        0..3 => 0,
        3..43 => 1,
        43..82 => 2,
        _ => 3,
    };
    let decisive = deciding(writer, label, count);
    let decoys = writer.draws.between(1, 3) as usize;
    let decoys = writer.draws.sample(&DECOYS, decoys);
    let own_section = writer.draws.chance(50);
    if own_section && count > 0 {
        let items = decisive.iter().map(|sentence| filled(writer, sentence)).collect();
        let heading = writer.draws.chance(60).then(|| writer.draws.pick(&HEADINGS));
        let at = if writer.draws.chance(50) { 1 } else { writer.draws.between(1, sections.len() as u32) as usize };
        sections.insert(at, Section { heading, items, style: Style::Sentences });
    } else {
        decisive.iter().for_each(|sentence| slip_in(writer, sentence, sections));
    }
    decoys.iter().for_each(|sentence| slip_in(writer, sentence, sections));
}

/// `count` sentences that decide for the label: four in five say it plainly, the others are of a pair.
fn deciding(writer: &mut Writer, label: &'static str, count: usize) -> Vec<&'static str> {
    let plain = (0..count).filter(|_| writer.draws.chance(80)).count();
    let says = if label == REMOTE { &REMOTE_SAYS } else { &IN_PERSON_SAYS };
    let mut sentences = writer.draws.sample(says, plain);
    let pairs = writer.draws.sample(&PAIRS.each_ref(), count - plain);
    sentences.extend(pairs.into_iter().map(|pair| if label == REMOTE { pair.remote } else { pair.in_person }));
    writer.draws.shuffle(&mut sentences);
    sentences
}

/// Puts a sentence somewhere among others; the opening, which comes first, is always made of sentences.
fn slip_in(writer: &mut Writer, template: &str, sections: &mut [Section]) {
    let sentence = filled(writer, template);
    let mut hosts: Vec<&mut Section> = sections.iter_mut().filter(|s| s.style == Style::Sentences).collect();
    let host = writer.draws.between(0, hosts.len() as u32 - 1) as usize;
    if let Some(host) = hosts.get_mut(host) {
        let at = writer.draws.between(1, host.items.len() as u32) as usize;
        host.items.insert(at, sentence);
    }
}

/// The sections as one text, in one of a few layouts.
fn lay_out(writer: &mut Writer, sections: &[Section]) -> String {
    let (between, within) = match writer.draws.between(0, 9) {
        0..6 => ("\n\n", "\n"),
        6..9 => ("\n", "\n"),
        _ => (" ", " "),
    };
    let bullet = writer.draws.pick(&["- ", "* ", "• "]);
    let mut text = String::new();
    for section in sections {
        if !text.is_empty() {
            text.push_str(between);
        }
        if let Some(heading) = section.heading {
            text.push_str(heading);
            text.push(':');
            text.push_str(within);
        }
        for (i, item) in section.items.iter().enumerate() {
            match section.style {
                Style::Bullets => {
                    text.push_str(if i > 0 { within } else { "" });
                    text.push_str(bullet);
                }
                Style::Sentences => text.push_str(if i > 0 { " " } else { "" }),
            }
            text.push_str(item);
        }
    }
    text
}
