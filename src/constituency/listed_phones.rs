//! The set of all phones on any list of this server, with the number of lists that name each.
//!
//! An edit updates the set by the difference between the old and new lists of the edited constituency. The set is part
//! of the registry's snapshot. It is sharded, and an edit copies only the shards that it changes, so that a snapshot is
//! cheap even with a million phones.

use std::collections::HashMap;
use std::sync::Arc;

use super::{MacAddress, ServerDenials};

/// With a million phones, each shard has about 500.
const SHARDS: usize = 2048;

/// A reference-counted set of MAC addresses. Clones share unchanged shards.
#[derive(Debug, Clone)]
pub struct ListedPhones {
    shards: Vec<Arc<HashMap<MacAddress, u32>>>,
    /// The live server-wide denials, which count as a list too.
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
        self.is_in_a_constituency(mac) || self.denials.has(mac)
    }

    /// Whether a list of a constituency names `mac`.
    #[must_use]
    pub fn is_in_a_constituency(&self, mac: MacAddress) -> bool {
        self.shards[shard_of(mac)].contains_key(&mac)
    }

    /// Treats the server-wide denials as a list too.
    pub(super) fn add_denials(&mut self, denials: Arc<ServerDenials>) {
        self.denials = denials;
    }

    /// Records that one more list names `mac`.
    pub(super) fn add(&mut self, mac: MacAddress) {
        *self.shard(mac).entry(mac).or_default() += 1;
    }

    /// Records that one list fewer names `mac`.
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

/// Shards by the last two octets: phones are numbered consecutively, so these vary most.
fn shard_of(mac: MacAddress) -> usize {
    let [.., before_last, last] = mac.octets();
    usize::from(u16::from_be_bytes([before_last, last])) % SHARDS
}
