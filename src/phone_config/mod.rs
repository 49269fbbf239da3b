//! Configuration files as phones read them: Polycom's master configurations and parameter files; and secrets in these
//! and in other vendors' files. Pure.
//!
//! 1. [`text`]: decodes bytes into text, in any encoding.
//! 2. [`xml`]: reads attributes and element texts. Phones accept files that strict XML readers refuse, so this reader
//!    accepts them too, and [`strict`] reports what strict readers refuse.
//! 3. [`master`]: the files that a configuration names, and the same for one phone, with placeholders filled in.
//! 4. [`secrets`]: parameters with secret values.

mod faults;
pub mod master;
pub mod secrets;
mod strict;
mod text;
pub mod xml;

pub use faults::{Deviation, TextPosition, UnreadableXml};
pub use master::{FileReference, MasterConfiguration, PhoneNames, ReferenceKind, in_directory};
pub use text::Text;
pub use xml::XmlFile;
