//! Constituencies: their names, phones and policies, and the [`Registry`], which holds them as one immutable snapshot.
//!
//! [`scan::Scanner`] reads the folders into a [`Registry`], and [`watch::spawn_watcher`] scans again whenever they change. A
//! request keeps one snapshot, so it sees consistent data however long it takes.

mod absence;
mod common_names;
pub mod denials;
pub mod edit;
pub mod edit_file;
mod excerpt;
pub mod file_names;
mod fingerprint;
mod folder;
pub mod last_good;
mod listed_phones;
mod mac;
mod name;
mod phone_list;
mod phone_list_file;
mod phones;
mod policy;
mod policy_file;
mod registry;
pub mod scan;
mod spelled_macs;
mod tls_level;
pub mod watch;

pub use common_names::CommonNames;
pub use denials::{ServerDenial, ServerDenials};
pub use fingerprint::{Fingerprint, InvalidFingerprint};
pub use folder::{Folder, OpenFolders};
pub use listed_phones::ListedPhones;
pub use mac::{InvalidMacAddress, MacAddress, NotAPhone};
pub use name::{ConstituencyName, InvalidName};
pub use phone_list::{PHONES_FILE, PhoneFile, PhoneList};
pub use phones::{Phones, Pins};
pub use policy::{
    CertificateNames, ClientAuth, ExpiredDeviceCertificates, POLICY_FILE, POLYCOM, Policy, PolicyFile, TlsPolicy,
    UploadLimits,
};
#[cfg(test)]
pub(crate) use registry::VISITED;
pub use registry::{Constituency, Fault, Listing, PhoneStanding, Registry, Severity};
pub use tls_level::TlsLevel;
