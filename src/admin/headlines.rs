//! The headlines: what needs an operator. The page shows them at its top, and `notify` reports their changes. Pure.

use std::collections::HashSet;

use super::snapshot::{CertificateView, ConstituencyView, Overview, SilentTogether, StateFilter};
use crate::certificate::ConditionLevel;
use crate::clock::rfc3339;
use crate::phone_history::PhoneState;
use crate::wording::counted;

/// How urgent a headline is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HeadlineLevel {
    Error,
    /// A phone waits for an operator.
    Approval,
    Warning,
}

/// What a headline is about. A headline whose kind changes has got better or worse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadlineKind {
    /// Phones cannot be served.
    NotReady,
    /// The `notify` command failed.
    NotifyFailed,
    /// Any other problem of the server, such as a full disk.
    Problem,
    /// A certificate, with its condition.
    Certificate(&'static str),
    /// A constituency is not served.
    NotServed,
    /// The last good policy of a constituency is in force.
    LastGoodPolicy,
    /// A part of a policy has no effect.
    PolicyWarning,
    PhonesWaiting,
    PhonesRefused,
    PhonesLockedOut,
    /// Phones of one constituency fell silent together.
    PhonesSilent,
}

/// The part of the page to which a headline leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadlineTarget {
    Certificates,
    Constituencies,
    /// The phones that wait for approval, if the page shows them all above the list.
    Waiting,
    PhonesIn(StateFilter),
    PhonesOf(String),
}

/// A line: the subject with its link, text of our own, foreign text, a time, and the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headline {
    pub kind: HeadlineKind,
    /// The certificate or constituency that it is about; else `server` or `phones`.
    pub object: String,
    pub level: HeadlineLevel,
    pub subject: Option<(String, HeadlineTarget)>,
    pub says: String,
    /// A text from a policy, a CA or the system.
    pub foreign: String,
    /// A time in Unix seconds that follows the text.
    pub at: Option<i64>,
    pub end: &'static str,
}

impl HeadlineLevel {
    /// The word for programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Approval => "approval",
            Self::Warning => "warning",
        }
    }
}

impl HeadlineKind {
    /// The word for programs. The manual lists them.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::NotReady => "not_ready",
            Self::NotifyFailed => "notify_failed",
            Self::Problem => "problem",
            Self::Certificate(condition) => return format!("certificate_{condition}"),
            Self::NotServed => "constituency_not_served",
            Self::LastGoodPolicy => "constituency_last_good_policy",
            Self::PolicyWarning => "constituency_warning",
            Self::PhonesWaiting => "phones_waiting",
            Self::PhonesRefused => "phones_refused",
            Self::PhonesLockedOut => "phones_locked_out",
            Self::PhonesSilent => "phones_silent",
        }
        .to_owned()
    }

    /// The kinds that replace one another have the same topic.
    fn topic(&self) -> &'static str {
        match self {
            Self::NotReady => "not_ready",
            Self::NotifyFailed => "notify_failed",
            Self::Problem => "problem",
            Self::Certificate(_) => "certificate",
            Self::NotServed | Self::LastGoodPolicy => "constituency",
            Self::PolicyWarning => "warning",
            Self::PhonesWaiting => "waiting",
            Self::PhonesRefused => "refused",
            Self::PhonesLockedOut => "locked_out",
            Self::PhonesSilent => "silent",
        }
    }
}

impl Headline {
    fn new(kind: HeadlineKind, object: &str, level: HeadlineLevel) -> Self {
        let object = object.to_owned();
        Self { kind, object, level, subject: None, says: String::new(), foreign: String::new(), at: None, end: "" }
    }

    fn about(mut self, subject: String, target: HeadlineTarget) -> Self {
        self.subject = Some((subject, target));
        self
    }

    fn says(mut self, text: impl Into<String>) -> Self {
        self.says = text.into();
        self
    }

    fn foreign(mut self, text: &str) -> Self {
        text.clone_into(&mut self.foreign);
        self
    }

    /// The whole line as plain text.
    #[must_use]
    pub fn text(&self) -> String {
        let subject = self.subject.as_ref().map(|(subject, _)| subject.as_str()).unwrap_or_default();
        let at = self.at.map(rfc3339).unwrap_or_default();
        format!("{subject}{}{}{at}{}", self.says, self.foreign, self.end)
    }

    /// What stays the same while the headline lasts: not its kind, and no number, which may change each minute.
    #[must_use]
    pub fn key(&self) -> String {
        let key = format!("{} {}", self.kind.topic(), self.object);
        match self.kind {
            // One object may have several.
            HeadlineKind::Problem | HeadlineKind::PolicyWarning => {
                format!("{key} {}", self.foreign.replace(|letter: char| letter.is_ascii_digit(), ""))
            }
            _ => key,
        }
    }
}

/// The headlines, the worst first.
#[must_use]
pub fn headlines(overview: &Overview) -> Vec<Headline> {
    const SERVER: &str = "server";
    let error = |kind, text: &String| Headline::new(kind, SERVER, HeadlineLevel::Error).foreign(text);
    let mut all: Vec<Headline> = Vec::new();
    all.extend(overview.not_ready.iter().map(|reason| error(HeadlineKind::NotReady, reason)));
    all.extend(overview.notify_failure.iter().map(|reason| error(HeadlineKind::NotifyFailed, reason)));
    // A folder's problem has its own line below, with a link.
    let folders = overview.constituencies.iter().filter(|constituency| constituency.problem.is_some());
    let folders: HashSet<&str> = folders.map(|constituency| constituency.name.as_str()).collect();
    let is_of_folder =
        |problem: &String| problem.split_once(": ").is_some_and(|(subject, _)| folders.contains(subject));
    let problems = overview.problems.iter().filter(|problem| !is_of_folder(problem));
    all.extend(problems.map(|problem| error(HeadlineKind::Problem, problem)));
    all.extend(overview.certificates.iter().filter_map(of_certificate));
    all.extend(overview.constituencies.iter().filter_map(of_constituency));
    all.extend(overview.constituencies.iter().flat_map(of_warnings));
    all.extend(of_phones(overview));
    all.extend(overview.silent_together.iter().map(of_silence));
    all.sort_by_key(|headline| headline.level);
    all
}

fn of_certificate(certificate: &CertificateView) -> Option<Headline> {
    let problem = certificate.problem.as_deref()?;
    let is_error = certificate.level == ConditionLevel::Error;
    let level = if is_error { HeadlineLevel::Error } else { HeadlineLevel::Warning };
    let object = format!("{} {}", certificate.key, certificate.names.join(" "));
    let headline = Headline::new(HeadlineKind::Certificate(certificate.state), &object, level);
    let subject = format!("The {} certificate", certificate.key);
    Some(headline.about(subject, HeadlineTarget::Certificates).says(" ").foreign(problem))
}

fn of_constituency(constituency: &ConstituencyView) -> Option<Headline> {
    let problem = constituency.problem.as_deref()?;
    let (kind, level, state) = match constituency.url {
        Some(_) => (HeadlineKind::LastGoodPolicy, HeadlineLevel::Warning, " keeps its last good policy: "),
        None => (HeadlineKind::NotServed, HeadlineLevel::Error, ": "),
    };
    let headline = Headline::new(kind, &constituency.name, level);
    Some(headline.about(constituency.name.clone(), HeadlineTarget::Constituencies).says(state).foreign(problem))
}

fn of_warnings(constituency: &ConstituencyView) -> impl Iterator<Item = Headline> {
    constituency.warnings.iter().map(|warning| {
        let headline = Headline::new(HeadlineKind::PolicyWarning, &constituency.name, HeadlineLevel::Warning);
        headline.about(constituency.name.clone(), HeadlineTarget::Constituencies).says(": ").foreign(warning)
    })
}

fn of_phones(overview: &Overview) -> Vec<Headline> {
    let counts = overview.counts;
    let mut all = Vec::new();
    if counts.waiting > 0 {
        let are_all_shown = overview.waiting.len() >= counts.waiting;
        let in_list = HeadlineTarget::PhonesIn(StateFilter::One(PhoneState::Waiting));
        let headline = Headline::new(HeadlineKind::PhonesWaiting, "phones", HeadlineLevel::Approval)
            .about(counted(counts.waiting, "phone"), if are_all_shown { HeadlineTarget::Waiting } else { in_list });
        all.push(headline.says(if counts.waiting == 1 { " waits for approval" } else { " wait for approval" }));
    }
    let known = |kind, number: usize, state| {
        let target = HeadlineTarget::PhonesIn(StateFilter::One(state));
        Headline::new(kind, "phones", HeadlineLevel::Warning).about(counted(number, "known phone"), target)
    };
    if counts.refused > 0 {
        let each = if counts.refused == 1 { "" } else { " of each" };
        let headline = known(HeadlineKind::PhonesRefused, counts.refused, PhoneState::Refused);
        all.push(headline.says(format!(": the last request{each} was refused")));
    }
    if counts.locked_out > 0 {
        let each = if counts.locked_out == 1 { "it" } else { "each" };
        let headline = known(HeadlineKind::PhonesLockedOut, counts.locked_out, PhoneState::LockedOut);
        all.push(headline.says(format!(
            " may be locked out: since {each} was last accepted, a client that claims to be it was refused. The claim is \
             unproven"
        )));
    }
    all
}

fn of_silence(silence: &SilentTogether) -> Headline {
    let name = silence.constituency.as_str();
    let headline = Headline::new(HeadlineKind::PhonesSilent, name, HeadlineLevel::Error)
        .about(name.to_owned(), HeadlineTarget::PhonesOf(name.to_owned()))
        .says(format!(": {} of {} phones that come regularly fell silent together, ", silence.silent, silence.of));
    Headline { at: Some(silence.since), end: ". Check power and network there.", ..headline }
}
