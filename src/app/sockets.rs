//! Listening sockets.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::socket_activation::{ActivatedSockets, LISTEN, PLAIN_HTTP};
use super::{ANNOUNCEMENT, AppError};
use crate::config::Config;
use crate::serve::shutdown::ShutdownPhase;
use crate::serve::{PlainHttp, Server, listener};

/// The maximum of connections that wait to be accepted. The kernel's own limit applies, too.
const BACKLOG: i32 = 4096;

/// Listens on every address of a `key` of `provost.json`, by an activated socket or by a new one. On a host without
/// IPv6, an IPv6 address is only a warning if another address works.
fn listen_all(
    key: &str,
    addresses: &[SocketAddr],
    activated: &mut ActivatedSockets,
) -> Result<Vec<TcpListener>, AppError> {
    let mut listeners = Vec::new();
    let mut without_ipv6 = None;
    for address in addresses {
        if let Some(socket) = activated.tcp(key, *address)? {
            tracing::info!(target: ANNOUNCEMENT, "listening on {address} (socket activation)");
            listeners.push(TcpListener::from_std(socket)?);
            continue;
        }
        match listen(*address) {
            Ok(listener) => {
                tracing::info!(target: ANNOUNCEMENT, "listening on {}", listener.local_addr().unwrap_or(*address));
                listeners.push(listener);
            }
            Err(source) if is_without_ipv6(*address, &source) => {
                tracing::warn!("not listening on {address}: this host has no IPv6 ({source})");
                without_ipv6 = Some((*address, source));
            }
            Err(source) => return Err(AppError::Listen { address: *address, source }),
        }
    }
    match without_ipv6 {
        Some((address, source)) if listeners.is_empty() => Err(AppError::Listen { address, source }),
        _ => Ok(listeners),
    }
}

/// The listeners for phones.
#[derive(Debug)]
pub(super) struct Listeners {
    tls: Vec<TcpListener>,
    plain: Vec<TcpListener>,
}

impl Listeners {
    /// Listens on the addresses of `config`.
    pub(super) fn open(config: &Config, activated: &mut ActivatedSockets) -> Result<Self, AppError> {
        let tls = listen_all(LISTEN, &config.listen, activated)?;
        Ok(Self { tls, plain: listen_plain(config.plain_http.as_ref(), activated)? })
    }

    /// The addresses on which phones are served over TLS.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.tls.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Accepts and serves connections. The tasks end once `stop` asks for shutdown and the connections are drained.
    pub(super) fn serve(
        self,
        config: &Config,
        server: &Arc<Server>,
        stop: &watch::Receiver<ShutdownPhase>,
    ) -> JoinSet<()> {
        let mut serving = JoinSet::new();
        for listener in self.tls {
            serving.spawn(listener::serve(listener, Arc::clone(server), stop.clone()));
        }
        if let Some(plain) = config.plain_http.clone().map(Arc::new) {
            for listener in self.plain {
                serving.spawn(listener::serve_plain(listener, Arc::clone(&plain), Arc::clone(server), stop.clone()));
            }
        }
        serving
    }
}

/// Listens for plain HTTP, if it is configured.
fn listen_plain(plain: Option<&PlainHttp>, activated: &mut ActivatedSockets) -> Result<Vec<TcpListener>, AppError> {
    let Some(plain) = plain else { return Ok(Vec::new()) };
    let listeners = listen_all(PLAIN_HTTP, &plain.listen, activated)?;
    let networks: Vec<String> = plain.networks.iter().map(ToString::to_string).collect();
    for address in listeners.iter().filter_map(|listener| listener.local_addr().ok()) {
        tracing::info!("plain HTTP on {address}, only for {}", networks.join(", "));
    }
    Ok(listeners)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // Each family has its own socket, so that "0.0.0.0" and "[::]" can be used together.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Whether `address` is unavailable because the host has no IPv6. A host with IPv6 has the loopback address; any other
/// missing address is a mistake of the configuration.
fn is_without_ipv6(address: SocketAddr, error: &io::Error) -> bool {
    address.is_ipv6()
        && match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::AFNOSUPPORT) => true,
            Some(Errno::ADDRNOTAVAIL) => listen((Ipv6Addr::LOCALHOST, 0).into()).is_err(),
            _ => false,
        }
}

/// The remedy for an address that is unavailable.
pub(super) fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            " (ports below 1024 need CAP_NET_BIND_SERVICE: start provost with systemd, or choose another port)"
        }
        io::ErrorKind::AddrInUse => " (another process listens there; `ss -ltnp` shows it)",
        io::ErrorKind::AddrNotAvailable => " (this host has no such address)",
        _ if error.raw_os_error() == Some(Errno::MFILE.raw_os_error()) => {
            " (raise LimitNOFILE to 1024 or more, without systemd by ulimit -n)"
        }
        _ => "",
    }
}
