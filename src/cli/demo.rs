//! `provost demo`: shows provost on this machine within a minute. It serves in local mode with a temporary state
//! directory, and three virtual phones boot over real TLS.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use include_dir::{Dir, include_dir};
use rustls::RootCertStore;

use super::boot_table::{BootTable, OutputFormat};
use super::local::LocalCas;
use super::phone::DeviceCertificates;
use super::{ConfigArg, diagnostics, print_line, runtime};
use crate::app::socket_activation::ActivatedSockets;
use crate::app::{ANNOUNCEMENT, App, AppError};
use crate::config::{CONFIG_FILE, Config, LOCAL_PORT};
use crate::constituency::{ClientAuth, ConstituencyName, MacAddress, Phones};
use crate::serve::access_log::LogFormat;
use crate::serve::site::Site;
use crate::virtual_phone::{BootTarget, FleetSummary, VirtualPhone, boot};

/// The shipped constituencies, used if there is no ./constituencies.
static SHIPPED: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/constituencies");

/// The number of phones that boot.
const PHONES: usize = 3;
/// The number of ports that are tried.
const PORTS: u16 = 20;

/// Phones from the documentation range of MAC addresses, with their models.
const MODELS: [(&str, &str); PHONES] =
    [("00005e00530c", "VVX_500"), ("00005e0053c7", "VVX_550"), ("00005e0053ee", "VVX_601")];

/// What `provost demo` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// End when the phones have booted; exit with 1 if one of them was not provisioned.
    #[arg(long)]
    once: bool,
}

pub(super) fn run(args: &Args, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    if let Some(named) = config.named() {
        bail!(
            "the demo always runs in local mode, but {} is named as the configuration; leave out --config, or unset \
             PROVOST_CONFIG",
            named.display()
        );
    }
    if Path::new(CONFIG_FILE).exists() {
        bail!("{CONFIG_FILE} exists here, so this is a real site; run the demo in another folder");
    }
    let _diagnostics = diagnostics::start(LogFormat::Text)?;
    tracing::info!(target: ANNOUNCEMENT, "LOCAL MODE: a demonstration on loopback; its state is deleted at the end");
    let scratch = tempfile::Builder::new().prefix("provost-demo-").tempdir()?;
    let mut config = Config { state: scratch.path().join("state"), ..Config::local() };
    if !config.constituencies.is_dir() {
        config.constituencies = scratch.path().join("constituencies");
        std::fs::create_dir(&config.constituencies)?;
        SHIPPED.extract(&config.constituencies).context("cannot unpack the built-in constituencies")?;
        tracing::info!("no ./constituencies here: serving the built-in ones");
    }
    runtime()?.block_on(show(args, config))
}

async fn show(args: &Args, config: Config) -> anyhow::Result<ExitCode> {
    let (constituencies, state) = (config.constituencies.clone(), config.state.clone());
    let log = GatedOutput::default();
    let app = start_on_a_free_port(&config, &log)?;
    let address = app.addresses().first().copied().context("no address to listen on")?;
    let demo_phones = demo_phones(&app.site());
    let cas = LocalCas::open(&state)?;

    let mut result = None;
    app.run(async {
        let booted = boot_all(&demo_phones, address, &cas).await;
        // Without a phone that could boot, the demo ends.
        let goes_on = booted.is_ok() && !args.once;
        result = Some(booted);
        if goes_on {
            explain(&demo_phones, address, &constituencies, &state);
            log.open();
            std::future::pending::<()>().await;
        }
    })
    .await?;
    match result.transpose()? {
        Some(summary) if summary.all_provisioned() => Ok(ExitCode::SUCCESS),
        // A signal stopped the demo before the phones were done.
        None if !args.once => Ok(ExitCode::SUCCESS),
        _ => Ok(ExitCode::FAILURE),
    }
}

fn start_on_a_free_port(config: &Config, log: &GatedOutput) -> anyhow::Result<App> {
    for port in LOCAL_PORT..LOCAL_PORT + PORTS {
        let listen = vec![SocketAddr::from(([127, 0, 0, 1], port))];
        match App::start(Config { listen, ..config.clone() }, config.log, log.clone(), ActivatedSockets::default()) {
            Err(AppError::Listen { address, source }) if source.kind() == io::ErrorKind::AddrInUse => {
                tracing::warn!("{address} is in use; trying the next port");
            }
            started => return Ok(started?),
        }
    }
    bail!("no free port from {LOCAL_PORT} on")
}

/// The phones to boot: known phones of each constituency in turn.
fn demo_phones(site: &Site) -> Vec<(ConstituencyName, VirtualPhone)> {
    let documented: Vec<MacAddress> = MODELS.iter().filter_map(|(mac, _)| mac.parse().ok()).collect();
    let mut demo_phones: Vec<(ConstituencyName, VirtualPhone)> = Vec::new();
    let constituencies: Vec<_> = site
        .registry()
        .served()
        .filter(|constituency| constituency.policy.tls.client_auth == ClientAuth::Required)
        .collect();
    for round in 0..PHONES {
        for constituency in &constituencies {
            let known = match constituency.policy.phones {
                Phones::Any => documented.clone(),
                Phones::Listed(_) => constituency.known_phones(),
            };
            let not_yet = |mac: &&MacAddress| !demo_phones.iter().any(|(_, phone)| phone.mac == **mac);
            if demo_phones.len() < PHONES
                && round < known.len()
                && let Some(mac) = known.iter().find(not_yet)
            {
                demo_phones.push((constituency.name.clone(), phone(*mac)));
            }
        }
    }
    demo_phones
}

fn phone(mac: MacAddress) -> VirtualPhone {
    let mut phone = VirtualPhone::new(mac);
    if let Some((_, model)) = MODELS.iter().find(|(documented, _)| *documented == mac.to_string()) {
        (*model).clone_into(&mut phone.model);
    }
    phone
}

fn url(constituency: &ConstituencyName, address: SocketAddr) -> String {
    format!("https://{constituency}.{}:{}/", crate::config::LOCAL_DOMAIN, address.port())
}

async fn boot_all(
    demo_phones: &[(ConstituencyName, VirtualPhone)],
    address: SocketAddr,
    cas: &LocalCas,
) -> anyhow::Result<FleetSummary> {
    let mut server_roots = RootCertStore::empty();
    server_roots.add(cas.server.clone())?;
    let server_roots = Arc::new(server_roots);
    let printer = BootTable::new(OutputFormat::Table);
    let mut summary = FleetSummary::default();
    for (constituency, phone) in demo_phones {
        let url = url(constituency, address);
        print_line(&format_args!("\n{} {} boots from {url}", phone.model, phone.mac));
        let target = BootTarget {
            url: url.parse()?,
            server_roots: Arc::clone(&server_roots),
            resolve: Some(address),
            password: None,
        };
        let certificate = cas.certificate(phone.mac)?;
        let mut watch = printer.for_one_phone(phone);
        summary.add(&boot(phone, &target, Some(&certificate), &mut watch).await);
    }
    print_line(&"");
    if demo_phones.is_empty() {
        bail!("no constituency here has a known phone; add one to \"phones\" in a constituency.json");
    }
    print_line(&format_args!("{} of {} phones provisioned", summary.provisioned, summary.phones));
    Ok(summary)
}

/// Prints what to try next.
fn explain(demo_phones: &[(ConstituencyName, VirtualPhone)], address: SocketAddr, constituencies: &Path, state: &Path) {
    let Some((constituency, phone)) = demo_phones.first() else { return };
    let url = url(constituency, address);
    print_line(&format_args!(
        "\nThe server runs until Ctrl-C; its access log follows. In another terminal:\n  \
         provost phone --url {url} --mac {} --state {}\n  \
         curl --cacert {}/server-ca/ca.pem --resolve '*:{}:127.0.0.1' {url}   (no device certificate: refused)\n\
         Edit a file in {}: the next request gets the new version.\n",
        phone.mac,
        state.display(),
        state.display(),
        address.port(),
        constituencies.display()
    ));
}

/// Standard output after `open`; before, lines are discarded, so that the phones' tables come first.
#[derive(Debug, Clone, Default)]
struct GatedOutput(Arc<AtomicBool>);

impl GatedOutput {
    fn open(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Write for GatedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.load(Ordering::Relaxed) { io::stdout().write(bytes) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}
