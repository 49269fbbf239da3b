//! What we present: the server's certificates, published whole and swapped while connections are in flight.
//!
//! [`LiveCertificates`] is where those who obtain certificates and those who serve meet.

mod files;
mod live;
mod local;
mod pair;

pub use files::{CertificateFiles, FilesError, FilesSource, Refreshed};
pub use live::{LiveCertificates, shown_to};
pub use local::LocalCa;
pub use pair::{PairError, ServerCertificate};
