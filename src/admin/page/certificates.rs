//! The server certificates: the rest of their lifetime, and the next step. Pure.

use maud::{Markup, html};

use super::state::mark;
use super::text::{Foreign, foreign};
use super::time_format::{day, span, when};
use crate::admin::snapshot::{CertificateView, Overview};
use crate::certificate::ConditionLevel;

pub(super) fn section(overview: &Overview) -> Markup {
    html! {
        section id="certificates" aria-labelledby="certificates-title" {
            h2 id="certificates-title" { "Certificates" }
            @if overview.certificates.is_empty() {
                p class="empty" { "None. The key " code { "certificate" } " of provost.json configures where certificates come from." }
            }
            @for certificate in &overview.certificates {
                (article(certificate, overview.now))
            }
        }
    }
}

fn article(certificate: &CertificateView, now: i64) -> Markup {
    html! {
        article class="certificate" {
            h3 { (Foreign(&certificate.key)) " " (condition(certificate)) }
            p class="names" { @for name in &certificate.names { (foreign(name)) " " } }
            @if let (Some(begin), Some(end)) = (certificate.not_before, certificate.not_after) {
                (lifetime(begin, end, certificate.next_attempt, now))
            }
            @if let Some(issuer) = &certificate.issuer { p class="quiet" { "Issued by " (foreign(issuer)) } }
            @if let Some(problem) = &certificate.problem { p class="problem" { "It " (foreign(problem)) } }
            (plan(certificate, now))
        }
    }
}

fn condition(certificate: &CertificateView) -> Markup {
    let class = match certificate.level {
        ConditionLevel::Ok if certificate.not_after.is_none() => "idle",
        ConditionLevel::Ok => "good",
        ConditionLevel::Warning => "fair",
        ConditionLevel::Error => "bad",
    };
    mark(class, &certificate.state.replace('_', " "))
}

/// A bar: the filled part is the rest of the lifetime, and a tick marks the renewal.
fn lifetime(begin: i64, end: i64, renewal: Option<i64>, now: i64) -> Markup {
    let share = permille_left(begin, end, now);
    let tick = renewal.filter(|at| (now..end).contains(at)).map(|at| permille_left(begin, end, at));
    let left = end.saturating_sub(now);
    html! {
        svg class="lifetime" viewBox="0 0 1000 8" preserveAspectRatio="none" role="img"
            aria-label={ (share / 10) " percent of its lifetime is left" } {
            rect class="whole" width="1000" height="8" {}
            rect class="left" width=(share) height="8" {}
            @if let Some(tick) = tick { rect class="tick" x=(tick) width="4" height="8" {} }
        }
        p class="ends" {
            span { @if left > 0 { strong { (span(left)) } " left" } @else { strong { "expired" } } }
            span { "ends " (day(end)) }
        }
    }
}

/// The time between `at` and `end`, in thousandths of the time between `begin` and `end`.
fn permille_left(begin: i64, end: i64, at: i64) -> i64 {
    let whole = end.saturating_sub(begin).max(1);
    (i128::from(end.saturating_sub(at)) * 1000 / i128::from(whole)).clamp(0, 1000).try_into().unwrap_or(0)
}

fn plan(certificate: &CertificateView, now: i64) -> Markup {
    html! {
        @if let Some(step) = &certificate.step { p class="step" { "Now: " (foreign(step)) } }
        // At other levels, the problem contains the error.
        @if let Some(error) = certificate.last_error.as_ref().filter(|_| certificate.level == ConditionLevel::Ok) {
            p class="problem" { "The last attempt failed: " (foreign(error)) }
        }
        @match (certificate.source, certificate.next_attempt) {
            (_, Some(at)) if at <= now => { p class="plan" { "Renewal is due." } }
            (_, Some(at)) => { p class="plan" { "Renewal " (when(now, at)) ", on " (day(at)) "." } }
            ("files", None) => { p class="plan" { "Another program renews its files; provost uses new files within a second." } }
            ("local_ca", None) => { p class="plan" { "Issued and renewed by provost's own CA." } }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetime_bar_shrinks_from_full_to_zero() {
        let at = |at| permille_left(100, 300, at);
        assert_eq!([at(0), at(100), at(101), at(200), at(300), at(900)], [1000, 1000, 995, 500, 0, 0]);
        assert_eq!(permille_left(5, 5, 9), 0);
        assert_eq!(permille_left(i64::MIN, i64::MAX, 0), 1000, "no overflow");
        let bar = |now| lifetime(100, 300, None, now).into_string();
        assert!(bar(100).contains("100 percent of its lifetime is left") && bar(100).contains("width=\"1000\""));
        assert!(bar(250).contains("25 percent of its lifetime is left") && bar(250).contains("width=\"250\""));
    }
}
