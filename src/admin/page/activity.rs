//! The chart of the last day: requests served and refused, and handshakes. Pure.
//!
//! Bars and line have a coordinate system of their own, which is stretched to the width of the page. Text is not
//! stretched.

use std::fmt::Write;

use maud::{Markup, html};

use super::text::figure;
use super::time_format::clock_time;
use crate::admin::snapshot::ActivityView;
use crate::wording::{counted, counted_were};

/// The width of a step, and the height of the chart, in units of the SVG.
const STEP: usize = 10;
const HEIGHT: u64 = 1000;
/// The shortest step: each costs some hundred bytes.
const MIN_STEP_S: i64 = 1800;
/// The time between two labels of the time axis.
const TICK_S: i64 = 3 * 3600;

/// The counts of one step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct ChartStep {
    begin: i64,
    served: u64,
    refused: u64,
    handshakes: u64,
}

impl ChartStep {
    fn requests(self) -> u64 {
        self.served.saturating_add(self.refused)
    }

    fn is_empty(self) -> bool {
        self.requests() == 0 && self.handshakes == 0
    }

    fn and(self, other: Self) -> Self {
        Self {
            begin: self.begin,
            served: self.served.saturating_add(other.served),
            refused: self.refused.saturating_add(other.refused),
            handshakes: self.handshakes.saturating_add(other.handshakes),
        }
    }
}

pub(super) fn section(activity: &ActivityView, now: i64) -> Markup {
    let steps = steps(activity);
    let all = steps.iter().fold(ChartStep::default(), |all, step| all.and(*step));
    html! {
        section id="activity" aria-labelledby="activity-title" {
            h2 id="activity-title" { "The last day" }
            @if all.is_empty() {
                p class="empty" { "No requests during the last day." }
            } @else {
                figure class="plot" {
                    figcaption { (legend(all)) }
                    (plot(&steps, length_of(activity), now))
                    (by_hour(&steps, length_of(activity)))
                }
            }
        }
    }
}

/// The steps of the chart: those of the server, gathered to at least [`MIN_STEP_S`].
fn steps(activity: &ActivityView) -> Vec<ChartStep> {
    let mut gathered: Vec<ChartStep> = Vec::new();
    for step in all_steps(activity) {
        let length = length_of(activity);
        let step = ChartStep { begin: step.begin.div_euclid(length) * length, ..step };
        match gathered.last_mut() {
            Some(last) if last.begin == step.begin => *last = last.and(step),
            _ => gathered.push(step),
        }
    }
    gathered
}

/// The length of a step of the chart.
fn length_of(activity: &ActivityView) -> i64 {
    activity.step_s.max(MIN_STEP_S)
}

fn all_steps(activity: &ActivityView) -> Vec<ChartStep> {
    let at = |counts: &[u64], index: usize| counts.get(index).copied().unwrap_or(0);
    let length = activity.served.len().max(activity.refused.len()).max(activity.handshakes.len());
    let mut begin = activity.since;
    let step = |index| {
        let step = ChartStep {
            begin,
            served: at(&activity.served, index),
            refused: at(&activity.refused, index),
            handshakes: at(&activity.handshakes, index),
        };
        begin = begin.saturating_add(activity.step_s);
        step
    };
    (0..length).map(step).collect()
}

fn legend(all: ChartStep) -> Markup {
    html! {
        ul class="legend" {
            li class="served" { strong { (figure(all.served)) } " served" }
            li class="refused" { strong { (figure(all.refused)) } " refused" }
            li class="handshakes" { strong { (figure(all.handshakes)) } " handshakes" }
            li class="zone" { "times in " span data-zone { "UTC" } }
        }
    }
}

fn plot(steps: &[ChartStep], length_s: i64, now: i64) -> Markup {
    let most = steps.iter().map(|step| step.requests().max(step.handshakes)).max().unwrap_or(0);
    let top = round_up(most);
    let width = steps.len() * STEP;
    html! {
        div class="drawing" {
            svg class="lines" role="img" aria-label=(description(steps, length_s)) {
                @for (level, value) in [("0%", top), ("50%", top / 2), ("100%", 0)] {
                    line x1="0" x2="100%" y1=(level) y2=(level) {}
                    @if value > 0 { text x="0" y=(level) dy="14" { (figure(value)) } }
                }
                svg class="bars" width="100%" height="100%" viewBox={ "0 0 " (width) " " (HEIGHT) } preserveAspectRatio="none" {
                    @for (index, step) in steps.iter().enumerate() { @if !step.is_empty() { (bar(index, *step, length_s, top)) } }
                    path class="handshakes" d=(line(steps, top)) {}
                }
            }
            svg class="times" aria-hidden="true" { (ticks(steps, length_s, now)) }
        }
    }
}

fn bar(index: usize, step: ChartStep, length_s: i64, top: u64) -> Markup {
    let (served, refused) = (height(step.served, top), height(step.refused, top));
    let x = index * STEP;
    html! {
        g class="step" {
            title {
                (clock_time(step.begin)) " to " (clock_time(step.begin.saturating_add(length_s))) " UTC: "
                (figure(step.served)) " served, " (figure(step.refused)) " refused, "
                (figure(step.handshakes)) " handshakes"
            }
            rect class="hit" x=(x) width=(STEP) height=(HEIGHT) {}
            @if served > 0 { rect class="served" x=(x + 1) width=(STEP - 2) y=(HEIGHT - served) height=(served) {} }
            @if refused > 0 {
                rect class="refused" x=(x + 1) width=(STEP - 2) y=(HEIGHT.saturating_sub(served + refused)) height=(refused) {}
            }
        }
    }
}

fn line(steps: &[ChartStep], top: u64) -> String {
    let mut path = String::new();
    for (index, step) in steps.iter().enumerate() {
        let letter = if index == 0 { 'M' } else { 'L' };
        // Writing to a string cannot fail.
        let _ = write!(path, "{letter}{} {}", index * STEP + STEP / 2, HEIGHT - height(step.handshakes, top));
    }
    path
}

/// The height of a value. A value above zero is always visible.
fn height(value: u64, top: u64) -> u64 {
    let height = u128::from(value) * u128::from(HEIGHT) / u128::from(top.max(1));
    let least = u128::from(value > 0) * 8;
    u64::try_from(height.max(least)).unwrap_or(HEIGHT).min(HEIGHT)
}

/// Labels at full hours in UTC, a few hours apart. The script converts them to local time.
fn ticks(steps: &[ChartStep], length_s: i64, now: i64) -> Markup {
    let begin = steps.first().map_or(now, |step| step.begin);
    let whole = i64::try_from(steps.len()).unwrap_or(1).saturating_mul(length_s).max(1);
    let first = begin.div_euclid(TICK_S).saturating_add(1).saturating_mul(TICK_S);
    let places =
        (0..24).map(|index| first.saturating_add(index * TICK_S)).take_while(|at| *at < begin.saturating_add(whole));
    html! {
        @for at in places {
            @let permille = (at - begin).saturating_mul(1000) / whole;
            @let x = format!("{}.{}%", permille / 10, permille % 10);
            @let class = if at.rem_euclid(2 * TICK_S) == 0 { "tick" } else { "tick minor" };
            g class=(class) {
                line x1=(x) x2=(x) y1="0" y2="5" {}
                @if (30..970).contains(&permille) { text x=(x) y="19" data-clock=(at) { (clock_time(at)) } }
            }
        }
    }
}

/// The chart in words.
fn description(steps: &[ChartStep], length_s: i64) -> String {
    let all = steps.iter().fold(ChartStep::default(), |all, step| all.and(*step));
    let sum = format!(
        "During the last day {} served and {} refused, in {}.",
        counted_were(all.served, "request"),
        all.refused,
        counted(all.handshakes, "handshake")
    );
    match steps.iter().max_by_key(|step| step.requests()) {
        Some(most) if most.requests() > 0 => {
            let (from, to) = (clock_time(most.begin), clock_time(most.begin.saturating_add(length_s)));
            format!("{sum} The busiest time was {from} to {to} UTC with {}.", counted(most.requests(), "request"))
        }
        _ => sum,
    }
}

fn by_hour(steps: &[ChartStep], length_s: i64) -> Markup {
    let hours = hours(steps, length_s);
    html! {
        details class="more" {
            summary { "As figures" }
            table {
                thead {
                    tr {
                        th scope="col" { "From (UTC)" }
                        th scope="col" class="number" { "Served" }
                        th scope="col" class="number" { "Refused" }
                        th scope="col" class="number" { "Handshakes" }
                    }
                }
                tbody {
                    @for hour in &hours {
                        tr {
                            th scope="row" { (clock_time(hour.begin)) }
                            td class="number" { (figure(hour.served)) }
                            td class="number" { (figure(hour.refused)) }
                            td class="number" { (figure(hour.handshakes)) }
                        }
                    }
                }
            }
        }
    }
}

/// The counts by hour, the newest first.
fn hours(steps: &[ChartStep], length_s: i64) -> Vec<ChartStep> {
    let mut hours: Vec<ChartStep> = Vec::new();
    let full = |begin: i64| if length_s < 3600 { begin.div_euclid(3600) * 3600 } else { begin };
    for step in steps {
        let step = ChartStep { begin: full(step.begin), ..*step };
        match hours.last_mut() {
            Some(last) if last.begin == step.begin => *last = last.and(step),
            _ => hours.push(step),
        }
    }
    hours.reverse();
    hours
}

/// The next round number for an axis. It can be halved.
fn round_up(most: u64) -> u64 {
    let mut power = 1_u64;
    loop {
        let tops = [2, 3, 4, 5, 6, 8, 10].map(|factor| power.saturating_mul(factor));
        if let Some(top) = tops.into_iter().find(|top| *top >= most && (top % 2 == 0 || *top == u64::MAX)) {
            return top;
        }
        power = power.saturating_mul(10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activity() -> ActivityView {
        ActivityView {
            step_s: 1800,
            since: 1_795_550_400,
            served: vec![4, 0, 90, 1],
            refused: vec![0, 0, 9, 0],
            handshakes: vec![2, 0, 30, 1],
        }
    }

    #[test]
    fn axis_ends_at_an_even_round_number() {
        assert_eq!([0, 1, 3, 5, 7, 99, 100, 101, 252].map(round_up), [2, 2, 4, 6, 8, 100, 100, 200, 300]);
        assert_eq!(round_up(u64::MAX), u64::MAX);
    }

    #[test]
    fn small_values_are_visible_and_bars_stay_in_the_plot() {
        assert_eq!([height(0, 100), height(1, 100_000), height(50, 100), height(u64::MAX, 100)], [0, 8, 500, 1000]);
        assert_eq!(line(&steps(&activity()), 100), "M5 980L15 1000L25 700L35 990");
    }

    #[test]
    fn plot_has_a_text_description_and_a_table() {
        let steps = steps(&activity());
        let description = description(&steps, 1800);
        assert_eq!(
            description,
            "During the last day 95 requests were served and 9 refused, in 33 handshakes. \
             The busiest time was 21:00 to 21:30 UTC with 99 requests."
        );
        let by_hour: Vec<(u64, u64, u64)> =
            hours(&steps, 1800).iter().map(|hour| (hour.served, hour.refused, hour.handshakes)).collect();
        assert_eq!(by_hour, [(91, 9, 31), (4, 0, 2)]);
    }
}
