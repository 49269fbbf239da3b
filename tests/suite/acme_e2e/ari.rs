//! Renewal information (RFC 9773) and profiles, with the Pebble that `tests/run` downloads, or with a proxy in front of
//! an old one.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use super::{Public, primary, usual};
use crate::harness::ari_proxy::{AriProxy, EXPLANATION};
use crate::harness::bind::{self, Bind};
use crate::harness::eventually;
use crate::harness::pebble::{Behavior, Pebble};
use crate::harness::site::Running;

const DAY: u64 = 86_400;

/// A site whose CA offers the same profiles as Let's Encrypt; `None`, after NOT RUN, if there is no such CA here.
fn with_profiles(test: &str) -> Option<(Bind, Public)> {
    let program = bind::is_here(test).then(|| Pebble::fetched(test))??;
    let profiles = [("classic", 90), ("shortlived", 6)].map(|(name, days)| (name.to_owned(), days * DAY));
    let behavior = Behavior { profiles: BTreeMap::from(profiles), ..Behavior::default() };
    let bind = primary().start();
    let pebble = Pebble::start_program(program, behavior, bind.address);
    let public = Public::new(pebble, bind.address, &bind.key_file("provost."));
    Some((bind, public))
}

fn days_left(status: &Value) -> &Value {
    &status["certificates"][0]["held"]["days_left"]
}

#[test]
fn configured_profile_is_ordered_and_classic_is_the_default() {
    let test = "acme_e2e::ari::configured_profile_is_ordered_and_classic_is_the_default";
    let Some((_bind, mut public)) = with_profiles(test) else { return };
    let server = public.start();
    assert_eq!(*days_left(&public.obtains()), 89);
    server.kill();
    public.acme()["profile"] = json!("shortlived");
    let _server = public.start();
    public.renew();
    assert_eq!(*days_left(&public.status()), 5);
}

#[test]
fn unknown_profile_is_logged_with_the_offered_ones() {
    let test = "acme_e2e::ari::unknown_profile_is_logged_with_the_offered_ones";
    let Some((_bind, mut public)) = with_profiles(test) else { return };
    public.acme()["profile"] = json!("tlsserver");
    let server = public.start();
    let line = server.says("no new certificate (ecdsa-p256)");
    assert!(line.contains("offers no profile") && line.contains("only: classic, shortlived"), "{line}");
    assert!(line.contains("action required"), "{line}");
    assert_eq!(public.pebble.logged("Added order"), 0);
}

#[test]
fn ari_window_sets_the_renewal_and_the_order_replaces() {
    let test = "acme_e2e::ari::ari_window_sets_the_renewal_and_the_order_replaces";
    let Some((_bind, public)) = with_profiles(test) else { return };
    let server = public.start();
    public.obtains();
    let status = &public.wait_for_window();
    let (window, next) = (&status["window"], status["next_attempt"].as_i64().unwrap());
    let bounds = window["start"].as_i64().unwrap()..=window["end"].as_i64().unwrap();
    assert!(bounds.contains(&next) && next > OffsetDateTime::now_utc().unix_timestamp(), "{status}");
    assert_eq!(public.pebble.logged("is a replacement of"), 0);
    server.kill();

    // The CA moves the window to the present. It is not queried before its Retry-After, six hours, has passed.
    let before = std::fs::read_to_string(public.chain("ecdsa-p256")).unwrap();
    let leaf = before.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
    let (start, end) = current_window();
    public.pebble.set_renewal_window(leaf, start, end);
    let server = public.start();
    assert_eq!(public.status()["certificates"][0]["next_attempt"], next);
    server.kill();
    public.expire_retry_after();
    let server = public.start();
    server.says("a new certificate is in use");
    assert_ne!(std::fs::read_to_string(public.chain("ecdsa-p256")).unwrap(), before);
    assert_eq!(public.pebble.logged("is a replacement of"), 1);
    // A renewal within the CA's window is exempt from the CA's limit, and so from the budget.
    let budget = &public.memory()["directories"][public.pebble.directory()]["budget"];
    assert!(budget["wanted_certificates"].is_i64(), "{budget}");
}

#[test]
fn order_names_its_profile_and_the_replaced_certificate() {
    let test = "acme_e2e::ari::order_names_its_profile_and_the_replaced_certificate";
    let Some((_bind, public, ca)) = with_ari_proxy(test, true) else { return };
    let server = public.renew_in_a_window(&ca);
    assert!(server.says("window (ARI)").contains(&format!("; the CA explains this at {EXPLANATION}")));
    let orders = ca.orders();
    assert_eq!(orders.len(), 2, "{orders:?}");
    assert!(orders.iter().all(|order| order["profile"] == "classic"), "{orders:?}");
    assert!(orders[0]["replaces"].is_null() && orders[1]["replaces"] == ca.queried_certificates()[0], "{orders:?}");
}

#[test]
fn order_is_repeated_if_the_ca_does_not_echo_replaces() {
    let test = "acme_e2e::ari::order_is_repeated_if_the_ca_does_not_echo_replaces";
    let Some((_bind, public, ca)) = with_ari_proxy(test, false) else { return };
    let server = public.renew_in_a_window(&ca);
    server.says("the CA replaces nothing");
    let orders = ca.orders();
    let replaces: Vec<bool> = orders.iter().map(|order| order["replaces"].is_string()).collect();
    assert_eq!(replaces, [false, true, false], "{orders:?}");
}

#[test]
fn renew_command_queries_ari_again_despite_retry_after() {
    let test = "acme_e2e::ari::renew_command_queries_ari_again_despite_retry_after";
    let Some((_bind, public, ca)) = with_ari_proxy(test, true) else { return };
    let _server = public.start();
    public.obtains();
    public.wait_for_window();
    let asked = ca.queried_certificates().len();
    let early = public.certificate(&["renew"]);
    assert_eq!(early.code, 0, "{early:?}");
    let said = "ecdsa-p256: not due: the CA's renewal window (ARI) is ";
    assert!(early.stdout.starts_with(said) && early.stdout.lines().count() == 1, "{early:?}");
    assert_eq!(ca.queried_certificates().len(), asked + 1);

    // The CA moves the window to the present. Its Retry-After, six hours, does not bind an operator's command.
    let (start, end) = current_window();
    ca.set_renewal_window(start, end);
    let renewed = public.certificate(&["renew"]);
    assert!(renewed.code == 0 && renewed.stdout.contains("ecdsa-p256: a new certificate is in use"), "{renewed:?}");
    assert_eq!(ca.orders().len(), 2);
    assert!(ca.orders()[1]["replaces"].is_string(), "{:?}", ca.orders());

    drop(ca);
    let unheard = public.certificate(&["renew"]);
    let said = "ecdsa-p256: failed: cannot fetch the CA's renewal window (ARI): ";
    assert!(unheard.code == 1 && unheard.stdout.contains(said), "{unheard:?}");
    assert!(unheard.stdout.contains("not due by the last known one"), "{unheard:?}");
}

/// A site whose CA is a proxy with renewal information, for machines with an old Pebble.
pub(super) fn with_ari_proxy(test: &str, echoes_replaces: bool) -> Option<(Bind, Public, AriProxy)> {
    let (bind, mut public) = usual(test, Behavior::default())?;
    let ca = AriProxy::start(&public.pebble, echoes_replaces);
    public.acme()["directory"] = json!(ca.directory());
    Some((bind, public, ca))
}

/// A window that began long ago and ends soon, so that almost any time in it is past.
fn current_window() -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - Duration::days(10), now + Duration::minutes(5))
}

impl Public {
    /// Gets a certificate, then another after the CA moved its window.
    fn renew_in_a_window(&self, ca: &AriProxy) -> Running {
        let server = self.start();
        self.obtains();
        self.wait_for_window();
        server.kill();
        let (start, end) = current_window();
        ca.set_renewal_window(start, end);
        self.expire_retry_after();
        let server = self.start();
        server.says("a new certificate is in use");
        server
    }

    /// Waits until the window is queried and stored; returns the certificate's status.
    fn wait_for_window(&self) -> Value {
        eventually("a window", || {
            let certificate = self.status()["certificates"][0].clone();
            certificate["window"].is_object().then_some(certificate)
        })
    }

    /// Changes the state as if the CA's Retry-After had passed.
    fn expire_retry_after(&self) {
        let mut memory = self.memory();
        let recheck = memory["certificates"]["ecdsa-p256"].as_object_mut().unwrap().remove("recheck");
        assert!(recheck.is_some_and(|recheck| recheck.is_object()), "{memory}");
        std::fs::write(self.site.path("state/renewal.json"), memory.to_string()).unwrap();
    }
}
