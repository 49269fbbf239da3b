//! The server's certificates: how much of their life is over, and what happens next. Pure.

use maud::{Markup, html};

use super::moment::{DAY, day, span, when};
use super::state::mark;
use super::text::{Foreign, foreign};
use crate::status::picture::{Certificate, Overview};

pub(super) fn section(overview: &Overview) -> Markup {
    html! {
        section id="certificates" aria-labelledby="certificates-title" {
            h2 id="certificates-title" { "Certificates" }
            @if overview.certificates.is_empty() {
                p class="empty" { "None, and none is wanted. The key " code { "certificate" } " of provost.json says where one comes from." }
            }
            @for certificate in &overview.certificates {
                (article(certificate, overview.now))
            }
        }
    }
}

fn article(certificate: &Certificate, now: i64) -> Markup {
    html! {
        article class="certificate" {
            h3 { (Foreign(&certificate.key)) " " (standing(certificate, now)) }
            p class="names" { @for name in &certificate.names { (foreign(name)) " " } }
            @if let (Some(begin), Some(end)) = (certificate.not_before, certificate.not_after) {
                (lifetime(begin, end, certificate.next_attempt, now))
            }
            @if let Some(issuer) = &certificate.issuer { p class="quiet" { "Issued by " (foreign(issuer)) } }
            (plan(certificate, now))
        }
    }
}

fn standing(certificate: &Certificate, now: i64) -> Markup {
    let Some(end) = certificate.not_after else { return mark("bad", "none yet") };
    let left = end.saturating_sub(now);
    match left {
        ..=0 => mark("bad", "expired"),
        _ if certificate.needs_human => mark("bad", "needs you"),
        _ if certificate.last_error.is_some() => mark("fair", "renewal failed"),
        _ if left < 7 * DAY && certificate.source != "acme" => mark("fair", "ends soon"),
        _ => mark("good", "valid"),
    }
}

/// A bar over the certificate's life: what is over is filled, and a tick stands where it is to be renewed.
fn lifetime(begin: i64, end: i64, renewal: Option<i64>, now: i64) -> Markup {
    let over = permille(begin, end, now);
    let tick = renewal.filter(|at| (now..end).contains(at)).map(|at| permille(begin, end, at));
    let left = end.saturating_sub(now);
    html! {
        svg class="lifetime" viewBox="0 0 1000 8" preserveAspectRatio="none" role="img"
            aria-label={ (over / 10) " percent of its life is over" } {
            rect class="whole" width="1000" height="8" {}
            rect class="over" width=(over) height="8" {}
            @if let Some(tick) = tick { rect class="tick" x=(tick) width="4" height="8" {} }
        }
        p class="ends" {
            span { @if left > 0 { strong { (span(left)) } " left" } @else { strong { "over" } } }
            span { "ends " (day(end)) }
        }
    }
}

/// Where `at` lies between `begin` and `end`, in thousandths.
fn permille(begin: i64, end: i64, at: i64) -> i64 {
    let whole = end.saturating_sub(begin).max(1);
    (i128::from(at.saturating_sub(begin)) * 1000 / i128::from(whole)).clamp(0, 1000).try_into().unwrap_or(0)
}

fn plan(certificate: &Certificate, now: i64) -> Markup {
    html! {
        @if let Some(step) = &certificate.step { p class="step" { "Now: " (foreign(step)) } }
        @if let Some(error) = &certificate.last_error {
            p class="problem" { "The last attempt failed: " (foreign(error)) }
        }
        @match (certificate.source, certificate.next_attempt) {
            (_, Some(at)) if at <= now => { p class="plan" { "Renewal is due." } }
            (_, Some(at)) => { p class="plan" { "Renewal " (when(now, at)) ", on " (day(at)) "." } }
            ("files", None) => { p class="plan" { "The program that writes its files renews it; new files are in use within a second." } }
            ("local_ca", None) => { p class="plan" { "From provost's own CA, which renews it by itself." } }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_measured_in_thousandths() {
        let at = |at| permille(100, 300, at);
        assert_eq!([at(0), at(100), at(101), at(200), at(300), at(900)], [0, 0, 5, 500, 1000, 1000]);
        assert_eq!(permille(5, 5, 9), 1000);
        assert_eq!(permille(i64::MIN, i64::MAX, 0), 1000, "no overflow");
    }
}
