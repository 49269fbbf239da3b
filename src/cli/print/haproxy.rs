//! A configuration of HAProxy for several nodes of provost. HAProxy passes TLS through, because phones prove their
//! identity to provost, and names each client in a PROXY header.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use crate::admin::Endpoint;
use crate::cli::warn;
use crate::config::Config;
use crate::serve::Limits;

/// The port of HTTPS.
const HTTPS: u16 = 443;
/// The nodes if none is given: addresses for documentation (RFC 5737).
const EXAMPLES: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 11), Ipv4Addr::new(192, 0, 2, 12)];
/// How much longer than provost HAProxy waits for data, in seconds.
const MARGIN_S: u64 = 60;
/// The health check: every so many seconds, and after how many failures a node gets no new connections.
const CHECK_INTERVAL_S: u64 = 2;
const CHECK_FAILURES: u64 = 2;
/// The `shutdown_delay_s` in which HAProxy surely notices that a node will stop.
const SHUTDOWN_DELAY_S: u64 = 10;

/// What `provost print haproxy` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// A node's address, and its port unless that of `listen`; give one for each node [default: two examples].
    #[arg(long, value_name = "ADDRESS[:PORT]", num_args = 1..)]
    node: Vec<NodeAddress>,
    /// Where HAProxy listens; may be given several times [default: on all addresses, at the ports of `listen`].
    #[arg(long, value_name = "ADDRESS:PORT", num_args = 1..)]
    listen: Vec<SocketAddr>,
    /// Send version 1 of the PROXY header, a line of text, instead of version 2.
    #[arg(long)]
    v1: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NodeAddress {
    address: IpAddr,
    port: Option<u16>,
}

impl FromStr for NodeAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let with_port = text.parse().map(|socket: SocketAddr| Self { address: socket.ip(), port: Some(socket.port()) });
        with_port.or_else(|_| text.parse().map(|address| Self { address, port: None })).map_err(|_| {
            "write an IP address, with a port if need be: 10.0.0.11, 10.0.0.11:8443 or [2001:db8::11]:8443".to_owned()
        })
    }
}

/// The configuration for `args`.
pub(super) fn print(args: &Args, config: &Config) -> String {
    let port = config.listen.iter().map(SocketAddr::port).find(|port| *port != 0).unwrap_or(HTTPS);
    let nodes: Vec<SocketAddr> = if args.node.is_empty() {
        EXAMPLES.map(|address| (address, port).into()).to_vec()
    } else {
        args.node.iter().map(|node| (node.address, node.port.unwrap_or(port)).into()).collect()
    };
    let readiness = readiness_port(config, &nodes);
    warn_of_settings(config, readiness);
    let binds = if args.listen.is_empty() { binds(config) } else { args.listen.iter().map(bind).collect() };
    let heading = if args.node.is_empty() { "\n# Replace the addresses of the nodes at the end." } else { "" };
    let idle = inactivity_s(&config.limits);
    let check = match readiness {
        Some(_) => {
            "    # The status is 503 from SIGTERM on, while the node still serves for limits.shutdown_delay_s.
    option httpchk GET /readyz\n"
        }
        None => "    # HAProxy cannot reach /readyz: it only checks that the port is open.\n",
    };
    let check_port = readiness.map(|port| format!(" port {port}")).unwrap_or_default();
    let send_proxy = if args.v1 { "send-proxy" } else { "send-proxy-v2" };
    let servers: String = (1..).zip(&nodes).map(|(number, node)| format!("    server node{number} {node}\n")).collect();
    format!(
        "# HAProxy in front of provost: /etc/haproxy/haproxy.cfg. Printed by provost print haproxy.{heading}

global
    log stdout format raw daemon
    user haproxy
    group haproxy

defaults
    # TLS passes through, because phones prove their identity to provost.
    mode tcp
    log global
    option tcplog
    option log-health-checks
    timeout connect 2s
    timeout check 2s
    # The time without data in both directions. It is longer than provost's timeouts (handshake_s, header_s, idle_s,
    # stall_s), so that provost closes idle connections, and logs why. It does not limit how long a transfer takes.
    timeout client {idle}s
    timeout server {idle}s
    # If a node refuses a connection, another node gets it.
    retries 3
    option redispatch 1

frontend phones
{binds}    default_backend provost

backend provost
    # A phone stays at one node, which has its uploads and its TLS session, until that node is down.
    balance source
    hash-type consistent
{check}    default-server check{check_port} inter {CHECK_INTERVAL_S}s fall {CHECK_FAILURES} rise {CHECK_FAILURES} {send_proxy}
{servers}"
    )
}

/// The ports of `listen`, on all addresses of the same family.
fn binds(config: &Config) -> String {
    let ports: BTreeSet<(bool, u16)> = config
        .listen
        .iter()
        .map(|address| (address.is_ipv6(), if address.port() == 0 { HTTPS } else { address.port() }))
        .collect();
    let line = |(is_ipv6, port)| {
        if is_ipv6 { format!("    bind [::]:{port} v6only\n") } else { format!("    bind :{port}\n") }
    };
    ports.into_iter().map(line).collect()
}

fn bind(address: &SocketAddr) -> String {
    format!("    bind {address}\n")
}

/// How long a connection may be without data in both directions.
fn inactivity_s(limits: &Limits) -> u64 {
    let own = [limits.handshake_s, limits.header_s, limits.idle_s, limits.stall_s];
    own.into_iter().max().unwrap_or_default().saturating_add(MARGIN_S)
}

/// The port of `/readyz`; `None` if HAProxy cannot reach it at the nodes.
fn readiness_port(config: &Config, nodes: &[SocketAddr]) -> Option<u16> {
    let are_here = nodes.iter().all(|node| node.ip().is_loopback());
    match config.status.as_ref()?.listen {
        Endpoint::Tcp(address) if are_here || !address.ip().to_canonical().is_loopback() => {
            Some(address.port()).filter(|port| *port != 0)
        }
        Endpoint::Tcp(_) | Endpoint::Unix(_) => None,
    }
}

fn warn_of_settings(config: &Config, readiness: Option<u16>) {
    if config.load_balancers.networks().is_empty() {
        warn(
            &"provost.json has no \"proxy_protocol\", so the nodes refuse connections of HAProxy: set it to the address of \
              HAProxy on each node, such as \"proxy_protocol\": [\"10.0.0.5/32\"]",
        );
    }
    if readiness.is_none() {
        warn(
            &"HAProxy cannot reach /readyz, so it notices a node that shuts down only when that refuses connections: let \
              \"status\" listen on an address of the node with a fixed port, such as \"listen\": \"10.0.0.11:8444\", with a \
              \"token_file\"",
        );
    } else if config.limits.shutdown_delay_s < SHUTDOWN_DELAY_S {
        warn(&format_args!(
            "limits.shutdown_delay_s is {}: a node refuses connections before HAProxy has noticed that it shuts down; set \
             it to {SHUTDOWN_DELAY_S}",
            config.limits.shutdown_delay_s
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_addresses_have_an_optional_port() {
        for (text, address, port) in [
            ("10.0.0.11", "10.0.0.11", None),
            ("10.0.0.11:8443", "10.0.0.11", Some(8443)),
            ("2001:db8::11", "2001:db8::11", None),
            ("[2001:db8::11]:8443", "2001:db8::11", Some(8443)),
        ] {
            assert_eq!(text.parse(), Ok(NodeAddress { address: address.parse().unwrap(), port }), "{text}");
        }
        for bad in ["", "node1", "10.0.0.11:", "10.0.0.11:99999", "10.0.0.0/24", "[::1]"] {
            assert!(bad.parse::<NodeAddress>().unwrap_err().starts_with("write an IP address"), "{bad}");
        }
    }

    #[test]
    fn haproxy_waits_longer_than_every_timeout_of_provost() {
        assert_eq!(inactivity_s(&Limits::default()), 120);
        assert_eq!(inactivity_s(&Limits { stall_s: 600, ..Limits::default() }), 660);
        assert_eq!(inactivity_s(&Limits { handshake_s: 300, ..Limits::default() }), 360);
    }

    #[test]
    fn readyz_is_checked_where_haproxy_can_reach_it() {
        let port = |listen: &str, node: &str| {
            let mut config = Config::local();
            config.status.as_mut().unwrap().listen = listen.parse().unwrap();
            readiness_port(&config, &[node.parse().unwrap()])
        };
        assert_eq!(port("127.0.0.1:8444", "10.0.0.11:443"), None);
        assert_eq!(port("127.0.0.1:8444", "127.0.0.1:443"), Some(8444));
        assert_eq!(port("10.0.0.11:9000", "10.0.0.11:443"), Some(9000));
        assert_eq!(port("0.0.0.0:8444", "10.0.0.11:443"), Some(8444));
        assert_eq!(port("10.0.0.11:0", "10.0.0.11:443"), None);
        assert_eq!(port("unix:s", "127.0.0.1:443"), None);
        assert_eq!(readiness_port(&Config { status: None, ..Config::local() }, &[]), None);
    }
}
