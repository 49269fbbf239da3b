//! Authentication of clients: a device certificate ([`trust`]) or a password ([`digest`]) proves a MAC address. The
//! constituency's policy decides what that address may access.

pub mod digest;
pub mod trust;
