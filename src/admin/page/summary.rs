//! The head of the page: the verdict, and the problems that need an operator. Pure.

use maud::{Markup, html};

use super::link::{to_constituency, to_state};
use super::state::word;
use super::text::{Foreign, count, figure, foreign};
use super::time_format::when;
use crate::admin::snapshot::{CertificateView, ConstituencyView, Overview, PhoneState, SilentTogether, StateFilter};
use crate::certificate::ConditionLevel;

/// The maximum of silent constituencies with a line each.
const MAX_SILENCES: usize = 3;

/// A problem that needs an operator.
struct Problem {
    class: &'static str,
    says: Markup,
}

/// The verdict, the problems, and the counts of phones.
pub(super) fn section(overview: &Overview) -> Markup {
    let needs = needs(overview);
    html! {
        section id="summary" aria-labelledby="verdict" {
            h1 id="verdict" class=(needs.first().map_or("good", |worst| worst.class)) { (verdict(overview, needs.len())) }
            @if !needs.is_empty() {
                ul class="needs" { @for need in &needs { li class=(need.class) { (need.says) } } }
            }
            (figures(overview))
        }
    }
}

fn verdict(overview: &Overview, needs: usize) -> String {
    match needs {
        _ if overview.not_ready.is_some() => "Phones cannot be served".to_owned(),
        0 if overview.counts.known == 0 => "Ready; no known phone yet".to_owned(),
        0 => "No problems".to_owned(),
        1 => "1 problem needs attention".to_owned(),
        needs => format!("{needs} problems need attention"),
    }
}

/// The problems, the worst first.
fn needs(overview: &Overview) -> Vec<Problem> {
    let bad = |says| Problem { class: "bad", says };
    let mut needs: Vec<Problem> = overview.not_ready.iter().map(|reason| bad(foreign(reason))).collect();
    // A folder's problem has its own line below, with a link.
    let is_of_folder = |problem: &String| {
        let mut folders = overview.constituencies.iter().filter_map(|constituency| constituency.problem.as_ref());
        folders.any(|folder| problem.contains(folder.as_str()))
    };
    needs
        .extend(overview.problems.iter().filter(|problem| !is_of_folder(problem)).map(|problem| bad(foreign(problem))));
    needs.extend(overview.certificates.iter().filter_map(of_certificate));
    needs.extend(overview.constituencies.iter().filter_map(of_constituency));
    needs.extend(overview.constituencies.iter().flat_map(of_warnings));
    needs.extend(of_phones(overview));
    needs.sort_by_key(|need| match need.class {
        "bad" => 0,
        "asks" => 1,
        _ => 2,
    });
    needs
}

fn of_certificate(certificate: &CertificateView) -> Option<Problem> {
    let problem = certificate.problem.as_deref()?;
    let says = html! {
        a href="#certificates" { "The " (Foreign(&certificate.key)) " certificate" } " " (foreign(problem))
    };
    Some(Problem { class: if certificate.level == ConditionLevel::Error { "bad" } else { "fair" }, says })
}

fn of_constituency(constituency: &ConstituencyView) -> Option<Problem> {
    let problem = constituency.problem.as_deref()?;
    let (class, state) = match constituency.url {
        Some(_) => ("fair", " keeps its last good policy: "),
        None => ("bad", ": "),
    };
    Some(Problem {
        class,
        says: html! { a href="#constituencies" { (foreign(&constituency.name)) } (state) (foreign(problem)) },
    })
}

fn of_warnings(constituency: &ConstituencyView) -> impl Iterator<Item = Problem> {
    constituency.warnings.iter().map(|warning| Problem {
        class: "fair",
        says: html! { a href="#constituencies" { (foreign(&constituency.name)) } ": " (foreign(warning)) },
    })
}

fn of_phones(overview: &Overview) -> Vec<Problem> {
    let counts = overview.counts;
    let mut needs = Vec::new();
    if counts.waiting > 0 {
        let are_all_shown = overview.waiting.len() >= counts.waiting;
        let list = if are_all_shown { "#waiting".to_owned() } else { to_state(StateFilter::One(PhoneState::Waiting)) };
        let says = html! {
            a href=(list) { (count(counts.waiting, "phone", "phones")) }
            (if counts.waiting == 1 { " waits" } else { " wait" }) " for approval"
        };
        needs.push(Problem { class: "asks", says });
    }
    if counts.refused > 0 {
        let says = html! {
            a href=(to_state(StateFilter::One(PhoneState::Refused))) { (count(counts.refused, "known phone", "known phones")) }
            (if counts.refused == 1 { ": the last request was refused" } else { ": the last request of each was refused" })
        };
        needs.push(Problem { class: "fair", says });
    }
    if counts.locked_out > 0 {
        let each = if counts.locked_out == 1 { "it" } else { "each" };
        let says = html! {
            a href=(to_state(StateFilter::One(PhoneState::LockedOut))) {
                (count(counts.locked_out, "known phone", "known phones"))
            }
            " may be locked out: since " (each) " was last accepted, a client that claims to be it was refused. "
            "The claim is unproven"
        };
        needs.push(Problem { class: "fair", says });
    }
    needs.extend(of_silences(overview));
    needs
}

/// A line for each constituency that fell silent. If there are many, one line for all: the server's own network is the
/// likely cause.
fn of_silences(overview: &Overview) -> Vec<Problem> {
    let silences = &overview.silent_together;
    let bad = |says| Problem { class: "bad", says };
    if silences.len() > MAX_SILENCES {
        let since = silences.iter().map(|silence| silence.since).max().unwrap_or_default();
        let says = html! {
            "In " (figure(silences.len())) " constituencies most phones fell silent, most recently " (when(overview.now, since))
            ". Check this server's DNS records and its network."
        };
        return vec![bad(says)];
    }
    let line = |silence: &SilentTogether| {
        let says = html! {
            a href=(to_constituency(silence.constituency.as_str())) { (silence.constituency) } ": "
            (figure(silence.silent)) " of " (figure(silence.of)) " phones that come regularly fell silent together, "
            (when(overview.now, silence.since)) ". Check power and network there."
        };
        bad(says)
    };
    silences.iter().map(line).collect()
}

fn figures(overview: &Overview) -> Markup {
    let counts = overview.counts;
    let one = |count, state, class| figure_of(word(state), count, StateFilter::One(state), class);
    html! {
        dl class="figures" {
            (figure_of("known phones", counts.known, StateFilter::Known, "plain"))
            (one(counts.well, PhoneState::Well, "good"))
            (one(counts.silent, PhoneState::Silent, "fair"))
            (one(counts.never, PhoneState::Never, "plain"))
            (one(counts.waiting, PhoneState::Waiting, "plain"))
            (one(counts.refused, PhoneState::Refused, "bad"))
            @if counts.locked_out > 0 { (one(counts.locked_out, PhoneState::LockedOut, "fair")) }
        }
    }
}

/// A count with a link to the phones that it counts. It is colored if it is not zero.
fn figure_of(name: &str, number: usize, filter: StateFilter, class: &str) -> Markup {
    html! {
        div class=(if number > 0 { class } else { "plain" }) {
            dt { (name) }
            dd { a href=(to_state(filter)) { (figure(number)) } }
        }
    }
}
