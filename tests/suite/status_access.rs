//! Access to the operators' listener: tokens, hosts, other sites, sockets, and misbehaving clients.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::harness::operators::Operators;
use crate::harness::pki::FACTORY;
use crate::harness::site::{Running, Site};
use crate::harness::socket::Socket;
use crate::harness::tool::{provost, run};
use crate::harness::{STRANGER, VVX500, eventually, is_here, within_a_second};

const TOKEN: &str = "a-token-for-tests-0123456789";

/// A site whose operators' listener is at `listen`, with a token in a file.
fn site(listen: &str) -> Site {
    let mut site = Site::with_ote();
    write_token(&site, TOKEN, 0o600);
    site.config["status"] = json!({ "listen": listen, "token_file": "token", "hosts": ["provost.example.com"] });
    site
}

fn write_token(site: &Site, token: &str, mode: u32) {
    let file = site.path("token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A client without a token of a server that listens on every address, or on this one.
fn stranger(server: &Running) -> Operators {
    let mut operators = Operators::of(server).without_token();
    operators.base = operators.base.replace("0.0.0.0", "127.0.0.1");
    operators
}

/// Paths with information about constituencies and phones.
const SECRET: [&str; 8] = [
    "/",
    "/metrics",
    "/api/overview",
    "/api/phones",
    "/api/phones/ote/00005e00530c",
    "/events",
    "/phones/ote/00005e00530c",
    "/nothing",
];

/// Requests every path without the token, and asserts that only public answers come back.
#[track_caller]
fn assert_reveals_nothing(client: &Operators, how: &str) {
    for path in SECRET {
        let answer = client.get(path);
        assert_eq!(answer.status, 401, "{how} {path}: {answer:?}");
        assert!(answer.headers["www-authenticate"].starts_with("Bearer"), "{how} {path}: {answer:?}");
        assert!(
            !answer.body.contains("phones.example.com") && !answer.body.contains(VVX500),
            "{how} {path}: {answer:?}"
        );
        assert_eq!(client.with_token("not-the-token-0123456789").get(path).status, 401, "{how} {path}");
    }
    for path in ["/allow", "/deny", "/sign-out", "/api/allow", "/api/deny"] {
        assert_eq!(client.post(path, &wanted()).status, 401, "{how} {path}");
    }
    for path in ["/healthz", "/sign-in"] {
        assert_eq!(client.get(path).status, 200, "{how} {path}");
    }
    let ready = client.get("/readyz");
    assert_eq!((ready.status, ready.body.as_str()), (200, ""), "{how}");
}

/// A background process, killed and waited for when dropped.
struct Background(Child);

impl Background {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn wanted() -> serde_json::Value {
    json!({ "mac": STRANGER, "constituency": "ote", "note": "a note" })
}

#[test]
fn configured_token_is_required_for_every_path() {
    for listen in ["0.0.0.0:0", "127.0.0.1:0", "unix:status.sock"] {
        let site = site(listen);
        let server = site.start();
        let stranger = stranger(&server);
        assert_reveals_nothing(&stranger, listen);
        let page = stranger.get("/").body;
        assert!(page.contains("action=\"/sign-in\""), "{page}");
        let assets: Vec<&str> = page.split('"').filter(|it| it.starts_with("/assets/")).collect();
        assert_eq!(assets.len(), 3, "{page}");
        for asset in assets {
            assert_eq!(stranger.get(asset).status, 200, "{asset}");
        }
        let ours = stranger.with_token(TOKEN);
        for path in SECRET.iter().filter(|path| !["/events", "/nothing", "/api/phones/ote/00005e00530c"].contains(path))
        {
            assert_eq!(ours.get(path).status, 200, "{path}");
        }
        assert_eq!(ours.get("/readyz").body, "ready\n");
    }
}

#[test]
fn readyz_gives_unauthenticated_clients_only_a_status() {
    let mut site = site("127.0.0.1:0");
    site.config["certificate"] = json!({ "files": [{ "chain": "absent.pem", "key": "absent.key" }] });
    let server = site.start();
    let stranger = stranger(&server);
    let answer = stranger.get("/readyz");
    assert_eq!((answer.status, answer.body.as_str(), answer.headers["content-length"].as_str()), (503, "", "0"));
    let answer = stranger.with_token(TOKEN).get("/readyz");
    assert_eq!((answer.status, answer.body.as_str()), (503, "no server certificate yet\n"));
    assert_eq!(stranger.with_token("not-the-token-0123456789").get("/readyz").body, "");
}

#[test]
fn health_checks_get_a_status_under_any_host() {
    for listen in ["0.0.0.0:0", "127.0.0.1:0"] {
        let site = site(listen);
        let server = site.start();
        let stranger = stranger(&server);
        // As HAProxy's "option httpchk", Kubernetes and a check by name send them; the last is a DNS rebinding.
        let checks: [&[&str]; 4] = [
            &["--http1.0", "-H", "Host:"],
            &["-H", "Host: 192.0.2.11:8444"],
            &["-H", "Host: node1.example.com"],
            &["-H", "Host: evil.example.com", "-H", "Origin: http://evil.example.com"],
        ];
        for check in checks {
            for client in [stranger.clone(), stranger.with_token(TOKEN)] {
                let answer = client.with(check).get("/readyz");
                // Under an unknown Host, the token gives no body.
                let is_ours = listen.starts_with('0') && check[1].ends_with("8444") && client.has_token();
                let body = if is_ours { "ready\n" } else { "" };
                assert_eq!((answer.status, answer.body.as_str()), (200, body), "{listen} {check:?}");
            }
            assert_eq!(stranger.with(check).get("/healthz").status, 200, "{listen} {check:?}");
            for path in ["/", "/metrics", "/sign-in", "/api/overview"] {
                let status = stranger.with_token(TOKEN).with(check).get(path).status;
                assert_eq!(status == 421, !(listen.starts_with('0') && check[1].ends_with("8444")), "{path} {check:?}");
            }
        }
        assert_eq!(stranger.with(&["-X", "POST", "-H", "Host: evil.example.com"]).get("/readyz").status, 421);
    }
}

#[test]
fn remote_listener_without_a_valid_token_is_refused() {
    let mut site = site("0.0.0.0:0");
    let refused = |site: &Site, expected: &str| {
        let ended = run(&mut site.command());
        assert_eq!(ended.code, 2, "{ended:?}");
        assert!(ended.stderr.contains(expected), "{expected}: {ended:?}");
        let checked = provost(&site.path("."), &["check"]);
        assert_ne!(checked.code, 0, "{checked:?}");
        assert!((checked.stdout + &checked.stderr).contains(expected), "{expected}");
    };
    write_token(&site, TOKEN, 0o644);
    refused(&site, "all users of this machine can read the token (mode 0644)");
    write_token(&site, "short", 0o600);
    refused(&site, "at least 16 visible ASCII characters");
    std::fs::remove_file(site.path("token")).unwrap();
    refused(&site, "cannot read the token: No such file or directory (os error 2); make one with openssl rand -hex 32");
    site.config["status"] = json!({ "listen": "0.0.0.0:0" });
    refused(&site, "\"status\": other machines can reach http://0.0.0.0:0/, so \"token_file\" must name");
    for listen in ["127.0.0.1:0", "unix:status.sock"] {
        site.config["status"] = json!({ "listen": listen, "hosts": ["provost.example.com"] });
        refused(&site, "\"status\": \"hosts\" is for a proxy, by which other machines can reach this listener, so");
    }
    site.config["status"] = json!({ "listen": "127.0.0.1:0", "host": [] });
    refused(&site, "did you mean \"hosts\"?");
}

#[test]
fn every_change_needs_the_token_on_every_listener() {
    let site = site("127.0.0.1:0");
    let server = site.start();
    let operators = stranger(&server);
    for path in ["/api/allow", "/api/deny"] {
        assert_eq!(operators.post(path, &wanted()).status, 401);
        assert_eq!(operators.with_token("wrong-token-0123456789").post(path, &wanted()).status, 401);
    }
    let policy = std::fs::read_to_string(site.served("ote/constituency.json")).unwrap();
    assert!(!policy.contains(STRANGER), "{policy}");
    // Without a configured token, no change is possible.
    let mut without = Site::with_ote();
    without.config["status"] = json!({ "listen": "127.0.0.1:0" });
    let server = without.start();
    let answer = Operators::of(&server).with_token("").post("/api/allow", &wanted());
    assert_eq!(answer.status, 403);
    assert!(answer.json()["error"].as_str().unwrap().contains("\"token_file\" is not set"), "{answer:?}");
}

#[test]
fn invalid_api_body_is_a_400_with_its_line() {
    let site = site("127.0.0.1:0");
    let server = site.start();
    let operators = Operators::of(&server).with_token(TOKEN);
    for (body, error) in [
        ("{\n \"mac\": \"00005e0053aa\"", "body:2:22: the body ends before the closing }"),
        (
            "{ \"mac\": \"00005e0053aa\", // the kitchen\n }",
            "body:1:26: a comment (// or /* */): JSON has no comments; remove it",
        ),
        ("{ \"mac\": \"00005e0053aa\", }", "body:1:26: trailing comma: remove the comma before this }"),
        ("{ \"mac\": 1, \"constituency\": \"ote\" }", "body:1:10: \"mac\": must be a string, not 1"),
        ("{ \"mak\": \"\" }", "body:1:3: \"mak\": unknown key; did you mean \"mac\"?"),
        ("{ \"constituency\": \"ote\" }", "body:1:1: the key \"mac\" is missing, or \"macs\" for several phones"),
        ("[\"00005e0053aa\", null, null]", "body:1:1: must be an object, not a list"),
        ("[]", "body:1:1: must be an object, not a list"),
        ("\"00005e0053aa\"", "body:1:1: must be an object, not a string"),
        ("{ \"mac\": [\"00005e0053aa\"] }", "body:1:10: \"mac\": must be a string, not a list"),
        ("", "body:1:1: the body is empty; it must hold at least {}"),
    ] {
        let answer = operators.with(&["-H", "Content-Type: application/json", "--data", body]).get("/api/allow");
        assert_eq!((answer.status, answer.json()["error"].as_str()), (400, Some(error)), "{body}");
    }
}

#[test]
fn sighup_loads_a_new_token_and_keeps_the_last_if_invalid() {
    let site = site("127.0.0.1:0");
    let server = site.start();
    let operators = Operators::of(&server);
    let is_good = |token: &str| operators.with_token(token).post("/api/allow", &json!({})).status == 400;
    assert!(is_good(TOKEN));
    write_token(&site, "x", 0o600);
    server.signal(Signal::HUP);
    server.says("the last valid token stays in force");
    assert!(is_good(TOKEN));
    write_token(&site, "another-token-0123456789", 0o640);
    server.signal(Signal::HUP);
    within_a_second("the new token", || is_good("another-token-0123456789").then_some(()));
    assert!(!is_good(TOKEN));
}

/// The headers of requests forwarded by proxies, in either version of HTTP.
const PROXIED: [&[&str]; 9] = [
    &[],
    &["--http1.0"],
    &["--http1.0", "-H", "Connection: close"],
    &["-H", "Connection:"],
    &["-H", "Host: provost.example.com"],
    &["-H", "Forwarded: for=127.0.0.1;host=localhost"],
    &["-H", "X-Forwarded-For: 127.0.0.1", "-H", "X-Forwarded-Proto: https"],
    &["-H", "X-Real-IP: 127.0.0.1"],
    &["-H", "Via: 1.1 localhost"],
];

#[test]
fn proxied_requests_need_the_token_too() {
    for listen in ["127.0.0.1:0", "unix:status.sock"] {
        let site = site(listen);
        let server = site.start();
        for way in PROXIED {
            let through = stranger(&server).with(way);
            assert_reveals_nothing(&through, &format!("{listen} {way:?}"));
            assert_eq!(through.with_token(TOKEN).get("/api/phones").status, 200, "{listen} {way:?}");
        }
    }
}

#[test]
fn forwarding_headers_do_not_change_access_without_a_token() {
    let mut site = Site::with_ote();
    site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    let server = site.start();
    let operators = Operators::of(&server);
    for way in PROXIED.into_iter().filter(|way| !way.concat().contains("example.com")) {
        assert_eq!(operators.with(way).get("/api/phones").status, 200, "{way:?}");
        assert_eq!(operators.with(way).get("/readyz").body, "ready\n", "{way:?}");
        assert_eq!(operators.with(way).post("/api/allow", &wanted()).status, 403, "{way:?}");
    }
    let answer = operators.with(&["-H", "Host: 192.0.2.1"]).get("/api/phones");
    assert_eq!(answer.status, 421, "{answer:?}");
}

/// nginx with a common configuration, in front of a Unix socket.
#[test]
fn requests_through_nginx_need_the_token_too() {
    if !is_here("requests_through_nginx_need_the_token_too", "nginx") {
        return;
    }
    let site = site("unix:status.sock");
    let server = site.start();
    let blocks = [
        "",
        "proxy_http_version 1.1;",
        "proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host localhost;",
        "proxy_http_version 1.1; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;",
        "proxy_http_version 1.0; proxy_set_header Host 127.0.0.1;",
    ];
    let servers: String = (0..)
        .zip(blocks)
        .map(|(number, block)| {
            let (front, back) = (site.path(&format!("front{number}.sock")), site.path("status.sock"));
            format!(
                "server {{ listen unix:{}; location / {{ proxy_pass http://unix:{}:/; {block} }} }}",
                front.display(),
                back.display()
            )
        })
        .collect();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {};", site.path(kind).display()))
        .concat();
    let config = format!(
        "daemon off; master_process off; pid {}; error_log stderr; events {{}} http {{ access_log off; {temporary} {servers} }}",
        site.path("nginx.pid").display()
    );
    std::fs::write(site.path("nginx.conf"), config).unwrap();
    let _nginx =
        Background::start(Command::new("nginx").arg("-p").arg(site.path(".")).arg("-c").arg(site.path("nginx.conf")));
    for (number, block) in blocks.iter().enumerate() {
        let front = site.path(&format!("front{number}.sock"));
        let through = stranger(&server).with(&["--unix-socket", front.to_str().unwrap()]);
        // The socket exists before nginx listens on it.
        eventually("nginx", || (run(&mut through.curl("/healthz")).code == 0).then_some(()));
        assert_reveals_nothing(&through, block);
        assert_eq!(through.with_token(TOKEN).get("/api/phones").status, 200, "{block}");
    }
}

#[test]
fn cross_site_requests_and_dns_rebinding_are_refused() {
    let site = site("127.0.0.1:0");
    let server = site.start();
    let operators = Operators::of(&server);
    let stranger = operators.without_token();
    // DNS rebinding: the browser requests our address under another name.
    for host in ["evil.example.com", "evil.example.com:8444", "localhost.evil.example.com"] {
        let answer = operators.with(&["-H", &format!("Host: {host}")]).get("/api/phones");
        assert_eq!(answer.status, 421, "{host}: {answer:?}");
        assert!(!answer.body.contains(VVX500));
    }
    for host in ["localhost", "provost.example.com", "[::1]"] {
        let host = format!("Host: {host}");
        assert_eq!(stranger.with(&["-H", &host]).get("/api/phones").status, 401, "{host}");
        assert_eq!(operators.with(&["-H", &host]).get("/api/phones").status, 200, "{host}");
    }
    // A page of another site may link here, but not send requests, which could use up the connections.
    for path in ["/events", "/api/phones", "/"] {
        for mode in ["no-cors", "cors"] {
            let mode = format!("Sec-Fetch-Mode: {mode}");
            let asking = operators.with(&["-H", "Sec-Fetch-Site: cross-site", "-H", &mode]);
            assert_eq!(asking.get(path).status, 403, "{path} {mode}");
        }
    }
    let link = ["-H", "Sec-Fetch-Site: cross-site", "-H", "Sec-Fetch-Mode: navigate", "-H", "Sec-Fetch-Dest: document"];
    assert_eq!(operators.with(&link).get("/").status, 200);
    // A form or a script of another site, even with the token or a session.
    for other in
        ["Origin: http://evil.example.com", "Origin: null", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site"]
    {
        let answer = operators.with_token(TOKEN).with(&["-H", other]).post("/api/allow", &wanted());
        assert_eq!(answer.status, 403, "{other}: {answer:?}");
    }
    assert!(!std::fs::read_to_string(site.served("ote/constituency.json")).unwrap().contains(STRANGER));
    assert_eq!(operators.with_token(TOKEN).post("/api/allow", &wanted()).status, 200);
}

#[test]
fn browser_signs_in_allows_a_phone_and_signs_out() {
    let site = site("0.0.0.0:0");
    let server = site.start();
    let operators = stranger(&server);
    let origin = format!("Origin: {}", operators.base);
    let here = operators.with(&["-H", &origin]);
    let form = here.get("/sign-in").body;
    assert!(form.contains("<code>token_file</code>") && form.contains("<code>state/status-token</code>"), "{form}");
    let wrong = here.with(&["--data", "token=wrong-token-0123456789"]).get("/sign-in");
    assert_eq!(wrong.status, 401);
    assert!(!wrong.headers.contains_key("set-cookie"), "{wrong:?}");
    let answer = here.with(&["--data", &format!("token={TOKEN}")]).get("/sign-in");
    assert_eq!((answer.status, answer.headers["location"].as_str()), (303, "/"));
    let cookie = &answer.headers["set-cookie"];
    assert!(cookie.contains("; HttpOnly") && cookie.contains("; SameSite=Strict"), "{cookie}");
    assert!(!cookie.contains(TOKEN), "{cookie}");
    let session = format!("Cookie: {}", cookie.split(';').next().unwrap());
    let browser = operators.with(&["-H", &session]);
    assert_eq!(browser.get("/api/phones").status, 200);
    assert_eq!(browser.get("/").status, 200);

    let form = format!("mac={STRANGER}&constituency=ote&note=the+hall");
    assert_eq!(browser.with(&["--data", &form]).get("/allow").status, 403, "without Origin and Sec-Fetch-Site");
    let elsewhere = ["-H", "Origin: http://evil.example.com", "--data", &form];
    assert_eq!(browser.with(&elsewhere).get("/allow").status, 403);
    let allowed = browser.with(&["-H", &origin, "--data", &form]).get("/allow");
    assert_eq!(allowed.status, 303, "{allowed:?}");
    assert!(std::fs::read_to_string(site.served("ote/constituency.json")).unwrap().contains("the hall"));

    let out = browser.with(&["-H", &origin, "--data", ""]).get("/sign-out");
    assert!(out.headers["set-cookie"].contains("Max-Age=0"), "{out:?}");
    // The session ends when the token changes.
    write_token(&site, "another-token-0123456789", 0o600);
    server.signal(Signal::HUP);
    within_a_second("the session to end", || (browser.get("/api/phones").status == 401).then_some(()));
    // The session ends with the process.
    write_token(&site, TOKEN, 0o600);
    server.kill();
    let server = site.start();
    let again = stranger(&server).with(&["-H", &session]);
    assert_eq!(again.get("/api/phones").status, 401);
}

#[test]
fn session_cookie_behind_https_is_secure_and_host_only() {
    let site = site("127.0.0.1:0");
    let server = site.start();
    let proxied = stranger(&server).with(&["-H", "Host: provost.example.com"]);
    let page = proxied.with(&["-H", "Origin: https://provost.example.com"]);
    let answer = page.with(&["--data", &format!("token={TOKEN}")]).get("/sign-in");
    let cookie = &answer.headers["set-cookie"];
    assert!(cookie.starts_with("__Host-provost_session=") && cookie.ends_with("; SameSite=Strict; Secure"), "{cookie}");
    assert!(cookie.contains("; Path=/;") && !cookie.contains("Domain"), "{cookie}");
    let value = cookie.split(['=', ';']).nth(1).unwrap();
    let status = |name: &str| proxied.with(&["-H", &format!("Cookie: {name}={value}")]).get("/api/phones").status;
    let names = ["__Host-provost_session", "provost_session", "__Secure-provost_session", "provost_token"];
    assert_eq!(names.map(status), [200, 401, 401, 401]);
    let cookie = format!("Cookie: __Host-provost_session={value}");
    let out = page.with(&["-H", &cookie, "--data", ""]).get("/sign-out").headers["set-cookie"].clone();
    assert!(out.starts_with("__Host-provost_session=; Max-Age=0;") && out.ends_with("; Secure"), "{out}");
}

#[test]
fn unix_socket_is_group_only_and_replaced_after_a_crash() {
    let site = site("unix:status.sock");
    let socket = site.path("status.sock");
    let server = site.start();
    let found = std::fs::symlink_metadata(&socket).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o660);
    let operators = Operators::of(&server);
    assert_eq!(operators.get("/api/overview").status, 200);
    assert_eq!(operators.with(&["-H", "Host: evil.example.com"]).get("/api/overview").status, 421);
    assert_eq!(operators.without_token().post("/api/allow", &wanted()).status, 401);
    server.kill();
    assert!(socket.exists(), "the socket is left by a crash");
    let server = site.start();
    assert_eq!(Operators::of(&server).get("/healthz").status, 200);
    server.signal(Signal::TERM);
    assert!(server.wait().success());
    assert!(!socket.exists(), "a regular shutdown removes it");

    let other = UnixListener::bind(&socket).unwrap();
    let ended = run(&mut site.command());
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("another process listens on it"), "{ended:?}");
    drop(other);
    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "precious").unwrap();
    let ended = run(&mut site.command());
    assert!(ended.code == 1 && ended.stderr.contains("the path exists and is not a socket"), "{ended:?}");
    assert_eq!(std::fs::read(&socket).unwrap(), b"precious");
}

#[test]
fn invalid_api_requests_get_the_matching_status() {
    let site = site("127.0.0.1:0");
    let server = site.start();
    let operators = Operators::of(&server);
    let ours = &operators;
    for (path, status) in [
        ("/nothing", 404),
        ("/api/phones/ote", 404),
        ("/api/phones/ote/00005e0053ff", 404),
        ("/api/phones/nobody/00005e00530c", 404),
        ("/phones/ote/xyz", 404),
        ("/../../etc/passwd", 404),
        ("/api/phones?state=odd", 400),
        ("/api/phones?offset=x", 400),
    ] {
        assert_eq!(operators.get(path).status, status, "{path}");
    }
    for (method, path, allow) in [
        ("DELETE", "/api/phones", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
        ("PUT", "/", "GET, HEAD"),
        ("GET", "/api/allow", "POST"),
        ("GET", "/sign-out", "POST"),
    ] {
        let answer = ours.with(&["-X", method]).get(path);
        assert_eq!((answer.status, answer.headers["allow"].as_str()), (405, allow), "{method} {path}");
    }
    let posted = |json: serde_json::Value| ours.post("/api/allow", &json).status;
    assert_eq!(posted(json!({ "mac": "x", "constituency": "ote" })), 400);
    assert_eq!(posted(json!({ "mac": "000000000000", "constituency": "ote" })), 400);
    assert_eq!(posted(json!({ "mac": STRANGER, "constituency": "../ote" })), 400);
    assert_eq!(posted(json!({ "mac": STRANGER, "constituency": "nobody" })), 409);
    assert_eq!(posted(json!({ "mac": STRANGER, "constituency": "ote", "frob": 1 })), 400);
    assert_eq!(posted(json!({ "mac": STRANGER, "constituency": "ote", "note": "a\nb" })), 400);
    assert_eq!(posted(json!({ "mac": STRANGER, "constituency": "ote", "note": "x".repeat(513) })), 400);
    assert_eq!(posted(json!({ "mac": STRANGER, "constituency": "ote", "note": "x".repeat(9000) })), 413);
    assert_eq!(ours.with(&["--data", "mac=1"]).get("/api/allow").status, 415);
    assert!(!std::fs::read_to_string(site.served("ote/constituency.json")).unwrap().contains(STRANGER));
    let head = operators.with(&["--head"]).get("/api/overview");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

fn connect(operators: &Operators) -> Socket {
    let stream = Socket::connect(operators.base.strip_prefix("http://").unwrap().parse().unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// The same from another address of this machine.
fn connect_from(operators: &Operators, from: [u8; 4]) -> Socket {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from((from, 0))).unwrap();
    let to: SocketAddr = operators.base.strip_prefix("http://").unwrap().parse().unwrap();
    connect(&socket, &to).unwrap();
    let stream = Socket::of(socket.into()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// The bytes until the other end closes.
fn rest(mut stream: Socket) -> String {
    let mut bytes = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn slow_and_greedy_operator_clients_do_not_affect_phones() {
    let site = site("127.0.0.1:0");
    let server = site.start();
    let operators = Operators::of(&server);
    let mut slow_header = connect(&operators);
    slow_header.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n").unwrap();
    let mut slow_body = connect(&operators);
    write!(
        slow_body,
        "POST /api/allow HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\
         Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
    )
    .unwrap();
    let mut garbage = connect(&operators);
    garbage.write_all(b"\x16\x03\x01\x02\x00\x01").unwrap();
    let mut large = connect(&operators);
    // It may be refused before it is read completely.
    let _ = write!(large, "GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    assert!(rest(large).starts_with("HTTP/1.1 431"));
    // More than the limit: one address gets only a part of the connections.
    let mut idle: Vec<Socket> = (0..60).map(|_| connect(&operators)).collect();
    server.says("per client reached by 127.0.0.1");
    idle.extend((0..200).map(|number| connect_from(&operators, [127, 0, 1, number % 5])));
    server.says("connection limit of 128 reached");
    let phone = server.client("ote", &FACTORY.device(VVX500));
    for _ in 0..20 {
        assert_eq!(phone.get("/site.cfg").unwrap().status, 200);
    }
    assert_eq!(rest(slow_header), "");
    assert!(rest(slow_body).starts_with("HTTP/1.1 408"));
    rest(garbage);
    drop(idle);
    eventually("a slot for an operator", || {
        let ended = run(&mut operators.curl("/healthz"));
        ended.stdout.starts_with("HTTP/1.1 200").then_some(())
    });
}

#[test]
fn idle_connections_do_not_block_operators() {
    let site = site("127.0.0.1:0");
    let server = site.start();
    let operators = Operators::of(&server);
    let scrape = |last: &str| operators.with(&["--interface", last]).get("/readyz");
    // Those that have sent nothing, or a part of a request, and those that are idle after one.
    for beginning in ["", "GET /hea", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
        let idle: Vec<Socket> = (0..160)
            .map(|number| {
                let mut socket = connect_from(&operators, [127, 0, 1, number % 5]);
                socket.write_all(beginning.as_bytes()).unwrap();
                if beginning.ends_with("\r\n\r\n") {
                    assert!(socket.read(&mut [0; 4096]).unwrap() > 0);
                }
                socket
            })
            .collect();
        for last in ["127.0.0.9", "127.0.1.1"] {
            assert_eq!(scrape(last).body, "ready\n", "{beginning:?} {last}");
        }
        server.says("connection limit of 128 reached");
        drop(idle);
    }
}

#[test]
fn event_streams_are_not_closed_for_new_connections() {
    let site = site("127.0.0.1:0");
    let server = site.start();
    let operators = Operators::of(&server);
    let mut stream = connect(&operators);
    let head = format!("GET /events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
    let idle: Vec<Socket> = (0..100).map(|_| connect(&operators)).collect();
    server.says("per client reached by 127.0.0.1");
    assert_eq!(operators.get("/readyz").body, "ready\n");
    stream.set_nonblocking(true).unwrap();
    let is_open = || match stream.peek(&mut [0; 1]) {
        Ok(count) => count > 0,
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    };
    assert!(is_open());
    drop(idle);
}

#[test]
fn one_address_cannot_use_all_operator_connections() {
    let site = site("127.0.0.1:0");
    let server = site.start();
    let operators = Operators::of(&server);
    let idle: Vec<Socket> = (0..200).map(|_| connect(&operators)).collect();
    server.says("per client reached by 127.0.0.1");
    let other = operators.with(&["--interface", "127.0.0.2"]);
    assert_eq!((other.get("/healthz").status, other.get("/api/overview").status), (200, 200));
    drop(idle);
}

#[test]
fn refused_request_does_not_hold_a_slot_with_its_body() {
    let site = site("127.0.0.1:0");
    let server = site.start();
    let operators = Operators::of(&server);
    let post = |path: &str, host: &str, more: &str| {
        let mut stream = connect(&operators);
        write!(stream, "POST {path} HTTP/1.1\r\nHost: {host}\r\n{more}Content-Length: 100\r\n\r\n").unwrap();
        stream
    };
    let mut slow = None;
    for (path, host, more, status) in [
        ("/api/allow", "localhost", "", 401),
        ("/allow", "localhost", "Authorization: Bearer wrong-token-0123456789\r\n", 401),
        ("/sign-in", "evil.example.com", "", 421),
        ("/sign-in", "localhost", "Origin: http://evil.example.com\r\n", 403),
        // A sign-in request has a timeout of its own.
        ("/sign-in", "localhost", "", 408),
        ("/sign-out", "localhost", "", 401),
    ] {
        if status == 408 && slow.is_none() {
            slow = Some(post("/allow", "localhost", &format!("Authorization: Bearer {TOKEN}\r\n")));
        }
        let answer = rest(post(path, host, more));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {host} {more}: {answer}");
    }
    // A signed-in operator has longer than both together.
    let mut slow = slow.unwrap();
    slow.set_nonblocking(true).unwrap();
    assert_eq!(slow.read(&mut [0; 1]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    // Without a token, nothing is delayed.
    let mut without = Site::with_ote();
    without.config["status"] = json!({ "listen": "127.0.0.1:0" });
    let server = without.start();
    let mut stream = connect(&Operators::of(&server));
    write!(stream, "POST /sign-in HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n").unwrap();
    let answer = rest(stream);
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("sign-in is disabled"), "{answer}");
}
