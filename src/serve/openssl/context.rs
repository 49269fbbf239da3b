//! The configuration of OpenSSL: protocol versions, cipher suites, curves and signature schemes.

use std::sync::LazyLock;

use openssl::bn::BigNum;
use openssl::dh::Dh;
use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Params};
use openssl::ssl::{
    AlpnError, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslSessionCacheMode, SslVersion,
    select_next_proto,
};
use openssl::stack::Stack;
use openssl::x509::{X509, X509Name};
use rustls::ffdhe_groups::FFDHE2048;
use rustls::pki_types::CertificateDer;

use super::SUITES;
use crate::certificate::ServerCertificate;
use crate::constituency::TlsLevel;
use crate::serve::ALPN_PROTOCOLS;

/// [`GROUPS`](super::GROUPS) and [`SCHEMES`](super::SCHEMES) under OpenSSL's names. Device certificates may have keys
/// of other kinds than our RSA, so there are ECDSA schemes as well.
const GROUPS: &str = "X25519:P-256:P-384";
const SIGNATURES: &str = "rsa_pkcs1_sha256:rsa_pkcs1_sha384:rsa_pkcs1_sha512:\
     rsa_pss_rsae_sha256:rsa_pss_rsae_sha384:rsa_pss_rsae_sha512:\
     ecdsa_secp256r1_sha256:ecdsa_secp384r1_sha384:ecdsa_secp521r1_sha512";
/// [`LEGACY_SCHEME`](super::LEGACY_SCHEME), last: used with a client that supports nothing better.
const LEGACY_SIGNATURE: &str = ":rsa_pkcs1_sha1";
/// [`ALPN_PROTOCOLS`] in wire format, each with its length prefix (RFC 7301 §3.1).
static ALPN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let framed = |protocol: &str| [&[u8::try_from(protocol.len()).unwrap_or(0)], protocol.as_bytes()].concat();
    ALPN_PROTOCOLS.into_iter().flat_map(framed).collect()
});
/// How many CAs OpenSSL may put into a chain; our callback verifies them.
const MAX_CHAIN_CAS: u32 = 8;

/// The parameters of a context.
#[derive(Debug)]
pub(super) struct ContextConfig {
    pub(super) level: TlsLevel,
    /// The CAs that the server names to clients as issuers of device certificates.
    pub(super) authorities: Vec<CertificateDer<'static>>,
    /// Unique to this backend, so that a session of one can never be resumed in another. Sessions are disabled as well.
    pub(super) id: [u8; 16],
}

impl ContextConfig {
    /// Builds a context that presents `certificate`.
    pub(super) fn build(&self, certificate: &ServerCertificate) -> Result<SslContext, ErrorStack> {
        let mut context = SslContext::builder(SslMethod::tls_server())?;
        self.set_protocol(&mut context)?;
        disable_sessions(&mut context, &self.id)?;
        set_certificate(&mut context, certificate)?;
        let mut hints = Stack::new()?;
        for authority in &self.authorities {
            hints.push(X509Name::from_der(&X509::from_der(authority)?.subject_name().to_der()?)?)?;
        }
        context.set_client_ca_list(hints);
        context.set_verify_depth(MAX_CHAIN_CAS);
        context.set_alpn_select_callback(|_, offered| select_next_proto(&ALPN, offered).ok_or(AlpnError::ALERT_FATAL));
        // A write that had to wait is retried from another buffer. Idle connections release their buffers.
        context
            .set_mode(SslMode::ACCEPT_MOVING_WRITE_BUFFER | SslMode::ENABLE_PARTIAL_WRITE | SslMode::RELEASE_BUFFERS);
        context.set_read_ahead(true);
        Ok(context.build())
    }

    fn set_protocol(&self, context: &mut SslContextBuilder) -> Result<(), ErrorStack> {
        // TLS 1.0 and 1.1 sign with MD5 and SHA-1, and so do TLS 1.2 clients that support nothing better; without them
        // the usual security level 2 applies. Set it first: OpenSSL checks later settings against it.
        let (security, oldest, legacy_signature) = match self.level {
            TlsLevel::Legacy => (0, SslVersion::TLS1, LEGACY_SIGNATURE),
            TlsLevel::Modern | TlsLevel::Compatible => (2, SslVersion::TLS1_2, ""),
        };
        context.set_security_level(security);
        context.set_min_proto_version(Some(oldest))?;
        // Clients that offer TLS 1.3 never reach OpenSSL. The maximum tells OpenSSL what this server supports: it then
        // marks the server's random against downgrades (RFC 8446 §4.1.3) and detects a fallback from TLS 1.3 (RFC
        // 7507).
        context.set_max_proto_version(Some(SslVersion::TLS1_3))?;
        context.set_cipher_list(&SUITES.map(|(_, name)| name).join(":"))?;
        context.set_groups_list(GROUPS)?;
        context.set_sigalgs_list(&format!("{SIGNATURES}{legacy_signature}"))?;
        context.set_tmp_dh(&*ffdhe2048()?)?;
        context.set_options(
            SslOptions::CIPHER_SERVER_PREFERENCE
                | SslOptions::NO_COMPRESSION
                | SslOptions::NO_RENEGOTIATION
                | SslOptions::NO_SSLV3
                | SslOptions::NO_TICKET,
        );
        Ok(())
    }
}

fn disable_sessions(context: &mut SslContextBuilder, id: &[u8]) -> Result<(), ErrorStack> {
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    context.set_session_id_context(id)?;
    context.set_num_tickets(0)
}

fn set_certificate(context: &mut SslContextBuilder, certificate: &ServerCertificate) -> Result<(), ErrorStack> {
    for (place, der) in certificate.certified().cert.iter().enumerate() {
        let der = X509::from_der(der)?;
        if place == 0 { context.set_certificate(&der)? } else { context.add_extra_chain_cert(der)? }
    }
    // The caller selected a certificate with an RSA key; without one, this fails.
    context.set_private_key(&*PKey::private_key_from_der(certificate.rsa_key().unwrap_or_default())?)?;
    context.check_private_key()
}

/// The standard 2048-bit group of RFC 7919 appendix A.1.
fn ffdhe2048() -> Result<Dh<Params>, ErrorStack> {
    Dh::from_pqg(BigNum::from_slice(FFDHE2048.p)?, None, BigNum::from_slice(FFDHE2048.g)?)
}
