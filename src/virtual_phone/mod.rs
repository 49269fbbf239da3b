//! A virtual phone: boots as a Polycom phone does, over real TLS. For demonstration, diagnosis, tests and load.
//!
//! [`boot`] follows these steps:
//!
//! 1. **Boot log.** The updater uploads its log beside the server's URL, because it knows no other folder yet.
//! 2. **Master configuration.** `<mac>.cfg`, or if that is missing `000000000000.cfg`, names everything that follows. A
//!    `<mac>.cfg` without names is a parameter file, and the phone fetches nothing else.
//! 3. **Firmware.** The image for the part number, beside the name in `APP_FILE_PATH`. If it is missing, the phone
//!    keeps its firmware.
//! 4. **Configuration.** Each of `CONFIG_FILES`, the one with the highest precedence first, then `MISC_FILES` and
//!    `SERVICE_FILES`.
//! 5. **Files that the phone uploaded itself, and additions of the site**: overrides, licenses, call lists, contacts.
//!    Each may be missing.
//! 6. **Application log.** HEAD returns the log's size, PUT appends there.
//!
//! `SoundPoint` phones do less, see [`BootOrder`]. All requests use one connection as long as the server keeps it open.
//! A boot ends with a [`BootReport`]: provisioned, perhaps with [named files missing](IncompleteFiles), or the exact [`BootFailure`]
//! why not. The same lenient reader as in `provost check` reads the files ([`phone_config`](crate::phone_config)).

pub mod address;
pub mod alert;
mod client;
mod connect;
mod fleet;
mod log;
mod model;
mod password;
mod report;
mod steps;
#[cfg(test)]
mod tests;
mod upload;

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::RootCertStore;

pub use address::{InvalidUrl, ServerUrl};
pub use client::ExchangeError;
pub use connect::{ClientTlsFacts, ConnectError, DeviceCertificate, TlsFailure};
pub use fleet::{FleetSummary, boot_fleet};
pub use model::{BootOrder, Program, VirtualPhone};
pub use password::Password;
pub use report::{
    BootFailure, BootObserver, BootOutcome, BootReport, BootStep, IncompleteFiles, Remark, RequestReport,
};

use crate::clock;
use steps::Boot;

/// The server that phones boot against.
#[derive(Debug, Clone)]
pub struct BootTarget {
    /// The URL that the phone got by DHCP or by hand.
    pub url: ServerUrl,
    /// The CAs that the phone trusts for servers.
    pub server_roots: Arc<RootCertStore>,
    /// The address to connect to, instead of the one that the URL's name resolves to.
    pub resolve: Option<SocketAddr>,
    /// The password for the phone's MAC address as user name, used if the server asks for one.
    pub password: Option<Password>,
}

/// Boots `phone` against `target`. Without a certificate, only constituencies that require none serve it.
///
/// `watch` gets each request after its response, and the report.
pub async fn boot(
    phone: &VirtualPhone,
    target: &BootTarget,
    certificate: Option<&DeviceCertificate>,
    watch: &mut dyn BootObserver,
) -> BootReport {
    let started = clock::monotonic();
    let (exchanges, tls, outcome) = match connect::tls_config(Arc::clone(&target.server_roots), certificate) {
        Err(error) => (Vec::new(), None, BootOutcome::NotProvisioned(BootFailure::DeviceCertificate(error))),
        Ok(tls) => {
            let mut boot = Boot::new(phone, target, tls, watch);
            let result = match phone.boot_order() {
                BootOrder::UcSoftware5 => boot_uc_software_5(&mut boot).await,
                BootOrder::UcSoftware4 => boot_uc_software_4(&mut boot).await,
            };
            let (exchanges, tls, lacking) = boot.finish();
            (exchanges, tls, result.map_or_else(BootOutcome::NotProvisioned, |()| BootOutcome::Provisioned(lacking)))
        }
    };
    let report = BootReport { phone: phone.clone(), exchanges, tls, duration: started.elapsed(), outcome };
    watch.ended(&report);
    report
}

async fn boot_uc_software_5(boot: &mut Boot<'_>) -> Result<(), BootFailure> {
    let mac = boot.phone().mac;
    boot.put_boot_log().await?;
    let master = boot.get_master().await?;
    let directories = &master.directories;
    boot.get_firmware(master.firmware.as_deref()).await?;
    boot.get_named(BootStep::Configuration, &master.config_files).await?;
    boot.get_named(BootStep::FurtherFiles, &master.other_files).await?;
    boot.get_optional(BootStep::Overrides, &directories.overrides, &format!("{mac}-phone.cfg")).await?;
    boot.get_optional(BootStep::Overrides, &directories.overrides, &format!("{mac}-web.cfg")).await?;
    boot.get_optional(BootStep::License, &directories.licenses, "000000000000-license.cfg").await?;
    boot.get_optional(BootStep::License, &directories.licenses, &format!("{mac}-license.cfg")).await?;
    boot.get_optional(BootStep::CallLists, &directories.call_lists, &format!("{mac}-calls.xml")).await?;
    boot.get_optional(BootStep::Contacts, &directories.contacts, &format!("{mac}-directory.xml")).await?;
    boot.get_optional(BootStep::Contacts, &directories.contacts, "000000000000-directory.xml").await?;
    boot.append_app_log(&directories.logs).await
}

async fn boot_uc_software_4(boot: &mut Boot<'_>) -> Result<(), BootFailure> {
    let mac = boot.phone().mac;
    let master = boot.get_master().await?;
    let directories = &master.directories;
    boot.get_named(BootStep::Configuration, &master.config_files).await?;
    boot.get_named(BootStep::FurtherFiles, &master.other_files).await?;
    boot.get_optional(BootStep::Overrides, &directories.overrides, &format!("{mac}-phone.cfg")).await?;
    boot.get_optional(BootStep::Overrides, &directories.overrides, &format!("{mac}-web.cfg")).await?;
    boot.get_optional(BootStep::License, &directories.licenses, "000000000000-license.cfg").await?;
    boot.put_app_log(&directories.logs).await
}
