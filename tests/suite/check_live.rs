//! `provost check --live`: real queries to DNS and the CA.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::bind::{self, Bind, BindConfig, dead_address};
use crate::harness::directory::Directory;
use crate::harness::internet::{self, at, root, zone_file};
use crate::harness::knot::{self, Knot};
use crate::harness::pebble::{Behavior, Pebble};
use crate::harness::relay::{Relay, Tcp, Udp};
use crate::harness::site::{Lines, Site};
use crate::harness::tool::{self, Ended, provost};
use crate::harness::unbound;
use crate::harness::{eventually, namespace};

const CHALLENGE: &str = "_acme-challenge.phones.example.com";
const POLICY: &str = "grant provost. name _acme-challenge.phones.example.com. TXT;";
const RECORDS: &str = "*.phones A 192.0.2.10\n*.phones AAAA 2001:db8::10";
const ANY_CA: &str = "CAA records allow any CA to issue for *.phones.example.com and phones.example.com";

/// A primary of `example.com` with the usual records and these.
fn primary(records: &str, policy: &str) -> Bind {
    BindConfig::new()
        .key("provost.", "hmac-sha256")
        .primary("example.com", &format!("{RECORDS}\n{records}"), policy)
        .primary("com", "", "")
        .start()
}

/// A site that updates and queries only `bind`, with `directory` as its CA.
fn site(bind: &Bind, directory: &Directory) -> Site {
    let mut site = Site::with_ote();
    site.file("ote/000000000000.cfg", r#"<APPLICATION CONFIG_FILES="site.cfg"/>"#);
    let server = bind.address.to_string();
    // The addresses of `RECORDS`; the check does not bind them.
    site.config["listen"] = json!(["192.0.2.10:443", "192.0.2.11:443", "[2001:db8::10]:443"]);
    site.config["certificate"] = json!({ "acme": {
        "directory": directory.url,
        "directory_root": directory.root_file(),
        "terms_of_service_agreed": true,
        "dns": { "primary": server, "tsig_key_file": bind.key_file("provost."),
                 "resolvers": [server], "authorities": [server], "settle_s": 0 },
    } });
    site
}

/// The certificate's settings.
fn acme(site: &mut Site) -> &mut Value {
    &mut site.config["certificate"]["acme"]
}

fn ca() -> Directory {
    let terms = "https://ca.example/terms";
    Directory::start(
        &json!({ "caaIdentities": ["ca.example"], "termsOfService": terms, "profiles": { "classic": "" } }),
    )
}

fn check(site: &Site) -> Ended {
    site.write_config();
    provost(&site.path("."), &["check", "--live"])
}

/// Asserts that these lines are reported, each by its start and a part, and no other error or warning.
#[track_caller]
fn finds(site: &Site, expected: &[(&str, &str)]) -> Ended {
    let ended = check(site);
    for (start, part) in expected {
        let is_it = |line: &str| line.starts_with(start) && line.contains(part);
        assert!(ended.stdout.lines().any(is_it), "{start:?} {part:?} is not among\n{}{}", ended.stdout, ended.stderr);
    }
    let count = |level: &str| ended.stdout.lines().filter(|line| line.starts_with(level)).count();
    let wanted = |level: &str| expected.iter().filter(|(start, _)| start.starts_with(level)).count();
    assert_eq!(count("error: "), wanted("error: "), "{}", ended.stdout);
    assert_eq!(count("warning: "), wanted("warning: "), "{}", ended.stdout);
    assert_eq!((ended.code, ended.stderr.as_str()), (i32::from(wanted("error: ") > 0), ""), "{}", ended.stdout);
    ended
}

#[test]
fn live_check_passes_and_advises_caa_records() {
    let test = "check_live::live_check_passes_and_advises_caa_records";
    if !bind::is_here(test) {
        return;
    }
    let (bind, ca) = (primary("", POLICY), ca());
    let site = site(&bind, &ca);
    let (server, url) = (bind.address, &ca.url);
    let ended = finds(&site, &[]);
    let expected = format!(
        "*.phones.example.com: resolves to 192.0.2.10, 2001:db8::10\n\
         {url}: answers; terms of service: https://ca.example/terms; profiles: classic\n\
         {CHALLENGE}: a probe record was added in zone example.com\n\
         {server}: has the records\n\
         {CHALLENGE}: the probe record was removed\n\
         {server}: has the records no more\n\
         note: dns: {ANY_CA}; to allow only {url}, publish (add accounturi once there is an account): \
         phones.example.com. CAA 0 issue \"ca.example; validationmethods=dns-01\" and \
         phones.example.com. CAA 0 issuewild \"ca.example; validationmethods=dns-01\"\n\
         1 constituency can be served; 0 errors, 0 warnings\n"
    );
    // No server of com delegates example.com here.
    let is_remark = |line: &&str| line.starts_with("example.com: the parent's delegation was not compared with");
    let (remarks, others): (Vec<&str>, Vec<&str>) = ended.stdout.lines().partition(is_remark);
    assert_eq!((remarks.len(), others), (1, expected.lines().collect()));
    assert_eq!(bind.txt(CHALLENGE), Vec::<String>::new());
    assert!(!site.path("state").exists(), "nothing is created or locked");
}

#[test]
fn check_without_live_queries_neither_dns_nor_the_ca() {
    if !bind::is_here("check_live::check_without_live_queries_neither_dns_nor_the_ca") {
        return;
    }
    let (bind, mut ca) = (primary("", POLICY), ca());
    let mut site = site(&bind, &ca);
    ca.stop();
    acme(&mut site)["dns"]["primary"] = json!(dead_address().to_string());
    site.write_config();
    let ended = provost(&site.path("."), &["check"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "1 constituency can be served; 0 errors, 0 warnings\n"));
    // Only its files are missing.
    acme(&mut site)["dns"]["tsig_key_file"] = json!("absent.key");
    acme(&mut site)["directory_root"] = json!("absent.pem");
    site.write_config();
    let ended = provost(&site.path("."), &["check"]);
    assert!(ended.stdout.contains("error: dns: ") && ended.stdout.contains("absent.key"), "{}", ended.stdout);
    assert!(ended.stdout.contains("error: certificate: absent.pem: "), "{}", ended.stdout);
    finds(&site, &[("error: dns: ", "absent.key"), ("error: certificate: ", "absent.pem")]);
}

#[test]
fn live_check_advises_caa_records_bound_to_the_account() {
    let test = "check_live::live_check_advises_caa_records_bound_to_the_account";
    if !bind::is_here(test) || !Pebble::is_here(test) {
        return;
    }
    let bind = primary(
        "",
        "grant provost. name _acme-challenge.phones.example.com. TXT; grant provost. name phones.example.com. CAA;",
    );
    let pebble = Pebble::start(Behavior::default(), bind.address);
    let ca = Directory::leading_to(&json!({ "caaIdentities": ["ca.example"] }), &pebble.links());
    let mut site = site(&bind, &ca);
    acme(&mut site)["keys"] = json!(["ecdsa-p256"]);
    let public = std::mem::replace(&mut site.config["listen"], json!(["127.0.0.1:0"]));
    let server = site.start();
    site.config["listen"] = public;
    server.says("a new certificate is in use");
    // The order is removed from the state before the records are.
    eventually("the end of the renewal", || {
        let status = provost(&site.path("."), &["certificate", "status", "--json"]);
        let status: Value = serde_json::from_str(&status.stdout).unwrap();
        (status["certificates"][0]["step"].is_null() && status["leftover_records"] == 0).then_some(())
    });
    let before = files_of(&site);
    let ended = finds(&site, &[(&format!("{}: answers; our account: https://", ca.url), "")]);
    let account = ended.stdout.split_once("our account: ").unwrap().1.lines().next().unwrap().to_owned();
    let value = format!("ca.example; accounturi={account}; validationmethods=dns-01");
    let records =
        format!("phones.example.com. CAA 0 issue \"{value}\" and phones.example.com. CAA 0 issuewild \"{value}\"");
    assert!(ended.stdout.contains(&format!(", publish: {records}\n")), "{}", ended.stdout);
    for record in records.split(" and ") {
        bind.nsupdate("provost.", &format!("add {}", record.replacen(" CAA", " 60 CAA", 1)));
    }
    let good = format!("{}: the CAA records allow ca.example to issue", ca.url);
    let ended = finds(&site, &[(&good, "")]);
    assert!(!ended.stdout.contains("note: "), "{}", ended.stdout);
    assert_eq!(files_of(&site), before, "nothing is left in the state directory");
    assert_eq!(bind.txt(CHALLENGE), Vec::<String>::new());
}

#[test]
fn repaired_dns_after_a_failed_attempt_is_said_with_its_time() {
    let test = "check_live::repaired_dns_after_a_failed_attempt_is_said_with_its_time";
    if !bind::is_here(test) || !Pebble::is_here(test) {
        return;
    }
    let bind = primary("", POLICY);
    let pebble = Pebble::start(Behavior::default(), bind.address);
    let ca = Directory::leading_to(&json!({ "caaIdentities": ["ca.example"] }), &pebble.links());
    let mut site = site(&bind, &ca);
    acme(&mut site)["keys"] = json!(["ecdsa-p256"]);
    acme(&mut site)["dns"]["zone"] = json!("example.net");
    let public = std::mem::replace(&mut site.config["listen"], json!(["127.0.0.1:0"]));
    let server = site.start();
    server.says("no new certificate (ecdsa-p256)");
    site.config["listen"] = public;
    let failed = "error: certificate: the ecdsa-p256 certificate could not be obtained: ";
    let ended = provost(&site.path("."), &["check"]);
    let line = ended.stdout.lines().find(|line| line.starts_with(failed)).unwrap_or_else(|| panic!("{ended:?}"));
    assert!(line.contains(" (attempt of 2") && line.contains(" UTC; next attempt "), "{line}");
    assert!(!line.contains("renew --now"), "{line}");
    // The operator corrects the setting; the server runs with the old one.
    acme(&mut site)["dns"].as_object_mut().unwrap().remove("zone");
    let ended = finds(&site, &[(failed, "`provost certificate renew --now` tries again at once")]);
    assert!(ended.stdout.contains("the way of the challenge is right now"), "{}", ended.stdout);
    let status = provost(&site.path("."), &["certificate", "status"]).stdout;
    assert!(
        status.contains("  last attempt: 2")
            && status.contains(" UTC failed: ")
            && status.contains("1 failure in a row"),
        "{status}"
    );
    assert!(status.contains("  next attempt: 2") && status.contains(" UTC (in "), "{status}");
}

/// The content of the state directory, without the files that a server rewrites.
fn files_of(site: &Site) -> String {
    tool::run(Command::new("find").arg(site.path("state")).args(["!", "-name", ".new-*", "-printf", "%p %u %m\n"]))
        .stdout
}

#[test]
fn forbidding_caa_record_is_an_error_with_a_remedy() {
    if !bind::is_here("check_live::forbidding_caa_record_is_an_error_with_a_remedy") {
        return;
    }
    let cases = [
        (
            "nobody",
            "0 issue \";\"",
            "the CAA records of nobody.example.com do not permit ca.example to issue for *.nobody.example.com: `0 issue \";\"` permits no CA",
        ),
        ("other", "0 issue \"digicert.com\"", "`0 issue \"digicert.com\"` permits another CA"),
        (
            "wild",
            "0 issuewild \"digicert.com\"\nwild CAA 0 issue \"ca.example\"",
            "issue for *.wild.example.com: `0 issuewild",
        ),
        (
            "bare",
            "0 issuewild \"ca.example\"\nbare CAA 0 issue \"digicert.com\"",
            "issue for bare.example.com: `0 issue",
        ),
        (
            "account",
            "0 issue \"ca.example; accounturi=https://ca.example/9\"",
            "permits another account: we have none there yet",
        ),
        ("method", "0 issue \"ca.example; validationmethods=http-01\"", "does not permit the method dns-01"),
        (
            "critical",
            "128 tbs \"x\"\ncritical CAA 0 issue \"ca.example\"",
            "`128 tbs \"x\"`, forbids every CA to issue: it is critical, and CAs do not know its tag \"tbs\"; remove it",
        ),
        ("deep.below.parent", "0 iodef \"mailto:a@example.com\"", ""),
    ];
    let records: Vec<String> =
        cases.iter().map(|(name, caa, _)| format!("{name} CAA {caa}\n*.{name} A 192.0.2.10")).collect();
    let (bind, ca) = (primary(&records.join("\n"), "grant provost. zonesub TXT;"), ca());
    let mut site = site(&bind, &ca);
    let mut seen = 0;
    for (name, _, reason) in cases.iter().filter(|(_, _, reason)| !reason.is_empty()) {
        site.config["domain"] = json!(format!("{name}.example.com"));
        let ended = finds(&site, &[("error: dns: ", reason)]);
        let cure =
            format!("; to allow it, publish: {name}.example.com. CAA 0 issue \"ca.example; validationmethods=dns-01\"");
        assert!(ended.stdout.contains(&cure), "{}", ended.stdout);
        seen += 1;
    }
    assert_eq!(seen, 7);
    // The records above the domain apply too; records that restrict nothing are ignored.
    site.config["domain"] = json!("name.other.example.com");
    let above =
        ("error: dns: the CAA records of other.example.com do not permit ca.example to issue for *.name.other", "");
    finds(&site, &[above, ("warning: dns: only a wildcard record above name.other.example.com", "")]);
    site.config["domain"] = json!("deep.below.parent.example.com");
    finds(&site, &[("note: dns: CAA records allow any CA to issue for *.deep.below.parent", "")]);
}

#[test]
fn failed_caa_lookup_above_the_domain_is_a_warning() {
    if !bind::is_here("check_live::failed_caa_lookup_above_the_domain_is_a_warning") {
        return;
    }
    // An authority, not a resolver: it refuses queries above its zone.
    let bind = BindConfig::new().key("provost.", "hmac-sha256").primary("example.com", RECORDS, POLICY).start();
    let ca = ca();
    let refuses = "no resolver says which CAA records com has: ";
    finds(&site(&bind, &ca), &[("warning: dns: ", refuses), (&format!("note: dns: {ANY_CA}"), "")]);
}

#[test]
fn each_unusable_acme_directory_is_reported() {
    if !bind::is_here("check_live::each_unusable_acme_directory_is_reported") {
        return;
    }
    let bind = primary("", POLICY);
    let (no_directory, no_nonces) = (dead_address(), dead_address());
    let dead = format!("https://{no_directory}/dir");
    let ca = ca();
    let customers = Directory::start(&json!({ "externalAccountRequired": true }));
    let no_nonces = format!("https://{no_nonces}/nonce");
    let nonceless = Directory::leading_to(&json!({}), &json!({ "newNonce": no_nonces }));
    let mut site = site(&bind, &ca);
    acme(&mut site)["profile"] = json!("shortlived");
    acme(&mut site)["fallback_directories"] = json!([
        { "directory": dead },
        { "directory": customers.url, "directory_root": customers.root_file() },
        { "directory": nonceless.url, "directory_root": nonceless.root_file() },
        { "directory": ca.url.replace("/dir", "/without-root") },
    ]);
    finds(
        &site,
        &[
            (&format!("error: certificate: {} offers no profile \"shortlived\", only: classic", ca.url), ""),
            (&format!("error: certificate: {dead}: "), "Connection refused"),
            (&format!("error: certificate: {no_nonces}: "), "Connection refused"),
            (&format!("error: certificate: {} takes only customers of the CA", customers.url), "\"external_account\""),
            (&format!("error: certificate: {}/without-root: ", ca.url.trim_end_matches("/dir")), "UnknownIssuer"),
        ],
    );
}

#[test]
fn control_characters_from_a_ca_are_replaced() {
    if !bind::is_here("check_live::control_characters_from_a_ca_are_replaced") {
        return;
    }
    let bind = primary("", POLICY);
    let ca =
        Directory::start(&json!({ "caaIdentities": ["ca.example\u{1b}[2J"], "termsOfService": "\u{1b}]0;title\u{7}" }));
    let ended = finds(&site(&bind, &ca), &[]);
    assert!(ended.stdout.contains("terms of service: \u{fffd}]0;title\u{fffd}\n"), "{}", ended.stdout);
    assert!(!ended.stdout.contains(|it: char| it.is_control() && it != '\n'), "{}", ended.stdout);
}

#[test]
fn live_check_reports_every_problem_in_one_run() {
    if !bind::is_here("check_live::live_check_reports_every_problem_in_one_run") {
        return;
    }
    let bind = BindConfig::new().key("provost.", "hmac-sha256").primary("example.com", "", "grant other. zonesub TXT;");
    let (bind, mut ca) = (bind.primary("com", "", "").start(), ca());
    let mut site = site(&bind, &ca);
    ca.stop();
    let url = &ca.url;
    let none = "error: dns: *.phones.example.com has no address, so phones cannot find their constituency; publish: \
                *.phones.example.com. A 192.0.2.10 and *.phones.example.com. A 192.0.2.11 and *.phones.example.com. AAAA \
                2001:db8::10";
    let refused = "error: dns: the DNS primary ";
    let missing = format!(
        "REFUSED, signed with the key provost., so the key is valid there; likely causes: (1) its policy does not permit this \
         key to do this; add: BIND, in update-policy of zone example.com.: `{POLICY}`"
    );
    finds(&site, &[(none, ""), (&format!("error: certificate: {url}: "), "refused"), (refused, &missing)]);

    let dead = dead_address();
    acme(&mut site)["dns"]["primary"] = json!(dead.to_string());
    let unreachable = format!("{dead} does not answer an update of example.com");
    finds(&site, &[(none, ""), (&format!("error: certificate: {url}: "), ""), (refused, &unreachable)]);

    acme(&mut site)["dns"]["primary"] = json!("absent.example.com");
    let nowhere =
        "the address of absent.example.com (\"dns\".\"primary\") was not found: it has neither A nor AAAA records";
    finds(&site, &[(none, ""), (&format!("error: certificate: {url}: "), ""), ("error: dns: ", nowhere)]);

    acme(&mut site)["dns"]["resolvers"] = json!([dead.to_string()]);
    let unknown = "no resolver says which CAA records com has";
    finds(
        &site,
        &[
            // The configured authority is asked for the rest.
            (none, ""),
            ("error: dns: the address of absent.example.com", "no resolver says which"),
            ("warning: dns: ", unknown),
            (&format!("error: certificate: {url}: "), ""),
        ],
    );
}

#[test]
fn live_check_reports_a_wrong_tsig_secret() {
    if !bind::is_here("check_live::live_check_reports_a_wrong_tsig_secret") {
        return;
    }
    let (bind, ca) = (primary("", POLICY), ca());
    let other = BindConfig::new().key("provost.", "hmac-sha256").primary("example.net", "", "").start();
    let mut site = site(&bind, &ca);
    acme(&mut site)["dns"]["tsig_key_file"] = json!(other.key_file("provost."));
    finds(&site, &[("error: dns: the DNS primary ", "BADSIG, the secret of the key provost. is another one there")]);
}

#[test]
fn lagging_authority_is_named_and_the_probe_removed() {
    if !bind::is_here("check_live::lagging_authority_is_named_and_the_probe_removed") {
        return;
    }
    let (bind, ca) = (primary("", POLICY), ca());
    let behind = BindConfig::new().secondary("example.com", &bind).start();
    let mut site = site(&bind, &ca);
    acme(&mut site)["dns"]["authorities"] = json!([bind.address.to_string(), behind.address.to_string()]);
    acme(&mut site)["dns"]["propagation_timeout_s"] = json!(1);
    let lagging = format!("are not everywhere: {} lacks 1 of 1 values, serial 1", behind.address);
    let ended = finds(&site, &[(&format!("error: dns: after 1 s the TXT records of {CHALLENGE}"), &lagging)]);
    assert!(ended.stdout.contains(&format!("\n{}: has the records\n", bind.address)), "{}", ended.stdout);
    assert_eq!(bind.txt(CHALLENGE), Vec::<String>::new());
}

#[test]
fn interrupted_live_check_removes_its_probe_record() {
    if !bind::is_here("check_live::interrupted_live_check_removes_its_probe_record") {
        return;
    }
    let (bind, ca) = (primary("", POLICY), ca());
    let behind = BindConfig::new().secondary("example.com", &bind).start();
    let mut site = site(&bind, &ca);
    acme(&mut site)["dns"]["authorities"] = json!([bind.address.to_string(), behind.address.to_string()]);
    site.write_config();
    for signal in ["INT", "TERM", "HUP"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_provost"));
        let mut child =
            command.args(["check", "--live"]).current_dir(site.path(".")).stdout(Stdio::piped()).spawn().unwrap();
        let lines = Lines::default();
        lines.follow(child.stdout.take().unwrap());
        let waits = format!("{}: lacks 1 of 1 values yet", behind.address);
        eventually("it to wait", || lines.all().contains(&waits).then_some(()));
        assert_eq!(bind.txt(CHALLENGE).len(), 1);
        tool::run(Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]));
        assert_eq!(eventually("it to end", || child.try_wait().unwrap()).code(), Some(1));
        eventually("all its output", || lines.is_complete().then_some(()));
        let error =
            format!("error: dns: stopped before the probe record of {CHALLENGE} had come and gone on every authority");
        assert!(lines.all().contains(&error), "{:?}", lines.all());
        assert_eq!(bind.txt(CHALLENGE), Vec::<String>::new(), "{signal}");
    }
}

#[test]
fn live_check_works_with_knot() {
    let test = "check_live::live_check_works_with_knot";
    if !knot::is_here(test) || !bind::is_here(test) {
        return;
    }
    let (bind, ca) = (primary("", POLICY), ca());
    let mut site = site(&bind, &ca);
    let acl = |name: &str| {
        format!(
            "acl:\n  - id: provost\n    key: provost.\n    action: update\n    update-type: [TXT]\n    update-owner: name\n    \
                 update-owner-match: equal\n    update-owner-name: [{name}.]\n\nzone:\n  - domain: example.com.\n    acl: [provost]\n"
        )
    };
    for (granted, expected) in [
        (CHALLENGE, &[][..]),
        (
            "elsewhere.example.com",
            &[("error: dns: ", "BADKEY, it has no key provost. with hmac-sha256, or (Knot) its acl")],
        ),
    ] {
        let knot = Knot::start("example.com", "provost", &acl(granted));
        let settings = knot.settings();
        let dns = &mut acme(&mut site)["dns"];
        dns["primary"] = json!(settings.primary);
        dns["authorities"] = json!(settings.authorities);
        dns["tsig_key_file"] = json!(settings.tsig_key_file);
        let ended = finds(&site, expected);
        assert_eq!(ended.stdout.contains(&format!("{}: has the records no more", knot.address)), granted == CHALLENGE);
        assert_eq!(bind::txt(knot.address, CHALLENGE), Vec::<String>::new());
    }
}

#[test]
fn every_address_of_every_name_server_is_queried() {
    let test = "check_live::every_address_of_every_name_server_is_queried";
    if !bind::is_here(test) || !namespace::is_inside(test, &["192.0.2.53"]) {
        return;
    }
    let records = format!("{RECORDS}\nns1 A 192.0.2.53\n@ NS ns2\nns2 A 127.0.0.1");
    let bind = BindConfig::new().key("provost.", "hmac-sha256").primary("example.com", &records, POLICY);
    let bind = bind.primary("com", "", "").also_at("192.0.2.53").start_at("127.0.0.1:53".parse().unwrap());
    let ca = ca();
    let mut site = site(&bind, &ca);
    namespace::resolve_through("127.0.0.1", &site.path("."));
    acme(&mut site)["dns"] = json!({ "primary": "ns1.example.com", "tsig_key_file": bind.key_file("provost.") });
    let ended = finds(&site, &[]);
    for server in
        ["ns1.example.com (127.0.0.1:53)", "ns1.example.com (192.0.2.53:53)", "ns2.example.com (127.0.0.1:53)"]
    {
        for line in [format!("{server}: has the records\n"), format!("{server}: has the records no more\n")] {
            assert_eq!(ended.stdout.matches(&line).count(), 1, "{line}{}", ended.stdout);
        }
    }
}

#[test]
fn live_check_without_acme_only_resolves_addresses() {
    let test = "check_live::live_check_without_acme_only_resolves_addresses";
    if !bind::is_here(test) || !namespace::is_inside(test, &[]) {
        return;
    }
    let bind = BindConfig::new().primary("example.com", RECORDS, "").start_at("127.0.0.1:53".parse().unwrap());
    let mut site = Site::with_ote();
    namespace::resolve_through("127.0.0.1", &site.path("."));
    let note = ("note: certificate: certificates do not come from ACME", "");
    let files = site.config["certificate"].clone();
    for certificate in [files, json!({ "local_ca": {} })] {
        site.config["certificate"] = certificate;
        finds(&site, &[note, ("*.phones.example.com: resolves to 192.0.2.10, 2001:db8::10", "")]);
    }
    drop(bind);
    finds(&site, &[note, ("error: dns: no resolver says which", "it refuses the connection")]);
}

#[test]
fn address_in_front_of_the_server_is_proven_by_its_certificate() {
    let test = "check_live::address_in_front_of_the_server_is_proven_by_its_certificate";
    if !bind::is_here(test) || !namespace::is_inside(test, &["192.0.2.10"]) {
        return;
    }
    let _bind =
        BindConfig::new().primary("example.com", "*.phones A 192.0.2.10", "").start_at("127.0.0.1:53".parse().unwrap());
    let mut site = Site::with_ote();
    namespace::resolve_through("127.0.0.1", &site.path("."));
    site.config["listen"] = json!(["127.0.0.1:443"]);
    let server = site.start();
    let unproven =
        "note: dns: *.phones.example.com leads phones to 192.0.2.10; whether that is this server was not proven";
    let command = "`openssl s_client -connect 192.0.2.10:443 -servername ote.phones.example.com`";
    finds(&site, &[(unproven, command)]);
    // A load balancer that passes TLS on.
    let here = server.address();
    let relay = Relay::start_at("192.0.2.10:443".parse().unwrap(), Udp::Closed, Tcp::Passed(vec![here]));
    let ended = finds(&site, &[("*.phones.example.com: resolves to 192.0.2.10", "")]);
    assert!(!ended.stdout.contains("leads phones"), "{}", ended.stdout);
    drop((relay, server));
    // This machine has the address, and provost listens on all of them.
    site.config["listen"] = json!(["0.0.0.0:443"]);
    let ended = finds(&site, &[("*.phones.example.com: resolves to 192.0.2.10", "")]);
    assert!(!ended.stdout.contains("leads phones"), "{}", ended.stdout);
    // It knows its public address, and another one is published.
    site.config["listen"] = json!(["198.51.100.7:443"]);
    let leads = "*.phones.example.com leads phones to 192.0.2.10, which is not an address of this server by \"listen\"";
    let change = "change the A record of *.phones.example.com to 198.51.100.7";
    finds(&site, &[(&format!("warning: dns: {leads}"), change)]);
}

#[test]
fn live_check_in_local_mode_queries_no_server() {
    let site = Site::with_ote();
    let folder = site.path("local");
    std::fs::create_dir_all(folder.join("constituencies/home")).unwrap();
    std::fs::write(folder.join("constituencies/home/constituency.json"), r#"{"client_auth": "none"}"#).unwrap();
    let ended = provost(&folder, &["check", "--live"]);
    let expected = "note: dns: local mode needs neither DNS nor a CA; --live checked nothing\n\
                    1 constituency can be served; 0 errors, 0 warnings\n";
    assert_eq!((ended.code, ended.stdout.as_str()), (0, expected));
}

#[test]
fn wildcard_above_the_domain_is_reported_with_its_remedy() {
    if !bind::is_here("check_live::wildcard_above_the_domain_is_reported_with_its_remedy") {
        return;
    }
    let ca = ca();
    let above = "* A 192.0.2.10\n* AAAA 2001:db8::10";
    let with = |records: &str| {
        BindConfig::new()
            .key("provost.", "hmac-sha256")
            .primary("example.com", records, POLICY)
            .primary("com", "", "")
            .start()
    };
    let bind = with(above);
    let warning = "warning: dns: only a wildcard record above phones.example.com leads phones here";
    let record = "; publish: *.phones.example.com. A 192.0.2.10 and *.phones.example.com. AAAA 2001:db8::10";
    let ended = finds(&site(&bind, &ca), &[(warning, record)]);
    assert!(!ended.stdout.contains("a probe record was added"), "it would hide the addresses:\n{}", ended.stdout);
    assert!(!bind.log().contains("adding an RR"), "{}", bind.log());
    // With the record, and even with the same addresses everywhere, nothing is hidden.
    let good = [
        format!("{above}\n*.phones A 192.0.2.10\n*.phones AAAA 2001:db8::10"),
        format!("{above}\n{RECORDS}\nphones A 192.0.2.10\nphones AAAA 2001:db8::10"),
        format!("{above}\n*.phones A 192.0.2.11"),
    ];
    for records in good {
        let bind = with(&records);
        let ended = finds(&site(&bind, &ca), &[]);
        assert!(ended.stdout.contains("the probe record was removed"), "{}", ended.stdout);
    }
}

#[test]
fn wildcard_cname_above_the_domain_is_reported() {
    if !bind::is_here("check_live::wildcard_cname_above_the_domain_is_reported") {
        return;
    }
    let ca = ca();
    let bind = BindConfig::new().key("provost.", "hmac-sha256");
    let bind = bind.primary("example.com", "host A 192.0.2.10\n* CNAME host", POLICY).primary("com", "", "").start();
    let warning = "warning: dns: only a wildcard record above phones.example.com leads phones here";
    let record = "; publish: *.phones.example.com. A 192.0.2.10";
    finds(&site(&bind, &ca), &[(warning, record)]);
}

#[test]
fn delegation_to_an_old_server_is_a_warning() {
    let test = "check_live::delegation_to_an_old_server_is_a_warning";
    let addresses = ["192.0.2.1", "192.0.2.2"];
    if !bind::is_here(test) || !unbound::is_here(test) || !namespace::is_inside(test, &addresses) {
        return;
    }
    let delegations = "example.com. NS ns1.example.com.\nexample.com. NS old.example.com.\n\
                       ns1.example.com. A 192.0.2.2\nold.example.com. A 203.0.113.53";
    let _root = root(&[("com", delegations)]);
    let zone = zone_file("example.com", "192.0.2.2", &format!("{RECORDS}\nold A 203.0.113.53"));
    let bind = BindConfig::new().key("provost.", "hmac-sha256").primary_from("example.com", &zone, POLICY);
    let bind = bind.start_at(at("192.0.2.2"));
    let resolver = internet::resolver(&[]);
    let ca = ca();
    let mut site = site(&bind, &ca);
    acme(&mut site)["dns"] = json!({
        "primary": "192.0.2.2", "tsig_key_file": bind.key_file("provost."), "resolvers": [resolver.address.ip().to_string()],
        "settle_s": 0,
    });
    finds(
        &site,
        &[
            (
                "warning: dns: old.example.com (203.0.113.53:53): passed over: there is no route to it from here (IPv4)",
                "",
            ),
            ("warning: dns: example.com: the parent zone delegates to old.example.com, which", "at the registrar"),
        ],
    );
}
