//! Explains to an operator why a client is rejected at a TLS level.

use std::collections::BTreeSet;

use rustls::{CipherSuite, ProtocolVersion, SignatureScheme};

use super::tls_backend::requires_group;
use super::{ClientHelloFacts, KeyExchange, is_tls13, listed, version_name};
use crate::constituency::TlsLevel;
use crate::wording::parameter_name;

const TLS12: ProtocolVersion = ProtocolVersion::TLSv1_2;

/// Names for suites that neither backend serves, by a part of the IANA name; the most serious defect first.
const KINDS: [(&str, &str); 19] = [
    ("_anon_", "anonymous"),
    ("EXPORT", "EXPORT"),
    ("NULL", "NULL"),
    ("_RC4_", "RC4"),
    ("_3DES_", "3DES"),
    ("_DES_", "DES"),
    ("_IDEA_", "IDEA"),
    ("_SEED_", "SEED"),
    ("_CAMELLIA_", "CAMELLIA"),
    ("_ARIA_", "ARIA"),
    ("_DSS_", "DSS"),
    ("PSK_", "PSK"),
    ("_SRP_", "SRP"),
    ("_KRB5_", "Kerberos"),
    ("TLS_DH_", "static Diffie-Hellman"),
    ("TLS_ECDH_", "static Diffie-Hellman"),
    ("_CCM", "CCM"),
    ("_ECDSA_", "ECDSA"),
    ("", "other"),
];

impl ClientHelloFacts {
    /// The first reason why this client cannot be served at `level`: by rustls, or above the level `modern` by OpenSSL.
    /// `None` if its offer is not the reason.
    #[must_use]
    pub fn incompatibility(&self, level: TlsLevel) -> Option<String> {
        match self.required_level() {
            Some(required) if required <= level => None,
            Some(_) if self.has_only_sha1() => {
                let only = self.only_signatures();
                let cipher = if level == TlsLevel::Modern { self.cipher_incompatibility(TLS12) } else { None };
                Some(cipher.map_or_else(|| format!("offered {only}"), |cipher| format!("{cipher}, and {only}")))
            }
            None if level > TlsLevel::Modern => self.openssl_incompatibility(),
            _ => self.rustls_incompatibility(),
        }
    }

    /// Why OpenSSL serves this client at no level; `None` if the offer is not the reason, or includes TLS 1.3.
    fn openssl_incompatibility(&self) -> Option<String> {
        let version = match self.highest_version() {
            None | Some(ProtocolVersion::SSLv3) => return self.rustls_incompatibility(),
            Some(version) if self.is_before_tls12() || version == TLS12 => version,
            Some(_) => return None,
        };
        let is_tls12 = version == TLS12;
        if self.legacy_suites().next().is_none() {
            // Only suites of rustls are left, or none.
            return if !is_tls12 || self.served_suites(version).next().is_none() {
                Some(self.bad_suites(version))
            } else if self.has_only_sha1() {
                Some(format!("offered {} with modern cipher suites", self.only_signatures()))
            } else {
                self.rustls_incompatibility()
            };
        }
        if self.legacy_suites().all(requires_group) && !self.offers_supported_group() {
            return self.group_incompatibility(TLS12);
        }
        if is_tls12 && self.signature_level().is_none() {
            return Some(format!("offered {}", self.only_signatures()));
        }
        (!self.null_compression).then(|| "offered only compressed TLS".to_owned())
    }

    /// Summarizes the part of the offer that OpenSSL can serve.
    #[must_use]
    pub fn legacy_summary(&self) -> String {
        let versions = listed(self.versions.iter().copied().map(version_name));
        let families: BTreeSet<KeyExchange> = self.legacy_suites().map(KeyExchange::of).collect();
        format!("offered {versions} with {} key exchange", listed(families))
    }

    /// Names the offered TLS 1.2 signatures, none of which is good enough.
    fn only_signatures(&self) -> String {
        let Some(schemes) = &self.signature_schemes else {
            return "only SHA-1 signatures (no signature_algorithms extension)".to_owned();
        };
        if schemes[..] == [SignatureScheme::RSA_PKCS1_SHA1] {
            return "only SHA-1 signatures".to_owned();
        }
        format!("only {} signatures", listed(schemes.iter().map(|it| signature_name(*it))))
    }

    /// Names the suites of a client of `version` that offers none that we serve.
    fn bad_suites(&self, version: ProtocolVersion) -> String {
        let mut kinds: Vec<&str> = Vec::new();
        for suite in &self.cipher_suites {
            let kind = kind(*suite, version);
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        if kinds.is_empty() {
            return "offered no cipher suite".to_owned();
        }
        let is_newer = kinds.iter().any(|kind| kind.starts_with("TLS "));
        let of = if is_newer { format!(" in {}", version_name(version)) } else { String::new() };
        format!("offered only {} cipher suites{of}", listed(kinds))
    }
}

/// Names the defect of a suite for a client of `version`. Suites that are new in TLS 1.2 end in another hash.
fn kind(suite: CipherSuite, version: ProtocolVersion) -> &'static str {
    let Some(name) = suite.as_str() else { return "unknown" };
    let is_newer = version != TLS12 && (name.ends_with("_SHA256") || name.ends_with("_SHA384"));
    match KINDS.iter().find(|(part, _)| name.contains(part)).map_or("other", |(_, kind)| kind) {
        _ if is_tls13(suite) => "TLS 1.3",
        "ECDSA" | "other" if is_newer => "TLS 1.2",
        kind => kind,
    }
}

/// The OpenSSL name of a TLS 1.2 signature scheme (RFC 5246 §7.4.1.4.1); other schemes keep their IANA name.
fn signature_name(scheme: SignatureScheme) -> String {
    let [hash, signature] = u16::from(scheme).to_be_bytes();
    let signature = match signature {
        1 => "RSA",
        2 => "DSA",
        3 => "ECDSA",
        _ => return parameter_name(scheme),
    };
    let hash = match hash {
        1 => "MD5",
        2 => "SHA1",
        3 => "SHA224",
        4 => "SHA256",
        5 => "SHA384",
        6 => "SHA512",
        _ => return parameter_name(scheme),
    };
    format!("{signature}+{hash}")
}
