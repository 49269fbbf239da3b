//! Who is at the other end of a connection: a device certificate ([`trust`]) or a password ([`digest`]) proves a MAC
//! address. What that address may do, the constituency's policy says.

pub mod digest;
pub mod trust;
