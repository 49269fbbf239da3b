//! What phones send us: logs, settings, directories, call lists, by PUT.
//!
//! What it may be called, and which part of the file a body is, the [decision](super::access_control) has said before. Then:
//!
//! 1. [`store`]: one writer per file, few files of one phone at a time, and what the disk allows: [`quotas`], [`usage`],
//!    [`write_quota`].
//! 2. [`receive`]: the body, from the connection into the store.
//! 3. [`sink`]: the file, old or new and never half.

pub mod quotas;
pub mod receive;
pub mod sink;
pub mod store;
pub mod usage;
mod write_quota;
