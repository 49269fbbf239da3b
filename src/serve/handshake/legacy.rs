//! Clients that rustls cannot serve: the OpenSSL handshake, or the reason for the rejection and its remedy.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{CLOSED, HandshakeContext, Hello, RejectedHandshake, TlsClient, broken_off, identity_of, is_tolerated};
use crate::certificate::ServerCertificate;
use crate::clock;
use crate::constituency::TlsLevel;
use crate::identity::trust::ChainRefusal;
use crate::metrics::RefusalKind;
use crate::serve::access_log::{ServedTls, TlsResult};
use crate::serve::hello::ClientHelloFacts;
use crate::serve::openssl::{FailedLegacyHandshake, LegacyHandshake, LegacyTls, LegacyTlsFailure};
use crate::serve::tls_stream::ClientTlsStream;

/// The OpenSSL backend and its RSA certificate, if rustls cannot serve this client and the constituency's TLS level
/// allows OpenSSL to.
pub(super) fn backend<'a>(hello: &Hello, context: &HandshakeContext<'a>) -> Option<(&'a LegacyTls, ServerCertificate)> {
    let backend = context.generation.legacy_tls.as_ref()?;
    let facts = hello.facts.as_ref().ok()?;
    if facts.is_for_rustls(&context.generation.certificates) || facts.required_level()? > context.generation.level {
        return None;
    }
    Some((backend, context.rsa()?))
}

/// Runs the handshake with OpenSSL, which reads the `hello` again.
pub(super) async fn accept_legacy_tls<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    hello: Hello,
    backend: &LegacyTls,
    certificate: &ServerCertificate,
    context: &HandshakeContext<'_>,
) -> Result<(ClientTlsStream<S>, TlsClient), RejectedHandshake> {
    let Hello { record, facts, .. } = hello;
    let has_only_sha1 = facts.as_ref().is_ok_and(ClientHelloFacts::has_only_sha1);
    let (constituency, generation) = (Arc::clone(context.constituency), Arc::clone(context.generation));
    let verify = move |chain: &[CertificateDer<'static>]| {
        let verdict = generation.examine(&constituency, chain, clock::unix_seconds(clock::now()));
        verdict.unwrap_or_else(|| Err(ChainRefusal::NoCertificate.into()))
    };
    let by_openssl = |refused| RejectedHandshake { is_openssl: true, ..refused };
    let LegacyHandshake { result, verdict } = backend.accept(stream, record, certificate, verify).await;
    let stream = match result {
        Ok(stream) => stream,
        Err(FailedLegacyHandshake { failure, stream }) => {
            let summary =
                |facts: ClientHelloFacts| facts.alpn_incompatibility().unwrap_or_else(|| facts.legacy_summary());
            let offered = facts.map_or_else(|no_hello| no_hello.to_string(), summary);
            let refused = by_openssl(match verdict {
                Some(Err(certificate)) => context.refused_certificate(certificate),
                _ => {
                    let (kind, reason) = explain(failure, &offered);
                    context.refused(kind, reason)
                }
            });
            return Err(match stream {
                Some(stream) => refused.with_close(stream),
                None => refused,
            });
        }
    };
    let Some((version, suite)) = stream.agreed() else {
        let reason = "OpenSSL negotiated a TLS version or cipher suite that provost does not allow";
        return Err(by_openssl(context.refused(RefusalKind::UnsupportedTls, reason.to_owned())));
    };
    // If our verify callback never ran, the client is unauthenticated, whatever OpenSSL reports.
    let verdict =
        context.generation.verifier.as_ref().map(|_| verdict.unwrap_or(Err(ChainRefusal::NoCertificate.into())));
    let identity = identity_of(verdict).map_err(|refused| by_openssl(context.refused_certificate(refused)))?;
    let is_tolerated = is_tolerated(&identity);
    let peer = TlsClient {
        constituency: context.constituency.name.clone(),
        generation: Arc::clone(context.generation),
        has_sni: context.server_name.is_some(),
        identity: Ok(identity),
        tls: Some(TlsResult::Agreed(ServedTls { version, suite, is_tolerated, has_only_sha1 })),
        is_resumed: false,
    };
    Ok((ClientTlsStream::Openssl(stream), peer))
}

/// The kind and reason of a failure.
fn explain(failure: LegacyTlsFailure, offered: &str) -> (RefusalKind, String) {
    match failure {
        LegacyTlsFailure::NoCertificate => (RefusalKind::NoCertificate, ChainRefusal::NoCertificate.to_string()),
        LegacyTlsFailure::Alert(alert) => (RefusalKind::ClientAlert, broken_off(alert)),
        LegacyTlsFailure::Closed => (RefusalKind::Disconnected, CLOSED.to_owned()),
        LegacyTlsFailure::Broken(reason) => (RefusalKind::Disconnected, reason),
        LegacyTlsFailure::Unable(reason) => {
            (RefusalKind::NoServerCertificate, format!("OpenSSL cannot be set up: {reason}"))
        }
        LegacyTlsFailure::Other(reason) => (RefusalKind::UnsupportedTls, format!("{offered} (OpenSSL: {reason})")),
    }
}

/// Whether the client's TLS versions are all too old for its constituency.
pub(super) fn is_too_old(facts: &ClientHelloFacts, context: &HandshakeContext<'_>) -> bool {
    let accepts_old = context.generation.level == TlsLevel::Legacy && context.rsa().is_some();
    facts.is_before_tls12() && !accepts_old
}

/// Why a rejected client is incompatible, and a remedy to append: the lowest TLS level that accepts it, the missing
/// certificate, or that no setting helps.
pub(super) fn incompatibility_and_remedy(
    facts: &ClientHelloFacts,
    context: &HandshakeContext<'_>,
) -> (Option<String>, String) {
    let level = context.generation.level;
    if facts.is_for_rustls(&context.generation.certificates) {
        return (facts.rustls_incompatibility(), String::new());
    }
    let Some(needed) = facts.required_level() else {
        return match facts.incompatibility(TlsLevel::Legacy) {
            Some(incompatibility) => (Some(incompatibility), ", which no setting accepts".to_owned()),
            None => (facts.rustls_incompatibility(), String::new()),
        };
    };
    // If only the certificate is missing: why the next lower level would not accept it.
    let below = if needed == TlsLevel::Legacy { TlsLevel::Compatible } else { TlsLevel::Modern };
    let (incompatibility, has_rsa) = (facts.incompatibility(level.min(below)), context.rsa().is_some());
    let of = if TlsLevel::HAS_LEGACY { "" } else { ", in a provost built with OpenSSL," };
    let name = &context.constituency.name;
    let remedy = match needed > level {
        true if has_rsa => format!("; \"tls\": \"{}\" of {name}{of} would accept it", needed.as_str()),
        true => format!("; \"tls\": \"{}\" of {name} and an RSA server certificate would accept it", needed.as_str()),
        false if has_rsa => String::new(),
        false => "; legacy TLS needs an RSA server certificate, and there is none".to_owned(),
    };
    (incompatibility, remedy)
}
