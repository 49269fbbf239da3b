//! The PROXY protocol, in which a load balancer names the client of a connection: `"proxy_protocol"` in `provost.json`.
//!
//! A connection from one of the named networks must begin with a header: a line of text (version 1) or binary (version
//! 2). From any other network, no header is read. The address in a header is only as true as the balancer. It is for
//! logs, the phone history and connection limits; nothing that grants access reads it.
//!
//! The header is read to its last byte and no further, so that TLS begins as on any other connection.
//!
//! Specification: <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>

use std::io;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use ppp::{PartialResult, v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

/// How a header of version 1 begins.
const V1_BEGIN: &[u8] = b"PROXY ";
/// The header of version 1 for a client that the balancer does not know. More may follow until the end of the line.
const V1_UNKNOWN: &[u8] = b"PROXY UNKNOWN";
/// The shortest header, `PROXY UNKNOWN\r\n`, in bytes.
const SHORTEST: usize = 15;
/// The longest header of version 1, in bytes: "If the CRLF sequence is not found in the first 107 characters, the receiver
/// should declare the line invalid."
const V1_LIMIT: usize = 107;
/// The fixed part of a header of version 2, in bytes. Its last two are the length of the rest.
const V2_FIXED: usize = 16;
/// The longest header of version 2 that is read, in bytes: room for the largest addresses (216) and for additional fields,
/// such as those of cloud providers. nginx has the same limit.
const V2_LIMIT: usize = 4096;
/// Version 2, command LOCAL.
const V2_LOCAL: u8 = 0x20;

/// The networks of load balancers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadBalancers(Vec<IpNet>);

impl LoadBalancers {
    /// The balancers in `networks`.
    ///
    /// # Errors
    /// If a network is the whole internet.
    pub fn new(networks: Vec<IpNet>) -> Result<Self, String> {
        match networks.iter().find(|network| network.prefix_len() == 0) {
            Some(all) => Err(format!(
                "{all} is the whole internet, where anyone could claim any client's address; name the addresses of your load \
                 balancers, such as \"10.0.0.5/32\""
            )),
            None => Ok(Self(networks)),
        }
    }

    /// Whether a connection from `address` must begin with a header.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Their networks.
    #[must_use]
    pub fn networks(&self) -> &[IpNet] {
        &self.0
    }
}

/// The client that a header names; `None` if the connection is the balancer's own, or its client is unknown.
pub(super) type ProxiedClient = Option<SocketAddr>;

/// Why a connection has no valid header.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeaderError {
    /// The balancer closed the connection before it sent anything, as health checks do.
    #[error("closed by the load balancer before it sent anything")]
    Nothing,
    #[error("closed by the load balancer after {0} bytes of its PROXY header")]
    Incomplete(usize),
    #[error("reading the PROXY header: {0}")]
    Io(#[from] io::Error),
    #[error(
        "no PROXY header: the connection begins with {0}, and \"proxy_protocol\" names this network; make the load \
         balancer send the header (HAProxy: send-proxy-v2), or remove the network"
    )]
    Missing(&'static str),
    #[error(
        "the PROXY header is too long: at most {V1_LIMIT} bytes (version 1) or {V2_LIMIT} bytes (version 2) are read"
    )]
    TooLong,
    #[error("invalid PROXY header: {0}")]
    Invalid(String),
}

/// What a part of a stream is.
#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    /// A whole header, and nothing after it.
    Header(ProxiedClient),
    /// The beginning of a header, of which at least this many bytes are missing.
    Incomplete(usize),
}

/// Reads the header at the beginning of `stream`, to its last byte.
///
/// # Errors
/// If there is none, or it is invalid, or the stream ends or fails.
pub(super) async fn receive_header<S: AsyncRead + Unpin>(stream: &mut S) -> Result<ProxiedClient, HeaderError> {
    let mut header = Vec::new();
    loop {
        let missing = match parse(&header)? {
            Parsed::Header(client) => return Ok(client),
            Parsed::Incomplete(missing) => missing,
        };
        let received = header.len();
        header.resize(received + missing, 0);
        let count = match stream.read(header.get_mut(received..).unwrap_or_default()).await {
            Ok(count) => count,
            // A health check may end in a reset.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(error.into()),
        };
        match (received, count) {
            (0, 0) => return Err(HeaderError::Nothing),
            (received, 0) => return Err(HeaderError::Incomplete(received)),
            _ => header.truncate(received + count),
        }
    }
}

/// Parses `bytes`, which hold no more than a header: as many as [`Parsed::Incomplete`] asked for.
fn parse(bytes: &[u8]) -> Result<Parsed, HeaderError> {
    let is_v1 = begins_as(bytes, V1_BEGIN);
    if !is_v1 && !begins_as(bytes, v2::PROTOCOL_PREFIX) {
        return Err(HeaderError::Missing(describe(bytes)));
    }
    if bytes.len() < SHORTEST {
        return Ok(Parsed::Incomplete(SHORTEST - bytes.len()));
    }
    if is_v1 { parse_v1(bytes) } else { parse_v2(bytes) }
}

/// Whether `bytes` begin with `begin`, or are a part of it.
fn begins_as(bytes: &[u8], begin: &[u8]) -> bool {
    bytes.iter().zip(begin).all(|(byte, expected)| byte == expected)
}

fn describe(bytes: &[u8]) -> &'static str {
    match bytes {
        [0x16, ..] => "TLS",
        _ => "other data",
    }
}

/// Parses a line. It is parsed when its end has been read: "The receiver must wait for the CRLF sequence before starting to
/// decode the addresses".
fn parse_v1(bytes: &[u8]) -> Result<Parsed, HeaderError> {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let before_end = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
    let missing = if before_end.last() == Some(&b'\r') { 1 } else { 2 };
    if before_end.len() + missing > V1_LIMIT {
        return Err(HeaderError::TooLong);
    }
    if end.is_none() {
        return Ok(Parsed::Incomplete(missing));
    }
    let invalid = |reason: &str| HeaderError::Invalid(reason.to_owned());
    // "The receiver must not tolerate a single CR or LF character to end the line".
    let line = bytes.strip_suffix(b"\r\n").filter(|line| !line.contains(&b'\r'));
    let line = line.ok_or_else(|| invalid("its line does not end in CRLF"))?;
    // "For "UNKNOWN", […] the receiver must ignore anything presented before the CRLF is found."
    if line.strip_prefix(V1_UNKNOWN).is_some_and(|rest| rest.is_empty() || rest.starts_with(b" ")) {
        return Ok(Parsed::Header(None));
    }
    // The parser of integers accepts a sign.
    if line.contains(&b'+') {
        return Err(invalid("a port has a sign"));
    }
    let header = v1::Header::try_from(bytes).map_err(|error| invalid(v1_reason(&error)))?;
    let client: SocketAddr = match header.addresses {
        v1::Addresses::Tcp4(addresses) => (addresses.source_address, addresses.source_port).into(),
        v1::Addresses::Tcp6(addresses) => (addresses.source_address, addresses.source_port).into(),
        v1::Addresses::Unknown => return Ok(Parsed::Header(None)),
    };
    Ok(Parsed::Header(Some(canonical(client))))
}

/// Parses a binary header. Additional fields (TLVs) behind the addresses are skipped.
fn parse_v2(bytes: &[u8]) -> Result<Parsed, HeaderError> {
    let Some(&[.., command, _, high, low]) = bytes.first_chunk::<V2_FIXED>() else {
        return Ok(Parsed::Incomplete(V2_FIXED - bytes.len()));
    };
    let length = V2_FIXED + usize::from(u16::from_be_bytes([high, low]));
    let incomplete = || Ok(Parsed::Incomplete(length - bytes.len()));
    if command == V2_LOCAL {
        // "The receiver must accept this connection […] and discard the protocol block including the family".
        return match bytes.len() {
            _ if length > V2_LIMIT => Err(HeaderError::TooLong),
            received if received < length => incomplete(),
            _ => Ok(Parsed::Header(None)),
        };
    }
    let header = match v2::Header::try_from(bytes) {
        Ok(header) => header,
        Err(error) if !error.is_incomplete() => return Err(HeaderError::Invalid(v2_reason(&error))),
        Err(_) if length > V2_LIMIT => return Err(HeaderError::TooLong),
        Err(_) => return incomplete(),
    };
    let client: SocketAddr = match (header.addresses, header.protocol) {
        (v2::Addresses::IPv4(addresses), v2::Protocol::Stream) => {
            (addresses.source_address, addresses.source_port).into()
        }
        (v2::Addresses::IPv6(addresses), v2::Protocol::Stream) => {
            (addresses.source_address, addresses.source_port).into()
        }
        // A client that the balancer does not know, or one on the balancer's own machine.
        (v2::Addresses::Unspecified, v2::Protocol::Unspecified) | (v2::Addresses::Unix(_), v2::Protocol::Stream) => {
            return Ok(Parsed::Header(None));
        }
        _ => return Err(HeaderError::Invalid("its client does not use TCP".to_owned())),
    };
    Ok(Parsed::Header(Some(canonical(client))))
}

/// The parser's error in the words of the specification.
fn v1_reason(error: &v1::BinaryParseError) -> &'static str {
    use v1::ParseError as E;
    match error {
        v1::BinaryParseError::Parse(E::InvalidProtocol) => "its protocol is not TCP4, TCP6 or UNKNOWN",
        v1::BinaryParseError::Parse(E::InvalidSourceAddress(_) | E::InvalidDestinationAddress(_)) => {
            "it has a malformed address"
        }
        v1::BinaryParseError::Parse(E::InvalidSourcePort(_) | E::InvalidDestinationPort(_)) => {
            "it has a malformed port"
        }
        _ => "its line is malformed",
    }
}

fn v2_reason(error: &v2::ParseError) -> String {
    use v2::ParseError as E;
    match error {
        E::Version(version) => format!("its version is {}, not 2", version >> 4),
        E::Command(command) => format!("it has the unknown command {command}"),
        E::AddressFamily(family) => format!("it has the unknown address family {}", family >> 4),
        E::Protocol(protocol) => format!("it has the unknown transport protocol {protocol}"),
        E::InvalidAddresses(length, needed) => {
            format!("its length is {length} bytes, but the addresses of its family take {needed}")
        }
        other => other.to_string(),
    }
}

/// Converts an IPv4-mapped IPv6 address to the IPv4 address, so that limits count the client once.
fn canonical(client: SocketAddr) -> SocketAddr {
    SocketAddr::new(client.ip().to_canonical(), client.port())
}

#[cfg(test)]
mod tests;
