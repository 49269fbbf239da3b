//! The permission that the DNS primary must grant, so that our key can publish challenges and nothing else.

use anyhow::bail;

use crate::app::exact_names;
use crate::config::{CertificateSource, Config};
use crate::dns::{Dns, UpdateGrant};

/// The syntax of a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// The update-policy of a zone in BIND's named.conf.
    BindPolicy,
    /// An acl in Knot's knot.conf.
    KnotAcl,
}

/// The grant that `config` needs.
pub(super) fn of(config: &Config, dialect: Dialect) -> anyhow::Result<String> {
    let CertificateSource::Acme(settings) = &config.certificate else {
        bail!("no rule is needed: certificates do not come from ACME (\"certificate\": {{\"acme\": …}})");
    };
    let Some(update) = settings.dns.update() else {
        bail!(
            "the built-in DNS responder publishes the challenges, so no DNS primary need grant anything; see provost print dns-records"
        );
    };
    let dns = Dns::open(update)?;
    let challenge = format!("_acme-challenge.{}", config.domain);
    let wanted = exact_names(config);
    let exact: Vec<String> =
        wanted.iter().flat_map(|(_, names)| names).map(|name| format!("_acme-challenge.{name}")).collect();
    let zone = update.zone.as_deref();
    let outside = |zone: &&str| std::iter::once(&challenge).chain(&exact).find(|name| !is_in(name, zone));
    if let Some((zone, challenge)) = zone.and_then(|zone| Some((zone, outside(&zone)?))) {
        bail!(
            "{challenge} is not in the zone {zone}: it is a CNAME record into that zone, or \"zone\" is wrong; provost check --live \
             follows the record and prints the missing rule"
        );
    }
    let place = zone.map(|zone| (challenge.as_str(), zone));
    let guess = if zone.is_none() { dialect.remark_of_a_guess(&challenge) } else { String::new() };
    Ok(guess + &grant(dialect, &dns.key().name(), &config.domain, place, &exact))
}

impl Dialect {
    /// The remark if no zone is configured: the guessed one may be wrong. It can be the domain's own, a parent's, or
    /// the target of a CNAME record.
    fn remark_of_a_guess(self, challenge: &str) -> String {
        let mark = match self {
            Self::BindPolicy => "//",
            Self::KnotAcl => "#",
        };
        format!(
            "{mark} The zone is guessed, because provost.json has no \"zone\". If {challenge}\n\
             {mark} is a CNAME record, this rule is wrong: provost check --live prints the right one.\n"
        )
    }
}

pub(super) fn is_in(name: &str, zone: &str) -> bool {
    format!(".{name}").ends_with(&format!(".{}", zone.trim_end_matches('.').to_ascii_lowercase()))
}

/// The narrowest grant for the wildcard and the name `domain`, which share one challenge name, and for the challenges
/// of `exact` names. If a CNAME record leads elsewhere, `place` is its target and the zone of that.
#[must_use]
pub fn grant(dialect: Dialect, key: &str, domain: &str, place: Option<(&str, &str)>, exact: &[String]) -> String {
    let challenge = format!("_acme-challenge.{}", domain.trim_end_matches('.'));
    let (name, zone) = place.unwrap_or((&challenge, domain));
    let grant = exact.iter().fold(UpdateGrant::new(key, name, zone), |grant, name| grant.and(name));
    match dialect {
        Dialect::BindPolicy => grant.bind_policy(),
        Dialect::KnotAcl => grant.knot_acl(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_covers_only_the_challenge_name() {
        let text = grant(Dialect::BindPolicy, "provost.", "phones.example.com", None, &[]);
        assert!(text.contains("grant provost. name _acme-challenge.phones.example.com. TXT;"), "{text}");
        assert!(text.contains("zone \"phones.example.com\""), "{text}");
    }

    #[test]
    fn each_exact_name_has_its_own_rule() {
        let exact = ["_acme-challenge.ote.phones.example.com".to_owned()];
        let text = grant(Dialect::BindPolicy, "provost.", "phones.example.com", None, &exact);
        assert!(text.contains("grant provost. name _acme-challenge.ote.phones.example.com. TXT;"), "{text}");
        assert_eq!(text.matches("grant ").count(), 2, "{text}");
    }

    #[test]
    fn zone_contains_names_below_it() {
        let challenge = "_acme-challenge.phones.example.com";
        assert!([challenge, "phones.example.com.", "Example.COM"].into_iter().all(|zone| is_in(challenge, zone)));
        assert!(!["acme.example.com", "ones.example.com"].into_iter().any(|zone| is_in(challenge, zone)));
    }

    #[test]
    fn rule_covers_the_cname_target_of_the_challenge() {
        let place = Some(("phones.acme.example.net", "acme.example.net"));
        let text = grant(Dialect::KnotAcl, "provost", "phones.example.com", place, &[]);
        assert!(text.contains("update-owner-name: [phones.acme.example.net.]"), "{text}");
        assert!(text.contains("domain: acme.example.net."), "{text}");
    }
}
