//! A virtual phone: boots as a Polycom does, over real TLS; for demonstration, diagnosis, tests and load.
//!
//! A boot, in the order in which [`boot`] reads:
//!
//! 1. **Boot log.** The updater leaves its log beside the server's URL, for nothing else is known yet.
//! 2. **Master configuration.** `<mac>.cfg`, or else `000000000000.cfg`, names everything that follows. A `<mac>.cfg` that
//!    names nothing is a parameter file, and all that the phone gets.
//! 3. **Firmware.** The image of the part number, beside the name in `APP_FILE_PATH`; none there: the phone keeps its own.
//! 4. **Configuration.** Each of `CONFIG_FILES`, the strongest first, then `MISC_FILES` and `SERVICE_FILES`.
//! 5. **What the phone left there itself**, and what the site adds: overrides, licenses, call lists, contacts.
//!    Each may be missing.
//! 6. **Application log.** HEAD tells the log's size, PUT appends there.
//!
//! `SoundPoint` phones do less, see [`BootOrder`]. One connection carries it all for as long as the server keeps it
//! open. A boot ends with a [`BootReport`]: provisioned, perhaps with [named files missing](Lacking), or the exact [`Reason`]
//! why not. Files are read by the same lenient reader as by `provost check` ([`phone_config`](crate::phone_config)).

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

pub use address::{ServerUrl, UnusableUrl};
pub use client::ExchangeError;
pub use connect::{ClientTlsFacts, ConnectError, DeviceCertificate, TlsFailure};
pub use fleet::{FleetSummary, boot_fleet};
pub use model::{BootOrder, Program, VirtualPhone};
pub use password::Password;
pub use report::{BootReport, BootStep, Lacking, Reason, Remark, RequestOutcome, RequestReport, Watch};

use crate::clock;
use steps::Boot;

/// The server that phones are pointed at.
#[derive(Debug, Clone)]
pub struct BootTarget {
    /// The URL that the phone got by DHCP or was given by hand.
    pub url: ServerUrl,
    /// The CAs whose servers the phone believes.
    pub server_roots: Arc<RootCertStore>,
    /// Go there, whatever the name in the URL says.
    pub resolve: Option<SocketAddr>,
    /// The password that the phone answers with when it is asked for one, under its MAC address.
    pub password: Option<Password>,
}

/// Boots `phone` against `target`; without a certificate it can only visit those that ask for none.
///
/// `watch` sees each request as it is answered, and the report.
pub async fn boot(
    phone: &VirtualPhone,
    target: &BootTarget,
    certificate: Option<&DeviceCertificate>,
    watch: &mut dyn Watch,
) -> BootReport {
    let started = clock::monotonic();
    let (exchanges, tls, outcome) = match connect::tls_config(Arc::clone(&target.server_roots), certificate) {
        Err(error) => (Vec::new(), None, RequestOutcome::NotProvisioned(Reason::DeviceCertificate(error))),
        Ok(tls) => {
            let mut boot = Boot::new(phone, target, tls, watch);
            let result = match phone.boot_order() {
                BootOrder::UcSoftware5 => boot_uc_software_5(&mut boot).await,
                BootOrder::UcSoftware4 => boot_uc_software_4(&mut boot).await,
            };
            let (exchanges, tls, lacking) = boot.finish();
            (
                exchanges,
                tls,
                result.map_or_else(RequestOutcome::NotProvisioned, |()| RequestOutcome::Provisioned(lacking)),
            )
        }
    };
    let report = BootReport { phone: phone.clone(), exchanges, tls, duration: started.elapsed(), outcome };
    watch.ended(&report);
    report
}

async fn boot_uc_software_5(boot: &mut Boot<'_>) -> Result<(), Reason> {
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

async fn boot_uc_software_4(boot: &mut Boot<'_>) -> Result<(), Reason> {
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
