//! Phones that rustls cannot serve: who of them may come in by the old lane, and what keeps the others out.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    BROKEN_OFF, CLIENT_ALERT, CLOSED, HandshakeContext, Hello, RejectedHandshake, TlsClient, UNSUPPORTED_TLS,
    broken_off,
};
use crate::certificate::ServerCertificate;
use crate::clock;
use crate::constituency::TlsLevel;
use crate::identity::trust::{ChainRefusal, DeviceFinding};
use crate::serve::access_log::{ServedTls, TlsResult};
use crate::serve::hello::ClientHelloFacts;
use crate::serve::openssl::{LegacyTls, LegacyTlsFailure};
use crate::serve::tls_stream::ClientTlsStream;

/// The old lane and the certificate that it shows, if that is where this client is to be served: rustls cannot serve it,
/// and its constituency wants phones like it.
pub(super) fn lane<'a>(hello: &Hello, wanted: &HandshakeContext<'a>) -> Option<(&'a LegacyTls, ServerCertificate)> {
    let lane = wanted.generation.old_lane.as_ref()?;
    let facts = hello.facts.as_ref().ok()?;
    if facts.is_for_rustls(&wanted.generation.certificates) || facts.required_level()? > wanted.generation.level {
        return None;
    }
    Some((lane, wanted.rsa()?))
}

/// The handshake in the old lane, from the begin: OpenSSL reads the `hello` a second time.
pub(super) async fn accept_legacy_tls<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    hello: Hello,
    lane: &LegacyTls,
    certificate: &ServerCertificate,
    wanted: &HandshakeContext<'_>,
) -> Result<(ClientTlsStream<S>, TlsClient), RejectedHandshake> {
    let Hello { record, facts, .. } = hello;
    let has_only_sha1 = facts.as_ref().is_ok_and(ClientHelloFacts::has_only_sha1);
    let (constituency, generation) = (Arc::clone(wanted.constituency), Arc::clone(wanted.generation));
    let judge = move |chain: &[CertificateDer<'static>]| {
        let nobody = || DeviceFinding { verdict: Err(ChainRefusal::NoCertificate), claim: None };
        generation.examine(&constituency, chain, clock::unix_seconds(clock::now())).unwrap_or_else(nobody)
    };
    let refused = |kind, reason| RejectedHandshake { is_of_old_lane: true, ..wanted.refused(kind, reason) };
    let (result, finding) = lane.accept(stream, record, certificate, judge).await;
    let (verdict, claim) = finding.map_or((None, None), |finding| (Some(finding.verdict), finding.claim));
    let stream = match result {
        Ok(stream) => stream,
        Err((failure, stream)) => {
            let summary = |facts: ClientHelloFacts| facts.alpn_incompatibility().unwrap_or_else(|| facts.old_summary());
            let offered = facts.map_or_else(|no_hello| no_hello.to_string(), summary);
            let (kind, reason) = explain(failure, verdict.and_then(Result::err), &offered);
            let refused = RejectedHandshake { claim, ..refused(kind, reason) };
            return Err(match stream {
                Some(stream) => refused.told_on(stream),
                None => refused,
            });
        }
    };
    // Whoever is to be judged and was not has not proven anything, whatever OpenSSL let pass.
    let device = wanted.generation.verifier.as_ref().map(|_| verdict.unwrap_or(Err(ChainRefusal::NoCertificate)));
    let Some((version, suite)) = stream.agreed() else {
        return Err(refused(UNSUPPORTED_TLS, "agreed on what is not for the old lane".to_owned()));
    };
    if let Some(Err(refusal)) = &device {
        return Err(RejectedHandshake { claim, ..refused(refusal.kind(), refusal.to_string()) });
    }
    let now = clock::unix_seconds(clock::now());
    let is_tolerated = device.as_ref().and_then(|device| device.as_ref().ok()).is_some_and(|it| it.is_tolerated(now));
    let peer = TlsClient {
        constituency: wanted.constituency.name.clone(),
        generation: Arc::clone(wanted.generation),
        has_sni: wanted.server_name.is_some(),
        device,
        claim,
        tls: Some(TlsResult::Agreed(ServedTls { version, suite, is_tolerated, has_only_sha1 })),
        is_resumed: false,
    };
    Ok((ClientTlsStream::Old(stream), peer))
}

/// Of which kind a failure is, and the reason.
fn explain(failure: LegacyTlsFailure, refusal: Option<ChainRefusal>, offered: &str) -> (&'static str, String) {
    match (refusal, failure) {
        (Some(refusal), _) => (refusal.kind(), refusal.to_string()),
        (None, LegacyTlsFailure::NoCertificate) => {
            (ChainRefusal::NoCertificate.kind(), ChainRefusal::NoCertificate.to_string())
        }
        (None, LegacyTlsFailure::Alert(alert)) => (CLIENT_ALERT, broken_off(alert)),
        (None, LegacyTlsFailure::Closed) => (BROKEN_OFF, CLOSED.to_owned()),
        (None, LegacyTlsFailure::Broken(reason)) => (BROKEN_OFF, reason),
        (None, LegacyTlsFailure::Unable(reason)) => {
            ("no_server_certificate", format!("the old lane cannot be had: {reason}"))
        }
        (None, LegacyTlsFailure::Other(reason)) => (UNSUPPORTED_TLS, format!("{offered} (in the old lane: {reason})")),
    }
}

/// Whether a client speaks no version that its constituency takes.
pub(super) fn is_too_old(facts: &ClientHelloFacts, wanted: &HandshakeContext<'_>) -> bool {
    let takes_old = wanted.generation.level == TlsLevel::Legacy && wanted.rsa().is_some();
    facts.is_before_tls12() && !takes_old
}

/// What keeps a client out that is refused, and what would let it in, to be put behind it: the least setting that admits
/// it, the certificate that is missing, or that there is nothing.
pub(super) fn incompatibility_and_remedy(
    facts: &ClientHelloFacts,
    wanted: &HandshakeContext<'_>,
) -> (Option<String>, String) {
    if facts.is_for_rustls(&wanted.generation.certificates) {
        return (facts.incompatibility(), String::new());
    }
    let Some(needed) = facts.required_level() else {
        let hindrance = facts.incompatibility_everywhere();
        let help = if hindrance.is_some() { ", which no setting admits" } else { "" };
        return (hindrance.or_else(|| facts.incompatibility()), help.to_owned());
    };
    let (hindrance, has_rsa) = (facts.incompatibility_at(wanted.generation.level), wanted.rsa().is_some());
    let of = if TlsLevel::HAS_OLD { "" } else { ", in a provost built with OpenSSL," };
    let name = &wanted.constituency.name;
    let help = match needed > wanted.generation.level {
        true if has_rsa => format!("; \"tls\": \"{}\" of {name}{of} would admit it", needed.as_str()),
        true => format!("; \"tls\": \"{}\" of {name} and an RSA server certificate would admit it", needed.as_str()),
        false if has_rsa => String::new(),
        false => "; the old lane takes an RSA server certificate, and there is none".to_owned(),
    };
    (hindrance, help)
}
