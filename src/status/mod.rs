//! The operators' own listener: how the server, its certificates and its phones are doing, apart from the phones'
//! listener.
//!
//! Everything that is shown is gathered into one [`picture`], by whoever knows it; here it is only served.

pub mod page;
pub mod picture;
