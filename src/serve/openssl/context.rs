//! What OpenSSL may do in the old lane.

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

/// The curves and signatures of [`GROUPS`](super::GROUPS) and [`SCHEMES`](super::SCHEMES), as OpenSSL calls them; device
/// certificates may have keys of other kinds than ours.
const GROUPS: &str = "X25519:P-256:P-384";
const SIGNATURES: &str = "rsa_pkcs1_sha256:rsa_pkcs1_sha384:rsa_pkcs1_sha512:\
     rsa_pss_rsae_sha256:rsa_pss_rsae_sha384:rsa_pss_rsae_sha512:\
     ecdsa_secp256r1_sha256:ecdsa_secp384r1_sha384:ecdsa_secp521r1_sha512";
/// [`LEGACY_SCHEME`](super::LEGACY_SCHEME), last: whoever knows anything better signs and is signed to with that.
const LEGACY_SIGNATURE: &str = ":rsa_pkcs1_sha1";
/// [`ALPN_PROTOCOLS`] as they stand on the wire, each behind its length (RFC 7301 §3.1).
static ALPN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let framed = |protocol: &str| [&[u8::try_from(protocol.len()).unwrap_or(0)], protocol.as_bytes()].concat();
    ALPN_PROTOCOLS.into_iter().flat_map(framed).collect()
});
/// How many CAs OpenSSL may string together; it is we who judge them.
const DEPTH: u32 = 8;

/// What a context is made of.
#[derive(Debug)]
pub(super) struct ContextConfig {
    pub(super) level: TlsLevel,
    /// The CAs below which we want device certificates.
    pub(super) authorities: Vec<CertificateDer<'static>>,
    /// What no other context has: a session of one must never be one of another. None is ever made, either.
    pub(super) id: [u8; 16],
}

impl ContextConfig {
    /// A context that presents `certificate`.
    pub(super) fn build(&self, certificate: &ServerCertificate) -> Result<SslContext, ErrorStack> {
        let mut context = SslContext::builder(SslMethod::tls_server())?;
        self.set_protocol(&mut context)?;
        forget_sessions(&mut context, &self.id)?;
        present(&mut context, certificate)?;
        let mut hints = Stack::new()?;
        for authority in &self.authorities {
            hints.push(X509Name::from_der(&X509::from_der(authority)?.subject_name().to_der()?)?)?;
        }
        context.set_client_ca_list(hints);
        context.set_verify_depth(DEPTH);
        context.set_alpn_select_callback(|_, offered| select_next_proto(&ALPN, offered).ok_or(AlpnError::ALERT_FATAL));
        // A write that has to wait comes again from another buffer; a connection at rest keeps none.
        context
            .set_mode(SslMode::ACCEPT_MOVING_WRITE_BUFFER | SslMode::ENABLE_PARTIAL_WRITE | SslMode::RELEASE_BUFFERS);
        context.set_read_ahead(true);
        Ok(context.build())
    }

    fn set_protocol(&self, context: &mut SslContextBuilder) -> Result<(), ErrorStack> {
        // TLS 1.0 and 1.1 sign with MD5 and SHA-1, and so do clients of TLS 1.2 that know nothing better; without them the
        // usual level holds. First, because what is set afterwards is measured by it.
        let (security, oldest, worst) = match self.level {
            TlsLevel::Legacy => (0, SslVersion::TLS1, LEGACY_SIGNATURE),
            TlsLevel::Modern | TlsLevel::Compatible => (2, SslVersion::TLS1_2, ""),
        };
        context.set_security_level(security);
        context.set_min_proto_version(Some(oldest))?;
        // Nobody who offers TLS 1.3 comes here. It is named so that OpenSSL knows what this server can do: it then marks
        // the server's random against downgrades (RFC 8446 §4.1.3) and takes a fallback from TLS 1.3 for one (RFC 7507).
        context.set_max_proto_version(Some(SslVersion::TLS1_3))?;
        context.set_cipher_list(&SUITES.map(|(_, name)| name).join(":"))?;
        context.set_groups_list(GROUPS)?;
        context.set_sigalgs_list(&format!("{SIGNATURES}{worst}"))?;
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

fn forget_sessions(context: &mut SslContextBuilder, id: &[u8]) -> Result<(), ErrorStack> {
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    context.set_session_id_context(id)?;
    context.set_num_tickets(0)
}

fn present(context: &mut SslContextBuilder, certificate: &ServerCertificate) -> Result<(), ErrorStack> {
    for (place, der) in certificate.certified().cert.iter().enumerate() {
        let der = X509::from_der(der)?;
        if place == 0 { context.set_certificate(&der)? } else { context.add_extra_chain_cert(der)? }
    }
    // Whoever chose the certificate looked for one with its key; without one the check says so.
    context.set_private_key(&*PKey::private_key_from_der(certificate.rsa_key().unwrap_or_default())?)?;
    context.check_private_key()
}

/// The group of RFC 7919 appendix A.1: 2048 bits, and nobody's own invention.
fn ffdhe2048() -> Result<Dh<Params>, ErrorStack> {
    Dh::from_pqg(BigNum::from_slice(FFDHE2048.p)?, None, BigNum::from_slice(FFDHE2048.g)?)
}
