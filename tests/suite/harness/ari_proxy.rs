//! A proxy that adds renewal information (RFC 9773) and profiles to a Pebble that has neither. It forwards the other
//! requests to that Pebble and records the orders.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::pebble::{Pebble, identity};
use super::socket::Socket;
use super::tls::Client;

/// The page that explains a window that was moved.
pub const EXPLANATION: &str = "https://ca.example/incidents/7";

/// The proxy. Dropped, it stops.
pub struct AriProxy {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    address: SocketAddr,
    pebble: Client,
    tls: Arc<ServerConfig>,
    /// Certificates with another renewal window than the default.
    windows: Mutex<BTreeMap<String, (OffsetDateTime, OffsetDateTime)>>,
    orders: Mutex<Vec<Value>>,
    queried_certificates: Mutex<Vec<String>>,
    /// Refusals to be sent instead of passing a request on, each once, with the beginning of the request's path.
    refusals: Mutex<Vec<(&'static str, Vec<u8>)>>,
    echoes_replaces: bool,
    is_stopped: AtomicBool,
}

impl AriProxy {
    /// Starts in front of `pebble`, with a renewal window that begins in a month. Without `echoes_replaces`, its orders
    /// lack the field `replaces`.
    pub fn start(pebble: &Pebble, echoes_replaces: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let identity = identity();
        let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(identity.chain.clone(), identity.key())
            .unwrap();
        let shared = Arc::new(Shared {
            address,
            pebble: Client::new(pebble.address(), Some("localhost")),
            tls: Arc::new(tls),
            windows: Mutex::default(),
            orders: Mutex::default(),
            queried_certificates: Mutex::default(),
            refusals: Mutex::default(),
            echoes_replaces,
            is_stopped: AtomicBool::new(false),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if theirs.is_stopped.load(Ordering::SeqCst) {
                    break;
                }
                // A client that disconnects early is no error of the proxy.
                let _ = theirs.serve(client);
            }
        });
        Self { shared, thread: Some(thread) }
    }

    pub fn directory(&self) -> String {
        format!("https://{}/dir", self.shared.address)
    }

    /// Sets the renewal window of all certificates that were queried so far.
    pub fn set_renewal_window(&self, start: OffsetDateTime, end: OffsetDateTime) {
        let windows = self.queried_certificates().into_iter().map(|certificate| (certificate, (start, end)));
        self.shared.windows.lock().unwrap().extend(windows);
    }

    /// Refuses the next request to a path that begins with `path`, with this problem document (RFC 7807) and these
    /// headers. Several refusals are sent in turn.
    pub fn refuses(&self, path: &'static str, problem: &Value, headers: &[&str]) {
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let answer =
            format!("HTTP/1.0 403 Forbidden\r\nContent-Type: application/problem+json\r\n{headers}\r\n{problem}");
        self.shared.refusals.lock().unwrap().push((path, answer.into_bytes()));
    }

    /// Answers the next request to a path that begins with `path` with this, from the status on.
    pub fn answers(&self, path: &'static str, answer: &str) {
        self.shared.refusals.lock().unwrap().push((path, format!("HTTP/1.0 {answer}").into_bytes()));
    }

    /// How many refusals were not sent yet.
    pub fn refusals_left(&self) -> usize {
        self.shared.refusals.lock().unwrap().len()
    }

    /// The payloads of the orders, oldest first.
    pub fn orders(&self) -> Vec<Value> {
        self.shared.orders.lock().unwrap().clone()
    }

    /// The certificates whose renewal window was queried, by their ARI identifiers.
    pub fn queried_certificates(&self) -> Vec<String> {
        self.shared.queried_certificates.lock().unwrap().clone()
    }
}

impl Drop for AriProxy {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::SeqCst);
        // Wakes up the thread, which is waiting in `accept`.
        let _ = TcpStream::connect(self.shared.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self, tcp: TcpStream) -> std::io::Result<()> {
        let connection = ServerConnection::new(Arc::clone(&self.tls)).map_err(std::io::Error::other)?;
        let mut stream = StreamOwned::new(connection, Socket::of(tcp)?);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).map_err(std::io::Error::other)?;
        let length =
            head.to_ascii_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body)?;
        stream.write_all(&self.answer(&head, &body)?)?;
        stream.conn.send_close_notify();
        stream.flush()
    }

    fn answer(&self, head: &str, body: &[u8]) -> std::io::Result<Vec<u8>> {
        let path = head.split(' ').nth(1).unwrap_or_default();
        if let Some(certificate) = path.strip_prefix("/renewal-info/") {
            self.queried_certificates.lock().unwrap().push(certificate.to_owned());
            return Ok(self.renewal_info(certificate));
        }
        if let Some(refusal) = self.refusal(path) {
            return Ok(refusal);
        }
        let answer = self.pass_on(head, body)?;
        Ok(match path {
            "/dir" => changed(&answer, |directory| {
                directory["renewalInfo"] = json!(format!("https://{}/renewal-info", self.address));
                directory["meta"]["profiles"] = json!({ "classic": "as ever", "shortlived": "for six days" });
            }),
            "/order-plz" if answer.starts_with(b"HTTP/1.0 201") => changed(&answer, |order| {
                let ordered = payload(body);
                if self.echoes_replaces {
                    order["replaces"] = ordered["replaces"].clone();
                }
                self.orders.lock().unwrap().push(ordered);
            }),
            _ => answer,
        })
    }

    fn refusal(&self, path: &str) -> Option<Vec<u8>> {
        let mut refusals = self.refusals.lock().unwrap();
        let index = refusals.iter().position(|(start, _)| path.starts_with(start))?;
        Some(refusals.remove(index).1)
    }

    fn renewal_info(&self, certificate: &str) -> Vec<u8> {
        let in_a_month = OffsetDateTime::now_utc() + Duration::days(30);
        let moved = self.windows.lock().unwrap().get(certificate).copied();
        let (start, end) = moved.unwrap_or((in_a_month, in_a_month + Duration::days(1)));
        let window = json!({ "start": start.format(&Rfc3339).unwrap(), "end": end.format(&Rfc3339).unwrap() });
        let mut info = json!({ "suggestedWindow": window });
        if moved.is_some() {
            info["explanationURL"] = json!(EXPLANATION);
        }
        format!("HTTP/1.0 200 OK\r\nRetry-After: 21600\r\n\r\n{info}").into_bytes()
    }

    /// Forwards in HTTP/1.0, whose answers end with the connection. The Host stays, because Pebble builds its URLs from
    /// it.
    fn pass_on(&self, head: &str, body: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut connection = self.pebble.connect()?;
        connection.send(head.replacen("HTTP/1.1\r\n", "HTTP/1.0\r\n", 1).as_bytes())?;
        connection.send(body)?;
        connection.read_to_close()
    }
}

/// An answer with changed JSON.
fn changed(answer: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let text = std::str::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut body = serde_json::from_str(body).unwrap();
    change(&mut body);
    let head: Vec<&str> = head.split("\r\n").filter(|line| !line.starts_with("Content-Length: ")).collect();
    format!("{}\r\n\r\n{body}", head.join("\r\n")).into_bytes()
}

/// The payload of a JWS request (RFC 7515 §7.2.2).
fn payload(request: &[u8]) -> Value {
    let request: Value = serde_json::from_slice(request).unwrap();
    let payload = URL_SAFE_NO_PAD.decode(request["payload"].as_str().unwrap()).unwrap();
    serde_json::from_slice(&payload).unwrap()
}
