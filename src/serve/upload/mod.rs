//! What phones send us: logs, settings, directories, call lists, by PUT.
//!
//! 1. [`name`]: what an upload may be called (pure).
//! 2. [`content_range`]: which part of the file a body is (pure).
//! 3. [`budget`]: whether there is room for it.
//! 4. [`store`]: the file, old or new and never half.
//! 5. [`receive`]: the body, from the connection into the store.

pub mod budget;
pub mod content_range;
pub mod name;
pub mod receive;
pub mod store;
