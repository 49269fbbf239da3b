//! Socket activation: sockets from systemd (`LISTEN_FDS`, `sd_listen_fds(3)`). While provost does not run, connections
//! wait in them.
//!
//! `provost.json` must ask for each of them. A socket is matched by its address. If its name (`FileDescriptorName=`) is
//! a key of `provost.json`, it is for that key only.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use listenfd::ListenFd;
use rustix::net::sockopt;
use socket2::{SockAddr, Socket, Type};

/// The key of `provost.json` with the addresses for phones.
pub const LISTEN: &str = "listen";
/// The key of `provost.json` with the address for operators.
pub const STATUS: &str = "status";
/// The key of `provost.json` with the addresses for plain HTTP.
pub const PLAIN_HTTP: &str = "plain_http";
/// The key of `provost.json` with the addresses of the DNS responder.
pub const RESPONDER: &str = "responder";
/// The keys of `provost.json` that ask for sockets. A socket with one of these names is for that key only.
const KEYS: [&str; 4] = [LISTEN, STATUS, PLAIN_HTTP, RESPONDER];

/// The sockets that systemd passed and that are not claimed yet.
#[derive(Debug, Default)]
pub struct ActivatedSockets {
    sockets: Vec<ActivatedSocket>,
}

#[derive(Debug)]
struct ActivatedSocket {
    name: String,
    socket: Socket,
    kind: Type,
    address: SockAddr,
}

/// Why an activated socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketActivationError {
    /// No setting asks for it.
    #[error(
        "systemd passes {0}, which provost.json does not configure; run `provost print systemd-socket --config FILE` to \
         print the socket unit for provost.json"
    )]
    Unclaimed(String),
    /// It is neither a listening stream socket nor a UDP socket.
    #[error(
        "systemd passes file descriptor {fd} ({name}), which is neither a listening stream socket nor a UDP socket: {source}"
    )]
    Unusable {
        /// The number of its file descriptor.
        fd: usize,
        name: String,
        /// The error of the system.
        source: io::Error,
    },
    /// It is dual-stack: it would show IPv4 addresses as IPv6 ones.
    #[error("systemd passes {0}, which also accepts IPv4; set BindIPv6Only=ipv6-only in its socket unit")]
    DualStack(String),
}

impl ActivatedSockets {
    /// Takes the sockets of this process. Call it before any thread starts: it removes the variables from the
    /// environment, and marks the sockets close-on-exec.
    ///
    /// # Errors
    /// If one is not a listening stream socket.
    pub fn from_environment() -> Result<Self, SocketActivationError> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut descriptors = ListenFd::from_env();
        let mut names = names.split(':');
        let mut sockets = Vec::new();
        for index in 0..descriptors.len() {
            let name = names.next().unwrap_or_default().to_owned();
            // The first descriptors are standard input, output and error.
            let unusable = |source| SocketActivationError::Unusable { fd: index + 3, name: name.clone(), source };
            sockets.push(ActivatedSocket::take(&mut descriptors, index, name.clone()).map_err(unusable)?);
        }
        Ok(Self { sockets })
    }

    /// Claims the socket for `address`, which the `key` of `provost.json` names, if there is one.
    ///
    /// # Errors
    /// If the socket is dual-stack.
    pub fn tcp(&mut self, key: &str, address: SocketAddr) -> Result<Option<TcpListener>, SocketActivationError> {
        let Some(found) = self.claim(key, Type::STREAM, &address.into()) else { return Ok(None) };
        let is_any = address.is_ipv6() && address.ip().is_unspecified();
        if is_any && !found.socket.only_v6().unwrap_or(true) {
            return Err(SocketActivationError::DualStack(found.to_string()));
        }
        Ok(Some(found.socket.into()))
    }

    /// Claims the UDP socket for `address`, which the `key` of `provost.json` names, if there is one.
    pub fn udp(&mut self, key: &str, address: SocketAddr) -> Option<UdpSocket> {
        Some(self.claim(key, Type::DGRAM, &address.into())?.socket.into())
    }

    /// Claims the socket at `path`, which the `key` of `provost.json` names, if there is one.
    pub fn unix(&mut self, key: &str, path: &Path) -> Option<UnixListener> {
        Some(OwnedFd::from(self.claim(key, Type::STREAM, &SockAddr::unix(path).ok()?)?.socket).into())
    }

    /// Checks that every socket is claimed. Call it after all listeners are open.
    ///
    /// # Errors
    /// If a socket is left: its clients would wait forever.
    pub fn ensure_all_claimed(&self) -> Result<(), SocketActivationError> {
        self.sockets.first().map_or(Ok(()), |socket| Err(SocketActivationError::Unclaimed(socket.to_string())))
    }

    fn claim(&mut self, key: &str, kind: Type, address: &SockAddr) -> Option<ActivatedSocket> {
        let index = self.sockets.iter().position(|it| {
            let is_free = it.name == key || !KEYS.contains(&it.name.as_str());
            is_free && it.kind == kind && it.address == *address
        });
        Some(self.sockets.swap_remove(index?))
    }
}

impl ActivatedSocket {
    /// Takes the descriptor at `index`, if it is a socket of a kind that provost uses.
    fn take(descriptors: &mut ListenFd, index: usize, name: String) -> io::Result<Self> {
        let socket = if let Ok(Some(listener)) = descriptors.take_tcp_listener(index) {
            listener.into()
        } else if let Ok(Some(socket)) = descriptors.take_udp_socket(index) {
            socket.into()
        } else {
            OwnedFd::from(descriptors.take_unix_listener(index)?.ok_or(io::ErrorKind::NotFound)?).into()
        };
        Self::of(name, socket)
    }

    fn of(name: String, socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let (kind, address) = (socket.r#type()?, socket.local_addr()?);
        if kind == Type::STREAM && !sockopt::socket_acceptconn(&socket)? {
            return Err(io::Error::other("it does not listen"));
        }
        Ok(Self { name, socket, kind, address })
    }
}

impl fmt::Display for ActivatedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == Type::DGRAM { "UDP socket" } else { "socket" };
        match (self.address.as_socket(), self.address.as_pathname()) {
            (Some(address), _) => write!(f, "the {kind} {address}")?,
            (None, path) => write!(f, "the {kind} {}", path.unwrap_or(Path::new("")).display())?,
        }
        if self.name.is_empty() { Ok(()) } else { write!(f, " ({})", self.name.replace(char::is_control, "\u{fffd}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activated(name: &str, address: &str) -> (ActivatedSockets, SocketAddr) {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let socket = ActivatedSocket::of(name.to_owned(), listener.into()).unwrap();
        (ActivatedSockets { sockets: vec![socket] }, address)
    }

    #[test]
    fn unclaimed_activated_socket_is_an_error_that_names_it() {
        let (mut activated, address) = activated("provost.socket", "127.0.0.1:0");
        assert!(activated.tcp(LISTEN, "127.0.0.1:1".parse().unwrap()).unwrap().is_none());
        assert!(activated.unix("status", Path::new("/run/provost.sock")).is_none());
        let error = activated.ensure_all_claimed().unwrap_err().to_string();
        assert!(
            error.starts_with(&format!(
                "systemd passes the socket {address} (provost.socket), which provost.json does not configure"
            )),
            "{error}"
        );
        assert!(activated.tcp(LISTEN, address).unwrap().is_some());
        activated.ensure_all_claimed().unwrap();
        assert!(activated.tcp(LISTEN, address).unwrap().is_none(), "once");
    }

    #[test]
    fn socket_named_after_a_key_serves_only_that_key() {
        let (mut activated, address) = activated("status", "127.0.0.1:0");
        assert!(activated.tcp(LISTEN, address).unwrap().is_none());
        assert!(activated.tcp("status", address).unwrap().is_some());
    }

    #[test]
    fn dual_stack_socket_is_refused_with_the_remedy() {
        let listener = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None);
        let Ok(listener) = listener else { return };
        listener.set_only_v6(false).unwrap();
        listener.bind(&SocketAddr::from(([0; 8], 0)).into()).unwrap();
        listener.listen(1).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut activated = ActivatedSockets { sockets: vec![ActivatedSocket::of(String::new(), listener).unwrap()] };
        let error = activated.tcp(LISTEN, address).unwrap_err().to_string();
        assert!(error.ends_with("set BindIPv6Only=ipv6-only in its socket unit"), "{error}");
    }
}
