//! The head of the page: the verdict, and the headlines. Pure.

use maud::{Markup, html};

use super::link::{to_constituency, to_state};
use super::state::word;
use super::text::{Foreign, figure, foreign};
use super::time_format::when;
use crate::admin::headlines::{Headline, HeadlineKind, HeadlineLevel, HeadlineTarget, headlines};
use crate::admin::snapshot::{Overview, StateFilter};
use crate::phone_history::PhoneState;

/// How many headlines have a line each.
const MAX_LINES: usize = 10;
/// How many silent constituencies have a line each.
const MAX_SILENCES: usize = 3;

/// The verdict, the headlines, and the counts of phones.
pub(super) fn section(overview: &Overview) -> Markup {
    let lines = lines(&headlines(overview), overview.now);
    html! {
        section id="summary" aria-labelledby="verdict" {
            h1 id="verdict" class=(lines.first().map_or("good", |(worst, _)| class(*worst))) { (verdict(overview, lines.len())) }
            @if !lines.is_empty() {
                ul class="needs" {
                    @for (level, line) in lines.iter().take(MAX_LINES) { li class=(class(*level)) { (line) } }
                    @if let Some((level, _)) = lines.get(MAX_LINES) {
                        li class=(class(*level)) {
                            (figure(lines.len() - MAX_LINES)) " more problems, most of them "
                            a href="#constituencies" { "of constituencies" }
                        }
                    }
                }
            }
            (figures(overview))
        }
    }
}

fn verdict(overview: &Overview, lines: usize) -> String {
    match lines {
        _ if overview.not_ready.is_some() => "Phones cannot be served".to_owned(),
        0 if overview.counts.known == 0 => "Ready; no known phone yet".to_owned(),
        0 => "No problems".to_owned(),
        1 => "1 problem needs attention".to_owned(),
        lines => format!("{lines} problems need attention"),
    }
}

fn class(level: HeadlineLevel) -> &'static str {
    match level {
        HeadlineLevel::Error => "bad",
        HeadlineLevel::Approval => "asks",
        HeadlineLevel::Warning => "fair",
    }
}

/// A line for each headline. If many constituencies fell silent, one line for all of these: the server's own network is
/// the likely cause.
fn lines(headlines: &[Headline], now: i64) -> Vec<(HeadlineLevel, Markup)> {
    let is_silence = |headline: &&Headline| headline.kind == HeadlineKind::PhonesSilent;
    let silences = headlines.iter().filter(is_silence).count();
    if silences <= MAX_SILENCES {
        return headlines.iter().map(|headline| (headline.level, line(headline, now))).collect();
    }
    let since = headlines.iter().filter(is_silence).filter_map(|silence| silence.at).max().unwrap_or_default();
    let all = html! {
        "In " (figure(silences)) " constituencies most phones fell silent, most recently " (when(now, since))
        ". Check this server's DNS records and its network."
    };
    let mut is_first = true;
    let shown = headlines.iter().filter_map(|headline| {
        if is_silence(&headline) {
            std::mem::take(&mut is_first).then(|| (headline.level, all.clone()))
        } else {
            Some((headline.level, line(headline, now)))
        }
    });
    shown.collect()
}

fn line(headline: &Headline, now: i64) -> Markup {
    html! {
        @if let Some((subject, target)) = &headline.subject { a href=(link(target)) { (Foreign(subject)) } }
        (headline.says)
        @if !headline.foreign.is_empty() { (foreign(&headline.foreign)) }
        @if let Some(at) = headline.at { (when(now, at)) }
        (headline.end)
    }
}

fn link(target: &HeadlineTarget) -> String {
    match target {
        HeadlineTarget::Certificates => "#certificates".to_owned(),
        HeadlineTarget::Constituencies => "#constituencies".to_owned(),
        HeadlineTarget::Waiting => "#waiting".to_owned(),
        HeadlineTarget::PhonesIn(filter) => to_state(*filter),
        HeadlineTarget::PhonesOf(name) => to_constituency(name),
    }
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
