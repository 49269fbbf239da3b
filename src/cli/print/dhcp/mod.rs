//! DHCP options that lead a constituency's phones to this server, in the syntax of four DHCP servers.
//!
//! A phone looks for its provisioning server in option 160, then in 66. Option 128 gives the VLAN, 42 the NTP servers.
//! Options 100 and 101 give the time zone (RFC 4833); 2 gives a fixed offset, for phones and places without one.
//!
//! 1. The output adds to a site's configuration. The options belong to a class (or tag) of MAC addresses, so a phone
//!    keeps the address that the site reserves for it, and other devices do not get the options. Only `--address`
//!    prints reservations.
//! 2. Some options need a definition, which the site may already have: `--without-definitions`.
//! 3. Limits of a DHCP server are reported in the output and on standard error.
//!
//! Notes are untrusted text: [`DhcpPlan`] has each as one short line without control characters, and each dialect
//! escapes it so that it cannot end its comment or string. Only NTP names are resolved, for servers that accept only
//! addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use anyhow::{Context, bail, ensure};

use super::timekeeping::{NtpServer, Offset, Zone};
use crate::cli::{note, warn};
use crate::config::Config;
use crate::constituency::{ClientAuth, Constituency, ConstituencyName, MacAddress, PhoneStanding, Phones, Registry};
use crate::wording::is_unseen;

mod dnsmasq;
mod isc;
mod kea;
mod mikrotik;

/// The most characters of a note. dnsmasq reads the text after the 1024th byte of a line as another line.
const LONGEST_NOTE: usize = 100;
/// The longest value of a DHCP option, in bytes (RFC 2132 §2).
const LONGEST_OPTION: usize = 255;
/// The shortest lease in seconds: dnsmasq allows no shorter one.
const SHORTEST_LEASE: u32 = 120;
/// The longest lease in seconds: dhcpd counts them in 31 bits.
const LONGEST_LEASE: u32 = i32::MAX.unsigned_abs();

/// What `provost print dhcp` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The DHCP server.
    #[arg(long, value_enum)]
    format: DhcpFormat,
    /// The phones' constituency.
    #[arg(long, value_name = "NAME")]
    constituency: ConstituencyName,
    /// Put the phones into this VLAN (option 128).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4094))]
    vlan: Option<u16>,
    /// NTP servers (option 42): without the right time no certificate is valid. Addresses (IPv4) or names; ISC's dhcpd
    /// resolves names itself; for the others they are resolved now.
    #[arg(long, value_name = "HOST", num_args = 1..)]
    ntp: Vec<NtpServer>,
    /// The time zone (options 100 and 101), for example Europe/Berlin.
    #[arg(long, value_name = "ZONE")]
    timezone: Option<Zone>,
    /// The offset from UTC without daylight saving (option 2), for phones that know no time zones: +01:00, -05:30.
    #[arg(long, value_name = "OFFSET", allow_hyphen_values = true)]
    offset: Option<Offset>,
    /// Reserve this IPv4 address for a phone; may be given several times. Only for phones without a reservation.
    #[arg(long, value_name = "MAC=IP", num_args = 1..)]
    address: Vec<PrintedReservation>,
    /// The phones' lease time: seconds, or a time such as 2d [default: what the site has].
    #[arg(long, value_name = "TIME", value_parser = lease_time)]
    lease: Option<u32>,
    /// The maximum lease time that a phone can request [default: that of --lease].
    #[arg(long, value_name = "TIME", value_parser = lease_time, requires = "lease")]
    max_lease: Option<u32>,
    /// Print the http URL of `plain_http`, to update old firmware on a trusted LAN.
    #[arg(long)]
    plain_http: bool,
    /// Leave out the definitions of options 160 and 128, for a site that has them.
    #[arg(long)]
    without_definitions: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum DhcpFormat {
    /// ISC's dhcpd.
    Isc,
    /// Kea.
    Kea,
    /// dnsmasq.
    Dnsmasq,
    /// MikroTik's RouterOS.
    Mikrotik,
}

/// An address that `--address` reserves for a phone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PrintedReservation {
    mac: MacAddress,
    address: Ipv4Addr,
}

/// The content of the output, independent of the syntax.
#[derive(Debug, Clone)]
struct DhcpPlan {
    /// The name of the class, tag or set: `provost-NAME`, so that several constituencies can coexist.
    name: String,
    url: String,
    /// Codes and values, in the order of the output.
    options: Vec<(u8, OptionValue)>,
    lease: Option<Lease>,
    clients: Clients,
    has_definitions: bool,
    /// The last lines of the heading.
    remarks: Vec<String>,
}

/// The clients that get the options.
#[derive(Debug, Clone)]
enum Clients {
    /// Every client in the scope. Addresses are reserved for these phones.
    All(Vec<DhcpPhone>),
    /// Only these phones.
    Phones(Vec<DhcpPhone>),
}

#[derive(Debug, Clone)]
struct DhcpPhone {
    mac: MacAddress,
    /// One line.
    note: String,
    address: Option<Ipv4Addr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum OptionValue {
    Text(String),
    Seconds(i32),
    /// Only ISC dhcpd accepts names.
    Servers(Vec<NtpServer>),
}

/// Lease times in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lease {
    default: u32,
    longest: u32,
}

impl FromStr for PrintedReservation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (mac, address) = text.split_once('=').ok_or("use MAC=IP, such as 00005e00530c=192.0.2.30")?;
        let mac: MacAddress = mac.parse().map_err(|error: crate::constituency::InvalidMacAddress| error.to_string())?;
        let address: Ipv4Addr = address.parse().map_err(|_| format!("invalid IPv4 address {address:?}"))?;
        if !is_host(address) {
            return Err(format!("invalid address {address}: a phone cannot have it"));
        }
        Ok(Self { mac, address })
    }
}

/// Whether a device on a LAN can have `address`: not in 0.0.0.0/8, 127.0.0.0/8, 224.0.0.0/4 and 240.0.0.0/4.
fn is_host(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && first != 127 && first < 224
}

fn lease_time(text: &str) -> Result<u32, String> {
    let seconds = match text.parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) => {
            humantime::parse_duration(text).map_err(|_| "use seconds, or for example 12h or 2d".to_owned())?.as_secs()
        }
    };
    let lease = u32::try_from(seconds).ok().filter(|lease| (SHORTEST_LEASE..=LONGEST_LEASE).contains(lease));
    lease.ok_or_else(|| format!("use {SHORTEST_LEASE} to {LONGEST_LEASE} seconds"))
}

/// The configuration for `args`.
pub(super) fn print(args: &Args, config: &Config) -> anyhow::Result<String> {
    let registry = super::registry(config);
    let constituency = super::constituency(&registry, &args.constituency)?;
    let plan = DhcpPlan::new(args, config, &constituency)?;
    warn_of_lists(&registry, &constituency, &plan.clients);
    for remark in &plan.remarks {
        note(remark);
    }
    Ok(match args.format {
        DhcpFormat::Isc => isc::print(&plan),
        DhcpFormat::Kea => kea::print(&plan)?,
        DhcpFormat::Dnsmasq => dnsmasq::print(&plan),
        DhcpFormat::Mikrotik => mikrotik::print(&plan),
    })
}

/// Warns about phones that are also in another constituency: a phone in two classes gets the options of either,
/// depending on the DHCP server.
fn warn_of_lists(registry: &Registry, constituency: &Constituency, clients: &Clients) {
    let Clients::Phones(phones) = clients else { return };
    for other in registry.served().filter(|other| other.name != constituency.name) {
        let also: BTreeSet<MacAddress> =
            other.known_phones().into_iter().filter(|mac| other.standing(*mac) == PhoneStanding::Known).collect();
        let mut both = phones.iter().filter(|phone| also.contains(&phone.mac));
        if let Some(first) = both.next() {
            let more = match both.count() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            warn(&format_args!(
                "{}{more} is on the lists of {} and of {}: a DHCP server with both outputs sends the options of one \
                 of them; remove it from one list",
                first.mac, constituency.name, other.name
            ));
        }
    }
}

impl DhcpPlan {
    fn new(args: &Args, config: &Config, constituency: &Constituency) -> anyhow::Result<Self> {
        let mut remarks = Vec::new();
        let url = url(args, config, constituency, &mut remarks)?;
        ensure!(url.len() <= LONGEST_OPTION, "{url} is too long for a DHCP option: {} bytes", url.len());
        let ntp = ntp_servers(args, &mut remarks)?;
        ensure!(ntp.len() * 4 <= LONGEST_OPTION, "too many NTP servers for a DHCP option");
        let lease = args.lease.map(|default| Lease { default, longest: args.max_lease.unwrap_or(default) });
        if let Some(Lease { default, longest }) = lease {
            ensure!(default <= longest, "--lease {default} is longer than --max-lease {longest}");
        }
        let clients = clients(args, constituency)?;
        let plan = Self {
            name: format!("provost-{}", args.constituency),
            options: options(args, &url, ntp),
            url,
            lease,
            clients,
            has_definitions: !args.without_definitions,
            remarks,
        };
        Ok(plan.with_limits_of(args))
    }

    /// Adds remarks about requested settings that the DHCP server does not support.
    fn with_limits_of(mut self, args: &Args) -> Self {
        let everyone_has_an_address = match &self.clients {
            Clients::All(_) => false,
            Clients::Phones(phones) => phones.iter().all(|phone| phone.address.is_some()),
        };
        let mut remark = |text: &str| self.remarks.push(text.to_owned());
        match args.format {
            DhcpFormat::Dnsmasq => {
                if args.lease.is_some() && !everyone_has_an_address {
                    remark(
                        "dnsmasq sets lease times only in dhcp-range and dhcp-host: --lease affects only the phones of --address; \
                         others keep the time of their dhcp-range or dhcp-host",
                    );
                }
                if args.max_lease.is_some() {
                    remark("--max-lease has no effect: dnsmasq has no maximum lease time");
                }
            }
            DhcpFormat::Mikrotik => {
                if args.lease.is_some() && matches!(self.clients, Clients::All(_)) {
                    remark(
                        "RouterOS sets lease times per lease or per server: --lease affects only the phones of --address",
                    );
                }
                if args.max_lease.is_some() {
                    remark("--max-lease has no effect: RouterOS has no maximum lease time");
                }
            }
            DhcpFormat::Isc | DhcpFormat::Kea => {}
        }
        self
    }

    /// The lines at the top, without comment marks. `place` says where the output belongs, and what overrides it.
    fn heading(&self, place: &[&str]) -> Vec<String> {
        let clients = match &self.clients {
            Clients::All(_) => "It lists no phone, so every client in its scope gets these options.".to_owned(),
            Clients::Phones(phones) => {
                format!("Only the phones listed here get these options: {}.", phones.len())
            }
        };
        let first = format!("The phones' provisioning server: {}", self.url);
        let place = place.iter().map(|line| (*line).to_owned());
        let reserved = match self.reservations().count() {
            0 => None,
            count => {
                Some(format!("Reserved addresses: {count}. These phones must have no other reservation at the site."))
            }
        };
        [first, clients].into_iter().chain(place).chain(reserved).chain(self.remarks.iter().cloned()).collect()
    }

    /// The phones in the class; empty if every client gets the options.
    fn members(&self) -> &[DhcpPhone] {
        match &self.clients {
            Clients::All(_) => &[],
            Clients::Phones(phones) => phones,
        }
    }

    /// The phones with a reserved address, and the address.
    fn reservations(&self) -> impl Iterator<Item = (&DhcpPhone, Ipv4Addr)> {
        let (Clients::All(phones) | Clients::Phones(phones)) = &self.clients;
        phones.iter().filter_map(|phone| Some((phone, phone.address?)))
    }

    fn is_for_all(&self) -> bool {
        matches!(self.clients, Clients::All(_))
    }
}

fn url(args: &Args, config: &Config, constituency: &Constituency, remarks: &mut Vec<String>) -> anyhow::Result<String> {
    let label = args.constituency.as_str();
    if !args.plain_http {
        return Ok(config.url(label));
    }
    let url = config.plain_http_url(label).with_context(|| {
        "--plain-http: \"plain_http\" is not set in provost.json; add for example \"plain_http\": {\"listen\": \
         \"192.168.1.5:80\", \"networks\": [\"192.168.0.0/16\"]}"
    })?;
    let name = &constituency.name;
    ensure!(
        constituency.policy.plain_http,
        "--plain-http: {name} is not served over plain HTTP; add \"plain_http\": true to its constituency.json"
    );
    let listen = config.plain_http.iter().flat_map(|plain| &plain.listen);
    let addresses: Vec<String> =
        listen.map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string()).collect();
    if !addresses.is_empty() {
        let addresses = addresses.join(" or ");
        remarks
            .push(format!("On the LAN, the name in the URL must resolve to {addresses}, where plain HTTP is served."));
    }
    Ok(url)
}

/// The NTP servers. Names are kept only for a server that resolves them itself.
fn ntp_servers(args: &Args, remarks: &mut Vec<String>) -> anyhow::Result<Vec<NtpServer>> {
    let server = match args.format {
        DhcpFormat::Isc => return Ok(args.ntp.clone()),
        DhcpFormat::Kea => "Kea",
        DhcpFormat::Dnsmasq => "dnsmasq",
        DhcpFormat::Mikrotik => "RouterOS",
    };
    let mut all: Vec<NtpServer> = Vec::new();
    for asked in &args.ntp {
        let found = match asked {
            NtpServer::Address(address) => vec![*address],
            NtpServer::Name(name) => {
                let found = look_up(name).with_context(|| {
                    format!(
                        "cannot resolve the NTP server {name}, and {server} accepts only IPv4 addresses (option 42); use addresses, or \
                         provost print phone-config --ntp {name}"
                    )
                })?;
                let listed: Vec<String> = found.iter().map(ToString::to_string).collect();
                remarks.push(format!(
                    "{server} accepts only addresses of NTP servers: {name} resolved to {} when this was printed. Print it again when \
                     that changes.",
                    listed.join(", ")
                ));
                found
            }
        };
        for server in found.into_iter().map(NtpServer::Address) {
            if !all.contains(&server) {
                all.push(server);
            }
        }
    }
    Ok(all)
}

/// The IPv4 addresses of `name` from the system's resolver, sorted.
fn look_up(name: &str) -> anyhow::Result<Vec<Ipv4Addr>> {
    const NTP: u16 = 123;
    let found = (name, NTP).to_socket_addrs()?;
    let addresses: BTreeSet<Ipv4Addr> = found
        .filter_map(|address| match address.ip() {
            std::net::IpAddr::V4(address) => Some(address),
            std::net::IpAddr::V6(_) => None,
        })
        .collect();
    ensure!(!addresses.is_empty(), "no IPv4 address");
    if let Some(local) = addresses.iter().find(|address| !is_host(**address)) {
        bail!("it resolves to {local} here, which phones cannot reach");
    }
    Ok(addresses.into_iter().collect())
}

fn options(args: &Args, url: &str, ntp: Vec<NtpServer>) -> Vec<(u8, OptionValue)> {
    let text = |text: &str| OptionValue::Text(text.to_owned());
    let mut options = vec![(160, text(url)), (66, text(url))];
    options.extend(args.vlan.map(|vlan| (128, OptionValue::Text(format!("VLAN-A={vlan};")))));
    if let Some(zone) = args.timezone {
        options.extend([(100, text(zone.posix)), (101, text(zone.name))]);
    }
    options.extend(args.offset.map(|offset| (2, OptionValue::Seconds(offset.seconds))));
    if !ntp.is_empty() {
        options.push((42, OptionValue::Servers(ntp)));
    }
    options
}

/// The known phones, with their notes and reserved addresses.
fn clients(args: &Args, constituency: &Constituency) -> anyhow::Result<Clients> {
    let name = &constituency.name;
    let mut addresses = BTreeMap::new();
    for PrintedReservation { mac, address } in &args.address {
        if let Some(refusal) = constituency.standing(*mac).refusal(*mac, name) {
            bail!(
                "--address {mac}={address}: {refusal}; to put it on the list, run provost allow {mac} --constituency {name}"
            );
        }
        if let Some((other, _)) = addresses.iter().find(|(other, taken)| *taken == address && *other != mac) {
            bail!("--address: {address} is reserved for both {other} and {mac}");
        }
        if let Some(before) = addresses.insert(*mac, *address).filter(|before| before != address) {
            bail!("--address: {mac} has two addresses, {before} and {address}");
        }
    }
    let phone = |mac: MacAddress| {
        let note = one_line(constituency.note(mac));
        DhcpPhone { mac, note, address: addresses.get(&mac).copied() }
    };
    if constituency.policy.phones == Phones::Any || constituency.policy.tls.client_auth == ClientAuth::None {
        return Ok(Clients::All(addresses.keys().map(|mac| phone(*mac)).collect()));
    }
    let known =
        constituency.known_phones().into_iter().filter(|mac| constituency.standing(*mac) == PhoneStanding::Known);
    let phones: Vec<DhcpPhone> = known.map(phone).collect();
    ensure!(
        !phones.is_empty(),
        "no known phone in {name}; to put one on its list, run provost allow MAC --constituency {name}"
    );
    Ok(Clients::Phones(phones))
}

/// A note as one short line: line breaks, control characters, direction marks and invisible characters are replaced.
fn one_line(note: &str) -> String {
    let plain = note.trim().replace(is_unseen, "\u{fffd}");
    match plain.char_indices().nth(LONGEST_NOTE) {
        Some((end, _)) => format!("{}…", &plain[..end]),
        None => plain,
    }
}

fn with_colons(mac: MacAddress) -> String {
    let digits = mac.to_string();
    let pairs: Vec<&str> = (0..6).filter_map(|pair| digits.get(2 * pair..2 * pair + 2)).collect();
    pairs.join(":")
}

#[cfg(test)]
mod tests;
