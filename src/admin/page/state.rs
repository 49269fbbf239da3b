//! The words and marks of a phone's state. Pure.

use maud::{Markup, html};

use crate::admin::snapshot::{PhoneView, StateFilter};
use crate::phone_history::PhoneState;

/// A colored mark with its word. The color never carries meaning alone.
pub(super) fn mark(class: &'static str, word: &str) -> Markup {
    html! { span class={ "mark " (class) } { (word) } }
}

pub(super) fn of_phone(state: PhoneState) -> Markup {
    mark(class(state), word(state))
}

/// A mark on a phone that used legacy TLS, with the level that it needs.
pub(super) fn old_tls(phone: &PhoneView) -> Markup {
    html! {
        @if let Some(level) = phone.tls_level.filter(|level| *level != "modern") {
            " " span class="detail" { (mark("fair", "old TLS")) " (" (level) ")" }
        }
    }
}

/// The label of a filter.
pub(super) fn word_of_filter(filter: StateFilter) -> &'static str {
    match filter {
        StateFilter::One(state) => word(state),
        StateFilter::Known => "known",
    }
}

/// The label of a state.
pub(super) fn word(state: PhoneState) -> &'static str {
    match state {
        PhoneState::Well => "well",
        PhoneState::Silent => "silent",
        PhoneState::Never => "never seen",
        PhoneState::Waiting => "waiting",
        PhoneState::Allowed => "allowed",
        PhoneState::Refused => "refused",
        PhoneState::LockedOut => "locked out?",
        PhoneState::Denied => "denied",
        PhoneState::Removed => "removed",
        PhoneState::Gone => "not served",
    }
}

fn class(state: PhoneState) -> &'static str {
    match state {
        PhoneState::Well => "good",
        PhoneState::Waiting => "asks",
        PhoneState::Silent | PhoneState::LockedOut => "fair",
        PhoneState::Refused => "bad",
        PhoneState::Never | PhoneState::Allowed | PhoneState::Denied | PhoneState::Removed | PhoneState::Gone => "idle",
    }
}

/// Explains a state in a sentence.
pub(super) fn meaning(state: PhoneState) -> &'static str {
    match state {
        PhoneState::Well => "It is on the list, and its last request was accepted.",
        PhoneState::Silent => {
            "It is on the list, and has sent no request for two days. Check its power and its network."
        }
        PhoneState::Never => {
            "It is on the list, and has never sent a request. Check its provisioning URL and its clock."
        }
        PhoneState::Waiting => "It has proven its MAC address and is on no list. It waits for approval.",
        PhoneState::Allowed => {
            "It was refused because it was not on the list. It is on the list now, and has sent no request since."
        }
        PhoneState::Refused => "It is on the list, and its last request was refused.",
        PhoneState::LockedOut => {
            "It is on the list, and since it was last accepted a client that claims to be it was refused. That is unproven: it may \
             be this phone, with a certificate that has expired, was revoked or is unknown here, or a wrong password; or it is \
             a stranger."
        }
        PhoneState::Denied => "It is denied. A denial overrides all lists.",
        PhoneState::Removed => "It was taken off the list, and has sent no request since.",
        PhoneState::Gone => "Its constituency is no longer served.",
    }
}
