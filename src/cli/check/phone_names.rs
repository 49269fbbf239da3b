//! Checks, with `--live`, whether the names of the phones lead to this server.
//!
//! An address that the settings name is this server's, and so is one of this machine's own, if provost listens on all of them.
//! Any other is asked for its TLS certificate: this server may be behind NAT or a load balancer, and shows a key that only it
//! has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{DNS, Finding, FindingLevel, Progress};
use crate::acme::stored_certificates;
use crate::app::exact_names;
use crate::certificate::{FilesSource, LeafFacts, LiveCertificates};
use crate::clock;
use crate::config::{CertificateSource, Config};
use crate::constituency::Registry;
use crate::dns::responder::{WildcardFaults, change_records};
use crate::dns::{DnsMethod, HostAddresses, ResponderSettings, address_records, phone_addresses};
use crate::wording::{counted, find_tls_error, tls_error};

/// The port that phones use by default.
const HTTPS: u16 = 443;
/// How long an address may take to accept a connection, and to show its certificate.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How many names a message lists.
const LISTED: usize = 5;

/// Checks the names of the constituencies, and what any other name below the domain gets. What the delegation's problems
/// `already` say about the wildcard record is not repeated.
pub(super) async fn check(
    config: &Config,
    registry: &Registry,
    already: &WildcardFaults,
    progress: Progress,
    findings: &mut Vec<Finding>,
) {
    let domain = &config.domain;
    let labels: BTreeSet<String> = registry
        .served()
        .flat_map(|served| std::iter::once(&served.name).chain(&served.policy.aliases))
        .map(ToString::to_string)
        .collect();
    let hosts: Vec<String> = labels.iter().map(|label| format!("{label}.{domain}")).collect();
    let method = if let CertificateSource::Acme(settings) = &config.certificate { Some(&settings.dns) } else { None };
    let resolvers = method.map_or(&[][..], DnsMethod::resolvers);
    let found = match phone_addresses(resolvers, method.and_then(DnsMethod::update), domain, hosts).await {
        Ok(found) => found,
        Err(error) => return findings.push(Finding::new(FindingLevel::Error, DNS, error)),
    };
    let mut judge = Judge { server: ThisServer::of(config), already, shown: BTreeMap::new() };
    let wildcard = &found.wildcard;
    let mut lacking: Vec<(&str, &HostAddresses)> = Vec::new();
    let mut unknown = Vec::new();
    // Each with a host that has it, which is the server name in the handshake.
    let mut records: BTreeMap<&str, (&HostAddresses, &str)> = BTreeMap::new();
    let mut is_wildcard_used = found.hosts.is_empty();
    for (host, addresses) in &found.hosts {
        match addresses {
            Ok(it) if it.addresses.is_empty() => lacking.push((host, it)),
            Ok(it) if (&it.addresses, &it.alias) == (&wildcard.addresses, &wildcard.alias) => {
                is_wildcard_used = true;
                records.entry(&wildcard.owner).or_insert((wildcard, host));
            }
            Ok(it) => _ = records.insert(host, (it, host)),
            Err(error) => unknown.push((host, error)),
        }
    }
    if wildcard.addresses.is_empty() {
        if !already.is_missing {
            findings.push(missing_wildcard(domain, &judge.server, &lacking, found.hosts.len()));
        }
    } else {
        progress.print(&format!("*.{domain}: resolves to {}", listed(&wildcard.addresses)));
        let any = format!("provost.{domain}");
        if !is_wildcard_used {
            // Phones of future constituencies will use it.
            judge.judge(wildcard, &any, findings).await;
        }
        findings.extend(lacking.iter().map(|(host, found)| without_address(host, found, &judge.server)));
    }
    for (owner, (addresses, host)) in records {
        if owner != wildcard.owner {
            progress.print(&format!("{owner}: resolves to {}", listed(&addresses.addresses)));
        }
        judge.judge(addresses, host, findings).await;
    }
    if let Some((host, error)) = unknown.first() {
        let others = unknown.len() - 1;
        let rest =
            if others > 0 { format!(", and the same for {}", counted(others, "other name")) } else { String::new() };
        let message = format!("the addresses of {host} are unknown{rest}: {error}");
        findings.push(Finding::new(FindingLevel::Error, DNS, message));
    }
}

fn listed(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The finding that `host` has no address, although the wildcard has one.
fn without_address(host: &str, found: &HostAddresses, server: &ThisServer) -> Finding {
    let (message, remedy) = match &found.alias {
        Some(target) => (
            format!("{host} is an alias of {target}, which has no address, so phones cannot find it"),
            format!("remove the CNAME record of {host}, so that the wildcard gives it an address, or correct it"),
        ),
        None => (
            format!(
                "{host} has no address, so phones cannot find it: another record at it, or a record below it, such as its \
                 challenge, hides the wildcard's"
            ),
            server.publish(host),
        ),
    };
    Finding::new(FindingLevel::Error, DNS, message).with_remedy(remedy)
}

/// The finding that only some names have addresses, or none.
fn missing_wildcard(domain: &str, server: &ThisServer, lacking: &[(&str, &HostAddresses)], hosts: usize) -> Finding {
    let remedy = server.publish(&format!("*.{domain}"));
    if hosts > 0 && lacking.is_empty() {
        let message = format!(
            "*.{domain} has no address: the constituencies have records of their own, and phones cannot find a new one until it \
             has one, too"
        );
        return Finding::new(FindingLevel::Warning, DNS, message).with_remedy(remedy);
    }
    let mut message = format!("*.{domain} has no address, so phones cannot find their constituency");
    if lacking.len() < hosts {
        let rest = if lacking.len() > LISTED { ", …" } else { "" };
        let names = lacking.iter().take(LISTED).map(|(host, _)| *host).collect::<Vec<_>>().join(", ");
        message = format!("*.{domain} has no address, so phones cannot find {names}{rest}");
    }
    Finding::new(FindingLevel::Error, DNS, message).with_remedy(remedy)
}

/// Reports the addresses of hosts that do not lead to this server. Asks each address once.
struct Judge<'a> {
    server: ThisServer,
    already: &'a WildcardFaults,
    shown: BTreeMap<IpAddr, Shown>,
}

impl Judge<'_> {
    /// Reports those of `found`, which `host` has.
    async fn judge(&mut self, found: &HostAddresses, host: &str, findings: &mut Vec<Finding>) {
        let mut is_beside_ours = false;
        let mut others = Vec::new();
        for address in found.addresses.iter().copied() {
            if !self.shown.contains_key(&address) {
                let shown =
                    if self.server.has(address) { Shown::Ours } else { self.server.shown_at(address, host).await };
                self.shown.insert(address, shown);
            }
            match &self.shown[&address] {
                Shown::Ours => is_beside_ours = true,
                _ => others.push(address),
            }
        }
        let is_domain_wildcard = host.split_once('.').is_some_and(|(_, domain)| found.owner == format!("*.{domain}"));
        for address in others {
            if !(is_domain_wildcard && self.already.addresses.contains(&address)) {
                findings.push(self.server.elsewhere(found, host, address, &self.shown[&address], is_beside_ours));
            }
        }
    }
}

/// What an address shows to a TLS client.
#[derive(Debug)]
enum Shown {
    /// A key of this server.
    Ours,
    /// Another key.
    Other(LeafFacts),
    /// No certificate, or one that cannot be compared, for this reason.
    Nothing(String),
}

/// What tells this server from others.
struct ThisServer {
    addresses: BTreeSet<IpAddr>,
    /// Those that the internet may reach; empty if the settings do not say.
    public: Vec<IpAddr>,
    has_responder: bool,
    /// Whether it listens on all IPv4 addresses of the machine, and on all IPv6 addresses.
    is_everywhere: [bool; 2],
    ports: BTreeSet<u16>,
    /// The public keys of its certificates (`SubjectPublicKeyInfo`).
    keys: Vec<Vec<u8>>,
}

impl ThisServer {
    fn of(config: &Config) -> Self {
        let responder = match &config.certificate {
            CertificateSource::Acme(settings) => settings.dns.responder().map(|dns| &dns.responder),
            _ => None,
        };
        let listen: Vec<IpAddr> = config.listen.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()).collect();
        let public = responder.map_or_else(|| listen.clone(), ResponderSettings::public_addresses);
        let asked = responder.into_iter().flat_map(|it| &it.listen).map(SocketAddr::ip);
        let listens_on_all =
            |is_v6: bool| config.listen.iter().any(|it| it.ip().is_unspecified() && it.is_ipv6() == is_v6);
        Self {
            addresses: asked.chain(listen).chain(public.iter().copied()).collect(),
            public: public.into_iter().filter(|ip| !is_private(*ip)).collect(),
            has_responder: responder.is_some(),
            is_everywhere: [false, true].map(listens_on_all),
            ports: config.listen.iter().map(SocketAddr::port).filter(|port| *port != 0).chain([HTTPS]).collect(),
            keys: own_keys(config),
        }
    }

    /// Whether `address` is this server's by the settings, or this machine has it.
    fn has(&self, address: IpAddr) -> bool {
        let is_everywhere = self.is_everywhere[usize::from(address.is_ipv6())];
        // The system binds only addresses of its own.
        self.addresses.contains(&address) || (is_everywhere && UdpSocket::bind((address, 0)).is_ok())
    }

    fn publish(&self, name: &str) -> String {
        if self.public.is_empty() {
            return format!("publish, with this server's public address: {name}. A ADDRESS (AAAA for IPv6)");
        }
        format!("publish: {}", address_records(name, &self.public))
    }

    /// What `address` shows to a client that asks for `host`. A key of this server counts on any port that it may use.
    async fn shown_at(&self, address: IpAddr, host: &str) -> Shown {
        let (mut other, mut reasons) = (None, Vec::new());
        for port in self.ports.iter().copied() {
            match leaf_at(SocketAddr::new(address, port), host).await {
                Ok(leaf) if self.keys.contains(&leaf.public_key) => return Shown::Ours,
                // Without a key of our own to compare, this may be it.
                Ok(leaf) if self.keys.is_empty() && leaf.covers(host) => {
                    reasons.push(format!(
                        "port {port}: it cannot be compared, because no certificate of this server is stored"
                    ));
                }
                Ok(leaf) => _ = other.get_or_insert(leaf),
                Err(reason) => reasons.push(format!("port {port}: {reason}")),
            }
        }
        other.map_or_else(|| Shown::Nothing(reasons.join("; ")), Shown::Other)
    }

    /// The finding that `host` leads to an `address` that does not prove to be this server.
    fn elsewhere(
        &self,
        found: &HostAddresses,
        host: &str,
        address: IpAddr,
        shown: &Shown,
        is_beside_ours: bool,
    ) -> Finding {
        let owner = &found.owner;
        let of_domain = host.split_once('.').map_or_else(String::new, |(_, domain)| format!("*.{domain}"));
        let change = match &found.alias {
            // A wildcard further up has other names to lead.
            _ if *owner != of_domain && owner != host => self.publish(&of_domain),
            Some(target) => format!("correct the addresses of {target}, to which the CNAME record of {owner} leads"),
            None => change_records(owner, address, is_beside_ours, &self.public),
        };
        let leads = format!("{owner} leads {} to {address}", if is_beside_ours { "some phones" } else { "phones" });
        let finding = |level: FindingLevel, message: String| Finding::new(level, DNS, format!("{leads}{message}"));
        let reason = match shown {
            Shown::Other(leaf) if !leaf.covers(host) => {
                let message = format!(
                    ", which is another server: it shows a certificate {}, with a key that is not ours",
                    leaf.text()
                );
                return finding(FindingLevel::Error, message).with_remedy(change);
            }
            Shown::Other(leaf) => {
                let message = format!(
                    ", which shows a certificate {} with a key that is not ours: an old server, or another one for the same \
                     names",
                    leaf.text()
                );
                let remedy = format!("unless that server is intended, {change}");
                return finding(FindingLevel::Warning, message).with_remedy(remedy);
            }
            Shown::Nothing(reason) => reason.as_str(),
            Shown::Ours => "",
        };
        let by = if self.has_responder {
            "by \"listen\" and \"addresses\" of \"dns\".\"responder\""
        } else {
            "by \"listen\""
        };
        if self.public.is_empty() {
            let message =
                format!("; whether that is this server was not proven: it shows no certificate of ours ({reason})");
            let remedy = format!(
                "from another network, `openssl s_client -connect {} -servername {host}` must show the certificate of this \
                 server; if it does not, {change}",
                SocketAddr::new(address, HTTPS)
            );
            return finding(FindingLevel::Note, message).with_remedy(remedy);
        }
        let message = format!(
            ", which is not an address of this server {by}, and which shows no certificate of ours to this machine ({reason})"
        );
        let remedy = if self.has_responder {
            format!(
                "if {address} is a public address of this server, add it to \"dns\".\"responder\".\"addresses\"; otherwise \
                 {change}"
            )
        } else {
            format!("unless {address} leads here from the internet, {change}")
        };
        finding(FindingLevel::Warning, message).with_remedy(remedy)
    }
}

/// Whether the internet cannot reach `address`, so that another one stands for it there.
fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(it) => {
            let is_shared = it.octets()[0] == 100 && it.octets()[1] & 0xc0 == 64;
            it.is_private() || it.is_loopback() || it.is_link_local() || is_shared
        }
        IpAddr::V6(it) => it.is_loopback() || it.is_unique_local() || it.is_unicast_link_local(),
    }
}

/// The public keys of the certificates that the server presents, as far as this process can read them.
fn own_keys(config: &Config) -> Vec<Vec<u8>> {
    let exact = exact_names(config);
    match &config.certificate {
        CertificateSource::Files(pairs) => {
            let live = LiveCertificates::default();
            FilesSource::new(pairs.clone(), &config.domain).refresh(&live, &exact);
            let (wildcards, exact) = (live.current(), live.exact());
            let all = wildcards.iter().chain(exact.values().flatten());
            all.filter_map(|certificate| Some(LeafFacts::of(certificate.certified().cert.first()?)?.public_key))
                .collect()
        }
        CertificateSource::Acme(settings) => {
            let now = clock::unix_seconds(clock::now());
            let stored = stored_certificates(&config.state, &config.domain, &settings.keys, &exact, now);
            stored.unwrap_or_default().into_iter().filter_map(|certificate| certificate.public_key).collect()
        }
        CertificateSource::LocalCa(_) => Vec::new(),
    }
}

/// The certificate that the TLS server at `address` shows for `host`, and whose key it proves to have.
async fn leaf_at(address: SocketAddr, host: &str) -> Result<LeafFacts, String> {
    let too_slow = || format!("no answer within {} s", TIMEOUT.as_secs());
    let tcp = timeout(TIMEOUT, TcpStream::connect(address)).await.map_err(|_| too_slow())?;
    let tcp = tcp.map_err(|error| error.to_string())?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(LeafRecorder { provider: Arc::clone(&provider), seen: Mutex::default() });
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| error.to_string())?;
    let verifies = Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>;
    let config = config.dangerous().with_custom_certificate_verifier(verifies).with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let ended = timeout(TIMEOUT, TlsConnector::from(Arc::new(config)).connect(name, tcp)).await;
    // A server that wants a client certificate may end the handshake after it has shown its own.
    if let Some(leaf) = verifier.proven() {
        return LeafFacts::of(&leaf).ok_or_else(|| "its certificate is malformed".to_owned());
    }
    Err(match ended {
        Err(_) => too_slow(),
        Ok(Err(error)) => find_tls_error(&error).map_or_else(|| error.to_string(), tls_error),
        Ok(Ok(_)) => "it shows no certificate".to_owned(),
    })
}

/// Accepts every certificate, and keeps the one whose key signed the handshake.
#[derive(Debug)]
struct LeafRecorder {
    provider: Arc<CryptoProvider>,
    seen: Mutex<Option<CertificateDer<'static>>>,
}

impl LeafRecorder {
    fn proven(&self) -> Option<CertificateDer<'static>> {
        self.seen.lock().clone()
    }

    fn keep(
        &self,
        cert: &CertificateDer<'_>,
        verified: Result<HandshakeSignatureValid, rustls::Error>,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if verified.is_ok() {
            *self.seen.lock() = Some(cert.clone().into_owned());
        }
        verified
    }
}

impl ServerCertVerifier for LeafRecorder {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.keep(cert, verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.keep(cert, verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(public: &[&str]) -> ThisServer {
        ThisServer {
            addresses: BTreeSet::new(),
            public: public.iter().map(|text| text.parse().unwrap()).collect(),
            has_responder: true,
            is_everywhere: [false; 2],
            ports: BTreeSet::from([HTTPS]),
            keys: Vec::new(),
        }
    }

    fn found(owner: &str, alias: Option<&str>) -> HostAddresses {
        let addresses = vec!["203.0.113.9".parse().unwrap()];
        HostAddresses { addresses, owner: owner.to_owned(), alias: alias.map(str::to_owned) }
    }

    fn leaf(name: &str) -> Shown {
        Shown::Other(LeafFacts { names: vec![name.to_owned()], public_key: Vec::new() })
    }

    /// The level and the remedy of the finding for the host `ote.phones.example.com`.
    fn finding(server: &ThisServer, found: &HostAddresses, shown: &Shown) -> (FindingLevel, String) {
        let finding = server.elsewhere(found, "ote.phones.example.com", found.addresses[0], shown, false);
        (finding.level, finding.remedy.unwrap())
    }

    #[test]
    fn record_that_leads_phones_elsewhere_is_the_one_to_change() {
        let server = server(&["192.0.2.10"]);
        let rows = [
            (found("*.phones.example.com", None), "change the A record of *.phones.example.com to 192.0.2.10"),
            (found("ote.phones.example.com", None), "change the A record of ote.phones.example.com to 192.0.2.10"),
            (found("*.example.com", None), "publish: *.phones.example.com. A 192.0.2.10"),
            (found("*.example.com", Some("host.example.com")), "publish: *.phones.example.com. A 192.0.2.10"),
            (
                found("*.phones.example.com", Some("host.example.com")),
                "correct the addresses of host.example.com, to which the CNAME record of *.phones.example.com leads",
            ),
        ];
        for (found, change) in rows {
            assert_eq!(finding(&server, &found, &leaf("www.example.net")), (FindingLevel::Error, change.to_owned()));
        }
    }

    #[test]
    fn only_a_certificate_for_other_names_is_certain() {
        let wildcard = found("*.phones.example.com", None);
        let silent = Shown::Nothing("port 443: no answer within 5 s".to_owned());
        let known = server(&["192.0.2.10"]);
        assert_eq!(finding(&known, &wildcard, &leaf("*.phones.example.com")).0, FindingLevel::Warning);
        assert_eq!(finding(&known, &wildcard, &silent).0, FindingLevel::Warning);
        // Behind NAT, silence proves nothing.
        let (level, remedy) = finding(&server(&[]), &wildcard, &silent);
        assert!(
            level == FindingLevel::Note && remedy.contains("openssl s_client -connect 203.0.113.9:443"),
            "{remedy}"
        );
    }

    #[test]
    fn private_addresses_are_not_those_of_the_internet() {
        let is_private = |text: &str| is_private(text.parse().unwrap());
        for private in
            ["10.0.0.2", "192.168.1.1", "100.64.0.1", "127.0.0.1", "169.254.1.1", "fd00::1", "::1", "fe80::1"]
        {
            assert!(is_private(private), "{private}");
        }
        for public in ["192.0.2.10", "100.128.0.1", "9.9.9.9", "2001:db8::10"] {
            assert!(!is_private(public), "{public}");
        }
    }
}
