//! What is particular to each kind of work: titles, tasks, tools.

mod care;
mod desk;
mod hands;

/// One kind of work. The first items of a list are drawn more often; templates may hold slots (see `writer`).
#[derive(Debug)]
pub(super) struct Sector {
    /// Share of its postings that are remote, of 100. Desk work is more often remote, though never so much that the
    /// sector gives the label away.
    pub remote_percent: u32,
    /// Job titles, in capitals.
    pub titles: &'static [&'static str],
    /// Last words of company names.
    pub firms: &'static [&'static str],
    /// What the company does, after its name.
    pub business: &'static [&'static str],
    /// Whom the work is for, in the plural.
    pub people: &'static [&'static str],
    /// What the work is about, in the plural or uncountable.
    pub things: &'static [&'static str],
    /// Duties of this sector alone, as commands without a full stop.
    pub tasks: &'static [&'static str],
    /// What one must be good at.
    pub skills: &'static [&'static str],
    /// Software, machines and methods.
    pub tools: &'static [&'static str],
    /// Degrees, licences, certificates, with their article.
    pub credentials: &'static [&'static str],
}

/// All kinds of work, in a fixed order: a posting's sector is drawn by its number.
pub(super) const SECTORS: [&Sector; 14] = [
    &desk::SOFTWARE,
    &desk::FINANCE,
    &desk::MARKETING,
    &desk::SUPPORT,
    &desk::PEOPLE,
    &care::NURSING,
    &care::TEACHING,
    &care::SOCIAL,
    &care::LABORATORY,
    &hands::LOGISTICS,
    &hands::RETAIL,
    &hands::TRADES,
    &hands::HOSPITALITY,
    &hands::MANUFACTURING,
];
