//! Who is served: names, phones, policies, and the registry that holds them as one immutable snapshot.

mod mac;
mod name;

pub use mac::{InvalidMacAddress, MacAddress};
pub use name::{ConstituencyName, InvalidName};
