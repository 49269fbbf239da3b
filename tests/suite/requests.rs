//! The order of request checks, and the valid Host headers and methods.

use serde_json::json;

use crate::harness::pki::FACTORY;
use crate::harness::site::{Running, Site};
use crate::harness::tls::Client;
use crate::harness::{STRANGER, VVX500, VVX550};

const HOST: &str = "ote.phones.example.com";

/// `ote`, which lists VVX500 and denies VVX550, and `prod`.
fn site() -> Site {
    let site = Site::with_ote();
    let policy = json!({ "trust": ["factory"], "phones": { VVX500: "", VVX550: "" }, "denied": [VVX550],
                         "aliases": ["trial"] });
    site.constituency("ote", &policy);
    site.constituency("prod", &json!({ "trust": ["factory"], "phones": "any" }));
    site.file("prod/site.cfg", "<prod/>");
    for mac in [VVX500, VVX550] {
        site.file(&format!("ote/{mac}.cfg"), mac);
    }
    site
}

/// Sends a raw request line and header, and returns the status and reason in the access log.
fn ask(server: &Running, mac: &str, line: &str, header: &str) -> (u16, String) {
    let nonce = nonce();
    let mut connection = server.client("ote", &FACTORY.device(mac)).connect().unwrap();
    connection.send(format!("{line} HTTP/1.1\r\n{header}User-Agent: {nonce}\r\n\r\n").as_bytes()).unwrap();
    let method = line.split(' ').next().unwrap();
    let response = connection.response(method).unwrap_or_else(|error| panic!("{line:?} {header:?}: {error}"));
    let logged = server.access(line, |record| record["user_agent"] == nonce.as_str());
    assert_eq!(logged["status"], response.status, "{line:?}");
    (response.status, logged["reason"].as_str().unwrap_or_default().to_owned())
}

fn nonce() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("nonce-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

#[test]
fn request_checks_run_in_the_documented_order() {
    let site = site();
    let server = site.start();
    let good = format!("Host: {HOST}\r\n");
    let elsewhere = "Host: prod.phones.example.com\r\n";
    let cases = [
        // Framing and Host are checked first; among them, an invalid Host before another constituency's.
        (STRANGER, "DELETE /a/../b", "", 400, "no Host header"),
        (STRANGER, "DELETE /a/../b", "Host: a b\r\n", 400, "a malformed Host header"),
        (STRANGER, "DELETE /a/../b", elsewhere, 421, "is not the constituency"),
        (STRANGER, "GET /00005e00530c.cfg", elsewhere, 421, "is not the constituency"),
        // The method before the path.
        (STRANGER, "DELETE /a/../b", &good, 405, "the method DELETE is not allowed"),
        (STRANGER, "OPTIONS *", &good, 405, "the method OPTIONS is not allowed"),
        // The path before the phone.
        (STRANGER, "GET /a/../00005e00530c.cfg", &good, 400, "the path contains"),
        (VVX550, "GET /a%2fb", &good, 400, "encoded slash"),
        // The phone before its files, whether they exist or not, and for every path.
        (STRANGER, "GET /00005e00530c.cfg", &good, 403, "00005e0053aa is not known to ote"),
        (STRANGER, "GET /00005e0053aa.cfg", &good, 403, "00005e0053aa is not known to ote"),
        (STRANGER, "GET /constituency.json", &good, 403, "is not known to ote"),
        (STRANGER, "GET /absent", &good, 403, "is not known to ote"),
        (STRANGER, "GET /", &good, 403, "is not known to ote"),
        (VVX550, "GET /00005e0053c7.cfg", &good, 403, "00005e0053c7 is denied by ote"),
        // Another phone's files before files that are never served.
        (VVX500, "GET /00005e0053c7.cfg", &good, 403, "the path holds 00005e0053c7"),
        (VVX500, "GET /.00005e0053c7~", &good, 403, "the path holds 00005e0053c7"),
        (VVX500, "GET /00005e0053c7/constituency.json", &good, 403, "the path holds 00005e0053c7"),
        // Files that are never served before missing ones.
        (VVX500, "GET /constituency.json", &good, 404, "never served"),
        (VVX500, "GET /.absent", &good, 404, "never served"),
        (VVX500, "GET /", &good, 404, "a folder"),
        (VVX500, "GET /absent", &good, 404, "no such file"),
        (VVX500, "GET /site.cfg", &good, 200, ""),
    ];
    for (mac, line, header, status, reason) in cases {
        let (got, why) = ask(&server, mac, line, header);
        assert_eq!(got, status, "{mac} {line:?} {header:?}: {why}");
        assert!(why.contains(reason) && why.is_empty() == reason.is_empty(), "{mac} {line:?}: {why:?}");
    }
}

#[test]
fn host_must_name_the_constituency_in_any_spelling() {
    let site = site();
    let server = site.start();
    let bad = [
        ("", 400),
        ("Host:\r\n", 400),
        ("Host: .\r\n", 400),
        ("Host: ote.phones.example.com:0\r\n", 400),
        ("Host: ote.phones.example.com:65536\r\n", 400),
        ("Host: ote.phones.example.com::\r\n", 400),
        ("Host: me@ote.phones.example.com\r\n", 400),
        ("Host: ote.phones.example.com, ote.phones.example.com\r\n", 400),
        ("Host: ote.phones.example.com\r\nHost: ote.phones.example.com\r\n", 400),
        ("Host: ote.phones.example.com\r\nhost: prod.phones.example.com\r\n", 400),
        ("Host: prod.phones.example.com\r\n", 421),
        ("Host: phones.example.com\r\n", 421),
        ("Host: a.ote.phones.example.com\r\n", 421),
        ("Host: ote.phones.example.com.evil.example\r\n", 421),
        ("Host: ote\r\n", 421),
        // An address is a valid Host only for clients without SNI.
        ("Host: 127.0.0.1\r\n", 421),
        ("Host: [::1]:443\r\n", 421),
    ];
    for (header, status) in bad {
        assert_eq!(ask(&server, VVX500, "GET /site.cfg", header).0, status, "{header:?}");
    }
    for good in [
        "ote.phones.example.com",
        "OTE.Phones.Example.Com",
        "ote.phones.example.com.",
        "ote.phones.example.com:8443",
        "ote.phones.example.com:",
    ] {
        assert_eq!(ask(&server, VVX500, "GET /site.cfg", &format!("Host: {good}\r\n")).0, 200, "{good}");
    }
    for alias in ["trial.phones.example.com", "TRIAL.phones.example.com.:1"] {
        assert_eq!(ask(&server, VVX500, "GET /site.cfg", &format!("Host: {alias}\r\n")).0, 200, "{alias}");
    }
    let by_alias = server.client("trial", &FACTORY.device(VVX500));
    for host in ["trial.phones.example.com", HOST] {
        assert_eq!(by_alias.clone().host(host).get("/site.cfg").unwrap().text(), "<site/>", "{host}");
    }
}

#[test]
fn absolute_form_target_must_match_host() {
    let site = site();
    let server = site.start();
    let good = format!("Host: {HOST}\r\n");
    for target in [
        "https://ote.phones.example.com/site.cfg",
        "http://OTE.phones.example.com:8443/site.cfg",
        "https://ote.phones.example.com./site.cfg",
    ] {
        assert_eq!(ask(&server, VVX500, &format!("GET {target}"), &good).0, 200, "{target}");
    }
    for target in [
        "https://prod.phones.example.com/site.cfg",
        "https://trial.phones.example.com/site.cfg",
        "https://me@ote.phones.example.com/site.cfg",
        "https://127.0.0.1/site.cfg",
    ] {
        let (status, reason) = ask(&server, VVX500, &format!("GET {target}"), &good);
        assert_eq!((status, reason.as_str()), (400, "the request target names another host than the Host header"));
    }
    let both = "Host: prod.phones.example.com\r\n";
    assert_eq!(ask(&server, VVX500, "GET https://prod.phones.example.com/site.cfg", both).0, 421);
    assert_eq!(ask(&server, VVX500, &format!("GET https://{HOST}/site.cfg"), "").0, 400, "Host must be there too");
    assert_eq!(ask(&server, VVX500, &format!("GET https://{HOST}"), &good).0, 404, "the folder itself");
}

/// Sends these bytes as a request on a new connection and returns the response.
fn answer(client: &Client, request: &str) -> crate::harness::tls::Response {
    let mut connection = client.connect().unwrap();
    connection.send(request.as_bytes()).unwrap();
    connection.response("GET").unwrap_or_else(|error| panic!("{request:?}: {error}"))
}

#[test]
fn http_1_0_without_host_uses_the_constituency_of_the_sni() {
    let site = site();
    let server = site.start();
    let phone = server.client("ote", &FACTORY.device(VVX500));
    for request in ["GET /site.cfg HTTP/1.0\r\n\r\n", "GET https://ote.phones.example.com:/site.cfg HTTP/1.0\r\n\r\n"] {
        assert_eq!(answer(&phone, request).text(), "<site/>", "{request:?}");
    }
    for (request, status) in [
        // HTTP/1.0 may send a Host, which then counts.
        ("GET /site.cfg HTTP/1.0\r\nHost: prod.phones.example.com\r\n\r\n", 421),
        ("GET https://prod.phones.example.com/site.cfg HTTP/1.0\r\n\r\n", 421),
        ("GET /site.cfg HTTP/1.0\r\nHost: a b\r\n\r\n", 400),
        ("GET /site.cfg HTTP/1.0\r\nHost: ote.phones.example.com\r\nHost: ote.phones.example.com\r\n\r\n", 400),
        ("GET /site.cfg HTTP/1.1\r\n\r\n", 400),
        // Access is as in HTTP/1.1.
        ("GET /00005e0053c7.cfg HTTP/1.0\r\n\r\n", 403),
    ] {
        assert_eq!(answer(&phone, request).status, status, "{request:?}");
    }
    let stranger = server.client("ote", &FACTORY.device(STRANGER));
    assert_eq!(answer(&stranger, "GET /site.cfg HTTP/1.0\r\n\r\n").status, 403);
}

#[test]
fn http_1_0_without_host_and_sni_uses_no_sni() {
    let mut site = site();
    site.config["no_sni"] = "ote".into();
    let server = site.start();
    let phone = Client::new(server.address(), None).with_identity(&FACTORY.device(VVX500));
    assert_eq!(answer(&phone, "GET /site.cfg HTTP/1.0\r\n\r\n").text(), "<site/>");
    assert_eq!(answer(&phone, "GET /site.cfg HTTP/1.1\r\n\r\n").status, 400);
    // The constituency for such clients may have changed since the connection was opened.
    let mut open = phone.connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    site.config["no_sni"] = "prod".into();
    site.write_config();
    server.signal(rustix::process::Signal::HUP);
    server.says("trust bundles and folders reloaded");
    open.send(b"GET /site.cfg HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(open.response("GET").unwrap().status, 400);
    server.reason("no Host header, and \"no_sni\"");
}

#[test]
fn request_for_another_host_closes_the_connection() {
    let site = site();
    let server = site.start();
    let client = server.client("ote", &FACTORY.device(VVX500));
    for host in ["prod.phones.example.com", "a b"] {
        let mut connection = client.clone().host(host).connect().unwrap();
        let response = connection.get("/site.cfg").unwrap();
        assert_eq!(response.header("connection"), Some("close"), "{host}: {response:?}");
        assert!(connection.is_closed(), "{host}");
    }
}

#[test]
fn no_sni_constituency_is_served_by_name_or_address() {
    let mut site = site();
    site.config["no_sni"] = "ote".into();
    let server = site.start();
    let client = |mac: &str| Client::new(server.address(), None).with_identity(&FACTORY.device(mac));
    for host in [HOST, "trial.phones.example.com:1", "127.0.0.1:8443", "192.0.2.9", "[::1]"] {
        assert_eq!(client(VVX500).host(host).get("/site.cfg").unwrap().text(), "<site/>", "{host}");
    }
    for host in ["prod.phones.example.com", "phones.example.com", "localhost"] {
        assert_eq!(client(VVX500).host(host).get("/site.cfg").unwrap().status, 421, "{host}");
    }
    assert_eq!(client(STRANGER).get("/site.cfg").unwrap().status, 403, "its whole policy applies");
    assert_eq!(client(VVX500).get("/00005e0053c7.cfg").unwrap().status, 403);
    let without_sni = Client::new(server.address(), None);
    assert!(without_sni.get("/site.cfg").is_err(), "and it requests a certificate");
}

#[test]
fn missing_no_sni_constituency_is_refused_and_logged() {
    let mut site = site();
    site.config["no_sni"] = "absent".into();
    let server = site.start();
    let client = Client::new(server.address(), None).with_identity(&FACTORY.device(VVX500));
    assert!(client.get("/site.cfg").is_err());
    server.reason("absent is not served");
}

#[test]
fn unsupported_method_gets_405_and_keeps_the_connection() {
    let site = site();
    let server = site.start();
    let mut phone = server.client("ote", &FACTORY.device(VVX500)).connect().unwrap();
    let methods = ["DELETE", "POST", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "MKCOL", "get", "BREW"];
    for method in methods {
        let response = phone.request(method, "/site.cfg", "", b"").unwrap();
        assert_eq!((response.status, response.header("allow")), (405, Some("GET, HEAD, PUT")), "{method}");
    }
    assert_eq!(phone.get("/site.cfg").unwrap().status, 200);
}

#[test]
fn connect_and_asterisk_targets_are_refused() {
    let site = site();
    let server = site.start();
    let good = format!("Host: {HOST}\r\n");
    assert_eq!(ask(&server, VVX500, "OPTIONS *", &good).0, 405);
    assert_eq!(ask(&server, VVX500, "GET *", &good).0, 400);
    assert_eq!(ask(&server, VVX500, &format!("CONNECT {HOST}:443"), &good).0, 405);
    assert_eq!(ask(&server, VVX500, "CONNECT example.com:443", &good).0, 400, "and is no proxy");
    assert_eq!(ask(&server, VVX500, "GET /site.cfg", &good).0, 200);
    assert!(server.stderr().iter().all(|line| !line.contains("panic")));
}

#[test]
fn public_constituency_serves_only_common_files_read_only() {
    let site = site();
    site.constituency("public", &json!({ "client_auth": "none" }));
    site.file("public/site.cfg", "<public/>");
    site.file("public/000000000000.cfg", "<everybody/>");
    site.file("public/00005e00530c.cfg", "secret");
    let server = site.start();
    let mut client = Client::new(server.address(), Some("public.phones.example.com")).connect().unwrap();
    assert_eq!(client.get("/site.cfg").unwrap().text(), "<public/>");
    assert_eq!(client.get("/000000000000.cfg").unwrap().text(), "<everybody/>");
    for path in ["/00005e00530c.cfg", "/00005E00530C.cfg", "/a/00-00-5e-00-53-0c.cfg", "/00005e0053ff.cfg"] {
        assert_eq!(client.get(path).unwrap().status, 404, "{path}");
    }
    for method in ["PUT", "DELETE"] {
        let response = client.request(method, "/00005e00530c-app.log", "", b"x").unwrap();
        assert_eq!((response.status, response.header("allow")), (405, Some("GET, HEAD")), "{method}");
    }
    let phone = server.client("public", &FACTORY.device(VVX500));
    assert_eq!(phone.get("/00005e00530c.cfg").unwrap().status, 404, "no certificate is requested, so no MAC is proven");
    server.access("a nameless request", |line| line["path"] == "/site.cfg" && line["mac"].is_null());
}
