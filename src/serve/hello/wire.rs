//! The layout of a ClientHello: records, the handshake message, its fields and extensions.

use rustls::{CipherSuite, NamedGroup, ProtocolVersion, SignatureScheme};

use super::{ClientHelloFacts, SHOWN, ServerNameSent, version_name};
use crate::serve::ALPN_PROTOCOLS;

/// How many bytes of a connection's beginning are looked at.
///
/// A ClientHello is a few hundred bytes, and with post-quantum shares under 2 KiB; rustls refuses a handshake message
/// over 64 KiB. A hello in records of one byte each is six times its size on the wire.
pub const RAW_LIMIT: usize = 64 * 1024;

/// The longest handshake message that rustls takes.
const MESSAGE_LIMIT: u32 = 0xffff;

/// RFC 8446 §5.2: the length of a record "MUST NOT exceed 2^14 + 256 bytes".
const RECORD_LIMIT: u16 = (1 << 14) + 256;

/// The first bytes of a connection hold no ClientHello, for this reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoClientHello {
    /// Closed, or timed out, without a byte.
    #[error("sent nothing")]
    Nothing,
    /// A method in capitals and a space.
    #[error("is not TLS (starts like an HTTP request)")]
    Http,
    /// Neither a TLS record nor anything else that we know; its first bytes, escaped.
    #[error("is not TLS (starts with \"{0}\")")]
    NotTls(String),
    /// A CLIENT-HELLO of SSL 2.0.
    #[error("an SSL 2.0 hello")]
    Ssl2,
    /// RFC 5246 appendix E.2: a hello in the format of SSL 2.0 which asks for this newer version.
    #[error("an SSL 2.0 hello that asks for {0}")]
    Ssl2Format(String),
    /// A TLS record of another content type, most often an alert.
    #[error("a TLS record of type {0} instead of a ClientHello")]
    Record(u8),
    /// A handshake message of another type.
    #[error("a TLS handshake message of type {0} instead of a ClientHello")]
    Handshake(u8),
    /// The bytes end before the message does; how many there were.
    #[error("a truncated ClientHello ({0} bytes)")]
    Truncated(usize),
    /// The message says that it is longer than anybody takes.
    #[error("a ClientHello of {0} bytes, which is too long")]
    TooLong(u32),
    /// Lengths that do not fit into one another.
    #[error("a malformed ClientHello")]
    Malformed,
}

/// The body of the ClientHello, joined from the records that carry it (RFC 8446 §5.1).
pub(super) fn client_hello(raw: &[u8]) -> Result<Vec<u8>, NoClientHello> {
    let raw = raw.get(..RAW_LIMIT).unwrap_or(raw);
    if raw.is_empty() {
        return Err(NoClientHello::Nothing);
    }
    let mut records = Cursor(raw);
    let mut message = Vec::new();
    loop {
        if let Some(body) = complete(&message)? {
            return Ok(body.to_vec());
        }
        match record(&mut records) {
            Some(Ok(fragment)) => message.extend_from_slice(fragment),
            Some(Err(())) if message.is_empty() => return Err(not_tls(raw)),
            Some(Err(())) => return Err(NoClientHello::Malformed),
            None => return Err(NoClientHello::Truncated(raw.len())),
        }
    }
}

/// The next handshake fragment; `None` if the bytes end first, an error if they are no handshake record.
fn record<'a>(bytes: &mut Cursor<'a>) -> Option<Result<&'a [u8], ()>> {
    if bytes.u8()? != 0x16 || bytes.u8()? != 0x03 {
        return Some(Err(()));
    }
    let _minor = bytes.u8()?;
    let length = bytes.u16()?;
    // RFC 8446 §5.1: "Implementations MUST NOT send zero-length fragments of Handshake types".
    if length == 0 || length > RECORD_LIMIT {
        return Some(Err(()));
    }
    // A record that is cut short still says what kind of message it carries.
    bytes.take(length.into()).map(Ok)
}

/// The message's body once all of it is there.
fn complete(message: &[u8]) -> Result<Option<&[u8]>, NoClientHello> {
    let mut message = Cursor(message);
    match message.u8() {
        None => return Ok(None),
        Some(1) => {}
        Some(other) => return Err(NoClientHello::Handshake(other)),
    }
    let Some(&[high, middle, low]) = message.array::<3>() else { return Ok(None) };
    match u32::from_be_bytes([0, high, middle, low]) {
        length if length > MESSAGE_LIMIT => Err(NoClientHello::TooLong(length)),
        length => Ok(usize::try_from(length).ok().and_then(|length| message.take(length))),
    }
}

/// What a beginning is that is no TLS handshake.
fn not_tls(raw: &[u8]) -> NoClientHello {
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

/// The fields of a ClientHello's body; `None` if their lengths do not fit.
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

/// Adds what one extension says; those that do not matter here are passed over unread.
fn extension(facts: &mut ClientHelloFacts, kind: u16, mut data: Cursor<'_>) -> Option<()> {
    match kind {
        0 => facts.server_name = Some(server_name(data.vector16()?)?),
        10 => facts.groups = Some(without_grease(data.vector16()?.u16s()?).map(NamedGroup::from).collect()),
        // RFC 8422 §5.1.2: whoever sends this extension "MUST include the value 0 (uncompressed)".
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

/// RFC 6066 §3: "The `ServerNameList` MUST NOT contain more than one name of the same `name_type`." A name of another type
/// has a length that nobody knows, so nothing after it can be read.
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

/// RFC 7301 §3.1: names of protocols, each behind its length in one octet; GREASE left out, and of other names than ours
/// those that are too many to be shown.
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

/// RFC 8701: values that clients send only to see whether servers pass over what they do not know.
fn without_grease(values: impl Iterator<Item = u16>) -> impl Iterator<Item = u16> {
    values.filter(|value| {
        let [high, low] = value.to_be_bytes();
        high != low || low & 0x0f != 0x0a
    })
}

/// The signalling values of RFC 5746 and RFC 7507, which are no cipher suites.
fn is_signal(suite: u16) -> bool {
    matches!(suite, 0x00ff | 0x5600)
}

/// The bytes that are still to be read. Each method takes what it needs, or nothing at all if it is not there.
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

    /// A vector whose length stands before it in one octet (RFC 8446 §3.4).
    fn vector8(&mut self) -> Option<Self> {
        let length = self.u8()?;
        self.take(length.into()).map(Self)
    }

    /// A vector whose length stands before it in two octets.
    fn vector16(&mut self) -> Option<Self> {
        let length = self.u16()?;
        self.take(length.into()).map(Self)
    }

    /// All that is left, as numbers of two octets each.
    fn u16s(self) -> Option<impl Iterator<Item = u16>> {
        let (pairs, rest) = self.0.as_chunks::<2>();
        rest.is_empty().then(|| pairs.iter().copied().map(u16::from_be_bytes))
    }
}
