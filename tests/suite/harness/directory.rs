//! An ACME directory with the content that a test needs. It serves only nonces, or links to another CA.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::pebble::identity;
use super::pki::SERVER_CA;

/// A directory that is served. Dropped, it stops.
pub struct Directory {
    pub url: String,
    folder: tempfile::TempDir,
    is_stopped: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Directory {
    /// Serves a directory with this `meta`, and nonces.
    pub fn start(meta: &Value) -> Self {
        Self::leading_to(meta, &json!({}))
    }

    /// The same with these `links`, to another CA for example, instead of its own.
    pub fn leading_to(meta: &Value, links: &Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = format!("https://{}", listener.local_addr().unwrap());
        let mut directory = json!({ "newNonce": format!("{here}/nonce"), "newAccount": format!("{here}/account") });
        let object = directory.as_object_mut().unwrap();
        object.extend(links.as_object().unwrap().clone());
        object.insert("meta".to_owned(), meta.clone());
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("root.pem"), SERVER_CA.pem()).unwrap();
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_stopped);
        let thread = std::thread::spawn(move || {
            let config = tls();
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                // A client that rejects the certificate disconnects early.
                let _ = answer(&config, stream.unwrap(), &directory.to_string());
            }
        });
        Self { url: format!("{here}/dir"), folder, is_stopped, thread: Some(thread) }
    }

    /// The root of its HTTPS certificate.
    pub fn root_file(&self) -> PathBuf {
        self.folder.path().join("root.pem")
    }

    /// Stops serving; its files stay.
    pub fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.is_stopped.store(true, Ordering::SeqCst);
        // Wakes up the thread, which is waiting in `accept`.
        let _ = TcpStream::connect(self.url.trim_start_matches("https://").trim_end_matches("/dir"));
        let _ = thread.join();
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.stop();
    }
}

fn tls() -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let identity = identity();
    let key = identity.key();
    Arc::new(config.with_no_client_auth().with_single_cert(identity.chain, key).unwrap())
}

/// Answers any request with `text`.
fn answer(config: &Arc<ServerConfig>, stream: TcpStream, text: &str) -> std::io::Result<()> {
    let connection = ServerConnection::new(Arc::clone(config)).map_err(std::io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    let mut line = String::new();
    while stream.read_line(&mut line)? > 2 {
        line.clear();
    }
    let stream = stream.get_mut();
    let length = text.len();
    write!(stream, "HTTP/1.1 200 OK\r\nreplay-nonce: once\r\ncontent-length: {length}\r\n\r\n{text}")?;
    stream.conn.send_close_notify();
    stream.flush()
}
