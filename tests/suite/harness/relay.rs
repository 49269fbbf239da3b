//! A name server's address with something in between: a firewall, a load balancer, a liar. What it passes goes to real
//! servers.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::TIMEOUT;
use super::bind::free_address;

/// The datagrams that answer a datagram.
pub type Answerer = Box<dyn Fn(&[u8]) -> Vec<Vec<u8>> + Send>;

/// What happens to UDP.
pub enum Udp {
    /// The port is closed.
    Closed,
    /// Datagrams are dropped.
    Dropped,
    Answered(Answerer),
}

/// What happens to TCP.
pub enum Tcp {
    /// The port is closed.
    Closed,
    /// Connections are accepted, and nothing is ever answered.
    Mute,
    /// Connections lead to these servers in turn.
    Passed(Vec<SocketAddr>),
}

/// It ends with this value.
pub struct Relay {
    pub address: SocketAddr,
    datagrams: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
}

/// Lets datagrams through to these servers in turn, as a load balancer does.
pub fn passed(servers: &[SocketAddr]) -> Udp {
    let (servers, turn) = (servers.to_vec(), AtomicUsize::new(0));
    Udp::Answered(Box::new(move |question| {
        let server = servers[turn.fetch_add(1, Ordering::SeqCst) % servers.len()];
        exchange(server, question).into_iter().collect()
    }))
}

/// What the server at `server` answers by UDP.
pub fn exchange(server: SocketAddr, question: &[u8]) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket.connect(server).unwrap();
    socket.send(question).ok()?;
    let mut answer = vec![0; 65_535];
    let length = socket.recv(&mut answer).ok()?;
    answer.truncate(length);
    Some(answer)
}

impl Relay {
    pub fn start(udp: Udp, tcp: Tcp) -> Self {
        loop {
            let address = free_address();
            // Another test may have taken the port.
            let (Ok(datagrams), Ok(connections)) = (UdpSocket::bind(address), TcpListener::bind(address)) else {
                continue;
            };
            return Self::of(address, datagrams, connections, udp, tcp);
        }
    }

    /// The same at a given address.
    pub fn start_at(address: SocketAddr, udp: Udp, tcp: Tcp) -> Self {
        let (datagrams, connections) = (UdpSocket::bind(address).unwrap(), TcpListener::bind(address).unwrap());
        Self::of(address, datagrams, connections, udp, tcp)
    }

    fn of(address: SocketAddr, socket: UdpSocket, listener: TcpListener, udp: Udp, tcp: Tcp) -> Self {
        let relay = Self { address, datagrams: Arc::default(), connections: Arc::default(), is_over: Arc::default() };
        let (count, is_over) = (Arc::clone(&relay.datagrams), Arc::clone(&relay.is_over));
        match udp {
            Udp::Closed => drop(socket),
            Udp::Dropped => drop(std::thread::spawn(move || receive(&socket, &is_over, &count, &|_| Vec::new()))),
            Udp::Answered(answer) => drop(std::thread::spawn(move || receive(&socket, &is_over, &count, &answer))),
        }
        let (count, is_over) = (Arc::clone(&relay.connections), Arc::clone(&relay.is_over));
        match tcp {
            Tcp::Closed => drop(listener),
            Tcp::Mute => drop(std::thread::spawn(move || accept(&listener, &is_over, &count, &[]))),
            Tcp::Passed(servers) => drop(std::thread::spawn(move || accept(&listener, &is_over, &count, &servers))),
        }
        relay
    }

    /// How many datagrams have come.
    pub fn datagrams(&self) -> usize {
        self.datagrams.load(Ordering::SeqCst)
    }

    /// How many connections have come.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
    }
}

fn receive(socket: &UdpSocket, is_over: &AtomicBool, count: &AtomicUsize, answer: &dyn Fn(&[u8]) -> Vec<Vec<u8>>) {
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut datagram = vec![0; 65_535];
    while !is_over.load(Ordering::SeqCst) {
        let Ok((length, client)) = socket.recv_from(&mut datagram) else { continue };
        count.fetch_add(1, Ordering::SeqCst);
        for answer in answer(&datagram[..length]) {
            // The client may have gone.
            let _ = socket.send_to(&answer, client);
        }
    }
}

fn accept(listener: &TcpListener, is_over: &AtomicBool, count: &AtomicUsize, servers: &[SocketAddr]) {
    listener.set_nonblocking(true).unwrap();
    let mut mute = Vec::new();
    while !is_over.load(Ordering::SeqCst) {
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        client.set_nonblocking(false).unwrap();
        let turn = count.fetch_add(1, Ordering::SeqCst);
        if servers.is_empty() {
            mute.push(client);
        } else if let Ok(server) = TcpStream::connect(servers[turn % servers.len()]) {
            let (client_too, server_too) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || copy(client, server));
            std::thread::spawn(move || copy(server_too, client_too));
        }
    }
}

/// Copies until one end is closed.
fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        if to.write_all(&piece[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
