//! What phones send us.
pub mod content_range;
pub mod name;
