//! The front door: from an accepted connection to an answered request.

pub mod hello;
