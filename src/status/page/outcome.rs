//! What came of what the operator did: told by the query of the page to which a form leads. Pure.

use maud::{Markup, html};

use crate::constituency::{ConstituencyName, MacAddress};

/// A phone that was let in or kept out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    is_allowed: bool,
    constituency: ConstituencyName,
    mac: MacAddress,
}

impl Outcome {
    /// What was done to the phone `mac` of `constituency`.
    #[must_use]
    pub fn new(is_allowed: bool, constituency: ConstituencyName, mac: MacAddress) -> Self {
        Self { is_allowed, constituency, mac }
    }

    /// Where it is told.
    #[must_use]
    pub fn path(&self) -> String {
        let done = if self.is_allowed { "allowed" } else { "denied" };
        format!("/?{done}={}&in={}", self.mac, self.constituency)
    }

    /// What the `query` of a URL tells.
    #[must_use]
    pub fn parse(query: &str) -> Option<Self> {
        let value = |key: &str| form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == key);
        let (done, mac) = value("allowed").or_else(|| value("denied"))?;
        let (_, constituency) = value("in")?;
        Some(Self::new(done == "allowed", constituency.parse().ok()?, mac.parse().ok()?))
    }
}

pub(super) fn said(outcome: &Outcome) -> Markup {
    let Outcome { is_allowed, constituency, mac } = outcome;
    html! {
        p class="outcome" {
            a class="mac" href={ "/phones/" (constituency) "/" (mac) } { (mac) }
            @if *is_allowed {
                " is on the list of " strong { (constituency) } ". It gets its files when it next asks."
            } @else {
                " is kept out of " strong { (constituency) } "."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_told_by_a_path_and_nothing_else_is_one() {
        for is_allowed in [true, false] {
            let outcome = Outcome::new(is_allowed, "ote".parse().unwrap(), "00005e0053aa".parse().unwrap());
            let path = outcome.path();
            assert_eq!(Outcome::parse(path.strip_prefix("/?").unwrap()), Some(outcome));
        }
        for query in ["", "allowed=00005e0053aa", "in=ote", "allowed=x&in=ote", "allowed=00005e0053aa&in=%3Cb%3E"] {
            assert_eq!(Outcome::parse(query), None, "{query}");
        }
    }
}
