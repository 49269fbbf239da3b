//! Uploads of phones by PUT: logs, settings, directories, call lists.
//!
//! [Access control](super::access_control) has checked the name, the method and the phone before. Then:
//!
//! 1. [`store`]: one writer per file, a limit of concurrent uploads per phone, and quotas: [`quotas`], [`usage`],
//!    [`write_quota`].
//! 2. [`receive`]: moves the body from the connection into the store.
//! 3. [`sink`]: writes the file, with the old content or the new, never a part.

pub mod quotas;
pub mod receive;
pub mod sink;
pub mod store;
pub mod usage;
mod write_quota;
