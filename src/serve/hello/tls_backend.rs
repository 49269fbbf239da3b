//! Who serves a client: rustls whenever it can, and for those whom it cannot, what it would take.

use rustls::{CipherSuite, NamedGroup, ProtocolVersion, SupportedCipherSuite};

use super::{ClientHelloFacts, KeyExchange, ServerNameSent};
use crate::certificate::ConstituencyCertificates;
use crate::constituency::TlsLevel;
use crate::serve::openssl::{GROUPS, LEGACY_SCHEME, SCHEMES, SUITES};
use crate::serve::site::TlsMaterial;

/// What a client sent as the name of a host is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what was sent as server name is no name")]
pub struct UnusableName;

impl ClientHelloFacts {
    /// Whether this client is for rustls, which shows one of `certificates`: it can serve the client, or whatever else
    /// is wrong with the offer is for it to say. Whoever offers TLS 1.3 is of our time, and is nobody else's.
    #[must_use]
    pub fn is_for_rustls(&self, certificates: &ConstituencyCertificates) -> bool {
        self.versions.contains(&ProtocolVersion::TLSv1_3) || self.is_served_in_tls12(certificates)
    }

    /// Whether rustls comes to an agreement in TLS 1.2: its own steps, with its own lists.
    fn is_served_in_tls12(&self, certificates: &ConstituencyCertificates) -> bool {
        let provider = TlsMaterial::provider();
        let (Some(schemes), Some(groups)) = (&self.signature_schemes, &self.groups) else { return false };
        let is_served = |group: &NamedGroup| {
            let ours = |ours: &&dyn rustls::crypto::SupportedKxGroup| {
                ours.name() == *group && ours.usable_for_version(ProtocolVersion::TLSv1_2)
            };
            provider.kx_groups.iter().any(ours)
        };
        let name = self.host().unwrap_or_default();
        let Some(certificate) = certificates.shown_to(name, schemes, &self.cipher_suites) else { return false };
        let agreed = provider.cipher_suites.iter().find_map(|suite| match suite {
            SupportedCipherSuite::Tls12(tls12)
                if suite.usable_for_signature_algorithm(certificate.key.algorithm())
                    && self.cipher_suites.contains(&suite.suite()) =>
            {
                Some(tls12)
            }
            _ => None,
        });
        self.versions.contains(&ProtocolVersion::TLSv1_2)
            && self.null_compression
            && self.uncompressed_points
            && groups.iter().any(is_served)
            && agreed.is_some_and(|suite| certificate.key.choose_scheme(&suite.resolve_sig_schemes(schemes)).is_some())
    }

    /// Whether this client speaks TLS, and no version that is younger than TLS 1.1.
    #[must_use]
    pub fn is_before_tls12(&self) -> bool {
        matches!(self.highest_version(), Some(ProtocolVersion::TLSv1_0 | ProtocolVersion::TLSv1_1))
    }

    /// The highest version of TLS that it offers, whether or not anybody knows it.
    pub(super) fn highest_version(&self) -> Option<ProtocolVersion> {
        let versions = self.versions.iter().copied().map(u16::from);
        versions.filter(|version| version >> 8 == 3).max().map(ProtocolVersion::from)
    }

    /// The least level at which this client is served by the old lane, which has an RSA certificate; `None` if it is at
    /// none.
    #[must_use]
    pub fn required_level(&self) -> Option<TlsLevel> {
        let level = match self.highest_version()? {
            ProtocolVersion::TLSv1_2 => self.signed_at()?,
            _ if self.is_before_tls12() => TlsLevel::Legacy,
            _ => return None,
        };
        let can_exchange_keys = |suite| !requires_group(suite) || self.takes_group();
        (self.null_compression && self.old_suites().any(can_exchange_keys)).then_some(level)
    }

    /// Whether this client speaks TLS 1.2 and knows no signature that is better than one with SHA-1.
    #[must_use]
    pub fn has_only_sha1(&self) -> bool {
        self.highest_version() == Some(ProtocolVersion::TLSv1_2) && self.signed_at() == Some(TlsLevel::Legacy)
    }

    /// The least level that has a signature of TLS 1.2 which this client knows; `None` if none has.
    pub(super) fn signed_at(&self) -> Option<TlsLevel> {
        // RFC 5246 §7.4.1.4.1: without the extension "behave as if client had sent the value {sha1,rsa}".
        let known = self.signature_schemes.as_deref().unwrap_or(&[LEGACY_SCHEME]);
        if known.iter().any(|scheme| SCHEMES.contains(scheme)) {
            return Some(TlsLevel::Compatible);
        }
        known.contains(&LEGACY_SCHEME).then_some(TlsLevel::Legacy)
    }

    /// The offered suites that the old lane has for this client's version: before TLS 1.2, the old ones.
    pub(super) fn old_suites(&self) -> impl Iterator<Item = CipherSuite> {
        let is_before_tls12 = self.is_before_tls12();
        let suites = SUITES.iter().filter(move |(_, name)| !is_before_tls12 || name.ends_with("-SHA"));
        suites.map(|(suite, _)| *suite).filter(|suite| self.cipher_suites.contains(suite))
    }

    /// Whether it has a curve of the old lane.
    pub(super) fn takes_group(&self) -> bool {
        let groups = self.groups.as_deref().unwrap_or_default();
        groups.iter().any(|group| GROUPS.contains(group)) && self.uncompressed_points
    }

    /// The name of the host that the client wants, as rustls would take it.
    ///
    /// # Errors
    /// If what it sent is no name: rustls' own alert says so.
    pub fn host(&self) -> Result<Option<&str>, UnusableName> {
        match &self.server_name {
            None | Some(ServerNameSent::Address) => Ok(None),
            Some(ServerNameSent::Host(name)) => Ok(Some(name)),
            Some(ServerNameSent::Unusable(_)) => Err(UnusableName),
        }
    }
}

/// Whether a suite of either lane agrees on keys by elliptic curves.
pub(super) fn requires_group(suite: CipherSuite) -> bool {
    matches!(KeyExchange::of(suite), KeyExchange::EcdheRsa | KeyExchange::EcdheEcdsa)
}
