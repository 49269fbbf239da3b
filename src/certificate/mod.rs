//! The server certificates that we present, replaced atomically while connections are open.
//!
//! [`LiveCertificates`] connects the modules that obtain certificates with those that serve. Most constituencies
//! present one wildcard certificate; those of [`ExactNames`] present their own as soon as it exists. [`Condition`] says
//! whether a certificate is valid, and how close to its end.

mod condition;
mod exact;
mod file_pair;
mod files;
mod live;
mod local;
mod pair;

pub use condition::{CertificateFacts, Condition, ConditionLevel, Intermediate, RenewalSchedule, Validity};
pub use exact::ExactNames;
pub use file_pair::{CertificateFiles, FilePair};
pub use files::{FilesError, FilesSource, Refreshed};
pub use live::{ConstituencyCertificates, LiveCertificates};
pub use local::LocalCa;
pub use pair::{LeafFacts, PairError, ServerCertificate};
