//! kill -9 at each step of an order, and recovery by the next process.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc;

use serde_json::json;

use super::{CHALLENGE, Public, primary, usual};
use crate::harness::TIMEOUT;
use crate::harness::bind;
use crate::harness::pebble::{Behavior, Pebble};

/// The log line at the beginning of each step, in order.
const STEPS: [&str; 11] = [
    "asking https://",
    "registering an account",
    "ordering a certificate",
    "looking where",
    "publishing 2 records",
    "waiting until all authorities have them",
    "has the records",
    "telling the CA",
    "sending the certificate request",
    "fetching the certificate",
    "a new certificate is in use",
];

impl Public {
    /// Runs the server until it logs `step`, and kills it; returns the step that it had reached.
    pub(super) fn kill_at(&self, step: &str) -> &'static str {
        let mut command = self.site.command();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (tell, reported) = mpsc::channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let reader = std::thread::spawn(move || lines.for_each(|line| drop(tell.send(line))));
        let mut said: Vec<String> = Vec::new();
        while let Ok(line) = reported.recv_timeout(TIMEOUT) {
            said.push(line);
            if said.iter().any(|line| line.contains(step)) {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        reader.join().unwrap();
        // It may have logged more before it died.
        said.extend(reported);
        assert!(said.iter().any(|line| line.contains(step)), "{step:?} was never logged: {said:?}");
        let at = |line: &String| STEPS.into_iter().find(|step| line.contains(step));
        said.iter().rev().find_map(at).unwrap()
    }

    /// The certificate key of the pending order.
    fn ordered_for(&self) -> Option<Vec<u8>> {
        let folder = self.site.path("state/certs/ecdsa-p256");
        folder.join("order.json").exists().then(|| std::fs::read(folder.join("order.key")).unwrap())
    }
}

/// The result of several kills.
#[derive(Default)]
struct Outcome {
    /// The steps that the processes had reached.
    died_at: BTreeSet<&'static str>,
    orders: usize,
    validations: usize,
    certificates: usize,
}

/// Kills a process at each of these steps, on one site after the other, and lets the next process finish.
fn kill_at_each(steps: &[&str]) -> Outcome {
    let bind = primary().start();
    let pebble = Pebble::start(Behavior::default(), bind.address);
    let public = Public::new(pebble, bind.address, &bind.key_file("provost."));
    let mut outcome = Outcome::default();
    for step in steps {
        outcome.died_at.insert(public.kill_at(step));
        let ordered_for = public.ordered_for();
        let server = public.start();
        let status = public.obtains();
        let key = std::fs::read(public.site.path("state/certs/ecdsa-p256/current/key.pem")).unwrap();
        assert!(ordered_for.is_none_or(|ordered_for| ordered_for == key), "{step}: not the order's certificate");
        assert_eq!(status["certificates"][0]["failures"], 0, "{step}: {status}");
        assert_eq!(bind.txt(CHALLENGE), Vec::<String>::new(), "{step}");
        let journal = std::fs::read_to_string(public.site.path("state/dns-journal.json")).unwrap_or_default();
        assert!(matches!(journal.as_str(), "" | "[]"), "{step}: {journal}");
        server.kill();
        std::fs::remove_dir_all(public.site.path("state")).unwrap();
    }
    outcome.orders = public.pebble.logged("Added order");
    outcome.validations = public.pebble.logged("set VALID by completed challenge");
    outcome.certificates = public.pebble.logged("Issued certificate serial");
    outcome
}

#[test]
fn order_is_finished_after_a_kill_at_any_step() {
    let test = "acme_e2e::crash_recovery::order_is_finished_after_a_kill_at_any_step";
    if !bind::is_here(test) || !Pebble::is_here(test) {
        return;
    }
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let lots: Vec<_> = STEPS.chunks(4).map(|steps| scope.spawn(|| kill_at_each(steps))).collect();
        lots.into_iter().map(|lot| lot.join().unwrap()).collect()
    });
    let died_at: BTreeSet<_> = outcomes.iter().flat_map(|outcome| &outcome.died_at).collect();
    let sum = |count: fn(&Outcome) -> usize| outcomes.iter().map(count).sum::<usize>();
    let orders = sum(|outcome| outcome.orders);
    eprintln!("killed at {} of {} steps; {orders} orders", died_at.len(), STEPS.len());
    // A process may run a step or two further before it dies.
    assert!(died_at.len() > STEPS.len() / 3, "killed only at {died_at:?}");
    // Only an order whose URL was not stored yet is placed again; nothing is validated or issued twice.
    assert!((STEPS.len()..=STEPS.len() + 3).contains(&orders), "{orders} orders");
    assert_eq!(sum(|outcome| outcome.validations), 2 * STEPS.len());
    assert_eq!(sum(|outcome| outcome.certificates), STEPS.len());
}

#[test]
fn finished_order_left_by_a_kill_is_not_resumed() {
    let test = "acme_e2e::crash_recovery::finished_order_left_by_a_kill_is_not_resumed";
    let Some((bind, mut public)) = usual(test, Behavior::default()) else { return };
    public.acme()["dns"]["settle_s"] = json!(5);
    let server = public.start();
    server.says("has the records");
    let files = ["order.json", "order.key"].map(|name| public.site.path("state/certs/ecdsa-p256").join(name));
    let order = files.each_ref().map(|file| std::fs::read(file).unwrap());
    public.obtains();
    server.kill();
    // The state after a kill between storing the certificate and removing its order.
    for (file, content) in files.iter().zip(order) {
        std::fs::write(file, content).unwrap();
    }
    let _server = public.start();
    let before = std::fs::read(public.chain("ecdsa-p256")).unwrap();
    public.renew();
    assert_ne!(std::fs::read(public.chain("ecdsa-p256")).unwrap(), before);
    assert_eq!(bind.txt(CHALLENGE), Vec::<String>::new());
}
