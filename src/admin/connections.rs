//! The open connections of the operators' listener, with a limit in all and per client.
//!
//! When a limit is reached, a new connection replaces one without a request in progress: one that has not sent a request
//! yet, or else one that is idle after a request. Of these, the client with the most loses its oldest one. So a client
//! that only connects does not keep operators out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::AbortHandle;

use super::Endpoint;

/// The maximum of connections.
pub(super) const CONNECTIONS: usize = 128;
/// The maximum of connections of one client: an IPv4 address, or an IPv6 /64.
pub(super) const CONNECTIONS_OF_ONE: usize = 32;

/// The open connections, by number: the oldest comes first.
pub(super) struct Connections {
    endpoint: Endpoint,
    open: BTreeMap<u64, Connection>,
    accepted: u64,
    /// The limits that are reached, and logged.
    logged: HashSet<Limit>,
}

struct Connection {
    /// `None` on a Unix socket.
    client: Option<IpAddr>,
    requests: Arc<Requests>,
    task: AbortHandle,
}

/// The requests of one connection.
#[derive(Debug, Default)]
pub(super) struct Requests {
    received: AtomicUsize,
    in_progress: AtomicUsize,
}

/// A request in progress, until its response was sent.
#[derive(Debug)]
pub(super) struct RequestInProgress(Arc<Requests>);

impl Requests {
    /// Notes that the header of a request is complete.
    pub(super) fn begin(self: &Arc<Self>) -> RequestInProgress {
        self.received.fetch_add(1, Ordering::Relaxed);
        self.in_progress.fetch_add(1, Ordering::Relaxed);
        RequestInProgress(Arc::clone(self))
    }

    fn is_waiting(&self) -> bool {
        self.in_progress.load(Ordering::Relaxed) == 0
    }

    fn is_silent(&self) -> bool {
        self.received.load(Ordering::Relaxed) == 0
    }
}

impl Drop for RequestInProgress {
    fn drop(&mut self) {
        self.0.in_progress.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A limit that is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Limit {
    All,
    Client(IpAddr),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => {
                write!(
                    f,
                    "connection limit of {CONNECTIONS} reached; new connections are closed unless an open one is idle"
                )
            }
            Self::Client(client) => write!(
                f,
                "connection limit of {CONNECTIONS_OF_ONE} per client reached by {client}; its new connections are closed unless an open one is idle"
            ),
        }
    }
}

impl Connections {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, open: BTreeMap::new(), accepted: 0, logged: HashSet::new() }
    }

    /// Whether there is no room for a new connection of `client`.
    pub(super) fn is_full_for(&mut self, client: Option<IpAddr>) -> bool {
        self.open.retain(|_, connection| !connection.task.is_finished());
        let reached: HashSet<Limit> = self.logged.iter().copied().filter(|limit| self.is_reached(*limit)).collect();
        self.logged = reached;
        self.reached_by(client).is_some()
    }

    /// Makes room for a new connection of `client`; closes another one if need be. Returns whether there is room.
    pub(super) fn make_room(&mut self, client: Option<IpAddr>) -> bool {
        let Some(limit) = self.reached_by(client) else { return true };
        if self.logged.insert(limit) {
            tracing::warn!("{}: {limit}", self.endpoint);
        }
        let Some(number) = self.victim(limit) else { return false };
        if let Some(victim) = self.open.remove(&number) {
            victim.task.abort();
        }
        true
    }

    /// Adds a connection of `client`, which `task` serves.
    pub(super) fn add(&mut self, client: Option<IpAddr>, requests: Arc<Requests>, task: AbortHandle) {
        self.accepted += 1;
        self.open.insert(self.accepted, Connection { client, requests, task });
    }

    fn reached_by(&self, client: Option<IpAddr>) -> Option<Limit> {
        let limits = client.map(Limit::Client).into_iter().chain([Limit::All]);
        limits.into_iter().find(|limit| self.is_reached(*limit))
    }

    fn is_reached(&self, limit: Limit) -> bool {
        match limit {
            Limit::All => self.open.len() >= CONNECTIONS,
            Limit::Client(_) => self.counted_in(limit).count() >= CONNECTIONS_OF_ONE,
        }
    }

    /// The connections that count toward `limit`, the oldest first.
    fn counted_in(&self, limit: Limit) -> impl Iterator<Item = (u64, &Connection)> {
        let counts = move |connection: &Connection| match limit {
            Limit::All => true,
            Limit::Client(client) => connection.client == Some(client),
        };
        self.open.iter().filter(move |(_, connection)| counts(connection)).map(|(number, it)| (*number, it))
    }

    /// The connection to close, because `limit` is reached.
    fn victim(&self, limit: Limit) -> Option<u64> {
        let waiting: Vec<_> = self.counted_in(limit).filter(|(_, it)| it.requests.is_waiting()).collect();
        [true, false].into_iter().find_map(|is_silent| {
            let candidates = || waiting.iter().filter(|(_, it)| it.requests.is_silent() == is_silent);
            let mut weights: HashMap<Option<IpAddr>, usize> = HashMap::new();
            candidates().for_each(|(_, it)| *weights.entry(it.client).or_default() += 1);
            let most = weights.values().copied().max()?;
            candidates().find(|(_, it)| weights.get(&it.client) == Some(&most)).map(|(number, _)| *number)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::task::JoinSet;

    use super::*;

    struct Listener {
        connections: Connections,
        tasks: JoinSet<()>,
    }

    impl Listener {
        fn new() -> Self {
            let endpoint = Endpoint::Tcp(([127, 0, 0, 1], 1).into());
            Self { connections: Connections::new(endpoint), tasks: JoinSet::new() }
        }

        /// A new connection from the address 192.0.2.`last`, unless it is refused.
        fn accept(&mut self, last: u8) -> Option<Arc<Requests>> {
            let client = Some(IpAddr::from([192, 0, 2, last]));
            self.connections.is_full_for(client);
            self.connections.make_room(client).then(|| {
                let requests = Arc::new(Requests::default());
                let task = self.tasks.spawn(pending());
                self.connections.add(client, Arc::clone(&requests), task);
                requests
            })
        }

        /// The addresses of the open connections, the oldest first.
        fn open(&self) -> Vec<u8> {
            let last = |connection: &Connection| match connection.client {
                Some(IpAddr::V4(address)) => address.octets()[3],
                _ => 0,
            };
            self.connections.open.values().map(last).collect()
        }
    }

    #[tokio::test]
    async fn heaviest_client_loses_its_oldest_silent_connection() {
        let mut listener = Listener::new();
        // One that is older than all, of a client with few.
        listener.accept(9).unwrap();
        for client in 1..=4 {
            (0..31).for_each(|_| drop(listener.accept(client).unwrap()));
        }
        (0..3).for_each(|_| drop(listener.accept(5).unwrap()));
        assert_eq!(listener.open().len(), CONNECTIONS);
        for number in 0..8 {
            listener.accept(100 + number).unwrap();
        }
        let open = listener.open();
        let count = |last: u8| open.iter().map(|it| usize::from(*it == last)).sum::<usize>();
        assert_eq!([1, 2, 3, 4, 5, 9].map(count), [29, 29, 29, 29, 3, 1]);
        assert_eq!((open.len(), count(107)), (CONNECTIONS, 1));
    }

    #[tokio::test]
    async fn idle_connections_go_after_silent_ones_and_busy_ones_stay() {
        let mut listener = Listener::new();
        let busy: Vec<_> = (0..30).map(|_| listener.accept(1).unwrap().begin()).collect();
        let idle = listener.accept(1).unwrap();
        drop(idle.begin());
        let silent = listener.accept(1).unwrap();
        let is_open = |listener: &Listener, requests: &Arc<Requests>| {
            listener.connections.open.values().any(|it| Arc::ptr_eq(&it.requests, requests))
        };
        // The silent one goes, although the idle one is older.
        let newer = listener.accept(1).unwrap().begin();
        assert_eq!((is_open(&listener, &silent), is_open(&listener, &idle)), (false, true));
        let newest = listener.accept(1).unwrap().begin();
        assert!(!is_open(&listener, &idle));
        assert!(listener.accept(1).is_none(), "all are busy");
        assert!(listener.accept(2).is_some(), "another client has its own");
        drop(newer);
        assert!(listener.accept(1).is_some());
        drop((busy, newest));
    }

    #[tokio::test]
    async fn closed_connections_leave_room() {
        let mut listener = Listener::new();
        let requests: Vec<_> = (0..32).map(|_| listener.accept(1).unwrap().begin()).collect();
        assert!(listener.accept(1).is_none());
        listener.tasks.abort_all();
        while listener.tasks.join_next().await.is_some() {}
        assert!(listener.accept(1).is_some());
        assert_eq!((requests.len(), listener.open()), (32, vec![1]));
    }
}
