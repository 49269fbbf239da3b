//! `provost print`: prints configuration for other programs, ready to paste. One file for each kind.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;

use super::{ConfigArg, print_line, registry_of, warn};
use crate::config::Config;
use crate::constituency::{Constituency, ConstituencyName, Registry, ServerDenials};

pub(super) mod completions;
mod containerfile;
mod dhcp;
mod dns_records;
mod grafana;
mod grant;
mod haproxy;
pub(super) mod manual;
mod phone_config;
pub(super) mod systemd;
mod timekeeping;

pub use grant::{Dialect, grant};

/// A test compares its names and labels with the metrics.
const ALERTS: &str = include_str!("alerts.yml");

/// What can be printed.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// The DNS records to publish at the registrar or DNS provider, as lines of a zone file: for phones, for the challenges,
    /// and CAA records that permit only the configured CA and account.
    DnsRecords,
    /// The update-policy for BIND's named.conf that allows provost's DNS updates and nothing else.
    BindPolicy,
    /// The acl for Knot's knot.conf that allows provost's DNS updates and nothing else.
    KnotAcl,
    /// The systemd service unit, for /etc/systemd/system/provost.service.
    SystemdUnit,
    /// The systemd socket unit (socket activation), for /etc/systemd/system/provost.socket.
    SystemdSocket,
    /// A container file (Dockerfile) for podman and docker: an image with this version, and the commands that build and start
    /// it.
    Containerfile,
    /// Alerts for Prometheus, each with its remedy.
    PrometheusAlerts,
    /// A dashboard for Grafana.
    GrafanaDashboard,
    /// A completion script for a shell.
    Completions(completions::Args),
    /// The manual page of a command, for `man -l -`.
    Man(manual::Args),
    /// DHCP options for a constituency's phones, to add to the configuration of ISC's dhcpd, Kea, dnsmasq or RouterOS.
    Dhcp(dhcp::Args),
    /// A configuration of HAProxy in front of several nodes: TLS passes through, PROXY headers name the clients.
    Haproxy(haproxy::Args),
    /// A parameter file that binds a phone to this server, whatever the DHCP server at another place offers.
    PhoneConfig(phone_config::Args),
}

pub(super) fn run(command: &Command, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    let printed = match command {
        Command::DnsRecords => dns_records::of(&config.find()?)?,
        Command::BindPolicy => grant::of(&config.find()?, Dialect::BindPolicy)?,
        Command::KnotAcl => grant::of(&config.find()?, Dialect::KnotAcl)?,
        Command::SystemdUnit => systemd::fit(config)?.service(),
        Command::SystemdSocket => systemd::fit(config)?.socket(),
        Command::Containerfile => containerfile::containerfile(),
        Command::PrometheusAlerts => ALERTS.to_owned(),
        Command::GrafanaDashboard => grafana::dashboard()?,
        Command::Completions(args) => completions::of(args),
        Command::Man(args) => manual::page(args)?,
        Command::Dhcp(args) => dhcp::print(args, &config.find()?)?,
        Command::Haproxy(args) => haproxy::print(args, &config.find()?),
        Command::PhoneConfig(args) => phone_config::print(args, &config.find()?)?,
    };
    print_line(&printed.trim_end());
    Ok(ExitCode::SUCCESS)
}

/// The constituencies as they are served. A user who cannot read the state directory gets a warning, and the output
/// without the server-wide denials.
fn registry(config: &Config) -> Registry {
    let denials = ServerDenials::read(&config.state).unwrap_or_else(|error| {
        warn(&error);
        ServerDenials::default()
    });
    registry_of(config, Arc::new(denials))
}

/// The constituency that is served under `name` or has it as an alias.
fn constituency(registry: &Registry, name: &ConstituencyName) -> anyhow::Result<Arc<Constituency>> {
    let found = registry.find(name.as_str()).cloned();
    found.with_context(|| format!("constituency {name} not found, or not served; see provost check"))
}
