//! provost puts Polycom phone provisioning on the public internet: one binary, mutual TLS, a folder per constituency.

pub mod cli;
pub mod clock;
pub mod constituency;
pub mod phone;
