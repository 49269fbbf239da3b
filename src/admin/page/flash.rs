//! The flash message after a change: carried in the query to which a form redirects. Pure.

use maud::{Markup, html};

use crate::admin::AdminChange;
use crate::constituency::{ConstituencyName, MacAddress};

/// The change of a phone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flash {
    pub change: AdminChange,
    pub mac: MacAddress,
}

impl Flash {
    /// The URL of the page with this message.
    #[must_use]
    pub fn path(&self) -> String {
        let mac = self.mac;
        match &self.change {
            AdminChange::Allow(name) => format!("/?allowed={mac}&in={name}"),
            AdminChange::Deny(name) => format!("/?denied={mac}&in={name}"),
            AdminChange::DenyEverywhere => format!("/?denied={mac}"),
        }
    }

    /// Parses the `query` of a URL.
    #[must_use]
    pub fn parse(query: &str) -> Option<Self> {
        let value = |key: &str| form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == key);
        let name = value("in").map(|(_, name)| name.parse()).transpose().ok()?;
        let (done, mac) = value("allowed").or_else(|| value("denied"))?;
        let change = match (&*done, name) {
            ("allowed", name) => AdminChange::Allow(name?),
            (_, Some(name)) => AdminChange::Deny(name),
            (_, None) => AdminChange::DenyEverywhere,
        };
        Some(Self { change, mac: mac.parse().ok()? })
    }
}

pub(super) fn message(flash: &Flash) -> Markup {
    let mac = flash.mac;
    let phone = |name: &ConstituencyName| html! { a class="mac" href={ "/phones/" (name) "/" (mac) } { (mac) } };
    html! {
        p class="outcome" {
            @match &flash.change {
                AdminChange::Allow(name) => {
                    (phone(name)) " is on the list of " strong { (name) } ". It gets its files at its next request."
                }
                AdminChange::Deny(name) => { (phone(name)) " is denied in " strong { (name) } "." }
                AdminChange::DenyEverywhere => { span class="mac" { (mac) } " is denied everywhere." }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flash_round_trips_and_invalid_queries_are_ignored() {
        let ote = || "ote".parse().unwrap();
        for change in [AdminChange::Allow(ote()), AdminChange::Deny(ote()), AdminChange::DenyEverywhere] {
            let outcome = Flash { change, mac: "00005e0053aa".parse().unwrap() };
            let path = outcome.path();
            assert_eq!(Flash::parse(path.strip_prefix("/?").unwrap()), Some(outcome));
        }
        for query in [
            "",
            "allowed=00005e0053aa",
            "in=ote",
            "allowed=x&in=ote",
            "allowed=00005e0053aa",
            "denied=00005e0053aa&in=%3Cb%3E",
        ] {
            assert_eq!(Flash::parse(query), None, "{query}");
        }
    }
}
