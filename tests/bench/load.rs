//! The load: operations on connections of one phone. Each is verified; whatever does not work ends the benchmark.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use rustls::{CipherSuite, ClientConfig, HandshakeKind, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::cases::{Case, Operation};
use super::machine;
use super::servers::{Program, Server};
use super::site::{FIRMWARE, FIRMWARE_BYTES, HOST, SMALL_FILE, Site};

type Connection = TlsStream<TcpStream>;

/// One connection after the other, or one that stays, with nothing else at the same time.
pub struct Lane {
    connector: Connector,
    operation: Operation,
    request: Vec<u8>,
    expected: Expected,
    open: Option<Connection>,
    buffer: Vec<u8>,
}

/// What an answer must be.
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
    tls: TlsConnector,
}

impl Lane {
    pub fn new(case: &Case, server: &Server, site: &Site) -> Self {
        // Each lane remembers its own sessions: a TLS 1.3 ticket counts once.
        let resumption = match case.operation {
            Operation::ResumedHandshake => Resumption::in_memory_sessions(8),
            _ => Resumption::disabled(),
        };
        let (path, expected) = match case.operation {
            Operation::Firmware => (FIRMWARE, Expected::Length(FIRMWARE_BYTES)),
            _ => (SMALL_FILE, Expected::Bytes(site.small_file.clone())),
        };
        Self {
            connector: Connector::new(server, site, case.version, resumption),
            operation: case.operation,
            request: get(path),
            expected,
            open: None,
            buffer: vec![0; 256 << 10],
        }
    }

    /// Makes everything ready that an operation finds ready: a session, an open connection, a warm cache.
    pub async fn warm_up(&mut self) {
        if self.operation == Operation::ResumedHandshake {
            self.on_new_connection(HandshakeKind::Full).await;
        }
        self.operate().await;
    }

    async fn operate(&mut self) {
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
            assert_eq!(self.buffer[head_end..filled], expected[..], "another content");
            return;
        }
        while received < length {
            received += read(connection, &mut self.buffer).await;
        }
        assert_eq!(received, length, "more than was promised");
    }
}

impl Connector {
    fn new(server: &Server, site: &Site, version: &'static SupportedProtocolVersion, resumption: Resumption) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(Arc::clone(&site.server_roots))
            .with_client_auth_cert(site.phone.chain.clone(), site.phone.key())
            .unwrap();
        config.resumption = resumption;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self { program: server.program, address: server.address, tls: TlsConnector::from(Arc::new(config)) }
    }

    /// Connects; the handshake must be of this `kind`, and use the same suites with every server.
    async fn connect(&self, kind: HandshakeKind) -> Connection {
        let stream = TcpStream::connect(self.address).await.expect("a connection");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        let name = ServerName::try_from(HOST).unwrap();
        let connection = self.tls.connect(name, stream).await;
        let connection = connection.unwrap_or_else(|error| panic!("{:?}: handshake: {error}", self.program));
        let tls = connection.get_ref().1;
        assert_eq!(tls.handshake_kind(), Some(kind), "{:?}", self.program);
        let suite = tls.negotiated_cipher_suite().map(|suite| suite.suite());
        assert!(
            matches!(
                suite,
                Some(
                    CipherSuite::TLS13_AES_128_GCM_SHA256
                        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
                )
            ),
            "{:?} chose {suite:?}",
            self.program
        );
        connection
    }
}

/// All lanes at once until the time is over; gives them back with how many operations they have done.
///
/// The load's processor never sleeps meanwhile: to wake it up would cost the server more than a small file, and the
/// faster it is the more often.
pub async fn run(lanes: Vec<Lane>, time: Duration) -> (Vec<Lane>, u64) {
    let deadline = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for mut lane in lanes {
        tasks.spawn(async move {
            let mut operations = 0;
            while Instant::now() < deadline {
                lane.operate().await;
                operations += 1;
            }
            (lane, operations)
        });
    }
    while Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    let (mut lanes, mut operations) = (Vec::new(), 0);
    while let Some(ended) = tasks.join_next().await {
        let (lane, done) = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        lanes.push(lane);
        operations += done;
    }
    (lanes, operations)
}

/// What each of `count` idle connections takes of the server's memory, in KiB, after one small file each.
pub async fn idle_memory(server: &Server, site: &Site, count: usize) -> f64 {
    eprintln!("idle connections of {:?}", server.program);
    let connector = Connector::new(server, site, &TLS13, Resumption::disabled());
    let expected = Expected::Bytes(site.small_file.clone());
    let buffer = vec![0; 16 << 10];
    let (operation, request) = (Operation::SmallFile, get(SMALL_FILE));
    let mut lane = Lane { connector, operation, request, expected, open: None, buffer };
    // What the first connections of a process cost is its own, not theirs.
    let mut open = Vec::new();
    let mut before = 0;
    for number in 0..count + count / 10 {
        if number == count / 10 {
            before = settled_memory_kib(server).await;
        }
        lane.operate().await;
        open.extend(lane.open.take());
    }
    let after = settled_memory_kib(server).await;
    (after as f64 - before as f64) / count as f64
}

async fn settled_memory_kib(server: &Server) -> u64 {
    tokio::time::sleep(Duration::from_millis(300)).await;
    machine::memory_kib(server.pid())
}

fn get(path: &str) -> Vec<u8> {
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
    assert!(read > 0, "the server hung up");
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
