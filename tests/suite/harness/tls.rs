//! A blocking client with full control of TLS and HTTP/1.1.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::client::{ClientSessionStore, Resumption};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned, SupportedProtocolVersion};

use super::pki::{Identity, SERVER_CA};
use super::socket::Socket;

/// The settings of a connection. Clones share their session store.
#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
    source: Option<IpAddr>,
    /// What is sent before TLS.
    preamble: Vec<u8>,
    server_name: Option<String>,
    host: String,
    config: ClientConfig,
}

/// An open connection.
pub struct Connection {
    stream: StreamOwned<ClientConnection, Socket>,
    host: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Client {
    /// A client without certificate; without `server_name` it sends no SNI and accepts a certificate for any name.
    pub fn new(address: SocketAddr, server_name: Option<&str>) -> Self {
        let mut client = Self {
            address,
            source: None,
            preamble: Vec::new(),
            server_name: server_name.map(str::to_owned),
            host: server_name.map_or_else(|| address.to_string(), str::to_owned),
            config: config(None, rustls::ALL_VERSIONS),
        };
        client.config.enable_sni = server_name.is_some();
        client
    }

    pub fn with_identity(mut self, identity: &Identity) -> Self {
        let old = self.config;
        self.config = config(Some(identity), rustls::ALL_VERSIONS);
        self.config.enable_sni = old.enable_sni;
        self
    }

    /// Offers only `version`; must come last, because it replaces the identity.
    pub fn only(mut self, version: &'static SupportedProtocolVersion, identity: Option<&Identity>) -> Self {
        let enable_sni = self.config.enable_sni;
        self.config = config(identity, &[version]);
        self.config.enable_sni = enable_sni;
        self
    }

    /// Sets a Host header that differs from the server name.
    pub fn host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.host);
        self
    }

    pub fn host_name(&self) -> &str {
        &self.host
    }

    /// Sends another server name, or none; the session store stays shared with the clones.
    pub fn named(mut self, server_name: Option<&str>) -> Self {
        self.server_name = server_name.map(str::to_owned);
        self.config.enable_sni = server_name.is_some();
        self.host = server_name.map_or_else(|| self.address.to_string(), str::to_owned);
        self
    }

    /// Remembers sessions in `store`.
    pub fn with_sessions(mut self, store: Arc<dyn ClientSessionStore>) -> Self {
        self.config.resumption = Resumption::store(store);
        self
    }

    /// Connects to another address, that of the restarted server.
    pub fn at(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self
    }

    /// Connects from this address.
    pub fn from(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// Sends these bytes before TLS, as a load balancer does.
    pub fn after(mut self, preamble: &[u8]) -> Self {
        self.preamble = preamble.to_vec();
        self
    }

    /// The TLS settings.
    pub fn config(&mut self) -> &mut ClientConfig {
        &mut self.config
    }

    /// Connects and finishes the handshake as the client sees it. In TLS 1.3, a rejection of its certificate arrives
    /// only with the first answer.
    pub fn connect(&self) -> io::Result<Connection> {
        self.finish(self.begin()?, self.tcp()?)
    }

    /// The same with the ClientHello in records of at most `size` bytes.
    pub fn connect_in_pieces(&self, size: usize) -> io::Result<Connection> {
        let mut connection = self.begin()?;
        let mut tcp = self.tcp()?;
        let mut hello = Vec::new();
        connection.write_tls(&mut hello)?;
        tcp.write_all(&in_pieces(&hello, size))?;
        self.finish(connection, tcp)
    }

    /// The ClientHello that this client would send, as one record.
    pub fn hello(&self) -> Vec<u8> {
        let mut hello = Vec::new();
        self.begin().unwrap().write_tls(&mut hello).unwrap();
        hello
    }

    /// A handshake that has not begun.
    pub fn begin(&self) -> io::Result<ClientConnection> {
        // Any certificate is checked against the SNI or, without one, against a name below the domain.
        let name = self.server_name.clone().unwrap_or_else(|| "any.phones.example.com".to_owned());
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        ClientConnection::new(Arc::new(self.config.clone()), name).map_err(io::Error::other)
    }

    fn tcp(&self) -> io::Result<Socket> {
        let mut socket = match self.source {
            Some(source) => Socket::connect_from(source, self.address),
            None => Socket::connect(self.address),
        }?;
        socket.write_all(&self.preamble)?;
        Ok(socket)
    }

    fn finish(&self, connection: ClientConnection, tcp: Socket) -> io::Result<Connection> {
        let mut stream = StreamOwned::new(connection, tcp);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Connection { stream, host: self.host.clone() })
    }

    /// Whether a new connection resumes the session of an earlier one. It sends a request, because the next ticket
    /// comes with the answer.
    pub fn resumes(&self) -> bool {
        let mut connection = self.connect().unwrap();
        let _ = connection.get("/");
        connection.is_resumed()
    }

    /// One GET on a connection of its own.
    pub fn get(&self, path: &str) -> io::Result<Response> {
        self.connect()?.request("GET", path, "", b"")
    }

    /// One PUT on a connection of its own; `headers` are whole lines, each ending in `\r\n`.
    pub fn put(&self, path: &str, headers: &str, body: &[u8]) -> io::Result<Response> {
        self.connect()?.request("PUT", path, headers, body)
    }

    /// Any request on a connection of its own.
    pub fn request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> io::Result<Response> {
        self.connect()?.request(method, path, headers, body)
    }
}

/// Splits a record into records of at most `size` bytes.
pub fn in_pieces(record: &[u8], size: usize) -> Vec<u8> {
    let (header, message) = record.split_at(5);
    assert_eq!(usize::from(u16::from_be_bytes([header[3], header[4]])), message.len(), "one record");
    let piece = |piece: &[u8]| [&header[..3], &u16::try_from(piece.len()).unwrap().to_be_bytes()[..], piece].concat();
    message.chunks(size).flat_map(piece).collect()
}

fn config(identity: Option<&Identity>, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(SERVER_CA.certificate.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key()).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::in_memory_sessions(64);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

impl Connection {
    /// A request with Host and, if there is a body or the method is PUT, Content-Length; unless `headers` contain
    /// Transfer-Encoding.
    pub fn request(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> io::Result<Response> {
        let length =
            if (method == "PUT" || !body.is_empty()) && !headers.to_ascii_lowercase().contains("transfer-encoding") {
                format!("Content-Length: {}\r\n", body.len())
            } else {
                String::new()
            };
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n{length}{headers}\r\n", self.host);
        let written = self.send(head.as_bytes()).and_then(|()| self.send(body));
        // The server may answer and close before it has read everything.
        match self.response(method) {
            Ok(response) => Ok(response),
            Err(error) => Err(written.err().filter(|_| error.kind() == ErrorKind::UnexpectedEof).unwrap_or(error)),
        }
    }

    pub fn get(&mut self, path: &str) -> io::Result<Response> {
        self.request("GET", path, "", b"")
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Reads one response to a request of `method`; `100 Continue` is skipped.
    pub fn response(&mut self, method: &str) -> io::Result<Response> {
        let (status, headers) = self.head()?;
        if status == 100 {
            return self.response(method);
        }
        let has_body = method != "HEAD" && status != 304 && status != 204;
        let length = headers.get("content-length").filter(|_| has_body).map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(Response { status, headers, body })
    }

    /// Reads a status line with its headers, `100 Continue` too.
    pub fn head(&mut self) -> io::Result<(u16, BTreeMap<String, String>)> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).map_err(io::Error::other)?;
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().map_err(io::Error::other)?;
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        Ok((status, headers))
    }

    /// Sends the head of a request with Host and `headers`, and nothing of its body.
    pub fn send_head(&mut self, method: &str, path: &str, headers: &str) -> io::Result<()> {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", self.host);
        self.send(head.as_bytes())
    }

    /// Reads exactly `length` bytes of what comes.
    pub fn read(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads up to a record's worth of bytes, and returns how many.
    pub fn read_some(&mut self) -> io::Result<usize> {
        self.stream.read(&mut [0; 16 << 10])
    }

    /// Reads until the server closes, with or without `close_notify`.
    pub fn read_to_close(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => Ok(rest),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
                ) =>
            {
                Ok(rest)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the server closes within the timeout.
    pub fn is_closed(&mut self) -> bool {
        self.read_to_close().is_ok()
    }

    /// Ends the connection without `close_notify` after all sent bytes have arrived, like a broken network.
    pub fn hang_up(mut self) {
        self.tcp().shutdown(std::net::Shutdown::Write).unwrap();
        // Closing a socket with unread bytes would reset the connection, and the server would lose what it has not
        // read.
        let _ = self.stream.sock.read_to_end(&mut Vec::new());
    }

    /// Whether the handshake resumed a session.
    pub fn is_resumed(&self) -> bool {
        self.stream.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The client's side of TLS.
    pub fn tls(&self) -> &ClientConnection {
        &self.stream.conn
    }

    /// The TCP socket underneath.
    pub fn tcp(&self) -> &TcpStream {
        &self.stream.sock
    }
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The answer without its date, to compare refusals.
    pub fn without_date(mut self) -> Self {
        self.headers.remove("date");
        self
    }
}

/// The TLS alert that an error carries, if any.
pub fn alert(error: &io::Error) -> Option<rustls::AlertDescription> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}
