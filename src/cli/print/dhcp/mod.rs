//! What a DHCP server must tell the phones of a constituency, in the words of four DHCP servers.
//!
//! A phone looks for its provisioning server in option 160, then in 66; its VLAN in 128, its clock in 42. Options 100 and
//! 101 are the time zone as RFC 4833 has it; 2 is a fixed offset, for phones and places without one. Each phone that the
//! constituency knows gets a host of its own, so that no other device on the network is told any of this.
//!
//! Notes are other people's text: [`Told`] has them as one short line without controls, and each dialect writes them so
//! that none can end what it stands in. No address is looked up: what is printed depends on the folder alone.

use anyhow::ensure;

use super::timekeeping::{NtpServer, Offset, Zone};
use crate::config::Config;
use crate::constituency::{Constituency, ConstituencyName, MacAddress, Phones, Standing};

mod dnsmasq;
mod isc;
mod kea;
mod mikrotik;

/// The longest note that is printed, in characters. dnsmasq takes what follows the 1024th byte of a line for another line.
const LONGEST_NOTE: usize = 100;
/// The longest value of a DHCP option, in bytes (RFC 2132 §2).
const LONGEST_OPTION: usize = 255;

/// What `provost print dhcp` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The DHCP server that shall be told.
    #[arg(long, value_enum)]
    format: Format,
    /// The constituency that phones shall find.
    #[arg(long, value_name = "NAME")]
    constituency: ConstituencyName,
    /// Put the phones into this VLAN (option 128).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4094))]
    vlan: Option<u16>,
    /// NTP servers (option 42): without the right time no certificate is valid. IPv4 addresses; ISC's dhcpd takes names too.
    #[arg(long, value_name = "HOST", num_args = 1..)]
    ntp: Vec<NtpServer>,
    /// The time zone (options 100 and 101), for example Europe/Berlin.
    #[arg(long, value_name = "ZONE")]
    timezone: Option<Zone>,
    /// A fixed offset from UTC (option 2), for example +01:00: for phones that do not know options 100 and 101.
    #[arg(long, value_name = "OFFSET", allow_hyphen_values = true)]
    offset: Option<Offset>,
}

/// The DHCP servers whose words are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// ISC's dhcpd.
    Isc,
    /// Kea.
    Kea,
    /// dnsmasq.
    Dnsmasq,
    /// MikroTik's RouterOS.
    Mikrotik,
}

/// What phones are told.
#[derive(Debug, Clone)]
struct Told {
    /// What all that is printed is named after: `provost-NAME`.
    name: String,
    url: String,
    vlan: Option<u16>,
    ntp: Vec<NtpServer>,
    zone: Option<Zone>,
    offset: Option<Offset>,
    /// The phones that are known, with their notes; none: everybody on the network is told.
    phones: Vec<(MacAddress, String)>,
}

/// What `args` ask for.
pub(super) fn print(args: &Args, config: &Config) -> anyhow::Result<String> {
    let constituency = super::constituency(config, &args.constituency)?;
    let told = Told {
        name: format!("provost-{}", args.constituency),
        url: config.url(args.constituency.as_str()),
        vlan: args.vlan,
        ntp: args.ntp.clone(),
        zone: args.timezone,
        offset: args.offset,
        phones: phones(&constituency),
    };
    ensure!(told.url.len() <= LONGEST_OPTION, "{} is too long for a DHCP option", told.url);
    ensure!(told.ntp.len() * 4 <= LONGEST_OPTION, "more NTP servers than a DHCP option holds");
    match args.format {
        Format::Isc => Ok(isc::print(&told)),
        Format::Kea => kea::print(&told),
        Format::Dnsmasq => dnsmasq::print(&told),
        Format::Mikrotik => mikrotik::print(&told),
    }
}

/// The phones that are let in by name, with their notes.
fn phones(constituency: &Constituency) -> Vec<(MacAddress, String)> {
    let let_in = constituency.known_phones().into_iter().filter(|mac| constituency.standing(*mac) == Standing::Known);
    let note = |mac: &MacAddress| match &constituency.policy.phones {
        Phones::Listed(listed) => one_line(listed.get(mac).map(String::as_str).unwrap_or_default()),
        Phones::Any => String::new(),
    };
    let_in.map(|mac| (mac, note(&mac))).collect()
}

/// A note as one short line: nothing in it ends a line, turns the direction of writing, or is invisible.
fn one_line(note: &str) -> String {
    let is_unseen = |c: char| {
        c.is_control()
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    let plain = note.trim().replace(is_unseen, "\u{fffd}");
    match plain.char_indices().nth(LONGEST_NOTE) {
        Some((end, _)) => format!("{}…", &plain[..end]),
        None => plain,
    }
}

impl Told {
    /// What is said of it at the top, without the dialect's marks of a comment; the last line says where it belongs.
    fn heading(&self, place: &str) -> Vec<String> {
        let for_whom = if self.phones.is_empty() {
            "It names no phone, so everybody in whose scope it stands is told.".to_owned()
        } else {
            format!("Only the phones that are named here are told: {}.", self.phones.len())
        };
        vec![format!("Phones find their provisioning server: {}", self.url), for_whom, place.to_owned()]
    }

    /// The VLAN as phones read it (option 128).
    fn vlan(&self) -> Option<String> {
        self.vlan.map(|vlan| format!("VLAN-A={vlan};"))
    }

    /// The NTP servers, where only addresses can be written.
    fn ntp_addresses(&self, server: &str) -> anyhow::Result<Vec<std::net::Ipv4Addr>> {
        let address = |server_of_time: &NtpServer| match server_of_time {
            NtpServer::Address(address) => Ok(*address),
            NtpServer::Name(name) => anyhow::bail!(
                "{server} takes IPv4 addresses alone for option 42, and {name} is a name, whose addresses may change; give \
                 addresses, or leave it to provost print phone-config --ntp {name}"
            ),
        };
        self.ntp.iter().map(address).collect()
    }
}

/// `00:00:5e:00:53:0c`.
fn with_colons(mac: MacAddress) -> String {
    let digits = mac.to_string();
    let pairs: Vec<&str> = (0..6).filter_map(|pair| digits.get(2 * pair..2 * pair + 2)).collect();
    pairs.join(":")
}

#[cfg(test)]
mod tests;
