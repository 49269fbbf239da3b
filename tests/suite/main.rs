//! The integration suite: the real binary as a process, real TLS, real files. One binary, a module per subject.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::duration_suboptimal_units,
    clippy::unchecked_time_subtraction,
    clippy::must_use_candidate,
    clippy::missing_panics_doc,
    clippy::print_stderr,
    reason = "tests panic on failure, read the clock, write files and are not a library"
)]

mod harness;

mod access_log;
mod acme_e2e;
mod archive;
mod atomic_deploy;
mod audit;
mod bulk;
mod certificates;
mod check;
mod check_as_a_phone;
mod check_live;
mod commands;
mod container;
mod contributing;
mod dashboard;
mod decade;
mod denials;
mod device_chains;
mod diagnostics;
mod dialect;
mod digest;
mod digest_curl;
mod dns;
mod drain;
mod evictions;
mod families;
mod file_names;
mod files;
mod framing;
mod handshake;
mod haproxy;
mod identity;
mod idle_connections;
mod install;
mod journal;
mod last_good;
#[cfg(feature = "old-tls")]
mod legacy_tls;
mod limits;
mod lingering_close;
mod local;
mod locked_out;
mod manual;
mod named_files;
mod negotiation;
mod notify;
mod operators;
#[cfg(feature = "old-tls")]
mod outputs;
mod own_ca;
mod package;
mod paths;
mod permissions;
mod phone_commands;
mod phone_history;
mod phone_list;
mod phones;
mod pins;
mod plain_http;
mod planted;
mod policy_commands;
mod print_dhcp;
mod print_phone_config;
mod proxy_protocol;
mod readiness;
mod readme;
mod reload;
mod requests;
mod responder;
mod revocation;
mod scale;
mod serving;
mod sessions;
mod sighup;
mod slow_clients;
mod status;
mod status_access;
mod status_metrics;
mod symlinks;
mod systemd;
mod systemd_boot;
mod traffic_day;
mod transfers;
mod trust;
mod unwritable_state;
mod uploads;
mod uploads_broken;
mod uploads_budget;
mod uploads_moved;
mod uploads_ranges;
mod uploads_refused;
mod version;
mod which_config;
