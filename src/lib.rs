//! provost puts Polycom phone provisioning on the public internet: one binary, mutual TLS, a folder per constituency.

pub mod ca;
pub mod certificate;
pub mod clock;
pub mod constituency;
pub mod serve;
pub mod settings;
pub mod state;
pub mod trust;
