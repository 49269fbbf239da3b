//! The wire format of a ClientHello and its extensions, and the errors for a connection that starts with something
//! else.

use rustls::{CipherSuite, NamedGroup, ProtocolVersion, SignatureScheme};

use super::{ClientHelloFacts, SHOWN, ServerNameSent, version_name};
use crate::serve::ALPN_PROTOCOLS;

/// The longest accepted ClientHello, in bytes with its header: as much as fits in one record (RFC 8446 §5.1).
///
/// A hello has a few hundred bytes, and with post-quantum key shares under 2 KiB. A session ticket holds the client's
/// certificates and adds up to 8 KiB.
pub const HELLO_LIMIT: usize = 1 << 14;

/// RFC 8446 §5.2: the length of a record "MUST NOT exceed 2^14 + 256 bytes".
pub(super) const RECORD_LIMIT: u16 = (1 << 14) + 256;

/// Why the first bytes of a connection are not a ClientHello.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoClientHello {
    /// The client closed or timed out without sending a byte.
    #[error("sent nothing")]
    Nothing,
    /// A method in capitals and a space.
    #[error("is not TLS (starts like an HTTP request)")]
    Http,
    /// Neither a TLS record nor anything else known; the first bytes, escaped.
    #[error("is not TLS (starts with \"{0}\")")]
    NotTls(String),
    /// A CLIENT-HELLO of SSL 2.0.
    #[error("an SSL 2.0 hello")]
    Ssl2,
    /// RFC 5246 appendix E.2: a hello in SSL 2.0 format that asks for this newer version.
    #[error("an SSL 2.0 hello that asks for {0}")]
    Ssl2Format(String),
    /// A TLS record of another content type, usually an alert.
    #[error("a TLS record of type {0} instead of a ClientHello")]
    Record(u8),
    /// A handshake message of another type.
    #[error("a TLS handshake message of type {0} instead of a ClientHello")]
    Handshake(u8),
    /// The bytes end before the message does; their number.
    #[error("a truncated ClientHello ({0} bytes)")]
    Truncated(usize),
    /// The message, or the records that carry it, announce this many bytes.
    #[error("a ClientHello of {0} bytes, which is too long (at most {HELLO_LIMIT} are accepted)")]
    TooLong(usize),
    /// Inconsistent lengths.
    #[error("a malformed ClientHello")]
    Malformed,
}

/// Classifies first bytes that are not a TLS handshake.
pub(super) fn not_tls(raw: &[u8]) -> NoClientHello {
    let method = raw.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    match raw {
        [0x16, 0x03, ..] => NoClientHello::Malformed,
        [kind @ 0x14..=0x18, 0x03, ..] => NoClientHello::Record(*kind),
        // A two-octet length with its top bit set, then CLIENT-HELLO and the version.
        [0x80..=0xff, _, 0x01, 0x00, 0x02, ..] => NoClientHello::Ssl2,
        [0x80..=0xff, _, 0x01, 0x03, minor, ..] => {
            NoClientHello::Ssl2Format(version_name(ProtocolVersion::from(u16::from_be_bytes([0x03, *minor]))))
        }
        _ if (3..=16).contains(&method) && raw.get(method) == Some(&b' ') => NoClientHello::Http,
        _ => NoClientHello::NotTls(raw.iter().take(16).copied().collect::<Vec<u8>>().escape_ascii().to_string()),
    }
}

/// Parses the body of a ClientHello; `None` if its lengths are inconsistent.
pub(super) fn facts(body: &[u8]) -> Option<ClientHelloFacts> {
    let mut body = Cursor(body);
    let legacy_version = body.u16()?;
    let _random = body.take(32)?;
    let _session_id = body.vector8()?;
    let cipher_suites = body.vector16()?.u16s()?;
    let compression = body.vector8()?;
    let mut facts = ClientHelloFacts {
        // RFC 8446 §4.2.1: without `supported_versions`, "servers MUST negotiate TLS 1.2 or prior, even if
        // ClientHello.legacy_version is 0x0304 or later".
        versions: vec![ProtocolVersion::from(legacy_version.min(u16::from(ProtocolVersion::TLSv1_2)))],
        server_name: None,
        cipher_suites: without_grease(cipher_suites).filter(|it| !is_signal(*it)).map(CipherSuite::from).collect(),
        groups: None,
        signature_schemes: None,
        extended_master_secret: false,
        null_compression: compression.0.contains(&0),
        uncompressed_points: true,
        alpn: None,
    };
    // RFC 5246 §7.4.1.2: a hello may end here, without any extensions.
    if !body.0.is_empty() {
        let mut extensions = body.vector16()?;
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            extension(&mut facts, kind, extensions.vector16()?)?;
        }
    }
    Some(facts)
}

/// Parses one extension into `facts`. Skips extensions that do not matter here.
fn extension(facts: &mut ClientHelloFacts, kind: u16, mut data: Cursor<'_>) -> Option<()> {
    match kind {
        0 => facts.server_name = Some(server_name(data.vector16()?)?),
        10 => facts.groups = Some(without_grease(data.vector16()?.u16s()?).map(NamedGroup::from).collect()),
        // RFC 8422 §5.1.2: clients that send this extension "MUST include the value 0 (uncompressed)".
        11 => facts.uncompressed_points = data.vector8()?.0.contains(&0),
        13 => {
            let schemes = data.vector16()?.u16s()?;
            facts.signature_schemes = Some(without_grease(schemes).map(SignatureScheme::from).collect());
        }
        16 => facts.alpn = Some(protocols(data.vector16()?)?),
        23 => facts.extended_master_secret = true,
        43 => facts.versions = without_grease(data.vector8()?.u16s()?).map(ProtocolVersion::from).collect(),
        _ => {}
    }
    Some(())
}

/// RFC 6066 §3: "The `ServerNameList` MUST NOT contain more than one name of the same `name_type`." The length of a
/// name of another type is undefined, so parsing stops at it.
fn server_name(mut names: Cursor<'_>) -> Option<ServerNameSent> {
    let mut found = None;
    while !names.0.is_empty() && names.u8()? == 0 {
        let name = names.vector16()?.0;
        if found.replace(ServerNameSent::of(name)).is_some() {
            return None;
        }
    }
    Some(found.unwrap_or_else(|| ServerNameSent::of(b"")))
}

/// RFC 7301 §3.1: protocol names, each after a one-octet length. Drops GREASE, and foreign names beyond the number that
/// the log shows.
fn protocols(mut names: Cursor<'_>) -> Option<Vec<String>> {
    let mut found: Vec<String> = Vec::new();
    while !names.0.is_empty() {
        match names.vector8()?.0 {
            &[high, low] if high == low && low & 0x0f == 0x0a => {}
            name if found.len() <= SHOWN || ALPN_PROTOCOLS.iter().any(|ours| ours.as_bytes() == name) => {
                found.push(name.escape_ascii().to_string());
            }
            _ => {}
        }
    }
    Some(found)
}

/// RFC 8701: values that clients send only to test whether servers ignore unknown ones.
fn without_grease(values: impl Iterator<Item = u16>) -> impl Iterator<Item = u16> {
    values.filter(|value| {
        let [high, low] = value.to_be_bytes();
        high != low || low & 0x0f != 0x0a
    })
}

/// The signaling values of RFC 5746 and RFC 7507, which are not cipher suites.
fn is_signal(suite: u16) -> bool {
    matches!(suite, 0x00ff | 0x5600)
}

/// The unread bytes. Each method consumes what it returns, and returns `None` if too few bytes are left.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|&[octet]| octet)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().copied().map(u16::from_be_bytes)
    }

    /// A vector with a one-octet length prefix (RFC 8446 §3.4).
    fn vector8(&mut self) -> Option<Self> {
        let length = self.u8()?;
        self.take(length.into()).map(Self)
    }

    /// A vector with a two-octet length prefix.
    fn vector16(&mut self) -> Option<Self> {
        let length = self.u16()?;
        self.take(length.into()).map(Self)
    }

    /// All remaining bytes, as two-octet numbers.
    fn u16s(self) -> Option<impl Iterator<Item = u16>> {
        let (pairs, rest) = self.0.as_chunks::<2>();
        rest.is_empty().then(|| pairs.iter().copied().map(u16::from_be_bytes))
    }
}
