//! The condition of a certificate that we present. One function decides it for the page, `check`, `certificate status`,
//! the metrics and `/readyz`. Pure.
//!
//! | level | when |
//! |---|---|
//! | warning | the planned renewal is overdue by 48 h, or waits for an operator; without a plan, under a quarter of the lifetime is left |
//! | error | under a seventh is left, and there is no plan or it failed; expired; not valid yet; never obtained because that fails; not for the names that phones ask for; its files cannot be used any more |
//!
//! Fractions also suit certificates of six days. There the planned renewal may be late by a twelfth of the lifetime,
//! not 48 h.
//! Clients verify the whole chain, so an intermediate that ends before the server's own certificate counts in its place.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clock::rfc3339;
use crate::wording::span;

const HOUR: i64 = 3600;
/// How long a planned renewal may be overdue without a warning.
const GRACE: i64 = 48 * HOUR;

/// The validity period of a certificate, in Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Its first second.
    pub not_before: i64,
    /// Its last second.
    pub not_after: i64,
}

impl Validity {
    /// Its length in seconds, at least 1.
    #[must_use]
    pub fn lifetime(&self) -> i64 {
        self.not_after.saturating_sub(self.not_before).max(1)
    }

    #[must_use]
    pub fn contains(&self, now: i64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// The seconds left at `now`; negative after its end.
    #[must_use]
    pub fn left(&self, now: i64) -> i64 {
        self.not_after.saturating_sub(now)
    }
}

/// A CA certificate in the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intermediate {
    /// Its common name, or all of its subject.
    pub ca: String,
    pub not_before: i64,
    pub not_after: i64,
}

/// A certificate, as far as its condition depends on it.
#[derive(Debug, Clone, Copy, Default)]
pub struct CertificateFacts<'a> {
    /// That of the server's own certificate; `None` if there is none yet.
    pub validity: Option<Validity>,
    /// The intermediates that are not valid for as long as the server's own certificate.
    pub intermediates: &'a [Intermediate],
    /// The names that it is for, if it covers none that phones ask for, and the name that it should cover.
    pub wrong_names: Option<(&'a [String], &'a str)>,
    /// Why its files cannot be read, or used, as they are now.
    pub files_error: Option<&'a str>,
}

/// When provost itself renews a certificate, and how the last attempt went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RenewalSchedule<'a> {
    /// When the renewal is due, in Unix seconds.
    pub renewal: i64,
    /// Why the last attempt failed; `None` if it did not.
    pub failure: Option<&'a str>,
    /// Whether no attempt can succeed before an operator changes something.
    pub action_required: bool,
}

/// The severity of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ConditionLevel {
    /// No action is needed.
    Ok,
    /// Phones are served. An operator should look before that ends.
    Warning,
    /// Phones refuse the certificate, or soon will.
    Error,
}

/// The condition of a certificate. Its `Display` text follows "the certificate …".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    Valid,
    /// No certificate exists yet.
    Missing {
        failure: Option<String>,
    },
    NotYetValid {
        /// The intermediate that is not; `None`: the certificate itself.
        ca: Option<String>,
        not_before: i64,
    },
    Expired {
        /// The intermediate that is; `None`: the certificate itself.
        ca: Option<String>,
        not_after: i64,
    },
    /// It covers no name that phones ask for.
    WrongNames {
        wanted: String,
        names: Vec<String>,
        /// Why its renewal fails.
        failure: Option<String>,
    },
    /// It is in use, and what lies in its files now cannot be.
    FilesUnusable {
        not_after: i64,
        error: String,
    },
    /// Another program should have renewed it.
    EndsSoon {
        /// The intermediate that does; `None`: the certificate itself.
        ca: Option<String>,
        not_after: i64,
        left: i64,
        level: ConditionLevel,
    },
    /// provost should have renewed it.
    RenewalOverdue {
        not_after: i64,
        left: i64,
        planned: i64,
        failure: Option<String>,
        level: ConditionLevel,
    },
}

impl ConditionLevel {
    /// Its name in the API, the metrics and commands.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl Condition {
    /// The condition at `now` of a certificate. Without a plan, another program renews it.
    #[must_use]
    pub fn of(now: i64, facts: &CertificateFacts<'_>, plan: Option<RenewalSchedule<'_>>) -> Self {
        let failure = plan.and_then(|plan| plan.failure).map(str::to_owned);
        let Some(validity) = facts.validity else {
            return Self::Missing { failure: failure.or(facts.files_error.map(str::to_owned)) };
        };
        // Renewing it with the same names would not help.
        if let Some((names, wanted)) = facts.wrong_names {
            return Self::WrongNames { wanted: wanted.to_owned(), names: names.to_vec(), failure };
        }
        let ca = |it: &Intermediate| Some(it.ca.clone());
        if now < validity.not_before {
            return Self::NotYetValid { ca: None, not_before: validity.not_before };
        }
        if now > validity.not_after {
            return Self::Expired { ca: None, not_after: validity.not_after };
        }
        if let Some(early) = facts.intermediates.iter().find(|it| now < it.not_before) {
            return Self::NotYetValid { ca: ca(early), not_before: early.not_before };
        }
        let first = facts.intermediates.iter().min_by_key(|it| it.not_after);
        let first = first.filter(|it| it.not_after < validity.not_after);
        if let Some(expired) = first.filter(|it| now > it.not_after) {
            return Self::Expired { ca: ca(expired), not_after: expired.not_after };
        }
        let not_after = first.map_or(validity.not_after, |it| it.not_after);
        if let Some(error) = facts.files_error {
            return Self::FilesUnusable { not_after, error: error.to_owned() };
        }
        let (lifetime, left) = (validity.lifetime(), not_after.saturating_sub(now));
        let is_under = |part: i64| left.saturating_mul(part) < lifetime;
        // A renewal in time replaces the intermediate too.
        match plan.filter(|plan| first.is_none() || plan.renewal < not_after) {
            None => {
                let level = if is_under(7) {
                    ConditionLevel::Error
                } else if is_under(4) {
                    ConditionLevel::Warning
                } else {
                    return Self::Valid;
                };
                Self::EndsSoon { ca: first.and_then(ca), not_after, left, level }
            }
            Some(plan) => {
                let is_late = now.saturating_sub(plan.renewal) >= GRACE.min(lifetime / 12);
                let level = match (is_late, failure.is_some()) {
                    (true, _) | (_, true) if is_under(7) => ConditionLevel::Error,
                    (true, _) => ConditionLevel::Warning,
                    (false, true) if plan.action_required => ConditionLevel::Warning,
                    (false, _) => return Self::Valid,
                };
                Self::RenewalOverdue { not_after, left, planned: plan.renewal, failure, level }
            }
        }
    }

    #[must_use]
    pub fn level(&self) -> ConditionLevel {
        match self {
            Self::Valid | Self::Missing { failure: None } => ConditionLevel::Ok,
            Self::Missing { failure: Some(_) }
            | Self::NotYetValid { .. }
            | Self::Expired { .. }
            | Self::WrongNames { .. }
            | Self::FilesUnusable { .. } => ConditionLevel::Error,
            Self::EndsSoon { level, .. } | Self::RenewalOverdue { level, .. } => *level,
        }
    }

    /// Its name in the API.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Missing { .. } => "missing",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::Expired { .. } => "expired",
            Self::WrongNames { .. } => "wrong_names",
            Self::FilesUnusable { .. } => "files_unusable",
            Self::EndsSoon { .. } => "ends_soon",
            Self::RenewalOverdue { .. } => "renewal_overdue",
        }
    }

    /// Why the last renewal failed, if that is part of the condition.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        match self {
            Self::Missing { failure } | Self::WrongNames { failure, .. } | Self::RenewalOverdue { failure, .. } => {
                failure.as_deref()
            }
            _ => None,
        }
    }

    /// The same condition with another text for that reason.
    #[must_use]
    pub fn with_failure(mut self, text: &str) -> Self {
        if let Self::Missing { failure } | Self::WrongNames { failure, .. } | Self::RenewalOverdue { failure, .. } =
            &mut self
            && failure.is_some()
        {
            *failure = Some(text.to_owned());
        }
        self
    }

    /// The problem as text; `None` if there is none.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        (self.level() > ConditionLevel::Ok).then(|| self.to_string())
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Valid => f.write_str("is valid"),
            Self::Missing { failure: None } => f.write_str("has not been obtained yet"),
            Self::Missing { failure: Some(failure) } => write!(f, "could not be obtained: {failure}"),
            Self::NotYetValid { ca: None, not_before } => write!(
                f,
                "is not valid before {}: check this machine's clock (timedatectl), and that this is the right certificate",
                rfc3339(*not_before)
            ),
            Self::NotYetValid { ca: Some(ca), not_before } => write!(
                f,
                "has the intermediate certificate {ca:?} in its chain, which is not valid before {}: check this machine's \
                 clock (timedatectl)",
                rfc3339(*not_before)
            ),
            Self::Expired { ca: None, not_after } => write!(f, "expired at {}: phones refuse it", rfc3339(*not_after)),
            Self::Expired { ca: Some(ca), not_after } => write!(
                f,
                "has the intermediate certificate {ca:?} in its chain, which expired at {}: phones refuse the chain; \
                 replace it with the CA's current one",
                rfc3339(*not_after)
            ),
            Self::WrongNames { wanted, names, failure } => {
                write!(f, "does not cover {wanted} (it is for {}); phones will refuse it", names.join(", "))?;
                failure.as_ref().map_or(Ok(()), |failure| write!(f, ", and its renewal fails: {failure}"))
            }
            Self::FilesUnusable { not_after, error } => write!(
                f,
                "can no longer be read from its files; the copy in memory is valid until {}, but a restart would lose \
                 it: {error}",
                rfc3339(*not_after)
            ),
            Self::EndsSoon { ca: None, not_after, left, .. } => write!(
                f,
                "expires at {} ({} left) and has not been renewed: run the program that writes its files, such as \
                 certbot renew, and read its log",
                rfc3339(*not_after),
                span(*left)
            ),
            Self::EndsSoon { ca: Some(ca), not_after, left, .. } => write!(
                f,
                "has the intermediate certificate {ca:?} in its chain, which expires at {} ({} left): replace it with \
                 the CA's current one, or renew the certificate before",
                rfc3339(*not_after),
                span(*left)
            ),
            Self::RenewalOverdue { not_after, left, planned, failure, .. } => {
                write!(f, "expires at {} ({} left), and its renewal, ", rfc3339(*not_after), span(*left))?;
                write!(f, "planned for {}, ", rfc3339(*planned))?;
                match failure {
                    Some(failure) => write!(f, "fails: {failure}"),
                    None => f.write_str("has not been attempted: see provost certificate status and the journal"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: i64 = 24 * HOUR;
    const LIFETIMES: [i64; 4] = [90 * DAY, 47 * DAY, 6 * DAY, 397 * DAY];

    fn lasting(lifetime: i64) -> Validity {
        Validity { not_before: 1_000_000_000, not_after: 1_000_000_000 + lifetime }
    }

    fn valid(lifetime: i64) -> CertificateFacts<'static> {
        CertificateFacts { validity: Some(lasting(lifetime)), ..Default::default() }
    }

    /// The level from `files` with this many permille of the lifetime left.
    fn from_files(lifetime: i64, permille: i64) -> ConditionLevel {
        let now = 1_000_000_000 + lifetime - lifetime * permille / 1000;
        Condition::of(now, &valid(lifetime), None).level()
    }

    #[test]
    fn files_warn_under_a_quarter_and_fail_under_a_seventh() {
        use ConditionLevel::{Error, Ok, Warning};
        for lifetime in LIFETIMES {
            let levels = [1000, 600, 251, 249, 144, 142, 1].map(|permille| from_files(lifetime, permille));
            assert_eq!(levels, [Ok, Ok, Ok, Warning, Warning, Error, Error], "{lifetime}");
        }
    }

    #[test]
    fn planned_renewal_warns_48_h_late_and_fails_under_a_seventh() {
        let level = |lifetime: i64, planned: i64, now: i64, failure: Option<&str>| {
            let plan = RenewalSchedule { renewal: 1_000_000_000 + planned, failure, action_required: false };
            Condition::of(1_000_000_000 + now, &valid(lifetime), Some(plan)).level()
        };
        let failure = Some("no route to host");
        for failure in [None, failure] {
            assert_eq!(
                level(90 * DAY, 60 * DAY, 61 * DAY, failure),
                ConditionLevel::Ok,
                "it has 48 h, and tries again"
            );
            assert_eq!(level(90 * DAY, 60 * DAY, 62 * DAY, failure), ConditionLevel::Warning);
            assert_eq!(level(90 * DAY, 60 * DAY, 77 * DAY, failure), ConditionLevel::Warning);
            assert_eq!(level(90 * DAY, 60 * DAY, 78 * DAY, failure), ConditionLevel::Error);
            assert_eq!(level(6 * DAY, 3 * DAY, 3 * DAY + 11 * HOUR, failure), ConditionLevel::Ok);
            assert_eq!(level(6 * DAY, 3 * DAY, 3 * DAY + 12 * HOUR, failure), ConditionLevel::Warning);
            assert_eq!(level(6 * DAY, 3 * DAY, 6 * DAY - 20 * HOUR, failure), ConditionLevel::Error);
        }
        // The CA may schedule the renewal late.
        assert_eq!(level(90 * DAY, 81 * DAY, 80 * DAY, None), ConditionLevel::Ok);
        assert_eq!(
            level(90 * DAY, 81 * DAY, 80 * DAY, failure),
            ConditionLevel::Error,
            "no attempt has succeeded so far"
        );
    }

    #[test]
    fn renewal_that_waits_for_an_operator_warns_at_once() {
        let plan = RenewalSchedule { renewal: 1_000_000_000, failure: Some("REFUSED"), action_required: true };
        let condition = Condition::of(1_000_000_060, &valid(90 * DAY), Some(plan));
        assert_eq!(condition.level(), ConditionLevel::Warning);
        assert!(condition.to_string().ends_with("its renewal, planned for 2001-09-09T01:46:40Z, fails: REFUSED"));
    }

    #[test]
    fn time_outside_the_validity_is_an_error() {
        let plan = RenewalSchedule { renewal: 1_000_000_000 + 60 * DAY, failure: None, action_required: false };
        for plan in [None, Some(plan)] {
            let at = |now| Condition::of(now, &valid(90 * DAY), plan);
            assert_eq!(at(999_999_999), Condition::NotYetValid { ca: None, not_before: 1_000_000_000 });
            assert_eq!(at(1_000_000_000).level(), ConditionLevel::Ok);
            let not_after = 1_000_000_000 + 90 * DAY;
            assert_ne!(at(not_after), Condition::Expired { ca: None, not_after }, "its last second");
            assert_eq!(at(not_after + 1), Condition::Expired { ca: None, not_after });
            assert_eq!((at(0).level(), at(not_after + 1).level()), (ConditionLevel::Error, ConditionLevel::Error));
        }
    }

    #[test]
    fn missing_certificate_is_an_error_once_an_order_failed() {
        let missing = |failure| {
            Condition::of(
                0,
                &CertificateFacts::default(),
                Some(RenewalSchedule { renewal: 0, failure, action_required: false }),
            )
        };
        assert_eq!((missing(None).level(), missing(Some("x")).level()), (ConditionLevel::Ok, ConditionLevel::Error));
        assert_eq!(missing(Some("x")).problem().unwrap(), "could not be obtained: x");
        assert_eq!(missing(None).problem(), None);
    }

    #[test]
    fn intermediate_that_expires_first_decides() {
        let begin = 1_000_000_000;
        let ending = |days: i64| Intermediate { ca: "R3".to_owned(), not_before: 0, not_after: begin + days * DAY };
        let plan = RenewalSchedule { renewal: begin + 60 * DAY, failure: None, action_required: false };
        // The day, when the intermediate ends, whether a renewal is planned, the level, the state.
        let cases = [
            (30, 400, false, ConditionLevel::Ok, "valid"),
            (30, 60, false, ConditionLevel::Ok, "valid"),
            (30, 50, false, ConditionLevel::Warning, "ends_soon"),
            (30, 40, false, ConditionLevel::Error, "ends_soon"),
            (30, 29, false, ConditionLevel::Error, "expired"),
            (30, 29, true, ConditionLevel::Error, "expired"),
            (30, 40, true, ConditionLevel::Error, "ends_soon"),
            (55, 65, true, ConditionLevel::Ok, "valid"),
        ];
        for (day, end, is_planned, level, word) in cases {
            let intermediates = [ending(1000), ending(end)];
            let facts = CertificateFacts { intermediates: &intermediates, ..valid(90 * DAY) };
            let condition = Condition::of(begin + day * DAY, &facts, is_planned.then_some(plan));
            assert_eq!((condition.level(), condition.label()), (level, word), "day {day}, end {end}: {condition}");
            assert_eq!(condition.to_string().contains("\"R3\""), level != ConditionLevel::Ok, "{condition}");
        }
        let early = [Intermediate { ca: "R3".to_owned(), not_before: begin + DAY, not_after: begin + 900 * DAY }];
        let facts = CertificateFacts { intermediates: &early, ..valid(90 * DAY) };
        assert_eq!(Condition::of(begin, &facts, None).label(), "not_yet_valid");
    }

    #[test]
    fn wrong_names_and_unusable_files_are_errors() {
        let names = ["other.example.org".to_owned()];
        let wrong = CertificateFacts { wrong_names: Some((&names, "*.phones.example.com")), ..valid(90 * DAY) };
        let broken = CertificateFacts { files_error: Some("own.key: not found"), ..valid(90 * DAY) };
        for (facts, word, text) in [
            (wrong, "wrong_names", "does not cover *.phones.example.com (it is for other.example.org)"),
            (broken, "files_unusable", "own.key: not found"),
        ] {
            let condition = Condition::of(1_000_000_060, &facts, None);
            assert_eq!((condition.level(), condition.label()), (ConditionLevel::Error, word));
            assert!(condition.to_string().contains(text), "{condition}");
        }
    }

    proptest! {
        #[test]
        fn condition_never_improves_as_time_passes(
            lifetime in HOUR..500 * DAY, planned in 0..1000_i64, is_planned: bool, is_failing: bool, mut steps: [u16; 2],
        ) {
            steps.sort_unstable();
            let plan = is_planned.then(|| RenewalSchedule {
                renewal: 1_000_000_000 + lifetime * planned / 1000,
                failure: is_failing.then_some("it fails"),
                action_required: false,
            });
            let level = |step: u16| {
                let now = 1_000_000_000 + lifetime * i64::from(step) / 60_000;
                Condition::of(now, &valid(lifetime), plan).level()
            };
            prop_assert!(level(steps[0]) <= level(steps[1]));
        }

        #[test]
        fn no_input_overflows(now: i64, not_before: i64, not_after: i64, renewal: i64, failure: Option<String>) {
            let plan = RenewalSchedule { renewal, failure: failure.as_deref(), action_required: true };
            for plan in [None, Some(plan)] {
                let ca = Intermediate { ca: "CA".to_owned(), not_before: not_after, not_after: not_before };
                for intermediates in [&[][..], &[ca]] {
                    let validity = Some(Validity { not_before, not_after });
                    let facts = CertificateFacts { validity, intermediates, ..Default::default() };
                    prop_assert!(!Condition::of(now, &facts, plan).to_string().is_empty());
                }
            }
        }
    }
}
