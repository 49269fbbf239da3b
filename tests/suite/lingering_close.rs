//! Lingering close: a refused client that is still sending can read the reason, and is closed at the handshake timeout.

use std::io::{Read, Result, Write};
use std::time::Duration;

use openssl::pkey::PKey;
use openssl::ssl::{Ssl, SslContext, SslMethod, SslVersion};
use openssl::x509::X509;
use rustix::process::Signal;
use rustls::AlertDescription::UnknownCA;
use rustls::version::{TLS12, TLS13};
use serde_json::json;

use crate::harness::pki::{Identity, OTHER_FACTORY, device_params};
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::socket::Socket;
use crate::harness::tls::{Client, alert};
use crate::harness::{Stopwatch, VVX500};

/// The logged reason of these refusals.
const REASON: &str = "is not trusted here";

/// Less than the lingering time of five seconds.
const BELOW_LINGERING_TIME: Duration = Duration::from_millis(4500);

/// A client that sends one record at a time, and pauses after the second, which begins with its certificate, until the
/// server has refused it.
struct PausingSocket<'a> {
    socket: Socket,
    server: &'a Running,
    records: usize,
    /// The unsent bytes of the current record.
    left: usize,
}

impl Read for PausingSocket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.socket.read(buffer)
    }
}

impl Write for PausingSocket<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        if self.left == 0 {
            self.records += 1;
            self.left = 5 + usize::from(u16::from_be_bytes([bytes[3], bytes[4]]));
            if self.records == 3 {
                self.server.reason(REASON);
            }
        }
        let part = &bytes[..self.left.min(bytes.len())];
        self.left -= part.len();
        self.socket.write_all(part)?;
        Ok(part.len())
    }

    fn flush(&mut self) -> Result<()> {
        self.socket.flush()
    }
}

impl<'a> PausingSocket<'a> {
    fn connect(server: &'a Running) -> Self {
        Self { socket: Socket::connect(server.address()).unwrap(), server, records: 0, left: 0 }
    }
}

fn stranger() -> Identity {
    OTHER_FACTORY.issuing.issue_rsa(&device_params(VVX500))
}

#[test]
fn tls13_client_that_sent_a_request_still_reads_the_alert() {
    let site = Site::with_ote();
    let server = site.start();
    let client = Client::new(server.address(), Some(&format!("ote.{DOMAIN}"))).only(&TLS13, Some(&stranger()));
    let mut connection = client.connect().unwrap();
    server.reason(REASON);
    // If the server had closed, the first would be answered by a reset, and the second could not be sent.
    for _ in 0..2 {
        connection.send(b"GET /site.cfg HTTP/1.1\r\nHost: ote.phones.example.com\r\n\r\n").unwrap();
    }
    assert_eq!(alert(&connection.response("GET").unwrap_err()), Some(UnknownCA));
}

#[test]
fn tls12_client_refused_mid_flight_still_reads_the_alert() {
    let site = Site::with_ote();
    let server = site.start();
    let client = Client::new(server.address(), Some(&format!("ote.{DOMAIN}"))).only(&TLS12, Some(&stranger()));
    let (mut tls, mut end) = (client.begin().unwrap(), PausingSocket::connect(&server));
    let error = loop {
        if let Err(error) = tls.complete_io(&mut end) {
            break error;
        }
    };
    assert_eq!(alert(&error), Some(UnknownCA), "{error}");
    assert!(end.records > 3, "{}", end.records);
}

#[test]
fn legacy_tls_client_refused_mid_flight_still_reads_the_alert() {
    let site = Site::with_ote();
    site.constituency("ote", &json!({ "trust": ["factory"], "tls": "legacy" }));
    let server = site.start();
    let identity = stranger();
    let mut context = SslContext::builder(SslMethod::tls_client()).unwrap();
    context.set_max_proto_version(Some(SslVersion::TLS1_2)).unwrap();
    context.set_cipher_list("AES128-SHA").unwrap();
    context.set_certificate(&X509::from_der(&identity.chain[0]).unwrap()).unwrap();
    for above in &identity.chain[1..] {
        context.add_extra_chain_cert(X509::from_der(above).unwrap()).unwrap();
    }
    context.set_private_key(&PKey::private_key_from_der(identity.key().secret_der()).unwrap()).unwrap();
    let mut ssl = Ssl::new(&context.build()).unwrap();
    ssl.set_hostname(&format!("ote.{DOMAIN}")).unwrap();
    let Err(openssl::ssl::HandshakeError::Failure(failed)) = ssl.connect(PausingSocket::connect(&server)) else {
        panic!("a stranger is in")
    };
    assert!(failed.error().to_string().contains("alert unknown ca"), "{}", failed.error());
    assert!(failed.get_ref().records > 3, "{}", failed.get_ref().records);
}

#[test]
fn refused_client_is_closed_at_the_handshake_timeout() {
    let mut site = Site::with_ote();
    site.config["limits"] = json!({ "handshake_s": 2, "free_space_bytes": 0 });
    let server = site.start();
    let watch = Stopwatch::start();
    let mut refused = refused(&server);
    // It reads the end of the server's side at once. The server reads what it sends until the server closes.
    while refused.write_all(&[0]).is_ok() {
        assert!(!watch.is_past(BELOW_LINGERING_TIME), "{:?}", watch.elapsed());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(watch.elapsed() > Duration::from_millis(1900), "{:?}", watch.elapsed());
}

#[test]
fn refused_client_that_floods_is_closed_early() {
    let site = Site::with_ote();
    let server = site.start();
    let mut refused = refused(&server);
    let watch = Stopwatch::start();
    while refused.write_all(&[0; 8 << 10]).is_ok() {
        assert!(!watch.is_past(BELOW_LINGERING_TIME), "{:?}", watch.elapsed());
    }
}

#[test]
fn shutdown_does_not_wait_for_lingering_clients() {
    let site = Site::with_ote();
    let server = site.start();
    let refused = refused(&server);
    let watch = Stopwatch::start();
    server.signal(Signal::TERM);
    assert!(server.wait().success());
    assert!(!watch.is_past(BELOW_LINGERING_TIME), "{:?}", watch.elapsed());
    drop(refused);
}

/// A client that was refused for its server name and does not close.
fn refused(server: &Running) -> Socket {
    let mut socket = Socket::connect(server.address()).unwrap();
    socket.write_all(&Client::new(server.address(), Some("nobody.phones.example.com")).hello()).unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 112]);
    socket
}
