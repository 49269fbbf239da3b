//! Serving phones.
pub mod conditional;
pub mod host;
pub mod path;
pub mod upload;
