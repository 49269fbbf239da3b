//! What we present: the server's certificates, published whole and swapped while connections are in flight.
//!
//! [`LiveCertificates`] is where those who obtain certificates and those who serve meet. Most constituencies show one
//! wildcard certificate; those of [`ExactNames`] show one of their own as soon as there is one. [`Condition`] is whether one
//! is valid, and how near its end.

mod condition;
mod exact;
mod files;
mod live;
mod local;
mod pair;

pub use condition::{Condition, ConditionLevel, RenewalSchedule, Validity};
pub use exact::ExactNames;
pub use files::{CertificateFiles, FilesError, FilesSource, Refreshed};
pub use live::{ConstituencyCertificates, LiveCertificates};
pub use local::LocalCa;
pub use pair::{PairError, ServerCertificate};
