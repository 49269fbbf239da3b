//! What phones send us: logs, settings, directories, call lists, by PUT.
//!
//! What it may be called, and which part of the file a body is, the [decision](super::decision) has said before. Then:
//!
//! 1. [`budget`]: whether there is room for it.
//! 2. [`store`]: the file, old or new and never half.
//! 3. [`receive`]: the body, from the connection into the store.

pub mod budget;
pub mod receive;
pub mod store;
