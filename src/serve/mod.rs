//! Serves phones: from a TCP connection to a file, an upload, or a refusal with its reason.
//!
//! 1. [`listener`] accepts connections. From a load balancer, each begins with a header that names its client
//!    ([`proxy_protocol`]). Each has a permit ([`connection_limits`]), a timeout for each wait
//!    ([`timeouts`]) and, if the client may still be sending, a lingering close ([`lingering_close`]).
//! 2. [`handshake`]: ClientHello ([`hello`]) → turn in the queue ([`crypto_queue`]) → constituency ([`site`]) → TLS, by
//!    OpenSSL for phones that rustls cannot serve ([`openssl`], [`tls_stream`]) → verified device.
//!    Plain HTTP has no handshake: the Host of each request names the constituency, and no client is authenticated.
//! 3. [`http1`] serves HTTP/1.1 until either end closes or the server
//!    shuts down ([`shutdown`]).
//! 4. [`request`]: [`access_control`] decides each request by its host ([`host`]), its path ([`path`]) and the current
//!    policy. A grant opens the file ([`file_lookup`], [`body`]) or stores the upload ([`upload`]).
//!    In constituencies that use passwords instead of certificates, [`password_auth`] checks one with each request.
//! 5. [`response`] builds the response, by the request's conditions ([`conditional`]).
//! 6. [`access_log`] writes one line for each request ([`request_log`]) and each refused handshake.

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use tokio::sync::oneshot;

use crate::constituency::watch::WatcherHandle;

pub mod access_control;
pub mod access_log;
pub(crate) mod addresses;
pub mod body;
pub mod conditional;
pub mod connection_limits;
pub mod crypto_queue;
mod discard;
mod fd_cache;
pub mod file_lookup;
pub mod handshake;
pub mod hello;
pub mod host;
pub mod http1;
mod limits;
pub mod lingering_close;
pub mod listener;
mod open_beneath;
pub mod openssl;
mod password_auth;
pub mod path;
mod plain_http;
mod proxy_protocol;
pub mod request;
mod request_line;
pub mod request_log;
pub mod response;
pub mod shutdown;
pub mod site;
pub mod symlink_diagnostics;
pub mod timeouts;
pub mod tls_stream;
pub mod upload;

pub use limits::{Limits, client_prefix};
pub use plain_http::PlainHttp;
pub use proxy_protocol::LoadBalancers;

/// The ALPN protocols, in our order of preference. HTTP/0.9 has an identifier too, but the server does not speak it.
const ALPN_PROTOCOLS: [&str; 2] = ["http/1.1", "http/1.0"];

/// The state that all connections share. A part that changes while they are open is replaced as a whole.
#[derive(Debug)]
pub struct Server {
    /// The current constituencies, with their TLS configurations.
    pub site: ArcSwap<site::Site>,
    /// Scans the folders that the site is made from; unset until scanning begins.
    pub scanner: OnceLock<WatcherHandle>,
    /// The server's current certificates.
    pub certificates: Arc<crate::certificate::LiveCertificates>,
    pub uploads: Arc<upload::store::UploadStore>,
    /// Verifies passwords, in constituencies that use them instead of device certificates.
    pub authenticator: crate::identity::digest::DigestAuthenticator,
    /// The access log.
    pub access: access_log::AccessLog,
    /// Counts finished handshakes.
    pub handshakes: Arc<crate::metrics::Handshakes>,
    /// Counts and limits connections.
    pub connection_limits: Arc<connection_limits::ConnectionLimits>,
    /// Handshakes wait here for a CPU.
    pub crypto_queue: Arc<crypto_queue::CryptoQueue>,
    pub limits: Limits,
    /// The load balancers, whose connections begin with a PROXY header.
    pub load_balancers: LoadBalancers,
}

impl Server {
    /// Waits until the folders are scanned again and the result is published.
    async fn scan_folders(&self) {
        let Some(scanner) = self.scanner.get() else { return };
        let (scanned, done) = oneshot::channel::<()>();
        scanner.rescan(move || drop(scanned));
        // The sender is dropped after the scan, or at shutdown.
        let _ = done.await;
    }
}
