//! Serving phones: from a TCP connection to a file, an upload, or a reason why not.
//!
//! 1. [`listener`]: accept, with a permit for each connection ([`connection_limits`]), a deadline for each wait ([`timeouts`]),
//!    a polite end ([`lingering_close`]).
//! 2. [`handshake`]: ClientHello ([`hello`]) → its turn ([`crypto_queue`]) → constituency ([`site`]) → TLS, by OpenSSL for
//!    phones that rustls cannot serve ([`openssl`], [`tls_stream`]) → verified device.
//!    Over plain HTTP there is none of it: each request's Host leads to a constituency, and nobody proves anything.
//! 3. [`http1`]: HTTP/1.1, or rest, until either end closes or the server stops ([`shutdown`]).
//! 4. [`request`]: each request is decided ([`access_control`]) from its host ([`host`]), its path ([`path`]) and the policy
//!    as it is now; the grant opens the file ([`file_lookup`], [`body`]) or stores the upload ([`upload`]).
//!    Where passwords take a certificate's place, [`password_auth`] asks for one with each request.
//! 5. [`response`]: what the peer gets to see, by its conditions ([`conditional`]).
//! 6. [`access_log`]: one line for each request ([`request_log`]) and each refused handshake.

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

/// The protocols that are agreed on by ALPN, in our order. HTTP/0.9 has an identifier too, but is not spoken here.
const ALPN_PROTOCOLS: [&str; 2] = ["http/1.1", "http/1.0"];

/// What all connections serve from. Everything that changes while they last is published whole.
#[derive(Debug)]
pub struct Server {
    /// Constituencies with their TLS configurations, as they are now.
    pub site: ArcSwap<site::Site>,
    /// Scans the folders that the site is made of; unset before that begins.
    pub scanner: OnceLock<WatcherHandle>,
    /// The server's certificates, as they are now.
    pub certificates: Arc<crate::certificate::LiveCertificates>,
    /// Uploads.
    pub uploads: Arc<upload::store::UploadStore>,
    /// Judges passwords, where they take a certificate's place.
    pub gate: crate::identity::digest::DigestAuthenticator,
    /// The access log.
    pub access: access_log::AccessLog,
    /// Handshakes that were finished.
    pub handshakes: Arc<crate::metrics::Handshakes>,
    /// Counts connections.
    pub connection_limits: Arc<connection_limits::ConnectionLimits>,
    /// Where handshakes wait for a processor.
    pub crypto_queue: Arc<crypto_queue::CryptoQueue>,
    /// Limits.
    pub limits: Limits,
}

impl Server {
    /// Waits until the folders have been scanned again, and what was found is published.
    async fn scan_folders(&self) {
        let Some(scanner) = self.scanner.get() else { return };
        let (looked, look) = oneshot::channel::<()>();
        scanner.look(move || drop(looked));
        // Dropped, it is done, or the server is being stopped.
        let _ = look.await;
    }
}
