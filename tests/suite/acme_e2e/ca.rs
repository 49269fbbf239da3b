//! The CA's errors and refusals, tested with the whole server.

use std::collections::BTreeMap;

use serde_json::json;

use super::{CHALLENGE, Public, primary, usual};
use crate::harness::bind;
use crate::harness::pebble::{Behavior, Pebble};

#[test]
fn external_account_is_bound_once_configured() {
    let test = "acme_e2e::ca::external_account_is_bound_once_configured";
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
    let external_accounts = BTreeMap::from([("kid-1".to_owned(), key.to_owned())]);
    let Some((_bind, mut public)) = usual(test, Behavior { external_accounts, ..Behavior::default() }) else {
        return;
    };
    let server = public.start();
    let line = server.says("no new certificate (ecdsa-p256)");
    assert!(line.contains("externalAccountRequired") && line.contains("action required"), "{line}");
    server.kill();
    std::fs::write(public.site.path("eab.key"), format!("{key}\n")).unwrap();
    public.acme()["external_account"] = json!({ "key_id": "kid-1", "hmac_key_file": "eab.key" });
    // Changed settings cause an immediate attempt, despite earlier failures.
    let server = public.start();
    public.obtains();
    let said = server.stderr().join("\n");
    assert!(!said.contains(key), "the key is a secret");
}

#[test]
fn preferred_chain_is_served_to_phones() {
    let test = "acme_e2e::ca::preferred_chain_is_served_to_phones";
    let Some((_bind, mut public)) = usual(test, Behavior { alternate_roots: 2, ..Behavior::default() }) else {
        return;
    };
    let preferred = public.pebble.issuing_root_name(2);
    public.acme()["preferred_chain"] = json!(preferred);
    let server = public.start();
    let status = public.obtains();
    assert_eq!(status["certificates"][0]["held"]["issuers"].as_array().unwrap().last(), Some(&json!(preferred)));
    assert_eq!(public.client_of(&server, 2).get("/site.cfg").unwrap().status, 200);
    public.client_of(&server, 0).get("/site.cfg").unwrap_err();
}

#[test]
fn missing_preferred_chain_is_logged_and_does_not_block() {
    let test = "acme_e2e::ca::missing_preferred_chain_is_logged_and_does_not_block";
    let Some((_bind, mut public)) = usual(test, Behavior { alternate_roots: 1, ..Behavior::default() }) else {
        return;
    };
    public.acme()["preferred_chain"] = json!("Nobody");
    let server = public.start();
    public.obtains();
    let line = server.says("no chain ends at");
    assert!((0..2).all(|root| line.contains(&public.pebble.issuing_root_name(root))), "{line}");
    assert_eq!(public.client(&server).get("/site.cfg").unwrap().status, 200);
}

#[test]
fn profile_at_a_ca_without_profiles_is_a_logged_error() {
    let test = "acme_e2e::ca::profile_at_a_ca_without_profiles_is_a_logged_error";
    let Some((_bind, mut public)) = usual(test, Behavior::default()) else { return };
    public.acme()["profile"] = json!("classic");
    let line = public.start().says("no new certificate (ecdsa-p256)");
    assert!(line.contains("only: none at all") && line.contains("action required"), "{line}");
}

#[test]
fn rejected_nonces_are_retried_without_a_failure() {
    let test = "acme_e2e::ca::rejected_nonces_are_retried_without_a_failure";
    let Some((_bind, public)) = usual(test, Behavior { rejected_nonces: 30, ..Behavior::default() }) else { return };
    let server = public.start();
    public.obtains();
    for _ in 0..2 {
        public.renew();
    }
    assert_eq!(public.status()["certificates"][0]["failures"], 0);
    let said = server.stderr().join("\n");
    assert!(!said.contains("failed: "), "{said}");
}

#[test]
fn reused_authorization_needs_no_dns_records() {
    let test = "acme_e2e::ca::reused_authorization_needs_no_dns_records";
    let behavior = Behavior { reused_authorizations: 100, ..Behavior::default() };
    let Some((_bind, public)) = usual(test, behavior) else { return };
    let _server = public.start();
    public.obtains();
    let said = public.renew();
    assert!(!said.contains("publishing"), "{said}");
}

#[test]
fn account_lost_by_the_ca_is_registered_again_with_its_key() {
    let test = "acme_e2e::ca::account_lost_by_the_ca_is_registered_again_with_its_key";
    let Some((_bind, mut public)) = usual(test, Behavior::default()) else { return };
    let server = public.start();
    public.obtains();
    let accounts = std::fs::read_dir(public.site.path("state/accounts")).unwrap();
    let account = accounts.last().unwrap().unwrap().path().join("account.key");
    let key = std::fs::read(&account).unwrap();
    public.pebble.start_again();
    let said = public.renew();
    assert!(said.contains("does not know our account"), "{said}");
    assert_eq!(std::fs::read(account).unwrap(), key);
    // Its roots are new, too.
    assert_eq!(public.client(&server).get("/site.cfg").unwrap().status, 200);
}

#[test]
fn ca_outage_serves_the_stored_certificate_then_renews() {
    let test = "acme_e2e::ca::ca_outage_serves_the_stored_certificate_then_renews";
    let Some((bind, mut public)) = usual(test, Behavior::default()) else { return };
    let server = public.start();
    public.obtains();
    let client = public.client(&server);
    server.kill();
    public.pebble.stop();
    let server = public.start();
    assert_eq!(client.at(server.address()).get("/site.cfg").unwrap().status, 200);
    public.fails("refused");
    assert!(public.status()["certificates"][0]["last_error"].as_str().unwrap().contains("refused"));
    public.pebble.start_again();
    public.renew();
    assert!(public.status()["certificates"][0]["last_error"].is_null());
    assert_eq!(bind.txt(CHALLENGE), Vec::<String>::new());
}

#[test]
fn failed_validation_is_logged_with_the_ca_error_and_counted() {
    let test = "acme_e2e::ca::failed_validation_is_logged_with_the_ca_error_and_counted";
    if !bind::is_here(test) || !Pebble::is_here(test) {
        return;
    }
    // The CA queries another server.
    let (bind, elsewhere) = (primary().start(), primary().start());
    let pebble = Pebble::start(Behavior::default(), elsewhere.address);
    let public = Public::new(pebble, bind.address, &bind.key_file("provost."));
    let server = public.start();
    let line = server.says("no new certificate (ecdsa-p256)");
    assert!(line.contains("validation failed") && line.contains("No TXT records found"), "{line}");
    assert!(public.has_spent_validations());
    assert!(!public.site.path("state/certs/ecdsa-p256/order.json").exists(), "that order is invalid");
    assert_eq!(bind.txt(CHALLENGE), Vec::<String>::new());
}

#[test]
fn untrusted_directory_error_names_directory_root() {
    let test = "acme_e2e::ca::untrusted_directory_error_names_directory_root";
    let Some((_bind, mut public)) = usual(test, Behavior::default()) else { return };
    public.acme().as_object_mut().unwrap().remove("directory_root");
    let server = public.start();
    let line = server.says("no new certificate (ecdsa-p256)");
    let reason = "the peer's certificate is not valid: its issuer is not trusted (UnknownIssuer); if the CA's directory has a root of its own, \
                  name it in \"directory_root\"";
    assert!(line.replace("\\\"", "\"").contains(reason), "{line}");
}
