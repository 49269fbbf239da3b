//! The load: operations on connections of one phone. Each is verified; an operation that fails ends the benchmark.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openssl::pkey::PKey;
use openssl::ssl::{SslConnector, SslMethod, SslVersion};
use openssl::x509::X509;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use rustls::{CipherSuite, ClientConfig, HandshakeKind, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_openssl::SslStream;
use tokio_rustls::TlsConnector;

use super::cases::{Case, Operation, Tls};
use super::machine;
use super::pki::{Identity, SERVER_CA};
use super::servers::{Program, Server};
use super::site::{FIRMWARE, FIRMWARE_BYTES, HOST, SMALL_FILE, Site};

/// The transport of HTTP.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

type Connection = Box<dyn Stream>;

/// The suites that both servers prefer.
const FIRST_SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
];

/// One worker: a sequence of connections, or one that stays open, without concurrency.
pub struct Worker {
    connector: Connector,
    operation: Operation,
    request: Vec<u8>,
    expected: Expected,
    open: Option<Connection>,
    buffer: Vec<u8>,
}

/// The expected answer.
#[derive(Clone)]
enum Expected {
    Bytes(Vec<u8>),
    Length(usize),
}

/// How to reach one server.
#[derive(Clone)]
struct Connector {
    program: Program,
    address: SocketAddr,
    client: TlsClient,
}

/// The TLS client library.
#[derive(Clone)]
enum TlsClient {
    Rustls(TlsConnector),
    /// With the only suite that it offers.
    OpenSsl(SslConnector, &'static str),
}

impl Worker {
    pub fn new(case: &Case, server: &Server, site: &Site) -> Self {
        // Each worker has its own session store, because a TLS 1.3 ticket is used once.
        let resumption = match case.operation {
            Operation::ResumedHandshake => Resumption::in_memory_sessions(8),
            _ => Resumption::disabled(),
        };
        let (path, expected) = match case.operation {
            Operation::Firmware => (FIRMWARE, Expected::Length(FIRMWARE_BYTES)),
            _ => (SMALL_FILE, Expected::Bytes(site.small_file.clone())),
        };
        Self {
            connector: Connector::new(server, site, case.tls, resumption),
            operation: case.operation,
            request: get(path),
            expected,
            open: None,
            buffer: vec![0; 256 << 10],
        }
    }

    /// Prepares what an operation needs: a session, an open connection, a warm cache.
    pub async fn warm_up(&mut self) {
        if self.operation == Operation::ResumedHandshake {
            self.on_new_connection(HandshakeKind::Full).await;
        }
        self.operate().await;
    }

    pub async fn operate(&mut self) {
        match self.operation {
            Operation::FullHandshake => self.on_new_connection(HandshakeKind::Full).await,
            Operation::ResumedHandshake => self.on_new_connection(HandshakeKind::Resumed).await,
            Operation::SmallFile | Operation::Firmware => {
                let mut connection = match self.open.take() {
                    Some(open) => open,
                    None => self.connector.connect(HandshakeKind::Full).await,
                };
                self.fetch(&mut connection).await;
                self.open = Some(connection);
            }
        }
    }

    async fn on_new_connection(&mut self, kind: HandshakeKind) {
        let mut connection = self.connector.connect(kind).await;
        self.fetch(&mut connection).await;
        connection.shutdown().await.expect("close_notify");
    }

    async fn fetch(&mut self, connection: &mut Connection) {
        connection.write_all(&self.request).await.expect("the request is sent");
        let length = match &self.expected {
            Expected::Bytes(bytes) => bytes.len(),
            Expected::Length(length) => *length,
        };
        let (head_end, filled) = read_head(connection, &mut self.buffer).await;
        check_head(&self.buffer[..head_end], length);
        let mut filled = filled;
        let mut received = filled - head_end;
        if let Expected::Bytes(expected) = &self.expected {
            while filled < head_end + length {
                filled += read(connection, &mut self.buffer[filled..]).await;
            }
            assert_eq!(self.buffer[head_end..filled], expected[..], "other content");
            return;
        }
        while received < length {
            received += read(connection, &mut self.buffer).await;
        }
        assert_eq!(received, length, "more bytes than Content-Length");
    }
}

impl Connector {
    fn new(server: &Server, site: &Site, tls: Tls, resumption: Resumption) -> Self {
        let client = match tls {
            Tls::Modern(version) => TlsClient::Rustls(rustls(site, &site.phone, version, resumption)),
            Tls::Legacy(version, cipher) => TlsClient::OpenSsl(openssl(site, version, cipher), cipher),
        };
        Self { program: server.program, address: server.address, client }
    }

    /// Connects and asserts the handshake's `kind` and the suite, which must be the same for every server.
    async fn connect(&self, kind: HandshakeKind) -> Connection {
        let stream = TcpStream::connect(self.address).await.expect("a connection");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        let program = self.program;
        match &self.client {
            TlsClient::Rustls(connector) => {
                let connection = connector.connect(ServerName::try_from(HOST).unwrap(), stream).await;
                let connection = connection.unwrap_or_else(|error| panic!("{program:?}: handshake: {error}"));
                let tls = connection.get_ref().1;
                assert_eq!(tls.handshake_kind(), Some(kind), "{program:?}");
                let suite = tls.negotiated_cipher_suite().map(|suite| suite.suite());
                assert!(suite.is_some_and(|suite| FIRST_SUITES.contains(&suite)), "{program:?} chose {suite:?}");
                Box::new(connection)
            }
            TlsClient::OpenSsl(connector, suite) => {
                let ssl = connector.configure().unwrap().into_ssl(HOST).unwrap();
                let mut connection = SslStream::new(ssl, stream).unwrap();
                let connected = Pin::new(&mut connection).connect().await;
                connected.unwrap_or_else(|error| panic!("{program:?}: handshake: {error}"));
                assert_eq!(kind, HandshakeKind::Full, "the servers do not resume such sessions");
                assert_eq!(connection.ssl().current_cipher().unwrap().name(), *suite, "{program:?}");
                Box::new(connection)
            }
        }
    }
}

pub fn phone_connector(site: &Site, phone: &Identity) -> TlsConnector {
    rustls(site, phone, &TLS13, Resumption::disabled())
}

fn rustls(
    site: &Site,
    phone: &Identity,
    version: &'static SupportedProtocolVersion,
    resumption: Resumption,
) -> TlsConnector {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(Arc::clone(&site.server_roots))
        .with_client_auth_cert(phone.chain.clone(), phone.key())
        .unwrap();
    config.resumption = resumption;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config))
}

fn openssl(site: &Site, version: SslVersion, cipher: &str) -> SslConnector {
    let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
    connector.set_min_proto_version(Some(version)).unwrap();
    connector.set_max_proto_version(Some(version)).unwrap();
    connector.set_cipher_list(&format!("{cipher}:@SECLEVEL=0")).unwrap();
    connector.cert_store_mut().add_cert(X509::from_der(SERVER_CA.certificate.der()).unwrap()).unwrap();
    let mut chain = site.phone.chain.iter().map(|certificate| X509::from_der(certificate).unwrap());
    connector.set_certificate(&chain.next().unwrap()).unwrap();
    for issuer in chain {
        connector.add_extra_chain_cert(issuer).unwrap();
    }
    connector.set_private_key(&PKey::private_key_from_der(site.phone.key().secret_der()).unwrap()).unwrap();
    connector.build()
}

/// Runs all workers until the time is over; returns them with the number of their operations.
///
/// The load's processor does not sleep meanwhile: waking it up would cost the server more than serving a small file.
pub async fn run(workers: Vec<Worker>, time: Duration) -> (Vec<Worker>, u64) {
    let deadline = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for mut worker in workers {
        tasks.spawn(async move {
            let mut operations = 0;
            while Instant::now() < deadline {
                worker.operate().await;
                operations += 1;
            }
            (worker, operations)
        });
    }
    while Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    let (mut workers, mut operations) = (Vec::new(), 0);
    while let Some(ended) = tasks.join_next().await {
        let (worker, done) = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        workers.push(worker);
        operations += done;
    }
    (workers, operations)
}

/// The server's memory per connection, in KiB, of `count` idle connections that have each fetched a small file.
pub async fn idle_memory(server: &Server, site: &Site, count: usize) -> f64 {
    eprintln!("idle connections of {:?}", server.program);
    let connector = Connector::new(server, site, Tls::Modern(&TLS13), Resumption::disabled());
    let expected = Expected::Bytes(site.small_file.clone());
    let buffer = vec![0; 16 << 10];
    let (operation, request) = (Operation::SmallFile, get(SMALL_FILE));
    let mut worker = Worker { connector, operation, request, expected, open: None, buffer };
    // The first connections cost memory once per process.
    let mut open = Vec::new();
    let mut before = 0;
    for number in 0..count + count / 10 {
        if number == count / 10 {
            before = settled_memory_kib(server).await;
        }
        worker.operate().await;
        open.extend(worker.open.take());
    }
    let after = settled_memory_kib(server).await;
    (after as f64 - before as f64) / count as f64
}

async fn settled_memory_kib(server: &Server) -> u64 {
    tokio::time::sleep(Duration::from_millis(300)).await;
    machine::memory_kib(server.pid())
}

pub fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: FileTransport PolycomVVX-VVX_500-UA/5.9.7.4477\r\nAccept: */*\r\n\r\n").into()
}

/// Reads until the head is complete; gives where it ends, and how much of the buffer is filled.
async fn read_head(connection: &mut Connection, buffer: &mut [u8]) -> (usize, usize) {
    let mut filled = 0;
    loop {
        filled += read(connection, &mut buffer[filled..]).await;
        if let Some(end) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") {
            return (end + 4, filled);
        }
    }
}

async fn read(connection: &mut Connection, buffer: &mut [u8]) -> usize {
    let read = connection.read(buffer).await.expect("an answer");
    assert!(read > 0, "the server closed the connection");
    read
}

fn check_head(head: &[u8], length: usize) {
    let head = std::str::from_utf8(head).expect("text");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let said = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().expect("a length"))
    });
    assert_eq!(said, Some(length), "{head}");
}
