//! What a CA may do to us, through the whole server.

use std::collections::BTreeMap;

use serde_json::json;

use super::{CHALLENGE, Public, primary, usual};
use crate::harness::bind;
use crate::harness::pebble::{Behaviour, Pebble};

#[test]
fn an_external_account_is_bound_once_it_is_configured() {
    let test = "unattended::ca::an_external_account_is_bound_once_it_is_configured";
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
    let external_accounts = BTreeMap::from([("kid-1".to_owned(), key.to_owned())]);
    let Some((_bind, mut public)) = usual(test, Behaviour { external_accounts, ..Behaviour::default() }) else {
        return;
    };
    let server = public.start();
    let line = server.says("no new certificate (ecdsa-p256)");
    assert!(line.contains("externalAccountRequired") && line.contains("needs somebody"), "{line}");
    server.kill();
    std::fs::write(public.site.path("eab.key"), format!("{key}\n")).unwrap();
    public.acme()["external_account"] = json!({ "key_id": "kid-1", "hmac_key_file": "eab.key" });
    // Other settings get an attempt at once, whatever failed before.
    let server = public.start();
    public.obtains();
    let said = server.stderr().join("\n");
    assert!(!said.contains(key), "the key is a secret");
}

#[test]
fn the_preferred_chain_is_what_phones_are_shown() {
    let test = "unattended::ca::the_preferred_chain_is_what_phones_are_shown";
    let Some((_bind, mut public)) = usual(test, Behaviour { alternate_roots: 2, ..Behaviour::default() }) else {
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
fn a_preferred_chain_that_there_is_not_is_no_obstacle() {
    let test = "unattended::ca::a_preferred_chain_that_there_is_not_is_no_obstacle";
    let Some((_bind, mut public)) = usual(test, Behaviour { alternate_roots: 1, ..Behaviour::default() }) else {
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
fn a_profile_where_none_is_offered_is_a_mistake_to_be_told() {
    let test = "unattended::ca::a_profile_where_none_is_offered_is_a_mistake_to_be_told";
    let Some((_bind, mut public)) = usual(test, Behaviour::default()) else { return };
    public.acme()["profile"] = json!("classic");
    let line = public.start().says("no new certificate (ecdsa-p256)");
    assert!(line.contains("only: none at all") && line.contains("needs somebody"), "{line}");
}

#[test]
fn three_nonces_in_ten_rejected_fail_nothing() {
    let test = "unattended::ca::three_nonces_in_ten_rejected_fail_nothing";
    let Some((_bind, public)) = usual(test, Behaviour { rejected_nonces: 30, ..Behaviour::default() }) else { return };
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
fn authorizations_that_the_ca_still_has_need_no_records() {
    let test = "unattended::ca::authorizations_that_the_ca_still_has_need_no_records";
    let behaviour = Behaviour { reused_authorizations: 100, ..Behaviour::default() };
    let Some((_bind, public)) = usual(test, behaviour) else { return };
    let _server = public.start();
    public.obtains();
    let said = public.renew();
    assert!(!said.contains("publishing"), "{said}");
}

#[test]
fn a_ca_that_has_forgotten_us_gets_us_again_with_the_same_key() {
    let test = "unattended::ca::a_ca_that_has_forgotten_us_gets_us_again_with_the_same_key";
    let Some((_bind, mut public)) = usual(test, Behaviour::default()) else { return };
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
fn without_a_ca_it_serves_what_is_stored_says_what_is_wrong_and_renews_when_it_is_back() {
    let test = "unattended::ca::without_a_ca_it_serves_what_is_stored_says_what_is_wrong_and_renews_when_it_is_back";
    let Some((bind, mut public)) = usual(test, Behaviour::default()) else { return };
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
fn what_the_ca_did_not_find_is_told_whole_and_its_validation_is_counted() {
    let test = "unattended::ca::what_the_ca_did_not_find_is_told_whole_and_its_validation_is_counted";
    if !bind::is_here(test) || !Pebble::is_here(test) {
        return;
    }
    // It asks elsewhere.
    let (bind, elsewhere) = (primary().start(), primary().start());
    let pebble = Pebble::start(Behaviour::default(), elsewhere.address);
    let public = Public::new(pebble, bind.address, &bind.key_file("provost."));
    let server = public.start();
    let line = server.says("no new certificate (ecdsa-p256)");
    assert!(line.contains("validation failed") && line.contains("No TXT records found"), "{line}");
    assert!(public.has_spent_validations());
    assert!(!public.site.path("state/certs/ecdsa-p256/order.json").exists(), "that order is dead");
    assert_eq!(bind.txt(CHALLENGE), Vec::<String>::new());
}

#[test]
fn a_directory_with_a_root_of_its_own_is_said_in_words() {
    let test = "unattended::ca::a_directory_with_a_root_of_its_own_is_said_in_words";
    let Some((_bind, mut public)) = usual(test, Behaviour::default()) else { return };
    public.acme().as_object_mut().unwrap().remove("directory_root");
    let server = public.start();
    let line = server.says("no new certificate (ecdsa-p256)");
    let reason = "the peer's certificate is not valid: its issuer is not trusted (UnknownIssuer); if the CA's directory has a root of its own, \
                  name it in \"directory_root\"";
    assert!(line.replace("\\\"", "\"").contains(reason), "{line}");
}
