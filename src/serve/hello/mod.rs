//! Parses a client's offer from the raw bytes of its ClientHello.
//!
//! rustls rejects a client that it cannot serve before it shows what the client offered, so an operator would learn
//! only that "the handshake failed". This module therefore parses the same bytes a second time:
//!
//! 1. [`reader`] reassembles the handshake message from its records; [`wire`] parses the fields and knows nothing of
//!    our requirements.
//! 2. [`ClientHelloFacts`] holds the parsed fields.
//! 3. [`tls_backend`] decides whether rustls can serve the client, and if not, which TLS level it needs.
//! 4. [`ClientHelloFacts::rustls_incompatibility`] names the first thing that rustls cannot serve, in the order in which
//!    a phone's owner can fix it: version, key exchange, cipher, group, signature.
//!    [`ClientHelloFacts::incompatibility`] names the reason for a rejection at a TLS level, where OpenSSL may serve.
//!
//! Pure, and safe on hostile bytes: nothing panics.

mod incompatibility;
mod reader;
mod tls_backend;
mod wire;

use std::collections::BTreeSet;
use std::fmt;

use rustls::pki_types::ServerName;
use rustls::{CipherSuite, NamedGroup, ProtocolVersion, SignatureScheme};

use super::ALPN_PROTOCOLS;
use super::site::TlsMaterial;
use crate::wording::parameter_name;

pub use reader::HelloReader;
pub use tls_backend::InvalidServerName;
pub use wire::{HELLO_LIMIT, NoClientHello};

/// The log names at most this many entries of a client's list.
const SHOWN: usize = 8;

/// The key exchange of a cipher suite, and the key that signs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyExchange {
    /// A TLS 1.3 suite; groups and signatures are negotiated separately (RFC 8446 appendix B.4).
    Tls13,
    /// Ephemeral elliptic curves, signed by an ECDSA certificate (RFC 8422).
    EcdheEcdsa,
    /// Ephemeral elliptic curves, signed by an RSA certificate (RFC 8422).
    EcdheRsa,
    /// Ephemeral finite-field Diffie-Hellman, signed by RSA or DSS.
    Dhe,
    /// The client encrypts the secret to the server's RSA key: no forward secrecy.
    Rsa,
    /// Static or anonymous Diffie-Hellman, pre-shared keys, Kerberos, and unknown suites.
    Other,
}

/// The offer of one ClientHello (RFC 8446 §4.1.2, RFC 5246 §7.4.1.2). Every list is in the client's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHelloFacts {
    /// `supported_versions`, or only `legacy_version` if the client sends no such extension; without GREASE.
    pub versions: Vec<ProtocolVersion>,
    /// The `host_name` of SNI; `None` if the extension is missing.
    pub server_name: Option<ServerNameSent>,
    /// The cipher suites, without signaling values and GREASE.
    pub cipher_suites: Vec<CipherSuite>,
    /// `supported_groups`; `None` if the extension is missing.
    pub groups: Option<Vec<NamedGroup>>,
    /// `signature_algorithms`; `None` if the extension is missing.
    pub signature_schemes: Option<Vec<SignatureScheme>>,
    /// Whether the client sent `extended_master_secret` (RFC 7627).
    pub extended_master_secret: bool,
    /// Whether the client offers null compression, as every client must.
    pub null_compression: bool,
    /// Whether the client accepts uncompressed elliptic-curve points.
    pub uncompressed_points: bool,
    /// The protocols of ALPN (RFC 7301), escaped; `None` if the extension is missing.
    pub alpn: Option<Vec<String>>,
}

/// The `host_name` that a client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerNameSent {
    /// A host name, in lower case.
    Host(String),
    /// An IP address. RFC 6066 §3 does not permit it, so it is treated as no name.
    Address,
    /// Neither; escaped for display.
    Unusable(String),
}

impl ServerNameSent {
    /// Classifies the name as rustls does.
    fn of(name: &[u8]) -> Self {
        match ServerName::try_from(name) {
            Ok(ServerName::DnsName(name)) => Self::Host(name.as_ref().to_ascii_lowercase()),
            Ok(ServerName::IpAddress(_)) => Self::Address,
            _ => Self::Unusable(name.escape_ascii().to_string()),
        }
    }
}

impl ClientHelloFacts {
    /// Parses the first bytes of a client, in whole records of any size. Bytes after the ClientHello are ignored.
    ///
    /// # Errors
    /// If it is not a ClientHello.
    pub fn read(raw: &[u8]) -> Result<Self, NoClientHello> {
        let mut reader = HelloReader::default();
        if reader.push(raw)? { reader.facts() } else { Err(reader.interrupted()) }
    }

    /// The sentence for the log: why this client cannot be served, or else its offer.
    #[must_use]
    pub fn offered(&self) -> String {
        self.rustls_incompatibility().unwrap_or_else(|| self.summary())
    }

    /// The first reason why rustls cannot serve this client; `None` if rustls can serve it.
    #[must_use]
    pub fn rustls_incompatibility(&self) -> Option<String> {
        let Some(version) = self.served_version() else {
            return Some(match self.versions.as_slice() {
                [] => "offered no known TLS version".to_owned(),
                versions => format!("offered only {}", listed(versions.iter().copied().map(version_name))),
            });
        };
        self.cipher_incompatibility(version)
            .or_else(|| self.group_incompatibility(version))
            .or_else(|| self.signature_incompatibility(version))
            .or_else(|| (!self.null_compression).then(|| "offered only compressed TLS".to_owned()))
            .or_else(|| self.alpn_incompatibility())
    }

    /// The reason for rejecting a client whose ALPN list has none of our protocols.
    #[must_use]
    pub fn alpn_incompatibility(&self) -> Option<String> {
        let offered = self.alpn.as_ref()?;
        let is_ours = |protocol: &String| ALPN_PROTOCOLS.contains(&protocol.as_str());
        (!offered.iter().any(is_ours)).then(|| {
            let ours = ALPN_PROTOCOLS.join(" and ");
            format!("offered only {} as application protocol (ALPN); this server supports {ours}", listed(offered))
        })
    }

    /// The key exchanges of the offered cipher suites, in the order of [`KeyExchange`].
    #[must_use]
    pub fn key_exchanges(&self) -> BTreeSet<KeyExchange> {
        self.cipher_suites.iter().copied().map(KeyExchange::of).collect()
    }

    /// Whether any offered cipher suite is an AEAD. Otherwise all are CBC or stream ciphers.
    #[must_use]
    pub fn offers_aead(&self) -> bool {
        self.cipher_suites.iter().copied().any(is_aead)
    }

    /// The version that rustls chooses: the highest, whatever the client prefers.
    fn served_version(&self) -> Option<ProtocolVersion> {
        [ProtocolVersion::TLSv1_3, ProtocolVersion::TLSv1_2].into_iter().find(|version| self.versions.contains(version))
    }

    fn cipher_incompatibility(&self, version: ProtocolVersion) -> Option<String> {
        if self.served_suites(version).next().is_some() {
            return None;
        }
        let of_version = |suite: &CipherSuite| is_tls13(*suite) == (version == ProtocolVersion::TLSv1_3);
        let suites: Vec<CipherSuite> = self.cipher_suites.iter().copied().filter(of_version).collect();
        let families: BTreeSet<KeyExchange> = suites.iter().copied().map(KeyExchange::of).collect();
        let ephemeral: Vec<CipherSuite> =
            suites.iter().copied().filter(|suite| KeyExchange::of(*suite).is_served()).collect();
        Some(if suites.is_empty() {
            format!("offered {} without any of its cipher suites", version_name(version))
        } else if ephemeral.is_empty() {
            format!("offered only {} key exchange", listed(families))
        } else if suites.iter().copied().all(is_cbc) {
            "offered only CBC cipher suites".to_owned()
        } else if ephemeral.iter().copied().all(is_cbc) {
            "offered ECDHE key exchange only with CBC cipher suites".to_owned()
        } else {
            format!("offered no cipher suite that is served ({})", listed(ephemeral.into_iter().map(suite_name)))
        })
    }

    fn group_incompatibility(&self, version: ProtocolVersion) -> Option<String> {
        let ours = &TlsMaterial::provider().kx_groups;
        let served =
            |group: &NamedGroup| ours.iter().any(|ours| ours.name() == *group && ours.usable_for_version(version));
        match self.groups.as_deref() {
            None | Some([]) => Some("offered no group for its key exchange".to_owned()),
            Some(groups) if groups.iter().any(served) => (version == ProtocolVersion::TLSv1_2
                && !self.uncompressed_points)
                .then(|| "does not support uncompressed points of elliptic curves".to_owned()),
            Some(groups) => Some(format!(
                "offered no group that is served ({})",
                listed(groups.iter().copied().map(parameter_name))
            )),
        }
    }

    fn signature_incompatibility(&self, version: ProtocolVersion) -> Option<String> {
        let Some(schemes) = self.signature_schemes.as_deref() else {
            // RFC 5246 §7.4.1.4.1: "If the client does not send the signature_algorithms extension, the server MUST
            // [assume] {sha1,rsa}".
            return Some("offered only SHA-1 signatures (no signature_algorithms extension)".to_owned());
        };
        // Collect the families first: a hello may hold 16 000 suites and as many schemes, too many to check every pair.
        let families: BTreeSet<KeyExchange> = self.served_suites(version).map(KeyExchange::of).collect();
        let served = |scheme: &SignatureScheme| families.iter().any(|family| family.accepts(*scheme));
        if schemes.iter().any(served) {
            return None;
        }
        // In TLS 1.2 the first octet of a scheme is its hash (RFC 5246 §7.4.1.4.1): 1 MD5, 2 SHA-1, 3 SHA-224.
        let hashes: BTreeSet<u8> = schemes.iter().map(|scheme| u16::from(*scheme).to_be_bytes()[0]).collect();
        Some(if hashes == BTreeSet::from([2]) {
            "offered only SHA-1 signatures".to_owned()
        } else if !hashes.is_empty() && hashes.iter().all(|hash| (1..=3).contains(hash)) {
            "offered only SHA-1, SHA-224 or MD5 signatures".to_owned()
        } else {
            let names = schemes.iter().copied().map(parameter_name);
            format!("offered no signature scheme that is served ({})", listed(names))
        })
    }

    /// The offered suites that our provider has for `version`. Asks the provider, so that the two cannot diverge.
    fn served_suites(&self, version: ProtocolVersion) -> impl Iterator<Item = CipherSuite> {
        let provider = TlsMaterial::provider();
        let ours = move |suite: &CipherSuite| {
            provider.cipher_suites.iter().any(|ours| ours.suite() == *suite && ours.version().version == version)
        };
        self.cipher_suites.iter().copied().filter(ours)
    }

    /// Summarizes the offer of a client that rustls could serve. A server certificate with the right kind of key may
    /// still be missing.
    fn summary(&self) -> String {
        let served: BTreeSet<KeyExchange> = [ProtocolVersion::TLSv1_3, ProtocolVersion::TLSv1_2]
            .into_iter()
            .filter(|version| self.versions.contains(version))
            .flat_map(|version| self.served_suites(version))
            .map(KeyExchange::of)
            .filter(|family| *family != KeyExchange::Tls13)
            .collect();
        let versions = listed(self.versions.iter().copied().map(version_name));
        if served.is_empty() {
            format!("offered {versions}")
        } else {
            format!("offered {versions} with {} key exchange", listed(served))
        }
    }
}

impl KeyExchange {
    /// Classifies a suite by its IANA name.
    #[must_use]
    pub fn of(suite: CipherSuite) -> Self {
        const FAMILIES: [(&str, KeyExchange); 9] = [
            ("TLS13_", KeyExchange::Tls13),
            ("TLS_ECDHE_ECDSA_", KeyExchange::EcdheEcdsa),
            ("TLS_ECDHE_RSA_", KeyExchange::EcdheRsa),
            ("TLS_DHE_RSA_", KeyExchange::Dhe),
            ("TLS_DHE_DSS_", KeyExchange::Dhe),
            ("TLS_RSA_PSK_", KeyExchange::Other),
            ("TLS_RSA_", KeyExchange::Rsa),
            ("SSL_RSA_", KeyExchange::Rsa),
            ("", KeyExchange::Other),
        ];
        let name = suite.as_str().unwrap_or_default();
        FAMILIES.iter().find(|(prefix, _)| name.starts_with(prefix)).map_or(Self::Other, |(_, family)| *family)
    }

    fn is_served(self) -> bool {
        matches!(self, Self::Tls13 | Self::EcdheEcdsa | Self::EcdheRsa)
    }

    /// Whether the server may sign this key exchange with `scheme`, and rustls can.
    fn accepts(self, scheme: SignatureScheme) -> bool {
        use SignatureScheme as S;
        let pss = matches!(scheme, S::RSA_PSS_SHA256 | S::RSA_PSS_SHA384 | S::RSA_PSS_SHA512);
        let pkcs1 = matches!(scheme, S::RSA_PKCS1_SHA256 | S::RSA_PKCS1_SHA384 | S::RSA_PKCS1_SHA512);
        let curve = matches!(
            scheme,
            S::ECDSA_NISTP256_SHA256 | S::ECDSA_NISTP384_SHA384 | S::ECDSA_NISTP521_SHA512 | S::ED25519
        );
        match self {
            // RFC 8446 §4.2.3: RSASSA-PKCS1-v1_5 is "not defined for use in signed TLS handshake messages".
            Self::Tls13 => pss || curve,
            Self::EcdheEcdsa => curve,
            Self::EcdheRsa => pss || pkcs1,
            Self::Dhe | Self::Rsa | Self::Other => false,
        }
    }
}

impl fmt::Display for KeyExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls13 => "TLS 1.3",
            Self::EcdheEcdsa => "ECDHE-ECDSA",
            Self::EcdheRsa => "ECDHE-RSA",
            Self::Dhe => "DHE",
            Self::Rsa => "RSA",
            Self::Other => "other",
        })
    }
}

fn is_tls13(suite: CipherSuite) -> bool {
    KeyExchange::of(suite) == KeyExchange::Tls13
}

fn is_aead(suite: CipherSuite) -> bool {
    let name = suite.as_str().unwrap_or_default();
    ["_GCM_", "_CCM", "_CHACHA20_POLY1305_"].iter().any(|mode| name.contains(mode))
}

fn is_cbc(suite: CipherSuite) -> bool {
    suite.as_str().is_some_and(|name| name.contains("_CBC_"))
}

fn suite_name(suite: CipherSuite) -> String {
    suite.as_str().map_or_else(|| format!("0x{:04x}", u16::from(suite)), ToOwned::to_owned)
}

fn version_name(version: ProtocolVersion) -> String {
    match version {
        ProtocolVersion::SSLv2 => "SSL 2.0".to_owned(),
        ProtocolVersion::SSLv3 => "SSL 3.0".to_owned(),
        ProtocolVersion::TLSv1_0 => "TLS 1.0".to_owned(),
        ProtocolVersion::TLSv1_1 => "TLS 1.1".to_owned(),
        ProtocolVersion::TLSv1_2 => "TLS 1.2".to_owned(),
        ProtocolVersion::TLSv1_3 => "TLS 1.3".to_owned(),
        other => format!("TLS version 0x{:04x}", u16::from(other)),
    }
}

/// Formats as `a`, `a and b`, or `a, b and c`. Cuts a long list, so that a client cannot make a log line grow.
fn listed<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let mut names: Vec<String> = items.into_iter().map(|item| item.to_string()).take(SHOWN + 1).collect();
    if names.len() > SHOWN {
        names.truncate(SHOWN);
        names.push("more".to_owned());
    }
    match names.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
    }
}

#[cfg(test)]
pub(super) mod tests;
