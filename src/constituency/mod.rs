//! Who is served: names, phones, policies, and the registry that holds them as one immutable snapshot.
//!
//! [`scan::Scanner`] reads the folders, [`watch::follow`] does so whenever they change, and what comes out is a
//! [`Registry`]: whoever holds one sees one truth, however long it takes.

pub mod edit;
pub mod edit_file;
mod mac;
mod name;
mod policy;
mod policy_file;
mod registry;
pub mod scan;
mod tls_level;
pub mod watch;

pub use mac::{InvalidMacAddress, MacAddress};
pub use name::{ConstituencyName, InvalidName};
pub use policy::{
    ClientAuth, ExpiredDeviceCertificates, POLICY_FILE, POLYCOM, Phones, Policy, PolicyFile, TlsPolicy, UploadLimits,
};
pub use registry::{Constituency, Fault, Folder, Registry, Severity, Standing};
pub use tls_level::TlsLevel;
