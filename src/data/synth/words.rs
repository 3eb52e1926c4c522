//! What every kind of posting is made of: names, openings, pay, benefits, how to apply.
//!
//! `{slot}` is filled in by the writer, `<a|b>` is one of the alternatives.

/// First words of company names.
pub(super) const COMPANY_NAMES: [&str; 60] = [
    "Northgate",
    "Blue Harbor",
    "Cedar",
    "Summit",
    "Lakeside",
    "Ironwood",
    "Bright",
    "Silver Creek",
    "Maple",
    "Union",
    "Pioneer",
    "Harvest",
    "Redstone",
    "Westfield",
    "Clearwater",
    "Beacon",
    "Granite",
    "Sunrise",
    "Evergreen",
    "Falcon",
    "Juniper",
    "Keystone",
    "Liberty",
    "Meridian",
    "Oakhurst",
    "Prairie",
    "Riverbend",
    "Sterling",
    "Timber",
    "Valley",
    "Willow",
    "Anchor",
    "Birch",
    "Cobalt",
    "Delta",
    "Echo",
    "Foxglove",
    "Golden",
    "Highland",
    "Indigo",
    "Jasper",
    "Kestrel",
    "Lantern",
    "Magnolia",
    "Nimbus",
    "Orchard",
    "Pinnacle",
    "Quarry",
    "Raven",
    "Sable",
    "Thistle",
    "Umber",
    "Vista",
    "Wren",
    "Yarrow",
    "Zenith",
    "Copper",
    "Amber",
    "Frontier",
    "Heron",
];

/// Second words of some company names.
pub(super) const COMPANY_MIDDLES: [&str; 12] =
    ["Point", "Ridge", "Bay", "Hill", "Brothers", "Street", "Bridge", "Stone", "Field", "Gate", "House", "Star"];

/// City and state.
pub(super) const CITIES: [(&str, &str); 64] = [
    ("Austin", "TX"),
    ("Denver", "CO"),
    ("Portland", "OR"),
    ("Boise", "ID"),
    ("Tucson", "AZ"),
    ("Omaha", "NE"),
    ("Columbus", "OH"),
    ("Raleigh", "NC"),
    ("Tampa", "FL"),
    ("Madison", "WI"),
    ("Memphis", "TN"),
    ("Spokane", "WA"),
    ("Albany", "NY"),
    ("Buffalo", "NY"),
    ("Toledo", "OH"),
    ("Lincoln", "NE"),
    ("Fresno", "CA"),
    ("Oakland", "CA"),
    ("Reno", "NV"),
    ("Tulsa", "OK"),
    ("Wichita", "KS"),
    ("Dayton", "OH"),
    ("Savannah", "GA"),
    ("Charleston", "SC"),
    ("Richmond", "VA"),
    ("Norfolk", "VA"),
    ("Baltimore", "MD"),
    ("Newark", "NJ"),
    ("Hartford", "CT"),
    ("Providence", "RI"),
    ("Boston", "MA"),
    ("Worcester", "MA"),
    ("Burlington", "VT"),
    ("Portsmouth", "NH"),
    ("Bangor", "ME"),
    ("Pittsburgh", "PA"),
    ("Erie", "PA"),
    ("Cleveland", "OH"),
    ("Detroit", "MI"),
    ("Lansing", "MI"),
    ("Chicago", "IL"),
    ("Peoria", "IL"),
    ("Milwaukee", "WI"),
    ("Duluth", "MN"),
    ("Fargo", "ND"),
    ("Billings", "MT"),
    ("Helena", "MT"),
    ("Cheyenne", "WY"),
    ("Provo", "UT"),
    ("Phoenix", "AZ"),
    ("Mesa", "AZ"),
    ("Santa Fe", "NM"),
    ("El Paso", "TX"),
    ("Houston", "TX"),
    ("Dallas", "TX"),
    ("Waco", "TX"),
    ("Shreveport", "LA"),
    ("Mobile", "AL"),
    ("Jackson", "MS"),
    ("Little Rock", "AR"),
    ("Louisville", "KY"),
    ("Knoxville", "TN"),
    ("Atlanta", "GA"),
    ("Seattle", "WA"),
];

/// First names, of hiring managers.
pub(super) const PEOPLE: [&str; 32] = [
    "Maria", "James", "Aisha", "Daniel", "Priya", "Carlos", "Emma", "Kofi", "Lena", "Omar", "Grace", "Victor", "Mei",
    "Patrick", "Rosa", "Samuel", "Ingrid", "Tariq", "Nora", "Hugo", "Fatima", "Andre", "Judith", "Kenji", "Olga",
    "Peter", "Salma", "Thomas", "Yuki", "Bianca", "Marcus", "Helen",
];

/// Before a title: `Senior Accountant`.
pub(super) const LEVELS: [&str; 5] = ["Senior", "Junior", "Lead", "Assistant", "Associate"];

/// The first sentence.
pub(super) const OPENINGS: [&str; 14] = [
    "{company} is <looking for|hiring> {a_title} to join <our growing team|a team of {n}>.",
    "We are <looking for|seeking|hiring> {a_title} <to support|to work with> our {people}.",
    "{company} {business}. We <need|now need|are looking for> {a_title}.",
    "Are you <an experienced|a careful|a curious|a reliable> {title}? {company} <wants to meet you|would like to hear from you>.",
    "{title} wanted: {company} <{business}|is growing> and <needs your help|has a new {role} to fill>.",
    "Join {company} as {a_title} and help us <care for|serve|look after> our {people}.",
    "Our {department} team has an <open|immediate> {role} for {a_title}.",
    "As {a_title} at {company} you will be <in charge of|responsible for> {thing} and {thing}.",
    "{company} {business}, and we want {a_title} who <cares about|is good with> {thing}.",
    "This is <a chance|an opportunity> to work as {a_title} with {people} and {people}.",
    "Growing company seeks {title}. {company} {business}.",
    "For our <client|partner> {company} we are <looking for|hiring> {a_title}.",
    "We have <an opening|a vacancy> for {a_title} <starting next month|starting this {season}>.",
    "The {department} department of {company} is <recruiting|seeking> {a_title}.",
];

/// What the company says of itself.
pub(super) const ABOUT: [&str; 16] = [
    "{company} {business}.",
    "Founded {n} years ago, {company} <employs|is home to> {n}{n}0 people in {state} and beyond.",
    "{company} is <a family business|a nonprofit|an employee-owned company> that {business}.",
    "Our {people} <trust|rely on> us because we <keep our promises|answer the phone|care about details>.",
    "We value <honesty|kindness|curiosity|hard work> and <good humor|clear words|fair play>.",
    "We are <proud|happy> to have been named a <best|top> employer in {state}.",
    "The {department} team is led by {name}, who has been with us for {n} years.",
    "We grew by {n}0 percent last year and <plan to|will> double in size.",
    "Every month we handle more than {n} thousand {thing}.",
    "We <believe|know> that good {thing} come from people who <enjoy|like> their work.",
    "{company} was started in {city} by two friends who wanted better {thing}.",
    "Our <mission|goal> is simple: better {thing} for {people}.",
    "You will join a team of {n} that <works hard and laughs often|helps each other|has been together for years>.",
    "We are <small|big> enough to <care|matter> and <big|small> enough to <last|listen>.",
    "<Half|A third|Most> of our managers started in <this very role|a role like this>.",
    "People stay with us for {n} years on average.",
];

/// Headings of the duties.
pub(super) const DUTY_HEADINGS: [&str; 7] =
    ["Responsibilities", "What you will do", "Your tasks", "Duties", "Your day", "The role", "Key responsibilities"];

/// Duties that any work has, as commands without a full stop.
pub(super) const DUTIES: [&str; 20] = [
    "Prepare and review {thing} for {people}",
    "Keep {thing} accurate and up to date",
    "Answer questions from {people} about {thing}",
    "Work with {people} to improve {thing}",
    "Report on {thing} to {name}, the head of {department}",
    "Use {tool} every day to manage {thing}",
    "Train new colleagues in {skill}",
    "Plan {thing} for the coming <week|month|quarter>",
    "Find and fix problems with {thing} before {people} notice",
    "Check {thing} and {thing} for mistakes",
    "Build good relations with {people}",
    "Write clear notes on {thing}",
    "Meet weekly with {people} and {people}",
    "Take over {thing} from a colleague who is retiring",
    "Suggest better ways to handle {thing}",
    "Handle {thing} under time pressure",
    "Support {name} with {thing} and {thing}",
    "Follow our rules on safety and privacy",
    "Move our {thing} from paper to {tool}",
    "Lead a small team of {n}",
];

/// Headings of the requirements.
pub(super) const NEED_HEADINGS: [&str; 7] = [
    "Requirements",
    "What you bring",
    "Your profile",
    "Qualifications",
    "Who you are",
    "Must have",
    "What we look for",
];

/// Requirements, without a full stop.
pub(super) const NEEDS: [&str; 18] = [
    "{n} years of experience in {skill}",
    "<At least|More than> {n} years as {a_title} or in a similar {role}",
    "{credential}",
    "{credential} or equal experience",
    "Good knowledge of {tool}",
    "Experience with {tool} and {tool}",
    "Strong skills in {skill} and {skill}",
    "A sure hand with {thing}",
    "Clear <written|spoken> and <honest|friendly> communication",
    "The ability to work <alone|under pressure> and in a team",
    "An eye for detail",
    "Comfort with <change|deadlines|numbers> and <new tools|many tasks at once>",
    "Some background in {skill} is a plus",
    "Willingness to learn {tool}",
    "Respect for {people} from all walks of life",
    "Proof of the right to work in the country",
    "A good sense of humor and <patience|a cool head>",
    "Two references from {people} or managers",
];

/// How the pay is said.
pub(super) const PAY: [&str; 9] = [
    "Salary: ${salary_low},000 to ${salary_high},000 a year.",
    "We pay ${salary_low},000 - ${salary_high},000 per year, depending on experience.",
    "Pay: ${wage}.50 per hour, <paid weekly|paid every two weeks>.",
    "The pay range is ${wage} to ${wage_high} an hour.",
    "Compensation: ${salary_low}k-${salary_high}k plus a <yearly|quarterly> bonus.",
    "You <earn|start at> ${salary_low},000 a year with a raise after <six months|one year>.",
    "Base pay of ${salary_low},000 and a bonus of up to {n} percent.",
    "Salary <depends on|follows> experience and starts at ${salary_low},000.",
    "<Competitive|Attractive|Fair> pay, reviewed every year.",
];

/// Headings of pay and benefits.
pub(super) const BENEFIT_HEADINGS: [&str; 6] =
    ["Benefits", "What we offer", "Perks", "Why join us", "In return", "Our offer"];

/// Benefits that go with any work.
pub(super) const BENEFITS: [&str; 20] = [
    "health, dental and vision insurance",
    "a pension plan with employer match",
    "{n}0 days of paid leave",
    "paid parental leave",
    "a yearly bonus",
    "tuition support",
    "life insurance",
    "a share in the profits",
    "paid training in {skill}",
    "paid volunteer days",
    "a mentor in your first year",
    "extra pay for weekends",
    "an annual team trip",
    "fitness classes",
    "a sabbatical after {n} years",
    "disability insurance",
    "pay for certificates and licences",
    "a referral bonus",
    "birthdays off",
    "free counseling",
];

/// How the benefits are listed in a sentence.
pub(super) const BENEFIT_LEADS: [&str; 6] =
    ["We offer", "Our benefits include", "You get", "Among the benefits are", "The package includes", "Expect"];

/// Hours and contract.
pub(super) const HOURS: [&str; 14] = [
    "This is a <full-time|part-time> {role}.",
    "<Full|Part> time, {hours} hours a week, Monday to Friday.",
    "Shifts <start at|begin at> {n} in the morning.",
    "The contract runs for {n} months and <may be extended|can become permanent>.",
    "<Day|Evening|Night|Weekend> shifts are <available|shared fairly>.",
    "Start date: <as soon as possible|next month|early {season}>.",
    "The {role} is <permanent|seasonal|temporary>.",
    "You work {hours} hours a week, with <overtime|extra hours> in {season}.",
    "You report to {name}, <head|director> of {department}.",
    "<Some|Few|No> weekends are worked, by turns.",
    "There is a trial period of {n} <weeks|months>.",
    "Job type: <full-time|part-time|contract>.",
    "We plan shifts {n} weeks ahead.",
    "<Four|Five> days a week, {hours} hours in all.",
];

/// How to apply.
pub(super) const APPLY: [&str; 14] = [
    "<To apply|How to apply>: send your resume to {name}.",
    "Send a <short letter|resume> and {n} references to {name} in {department}.",
    "Apply <today|now|this week> with your resume; we reply within {n} days.",
    "Applications close at the end of the month.",
    "Please <mention|quote> reference {n}{n}{n}{n} in your letter.",
    "We <read|answer> every application.",
    "Questions? Ask for {name} in {department}.",
    "{company} is an equal opportunity employer.",
    "We welcome <applicants|people> of every age, faith and background.",
    "A background check is part of the process.",
    "No agencies, please.",
    "The process has {n} steps and takes about {n} weeks.",
    "We look forward to <hearing from you|meeting you|your application>.",
    "Click apply and tell us <about yourself|why this {role} suits you> in {n} sentences.",
];

/// What a job is called in running text.
pub(super) const ROLES: [&str; 4] = ["role", "position", "job", "post"];

/// Parts of a company.
pub(super) const DEPARTMENTS: [&str; 9] = [
    "operations",
    "quality",
    "planning",
    "service",
    "product",
    "client care",
    "administration",
    "development",
    "field",
];

/// Seasons.
pub(super) const SEASONS: [&str; 4] = ["spring", "summer", "autumn", "winter"];
