//! Decides which TLS backend serves a client: rustls if it can, otherwise OpenSSL from some TLS level on.

use rustls::{CipherSuite, NamedGroup, ProtocolVersion, SupportedCipherSuite};

use super::{ClientHelloFacts, KeyExchange, ServerNameSent};
use crate::certificate::ConstituencyCertificates;
use crate::constituency::TlsLevel;
use crate::serve::openssl::{GROUPS, LEGACY_SCHEME, SCHEMES, SUITES};
use crate::serve::site::TlsMaterial;

/// The client sent a `host_name` that is not a valid name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server name in the ClientHello is invalid")]
pub struct InvalidServerName;

impl ClientHelloFacts {
    /// Whether this client goes to rustls, with one of `certificates`: it offers TLS 1.3, or rustls can serve it in TLS
    /// 1.2. If its TLS 1.3 offer is not acceptable, rustls rejects it.
    #[must_use]
    pub fn is_for_rustls(&self, certificates: &ConstituencyCertificates) -> bool {
        self.versions.contains(&ProtocolVersion::TLSv1_3) || self.is_served_in_tls12(certificates)
    }

    /// Whether rustls can negotiate TLS 1.2 with this client. Follows the steps and lists of rustls.
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

    /// Whether this client's highest TLS version is 1.0 or 1.1.
    #[must_use]
    pub fn is_before_tls12(&self) -> bool {
        matches!(self.highest_version(), Some(ProtocolVersion::TLSv1_0 | ProtocolVersion::TLSv1_1))
    }

    /// The highest TLS version that the client offers, even an unknown one.
    pub(super) fn highest_version(&self) -> Option<ProtocolVersion> {
        let versions = self.versions.iter().copied().map(u16::from);
        versions.filter(|version| version >> 8 == 3).max().map(ProtocolVersion::from)
    }

    /// The lowest TLS level at which OpenSSL serves this client, given an RSA certificate; `None` if no level does.
    #[must_use]
    pub fn required_level(&self) -> Option<TlsLevel> {
        let level = match self.highest_version()? {
            ProtocolVersion::TLSv1_2 => self.signature_level()?,
            _ if self.is_before_tls12() => TlsLevel::Legacy,
            _ => return None,
        };
        let can_exchange_keys = |suite| !requires_group(suite) || self.offers_supported_group();
        (self.null_compression && self.legacy_suites().any(can_exchange_keys)).then_some(level)
    }

    /// Whether this client's highest version is TLS 1.2, and SHA-1 signatures are the best that it supports.
    #[must_use]
    pub fn has_only_sha1(&self) -> bool {
        self.highest_version() == Some(ProtocolVersion::TLSv1_2) && self.signature_level() == Some(TlsLevel::Legacy)
    }

    /// The lowest TLS level with a TLS 1.2 signature scheme that this client supports; `None` if there is none.
    pub(super) fn signature_level(&self) -> Option<TlsLevel> {
        // RFC 5246 §7.4.1.4.1: without the extension "behave as if client had sent the value {sha1,rsa}".
        let known = self.signature_schemes.as_deref().unwrap_or(&[LEGACY_SCHEME]);
        if known.iter().any(|scheme| SCHEMES.contains(scheme)) {
            return Some(TlsLevel::Compatible);
        }
        known.contains(&LEGACY_SCHEME).then_some(TlsLevel::Legacy)
    }

    /// The offered suites that OpenSSL serves for this client's version. Before TLS 1.2 these are the `-SHA` suites
    /// only.
    pub(super) fn legacy_suites(&self) -> impl Iterator<Item = CipherSuite> {
        let is_before_tls12 = self.is_before_tls12();
        let suites = SUITES.iter().filter(move |(_, name)| !is_before_tls12 || name.ends_with("-SHA"));
        suites.map(|(suite, _)| *suite).filter(|suite| self.cipher_suites.contains(suite))
    }

    /// Whether the client supports one of our curves for OpenSSL ([`GROUPS`]).
    pub(super) fn offers_supported_group(&self) -> bool {
        let groups = self.groups.as_deref().unwrap_or_default();
        groups.iter().any(|group| GROUPS.contains(group)) && self.uncompressed_points
    }

    /// The host name that the client asks for, as rustls reads it.
    ///
    /// # Errors
    /// If the client sent an invalid name. rustls then sends its own alert.
    pub fn host(&self) -> Result<Option<&str>, InvalidServerName> {
        match &self.server_name {
            None | Some(ServerNameSent::Address) => Ok(None),
            Some(ServerNameSent::Host(name)) => Ok(Some(name)),
            Some(ServerNameSent::Unusable(_)) => Err(InvalidServerName),
        }
    }
}

/// Whether a suite of either backend needs an elliptic curve.
pub(super) fn requires_group(suite: CipherSuite) -> bool {
    matches!(KeyExchange::of(suite), KeyExchange::EcdheRsa | KeyExchange::EcdheEcdsa)
}
