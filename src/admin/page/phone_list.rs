//! The list of phones: searched, filtered, sorted, in pages. Pure.

use maud::{Markup, html};

use super::denied::explained;
use super::link::{sort_name, to_list};
use super::state::{of_phone, old_tls, word_of_filter};
use super::text::{Foreign, command, count, figure, foreign, model as model_name};
use super::time_format::when;
use crate::admin::snapshot::{Overview, PhonePage, PhoneQuery, PhoneSort, PhoneView, StateFilter};
use crate::phone_history::PhoneState;

/// With more constituencies, one is typed and not chosen.
const MAX_OPTIONS: usize = 100;

pub(super) fn section(overview: &Overview, page: &PhonePage, query: &PhoneQuery) -> Markup {
    html! {
        section id="phones" aria-labelledby="phones-title" {
            h2 id="phones-title" { "Phones" }
            @if page.total == 0 {
                (no_phones(overview))
            } @else {
                (search(overview, query))
                p class="found" id="found" role="status" { (found(page, query)) }
                @if !page.phones.is_empty() {
                    table class="cards phones" {
                        (head(query))
                        tbody { @for phone in &page.phones { (row(phone, overview.now)) } }
                    }
                    (pages(page, query))
                }
            }
        }
    }
}

fn no_phones(overview: &Overview) -> Markup {
    html! {
        p class="empty" {
            "No known phone yet. A phone is known if the policy of its constituency lists it, or if a file "
            code { "MAC.cfg" } " is in the folder. This command lists one:"
        }
        (command(overview, "allow MAC --constituency NAME --note \"…\""))
    }
}

fn search(overview: &Overview, query: &PhoneQuery) -> Markup {
    html! {
        form class="search" method="get" action="/#phones" role="search" {
            div class="field wide" {
                label for="search" { "Search" }
                input id="search" name="search" type="search" value=(Foreign(&query.search)) autocomplete="off"
                    placeholder="MAC, note, address, model";
            }
            div class="field" {
                label for="constituency" { "Constituency" }
                @if overview.constituencies.len() > MAX_OPTIONS {
                    input id="constituency" name="constituency" type="search" autocomplete="off" placeholder="all"
                        value=(Foreign(query.constituency.as_deref().unwrap_or_default()));
                } @else {
                    select id="constituency" name="constituency" {
                        option value="" { "all" }
                        @for constituency in &overview.constituencies {
                            option value=(Foreign(&constituency.name)) selected[query.constituency.as_ref() == Some(&constituency.name)] {
                                (Foreign(&constituency.name))
                            }
                        }
                    }
                }
            }
            div class="field" {
                label for="state" { "State" }
                select id="state" name="state" {
                    option value="" { "all" }
                    @for filter in StateFilter::all() {
                        option value=(filter.name()) selected[query.state == Some(filter)] { (word_of_filter(filter)) }
                    }
                }
            }
            @if query.sort != PhoneSort::default() { input type="hidden" name="sort" value=(sort_name(query.sort)); }
            @if query.is_reversed { input type="hidden" name="reverse" value="1"; }
            button { "Show" }
        }
    }
}

fn found(page: &PhonePage, query: &PhoneQuery) -> Markup {
    let is_narrowed = !query.search.is_empty() || query.constituency.is_some() || query.state.is_some();
    let first = query.offset.saturating_add(1);
    let last = query.offset.saturating_add(page.phones.len());
    html! {
        @if page.matching == 0 { "No phone matches." }
        @else if page.phones.is_empty() { "This page is past the end of the list." }
        @else if page.phones.len() == page.matching { (count(page.matching, "phone", "phones")) }
        @else { (figure(first)) "–" (figure(last)) " of " (figure(page.matching)) }
        @if is_narrowed && page.matching > 0 { " of " (figure(page.total)) }
        @if is_narrowed || page.phones.is_empty() { " " a href="/#phones" { "Show all" } }
    }
}

fn head(query: &PhoneQuery) -> Markup {
    html! {
        thead {
            tr {
                (heading(query, "Phone", PhoneSort::Name, ""))
                (heading(query, "State", PhoneSort::State, ""))
                th scope="col" { "Constituency" }
                (heading(query, "Model and firmware", PhoneSort::Model, ""))
                th scope="col" { "Address" }
                (heading(query, "Last seen", PhoneSort::LastSeen, "number"))
            }
        }
    }
}

/// A heading that links to the list sorted by its column, or reversed if it is sorted so already.
fn heading(query: &PhoneQuery, title: &str, sort: PhoneSort, class: &str) -> Markup {
    let is_sorted = query.sort == sort;
    let is_reversed = is_sorted && !query.is_reversed;
    let to = PhoneQuery { sort, is_reversed, offset: 0, ..query.clone() };
    let order = is_sorted.then_some(if query.is_reversed { "descending" } else { "ascending" });
    html! {
        th scope="col" class=(class) aria-sort=[order] { a class="sort" href=(to_list(&to)) { (title) } }
    }
}

fn row(phone: &PhoneView, now: i64) -> Markup {
    let is_refused = matches!(phone.state, PhoneState::Refused | PhoneState::Waiting | PhoneState::Denied);
    html! {
        tr id={ "phone-" (phone.constituency) "-" (phone.mac) } {
            th scope="row" {
                a class="mac" href={ "/phones/" (phone.constituency) "/" (phone.mac) } { (phone.mac) }
                @if !phone.note.is_empty() { span class="note" { (foreign(&phone.note)) } }
            }
            td data-label="State" class="standing" {
                (of_phone(phone.state))
                @if let Some(denial) = &phone.denied_everywhere {
                    span class="detail problem" { "denied everywhere " (explained(denial, now)) }
                } @else if let Some((reason, _)) = phone.refusal.as_ref().filter(|_| is_refused) {
                    span class="detail problem" { (foreign(reason)) }
                }
                @if let Some((reason, _)) = &phone.claimed {
                    span class="detail problem" { "claimed, unproven: " (foreign(reason)) }
                }
            }
            td data-label="Constituency" { (phone.constituency) }
            td data-label="Model" {
                @if let Some(model) = &phone.model { (model_name(model)) }
                @if let Some(firmware) = &phone.firmware { " " span class="detail" { (foreign(firmware)) } }
                (old_tls(phone))
            }
            td data-label="Address" class="address" { @if let Some(address) = &phone.address { (foreign(address)) } }
            td data-label="Last seen" class="number last" {
                @if let Some(last) = phone.last_seen { (when(now, last)) } @else { "never" }
            }
        }
    }
}

fn pages(page: &PhonePage, query: &PhoneQuery) -> Markup {
    let step = query.limit.max(1);
    let before = (query.offset > 0).then(|| query.offset.saturating_sub(step));
    let after = Some(query.offset.saturating_add(page.phones.len())).filter(|next| *next < page.matching);
    let to = |offset: usize| to_list(&PhoneQuery { offset, ..query.clone() });
    html! {
        @if before.is_some() || after.is_some() {
            nav class="pages" aria-label="Pages" {
                @if let Some(offset) = before { a rel="prev" href=(to(offset)) { "Previous" } } @else { span {} }
                span { "Page " (figure((query.offset / step).saturating_add(1))) " of " (figure(page.matching.div_ceil(step))) }
                @if let Some(offset) = after { a rel="next" href=(to(offset)) { "Next" } } @else { span {} }
            }
        }
    }
}
