//! `provost print`: what an operator gives the DNS primary so that our key may place challenges, and nothing else.

use crate::dns::Grant;

/// A dialect in which a grant is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Dialect {
    /// The update-policy of a zone in BIND's named.conf.
    BindPolicy,
    /// An acl in Knot's knot.conf.
    KnotAcl,
}

/// The narrowest grant for the wildcard and the name of `domain`, which share one challenge name. Where a CNAME record
/// leads elsewhere, `place` is the name and the zone that it leads to.
#[must_use]
pub fn grant(dialect: Dialect, key: &str, domain: &str, place: Option<(&str, &str)>) -> String {
    let challenge = format!("_acme-challenge.{}", domain.trim_end_matches('.'));
    let (name, zone) = place.unwrap_or((&challenge, domain));
    let grant = Grant::new(key, name, zone);
    match dialect {
        Dialect::BindPolicy => grant.bind_policy(),
        Dialect::KnotAcl => grant.knot_acl(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grant_is_for_the_challenge_s_name_alone() {
        let text = grant(Dialect::BindPolicy, "provost.", "phones.example.com", None);
        assert!(text.contains("grant provost. name _acme-challenge.phones.example.com. TXT;"), "{text}");
        assert!(text.contains("zone \"phones.example.com\""), "{text}");
    }

    #[test]
    fn the_grant_is_for_where_the_challenge_is_delegated_to() {
        let place = Some(("phones.acme.example.net", "acme.example.net"));
        let text = grant(Dialect::KnotAcl, "provost", "phones.example.com", place);
        assert!(text.contains("update-owner-name: [phones.acme.example.net.]"), "{text}");
        assert!(text.contains("domain: acme.example.net."), "{text}");
    }
}
