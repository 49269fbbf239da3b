//! `provost phone-log`: shows what one phone requested, and what it got.

use std::process::ExitCode;

use anyhow::ensure;
use serde_json::{Value, json};

use super::phones::{print_claim, print_denial, time};
use super::{ConfigArg, code, note, print_foreign, print_json, server};
use crate::config::Config;
use crate::constituency::{MacAddress, ServerDenials};
use crate::phone_history::{StoredPhone, StoredRequest};
use crate::serve::access_log::{escaped, without_controls};

/// What `provost phone-log` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The phone.
    #[arg(value_name = "MAC")]
    mac: MacAddress,
    /// Print JSON, one object per line.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    let config = config.find()?;
    Ok(code(show(args, &config)))
}

fn show(args: &Args, config: &Config) -> anyhow::Result<()> {
    let (requests, claims, phones) = match server::phone_history(config)? {
        Some(history) => (history.requests(args.mac)?, history.claims_of(args.mac)?, history.phones_of(args.mac)?),
        None => Default::default(),
    };
    let denial = ServerDenials::read(&config.state)?.get(args.mac);
    if let Some(denial) = &denial {
        print_denial(args.mac, denial, args.json);
    }
    if requests.is_empty() && claims.is_empty() {
        let unseen = format!("no requests of {}: it was never seen, or its history has expired", args.mac);
        ensure!(denial.is_some(), unseen);
        note(&unseen);
    }
    for request in &requests {
        if args.json { print_json(&request_json(request)) } else { print_foreign(&request_line(request)) }
    }
    for claim in &claims {
        let is_it = |phone: &&StoredPhone| (&phone.constituency, phone.mac) == (&claim.constituency, claim.mac);
        print_claim(claim, phones.iter().find(is_it), args.json);
    }
    Ok(())
}

fn request_line(request: &StoredRequest) -> String {
    let asked = match &request.request {
        Some((method, target)) => {
            format!("\"{} {}\"", escaped(method.as_bytes()), escaped(target.as_bytes()))
        }
        None => "-".to_owned(),
    };
    let status = request.status.map_or_else(|| "-".to_owned(), |status| status.to_string());
    let reason = request.reason.as_deref().map(without_controls).map(|reason| format!("  {reason}"));
    format!(
        "{} {} {} {asked} {status} {} {:.3}ms{}",
        time(request.time),
        request.constituency,
        request.address,
        request.bytes,
        request.duration.as_secs_f64() * 1e3,
        reason.unwrap_or_default(),
    )
}

fn request_json(request: &StoredRequest) -> Value {
    let (method, path) =
        request.request.as_ref().map(|(method, path)| (method, escaped(path.as_bytes()).to_string())).unzip();
    json!({
        "time": time(request.time), "constituency": request.constituency, "address": request.address,
        "method": method, "path": path, "status": request.status, "bytes": request.bytes,
        "duration_ms": request.duration.as_secs_f64() * 1e3,
        "reason": request.reason.as_deref().map(without_controls),
    })
}
