//! The DNS records to publish for this configuration, as lines of a zone file, each below a comment.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::grant::is_in;
use crate::acme::client::AcmeCa;
use crate::acme::{AcmeFailure, AcmeSettings, FallbackDirectory};
use crate::app::exact_names;
use crate::cli::{runtime, warn};
use crate::config::{CertificateSource, Config};
use crate::dns::responder::{challenge_name, known_zone, lead_in};
use crate::dns::{DnsMethod, Issuer};

/// The CAA name of a CA that is known without asking it.
const LETS_ENCRYPT: &str = "letsencrypt.org";
/// What stands for an address that the configuration does not have.
const UNKNOWN_ADDRESS: &str = "A ADDRESS";
/// The port that resolvers ask.
const DNS_PORT: u16 = 53;
/// Networks that the internet does not route, and what their addresses are.
const NOT_PUBLIC: [(&str, &str); 16] = [
    ("0.0.0.0/8", "is an address of \"this network\" (RFC 1122)"),
    ("10.0.0.0/8", PRIVATE),
    ("172.16.0.0/12", PRIVATE),
    ("192.168.0.0/16", PRIVATE),
    ("100.64.0.0/10", "is an address of a provider's NAT (RFC 6598)"),
    ("127.0.0.0/8", "is a loopback address"),
    ("169.254.0.0/16", "is a link-local address"),
    ("192.0.2.0/24", DOCUMENTATION),
    ("198.51.100.0/24", DOCUMENTATION),
    ("203.0.113.0/24", DOCUMENTATION),
    ("::/128", "is an unspecified address"),
    ("::1/128", "is a loopback address"),
    ("fc00::/7", "is a unique local address (RFC 4193)"),
    ("fe80::/10", "is a link-local address"),
    ("2001:db8::/32", DOCUMENTATION),
    ("3fff::/20", DOCUMENTATION),
];
const PRIVATE: &str = "is a private address (RFC 1918)";
const DOCUMENTATION: &str = "is an address for documentation";

/// The records, in the order in which they are printed.
#[derive(Default)]
struct Records(String);

impl Records {
    fn comment(&mut self, text: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "; {text}");
    }

    fn add(&mut self, comment: &str, records: impl IntoIterator<Item = String>) {
        self.comment(comment);
        for record in records {
            let _ = writeln!(self.0, "{record}");
        }
    }
}

/// The records that `config` needs.
pub(super) fn of(config: &Config) -> anyhow::Result<String> {
    if config.is_local() {
        anyhow::bail!("local mode needs no DNS records: names below localhost lead to this machine");
    }
    let mut records = Records::default();
    let domain = &config.domain;
    let addresses = addresses(config);
    records.add(
        &format!("Phones find their constituencies by names one label below {domain}."),
        at(&format!("*.{domain}"), &addresses),
    );
    if addresses.is_empty() {
        records.comment("Replace ADDRESS by the public address of this server (AAAA for IPv6).");
    }
    let has_responder =
        matches!(&config.certificate, CertificateSource::Acme(settings) if settings.dns.responder().is_some());
    for remark in addresses.iter().filter_map(|address| not_public(*address, has_responder)) {
        records.comment(&remark);
    }
    let CertificateSource::Acme(settings) = &config.certificate else { return Ok(records.0) };
    let exact: Vec<String> = exact_names(config).iter().flat_map(|(_, names)| names.iter().cloned()).collect();
    match &settings.dns {
        DnsMethod::Update(dns) => {
            let challenge = challenge_name(domain);
            match dns.zone.as_deref().map(|zone| zone.trim_end_matches('.').to_ascii_lowercase()) {
                Some(zone) if !is_in(&challenge, &zone) => {
                    records.add(
                        &format!("The challenge leads into the zone {zone}, which provost updates at {}.", dns.primary),
                        [lead_in(&challenge, &zone, "")],
                    );
                    exact_names_need(&mut records, &exact, &addresses, |name| {
                        Some(lead_in(&challenge_name(name), &zone, ""))
                    });
                }
                _ => {
                    records.comment(&format!(
                        "No record for the challenge: provost adds and removes {challenge} TXT by updates at {}.",
                        dns.primary
                    ));
                    exact_names_need(&mut records, &exact, &addresses, |_| None);
                }
            }
        }
        DnsMethod::Responder(dns) => {
            let (zone, server) = (known_zone(dns, domain, &config.state), dns.name_server(domain));
            let challenge = challenge_name(domain);
            records.add(
                &format!("The zone {zone} is delegated to this server, which answers the CA's questions."),
                [format!("{zone}. NS {server}.")],
            );
            for listen in dns.responder.listen.iter().filter(|listen| listen.port() != DNS_PORT) {
                let remedy = match listen.port() {
                    // The system chooses a port at each start.
                    0 => format!("listen on port {DNS_PORT}."),
                    _ => format!("listen on port {DNS_PORT}, or forward port {DNS_PORT} (UDP and TCP) to it."),
                };
                records.comment(&format!(
                    "Warning: the responder listens on {listen}, and resolvers ask port {DNS_PORT}; {remedy}"
                ));
            }
            let is_covered = server.strip_suffix(domain.as_str()).and_then(|it| it.strip_suffix('.'));
            if is_covered.is_none_or(|label| label.is_empty() || label.contains('.')) {
                records.add("The address of that name server. It must not be a CNAME record.", at(&server, &addresses));
            }
            if !is_in(&challenge, &zone) {
                let lead = lead_in(&challenge, &zone, &server);
                records.add("The challenge leads into that zone.", [lead]);
            }
            exact_names_need(&mut records, &exact, &addresses, |name| {
                Some(lead_in(&challenge_name(name), &zone, &server))
            });
        }
    }
    caa(&mut records, config, settings)?;
    Ok(records.0)
}

/// The remark about an address that clients on the internet cannot reach.
fn not_public(address: IpAddr, has_responder: bool) -> Option<String> {
    let address = address.to_canonical();
    let contains = |network: &str| network.parse::<IpNet>().is_ok_and(|network| network.contains(&address));
    let (_, what) = NOT_PUBLIC.iter().find(|(network, _)| contains(network))?;
    let setting = if has_responder { ", and name that in \"addresses\" of \"responder\"" } else { "" };
    Some(format!(
        "Warning: {address} {what}, which the internet cannot reach; replace it by the public address of this server{setting}."
    ))
}

/// The records of exact names, each with its `challenge`.
fn exact_names_need(
    records: &mut Records,
    exact: &[String],
    addresses: &[IpAddr],
    challenge: impl Fn(&str) -> Option<String>,
) {
    for name in exact {
        records.add(
            &format!("{name} has a certificate of its own. The record of its challenge hides the wildcard's address."),
            at(name, addresses),
        );
        if let Some(challenge) = challenge(name) {
            records.add(&format!("The challenge of {name}."), [challenge]);
        }
    }
}

/// The CAA records that permit only the configured CAs, our accounts, and our method.
fn caa(records: &mut Records, config: &Config, settings: &AcmeSettings) -> anyhow::Result<()> {
    let runtime = runtime()?;
    for directory in settings.directories() {
        let url = directory.directory.url().to_owned();
        let (identities, account) = match runtime.block_on(ask_ca(directory, config)) {
            Ok(found) => found,
            Err(failure) => {
                warn(&format_args!("the CAA records for {url} are incomplete: {failure}"));
                (Vec::new(), None)
            }
        };
        let is_known = identities.is_empty() && host(&url).ends_with(LETS_ENCRYPT);
        let identities = if is_known { vec![LETS_ENCRYPT.to_owned()] } else { identities };
        let Some(identity) = identities.first() else {
            records.comment(&format!("{url} does not say how CAA records name it; see its documentation."));
            continue;
        };
        if account.is_none() {
            records.comment("Once provost has an account there, run this again: accounturi then permits it alone.");
        }
        let issuer = Issuer { identities: &identities, account: account.as_deref() };
        for (tag, whose) in [("issue", "exact names"), ("issuewild", "the wildcard")] {
            let comment = format!("Optional: only {identity} may issue a certificate for {whose}.");
            records.add(&comment, [issuer.record(&config.domain, tag)]);
        }
    }
    Ok(())
}

/// How CAA records name a CA, and our account there.
async fn ask_ca(directory: FallbackDirectory, config: &Config) -> Result<(Vec<String>, Option<String>), AcmeFailure> {
    let ca = AcmeCa::new(directory, &config.state)?;
    let account = ca.account_url()?;
    // Without an answer, the account still counts.
    let identities = match ca.survey().await {
        Ok(offer) => offer.caa_identities().to_vec(),
        Err(failure) => {
            warn(&failure);
            Vec::new()
        }
    };
    Ok((identities, account))
}

fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', ':']).next().unwrap_or_default()
}

/// The public addresses of this server, as far as the configuration has them.
fn addresses(config: &Config) -> Vec<IpAddr> {
    if let CertificateSource::Acme(settings) = &config.certificate
        && let Some(responder) = settings.dns.responder()
    {
        return responder.responder.public_addresses();
    }
    let listen = config.listen.iter().map(SocketAddr::ip);
    listen.filter(|address| !address.is_unspecified() && !address.is_loopback()).collect()
}

fn at(name: &str, addresses: &[IpAddr]) -> Vec<String> {
    if addresses.is_empty() {
        return vec![format!("{name}. {UNKNOWN_ADDRESS}")];
    }
    let kind = |address: &IpAddr| if address.is_ipv4() { "A" } else { "AAAA" };
    addresses.iter().map(|address| format!("{name}. {} {address}", kind(address))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_the_internet_routes_get_no_remark() {
        let is_public = |text: &str| not_public(text.parse().unwrap(), true).is_none();
        for public in
            ["1.1.1.1", "100.63.255.255", "100.128.0.1", "172.32.0.1", "192.0.3.1", "2606:4700::1", "2001:db9::1"]
        {
            assert!(is_public(public), "{public}");
        }
        for other in [
            "0.0.0.0",
            "10.1.2.3",
            "172.31.255.255",
            "192.168.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.1.1",
            "192.0.2.10",
            "198.51.100.1",
            "203.0.113.1",
            "::",
            "::1",
            "fd00::1",
            "fe80::1",
            "febf::1",
            "2001:db8::1",
            "3fff::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(!is_public(other), "{other}");
        }
        assert!(NOT_PUBLIC.iter().all(|(network, _)| network.parse::<IpNet>().is_ok()));
        for has_responder in [true, false] {
            let remark = not_public("10.1.2.3".parse().unwrap(), has_responder).unwrap();
            assert!(remark.starts_with("Warning: 10.1.2.3 is a private address (RFC 1918), which"), "{remark}");
            assert_eq!(remark.contains("responder"), has_responder, "{remark}");
        }
    }
}
