//! Configuration files as phones read them: Polycom's master configurations and parameter files, and what is secret in
//! these and in other vendors' files. Pure.
//!
//! 1. [`text`]: bytes become text, in whichever encoding they are.
//! 2. [`xml`]: text becomes attributes and element texts. Phones are known to take files that strict XML readers refuse,
//!    so this reader takes them too, and [`strict`] says what strict readers would say.
//! 3. [`master`]: what a file names for phones to fetch, and for one phone, with its placeholders filled in.
//! 4. [`secrets`]: the parameters whose values others must not see.

mod faults;
pub mod master;
pub mod secrets;
mod strict;
mod text;
pub mod xml;

pub use faults::{Departure, TextPosition, UnreadableXml};
pub use master::{MasterConfiguration, Named, NamesWhat, PhoneNames, in_directory};
pub use text::Text;
pub use xml::XmlFile;
