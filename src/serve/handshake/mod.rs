//! The TLS handshake: from a TCP connection to a phone's proven identity.
//!
//! 1. Read and keep the ClientHello, from any number of records, so that the log can show the offer of a rejected
//!    client.
//! 2. Find the constituency by SNI, or send the alert `unrecognized_name`.
//! 3. Run TLS with that constituency's configuration, which verifies the device certificate.
//! 4. Use [OpenSSL](super::openssl) for a phone that rustls cannot serve, if its constituency allows that.
//! 5. Verify the chain of a resumed session again, as of now: resumption itself proves nothing new.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arc_swap::ArcSwap;
use rustls::server::{Accepted, Acceptor};
use rustls::{HandshakeKind, ProtocolVersion, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::StartHandshake;
use tokio_rustls::server::TlsStream;

use super::access_log::{ServedTls, TlsResult};
use super::crypto_queue::TurnStream;
use super::hello::{ClientHelloFacts, HelloReader, InvalidServerName, NoClientHello};
use super::site::{NotServed, Site, TlsGeneration};
use super::tls_stream::ClientTlsStream;
use crate::certificate::{LiveCertificates, ServerCertificate};
use crate::clock;
use crate::constituency::{Constituency, ConstituencyName};
use crate::identity::ClientIdentity;
use crate::identity::trust::{ChainRefusal, RefusedCertificate, Verdict, with_verdict};
use crate::metrics::RefusalKind;
use crate::wording::{alert_name, tls_error};

mod legacy;
mod rejected;

pub use rejected::{Close, RejectedHandshake};

/// TLS alerts that we send ourselves (RFC 8446 §6).
const DECODE_ERROR: u8 = 50;
const PROTOCOL_VERSION: u8 = 70;
const INTERNAL_ERROR: u8 = 80;
const UNRECOGNIZED_NAME: u8 = 112;

/// The reason if the client closes the connection without an alert.
const CLOSED: &str = "closed by the client during the handshake";

/// The result of a successful handshake.
#[derive(Debug)]
pub struct TlsClient {
    /// The constituency that the client asked for.
    pub constituency: ConstituencyName,
    /// The TLS configuration that the handshake used.
    pub generation: Arc<TlsGeneration>,
    /// Whether the client sent the constituency's name as SNI.
    pub has_sni: bool,
    /// Whether the client resumed a session.
    pub is_resumed: bool,
    /// Who the client is, by its device certificate; an error if it resumed a session and its certificate is no longer
    /// valid.
    pub identity: Result<ClientIdentity, RefusedCertificate>,
    /// Version and suite.
    pub tls: Option<TlsResult>,
}

/// The first bytes of a client: a complete ClientHello, or proof that none will come.
#[derive(Debug)]
pub struct ReceivedHello {
    reader: HelloReader,
    no_hello: Option<NoClientHello>,
}

impl ReceivedHello {
    /// Takes the bytes received after the ClientHello.
    pub fn take_rest(&mut self) -> Vec<u8> {
        self.reader.take_rest()
    }

    fn parse(self) -> Hello {
        let facts = self.no_hello.map_or_else(|| self.reader.facts(), Err);
        let record = self.reader.into_record();
        let is_too_long = matches!(facts, Err(NoClientHello::TooLong(_)));
        let accepted = if is_too_long { Err(RejectedHello::default()) } else { accept(&record) };
        Hello { record, facts, accepted }
    }
}

/// The parsed ClientHello.
struct Hello {
    /// The ClientHello as one record.
    record: Vec<u8>,
    facts: Result<ClientHelloFacts, NoClientHello>,
    /// The answer of rustls before it has a configuration.
    accepted: Result<Accepted, RejectedHello>,
}

/// A hello that rustls rejects before it has a configuration.
#[derive(Default)]
struct RejectedHello {
    error: Option<rustls::Error>,
    /// The alert to send; empty if rustls has none.
    alert: Vec<u8>,
}

impl Hello {
    /// The host name that the client asks for.
    ///
    /// # Errors
    /// If the hello is unreadable or its name is invalid.
    fn server_name(&self) -> Result<Option<String>, InvalidServerName> {
        match (&self.accepted, &self.facts) {
            (Ok(accepted), _) => Ok(accepted.client_hello().server_name().map(str::to_owned)),
            (Err(_), Ok(facts)) => Ok(facts.host()?.map(str::to_owned)),
            (Err(_), Err(_)) => Err(InvalidServerName),
        }
    }
}

/// The constituency that the client asks for.
struct HandshakeContext<'a> {
    constituency: &'a Arc<Constituency>,
    generation: &'a Arc<TlsGeneration>,
    server_name: Option<String>,
}

impl HandshakeContext<'_> {
    /// The RSA certificate, for clients that support no other kind.
    fn rsa(&self) -> Option<ServerCertificate> {
        self.generation.certificates.rsa(self.server_name.as_deref())
    }

    fn refused(&self, kind: RefusalKind, reason: String) -> RejectedHandshake {
        RejectedHandshake::because(Some(self.constituency.name.clone()), kind, reason)
    }

    fn refused_certificate(&self, refused: RefusedCertificate) -> RejectedHandshake {
        let RefusedCertificate { refusal, claim } = refused;
        RejectedHandshake { claim, ..self.refused(refusal.kind(), refusal.to_string()) }
    }
}

/// Waits for a ClientHello. Buffers only the received bytes.
///
/// # Errors
/// If the connection breaks or the client closes it. [`accept_tls`] reports a malformed hello.
pub async fn receive_hello<S: AsyncRead + Unpin>(stream: &mut S) -> Result<ReceivedHello, RejectedHandshake> {
    let mut reader = HelloReader::default();
    loop {
        match poll_fn(|cx| poll_hello(stream, &mut reader, cx)).await {
            Ok(Some(Ok(false))) => {}
            Ok(Some(Ok(true))) => return Ok(ReceivedHello { reader, no_hello: None }),
            Ok(Some(Err(no_hello))) => return Ok(ReceivedHello { reader, no_hello: Some(no_hello) }),
            Ok(None) => {
                let no_hello = reader.interrupted();
                let reason = format!("closed by the client: {no_hello}");
                let sent_nothing = no_hello == NoClientHello::Nothing;
                return Err(RejectedHandshake {
                    sent_nothing,
                    ..RejectedHandshake::because(None, RefusalKind::Disconnected, reason)
                });
            }
            Err(error) => {
                let reason = format!("reading the ClientHello: {error}");
                let is_closed = error.kind() == io::ErrorKind::ConnectionReset;
                let sent_nothing = is_closed && reader.interrupted() == NoClientHello::Nothing;
                return Err(RejectedHandshake {
                    sent_nothing,
                    ..RejectedHandshake::because(None, RefusalKind::Disconnected, reason)
                });
            }
        }
    }
}

/// Reads once; `None` is the end of the stream. The buffer lives on the stack, so that a waiting connection holds none.
fn poll_hello<S: AsyncRead + Unpin>(
    stream: &mut S,
    reader: &mut HelloReader,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Option<Result<bool, NoClientHello>>>> {
    let mut bytes = [0; 2048];
    let mut buffer = ReadBuf::new(&mut bytes);
    ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
    Poll::Ready(Ok(Some(buffer.filled()).filter(|bytes| !bytes.is_empty()).map(|bytes| reader.push(bytes))))
}

/// Runs the handshake on `stream`, whose client sent `received`.
///
/// # Errors
/// Why the handshake was rejected. Any alert has been written; the caller closes the connection.
pub async fn accept_tls<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    mut stream: TurnStream<S>,
    received: ReceivedHello,
    site: &ArcSwap<Site>,
    certificates: &LiveCertificates,
) -> Result<(ClientTlsStream<TurnStream<S>>, TlsClient), RejectedHandshake> {
    if received.no_hello.is_none() && stream.is_closed().await {
        let reason = "closed by the client while its handshake was queued";
        return Err(RejectedHandshake::because(None, RefusalKind::Disconnected, reason.to_owned()));
    }
    let hello = received.parse();
    let Ok(server_name) = hello.server_name() else {
        return Err(reject(&mut stream, hello, None).await.with_close(stream));
    };
    // Load the site only now: it may have changed while a slow client sent its hello.
    let site = site.load_full();
    let (constituency, generation) = match site.by_server_name(server_name.as_deref()) {
        Ok(found) => found,
        Err(not_served) => return Err(unknown(&mut stream, hello, &not_served).await.with_close(stream)),
    };
    let context = HandshakeContext { constituency, generation, server_name };
    if certificates.is_empty() {
        send_alert(&mut stream, INTERNAL_ERROR).await;
        let refused =
            context.refused(RefusalKind::NoServerCertificate, "there is no server certificate yet".to_owned());
        return Err(refused.with_close(stream));
    }
    if let Some((backend, certificate)) = legacy::backend(&hello, &context) {
        // Boxed, so that the future stays small for all other clients.
        return Box::pin(legacy::accept_legacy_tls(stream, hello, backend, &certificate, &context)).await;
    }
    let Hello { accepted: Ok(accepted), facts, .. } = hello else {
        return Err(reject(&mut stream, hello, Some(&context)).await.with_close(stream));
    };
    let (tls, peer) = accept_with_rustls(stream, accepted, facts, &context).await?;
    Ok((ClientTlsStream::Rustls(tls), peer))
}

/// Runs the handshake with rustls.
async fn accept_with_rustls<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    accepted: Accepted,
    facts: Result<ClientHelloFacts, NoClientHello>,
    context: &HandshakeContext<'_>,
) -> Result<(TlsStream<S>, TlsClient), RejectedHandshake> {
    let (constituency, generation) = (context.constituency, context.generation);
    let can_resume = facts.as_ref().is_ok_and(can_resume);
    let (result, verdict) = {
        let accept = StartHandshake::from_parts(accepted, stream).into_stream(generation.config(can_resume));
        with_verdict(Arc::clone(&constituency.policy), pin!(accept.into_fallible())).await
    };
    let tls = match result {
        Ok(tls) => tls,
        Err((error, stream)) => {
            let refused = match verdict {
                Some(Err(certificate)) => context.refused_certificate(certificate),
                _ => context.refused(kind(&error), explain(&error, facts.as_ref().ok(), context)),
            };
            return Err(refused.with_close(stream));
        }
    };
    let connection = tls.get_ref().1;
    let identity = identity_of(current_verdict(connection, generation, constituency, verdict));
    let peer = TlsClient {
        tls: facts_of(connection, identity.as_ref().is_ok_and(is_tolerated)).map(TlsResult::Agreed),
        identity,
        constituency: constituency.name.clone(),
        generation: Arc::clone(generation),
        has_sni: context.server_name.is_some(),
        is_resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
    };
    Ok((tls, peer))
}

/// Parses `bytes` with rustls before it has a configuration.
fn accept(mut bytes: &[u8]) -> Result<Accepted, RejectedHello> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() && acceptor.read_tls(&mut bytes).is_ok() {}
    match acceptor.accept() {
        Ok(Some(accepted)) => Ok(accepted),
        Ok(None) => Err(RejectedHello::default()),
        Err((error, mut written)) => {
            let mut alert = Vec::new();
            // Writing to a Vec does not fail.
            let _ = written.write_all(&mut alert);
            Err(RejectedHello { error: Some(error), alert })
        }
    }
}

/// Sends the alert for a client that rustls rejects before it has a configuration. Returns the reason and a remedy.
async fn reject<S: AsyncWrite + Unpin>(
    stream: &mut S,
    hello: Hello,
    context: Option<&HandshakeContext<'_>>,
) -> RejectedHandshake {
    let Hello { facts, accepted, .. } = hello;
    let RejectedHello { error, alert } = accepted.err().unwrap_or_default();
    if facts.as_ref().ok().zip(context).is_some_and(|(facts, context)| legacy::is_too_old(facts, context)) {
        // rustls checks the version last.
        send_alert(stream, PROTOCOL_VERSION).await;
    } else {
        // Ignore errors: the client may be gone.
        let _ = stream.write_all(&alert).await;
        if alert.is_empty() {
            send_alert(stream, DECODE_ERROR).await;
        }
    }
    let reason = match (&facts, context) {
        (Ok(facts), Some(context)) => explain_incompatibility(facts, error.as_ref(), context),
        (Ok(facts), None) => with_tls_error(facts.rustls_incompatibility(), facts, error.as_ref()),
        (Err(damaged @ NoClientHello::Malformed), _) => {
            damaged.to_string() + &error.map(|error| format!(" ({error})")).unwrap_or_default()
        }
        (Err(no_hello), _) => no_hello.to_string(),
    };
    let kind = if facts.is_ok() { RefusalKind::UnsupportedTls } else { RefusalKind::Malformed };
    RejectedHandshake::because(context.map(|context| context.constituency.name.clone()), kind, reason)
}

/// Rejects a client whose server name leads to no constituency.
async fn unknown<S: AsyncWrite + Unpin>(stream: &mut S, hello: Hello, not_served: &NotServed) -> RejectedHandshake {
    send_alert(stream, UNRECOGNIZED_NAME).await;
    // If rustls rejects the hello, its offer tells the operator more than the missing name.
    let offered = if hello.accepted.is_err() { offered(&hello.facts) + "; " } else { String::new() };
    RejectedHandshake::because(None, not_served.kind(), format!("{offered}{not_served}"))
}

/// Describes the client's offer for the log.
fn offered(facts: &Result<ClientHelloFacts, NoClientHello>) -> String {
    match facts {
        Ok(facts) => facts.offered(),
        Err(no_hello) => no_hello.to_string(),
    }
}

fn can_resume(facts: &ClientHelloFacts) -> bool {
    facts.extended_master_secret || facts.versions.contains(&ProtocolVersion::TLSv1_3)
}

/// Sends a fatal alert as one record (RFC 8446 §5.1, §6). rustls has no API for this before it has a configuration.
async fn send_alert<S: AsyncWrite + Unpin>(stream: &mut S, description: u8) {
    const ALERT: u8 = 21;
    const FATAL: u8 = 2;
    // Ignore errors: the client may be gone.
    let _ = stream.write_all(&[ALERT, 3, 3, 0, 2, FATAL, description]).await;
}

/// The verdict of this handshake. For a resumed session, verifies the remembered chain again.
fn current_verdict(
    connection: &ServerConnection,
    generation: &TlsGeneration,
    constituency: &Constituency,
    verdict: Option<Verdict>,
) -> Option<Verdict> {
    match (verdict, connection.handshake_kind()) {
        (Some(verdict), Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest)) => Some(verdict),
        _ => {
            let chain = connection.peer_certificates().unwrap_or_default();
            generation.examine(constituency, chain, clock::unix_seconds(clock::now()))
        }
    }
}

/// The client by the `verdict` on its certificate; `None` if the constituency requires none.
fn identity_of(verdict: Option<Verdict>) -> Result<ClientIdentity, RefusedCertificate> {
    match verdict {
        None => Ok(ClientIdentity::Anonymous),
        Some(verdict) => verdict.map(|device| ClientIdentity::Certificate(Arc::new(device))),
    }
}

/// Whether the client's certificate has expired, which the policy tolerates.
fn is_tolerated(identity: &ClientIdentity) -> bool {
    identity.device().is_some_and(|device| device.is_tolerated(clock::unix_seconds(clock::now())))
}

fn facts_of(connection: &ServerConnection, is_tolerated: bool) -> Option<ServedTls> {
    Some(ServedTls {
        version: connection.protocol_version()?,
        suite: connection.negotiated_cipher_suite()?.suite(),
        is_tolerated,
        has_only_sha1: false,
    })
}

/// The reason of a failed handshake: the client's incompatibility, else the error of rustls.
fn explain(error: &io::Error, facts: Option<&ClientHelloFacts>, context: &HandshakeContext<'_>) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match (inner, facts) {
        (Some(rustls::Error::NoCertificatesPresented), _) => ChainRefusal::NoCertificate.to_string(),
        (Some(rustls::Error::AlertReceived(alert)), _) => broken_off(*alert),
        (
            Some(
                error @ (rustls::Error::PeerIncompatible(_)
                | rustls::Error::PeerMisbehaved(_)
                | rustls::Error::NoApplicationProtocol),
            ),
            Some(facts),
        ) => explain_incompatibility(facts, Some(error), context),
        (Some(error), _) => tls_error(error),
        (None, _) if error.kind() == io::ErrorKind::UnexpectedEof => CLOSED.to_owned(),
        (None, _) => error.to_string(),
    }
}

/// Explains to an operator why the client's offer was rejected, with the remedy.
fn explain_incompatibility(
    facts: &ClientHelloFacts,
    error: Option<&rustls::Error>,
    context: &HandshakeContext<'_>,
) -> String {
    let (incompatibility, remedy) = legacy::incompatibility_and_remedy(facts, context);
    with_tls_error(incompatibility, facts, error) + &remedy
}

/// Appends the error of rustls only if it says more than our own reason.
fn with_tls_error(incompatibility: Option<String>, facts: &ClientHelloFacts, error: Option<&rustls::Error>) -> String {
    match (incompatibility, error) {
        (
            Some(incompatibility),
            None | Some(rustls::Error::PeerIncompatible(_) | rustls::Error::NoApplicationProtocol),
        ) => incompatibility,
        (incompatibility, None) => incompatibility.unwrap_or_else(|| facts.offered()),
        (incompatibility, Some(error)) => {
            format!("{} ({})", incompatibility.unwrap_or_else(|| facts.offered()), tls_error(error))
        }
    }
}

/// The kind of a failed handshake.
fn kind(error: &io::Error) -> RefusalKind {
    use rustls::Error as E;
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(E::NoCertificatesPresented) => RefusalKind::NoCertificate,
        Some(E::AlertReceived(_)) => RefusalKind::ClientAlert,
        Some(E::PeerIncompatible(_) | E::PeerMisbehaved(_) | E::NoApplicationProtocol) => RefusalKind::UnsupportedTls,
        Some(_) => RefusalKind::Malformed,
        None => RefusalKind::Disconnected,
    }
}

/// Describes an alert that the client sent, with its usual cause if it is about our certificate.
fn broken_off(alert: rustls::AlertDescription) -> String {
    use rustls::AlertDescription as A;
    let hint = match alert {
        A::UnknownCA => ": it does not know the CA of the server's certificate",
        A::BadCertificate | A::CertificateUnknown => {
            ": it does not accept the server's certificate (name, CA or date; is its clock set?)"
        }
        A::CertificateExpired => ": it considers the server's certificate expired (is its clock set?)",
        _ => "",
    };
    format!("the client ended the handshake with the alert {}{hint}", alert_name(alert))
}
