//! Named operators: their commands, tokens, sessions and rights.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::operators::{Answer, Operators};
use crate::harness::pki::FACTORY;
use crate::harness::site::{Running, Site};
use crate::harness::socket::Socket;
use crate::harness::tool::{Ended, provost, run};
use crate::harness::{STRANGER, VVX500, VVX550, eventually, not_run, within_a_second};

const TOKEN: &str = "a-token-for-tests-0123456789";

/// A site with an operators' listener and no token.
fn site() -> Site {
    let mut site = Site::with_ote();
    site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    site.write_config();
    site
}

/// The same with [`TOKEN`] in `token_file`.
fn site_with_token_file() -> Site {
    let mut site = site();
    fs::write(site.path("token"), TOKEN).unwrap();
    fs::set_permissions(site.path("token"), PermissionsExt::from_mode(0o600)).unwrap();
    site.config["status"]["token_file"] = "token".into();
    site.write_config();
    site
}

fn operator(site: &Site, args: &[&str]) -> Ended {
    provost(&site.path("."), &[&["operator"], args].concat())
}

#[track_caller]
fn good(site: &Site, args: &[&str]) -> String {
    let ended = operator(site, args);
    assert_eq!(ended.code, 0, "{args:?}: {ended:?}");
    ended.stdout
}

/// The token that `operator add` or `operator rotate` prints.
#[track_caller]
fn token(site: &Site, args: &[&str]) -> String {
    good(site, args).lines().last().unwrap().to_owned()
}

/// Waits until a request with `client`'s token gets `status`.
#[track_caller]
fn gives_within_a_second(client: &Operators, status: u16) {
    within_a_second(&format!("{status}"), || (client.get("/api/phones").status == status).then_some(()));
}

/// Signs in with `token`; the same client with the cookie in place of a token.
#[track_caller]
fn sign_in(client: &Operators, token: &str) -> Operators {
    let answer = client.without_token().with(&["--data", &format!("token={token}")]).get("/sign-in");
    assert_eq!(answer.status, 303, "{answer:?}");
    with_cookie(client, cookie_of(&answer))
}

fn cookie_of(answer: &Answer) -> &str {
    answer.headers["set-cookie"].split(';').next().unwrap()
}

fn with_cookie(client: &Operators, cookie: &str) -> Operators {
    client.without_token().with(&["-H", &format!("Cookie: {cookie}"), "-H", &format!("Origin: {}", client.base)])
}

fn wanted() -> Value {
    json!({ "mac": STRANGER, "constituency": "ote", "note": "a note" })
}

/// Sends a request and returns the status, without waiting for the end of the body: some never end.
fn status(client: &Operators, token: Option<&str>, method: &str, path: &str, body: (&str, &str)) -> u16 {
    let mut stream = Socket::connect(client.base.strip_prefix("http://").unwrap().parse().unwrap()).unwrap();
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let (kind, body) = body;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{authorization}\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.split(' ').nth(1).unwrap_or_else(|| panic!("{method} {path}: {line:?}")).parse().unwrap()
}

#[test]
fn first_operator_closes_the_page_and_changes_in_its_name() {
    let site = site();
    let server = site.start();
    let local = Operators::of(&server);
    assert_eq!(local.get("/api/phones").status, 200, "without an operator, this machine reads");
    let added = operator(&site, &["add", "anna"]);
    assert_eq!(added.code, 0, "{added:?}");
    assert!(added.stdout.starts_with("anna is an operator within a second\n"), "{added:?}");
    assert!(added.stderr.contains("from now on every request needs a token"), "{added:?}");
    gives_within_a_second(&local, 401);
    server.says("operator anna was added");
    for path in ["/", "/metrics", "/events", "/api/overview", "/phones/ote/00005e00530c", "/nothing"] {
        assert_eq!(local.get(path).status, 401, "{path}");
    }
    assert_eq!((local.get("/healthz").status, local.get("/readyz").body.as_str()), (200, ""));
    assert!(local.get("/").body.contains("provost operator add"), "the sign-in page names the command");

    let token = added.stdout.lines().last().unwrap().to_owned();
    assert!(token.len() >= 26 && token.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{token}");
    let anna = local.with_token(&token);
    assert_eq!(anna.get("/api/phones").status, 200);
    assert_eq!(anna.post("/api/allow", &wanted()).json(), json!({ "changed": true }));
    assert_eq!(anna.post("/api/deny", &json!({ "mac": VVX500, "note": "lost" })).status, 200);
    let denied: Value = serde_json::from_slice(&fs::read(site.path("state/denied.json")).unwrap()).unwrap();
    assert_eq!(denied[VVX500]["by"], "anna, through the API");
    assert!(sign_in(&local, &token).get("/").body.contains("anna"), "the page shows who is signed in");

    let file = site.path("state/operators.json");
    let stored = fs::read_to_string(&file).unwrap();
    assert!(stored.contains("\"anna\"") && !stored.contains(&token), "{stored}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // A restart keeps the operators.
    server.kill();
    let server = site.start();
    let local = Operators::of(&server);
    assert_eq!((local.get("/").status, local.with_token(&token).get("/").status), (401, 200));
}

#[test]
fn removed_operator_loses_token_session_and_event_stream() {
    let site = site();
    let (anna, berta) = (token(&site, &["add", "anna"]), token(&site, &["add", "berta"]));
    let server = site.start();
    let local = Operators::of(&server);
    let [anna, berta] = [anna, berta].map(|token| (local.with_token(&token), sign_in(&local, &token)));
    for client in [&anna.0, &anna.1, &berta.0, &berta.1] {
        assert_eq!(client.get("/api/phones").status, 200);
    }
    let mut stream = anna.1.with(&["--no-buffer"]).curl("/events").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(stream.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "the stream ended early");
    }
    assert_eq!(good(&site, &["remove", "anna"]), "anna is no longer an operator within a second; 1 operator left\n");
    gives_within_a_second(&anna.0, 401);
    assert_eq!(anna.1.get("/").status, 401);
    assert_eq!(anna.1.with(&["--data", "mac=00005e0053aa&constituency=ote"]).get("/allow").status, 401);
    lines.read_to_string(&mut line).unwrap();
    // 28 is a timeout.
    assert_eq!(stream.wait().unwrap().code(), Some(0), "the event stream goes on");
    for client in [&berta.0, &berta.1] {
        assert_eq!(client.get("/api/phones").status, 200);
    }
    // Of the same name, with another token.
    let again = token(&site, &["add", "anna"]);
    gives_within_a_second(&local.with_token(&again), 200);
    assert_eq!((anna.0.get("/").status, anna.1.get("/").status), (401, 401));

    let rotated = good(&site, &["rotate", "berta"]);
    assert!(rotated.contains("the old one and its sessions are no longer valid"), "{rotated}");
    gives_within_a_second(&local.with_token(rotated.lines().last().unwrap()), 200);
    assert_eq!((berta.0.get("/").status, berta.1.get("/").status), (401, 401));
    server.says("operator berta has a new token");
    assert_eq!(operator(&site, &["remove", "carla"]).code, 1);
    assert_eq!(operator(&site, &["rotate", "carla"]).code, 1);
    assert_eq!(operator(&site, &["add", "berta"]).code, 1);
    good(&site, &["remove", "berta"]);
    let last = operator(&site, &["remove", "anna"]);
    assert!(last.stderr.contains("every program on this machine reads everything"), "{last:?}");
    gives_within_a_second(&local, 200);
}

#[test]
fn request_of_an_operator_removed_meanwhile_changes_nothing() {
    let site = site_with_token_file();
    let anna = token(&site, &["add", "anna"]);
    let server = site.start();
    let local = Operators::of(&server);
    let mut stream = Socket::connect(local.base.strip_prefix("http://").unwrap().parse().unwrap()).unwrap();
    let body = wanted().to_string();
    write!(
        stream,
        "POST /api/allow HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {anna}\r\nExpect: 100-continue\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 100 "), "the server has read the token: {line}");
    good(&site, &["remove", "anna"]);
    gives_within_a_second(&local.with_token(&anna), 401);
    // On a slow machine, the server may have given up waiting for the body.
    let _ = lines.get_mut().write_all(body.as_bytes());
    line.clear();
    while !line.starts_with("HTTP/1.1 4") {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "no answer");
        assert!(!line.starts_with("HTTP/1.1 2"), "{line}");
    }
    assert!(line.starts_with("HTTP/1.1 401 ") || line.starts_with("HTTP/1.1 408 "), "{line}");
    assert!(!fs::read_to_string(site.served("ote/constituency.json")).unwrap().contains(STRANGER));
}

#[test]
fn session_of_one_operator_is_invalid_under_another_name() {
    let site = site_with_token_file();
    let [anna, berta] = ["anna", "berta"].map(|name| token(&site, &["add", name]));
    let server = site.start();
    let local = Operators::of(&server).without_token();
    let answer = local.with(&["--data", &format!("token={anna}")]).get("/sign-in");
    let cookie = cookie_of(&answer);
    let (name, value) = cookie.split_once("=anna:").unwrap();
    let status = |value: &str| with_cookie(&local, &format!("{name}={value}")).get("/api/phones").status;
    assert_eq!(status(&format!("anna:{value}")), 200);
    for forged in ["berta:", "token_file:", "Anna:", "anna%3A", "anna::", " anna:", ":", "", "anna:9", "carla:"] {
        assert_eq!(status(&format!("{forged}{value}")), 401, "{forged}");
    }
    // The token is no session, and the session is no token.
    assert_eq!((status(&anna), status(&format!("anna:{anna}"))), (401, 401));
    assert_eq!(local.with_token(&format!("anna:{value}")).get("/api/phones").status, 401);
    assert_eq!(local.with_token(&format!("{anna} {berta}")).get("/api/phones").status, 401);
}

#[test]
fn every_route_answers_each_kind_of_operator() {
    let site = site_with_token_file();
    site.constituency("other", &json!({ "trust": ["factory"], "phones": { VVX550: "" } }));
    let (anna, prometheus) = (token(&site, &["add", "anna"]), token(&site, &["add", "prometheus", "--read-only"]));
    let reseller = token(&site, &["add", "reseller", "--constituency", "ote"]);
    let server = site.start();
    let local = Operators::of(&server);
    let page = local.get("/").body;
    let asset = page.split('"').find(|it| it.starts_with("/assets/")).unwrap().to_owned();
    let (json, form) = ("application/json", "application/x-www-form-urlencoded");
    let (phone, none) = (wanted().to_string(), "");
    let posted = format!("mac={STRANGER}&constituency=ote");
    let everywhere = json!({ "mac": VVX500 }).to_string();
    let several = json!({ "macs": [STRANGER, VVX550], "constituency": "ote" }).to_string();
    let several_everywhere = json!({ "macs": [STRANGER, VVX550] }).to_string();
    let at_other = json!({ "mac": STRANGER, "constituency": "other" }).to_string();
    let several_at_other = json!({ "macs": [STRANGER, VVX550], "constituency": "other" }).to_string();
    let posted_at_other = format!("mac={STRANGER}&constituency=other");
    let (phone_of_other, api_phone_of_other) =
        (format!("/phones/other/{VVX550}"), format!("/api/phones/other/{VVX550}"));
    // For the token file, an operator, one of the constituency ote, a read-only operator, and without a token.
    let routes = [
        ("GET", "/healthz", json, none, [200, 200, 200, 200, 200]),
        ("GET", "/readyz", json, none, [200, 200, 200, 200, 200]),
        ("GET", &*asset, json, none, [200, 200, 200, 200, 200]),
        ("GET", "/sign-in", json, none, [200, 200, 200, 200, 200]),
        ("POST", "/sign-in", form, "token=wrong", [401, 401, 401, 401, 401]),
        ("POST", "/sign-in", form, "token=", [401, 401, 401, 401, 401]),
        ("GET", "/", json, none, [200, 200, 200, 200, 401]),
        ("GET", "/metrics", json, none, [200, 200, 200, 200, 401]),
        ("GET", "/events", json, none, [200, 200, 200, 200, 401]),
        ("GET", "/phones/ote/00005e00530c", json, none, [200, 200, 200, 200, 401]),
        ("GET", "/phones/ote/00005e0053ff", json, none, [404, 404, 404, 404, 401]),
        ("GET", "/audit", json, none, [200, 200, 200, 200, 401]),
        ("GET", "/api/audit", json, none, [200, 200, 200, 200, 401]),
        ("GET", "/api/overview", json, none, [200, 200, 200, 200, 401]),
        ("GET", "/api/phones", json, none, [200, 200, 200, 200, 401]),
        ("GET", "/api/phones/ote/00005e00530c", json, none, [200, 200, 200, 200, 401]),
        ("GET", "/api/phones/ote/00005e0053ff", json, none, [404, 404, 404, 404, 401]),
        ("GET", "/nothing", json, none, [404, 404, 404, 404, 401]),
        ("GET", "/allow", json, none, [405, 405, 405, 405, 401]),
        ("POST", "/allow", form, &posted, [303, 303, 303, 403, 401]),
        ("POST", "/deny", form, &posted, [303, 303, 303, 403, 401]),
        ("POST", "/api/allow", json, &phone, [200, 200, 200, 403, 401]),
        ("POST", "/api/deny", json, &phone, [200, 200, 200, 403, 401]),
        ("GET", &phone_of_other, json, none, [200, 200, 404, 200, 401]),
        ("GET", &api_phone_of_other, json, none, [200, 200, 404, 200, 401]),
        ("GET", "/api/phones?constituency=other", json, none, [200, 200, 200, 200, 401]),
        ("GET", "/api/audit?constituency=other", json, none, [200, 200, 200, 200, 401]),
        ("POST", "/allow", form, &posted_at_other, [303, 303, 409, 403, 401]),
        ("POST", "/deny", form, &posted_at_other, [303, 303, 409, 403, 401]),
        ("POST", "/api/allow", json, &at_other, [200, 200, 409, 403, 401]),
        ("POST", "/api/deny", json, &at_other, [200, 200, 409, 403, 401]),
        ("POST", "/api/allow", json, &several_at_other, [200, 200, 409, 403, 401]),
        ("POST", "/api/deny", json, &several_at_other, [200, 200, 409, 403, 401]),
        ("POST", "/api/deny", json, &everywhere, [200, 200, 403, 403, 401]),
        ("POST", "/api/allow", json, &several, [200, 200, 200, 403, 401]),
        ("POST", "/api/deny", json, &several, [200, 200, 200, 403, 401]),
        ("POST", "/api/deny", json, &several_everywhere, [200, 200, 403, 403, 401]),
        ("POST", "/api/allow", json, &several, [409, 409, 409, 403, 401]),
        ("POST", "/", json, none, [405, 405, 405, 403, 401]),
        ("PUT", "/", json, none, [405, 405, 405, 403, 401]),
        ("DELETE", "/api/phones", json, none, [405, 405, 405, 403, 401]),
        ("POST", "/nothing", json, none, [404, 404, 404, 403, 401]),
        ("POST", "/sign-out", form, none, [303, 303, 303, 303, 401]),
    ];
    let mut seen = 0;
    for (method, path, kind, body, expected) in routes {
        // The read-only operator first: the others must have something left to change.
        let tokens = [Some(TOKEN), Some(&*anna), Some(&*reseller), Some(&*prometheus), None];
        for (token, expected) in tokens.into_iter().zip(expected).rev() {
            let policies =
                || ["ote", "other"].map(|it| fs::read(site.served(&format!("{it}/constituency.json"))).unwrap());
            let before = policies();
            let denied = site.path("state/denied.json").exists();
            let found = status(&local, token, method, path, (kind, body));
            assert_eq!(found, expected, "{method} {path} {body} {token:?}");
            if expected >= 400 {
                assert!(policies() == before, "{method} {path} {body} {token:?}");
                assert_eq!(site.path("state/denied.json").exists(), denied);
            }
            seen += 1;
        }
    }
    assert_eq!(seen, 43 * 5);
    let reader = local.with_token(&prometheus);
    let refused = reader.post("/api/deny", &everywhere.parse().unwrap());
    assert_eq!(refused.json()["error"], "operator prometheus is read-only, and cannot change anything");
    let session = sign_in(&local, &prometheus);
    let page = session.get("/").body;
    assert!(page.contains("prometheus (read-only)") && !page.contains("action=\"/allow\""), "{page}");
    assert_eq!(session.with(&["--data", &posted]).get("/allow").status, 403);
    assert!(session.get("/metrics").body.contains("provost_"));
}

#[test]
fn wrong_tokens_are_refused_and_do_not_delay_the_right_one() {
    let site = site();
    let anna = token(&site, &["add", "anna"]);
    let server = site.start();
    let local = Operators::of(&server);
    let hash = fs::read_to_string(site.path("state/operators.json")).unwrap();
    let hash = hash.split("\"token_sha256\": \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let (upper, longer) = (anna.to_uppercase(), format!("{anna}0"));
    let huge = "0".repeat(7000);
    for wrong in ["", " ", "anna", "null", &anna[1..], &anna[..25], &upper, &longer, &hash, &huge] {
        assert_eq!(status(&local, Some(wrong), "GET", "/api/phones", ("text/plain", "")), 401, "{wrong}");
        let body = format!("token={wrong}");
        let form = ("application/x-www-form-urlencoded", body.as_str());
        assert_eq!(status(&local, None, "POST", "/sign-in", form), 401, "{wrong}");
    }
    let enormous = format!("token={}", "0".repeat(1 << 20));
    let form = ("application/x-www-form-urlencoded", enormous.as_str());
    let mut socket = Socket::connect(local.base.strip_prefix("http://").unwrap().parse().unwrap()).unwrap();
    // It may be refused before it is read completely.
    let _ = write!(
        socket,
        "POST /sign-in HTTP/1.1\r\nHost: localhost\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n{}",
        form.0,
        form.1.len(),
        form.1
    );
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 413 "), "{line}");
    for number in 0..500 {
        assert_eq!(status(&local, Some(&format!("{number:026}")), "GET", "/", ("text/plain", "")), 401);
    }
    assert_eq!(local.with_token(&anna).get("/api/phones").status, 200);
    // Two tokens: the first counts.
    let both = local.with_token("wrong").with(&["-H", &format!("Authorization: Bearer {anna}")]);
    assert_eq!(both.get("/api/phones").status, 401);
}

#[test]
fn damaged_operators_file_leaves_only_the_token_file() {
    let site = site_with_token_file();
    let anna = token(&site, &["add", "anna"]);
    let file = site.path("state/operators.json");
    let good_text = fs::read_to_string(&file).unwrap();
    let server = site.start();
    let local = Operators::of(&server).without_token();
    let session = sign_in(&local, &anna);
    let entry = good_text.split_once(": ").unwrap().1.rsplit_once('}').unwrap().0.trim().to_owned();
    let damaged = [
        ("{\n  \"anna\": {".to_owned(), "operators.json:2:"),
        (format!("{{ \"anna\": {entry},\n \"anna\": {entry} }}"), "operator \"anna\" occurs twice"),
        (format!("{{ \"anna\": {entry},\n \"berta\": {entry} }}"), "have the same token"),
        (good_text.replace("\"created\"", "\"administrator\": true,\n    \"created\""), "unknown key"),
    ];
    for (text, expected) in &damaged {
        fs::write(&file, text).unwrap();
        // The log is JSON.
        server.says(&expected.replace('"', "\\\""));
        assert_eq!(local.with_token(&anna).get("/").status, 401, "{text}");
        assert_eq!((session.get("/").status, local.get("/").status), (401, 401), "{text}");
        let administrator = local.with_token(TOKEN);
        let problems = || administrator.json("/api/overview")["troubles"].to_string().replace("\\\"", "\"");
        eventually("the problem on the page", || problems().contains(expected).then_some(()));
        for args in [&["add", "new"][..], &["remove", "anna"], &["rotate", "anna"], &["list"]] {
            let ended = operator(&site, args);
            assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{args:?}: {ended:?}");
            assert!(ended.stderr.contains(expected) && ended.stderr.contains("operators.json:"), "{ended:?}");
        }
        let checked = provost(&site.path("."), &["check"]);
        assert_eq!(checked.code, 1, "{checked:?}");
        assert!(checked.stdout.contains(expected), "{checked:?}");
        assert_eq!(fs::read_to_string(&file).unwrap(), *text, "no command replaces it");
        fs::write(&file, &good_text).unwrap();
        gives_within_a_second(&local.with_token(&anna), 200);
        assert_eq!(session.get("/").status, 200);
    }
    // The removal of the file does not open the listener.
    fs::remove_file(&file).unwrap();
    server.says("was removed while provost runs");
    assert_eq!((local.get("/").status, local.with_token(&anna).get("/").status), (401, 401));
    // A start with a damaged file: phones are served, and without a token nothing is read.
    server.kill();
    let mut site = site;
    fs::write(&file, "{").unwrap();
    site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    let server = site.start();
    assert_eq!(server.client("ote", &FACTORY.device(VVX500)).get("/site.cfg").unwrap().status, 200);
    assert_eq!(Operators::of(&server).get("/").status, 401);
    server.says("no token is accepted but that in \\\"token_file\\\"");
}

#[test]
fn operators_are_listed_without_tokens_and_names_are_checked() {
    let site = site();
    assert_eq!(good(&site, &["list"]), "");
    let (anna, reader) = (token(&site, &["add", "anna"]), token(&site, &["add", "r.2", "--read-only"]));
    let rotated = token(&site, &["rotate", "anna"]);
    let listed = good(&site, &["list"]);
    let mut lines = listed.lines();
    assert!(lines.next().unwrap().starts_with("anna  reads and changes, added 20"), "{listed}");
    assert!(lines.next().unwrap().starts_with("r.2   reads only, added 20"), "{listed}");
    let as_json = good(&site, &["list", "--json"]);
    let all: Vec<Value> = as_json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (&all[0]["name"], &all[0]["read_only"], all[0]["rotated"].is_string()),
        (&json!("anna"), &json!(false), true)
    );
    assert_eq!(
        (&all[1]["name"], &all[1]["read_only"], &all[1]["rotated"]),
        (&json!("r.2"), &json!(true), &json!(null))
    );
    for secret in [&anna, &reader, &rotated] {
        assert!(!listed.contains(secret) && !as_json.contains(secret));
    }
    for name in ["Anna", "", "a b", "../x", "a/b", "a:b", "token_file", "-a", &"a".repeat(33)] {
        let ended = operator(&site, &["add", "--", name]);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{name}: {ended:?}");
        assert!(ended.stderr.contains("invalid operator name"), "{name}: {ended:?}");
    }
    assert_eq!(good(&site, &["list"]), listed);
}

#[test]
fn list_and_check_show_the_constituencies_of_an_operator() {
    let site = site();
    let added = operator(&site, &["add", "reseller", "--constituency", "ote,customer", "--read-only"]);
    assert_eq!(added.code, 0, "{added:?}");
    assert!(
        added.stdout.starts_with("reseller is a read-only operator of customer, ote within a second\n"),
        "{added:?}"
    );
    assert!(added.stderr.contains("constituency customer not found"), "{added:?}");
    let listed = good(&site, &["list"]);
    assert!(listed.starts_with("reseller  reads only customer, ote, added 20"), "{listed}");
    let as_json: Value = serde_json::from_str(&good(&site, &["list", "--json"])).unwrap();
    assert_eq!(as_json["constituencies"], json!(["customer", "ote"]));
    let checked = provost(&site.path("."), &["check"]).stdout;
    assert!(checked.contains("operator reseller is for constituency customer, which does not exist"), "{checked}");
    // A new token keeps the scope.
    good(&site, &["rotate", "reseller"]);
    assert!(good(&site, &["list"]).starts_with("reseller  reads only customer, ote, added 20"));
    for names in ["", ",", "Ote", "ote,", "../ote", "ote ote", "*"] {
        let ended = operator(&site, &["add", "other", "--constituency", names]);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{names}: {ended:?}");
    }
    // A scope that cannot be read is not the whole server.
    for scope in ["null", "[]", "\"ote\"", "[\"Ote\"]", "[\"*\"]"] {
        let file = site.path("state/operators.json");
        let text = fs::read_to_string(&file).unwrap();
        let start = text.find("\"constituencies\": ").unwrap() + "\"constituencies\": ".len();
        let end = start + text[start..].find(']').unwrap() + 1;
        fs::write(&file, format!("{}{scope}{}", &text[..start], &text[end..])).unwrap();
        let ended = operator(&site, &["list"]);
        assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{scope}: {ended:?}");
        fs::write(&file, text).unwrap();
    }
}

#[test]
fn check_reports_a_listener_without_any_token() {
    let site = site();
    let checked = || provost(&site.path("."), &["check"]);
    let note = "note: status: no \"token_file\" and no operator";
    assert!(checked().stdout.contains(note), "{:?}", checked());
    token(&site, &["add", "anna"]);
    assert!(!checked().stdout.contains(note) && checked().code == 0, "{:?}", checked());
    fs::set_permissions(site.path("state/operators.json"), PermissionsExt::from_mode(0o644)).unwrap();
    let found = checked().stdout;
    assert!(found.contains("operators.json: all users of this machine may read the list of operators"), "{found}");
    let mut without = site;
    without.config.as_object_mut().unwrap().remove("status");
    without.write_config();
    let found = provost(&without.path("."), &["check"]).stdout;
    assert!(found.contains("note: operators.json: no effect"), "{found}");
    let added = operator(&without, &["add", "berta"]);
    assert!(added.code == 0 && added.stderr.contains("no effect yet"), "{added:?}");
}

#[test]
fn concurrent_commands_lose_no_operator() {
    let site = site();
    let names: Vec<String> = (0..8).map(|number| format!("operator{number}")).collect();
    let children: Vec<_> = names
        .iter()
        .map(|name| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_provost"));
            command.args(["operator", "add", name]).current_dir(site.path(".")).env_remove("PROVOST_CONFIG");
            command.stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let listed = good(&site, &["list"]);
    assert!(names.iter().all(|name| listed.contains(name.as_str())) && listed.lines().count() == 8, "{listed}");
}

#[test]
fn root_gives_the_operators_file_to_the_owner_of_state() {
    if !rustix::process::geteuid().is_root() {
        return not_run("root_gives_the_operators_file_to_the_owner_of_state", "it needs root");
    }
    let site = site();
    fs::create_dir(site.path("state")).unwrap();
    assert_eq!(run(Command::new("chown").args(["65534:65533", "state"]).current_dir(site.path("."))).code, 0);
    fs::set_permissions(site.path("."), PermissionsExt::from_mode(0o755)).unwrap();
    for args in [&["add", "anna"][..], &["rotate", "anna"], &["add", "berta"], &["remove", "berta"]] {
        good(&site, args);
        let file = fs::symlink_metadata(site.path("state/operators.json")).unwrap();
        assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (65534, 65533, 0o600), "{args:?}");
    }
}

#[test]
fn operator_is_not_added_where_no_server_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let ended = provost(folder.path(), &["operator", "add", "anna"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{ended:?}");
    assert!(ended.stderr.contains("name the configuration with --config"), "{ended:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// What an operator of `ote` must not see: the name, phones, notes and faults of another constituency, paths and problems of
/// the server, and other operators.
const OUTSIDE: [&str; 10] = [
    "rival-customer",
    VVX550,
    STRANGER,
    "a rival's note",
    "rival.example",
    "broken-folder",
    "denied by anna",
    "provost.json",
    "anna",
    "berta",
];

/// A site with the constituencies `ote` and `rival-customer`, and a broken one. Phones of each have come, and one waits at
/// each. One of each is denied on the whole server.
fn site_of_two_customers() -> (Site, Running) {
    let mut site = site_with_token_file();
    let policy =
        json!({ "trust": ["factory"], "phones": { VVX550: "a rival's note" }, "description": "rival.example" });
    site.constituency("rival-customer", &policy);
    site.file("rival-customer/site.cfg", "<rival/>");
    site.file("broken-folder/constituency.json", "{ \"frobnicate\": 1 }");
    site.config["status"]["hosts"] = json!(["provost.example.com"]);
    // A link of `ote` that leads to the other customer.
    symlink("../rival-customer/site.cfg", site.served("ote/shared.cfg")).unwrap();
    let server = site.start();
    assert_ne!(server.client("ote", &FACTORY.device(VVX500)).get("/shared.cfg").unwrap().status, 200);
    for (name, mac, status) in [
        ("ote", VVX500, 200),
        ("rival-customer", VVX550, 200),
        ("ote", OTE_STRANGER, 403),
        ("rival-customer", STRANGER, 403),
    ] {
        assert_eq!(server.client(name, &FACTORY.device(mac)).get("/site.cfg").unwrap().status, status);
    }
    (site, server)
}

/// A phone that waits at `ote`.
const OTE_STRANGER: &str = "00005e0053dd";

#[test]
fn operator_with_a_scope_sees_and_changes_only_its_constituencies() {
    let (site, server) = site_of_two_customers();
    let anna = token(&site, &["add", "anna"]);
    let reseller = token(&site, &["add", "reseller", "--constituency", "ote"]);
    let reader = token(&site, &["add", "reader", "--constituency", "ote", "--read-only"]);
    let local = Operators::of(&server).without_token();
    let (anna, reseller, reader) = (local.with_token(&anna), local.with_token(&reseller), local.with_token(&reader));
    gives_within_a_second(&reader, 200);
    assert_eq!(anna.post("/api/deny", &json!({ "mac": VVX550, "note": "a rival's note" })).status, 200);
    // The history is written beside the requests.
    eventually("all phones", || (anna.json("/api/phones")["total"] == 4).then_some(()));
    eventually("the own phones", || (reseller.json("/api/phones")["total"] == 2).then_some(()));
    for (mac, constituency) in [(VVX500, "ote"), (STRANGER, "rival-customer")] {
        let note = json!({ "mac": mac, "constituency": constituency, "note": "a new note" });
        assert_eq!(anna.post("/api/allow", &note).json(), json!({ "changed": true }));
    }
    // An administrator sees where the link leads, and who changed what.
    assert!(anna.get("/api/phones/ote/00005e00530c").body.contains("the symlink leads to rival-customer/site.cfg"));
    assert_eq!(
        anna.json("/api/audit")["entries"].as_array().unwrap().iter().filter(|it| it["who"] == "anna").count(),
        3
    );

    let reads = [
        "/",
        "/?state=waiting&constituency=rival-customer",
        "/?search=rival",
        "/phones/ote/00005e00530c",
        "/api/overview",
        "/api/phones",
        "/api/phones?limit=1000&sort=name",
        "/api/phones?sort=name&reverse=1",
        "/api/phones?sort=model",
        "/api/phones?sort=last_seen",
        "/api/phones?search=00005e0053",
        "/api/phones?search=customer",
        "/api/phones?search=a+rival%27s",
        "/api/phones/ote/00005e00530c",
        "/audit",
        "/audit?constituency=ote",
        "/audit?limit=1000",
        "/api/audit",
        "/api/audit?constituency=ote",
        "/api/audit?limit=1000",
        "/metrics",
        "/readyz",
    ];
    let mut seen = 0;
    for path in reads {
        for client in [&reseller, &reader, &sign_in(&local, client_token(&reseller))] {
            let answer = client.get(path);
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
            for secret in OUTSIDE {
                // The query is shown in the search field.
                let shown = answer.body.matches(secret).count();
                let asked = path.matches(secret).count();
                assert!(shown == 0 || asked > 0, "{path} shows {secret}: {}", answer.body);
            }
            seen += 1;
        }
        let whole = anna.get(path);
        assert_eq!(whole.status, 200, "{path}");
    }
    assert_eq!(seen, 22 * 3);
    assert_eq!(reseller.json("/api/audit?constituency=rival-customer")["entries"], json!([]));
    let own = reseller.json("/api/audit")["entries"].clone();
    assert_eq!(
        (own.as_array().unwrap().len(), &own[0]["who"], &own[0]["from"]),
        (1, &json!("another operator"), &json!(null))
    );
    let overview = reseller.json("/api/overview");
    assert_eq!(overview["constituencies"].as_array().unwrap().len(), 1);
    assert_eq!((&overview["counts"]["well"], &overview["counts"]["waiting"]), (&json!(1), &json!(1)));
    assert_eq!(overview["waiting"][0]["mac"], OTE_STRANGER);
    assert_eq!(overview["troubles"], json!([]));
    assert_eq!(anna.json("/api/overview")["constituencies"].as_array().unwrap().len(), 3);
    let metrics = reseller.get("/metrics").body;
    assert!(metrics.contains("provost_phones{constituency=\"ote\",state=\"well\"} 1"), "{metrics}");
    assert!(metrics.contains("provost_requests_total{constituency=\"ote\""), "{metrics}");
    assert!(!metrics.contains("provost_handshakes") && !metrics.contains("provost_connections"), "{metrics}");
    // A scrape by such an operator removes no counter of others.
    assert!(anna.get("/metrics").body.contains("provost_requests_total{constituency=\"rival-customer\""));

    // The own phones can be allowed and denied.
    let allowed = reseller.post("/api/allow", &json!({ "mac": OTE_STRANGER, "constituency": "ote" }));
    assert_eq!((allowed.status, allowed.json()), (200, json!({ "changed": true })));
    assert_eq!(server.client("ote", &FACTORY.device(OTE_STRANGER)).get("/site.cfg").unwrap().status, 200);
    assert_eq!(reseller.post("/api/deny", &json!({ "mac": OTE_STRANGER, "constituency": "ote" })).status, 200);
    let both = json!({ "macs": [OTE_STRANGER, VVX500], "constituency": "ote" });
    assert_eq!(reseller.post("/api/allow", &both).json()["changed"], true);
    assert_eq!(reader.post("/api/allow", &both).status, 403);
    let own = reseller.json("/api/audit")["entries"].clone();
    let own: Vec<_> = own.as_array().unwrap().iter().filter(|it| it["who"] == "reseller").collect();
    assert!(own.len() == 3 && own.iter().all(|it| it["from"] == "127.0.0.1"), "{own:?}");
    for wanted in [json!({ "mac": VVX500 }), json!({ "macs": [VVX500, OTE_STRANGER] })] {
        let everywhere = reseller.post("/api/deny", &wanted);
        assert_eq!(everywhere.status, 403, "{everywhere:?}");
        assert!(everywhere.body.contains("only an administrator"), "{everywhere:?}");
    }
    assert!(!fs::read_to_string(site.path("state/denied.json")).unwrap().contains(VVX500));
    // An own phone's denial on the whole server is shown, without its author.
    assert_eq!(anna.post("/api/deny", &json!({ "mac": VVX500, "note": "lost" })).status, 200);
    let denied = || reseller.json("/api/overview")["denied"].clone();
    let own = json!([{ "mac": VVX500, "by": "an administrator", "note": "" }]);
    eventually("the own phone's denial", || (denied()[0]["mac"] == VVX500).then_some(()));
    let mut shown = denied();
    shown[0].as_object_mut().unwrap().remove("at");
    assert_eq!(shown, own);
    for path in ["/", "/phones/ote/00005e00530c", "/api/phones", "/api/phones/ote/00005e00530c"] {
        let body = reseller.get(path).body;
        assert!(!body.contains("anna") && !body.contains("lost"), "{path}: {body}");
    }
    let lifted = reseller.post("/api/allow", &json!({ "mac": VVX500, "constituency": "ote" }));
    assert_eq!(lifted.status, 409);
    assert!(lifted.body.contains("only an administrator") && !lifted.body.contains("lost"), "{lifted:?}");
}

fn client_token(client: &Operators) -> &str {
    client.token().unwrap()
}

#[test]
fn what_is_out_of_scope_answers_like_what_does_not_exist() {
    let (site, server) = site_of_two_customers();
    let reseller = token(&site, &["add", "reseller", "--constituency", "ote"]);
    let local = Operators::of(&server).without_token();
    let reseller = local.with_token(&reseller);
    gives_within_a_second(&reseller, 200);
    // The history is written beside the requests.
    eventually("the own phones", || (reseller.json("/api/phones")["total"] == 2).then_some(()));
    let policy = || fs::read_to_string(site.served("rival-customer/constituency.json")).unwrap();
    let before = policy();
    let same = |path: &str, ask: &dyn Fn(&str) -> Answer| {
        let (inside, absent) = (ask(path), ask(&path.replace("rival-customer", "absent-customer")));
        assert_eq!(inside.status, absent.status, "{path}");
        let without_time = |body: &str| {
            let (before, rest) = body.split_once("datetime=\"").unwrap_or((body, ""));
            format!("{before}{}", rest.len())
        };
        let found = inside.body.replace("rival-customer", "absent-customer");
        assert_eq!(without_time(&found), without_time(&absent.body), "{path}");
        assert!(!inside.body.contains("a rival's note") && inside.status != 500, "{path}: {inside:?}");
    };
    let mut seen = 0;
    for path in [
        "/phones/rival-customer/00005e0053c7",
        "/phones/Rival-Customer/00005e0053c7",
        "/phones/rival-customer./00005e0053c7",
        "/phones/%72ival-customer/00005e0053c7",
        "/phones/ote/../rival-customer/00005e0053c7",
        "/phones/ote%2f..%2frival-customer/00005e0053c7",
        "/phones//rival-customer/00005e0053c7",
        "/phones/ote/00005e0053c7",
        "/api/phones/rival-customer/00005e0053c7",
        "/api/phones/RIVAL-CUSTOMER/00005e0053c7",
        "/api/phones/rival-customer/00:00:5e:00:53:c7",
        "/api/phones/ote/00005e0053c7",
        "/api/phones/broken-folder/00005e0053c7",
        "/api/phones?constituency=rival-customer",
        "/api/phones?constituency=ote&constituency=rival-customer",
        "/api/phones?constituency=rival-customer&constituency=ote",
        "/api/phones?constituency=%72ival-customer&limit=1000",
        "/api/phones?constituency=RIVAL-CUSTOMER",
        "/api/phones?constituency=rival-customer&search=00005e0053c7&sort=name",
        "/api/phones?constituency=rival-customer&state=waiting&offset=0",
        "/api/audit?constituency=rival-customer",
        "/api/audit?constituency=rival-customer&limit=1000",
        "/audit?constituency=rival-customer",
    ] {
        same(path, &|path| reseller.get(path));
        seen += 1;
    }
    for (path, body) in [
        ("/api/allow", json!({ "mac": STRANGER, "constituency": "rival-customer" }).to_string()),
        ("/api/allow", json!({ "mac": STRANGER, "constituency": "Rival-Customer" }).to_string()),
        ("/api/allow", json!({ "mac": STRANGER, "constituency": "rival-customer." }).to_string()),
        ("/api/allow", json!({ "mac": STRANGER, "constituency": "../rival-customer" }).to_string()),
        ("/api/deny", json!({ "mac": VVX550, "constituency": "rival-customer" }).to_string()),
        ("/api/allow", json!({ "macs": [STRANGER, VVX500], "constituency": "rival-customer" }).to_string()),
        ("/api/deny", json!({ "macs": [VVX550, VVX500], "constituency": "rival-customer" }).to_string()),
        (
            "/api/allow",
            format!("{{\"mac\":\"{STRANGER}\",\"constituency\":\"ote\",\"constituency\":\"rival-customer\"}}"),
        ),
    ] {
        let post = |body: &str| reseller.with(&["-H", "Content-Type: application/json", "--data", body]).get(path);
        same(&body, &post);
        assert!(post(&body).status >= 400, "{body}");
        seen += 1;
    }
    let form = |body: &str| reseller.with(&["--data", body]).get("/allow");
    let body = format!("mac={STRANGER}&constituency=rival-customer");
    same(&body, &form);
    assert_eq!(form(&body).status, 409);
    // Of two fields, the first counts, and it is the one that is checked.
    assert_eq!(form(&format!("mac={STRANGER}&constituency=ote&constituency=rival-customer")).status, 303);
    assert_eq!(form(&format!("mac={STRANGER}&constituency=rival-customer&constituency=ote")).status, 409);
    assert_eq!((policy(), seen), (before, 31));
}
