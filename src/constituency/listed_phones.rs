//! Every phone on any list of this server, counted by the lists that name it.
//!
//! An edit changes the set by the difference of the edited constituency's lists. The set is part of the registry's
//! snapshot: it is cut into shards, and an edit copies only the shards that it changes, so that a snapshot costs little
//! with a million phones.

use std::collections::HashMap;
use std::sync::Arc;

use super::{MacAddress, ServerDenials};

/// With a million phones, a shard has about 500.
const SHARDS: usize = 2048;

/// A counted set of MAC addresses. A clone shares what neither changes.
#[derive(Debug, Clone)]
pub struct ListedPhones {
    shards: Vec<Arc<HashMap<MacAddress, u32>>>,
    /// Those of the whole server are a list too, as they are at each moment.
    denials: Arc<ServerDenials>,
}

impl Default for ListedPhones {
    fn default() -> Self {
        let empty = Arc::default();
        Self { shards: vec![empty; SHARDS], denials: Arc::default() }
    }
}

impl ListedPhones {
    /// Whether any list names `mac`.
    #[must_use]
    pub fn contains(&self, mac: MacAddress) -> bool {
        self.shards[shard_of(mac)].contains_key(&mac) || self.denials.has(mac)
    }

    /// Takes the server-wide denials for a list as well.
    pub(super) fn add_denials(&mut self, denials: Arc<ServerDenials>) {
        self.denials = denials;
    }

    /// Counts one list more that names `mac`.
    pub(super) fn add(&mut self, mac: MacAddress) {
        *self.shard(mac).entry(mac).or_default() += 1;
    }

    /// Counts one list fewer that names `mac`.
    pub(super) fn remove(&mut self, mac: MacAddress) {
        let shard = self.shard(mac);
        match shard.get_mut(&mac) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                shard.remove(&mac);
            }
        }
    }

    fn shard(&mut self, mac: MacAddress) -> &mut HashMap<MacAddress, u32> {
        Arc::make_mut(&mut self.shards[shard_of(mac)])
    }
}

/// Phones are numbered one after another: the last octets differ most.
fn shard_of(mac: MacAddress) -> usize {
    let [.., before_last, last] = mac.octets();
    usize::from(u16::from_be_bytes([before_last, last])) % SHARDS
}
