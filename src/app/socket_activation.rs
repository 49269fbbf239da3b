//! Socket activation: sockets from systemd (`LISTEN_FDS`, `sd_listen_fds(3)`). While provost does not run, connections
//! wait in them.
//!
//! `provost.json` must ask for each of them. A socket is matched by its address. If its name (`FileDescriptorName=`) is
//! a key of `provost.json`, it is for that key only.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use rustix::net::sockopt;

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
    listener: ActivatedListener,
}

#[derive(Debug)]
enum ActivatedListener {
    Tcp(TcpListener, SocketAddr),
    Udp(UdpSocket, SocketAddr),
    Unix(UnixListener, PathBuf),
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
            let listener = ActivatedListener::take(&mut descriptors, index).map_err(unusable)?;
            sockets.push(ActivatedSocket { name, listener });
        }
        Ok(Self { sockets })
    }

    /// Claims the socket for `address`, which the `key` of `provost.json` names, if there is one.
    ///
    /// # Errors
    /// If the socket is dual-stack.
    pub fn tcp(&mut self, key: &str, address: SocketAddr) -> Result<Option<TcpListener>, SocketActivationError> {
        let is_it =
            |socket: &ActivatedSocket| matches!(&socket.listener, ActivatedListener::Tcp(_, at) if *at == address);
        let Some(socket) = self.take(key, is_it) else { return Ok(None) };
        let description = socket.to_string();
        let ActivatedListener::Tcp(listener, _) = socket.listener else { return Ok(None) };
        let is_any = address.is_ipv6() && address.ip().is_unspecified();
        if is_any && !sockopt::ipv6_v6only(&listener).unwrap_or(true) {
            return Err(SocketActivationError::DualStack(description));
        }
        Ok(Some(listener))
    }

    /// Claims the UDP socket for `address`, which the `key` of `provost.json` names, if there is one.
    pub fn udp(&mut self, key: &str, address: SocketAddr) -> Option<UdpSocket> {
        let is_it =
            |socket: &ActivatedSocket| matches!(&socket.listener, ActivatedListener::Udp(_, at) if *at == address);
        match self.take(key, is_it)?.listener {
            ActivatedListener::Udp(socket, _) => Some(socket),
            ActivatedListener::Tcp(..) | ActivatedListener::Unix(..) => None,
        }
    }

    /// Claims the socket at `path`, which the `key` of `provost.json` names, if there is one.
    pub fn unix(&mut self, key: &str, path: &Path) -> Option<UnixListener> {
        let is_it = |socket: &ActivatedSocket| matches!(&socket.listener, ActivatedListener::Unix(_, at) if at == path);
        match self.take(key, is_it)?.listener {
            ActivatedListener::Unix(listener, _) => Some(listener),
            ActivatedListener::Tcp(..) | ActivatedListener::Udp(..) => None,
        }
    }

    /// Checks that every socket is claimed. Call it after all listeners are open.
    ///
    /// # Errors
    /// If a socket is left: its clients would wait forever.
    pub fn ensure_all_claimed(&self) -> Result<(), SocketActivationError> {
        self.sockets.first().map_or(Ok(()), |socket| Err(SocketActivationError::Unclaimed(socket.to_string())))
    }

    fn take(&mut self, key: &str, is_it: impl Fn(&ActivatedSocket) -> bool) -> Option<ActivatedSocket> {
        let may = |socket: &ActivatedSocket| socket.name == key || !KEYS.contains(&socket.name.as_str());
        let index = self.sockets.iter().position(|socket| is_it(socket) && may(socket))?;
        Some(self.sockets.swap_remove(index))
    }
}

impl ActivatedListener {
    fn take(descriptors: &mut ListenFd, index: usize) -> io::Result<Self> {
        let listener = if let Ok(Some(listener)) = descriptors.take_tcp_listener(index) {
            let address = listener.local_addr()?;
            Self::Tcp(listener, address)
        } else if let Ok(Some(socket)) = descriptors.take_udp_socket(index) {
            let address = socket.local_addr()?;
            Self::Udp(socket, address)
        } else {
            let listener = descriptors.take_unix_listener(index)?.ok_or(io::ErrorKind::NotFound)?;
            let path = listener.local_addr()?.as_pathname().map(Path::to_owned).unwrap_or_default();
            Self::Unix(listener, path)
        };
        let (descriptor, set) = match &listener {
            Self::Tcp(listener, _) => (listener.as_fd(), listener.set_nonblocking(true)),
            Self::Unix(listener, _) => (listener.as_fd(), listener.set_nonblocking(true)),
            Self::Udp(socket, _) => {
                socket.set_nonblocking(true)?;
                return Ok(listener);
            }
        };
        set?;
        if sockopt::socket_acceptconn(descriptor)? { Ok(listener) } else { Err(io::Error::other("it does not listen")) }
    }
}

impl fmt::Display for ActivatedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.listener {
            ActivatedListener::Tcp(_, address) => write!(f, "the socket {address}")?,
            ActivatedListener::Udp(_, address) => write!(f, "the UDP socket {address}")?,
            ActivatedListener::Unix(_, path) => write!(f, "the socket {}", path.display())?,
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
        let socket = ActivatedSocket { name: name.to_owned(), listener: ActivatedListener::Tcp(listener, address) };
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
        let listener: TcpListener = listener.into();
        let address = listener.local_addr().unwrap();
        let mut activated = ActivatedSockets {
            sockets: vec![ActivatedSocket { name: String::new(), listener: ActivatedListener::Tcp(listener, address) }],
        };
        let error = activated.tcp(LISTEN, address).unwrap_err().to_string();
        assert!(error.ends_with("set BindIPv6Only=ipv6-only in its socket unit"), "{error}");
    }
}
