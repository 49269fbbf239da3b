//! The parameter file that makes a phone keep a constituency's server permanently, so that the phone works in any
//! network.
//!
//! A function makes each group of parameters. To add one, add a line to [`groups`].

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::mpsc;
use std::time::Duration;

use super::timekeeping::NtpServer;
use crate::cli::parameters::{Group, parameter_file};
use crate::cli::warn;
use crate::config::Config;
use crate::constituency::{Constituency, ConstituencyName};

mod roots;

use roots::Roots;

/// What `provost print phone-config` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The phone's constituency.
    #[arg(long, value_name = "NAME")]
    constituency: ConstituencyName,
    /// The phone's NTP server, which overrides DHCP.
    #[arg(long, value_name = "HOST", default_value = "pool.ntp.org")]
    ntp: NtpServer,
    /// Poll for changes once a day, at a random time in this range (UC Software 4.0 and later).
    #[arg(long, value_name = "HH:MM-HH:MM", default_value = "01:00-05:00")]
    polling: PollingWindow,
    /// A root certificate (PEM) that the phone trusts, beside the roots of the certificates in use, which provost adds if this
    /// machine knows them; may be given several times.
    #[arg(long, value_name = "FILE")]
    ca: Vec<PathBuf>,
    /// The number of addresses of the server's name, of which the phone tries each [default: the number in DNS now].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=MOST_ADDRESSES))]
    addresses: Option<u8>,
    /// Let the phone accept a certificate for any name, if it trusts the CA: for firmware that refuses wildcards.
    ///
    /// An attacker on the phone's path can then pose as this server. `"certificate_names": "exact"` in constituency.json
    /// avoids that: the constituency then has a certificate for its own name.
    #[arg(long)]
    no_name_check: bool,
    /// Let the phone offer the cipher suites of "tls": "modern", if its firmware has them (UC Software 5.x and later).
    #[arg(long)]
    modern_tls: bool,
}

/// A part of the day, in whole minutes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PollingWindow {
    from: String,
    until: String,
}

/// The input of all groups.
struct ConfigRequest<'a> {
    args: &'a Args,
    constituency: &'a Constituency,
    /// `https://…/`
    url: String,
    /// PEM.
    roots: Vec<String>,
    /// The number of addresses of the server's name.
    addresses: u8,
}

/// The most addresses of a server that a phone tries (UC Software 5.0.1).
const MOST_ADDRESSES: i64 = 8;
/// The timeout for DNS.
const DNS_TIMEOUT: Duration = Duration::from_secs(3);

/// The attack that a name check prevents.
const WITHOUT_NAME_CHECK: &str = "the phone will not check the name in the server's certificate: an attacker on its path (a router, a Wi-Fi, a DNS \
     server) who has a certificate of any CA that the phone trusts, for any name, can pose as this server and send the \
     phone a configuration and firmware. \"certificate_names\": \"exact\" in constituency.json avoids this";

/// The file for `args`.
pub(super) fn print(args: &Args, config: &Config) -> anyhow::Result<String> {
    let constituency = super::constituency(&super::registry(config), &args.constituency)?;
    let Roots { pem: roots, unknown } = roots::find(config, &args.ca)?;
    for directory in unknown {
        warn(&format_args!(
            "the root of the fallback CA {directory} is unknown until it has issued a certificate, and a phone that does not \
             trust it can no longer connect then; add it with --ca"
        ));
    }
    let url = config.url(args.constituency.as_str());
    if args.no_name_check {
        warn(&WITHOUT_NAME_CHECK);
    }
    let heading = format!(
        "Binds a phone to {url}. Put this file into the folder of the constituency and name it in CONFIG_FILES, or \
         import it on the phone's web page. For UC Software 4.0 and later."
    );
    let addresses = args.addresses.unwrap_or_else(|| addresses(config, &url));
    Ok(parameter_file(&heading, &groups(&ConfigRequest { args, constituency: &constituency, url, roots, addresses })))
}

/// All groups, in the order of the output.
fn groups(wanted: &ConfigRequest<'_>) -> Vec<Group> {
    let always = [server(wanted), trust(wanted), clock(wanted), polling(wanted)];
    always
        .into_iter()
        .chain(addresses_of_server(wanted))
        .chain(logs(wanted))
        .chain(name_check(wanted))
        .chain(modern_tls(wanted))
        .collect()
}

/// The provisioning server, which overrides DHCP.
fn server(wanted: &ConfigRequest<'_>) -> Group {
    // A host name if that is enough, else a URL. The documentation allows both.
    let name = wanted.url.strip_prefix("https://").and_then(|rest| rest.strip_suffix('/')).unwrap_or(&wanted.url);
    let name = if name.contains(':') { &wanted.url } else { name };
    Group::new("server", "The provisioning server, which overrides DHCP.")
        .plain("device.set", "1")
        .device("device.prov.serverType", "HTTPS")
        .device("device.prov.serverName", name)
        .device("device.dhcp.bootSrvUseOpt", "Static")
}

/// The number of addresses of the server's name: from DNS, or else from `listen`.
fn addresses(config: &Config, url: &str) -> u8 {
    let host =
        url.strip_prefix("https://").and_then(|rest| rest.split([':', '/']).next()).unwrap_or_default().to_owned();
    let (answer, answered) = mpsc::channel();
    // Not joined, because a resolver can block for long.
    std::thread::spawn(move || {
        let found = (host.as_str(), 443).to_socket_addrs();
        let found = found.map(|found| found.map(|address| address.ip()).collect::<BTreeSet<IpAddr>>());
        // After the timeout, the receiver is gone.
        let _ = answer.send(found.unwrap_or_default());
    });
    let in_dns = answered.recv_timeout(DNS_TIMEOUT).unwrap_or_default();
    let listening: BTreeSet<IpAddr> =
        config.listen.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()).collect();
    // These phones use IPv4.
    let count = |all: &BTreeSet<IpAddr>| all.iter().filter(|ip| ip.is_ipv4()).count();
    let count = if in_dns.is_empty() { count(&listening) } else { count(&in_dns) };
    u8::try_from(count).unwrap_or(u8::MAX).clamp(1, MOST_ADDRESSES.unsigned_abs().try_into().unwrap_or(u8::MAX))
}

/// Lets the phone try several addresses of the server's name. The default is one.
fn addresses_of_server(wanted: &ConfigRequest<'_>) -> Option<Group> {
    let count = wanted.addresses;
    let group = || {
        Group::new(
            "addresses",
            &format!(
                "The server's name has {count} addresses. By default a phone tries one; this lets it try each, three times, a \
                 minute between the rounds. The parameter names are Polycom's; their effect was not tested with a phone."
            ),
        )
        .device("device.prov.maxRedunServers", &count.to_string())
        .device("device.prov.redunAttemptLimit", "3")
        .device("device.prov.redunInterAttemptDelay", "60")
    };
    (count > 1).then(group)
}

/// Installs the roots, because old firmware does not know the newer ones.
fn trust(wanted: &ConfigRequest<'_>) -> Group {
    const PLACES: usize = 2;
    let further = if wanted.roots.len() > PLACES {
        " Firmware has two slots for these; whether it reads a third one was not tested with a phone."
    } else {
        ""
    };
    let comment = format!(
        "The roots of the server's certificates, for firmware that does not have them, trusted beside the built-in \
         ones.{further}"
    );
    let group = Group::new("trust", &comment);
    let roots = wanted.roots.iter().zip(1..);
    let group = roots.fold(group, |group, (root, number)| {
        group.device(&format!("device.sec.TLS.customCaCert{number}"), root.trim_end())
    });
    group.device("device.sec.TLS.profile.caCertList1", "All")
}

/// Sets the NTP server, because without the time no certificate is valid.
fn clock(wanted: &ConfigRequest<'_>) -> Group {
    let server = wanted.args.ntp.to_string();
    Group::new("clock", "The NTP server, which overrides DHCP: without the right time no certificate is valid.")
        .device("device.sntp.serverName", &server)
        .plain("tcpIpApp.sntp.address", &server)
        .plain("tcpIpApp.sntp.address.overrideDHCP", "1")
}

/// Spreads polling over time, so that phones do not all ask at once.
fn polling(wanted: &ConfigRequest<'_>) -> Group {
    let PollingWindow { from, until } = &wanted.args.polling;
    Group::new("polling", "Polls for changes once a day, each phone at a random time.")
        .plain("prov.polling.enabled", "1")
        .plain("prov.polling.mode", "random")
        .plain("prov.polling.period", "86400")
        .plain("prov.polling.time", from)
        .plain("prov.polling.timeRandomEnd", until)
}

/// Log uploads, if the policy allows uploads. The log grows up to a size that the policy allows, then starts anew.
fn logs(wanted: &ConfigRequest<'_>) -> Option<Group> {
    const USUAL_KIB: u64 = 512;
    let limits = wanted.constituency.policy.uploads?;
    let kib = USUAL_KIB.min(limits.max_file_bytes >> 10).max(1);
    let group = Group::new("logs", "Appends new log lines to the file on the server.")
        .plain("log.render.file.upload.append", "1")
        .plain("log.render.file.upload.append.sizeLimit", &kib.to_string())
        .plain("log.render.file.upload.append.limitMode", "delete");
    Some(group)
}

fn name_check(wanted: &ConfigRequest<'_>) -> Option<Group> {
    let group = || {
        Group::new("name_check", &format!("WARNING: {WITHOUT_NAME_CHECK}."))
            .device("device.sec.TLS.prov.strictCertCommonNameValidation", "0")
    };
    wanted.args.no_name_check.then(group)
}

/// The cipher suites that the phone offers: modern ones first, then older ones, so that a phone without modern ones
/// still has some. The phone's OpenSSL ignores unknown names.
fn modern_tls(wanted: &ConfigRequest<'_>) -> Option<Group> {
    const SUITES: &str = "ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384:DHE-RSA-AES128-GCM-SHA256:\
         ECDHE-RSA-AES128-SHA:DHE-RSA-AES128-SHA:AES128-SHA";
    let group = || {
        Group::new(
            "tls",
            "TLS 1.2 with forward secrecy, where the firmware has it; for the platform's first TLS profile.",
        )
        .device("device.sec.TLS.protocol.prov", "TLSv1_2")
        .device("device.sec.TLS.profile.cipherSuiteDefault1", "0")
        .device("device.sec.TLS.profile.cipherSuite1", SUITES)
        .device("device.sec.TLS.profileSelection.provisioning", "PlatformProfile1")
    };
    wanted.args.modern_tls.then(group)
}

impl FromStr for PollingWindow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || "use for example 01:00-05:00, the earlier time first".to_owned();
        let is_time = |text: &str| {
            let number = |digits: &str, below: u8| {
                digits.len() == 2
                    && digits.bytes().all(|byte| byte.is_ascii_digit())
                    && digits.parse::<u8>().is_ok_and(|number| number < below)
            };
            text.split_once(':').is_some_and(|(hours, minutes)| number(hours, 24) && number(minutes, 60))
        };
        let (from, until) = text.split_once('-').ok_or_else(wrong)?;
        // Two digits each, so that comparing the texts compares the times.
        if !is_time(from) || !is_time(until) || from >= until {
            return Err(wrong());
        }
        Ok(Self { from: from.to_owned(), until: until.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_window_lies_within_a_day() {
        let window: PollingWindow = "01:00-05:30".parse().unwrap();
        assert_eq!((window.from.as_str(), window.until.as_str()), ("01:00", "05:30"));
        for wrong in
            ["", "1:00-5:00", "05:00-01:00", "01:00-01:00", "01:00-24:00", "01:60-02:00", "01:00", "a-b", "+1:00-02:00"]
        {
            assert!(wrong.parse::<PollingWindow>().is_err(), "{wrong}");
        }
    }
}
