//! Compares provost with nginx: both serve the same files with the same certificates and client authentication, in
//! turns, on one processor.
//!
//! 1. [`site`]: files, certificates, phones; written once, served by both.
//! 2. [`servers`]: each server as a process of its own on the first processor; the load comes from the second.
//! 3. [`cases`]: what is measured, and the required ratios.
//! 4. [`load`]: operations, each verified.
//! 5. [`power_cut`]: thousands of phones at once.
//! 6. [`responder`]: phones while the DNS responder is flooded; without nginx, which has none.
//! 7. [`scale`]: costs by the number of constituencies and phones; a run of its own, without nginx.
//! 8. [`machine`]: the resources that the servers' processes used.
//! 9. [`table`]: medians, spread, ratios.
//!
//! Run it by `tests/bench/run`, which installs nginx if it is missing.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::duration_suboptimal_units,
    clippy::must_use_candidate,
    clippy::missing_panics_doc,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a benchmark panics on failure, reads the clock and is not a library"
)]

mod cases;
mod load;
mod machine;
#[path = "../suite/harness/pki.rs"]
#[allow(dead_code, reason = "the suite's certificates; the benchmark needs some of them")]
mod pki;
mod power_cut;
mod responder;
mod scale;
mod servers;
mod site;
mod table;
#[path = "../suite/harness/tool.rs"]
#[allow(dead_code, reason = "what the suite's certificates need of it")]
mod tool;

use std::process::ExitCode;
use std::time::Duration;

use cases::{CASES, Case, IDLE_CONNECTIONS, POWER_CUT, PowerCut, TlsLevel};
use load::Worker;
use power_cut::Phones;
use responder::ResponderEffort;
use scale::ScaleEffort;
use servers::{Program, Server};
use site::{Key, Site};
use table::{Measured, Sample, Table};

/// How long and how often each case is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    rounds: usize,
    round: Duration,
    idle_connections: usize,
    power_cut: PowerCut,
    responder: ResponderEffort,
    scale: ScaleEffort,
}

const FULL: Effort = Effort {
    rounds: 9,
    round: Duration::from_secs(1),
    idle_connections: IDLE_CONNECTIONS,
    power_cut: POWER_CUT,
    responder: ResponderEffort { round: Duration::from_secs(20), boot_interval: Duration::from_millis(20) },
    scale: scale::FULL,
};
const QUICK: Effort = Effort {
    rounds: 2,
    round: Duration::from_millis(100),
    idle_connections: 100,
    power_cut: PowerCut { phones: 100, rounds: 1 },
    responder: ResponderEffort { round: Duration::from_secs(1), boot_interval: Duration::from_millis(50) },
    scale: scale::QUICK,
};

fn main() -> ExitCode {
    let mut effort = FULL;
    let (mut only, mut is_scale) = (None, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => effort = QUICK,
            "--only" => only = arguments.next(),
            "scale" => is_scale = true,
            // Cargo passes this to every benchmark.
            "--bench" => {}
            other => {
                eprintln!("{other:?} is not known: [--quick] [--only PART-OF-A-NAME | scale]");
                return ExitCode::from(2);
            }
        }
    }
    machine::prepare();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let only = only.unwrap_or_default();
    let site = Site::write();
    if is_scale {
        println!("{}\n{}", machine::description(), runtime.block_on(scale::measure(&site, effort.scale)));
        return ExitCode::SUCCESS;
    }
    let table = runtime.block_on(measure_all(&site, effort, &only));
    println!("{}", machine::description());
    if !table.is_empty() {
        println!("{table}");
    }
    if responder::NAME.contains(&only) {
        println!("{}", runtime.block_on(responder::measure(&site, effort.responder)));
    }
    ExitCode::SUCCESS
}

async fn measure_all(site: &Site, effort: Effort, only: &str) -> Table {
    let mut table = Table::default();
    let setups = [(Key::Rsa2048, TlsLevel::Modern), (Key::P256, TlsLevel::Modern), (Key::Rsa2048, TlsLevel::Legacy)];
    for (key, level) in setups {
        let belongs = |case: &&Case| (case.key, case.level) == (key, level) && case.name.contains(only);
        let cases: Vec<&Case> = CASES.iter().filter(belongs).collect();
        if cases.is_empty() {
            continue;
        }
        let servers = Program::BOTH.map(|program| Server::start(program, site, key, level));
        for case in cases {
            table.add(case.name, case.unit, case.target, measure(case, &servers, site, effort).await);
        }
    }
    if "idle connection".contains(only) {
        // New processes, because earlier load leaves memory in their heaps.
        let servers = Program::BOTH.map(|program| Server::start(program, site, Key::P256, TlsLevel::Modern));
        let mut kib = Vec::new();
        for server in &servers {
            kib.push(Measured::memory(load::idle_memory(server, site, effort.idle_connections).await));
        }
        // hyper keeps its buffers on an idle connection. Freeing them takes a second life cycle of a connection.
        table.add("idle connection, memory", "KiB", Some(0.8), kib);
    }
    let PowerCut { phones, rounds } = effort.power_cut;
    let name = format!("power cut: {phones} phones at once");
    if name.contains(only) {
        let phones = Phones::new(site, phones);
        let servers = Program::BOTH.map(|program| Server::start(program, site, Key::P256, TlsLevel::Modern));
        let mut samples = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for (server, samples) in servers.iter().zip(&mut samples) {
                samples.push(phones.boot(server).await);
            }
        }
        let measured = samples.map(|samples| Measured::cpu(&samples, 1e3));
        table.add(&name, "ms", Some(1.0), measured.into());
    }
    table
}

/// Measures both servers in turns, so that other load on the machine affects both alike.
async fn measure(case: &Case, servers: &[Server], site: &Site, effort: Effort) -> Vec<Measured> {
    eprint!("{} ", case.name);
    let mut workers: Vec<Vec<Worker>> = Vec::new();
    for server in servers {
        let mut of_server: Vec<Worker> = (0..case.workers).map(|_| Worker::new(case, server, site)).collect();
        for worker in &mut of_server {
            worker.warm_up().await;
        }
        workers.push(of_server);
    }
    let mut samples = vec![Vec::new(); servers.len()];
    for round in 0..effort.rounds {
        // The order alternates.
        for turn in 0..servers.len() {
            let which = (turn + round) % servers.len();
            let before = machine::CpuTime::of(servers[which].pid());
            let began = std::time::Instant::now();
            let (back, operations) = load::run(std::mem::take(&mut workers[which]), effort.round).await;
            let elapsed = began.elapsed();
            // Lets the server process the last closes.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let used = machine::CpuTime::of(servers[which].pid()).since(&before);
            workers[which] = back;
            samples[which].push(Sample { used, elapsed, amount: case.amount(operations) });
            eprint!(".");
        }
    }
    eprintln!();
    samples.into_iter().map(|samples| Measured::cpu(&samples, case.scale)).collect()
}
