//! From a TCP connection to a phone's proven identity.
//!
//! 1. Read the ClientHello, however many records it is split over, and keep it: a client that cannot be served is
//!    logged with what it offered.
//! 2. SNI leads to a constituency, or the alert `unrecognized_name` goes back.
//! 3. TLS by that constituency's own configuration; the device certificate is judged in it.
//! 4. A phone that rustls cannot serve goes to the [old lane](super::openssl), where its constituency wants that.
//! 5. A resumed session proves nothing new: its chain is judged again, as of now.

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
use super::hello::{ClientHelloFacts, HelloReader, NoClientHello, UnusableName};
use super::site::{NotServed, Site, TlsGeneration};
use super::tls_stream::ClientTlsStream;
use crate::certificate::{LiveCertificates, ServerCertificate};
use crate::clock;
use crate::constituency::{Constituency, ConstituencyName};
use crate::identity::trust::{ChainRefusal, ClaimedIdentity, DeviceFinding, VerifiedDevice, with_finding};
use crate::wording::{alert_name, tls_error};

mod legacy;
mod rejected;

pub use rejected::{Close, RejectedHandshake};

/// TLS alert descriptions that we send ourselves (RFC 8446 §6).
const DECODE_ERROR: u8 = 50;
const PROTOCOL_VERSION: u8 = 70;
const INTERNAL_ERROR: u8 = 80;
const UNRECOGNIZED_NAME: u8 = 112;

/// Kinds of refusals.
const UNSUPPORTED_TLS: &str = "unsupported_tls";
const MALFORMED: &str = "malformed";
const CLIENT_ALERT: &str = "client_alert";
const BROKEN_OFF: &str = "broken_off";

/// Why a handshake ended that the client ended without a word.
const CLOSED: &str = "closed by the client in the handshake";

/// What a finished handshake leaves behind.
#[derive(Debug)]
pub struct TlsClient {
    /// The constituency that the client asked for.
    pub constituency: ConstituencyName,
    /// Under which TLS configuration.
    pub generation: Arc<TlsGeneration>,
    /// Whether the client named the constituency by SNI.
    pub has_sni: bool,
    /// Whether it came back to a session that it had.
    pub is_resumed: bool,
    /// What its certificate proved; `None` where nobody is asked for one.
    pub device: Option<Result<VerifiedDevice, ChainRefusal>>,
    /// Who a certificate that does not count any more says it is.
    pub claim: Option<ClaimedIdentity>,
    /// Version and suite.
    pub tls: Option<TlsResult>,
}

/// What a client sent first: a whole ClientHello, or what shows that none will come.
#[derive(Debug)]
pub struct ReceivedHello {
    reader: HelloReader,
    no_hello: Option<NoClientHello>,
}

impl ReceivedHello {
    /// Takes what was received behind the ClientHello.
    pub fn take_rest(&mut self) -> Vec<u8> {
        self.reader.take_rest()
    }

    fn parse(self) -> Hello {
        let facts = self.no_hello.map_or_else(|| self.reader.facts(), Err);
        let record = self.reader.into_record();
        let is_too_long = matches!(facts, Err(NoClientHello::TooLong(_)));
        let accepted = if is_too_long { Err((None, Vec::new())) } else { accept(&record) };
        Hello { record, facts, accepted }
    }
}

/// What a client sent first, and what it says.
struct Hello {
    /// The ClientHello as one record.
    record: Vec<u8>,
    facts: Result<ClientHelloFacts, NoClientHello>,
    /// What rustls says to it before it has a configuration: perhaps an error, and the alert that goes with it.
    accepted: Result<Accepted, (Option<rustls::Error>, Vec<u8>)>,
}

impl Hello {
    /// The name of the host that the client wants.
    ///
    /// # Errors
    /// If there is no telling.
    fn server_name(&self) -> Result<Option<String>, UnusableName> {
        match (&self.accepted, &self.facts) {
            (Ok(accepted), _) => Ok(accepted.client_hello().server_name().map(str::to_owned)),
            (Err(_), Ok(facts)) => Ok(facts.host()?.map(str::to_owned)),
            (Err(_), Err(_)) => Err(UnusableName),
        }
    }
}

/// What somebody wants whose constituency is found.
struct HandshakeContext<'a> {
    constituency: &'a Arc<Constituency>,
    generation: &'a Arc<TlsGeneration>,
    server_name: Option<String>,
}

impl HandshakeContext<'_> {
    /// What it is shown if it knows no other kind of certificate.
    fn rsa(&self) -> Option<ServerCertificate> {
        self.generation.certificates.rsa(self.server_name.as_deref())
    }

    fn refused(&self, kind: &'static str, reason: String) -> RejectedHandshake {
        RejectedHandshake::because(Some(self.constituency.name.clone()), kind, reason)
    }
}

/// Waits for a ClientHello. While it waits it keeps what was received and nothing else.
///
/// # Errors
/// If the client sends something else or leaves. What is wrong with a hello is the handshake's business.
pub async fn receive_hello<S: AsyncRead + Unpin>(stream: &mut S) -> Result<ReceivedHello, RejectedHandshake> {
    let mut reader = HelloReader::default();
    loop {
        match poll_fn(|cx| poll_hello(stream, &mut reader, cx)).await {
            Ok(Some(Ok(false))) => {}
            Ok(Some(Ok(true))) => return Ok(ReceivedHello { reader, no_hello: None }),
            Ok(Some(Err(no_hello))) => return Ok(ReceivedHello { reader, no_hello: Some(no_hello) }),
            Ok(None) => {
                let reason = format!("closed by the client: {}", reader.interrupted());
                return Err(RejectedHandshake::because(None, BROKEN_OFF, reason));
            }
            Err(error) => {
                return Err(RejectedHandshake::because(None, BROKEN_OFF, format!("reading the ClientHello: {error}")));
            }
        }
    }
}

/// Reads once; `None` is the end of the stream. The buffer lies on the stack: a client that is waited for has none.
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
/// Why it was refused; whatever alert there is to send has been written, and the close is left to the caller.
pub async fn accept_tls<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    mut stream: TurnStream<S>,
    received: ReceivedHello,
    site: &ArcSwap<Site>,
    certificates: &LiveCertificates,
) -> Result<(ClientTlsStream<TurnStream<S>>, TlsClient), RejectedHandshake> {
    if received.no_hello.is_none() && stream.is_closed().await {
        let reason = "closed by the client while its ClientHello waited for its turn";
        return Err(RejectedHandshake::because(None, BROKEN_OFF, reason.to_owned()));
    }
    let hello = received.parse();
    let Ok(server_name) = hello.server_name() else {
        return Err(reject(&mut stream, hello, None).await.told_on(stream));
    };
    // As it is now, not as it was when a slow peer connected.
    let site = site.load_full();
    let (constituency, generation) = match site.by_server_name(server_name.as_deref()) {
        Ok(found) => found,
        Err(not_served) => return Err(unknown(&mut stream, hello, &not_served).await.told_on(stream)),
    };
    let wanted = HandshakeContext { constituency, generation, server_name };
    if certificates.is_empty() {
        send_alert(&mut stream, INTERNAL_ERROR).await;
        let refused = wanted.refused("no_server_certificate", "there is no server certificate yet".to_owned());
        return Err(refused.told_on(stream));
    }
    if let Some((lane, certificate)) = legacy::lane(&hello, &wanted) {
        // Boxed, lest everybody else carry its room about.
        return Box::pin(legacy::accept_legacy_tls(stream, hello, lane, &certificate, &wanted)).await;
    }
    let Hello { accepted: Ok(accepted), facts, .. } = hello else {
        return Err(reject(&mut stream, hello, Some(&wanted)).await.told_on(stream));
    };
    let (tls, peer) = accept_with_rustls(stream, accepted, facts, &wanted).await?;
    Ok((ClientTlsStream::Modern(tls), peer))
}

/// The handshake by rustls.
async fn accept_with_rustls<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    accepted: Accepted,
    facts: Result<ClientHelloFacts, NoClientHello>,
    wanted: &HandshakeContext<'_>,
) -> Result<(TlsStream<S>, TlsClient), RejectedHandshake> {
    let (constituency, generation) = (wanted.constituency, wanted.generation);
    let can_resume = facts.as_ref().is_ok_and(can_resume);
    let (result, finding) = {
        let accept = StartHandshake::from_parts(accepted, stream).into_stream(generation.config(can_resume));
        with_finding(Arc::clone(&constituency.policy), pin!(accept.into_fallible())).await
    };
    let tls = match result {
        Ok(tls) => tls,
        Err((error, stream)) => {
            let (refusal, claim) = finding.map_or((None, None), |finding| (finding.verdict.err(), finding.claim));
            let kind = kind(&error, refusal.as_ref());
            let reason = explain(&error, refusal, facts.as_ref().ok(), wanted);
            return Err(RejectedHandshake { claim, ..wanted.refused(kind, reason) }.told_on(stream));
        }
    };
    let connection = tls.get_ref().1;
    let (device, claim) = device(connection, generation, constituency, finding)
        .map_or((None, None), |finding| (Some(finding.verdict), finding.claim));
    let peer = TlsClient {
        tls: facts_of(connection, device.as_ref()).map(TlsResult::Agreed),
        device,
        claim,
        constituency: constituency.name.clone(),
        generation: Arc::clone(generation),
        has_sni: wanted.server_name.is_some(),
        is_resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
    };
    Ok((tls, peer))
}

/// What rustls says to `bytes` before it has a configuration; without an alert where it does not object.
fn accept(mut bytes: &[u8]) -> Result<Accepted, (Option<rustls::Error>, Vec<u8>)> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() && acceptor.read_tls(&mut bytes).is_ok() {}
    match acceptor.accept() {
        Ok(Some(accepted)) => Ok(accepted),
        Ok(None) => Err((None, Vec::new())),
        Err((error, mut alert)) => {
            let mut bytes = Vec::new();
            // Writing to a Vec does not fail.
            let _ = alert.write_all(&mut bytes);
            Err((Some(error), bytes))
        }
    }
}

/// Sends the alert of somebody whom rustls does not even listen to, and says why, and what would help.
async fn reject<S: AsyncWrite + Unpin>(
    stream: &mut S,
    hello: Hello,
    wanted: Option<&HandshakeContext<'_>>,
) -> RejectedHandshake {
    let Hello { facts, accepted, .. } = hello;
    let (error, alert) = accepted.err().unwrap_or_default();
    if facts.as_ref().ok().zip(wanted).is_some_and(|(facts, wanted)| legacy::is_too_old(facts, wanted)) {
        // rustls looks at the version last.
        send_alert(stream, PROTOCOL_VERSION).await;
    } else {
        // A client that is gone needs no alert.
        let _ = stream.write_all(&alert).await;
        if alert.is_empty() {
            send_alert(stream, DECODE_ERROR).await;
        }
    }
    let reason = match (&facts, wanted) {
        (Ok(facts), Some(wanted)) => told(facts, error.as_ref(), wanted),
        (Ok(facts), None) => with_words(facts.incompatibility(), facts, error.as_ref()),
        (Err(damaged @ NoClientHello::Malformed), _) => {
            damaged.to_string() + &error.map(|error| format!(" ({error})")).unwrap_or_default()
        }
        (Err(no_hello), _) => no_hello.to_string(),
    };
    let kind = if facts.is_ok() { UNSUPPORTED_TLS } else { MALFORMED };
    RejectedHandshake::because(wanted.map(|wanted| wanted.constituency.name.clone()), kind, reason)
}

/// Sends somebody away whose name leads nowhere.
async fn unknown<S: AsyncWrite + Unpin>(stream: &mut S, hello: Hello, not_served: &NotServed) -> RejectedHandshake {
    send_alert(stream, UNRECOGNIZED_NAME).await;
    // Without a name, what it offered tells the operator more than that there was none.
    let offered = if hello.accepted.is_err() { offered(&hello.facts) + "; " } else { String::new() };
    RejectedHandshake::because(None, not_served.kind(), format!("{offered}{not_served}"))
}

/// What the client offered, for the log.
fn offered(facts: &Result<ClientHelloFacts, NoClientHello>) -> String {
    match facts {
        Ok(facts) => facts.offered(),
        Err(no_hello) => no_hello.to_string(),
    }
}

fn can_resume(facts: &ClientHelloFacts) -> bool {
    facts.extended_master_secret || facts.versions.contains(&ProtocolVersion::TLSv1_3)
}

/// A fatal alert in a record of its own (RFC 8446 §5.1, §6): rustls has no call for one before it has a configuration.
async fn send_alert<S: AsyncWrite + Unpin>(stream: &mut S, description: u8) {
    const ALERT: u8 = 21;
    const FATAL: u8 = 2;
    // A client that is gone needs no alert.
    let _ = stream.write_all(&[ALERT, 3, 3, 0, 2, FATAL, description]).await;
}

/// What this handshake found, or for a resumed session what is found now of the chain that it remembers.
fn device(
    connection: &ServerConnection,
    generation: &TlsGeneration,
    constituency: &Constituency,
    finding: Option<DeviceFinding>,
) -> Option<DeviceFinding> {
    match (finding, connection.handshake_kind()) {
        (Some(finding), Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest)) => Some(finding),
        _ => {
            let chain = connection.peer_certificates().unwrap_or_default();
            generation.examine(constituency, chain, clock::unix_seconds(clock::now()))
        }
    }
}

fn facts_of(connection: &ServerConnection, device: Option<&Result<VerifiedDevice, ChainRefusal>>) -> Option<ServedTls> {
    let now = clock::unix_seconds(clock::now());
    Some(ServedTls {
        version: connection.protocol_version()?,
        suite: connection.negotiated_cipher_suite()?.suite(),
        is_tolerated: device.and_then(|device| device.as_ref().ok()).is_some_and(|device| device.is_tolerated(now)),
        has_only_sha1: false,
    })
}

/// The reason of a failed handshake: our verdict on the device, else what the client cannot do, else rustls' words.
fn explain(
    error: &io::Error,
    refusal: Option<ChainRefusal>,
    facts: Option<&ClientHelloFacts>,
    wanted: &HandshakeContext<'_>,
) -> String {
    if let Some(refusal) = refusal {
        return refusal.to_string();
    }
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
        ) => told(facts, Some(error), wanted),
        (Some(error), _) => tls_error(error),
        (None, _) if error.kind() == io::ErrorKind::UnexpectedEof => CLOSED.to_owned(),
        (None, _) => error.to_string(),
    }
}

/// What an operator is told of a client that was refused for its offer: what keeps it out, and what would let it in.
fn told(facts: &ClientHelloFacts, error: Option<&rustls::Error>, wanted: &HandshakeContext<'_>) -> String {
    let (hindrance, help) = legacy::incompatibility_and_remedy(facts, wanted);
    with_words(hindrance, facts, error) + &help
}

/// What hinders a client, with rustls' words only where they say more than we can.
fn with_words(hindrance: Option<String>, facts: &ClientHelloFacts, error: Option<&rustls::Error>) -> String {
    match (hindrance, error) {
        (Some(hindrance), None | Some(rustls::Error::PeerIncompatible(_) | rustls::Error::NoApplicationProtocol)) => {
            hindrance
        }
        (hindrance, None) => hindrance.unwrap_or_else(|| facts.offered()),
        (hindrance, Some(error)) => format!("{} ({})", hindrance.unwrap_or_else(|| facts.offered()), tls_error(error)),
    }
}

/// Of which kind that reason is.
fn kind(error: &io::Error, refusal: Option<&ChainRefusal>) -> &'static str {
    use rustls::Error as E;
    match (refusal, error.get_ref().and_then(|inner| inner.downcast_ref())) {
        (Some(refusal), _) => refusal.kind(),
        (None, Some(E::NoCertificatesPresented)) => ChainRefusal::NoCertificate.kind(),
        (None, Some(E::AlertReceived(_))) => CLIENT_ALERT,
        (None, Some(E::PeerIncompatible(_) | E::PeerMisbehaved(_) | E::NoApplicationProtocol)) => UNSUPPORTED_TLS,
        (None, Some(_)) => MALFORMED,
        (None, None) => BROKEN_OFF,
    }
}

/// What an alert says that a client sent, and what it usually means when it is about our certificate.
fn broken_off(alert: rustls::AlertDescription) -> String {
    use rustls::AlertDescription as A;
    let hint = match alert {
        A::UnknownCA => ": it does not know the CA of the server's certificate",
        A::BadCertificate | A::CertificateUnknown => {
            ": it does not accept the server's certificate (name, CA or date; is its clock set?)"
        }
        A::CertificateExpired => ": it takes the server's certificate for expired (is its clock set?)",
        _ => "",
    };
    format!("the client broke off with the alert {}{hint}", alert_name(alert))
}
