//! Random draws of one posting, and the templates they fill.

use super::sectors::Sector;
use super::words;
use crate::philox::{Purpose, below, key, philox4x32};

/// The stream of random words of one posting: a pure function of (seed, index).
pub(super) struct Draws {
    key: [u32; 2],
    index: u64,
    block: u32,
    words: [u32; 4],
    used: usize,
}

impl Draws {
    pub(super) fn new(seed: u64, index: u64) -> Draws {
        Draws { key: key(seed, Purpose::Synth), index, block: 0, words: [0; 4], used: 4 }
    }

    fn word(&mut self) -> u32 {
        if self.used == self.words.len() {
            let counter = [self.block, self.index as u32, (self.index >> 32) as u32, 0];
            self.words = philox4x32(counter, self.key);
            self.block += 1;
            self.used = 0;
        }
        self.used += 1;
        self.words.get(self.used - 1).copied().unwrap_or_default()
    }

    /// A whole number from `low` to `high`, both included.
    pub(super) fn between(&mut self, low: u32, high: u32) -> u32 {
        low + below(self.word(), high - low + 1)
    }

    /// True in `percent` of 100 draws.
    pub(super) fn chance(&mut self, percent: u32) -> bool {
        below(self.word(), 100) < percent
    }

    /// A number below `n`, small ones more often: the square of an even draw. As with words in a language, the first
    /// items of a list are common and the last ones rare.
    fn skewed(&mut self, n: usize) -> usize {
        let word = u64::from(self.word());
        below(((word * word) >> 32) as u32, n as u32) as usize
    }

    /// One of the items, which are not empty; the first ones more often.
    pub(super) fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.skewed(items.len())]
    }

    /// Some of the items, the first ones more often, each at most once.
    pub(super) fn sample<T: Copy>(&mut self, items: &[T], count: usize) -> Vec<T> {
        let mut left = items.to_vec();
        (0..count.min(items.len())).map(|_| left.remove(self.skewed(left.len()))).collect()
    }

    /// Puts the items into random order.
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, below(self.word(), end as u32 + 1) as usize);
        }
    }
}

/// What does not change within a posting.
pub(super) struct Facts {
    pub sector: &'static Sector,
    pub title: String,
    pub company: String,
    pub city: &'static str,
    pub state: &'static str,
}

/// Fills templates with a posting's facts and with draws.
pub(super) struct Writer {
    pub draws: Draws,
    pub facts: Facts,
    /// The last thing drawn from a list, so that nobody works with "guests and guests".
    last: &'static str,
}

impl Writer {
    pub(super) fn new(draws: Draws, facts: Facts) -> Writer {
        Writer { draws, facts, last: "" }
    }

    /// Appends a template, its slots and alternatives filled in, its first letter a capital.
    ///
    /// `{slot}` is a fact or drawn from a list, `<a|b>` one of the alternatives, which may hold slots.
    pub(super) fn sentence(&mut self, template: &str, out: &mut String) {
        let start = out.len();
        self.fill(template, out);
        if let Some(first) = out.get_mut(start..start + 1) {
            first.make_ascii_uppercase();
        }
    }

    /// Appends a template, its slots and alternatives filled in.
    pub(super) fn fill(&mut self, template: &str, out: &mut String) {
        let mut rest = template;
        while let Some((before, after)) = rest.split_once(['{', '<']) {
            out.push_str(before);
            let slot = rest.as_bytes().get(before.len()) == Some(&b'{');
            let close = if slot { '}' } else { '>' };
            let (inside, after) = after.split_once(close).unwrap_or((after, ""));
            if slot {
                self.slot(inside, out);
            } else {
                let count = inside.bytes().filter(|&b| b == b'|').count() as u32 + 1;
                let chosen = self.draws.between(0, count - 1) as usize;
                self.fill(inside.split('|').nth(chosen).unwrap_or_default(), out);
            }
            rest = after;
        }
        out.push_str(rest);
    }

    fn slot(&mut self, name: &str, out: &mut String) {
        let Writer { draws, facts, last } = self;
        let sector = facts.sector;
        let list: &[&'static str] = match name {
            "title" => return out.push_str(&facts.title),
            "a_title" => {
                out.push_str(if facts.title.starts_with(['A', 'E', 'I', 'O']) { "an " } else { "a " });
                return out.push_str(&facts.title);
            }
            "company" => return out.push_str(&facts.company),
            "city" => return out.push_str(facts.city),
            "state" => return out.push_str(facts.state),
            "other_city" => return out.push_str(draws.other_city(facts.city)),
            "n" => return self.number(2, 9, out),
            "hours" => return self.number(20, 40, out),
            "wage" => return self.number(15, 29, out),
            "wage_high" => return self.number(30, 48, out),
            "salary_low" => return self.number(38, 79, out),
            "salary_high" => return self.number(80, 145, out),
            "role" => &words::ROLES,
            "department" => &words::DEPARTMENTS,
            "season" => &words::SEASONS,
            "name" => &words::PEOPLE,
            "people" => sector.people,
            "thing" => sector.things,
            "tool" => sector.tools,
            "skill" => sector.skills,
            "credential" => sector.credentials,
            "business" => sector.business,
            _ => unreachable!("a template of ours names the slot {name}, which there is not"),
        };
        let template = loop {
            let template = draws.pick(list);
            if template != *last {
                break template;
            }
        };
        *last = template;
        self.fill(template, out);
    }

    fn number(&mut self, low: u32, high: u32, out: &mut String) {
        out.push_str(&self.draws.between(low, high).to_string());
    }
}

impl Draws {
    /// A city and its state.
    pub(super) fn city(&mut self) -> (&'static str, &'static str) {
        words::CITIES[self.skewed(words::CITIES.len())]
    }

    /// A city that is not `city`.
    fn other_city(&mut self, city: &str) -> &'static str {
        loop {
            let (other, _) = self.city();
            if other != city {
                return other;
            }
        }
    }
}
