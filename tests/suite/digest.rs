//! Digest authentication of phones (RFC 7616), with headers built byte by byte.

use std::path::Path;

use md5::{Digest, Md5};
use serde_json::{Value, json};

use crate::harness::pki::SERVER_CA;
use crate::harness::site::{DOMAIN, Running, Site, holds};
use crate::harness::tls::{Client, Connection, Response};
use crate::harness::tool::{Ended, provost};
use crate::harness::{STRANGER, VVX500, VVX550, eventually, within_a_second};

/// A site with the constituency `pw`, which requires passwords and lists two phones, one of them with a password.
pub fn site() -> (Site, String) {
    let site = Site::with_ote();
    site.write_config();
    for name in ["pw", "other"] {
        site.constituency(name, &json!({ "client_auth": "digest", "phones": { VVX550: "no password" } }));
        site.file(&format!("{name}/site.cfg"), "<pw/>");
    }
    site.file(&format!("pw/{VVX500}-user.cfg"), "<mine/>");
    site.file(&format!("pw/{VVX550}-user.cfg"), "<theirs/>");
    let password = allow(&site.path(""), VVX500, "pw");
    (site, password)
}

/// Sets a password for a phone and returns it.
pub fn allow(folder: &Path, mac: &str, constituency: &str) -> String {
    let ended = provost(folder, &["allow", mac, "--constituency", constituency, "--digest"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended:?}");
    let (user, password) = (value(&ended.stdout, "device.prov.user="), value(&ended.stdout, "device.prov.password="));
    assert_eq!((user.as_str(), password.len()), (mac, 26), "{ended:?}");
    password
}

/// The quoted value of the parameter `name`.
fn value(text: &str, name: &str) -> String {
    let (_, rest) = text.split_once(&format!("{name}\"")).unwrap_or_else(|| panic!("{name} in {text}"));
    rest.split('"').next().unwrap().to_owned()
}

fn client(server: &Running, constituency: &str) -> Client {
    Client::new(server.address(), Some(&format!("{constituency}.{DOMAIN}")))
}

/// An Authorization header with chosen fields.
struct Answer<'a> {
    user: &'a str,
    password: &'a str,
    constituency: &'a str,
    nonce: &'a str,
    method: &'a str,
    uri: &'a str,
    count: u32,
}

impl Answer<'_> {
    fn header(&self) -> String {
        let Self { user, password, nonce, uri, method, count, .. } = self;
        let realm = format!("{}.{DOMAIN}", self.constituency);
        let hash =
            |text: String| Md5::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let (own, request) = (hash(format!("{user}:{realm}:{password}")), hash(format!("{method}:{uri}")));
        let response = hash(format!("{own}:{nonce}:{count:08x}:cnonce:auth:{request}"));
        format!(
            "Authorization: Digest username=\"{user}\", realm=\"{realm}\", nonce=\"{nonce}\", uri=\"{uri}\", \
             response=\"{response}\", algorithm=MD5, cnonce=\"cnonce\", nc={count:08x}, qop=auth\r\n"
        )
    }
}

/// A phone on one connection that answers challenges.
struct Phone<'a> {
    connection: Connection,
    constituency: &'a str,
    password: &'a str,
    nonce: String,
    count: u32,
}

impl<'a> Phone<'a> {
    fn new(server: &Running, constituency: &'a str, password: &'a str) -> Self {
        let mut connection = client(server, constituency).connect().unwrap();
        let nonce = nonce(&connection.get("/site.cfg").unwrap());
        Self { connection, constituency, password, nonce, count: 0 }
    }

    fn answer<'b>(&'b mut self, method: &'b str, uri: &'b str) -> Answer<'b> {
        self.count += 1;
        let Self { constituency, password, nonce, count, .. } = self;
        Answer { user: VVX500, password, constituency, nonce, method, uri, count: *count }
    }

    fn get(&mut self, path: &str) -> Response {
        let header = self.answer("GET", path).header();
        self.connection.request("GET", path, &header, b"").unwrap()
    }

    fn put(&mut self, path: &str, headers: &str, body: &[u8]) -> Response {
        let header = self.answer("PUT", path).header() + headers;
        self.connection.request("PUT", path, &header, body).unwrap()
    }
}

/// The nonce of a challenge.
fn nonce(response: &Response) -> String {
    assert_eq!(response.status, 401);
    value(response.header("www-authenticate").unwrap(), "nonce=")
}

fn is_stale(response: &Response) -> bool {
    nonce(response);
    response.header("www-authenticate").unwrap().contains(", stale=true")
}

/// The refusal without its nonce.
fn without_nonce(response: &Response) -> Response {
    let mut alike = response.clone().without_date();
    let challenge = alike.headers.get_mut("www-authenticate").unwrap();
    *challenge = challenge.replace(&nonce(response), "");
    alike
}

/// Sends wrong passwords on one connection until the server ends it.
pub fn guess_until_refused(server: &Running) {
    let mut phone = Phone::new(server, "pw", "guess");
    while phone.get("/site.cfg").status != 429 {}
}

#[test]
fn virtual_phone_boots_with_a_password_and_reports_a_wrong_one() {
    let (site, password) = site();
    site.file("pw/000000000000.cfg", "<APPLICATION CONFIG_FILES=\"site.cfg\"/>");
    std::fs::write(site.path("ca.pem"), SERVER_CA.pem()).unwrap();
    std::fs::write(site.path("right"), format!("{password}\n")).unwrap();
    std::fs::write(site.path("wrong"), "another\n").unwrap();
    std::fs::write(site.path("none"), "\n").unwrap();
    let server = site.start();
    let boot = |file: &str| {
        let (url, resolve) = (format!("https://pw.{DOMAIN}/"), server.address().to_string());
        let args = ["phone", "--url", &url, "--mac", VVX500, "--ca", "ca.pem", "--resolve", &resolve];
        provost(&site.path(""), &[&args[..], &["--password-file", file]].concat())
    };
    let good = boot("right");
    assert_eq!(good.code, 0, "{good:?}");
    assert!(site.uploads("pw", VVX500).join(format!("{VVX500}-boot.log")).exists(), "its uploads arrive too");
    // It is challenged once and authenticates at once from then on.
    let statuses = |status: u64| server.access_lines().iter().filter(|line| line["status"] == status).count();
    eventually("the boot's lines", || (statuses(200) >= 2 && statuses(201) == 2).then_some(()));
    assert_eq!(statuses(401), 1);
    let bad = boot("wrong");
    assert_eq!(bad.code, 1, "{bad:?}");
    assert!(bad.stdout.contains("the password is wrong; the server's log says why"), "{bad:?}");
    let usage = boot("none");
    assert!(usage.code == 2 && usage.stderr.contains("no password in none"), "{usage:?}");
}

#[test]
fn wrong_password_is_recorded_as_an_unproven_refusal() {
    let (site, password) = site();
    let server = site.start();
    Phone::new(&server, "pw", &password).get("/site.cfg");
    Phone::new(&server, "pw", "another").get("/site.cfg");
    let mut unlisted = Phone::new(&server, "pw", "another");
    let header = Answer { user: STRANGER, ..unlisted.answer("GET", "/site.cfg") }.header();
    unlisted.connection.request("GET", "/site.cfg", &header, b"").unwrap();
    let refused = eventually("both to be written", || {
        let ended = provost(&site.path(""), &["phones", "--refused", "--json"]);
        let lines: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (lines.len() == 2).then_some(lines)
    });
    for (line, mac, reason) in [
        (&refused[0], VVX500, format!("wrong password for {VVX500}")),
        (&refused[1], STRANGER, format!("{STRANGER} has no password in ")),
    ] {
        assert_eq!(
            (&line["mac"], &line["proven"], &line["refusals"]),
            (&json!(mac), &json!(false), &json!(1)),
            "{line}"
        );
        assert_eq!(line["certificate_sha256"], Value::Null);
        assert!(line["last_refusal"]["reason"].as_str().unwrap().starts_with(&reason), "{line}");
    }
    let table = provost(&site.path(""), &["phone-log", VVX500]).stdout;
    assert!(table.contains("\n    wrong password") && table.contains("wrong password for"), "{table}");
    // A wrong password changes nothing in the phone's history.
    let known = provost(&site.path(""), &["phones", "--constituency", "pw", "--json"]).stdout;
    let known = known.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let known = known.into_iter().find(|line| line["mac"] == VVX500 && line["proven"] != json!(false)).unwrap();
    assert_eq!((&known["refused"], &known["refusals"]), (&json!(false), &json!(0)), "{known}");
}

#[test]
fn phone_with_password_reads_its_files_and_uploads() {
    let (site, password) = site();
    let server = site.start();
    let mut phone = Phone::new(&server, "pw", &password);
    assert_eq!(phone.get("/site.cfg").text(), "<pw/>");
    assert_eq!(phone.get(&format!("/{VVX500}-user.cfg")).text(), "<mine/>");
    assert_eq!(phone.get("/absent.cfg").status, 404);
    let log = format!("/{VVX500}-app.log");
    assert_eq!(phone.put(&log, "", b"one").status, 201);
    assert_eq!(phone.put(&log, "Content-Range: bytes 3-5/6\r\n", b"two").status, 204);
    assert!(holds(&site.uploads("pw", VVX500).join(format!("{VVX500}-app.log")), "onetwo"));
    assert_eq!(phone.get(&log).text(), "onetwo");
    let line = server.access("the upload", |line| line["method"] == "PUT" && line["status"] == 201);
    assert_eq!((&line["mac"], &line["reason"]), (&json!(VVX500), &Value::Null));
    let first = server.reason("no Authorization header");
    assert_eq!((&first["mac"], &first["status"]), (&Value::Null, &json!(401)));
    // Another phone's file, and another phone's upload.
    assert_eq!(phone.put(&format!("/{VVX550}-app.log"), "", b"x").status, 403);
    let mut phone = Phone::new(&server, "pw", &password);
    assert_eq!(phone.get(&format!("/{VVX550}-user.cfg")).status, 403);
    let known = || {
        let listed = provost(&site.path(""), &["phones", "--json"]).stdout;
        let phones: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        phones.into_iter().find(|phone| phone["mac"] == VVX500 && phone["uploads"] == 2)
    };
    let seen = crate::harness::eventually("the phone in the history", known);
    assert_eq!((&seen["constituency"], &seen["certificate_not_after"]), (&json!("pw"), &Value::Null));
}

#[test]
fn every_digest_failure_gets_the_same_challenge() {
    let (site, password) = site();
    let server = site.start();
    let get = |path: &str, headers: &str| client(&server, "pw").request("GET", path, headers, b"").unwrap();
    let first = get("/site.cfg", "");
    assert_eq!((first.status, first.text().as_str()), (401, "Unauthorized\n"));
    assert!(!is_stale(&first) && first.header("connection").is_none());
    let wrong = |user: &str, password: &str| {
        let nonce = nonce(&get("/site.cfg", ""));
        let answer =
            Answer { user, password, constituency: "pw", nonce: &nonce, method: "GET", uri: "/site.cfg", count: 1 };
        get("/site.cfg", &answer.header())
    };
    // A phone with a wrong password, without one, that is not listed, and a name that is no MAC.
    let refusals = [
        get("/absent.cfg", ""),
        get(&format!("/{VVX500}-user.cfg"), ""),
        get("/.hidden", ""),
        wrong(VVX500, "guess"),
        wrong(VVX550, "guess"),
        wrong(STRANGER, ""),
        wrong("admin", &password),
        wrong(&password, VVX500),
        wrong(&VVX500.to_uppercase(), &password),
        get("/site.cfg", "Authorization: Basic MDAwMDVlMDA1MzBjOng=\r\n"),
        get("/site.cfg", "Authorization: Bearer x\r\n"),
    ];
    assert_eq!(refusals.len(), 11);
    for refusal in &refusals {
        assert_eq!(without_nonce(refusal), without_nonce(&first));
    }
    server.reason("wrong password for 00005e00530c");
    server.reason(
        "00005e0053aa has no password in pw; create one with provost allow 00005e0053aa --constituency pw --digest",
    );
    server.reason("Basic would reveal the password");
    // A password typed into the user field is not logged.
    server.reason("the user name is not a MAC address of 12 lower-case hex digits");
    server.reason("the user name must be written as 00005e00530c");
    assert!(![server.stdout(), server.stderr()].concat().iter().any(|line| line.contains(&password)));
    // The checks before authentication come first.
    assert_eq!(get("/%2e%2e/x", "").status, 400);
    assert_eq!(client(&server, "pw").request("DELETE", "/site.cfg", "", b"").unwrap().status, 405);
    assert_eq!(
        client(&server, "pw").host("ote.phones.example.com").request("GET", "/site.cfg", "", b"").unwrap().status,
        421
    );
}

#[test]
fn digest_response_is_valid_for_its_own_request_only() {
    let (site, password) = site();
    let elsewhere = allow(&site.path(""), VVX500, "other");
    let server = site.start();
    let mut phone = Phone::new(&server, "pw", &password);
    let header = phone.answer("GET", "/site.cfg").header();
    let replay = |constituency: &str, method: &str, path: &str, header: &str| {
        client(&server, constituency).request(method, path, header, b"").unwrap()
    };
    // Nonces are stateless: the same request may come again, on any connection.
    for _ in 0..2 {
        assert_eq!(replay("pw", "GET", "/site.cfg", &header).status, 200);
    }
    // The header is not valid for another target, method or constituency.
    for (constituency, method, path) in [
        ("pw", "GET", "/site.cfg?x"),
        ("pw", "GET", "/absent.cfg"),
        ("pw", "HEAD", "/site.cfg"),
        ("other", "GET", "/site.cfg"),
    ] {
        let header = phone.answer("GET", "/site.cfg").header();
        let refused = replay(constituency, method, path, &header);
        assert!(!is_stale(&refused), "{constituency} {method} {path}");
    }
    server.reason("uri \"/site.cfg\" is not the request's target");
    server.reason("the password is for the realm \"pw.phones.example.com\"");
    // The password of the other constituency with a nonce of this one.
    let nonce = phone.nonce.clone();
    let crossed = Answer {
        user: VVX500,
        password: &elsewhere,
        constituency: "other",
        nonce: &nonce,
        method: "GET",
        uri: "/site.cfg",
        count: 99,
    };
    assert!(is_stale(&replay("other", "GET", "/site.cfg", &crossed.header())));
    server.reason("is from another constituency, or from before provost was started");
    // A nonce that the server did not issue.
    let made_up = Answer {
        nonce: "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        constituency: "pw",
        password: &password,
        ..crossed
    };
    assert!(is_stale(&replay("pw", "GET", "/site.cfg", &made_up.header())));
}

#[test]
fn nonce_from_before_a_restart_is_stale() {
    let (site, password) = site();
    let server = site.start();
    let mut phone = Phone::new(&server, "pw", &password);
    assert_eq!(phone.get("/site.cfg").status, 200);
    let nonce = phone.nonce.clone();
    server.kill();
    let server = site.start();
    let mut phone = Phone::new(&server, "pw", &password);
    let fresh = std::mem::replace(&mut phone.nonce, nonce);
    assert!(is_stale(&phone.get("/site.cfg")));
    phone.nonce = fresh;
    assert_eq!(phone.get("/site.cfg").status, 200);
}

#[test]
fn ambiguous_authorization_header_is_refused() {
    let (site, password) = site();
    let server = site.start();
    let mut phone = Phone::new(&server, "pw", &password);
    let good = phone.answer("GET", "/site.cfg").header();
    let user = format!("username=\"{VVX500}\"");
    let with = |new: &str| {
        assert!(good.contains(&user));
        good.replace(&user, new)
    };
    let cases = [
        with(&format!("{user}, username=\"{VVX550}\"")),
        with(&format!("username=\"{VVX550}\", {user}")),
        with(&format!("username=\"{VVX550}\\\", {user}")),
        with(&format!("username=\"{VVX500}\\\"")),
        with(&format!("username={VVX500} x")),
        with(&format!("username*=UTF-8''{VVX500}")),
        with(&format!("{user}, userhash=true")),
        with(&format!("{user}; x=y")),
        with(&format!("\u{e4}, {user}")),
        format!("{good}{good}"),
        format!("{good}Authorization: Basic eDp5\r\n"),
        good.replace("qop=auth", "qop=auth-int"),
        good.replace(", qop=auth", ""),
        good.replace("algorithm=MD5", "algorithm=MD5-sess"),
        good.replace("algorithm=MD5", "algorithm=SHA-512-256"),
        good.replace("Digest ", "Digest\t"),
        format!("{}{}\"\r\n", good.trim_end(), format_args!(", pad=\"{}", "x".repeat(5000))),
    ];
    assert_eq!(cases.len(), 17);
    for case in &cases {
        let refused = client(&server, "pw").request("GET", "/site.cfg", case, b"").unwrap();
        assert!(!is_stale(&refused), "{case}");
    }
    let huge = format!("{}, pad=\"{}\"\r\n", good.trim_end(), "x".repeat(20_000));
    assert_eq!(client(&server, "pw").request("GET", "/site.cfg", &huge, b"").unwrap().status, 431);
    // Order and case of the parameters do not matter.
    let shuffled = good.replace(&format!("{user}, "), "").replace("qop=auth", &format!("QOP=\"auth\" ,{user},,"));
    assert_eq!(client(&server, "pw").request("GET", "/site.cfg", &shuffled, b"").unwrap().status, 200);
}

#[test]
fn password_guessing_gets_429_and_the_phone_stays_served() {
    let (site, password) = site();
    let server = site.start();
    let mut phone = Phone::new(&server, "pw", &password);
    let guess_until_limit = |user: &str| {
        let mut connection = client(&server, "pw").connect().unwrap();
        let first = connection.get("/site.cfg").unwrap();
        let mut challenges = vec![nonce(&first)];
        loop {
            let answer = Answer {
                user,
                password: "guess",
                constituency: "pw",
                nonce: challenges.last().unwrap(),
                method: "GET",
                uri: "/site.cfg",
                count: 1,
            };
            let response = connection.request("GET", "/site.cfg", &answer.header(), b"").unwrap();
            if response.status == 429 {
                return (challenges.len() - 1, response.without_date(), connection.is_closed());
            }
            assert_eq!(without_nonce(&response), without_nonce(&first));
            challenges.push(nonce(&response));
        }
    };
    let (known, unknown) = (guess_until_limit(VVX500), guess_until_limit(STRANGER));
    assert_eq!(known, unknown);
    let (failures, response, is_closed) = known;
    assert_eq!((failures, is_closed), (10, true));
    assert_eq!((response.header("retry-after"), response.header("www-authenticate")), (Some("60"), None));
    server.reason("wrong password for 00005e00530c; too many failed logins on this connection");
    assert_eq!(phone.get("/site.cfg").status, 200);
    assert_eq!(Phone::new(&server, "pw", &password).get("/site.cfg").status, 200);
}

#[test]
fn routine_challenges_do_not_count_as_failed_logins() {
    let (site, password) = site();
    let server = site.start();
    let mut phone = Phone::new(&server, "pw", &password);
    for _ in 0..20 {
        assert_eq!(phone.connection.get("/site.cfg").unwrap().status, 401);
    }
    let nonce = std::mem::replace(&mut phone.nonce, "stale".to_owned());
    for _ in 0..20 {
        assert!(is_stale(&phone.get("/site.cfg")));
    }
    phone.nonce = nonce;
    assert_eq!(phone.get("/site.cfg").status, 200);
}

#[test]
fn password_changes_apply_within_a_second() {
    let (site, old) = site();
    let server = site.start();
    let mut phone = Phone::new(&server, "pw", &old);
    assert_eq!(phone.get("/site.cfg").status, 200);
    let new = allow(&site.path(""), VVX500, "pw");
    within_a_second("the new password", || (phone.get("/site.cfg").status == 401).then_some(()));
    let mut phone = Phone::new(&server, "pw", &new);
    assert_eq!(phone.get("/site.cfg").status, 200);
    let denied = provost(&site.path(""), &["deny", VVX500, "--constituency", "pw"]);
    assert!(
        denied
            .stdout
            .contains("removed the password of 00005e00530c for pw\n00005e00530c is denied in pw within a second\n"),
        "{denied:?}"
    );
    // Refused by the password or by the list, depending on which is read first.
    let is_out = || matches!(Phone::new(&server, "pw", &new).get("/site.cfg").status, 401 | 403);
    within_a_second("the denial", || is_out().then_some(()));
    assert!(!std::fs::read_to_string(site.path("state/digest/pw.json")).unwrap().contains(VVX500));
    // A password alone is not enough: the phone must be listed.
    let again = allow(&site.path(""), VVX500, "pw");
    let mut phone = within_a_second("the password", || {
        let mut phone = Phone::new(&server, "pw", &again);
        (phone.get("/site.cfg").status == 200).then_some(phone)
    })
    .0;
    site.constituency("pw", &json!({ "client_auth": "digest", "denied": [VVX500] }));
    within_a_second("the policy", || (phone.get("/site.cfg").status == 403).then_some(()));
    server.reason("00005e00530c is denied by pw");
}

#[test]
fn changed_domain_does_not_overwrite_stored_passwords() {
    let (mut site, password) = site();
    let files = ["state/digest/pw.json", "constituencies/pw/constituency.json"].map(|file| site.path(file));
    let read = || files.each_ref().map(|file| std::fs::read_to_string(file).unwrap());
    let before = read();
    site.config["domain"] = "other.example.com".into();
    site.write_config();
    let give = ["allow", STRANGER, "--constituency", "pw", "--digest"];
    let refused = provost(&site.path(""), &give);
    assert_eq!((refused.code, refused.stdout.as_str()), (1, ""), "{refused:?}");
    let checked = provost(&site.path(""), &["check"]).stdout;
    for said in [
        "state/digest/pw.json: holds the passwords of 1 phone for pw.phones.example.com",
        "invalid for pw.other.example.com. If the old name is right",
        "\"domain\" back",
        "remove this file and give each phone a new password (provost allow MAC --digest)",
    ] {
        assert!(refused.stderr.contains(said) && checked.contains(said), "{said}: {refused:?} {checked}");
    }
    assert!(refused.stderr.starts_with("error: nothing was changed: ") && !checked.contains("nothing was changed"));
    assert_eq!(read(), before);

    site.config["domain"] = DOMAIN.into();
    let server = site.start();
    assert_eq!(Phone::new(&server, "pw", &password).get("/site.cfg").status, 200);
    drop(server);
    site.config["domain"] = "other.example.com".into();
    site.write_config();
    std::fs::remove_file(&files[0]).unwrap();
    allow(&site.path(""), STRANGER, "pw");
    assert!(read()[0].contains("\"realm\": \"pw.other.example.com\""));
}

#[test]
fn damaged_password_file_is_reported_and_refuses_after_restart() {
    let (site, password) = site();
    let server = site.start();
    let mut phone = Phone::new(&server, "pw", &password);
    let file = site.path("state/digest/pw.json");
    std::fs::write(&file, "{").unwrap();
    let reported = server.says("state/digest/pw.json: ");
    assert!(reported.contains("the last valid ones stay in force, if there were any"), "{reported}");
    assert_eq!(phone.get("/site.cfg").status, 200, "the last good ones are used");

    let checked = provost(&site.path(""), &["check"]);
    let line = checked.stdout.lines().find(|line| line.contains("digest/pw.json")).unwrap_or_default();
    assert!(line.starts_with("error: pw: ") && line.contains("after a restart all phones are refused"), "{checked:?}");
    assert_eq!(checked.code, 1);

    drop(server);
    let server = site.start();
    let reported = server.says("state/digest/pw.json: ");
    assert!(reported.contains("phones that need them are refused until then"), "{reported}");
    assert!(!reported.contains("last good"), "{reported}");
    assert_eq!(Phone::new(&server, "pw", &password).get("/site.cfg").status, 401);
}

#[test]
fn unstorable_password_is_not_printed() {
    let (site, _) = site();
    std::fs::remove_dir_all(site.path("state/digest")).unwrap();
    std::os::unix::fs::symlink("/proc/provost", site.path("state/digest")).unwrap();
    let ended = provost(&site.path(""), &["allow", STRANGER, "--constituency", "pw", "--digest"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{ended:?}");
    let said =
        format!("error: {STRANGER} is on the list of pw within a second, but its new password cannot be stored: ");
    assert!(ended.stderr.starts_with(&said) && ended.stderr.contains("state/digest"), "{ended:?}");
}

#[test]
fn allow_without_a_password_reports_the_missing_password() {
    let (site, _) = site();
    let put = |mac: &str| {
        let ended = provost(&site.path(""), &["allow", mac, "--constituency", "pw"]);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended:?}");
        ended.stdout
    };
    let lacks = |when: &str| {
        format!(
            "{STRANGER} is on the list of pw {when}, but is refused until it has a password; make one with \
             provost allow {STRANGER} --constituency pw --digest\n"
        )
    };
    assert_eq!([put(STRANGER), put(STRANGER)], [lacks("within a second"), lacks("already")]);
    allow(&site.path(""), STRANGER, "pw");
    assert_eq!(put(STRANGER), format!("{STRANGER} is allowed in pw already\n"));
    assert_eq!(put(VVX500), format!("{VVX500} is allowed in pw already\n"));
    assert_eq!(provost(&site.path(""), &["deny", STRANGER, "--constituency", "pw"]).code, 0);
    assert_eq!(put(STRANGER), lacks("within a second"), "deny removed the password");
    std::fs::write(site.path("state/digest/pw.json"), "{").unwrap();
    let unknown = provost(&site.path(""), &["allow", STRANGER, "--constituency", "pw"]);
    assert_eq!((unknown.code, unknown.stdout), (0, format!("{STRANGER} is on the list of pw already\n")));
    assert!(unknown.stderr.contains("cannot read its password, and without one it is refused: "));
}

#[test]
fn digest_policy_rejects_certificate_keys() {
    let (site, _) = site();
    let refused = |policy: Value| {
        site.constituency("bad", &policy);
        provost(&site.path(""), &["check"]).stdout
    };
    for (policy, said) in [
        (
            json!({ "client_auth": "digest", "trust": ["factory"] }),
            "\"trust\": has no effect with \"client_auth\": \"digest\"",
        ),
        (
            json!({ "client_auth": "digest", "expired_device_certificates": "accept" }),
            "\"expired_device_certificates\": has no effect with \"client_auth\": \"digest\"",
        ),
        (
            json!({ "client_auth": "digest", "phones": "any" }),
            "\"phones\": cannot be \"any\" with \"client_auth\": \"digest\"",
        ),
        (
            json!({ "client_auth": "digest", "phones": { VVX500: { "certificate_sha256": "ab".repeat(32) } } }),
            "certificate_sha256 of 00005e00530c has no effect",
        ),
        (json!({ "client_auth": "basic" }), "must be one of \"required\", \"digest\", \"none\", not \"basic\""),
    ] {
        let checked = refused(policy);
        assert!(checked.contains(said), "{said}: {checked}");
    }
    let checked = refused(json!({ "client_auth": "digest" }));
    assert!(
        checked.contains(
            "warning: pw: 00005e0053c7 has no password; make one with provost allow 00005e0053c7 --constituency pw --digest"
        ),
        "{checked}"
    );
    let allow = |arguments: &[&str]| -> Ended {
        provost(&site.path(""), &[&["allow", VVX500, "--digest"], arguments].concat())
    };
    let wrong = allow(&["--constituency", "ote"]);
    assert_eq!((wrong.code, wrong.stdout.as_str()), (1, ""));
    assert!(wrong.stderr.contains("ote does not use passwords"), "{}", wrong.stderr);
    assert!(allow(&["--constituency", "nobody"]).stderr.contains("constituency nobody not found"));
}

#[test]
fn certificate_and_password_do_not_replace_each_other() {
    let (site, password) = site();
    let server = site.start();
    let identity = crate::harness::pki::FACTORY.device(VVX500);
    assert_eq!(server.client("pw", &identity).get("/site.cfg").unwrap().status, 401);
    let answer = Answer {
        user: VVX500,
        password: &password,
        constituency: "ote",
        nonce: "x",
        method: "GET",
        uri: "/site.cfg",
        count: 1,
    };
    let error = client(&server, "ote").request("GET", "/site.cfg", &answer.header(), b"");
    assert!(error.is_err(), "{error:?}");
    assert_eq!(server.client("ote", &identity).request("GET", "/site.cfg", &answer.header(), b"").unwrap().status, 200);
}

#[test]
fn authenticated_phone_frees_its_anonymous_connection_slot() {
    let (mut site, password) = site();
    site.config["limits"]["anonymous_connections"] = json!(2);
    let server = site.start();
    let mut phones: Vec<Phone<'_>> = Vec::new();
    for _ in 0..5 {
        let mut phone = Phone::new(&server, "pw", &password);
        assert_eq!(phone.get("/site.cfg").status, 200);
        phones.push(phone);
    }
    let mut strangers: Vec<Connection> = Vec::new();
    for _ in 0..5 {
        // Each one after the second waits until another is idle.
        strangers.push(crate::harness::eventually("a free slot", || {
            let mut connection = client(&server, "pw").connect().ok()?;
            (connection.get("/site.cfg").ok()?.status == 401).then_some(connection)
        }));
    }
    server.reason("evicted while it was idle between requests: all 2 permits for anonymous connections are in use");
    assert!(phones.iter_mut().all(|phone| phone.get("/site.cfg").status == 200));
}

#[test]
fn connections_per_phone_applies_after_digest_authentication() {
    let (mut site, password) = site();
    site.config["limits"]["connections_per_phone"] = json!(2);
    let server = site.start();
    let mut phones: Vec<Phone<'_>> = (0..3).map(|_| Phone::new(&server, "pw", &password)).collect();
    let statuses: Vec<u16> = phones.iter_mut().map(|phone| phone.get("/site.cfg").status).collect();
    assert_eq!(statuses, [200, 200, 503]);
    assert!(phones[2].connection.is_closed());
    server.reason("00005e00530c already has 2 connections (limits.connections_per_phone)");
    phones.truncate(1);
    crate::harness::eventually("a free slot", || {
        (Phone::new(&server, "pw", &password).get("/site.cfg").status == 200).then_some(())
    });
}

#[test]
fn upload_without_credentials_is_refused_before_its_body() {
    let (site, password) = site();
    let server = site.start();
    let log = format!("/{VVX500}-app.log");
    let mut connection = client(&server, "pw").connect().unwrap();
    connection.send_head("PUT", &log, "Content-Length: 1000000\r\nExpect: 100-continue\r\n").unwrap();
    let (status, headers) = connection.head().unwrap();
    assert_eq!((status, headers["connection"].as_str()), (401, "close"), "no 100 Continue before it");
    let small = client(&server, "pw").put(&log, "", b"log").unwrap();
    assert_eq!(small.status, 401);
    assert!(!site.uploads("pw", VVX500).exists());
    let mut phone = Phone::new(&server, "pw", &password);
    assert_eq!(phone.put(&log, "Expect: 100-continue\r\n", b"log").status, 201);
}
