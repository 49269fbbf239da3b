//! A CA that says when it wants a certificate renewed (RFC 9773), and that offers profiles: the Pebble that `tests/run`
//! fetches.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use super::{Public, primary};
use crate::harness::bind::{self, Bind};
use crate::harness::pebble::{Behaviour, Pebble};

const DAY: u64 = 86_400;

/// A site whose CA offers the profiles that Let's Encrypt does; `None`, and NOT RUN, if there is no such CA here.
fn with_wishes(test: &str) -> Option<(Bind, Public)> {
    let program = bind::is_here(test).then(|| Pebble::fetched(test))??;
    let profiles = [("classic", 90), ("shortlived", 6)].map(|(name, days)| (name.to_owned(), days * DAY));
    let behaviour = Behaviour { profiles: BTreeMap::from(profiles), ..Behaviour::default() };
    let bind = primary().start();
    let pebble = Pebble::start_program(program, behaviour, bind.address);
    let public = Public::new(pebble, bind.address, &bind.key_file("provost."));
    Some((bind, public))
}

fn days_left(status: &Value) -> &Value {
    &status["certificates"][0]["held"]["days_left"]
}

#[test]
fn the_profile_that_is_configured_is_asked_for_and_classic_otherwise() {
    let test = "unattended::wishes::the_profile_that_is_configured_is_asked_for_and_classic_otherwise";
    let Some((_bind, mut public)) = with_wishes(test) else { return };
    let server = public.site.start();
    assert_eq!(*days_left(&public.obtains()), 89);
    server.kill();
    public.acme()["profile"] = json!("shortlived");
    let _server = public.site.start();
    public.renew();
    assert_eq!(*days_left(&public.status()), 5);
}

#[test]
fn a_profile_that_is_not_offered_is_told_with_those_that_are() {
    let test = "unattended::wishes::a_profile_that_is_not_offered_is_told_with_those_that_are";
    let Some((_bind, mut public)) = with_wishes(test) else { return };
    public.acme()["profile"] = json!("tlsserver");
    let server = public.site.start();
    let line = server.says("no new certificate (ecdsa-p256)");
    assert!(line.contains("offers no profile") && line.contains("only: classic, shortlived"), "{line}");
    assert!(line.contains("needs somebody"), "{line}");
    assert_eq!(public.pebble.logged("Added order"), 0);
}

#[test]
fn a_window_of_the_ca_s_is_obeyed_and_the_order_says_what_it_replaces() {
    let test = "unattended::wishes::a_window_of_the_ca_s_is_obeyed_and_the_order_says_what_it_replaces";
    let Some((_bind, public)) = with_wishes(test) else { return };
    let server = public.site.start();
    public.obtains();
    server.says("the CA wants it renewed");
    let status = &public.status()["certificates"][0];
    let (window, next) = (&status["window"], status["next_attempt"].as_i64().unwrap());
    let bounds = window["start"].as_i64().unwrap()..=window["end"].as_i64().unwrap();
    assert!(bounds.contains(&next) && next > OffsetDateTime::now_utc().unix_timestamp(), "{status}");
    assert_eq!(public.pebble.logged("is a replacement of"), 0);
    server.kill();

    // The CA moves the window: now, all at once. It is not asked again before its Retry-After, six hours, is over.
    let before = std::fs::read_to_string(public.chain("ecdsa-p256")).unwrap();
    let leaf = before.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
    let now = OffsetDateTime::now_utc();
    public.pebble.wants_renewal(leaf, now - Duration::days(10), now + Duration::minutes(5));
    let server = public.site.start();
    assert_eq!(public.status()["certificates"][0]["next_attempt"], next);
    server.kill();
    public.forget_when_to_look_again();
    let server = public.site.start();
    server.says("a new certificate is in use");
    assert_ne!(std::fs::read_to_string(public.chain("ecdsa-p256")).unwrap(), before);
    assert_eq!(public.pebble.logged("is a replacement of"), 1);
    // What the CA itself asked for is exempt from its limit, and so from our budget.
    let budget = &public.memory()["directories"][public.pebble.directory()]["budget"];
    assert!(budget["wanted_certificates"].is_i64(), "{budget}");
}

impl Public {
    /// As if the CA's Retry-After for its window were over.
    fn forget_when_to_look_again(&self) {
        let mut memory = self.memory();
        let recheck = memory["certificates"]["ecdsa-p256"].as_object_mut().unwrap().remove("recheck");
        assert!(recheck.is_some_and(|recheck| recheck.is_object()), "{memory}");
        std::fs::write(self.site.path("state/renewal.json"), memory.to_string()).unwrap();
    }
}
