//! The commands, one file each.

pub mod phone;
pub mod printer;
