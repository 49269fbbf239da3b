//! Who may pass the gate, and who may not.

use super::*;
use hyper::Request;

const NOW: i64 = 1_800_000_000;
const TOKEN: &str = "0123456789abcdef";

fn token() -> (tempfile::NamedTempFile, Token) {
    use std::io::Write;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(TOKEN.as_bytes()).unwrap();
    let token = Token::open(Some(file.path())).unwrap();
    (file, token)
}

fn gate(listen: &str, hosts: &[&str]) -> Gate {
    let listen: Endpoint = listen.parse().unwrap();
    let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
    let settings = StatusSettings { listen: listen.clone(), token_file: None, hosts };
    Gate::new(&settings, &listen)
}

fn request(method: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri("/api/phones");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

/// The status with which `headers` are barred from something for operators; 0 if they are not.
fn barred(gate: &Gate, token: &Token, method: &str, headers: &[(&str, &str)]) -> u16 {
    let checked = gate.check(&request(method, headers), Exposure::Operators, token, NOW);
    checked.err().map_or(0, |barred| barred.status.as_u16())
}

#[test]
fn only_our_own_names_are_hosts() {
    let none = Token::open(None).unwrap();
    let at = |gate: &Gate, host: &str| {
        let checked = gate.check(&request("GET", &[("Host", host)]), Exposure::Public, &none, NOW);
        checked.err().map_or(0, |barred| barred.status.as_u16())
    };
    let loopback = gate("127.0.0.1:8444", &["Provost.Example.com", "other.example.com:99"]);
    for ours in [
        "localhost",
        "LOCALHOST:8444",
        "127.0.0.1:8444",
        "127.8.8.8",
        "[::1]:8444",
        "provost.example.com",
        "provost.example.com:443",
        "other.example.com",
    ] {
        assert_eq!(at(&loopback, ours), 0, "{ours}");
    }
    for strange in
        ["evil.example.com", "localhost.evil.example.com", "192.0.2.1", "", "a b", "0.0.0.0", "evil.localhost"]
    {
        assert_eq!(at(&loopback, strange), 421, "{strange}");
    }
    assert_eq!(barred(&loopback, &none, "GET", &[]), 421);
    assert_eq!(barred(&loopback, &none, "GET", &[("Host", "localhost"), ("Host", "localhost")]), 421);
    // A page whose host is an address is of whoever has that address: no name leads astray.
    let (_file, token) = token();
    let bearer = ("Authorization", "Bearer 0123456789abcdef");
    let open = gate("0.0.0.0:8444", &[]);
    assert_eq!(barred(&open, &token, "GET", &[("Host", "192.0.2.1:8444"), bearer]), 0);
    assert_eq!(barred(&open, &token, "GET", &[("Host", "evil.example.com"), bearer]), 421);
    assert_eq!(barred(&gate("192.0.2.1:1", &[]), &token, "GET", &[("Host", "192.0.2.1:1"), bearer]), 0);
    assert_eq!(barred(&gate("[2001:db8::1]:1", &[]), &token, "GET", &[("Host", "[2001:db8::1]:1"), bearer]), 0);
}

#[test]
fn the_targets_own_authority_must_be_ours_too() {
    let (gate, none) = (gate("127.0.0.1:8444", &[]), Token::open(None).unwrap());
    let at = |uri: &str| {
        let request = Request::builder().uri(uri).header("Host", "localhost").body(()).unwrap();
        gate.check(&request.into_parts().0, Exposure::Public, &none, NOW).is_ok()
    };
    assert!(at("http://localhost/") && !at("http://evil.example.com/"));
}

#[test]
fn whatever_changes_anything_needs_the_token_and_no_other_site() {
    let (_file, token) = token();
    let gate = gate("127.0.0.1:8444", &[]);
    let host = ("Host", "localhost:8444");
    let bearer = ("Authorization", "Bearer 0123456789abcdef");
    let session = format!("x=1; {COOKIE_NAME}={}", token.session(NOW).unwrap());
    let cookie = ("Cookie", session.as_str());
    let post = |headers: &[(&str, &str)]| barred(&gate, &token, "POST", &[&[host], headers].concat());
    assert_eq!(post(&[]), 401);
    assert_eq!(post(&[("Authorization", "Bearer 0123456789abcdeg")]), 401);
    assert_eq!(post(&[("Authorization", "Basic 0123456789abcdef")]), 401);
    assert_eq!(post(&[bearer]), 0);
    assert_eq!(post(&[("Authorization", "bearer  0123456789abcdef ")]), 0);
    assert_eq!(post(&[cookie]), 403, "a browser says where its page is from");
    for same in [("Sec-Fetch-Site", "same-origin"), ("Origin", "http://localhost:8444")] {
        assert_eq!(post(&[cookie, same]), 0, "{same:?}");
    }
    for other in [
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
        ("Origin", "http://evil.example.com"),
        ("Origin", "http://localhost:9999"),
        ("Origin", "null"),
    ] {
        assert_eq!(post(&[cookie, other]), 403, "{other:?}");
        assert_eq!(post(&[bearer, other]), 403, "{other:?}");
    }
    assert_eq!(post(&[cookie, ("Sec-Fetch-Site", "same-origin"), ("Authorization", "Bearer wrong")]), 401);
    let none = Token::open(None).unwrap();
    assert_eq!(barred(&gate, &none, "POST", &[host, ("Authorization", "Bearer ")]), 403);
}

#[test]
fn where_others_can_connect_everything_needs_the_token() {
    let (_file, token) = token();
    let open = gate("0.0.0.0:8444", &[]);
    let host = ("Host", "127.0.0.1:8444");
    assert_eq!(barred(&open, &token, "GET", &[host]), 401);
    assert_eq!(barred(&open, &token, "GET", &[host, ("Authorization", "Bearer 0123456789abcdef")]), 0);
    assert!(open.check(&request("GET", &[host]), Exposure::Public, &token, NOW).is_ok());
    let private = gate("127.0.0.1:8444", &[]);
    assert_eq!(barred(&private, &token, "GET", &[host]), 0);
    assert_eq!(barred(&private, &token, "GET", &[host, ("Authorization", "Bearer wrong")]), 401);
}

#[test]
fn who_shows_a_token_where_there_is_none_is_told_so_and_not_of_a_proxy() {
    let (gate, none) = (gate("127.0.0.1:8444", &[]), Token::open(None).unwrap());
    let shows = request("GET", &[("Host", "localhost"), ("Authorization", "Bearer x")]);
    let barred = gate.check(&shows, Exposure::Operators, &none, NOW).unwrap_err();
    assert_eq!(barred.status, StatusCode::FORBIDDEN);
    assert!(barred.reason.contains("names no \"token_file\"") && !barred.reason.contains("proxy"), "{barred:?}");
}

#[test]
fn who_comes_through_a_proxy_is_not_of_this_machine() {
    let (_file, token) = token();
    let none = Token::open(None).unwrap();
    let bearer = ("Authorization", "Bearer 0123456789abcdef");
    let local = ("Host", "localhost:8444");
    for listen in ["127.0.0.1:8444", "[::1]:8444", "unix:s"] {
        let gate = gate(listen, &["provost.example.com"]);
        assert_eq!(barred(&gate, &token, "GET", &[local]), 0, "{listen}");
        let by_name = ("Host", "provost.example.com");
        assert_eq!(barred(&gate, &token, "GET", &[by_name]), 401, "{listen}");
        assert_eq!(barred(&gate, &token, "GET", &[by_name, bearer]), 0, "{listen}");
        let marks = ["Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP"];
        for mark in marks.map(|name| (name, "192.0.2.1")) {
            assert_eq!(barred(&gate, &token, "GET", &[local, mark]), 401, "{listen} {mark:?}");
            assert_eq!(barred(&gate, &none, "GET", &[local, mark]), 403, "{listen} {mark:?}");
            assert_eq!(barred(&gate, &token, "GET", &[local, mark, bearer]), 0, "{listen} {mark:?}");
        }
        let mut old = request("GET", &[local]);
        old.version = Version::HTTP_10;
        assert_eq!(gate.check(&old, Exposure::Operators, &token, NOW).unwrap_err().status, 401, "{listen}");
        assert!(gate.check(&old, Exposure::Public, &token, NOW).is_ok(), "{listen}");
    }
}

#[test]
fn a_page_of_another_site_may_lead_here_but_not_ask() {
    let (gate, none) = (gate("127.0.0.1:8444", &[]), Token::open(None).unwrap());
    let asks = |method: &str, site: &str, mode: &str, dest: &str| {
        let fetch = [("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", mode), ("Sec-Fetch-Dest", dest)];
        barred(&gate, &none, method, &[&[("Host", "localhost")], &fetch[..]].concat())
    };
    for ours in ["same-origin", "none"] {
        assert_eq!(asks("GET", ours, "cors", "empty"), 0, "{ours}");
    }
    for other in ["cross-site", "same-site"] {
        assert_eq!(asks("GET", other, "no-cors", "image"), 403, "{other}");
        assert_eq!(asks("GET", other, "cors", "empty"), 403, "{other}");
        assert_eq!(asks("GET", other, "navigate", "iframe"), 403, "{other}");
        assert_eq!(asks("HEAD", other, "navigate", "document"), 403, "{other}");
        assert_eq!(asks("GET", other, "navigate", "document"), 0, "{other}");
    }
}
