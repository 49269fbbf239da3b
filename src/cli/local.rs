//! Virtual phones in local mode, with certificates of the local device CA.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::phone::{self, DeviceCertificates};
use super::{ConfigArg, runtime};
use crate::app::{LOCAL_DEVICE_CA, LOCAL_SERVER_CA};
use crate::ca::{CertificateAuthority, KeyKind};
use crate::clock;
use crate::config::{CONFIG_FILE, CertificateSource, Config};
use crate::constituency::MacAddress;
use crate::virtual_phone::DeviceCertificate;

/// The lifetime of a virtual phone's certificate.
const LIFETIME: Duration = Duration::from_hours(24);

/// The two CAs in a local server's state directory.
pub(super) struct LocalCas {
    devices: CertificateAuthority,
    pub(super) server: CertificateDer<'static>,
}

impl LocalCas {
    /// Opens the CAs that a server in local mode made in the state directory `state`.
    pub(super) fn open(state: &Path) -> anyhow::Result<Self> {
        let folder = state.join(LOCAL_DEVICE_CA);
        let server_ca = state.join(LOCAL_SERVER_CA).join("ca.pem");
        let server = CertificateDer::from_pem_file(&server_ca).with_context(|| {
            format!(
                "cannot read {}; start a server in local mode first, which makes it (`provost serve`)",
                server_ca.display()
            )
        })?;
        let devices =
            CertificateAuthority::open_or_make(&folder, "provost local device CA", KeyKind::EcdsaP256, clock::now())?;
        Ok(Self { devices, server })
    }
}

impl DeviceCertificates for LocalCas {
    fn certificate(&self, mac: MacAddress) -> anyhow::Result<DeviceCertificate> {
        let issued = self.devices.issue_device(mac, clock::now(), LIFETIME)?;
        Ok(DeviceCertificate { chain: vec![issued.certificate], key: issued.key })
    }
}

/// `provost phone`. In local mode, the local device CA issues the certificate. In local mode and with `local_ca` in the
/// configuration, the phone trusts the server's own CA.
pub(super) fn run_phone(args: &phone::Args, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    let config = match config.named() {
        Some(file) => Some(Config::read(&file)?),
        // An invalid or unreadable configuration does not matter for a phone of another server.
        None if Path::new(CONFIG_FILE).exists() => Config::read(Path::new(CONFIG_FILE)).ok(),
        None => Some(Config { state: args.state.clone(), ..Config::local() }),
    };
    let own_ca = |config: &Config| {
        let file = config.state.join(LOCAL_SERVER_CA).join("ca.pem");
        let is_own = matches!(config.certificate, CertificateSource::LocalCa(_));
        // The file is missing before the server's first start, and other users cannot read it.
        if is_own { CertificateDer::from_pem_file(file).ok() } else { None }
    };
    let server_ca = config.as_ref().and_then(own_ca);
    let is_local = args.certificate.is_none() && server_ca.is_some() && config.is_some_and(|config| config.is_local());
    let local = if is_local { Some(LocalCas::open(&args.state)?) } else { None };
    let local = local.as_ref().map(|local| local as &dyn DeviceCertificates);
    runtime()?.block_on(phone::run(args, local, server_ca))
}
