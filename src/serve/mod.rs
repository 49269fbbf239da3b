//! Serving phones.
pub mod access;
pub mod admission;
pub mod body;
pub mod conditional;
pub mod content;
pub mod decision;
pub mod hello;
pub mod host;
mod limits;
pub mod pace;
pub mod path;
pub mod upload;

pub use limits::Limits;
