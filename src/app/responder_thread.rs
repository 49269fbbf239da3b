//! The built-in DNS responder, on a thread and a runtime of its own, so that a flood of queries cannot slow phones.
//!
//! An address that is unavailable never stops phones: it is tried again, and without any the renewal asks for an operator.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::socket_activation::{ActivatedSockets, RESPONDER, SocketActivationError};
use super::{ANNOUNCEMENT, AppError, sockets};
use crate::background::{Heartbeat, HeartbeatMonitor};
use crate::config::{CertificateSource, Config};
use crate::dns::Responder;
use crate::dns::responder::{ResponderSockets, challenge_name, serve};

/// The pause between two attempts to listen on an address.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// The pause between two attempts to find the zone.
const ZONE_INTERVAL: Duration = Duration::from_secs(10);
/// How many ports are tried where the system chooses one: it must be free for UDP and TCP.
const PORT_TRIES: usize = 20;
const BACKLOG: i32 = 128;
/// The pause between two signs of life.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How far the thread stands back (setpriority(2)).
const NICENESS: i32 = 10;

/// The responder before it serves.
#[derive(Debug)]
pub(super) struct OpenResponder {
    responder: Arc<Responder>,
    domain: String,
    sockets: Vec<ResponderSockets>,
    unavailable: Vec<SocketAddr>,
}

/// The responder while it serves.
#[derive(Debug)]
pub(super) struct ResponderThread {
    stop: oneshot::Sender<()>,
    heartbeat: HeartbeatMonitor,
    thread: JoinHandle<()>,
}

impl OpenResponder {
    /// Listens on the addresses of `config`, by activated sockets or by new ones.
    ///
    /// # Errors
    /// If an activated socket does not fit. An address that is unavailable is logged, and tried again later.
    pub(super) fn open(
        responder: &Arc<Responder>,
        config: &Config,
        activated: &mut ActivatedSockets,
    ) -> Result<Self, AppError> {
        let mut open = Self {
            responder: Arc::clone(responder),
            domain: config.domain.clone(),
            sockets: Vec::new(),
            unavailable: Vec::new(),
        };
        let mut last_error = None;
        for address in listen_addresses(config) {
            match listen(address, activated)? {
                Ok(sockets) => {
                    announce(&sockets, address);
                    open.sockets.push(sockets);
                }
                Err(error) => {
                    let message = unavailable(address, &error);
                    tracing::error!("{message}");
                    open.unavailable.push(address);
                    last_error = Some(message);
                }
            }
        }
        // Resolvers try the other addresses of a name server.
        responder.set_fault(last_error.filter(|_| open.sockets.is_empty()));
        Ok(open)
    }

    /// Serves until [`ResponderThread::end`].
    pub(super) fn start(self) -> io::Result<ResponderThread> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let (heartbeat, monitor) = Heartbeat::start();
        let thread = std::thread::Builder::new().name("dns".to_owned()).spawn(move || {
            lower_priority();
            runtime.block_on(async {
                tokio::select! {
                    () = self.run(heartbeat) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(ResponderThread { stop, heartbeat: monitor, thread })
    }

    async fn run(self, heartbeat: Heartbeat) {
        let Self { responder, domain, sockets, mut unavailable } = self;
        // Aborts its tasks when it is dropped.
        let mut serving = JoinSet::new();
        serving.spawn(beat(heartbeat));
        for sockets in sockets {
            serving.spawn(keep_serving(Arc::clone(&responder), sockets));
        }
        serving.spawn(find_zone(Arc::clone(&responder), domain));
        while !unavailable.is_empty() {
            tokio::time::sleep(RETRY_INTERVAL).await;
            unavailable.retain(|address| match bind(*address) {
                Ok(sockets) => {
                    announce(&sockets, *address);
                    serving.spawn(keep_serving(Arc::clone(&responder), sockets));
                    responder.set_fault(None);
                    false
                }
                Err(_) => true,
            });
        }
        while serving.join_next().await.is_some() {}
    }
}

impl ResponderThread {
    pub(super) fn heartbeat(&self) -> HeartbeatMonitor {
        self.heartbeat.clone()
    }

    /// Stops the thread, and waits until its sockets are closed.
    pub(super) async fn end(self) {
        // The thread may have ended.
        let _ = self.stop.send(());
        let _ = tokio::task::spawn_blocking(move || self.thread.join()).await;
    }
}

async fn beat(heartbeat: Heartbeat) {
    loop {
        heartbeat.beat();
        tokio::time::sleep(HEARTBEAT_INTERVAL).await;
    }
}

/// Lets phones go first where they share a processor with the responder, so that a flood of queries slows only itself. A
/// resolver waits for seconds.
fn lower_priority() {
    // On Linux, the priority is that of the thread.
    let thread = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(thread), NICENESS) {
        tracing::debug!("the DNS responder runs at the usual priority: {error}");
    }
}

/// Serves for ever, also after a panic.
async fn keep_serving(responder: Arc<Responder>, sockets: ResponderSockets) {
    loop {
        let copies =
            sockets.udp.try_clone().and_then(|udp| Ok(ResponderSockets { udp, tcp: sockets.tcp.try_clone()? }));
        match copies {
            Ok(copies) => {
                let mut task = JoinSet::new();
                task.spawn(serve(Arc::clone(&responder), copies));
                match task.join_next().await {
                    Some(Ok(Err(error))) => tracing::error!("the DNS responder cannot serve: {error}"),
                    _ => tracing::error!("the DNS responder failed by a defect of provost; it begins again"),
                }
            }
            Err(error) => tracing::error!("the DNS responder cannot serve: {error}"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Finds the zone that is delegated to us, so that it is served before a renewal needs it, and waits until no record of the
/// delegation makes validations fail.
async fn find_zone(responder: Arc<Responder>, domain: String) {
    let mut last = None;
    while let Err(error) = responder.find_delegation(&challenge_name(&domain)).await {
        let error = error.to_string();
        if last.as_ref() != Some(&error) {
            tracing::warn!("{error}");
            last = Some(error);
        }
        tokio::time::sleep(ZONE_INTERVAL).await;
    }
    if last.is_some() {
        // Attempts failed meanwhile, and the next one may be hours away.
        tracing::info!("{} is delegated to this server now", responder.zone());
        responder.wake_renewal();
    }
}

fn listen_addresses(config: &Config) -> Vec<SocketAddr> {
    match &config.certificate {
        CertificateSource::Acme(settings) => {
            settings.dns.responder().map(|settings| settings.responder.listen.clone()).unwrap_or_default()
        }
        CertificateSource::Files(_) | CertificateSource::LocalCa(_) => Vec::new(),
    }
}

/// The sockets of `address`. A socket that systemd does not pass is bound here.
fn listen(
    address: SocketAddr,
    activated: &mut ActivatedSockets,
) -> Result<io::Result<ResponderSockets>, SocketActivationError> {
    let (udp, tcp) = (activated.udp(RESPONDER, address), activated.tcp(RESPONDER, address)?);
    if udp.is_none() && tcp.is_none() {
        return Ok(bind(address));
    }
    let udp = udp.map_or_else(|| bind_udp(address), Ok);
    let tcp = tcp.map_or_else(|| bind_tcp(address), Ok);
    Ok(udp.and_then(|udp| Ok(ResponderSockets { udp, tcp: tcp? })))
}

/// Binds `address` for both protocols. For port 0, the system chooses one that is free for both.
fn bind(address: SocketAddr) -> io::Result<ResponderSockets> {
    let attempt = || {
        let tcp = bind_tcp(address)?;
        Ok(ResponderSockets { udp: bind_udp(tcp.local_addr()?)?, tcp })
    };
    let mut result = attempt();
    for _ in 1..PORT_TRIES {
        if address.port() != 0 || result.is_ok() {
            break;
        }
        result = attempt();
    }
    result
}

fn bind_tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn bind_udp(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn announce(sockets: &ResponderSockets, address: SocketAddr) {
    let address = sockets.udp.local_addr().unwrap_or(address);
    tracing::info!(target: ANNOUNCEMENT, "DNS responder on {address} (UDP and TCP)");
}

fn unavailable(address: SocketAddr, error: &io::Error) -> String {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => " (another DNS server listens there: `ss -lntup sport = :53` shows it)",
        _ => sockets::hint(error),
    };
    format!(
        "the DNS responder cannot listen on {address}: {error}{hint}; the port is tried every {} s, and a renewal follows as \
         soon as it is free",
        RETRY_INTERVAL.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::dns::DnsMethod;

    /// Longer than a busy machine needs.
    const SOON: Duration = Duration::from_mins(1);

    fn started(state: &std::path::Path) -> ResponderThread {
        // No resolver answers there.
        let settings = r#"{ "responder": { "listen": ["192.0.2.10:53"] }, "zone": "_acme-challenge.phones.example.com",
            "resolvers": ["127.0.0.1:1"] }"#;
        let settings: DnsMethod = serde_json::from_str(settings).unwrap();
        let responder = Responder::open(settings.responder().unwrap(), "phones.example.com", state).unwrap();
        let (sockets, unavailable) = (Vec::new(), Vec::new());
        let domain = "phones.example.com".to_owned();
        OpenResponder { responder: Arc::new(responder), domain, sockets, unavailable }.start().unwrap()
    }

    fn wait_until(is_so: impl Fn() -> bool) {
        let deadline = clock::monotonic() + SOON;
        while !is_so() {
            assert!(clock::monotonic() < deadline);
            std::thread::yield_now();
        }
    }

    #[test]
    fn responder_beats_for_the_watchdog_until_it_ends() {
        let state = tempfile::tempdir().unwrap();
        let thread = started(state.path());
        let heartbeat = thread.heartbeat();
        let first = heartbeat.last().unwrap();
        wait_until(|| heartbeat.last().is_some_and(|last| last > first));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(thread.end());
        assert_eq!(heartbeat.last(), None);
    }

    #[test]
    fn responder_that_failed_is_dead_to_the_watchdog() {
        let state = tempfile::tempdir().unwrap();
        let thread = started(state.path());
        let heartbeat = thread.heartbeat();
        // As after a panic: the thread is gone without `end`.
        drop(thread.stop);
        thread.thread.join().unwrap();
        assert_eq!(heartbeat.last(), None);
    }
}
