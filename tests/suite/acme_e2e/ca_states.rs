//! States of an order, an account or the terms of service in which a CA refuses, and a proxy on the way to the CA.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::ari::with_ari_proxy;
use super::{CHALLENGE, Public, usual};
use crate::harness::bind::{self, Bind, BindConfig, dead_address};
use crate::harness::connect_proxy::ConnectProxy;
use crate::harness::pebble::{Behavior, Pebble};
use crate::harness::site::Running;
use crate::harness::tool;

const NO_NONCE_REJECTED: Behavior = Behavior {
    rejected_nonces: 0,
    reused_authorizations: 0,
    alternate_roots: 0,
    external_accounts: std::collections::BTreeMap::new(),
    validity_s: 90 * 86_400,
    profiles: std::collections::BTreeMap::new(),
};

/// A problem document of this type (RFC 8555 §6.7).
fn problem(kind: &str, detail: &str) -> Value {
    json!({ "type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail, "status": 403 })
}

impl Public {
    /// The folder of our account at the only CA.
    fn account_folder(&self) -> PathBuf {
        let mut folders = std::fs::read_dir(self.site.path("state/accounts")).unwrap();
        let folder = folders.next().unwrap().unwrap().path();
        assert!(folders.next().is_none(), "several accounts");
        folder
    }

    fn account_key(&self) -> Vec<u8> {
        std::fs::read(self.account_folder().join("account.key")).unwrap()
    }

    fn account_url(&self) -> String {
        let account = std::fs::read(self.account_folder().join("account.json")).unwrap();
        serde_json::from_slice::<Value>(&account).unwrap()["id"].as_str().unwrap().to_owned()
    }

    /// Deactivates our account at Pebble; returns its key and its URL.
    fn deactivate_account(&self) -> (Vec<u8>, String) {
        let (key, url) = (self.account_key(), self.account_url());
        self.pebble.deactivate(&url, &key);
        (key, url)
    }

    /// Starts the server with these variables in its environment.
    fn start_with(&self, variables: &[(&str, &str)]) -> Running {
        let mut command = self.site.command();
        command.envs(variables.iter().copied());
        Running::start(command, 1)
    }
}

#[test]
fn redirect_of_the_ca_is_named_with_its_target() {
    let test = "acme_e2e::ca_states::redirect_of_the_ca_is_named_with_its_target";
    let Some((_bind, public, ca)) = with_ari_proxy(test, true) else { return };
    ca.answers("/dir", "301 Moved Permanently\r\nLocation: https://new.example/dir\r\n\r\n");
    let server = public.start();
    let line = server.says("no new certificate (ecdsa-p256)");
    let moved = format!(
        "{}: the CA redirects (HTTP 301) to https://new.example/dir, and ACME has no redirects",
        ca.directory()
    );
    assert!(line.contains(&moved) && line.contains("write the URL of its new directory to"), "{line}");
    for (path, status) in
        [("/order-plz", "302 Found"), ("/finalize-order/", "307 Temporary Redirect"), ("/certZ/", "308 x")]
    {
        ca.answers(path, &format!("{status}\r\nLocation: /maintenance\r\n\r\n"));
        let said = public.certificate(&["renew", "--now"]);
        let code = status.split(' ').next().unwrap();
        let target = format!("{path}: the CA redirects (HTTP {code}) to /maintenance");
        let named = said.stdout.split("https://").any(|part| {
            part.split_once(path.trim_end_matches('/'))
                .is_some_and(|(_, rest)| rest.contains(&format!("(HTTP {code}) to /maintenance")))
        });
        assert!(said.code == 1 && named, "{target}: {said:?}");
    }
    assert_eq!(ca.refusals_left(), 0);
    public.renew();
}

#[test]
fn answer_that_is_not_the_cas_says_what_to_change() {
    let test = "acme_e2e::ca_states::answer_that_is_not_the_cas_says_what_to_change";
    let Some((_bind, public, ca)) = with_ari_proxy(test, true) else { return };
    let long = "x".repeat(2 << 20);
    let rows = [
        (
            "302 Found\r\n\r\n".to_owned(),
            "a redirect (HTTP 302) that names no URL (Location)",
            "\"directory\" is the URL of",
        ),
        (
            "200 OK\r\nContent-Type: text/html\r\n\r\n\n<html>sign in</html>".to_owned(),
            "/dir is not an ACME directory (a web page)",
            "a proxy or a portal on the way answers in its place (`curl -v https://",
        ),
        (
            format!("200 OK\r\n\r\n{long}"),
            "/dir: its answer is longer than the answers of ACME (1048576 bytes)",
            "check that the \"directory\" is the URL of an ACME CA",
        ),
    ];
    ca.answers("/dir", &rows[0].0);
    let server = public.start();
    let line = server.says("no new certificate (ecdsa-p256)").replace("\\\"", "\"");
    assert!(line.contains(rows[0].1) && line.contains(rows[0].2) && !line.contains("no URL;"), "{line}");
    for (answer, problem, remedy) in &rows[1..] {
        ca.answers("/dir", answer);
        let said = public.certificate(&["renew", "--now"]);
        assert!(said.code == 1 && said.stdout.contains(problem) && said.stdout.contains(remedy), "{said:?}");
    }
    assert_eq!(ca.refusals_left(), 0);
    public.renew();
}

#[test]
fn bidirectional_marks_of_a_ca_reach_neither_log_nor_status() {
    let test = "acme_e2e::ca_states::bidirectional_marks_of_a_ca_reach_neither_log_nor_status";
    let Some((_bind, public, ca)) = with_ari_proxy(test, true) else { return };
    let hostile = problem("malformed", "try \u{202e}later\u{2066} \u{1b}[2J");
    ca.refuses("/order-plz", &hostile, &[]);
    let server = public.start();
    let line = server.says("no new certificate (ecdsa-p256)");
    assert!(line.contains("later"), "{line}");
    ca.refuses("/order-plz", &hostile, &[]);
    let renewed = public.certificate(&["renew", "--now"]);
    let outputs = [
        server.stderr().join(" "),
        renewed.stdout,
        public.certificate(&["status"]).stdout,
        public.certificate(&["status", "--json"]).stdout,
        tool::provost(&public.site.path("."), &["check"]).stdout,
    ];
    for output in outputs {
        assert!(output.contains("later"), "{output}");
        assert!(!output.contains(['\u{202e}', '\u{2066}', '\u{1b}']), "{output:?}");
    }
}

#[test]
fn garbage_in_place_of_a_certificate_is_named() {
    let test = "acme_e2e::ca_states::garbage_in_place_of_a_certificate_is_named";
    let Some((_bind, public, ca)) = with_ari_proxy(test, true) else { return };
    let server = public.start();
    public.obtains();
    let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (garbage, reason) in [
        (
            "<html>busy</html>",
            "the certificate from the CA is not used: the chain is damaged: it holds no certificate in PEM",
        ),
        (
            damaged,
            "the certificate from the CA is not used: the chain is damaged: certificate 1 is not an X.509 certificate",
        ),
    ] {
        ca.answers("/certZ/", &format!("200 OK\r\nContent-Type: application/pem-certificate-chain\r\n\r\n{garbage}"));
        let said = public.certificate(&["renew", "--now"]);
        let remedy =
            "the next attempt orders another one; if this recurs, ask the CA, or name another one in \"directory\"";
        assert!(said.code == 1 && said.stdout.contains(reason) && said.stdout.contains(remedy), "{said:?}");
        assert!(
            said.stdout.contains(&format!(" at {})", ca.directory())) && said.stdout.contains("(order https://"),
            "{said:?}"
        );
    }
    assert_eq!(ca.refusals_left(), 0);
    public.renew();
    assert!(!server.stderr().join("\n").contains("panicked"));
}

#[test]
fn order_not_ready_is_polled_and_not_replaced() {
    let test = "acme_e2e::ca_states::order_not_ready_is_polled_and_not_replaced";
    let Some((_bind, public, ca)) = with_ari_proxy(test, true) else { return };
    for _ in 0..2 {
        ca.refuses("/finalize-order/", &problem("orderNotReady", "Order's status is \"pending\""), &[]);
    }
    let server = public.start();
    public.obtains();
    assert_eq!((ca.refusals_left(), ca.orders().len()), (0, 1));
    let said = server.stderr().join("\n");
    assert!(!said.contains("no new certificate"), "{said}");
}

#[test]
fn user_action_required_prints_the_page() {
    let test = "acme_e2e::ca_states::user_action_required_prints_the_page";
    let Some((_bind, public, ca)) = with_ari_proxy(test, true) else { return };
    let changed = problem("userActionRequired", "Terms of service have changed");
    let with_page = {
        let mut changed = changed.clone();
        changed["instance"] = json!("https://ca.example/agree?token=abc");
        changed
    };
    ca.refuses("/order-plz", &with_page, &["Link: <https://ca.example/tos>;rel=\"terms-of-service\""]);
    let server = public.start();
    let line = server.says("no new certificate (ecdsa-p256)");
    assert!(line.contains("Terms of service have changed") && line.contains("action required"), "{line}");
    assert!(line.contains("do what https://ca.example/agree?token=abc asks"), "{line}");
    assert_eq!(public.status()["certificates"][0]["needs_human"], true);
    ca.refuses("/order-plz", &changed, &["Link: <https://ca.example/tos>;rel=\"terms-of-service\""]);
    public.fails("do what https://ca.example/tos asks");
}

#[test]
fn deactivated_account_is_replaced_with_a_new_key() {
    let test = "acme_e2e::ca_states::deactivated_account_is_replaced_with_a_new_key";
    let Some((_bind, public)) = usual(test, NO_NONCE_REJECTED) else { return };
    let _server = public.start();
    public.obtains();
    let folder = public.account_folder();
    let mut keys = vec![public.account_key()];
    for name in ["account.key.deactivated", "account.key.deactivated.2"] {
        let (key, url) = public.deactivate_account();
        let check = tool::provost(&public.site.path("."), &["check", "--live"]);
        assert!(check.stdout.contains("the next renewal registers an account with a new key"), "{check:?}");
        let said = public.renew();
        assert!(said.contains(&format!("our account {url} is deactivated")), "{said}");
        assert_eq!(std::fs::read(folder.join(name)).unwrap(), key);
        assert_ne!(public.account_url(), url);
        keys.push(public.account_key());
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 3, "each account has a key of its own");
}

#[test]
fn account_deactivated_twice_without_a_certificate_is_kept() {
    let test = "acme_e2e::ca_states::account_deactivated_twice_without_a_certificate_is_kept";
    let Some((_bind, public, ca)) = with_ari_proxy(test, true) else { return };
    let deactivated = || ca.refuses("/order-plz", &problem("unauthorized", "The account has been deactivated"), &[]);
    // The order with the first account, and the one with its replacement.
    deactivated();
    deactivated();
    let server = public.start();
    server.says("no new certificate (ecdsa-p256)");
    let folder = public.account_folder();
    assert!(folder.join("account.key.deactivated").exists());
    let key = public.account_key();
    server.kill();
    let server = public.start();
    for _ in 0..2 {
        deactivated();
        let said = public.fails("no third one is registered");
        assert!(said.contains("action required"), "{said}");
    }
    assert_eq!((public.account_key(), ca.refusals_left()), (key, 0));
    assert!(!folder.join("account.key.deactivated.2").exists());
    server.kill();
    // An account that works again needs no replacement.
    let _server = public.start();
    public.renew();
}

#[test]
fn caa_record_that_binds_the_old_account_prevents_a_new_one() {
    let test = "acme_e2e::ca_states::caa_record_that_binds_the_old_account_prevents_a_new_one";
    if !bind::is_here(test) || !Pebble::is_here(test) {
        return;
    }
    let policy = format!("{} grant admin. zonesub ANY;", super::POLICY);
    let bind: Bind = BindConfig::new()
        .key("provost.", "hmac-sha256")
        .key("admin.", "hmac-sha256")
        .primary("example.com", "*.phones A 127.0.0.1\nphones A 127.0.0.1", &policy)
        .start();
    let pebble = Pebble::start(NO_NONCE_REJECTED, bind.address);
    let public = Public::new(pebble, bind.address, &bind.key_file("provost."));
    let _server = public.start();
    public.obtains();
    let (key, url) = public.deactivate_account();
    bind.nsupdate("admin.", &format!("update add example.com 60 CAA 0 issue \"ca.example; accounturi={url}\""));
    let said = public.fails("no new account is registered");
    let record = format!("example.com. CAA `0 issue \"ca.example; accounturi={url}\"`; remove accounturi");
    assert!(said.contains(&record), "{said}");
    let check = tool::provost(&public.site.path("."), &["check", "--live"]);
    assert!(check.code == 1 && check.stdout.contains(&format!("does not accept our account {url}")), "{check:?}");
    assert!(check.stdout.contains("remove accounturi from example.com. CAA"), "{check:?}");
    assert_eq!(public.status()["certificates"][0]["needs_human"], true);
    assert_eq!((public.account_key(), public.account_url()), (key.clone(), url.clone()));
    assert!(!public.account_folder().join("account.key.deactivated").exists());
    bind.nsupdate("admin.", "update delete example.com CAA");
    public.renew();
    assert_eq!(std::fs::read(public.account_folder().join("account.key.deactivated")).unwrap(), key);
    assert_ne!(public.account_url(), url);
    assert_eq!(bind.txt(CHALLENGE), Vec::<String>::new());
}

#[test]
fn https_proxy_is_used_and_its_password_is_in_no_log() {
    let test = "acme_e2e::ca_states::https_proxy_is_used_and_its_password_is_in_no_log";
    let Some((_bind, public)) = usual(test, Behavior::default()) else { return };
    let proxy = ConnectProxy::start();
    let url = format!("http://provost:pa55word@{}", proxy.address);
    let server = public.start_with(&[("HTTPS_PROXY", &url)]);
    public.obtains();
    let requests = proxy.requests();
    let head = format!("CONNECT {} HTTP/1.1\r\n", public.pebble.address());
    assert!(requests.len() > 10, "{requests:?}");
    for request in &requests {
        assert!(request.starts_with(&head), "{request}");
        assert!(request.contains("Proxy-Authorization: Basic cHJvdm9zdDpwYTU1d29yZA==\r\n"), "{request}");
    }
    let said = server.stderr().join("\n") + &server.stdout().join("\n");
    assert!(!said.contains("pa55word") && !said.contains("cHJvdm9zdDpwYTU1d29yZA"), "{said}");
}

#[test]
fn no_proxy_excludes_the_ca() {
    let test = "acme_e2e::ca_states::no_proxy_excludes_the_ca";
    let Some((_bind, public)) = usual(test, Behavior::default()) else { return };
    let dead = dead_address();
    let variables = [("ALL_PROXY", &*format!("http://{dead}")), ("no_proxy", "localhost, 127.0.0.0/8")];
    let _server = public.start_with(&variables);
    public.obtains();
}

#[test]
fn dead_proxy_is_named_without_its_password() {
    let test = "acme_e2e::ca_states::dead_proxy_is_named_without_its_password";
    let Some((_bind, public)) = usual(test, Behavior::default()) else { return };
    let dead = dead_address();
    let server = public.start_with(&[("https_proxy", &format!("http://provost:pa55word@{dead}"))]);
    let line = server.says("no new certificate (ecdsa-p256)");
    assert!(line.contains(&format!("the proxy {dead} (https_proxy): Connection refused")), "{line}");
    let said = server.stderr().join("\n");
    assert!(!said.contains("pa55word"), "{said}");
}
