//! Our DNS client with real BIND, Knot and Unbound: where records go, adding and removing them, refusals, authorities,
//! transports, and what is left in caches.

mod caches;
mod grants;
mod key_files;
mod propagation;
mod reach;
mod record_locations;
mod refusal_causes;
mod refusals;
mod transport;
mod updates;

use std::time::Duration;

use provost::dns::{Dns, DnsSettings, PropagationTimeouts, RecordLocation};

use crate::harness::TIMEOUT;
use crate::harness::bind::{Bind, BindConfig};

const CHALLENGE: &str = "_acme-challenge.phones.example.com";
const POLICY: &str = "grant provost. name _acme-challenge.phones.example.com. TXT;";
const FOREIGN_VALUE: &str = "somebody else's";

/// The usual primary: `example.com`, with another program's value at the challenge's name.
fn example_config() -> BindConfig {
    let records = format!("phones A 127.0.0.1\n*.phones A 127.0.0.1\n_acme-challenge.phones TXT \"{FOREIGN_VALUE}\"");
    BindConfig::new().key("provost.", "hmac-sha256").primary("example.com", &records, POLICY)
}

fn example() -> Bind {
    example_config().start()
}

fn place() -> RecordLocation {
    RecordLocation { name: CHALLENGE.to_owned(), zone: "example.com".to_owned(), via: Vec::new() }
}

fn open(settings: &DnsSettings) -> Dns {
    Dns::open(settings).unwrap()
}

/// Long timeouts for servers that must answer, and short ones for the others.
fn quick() -> PropagationTimeouts {
    PropagationTimeouts {
        between_looks: Duration::from_millis(20),
        for_lagging: TIMEOUT,
        for_silent: Duration::from_secs(3),
        to_settle: Duration::ZERO,
    }
}

fn values(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

/// A progress callback that ignores its lines.
fn ignore(_: String) {}
