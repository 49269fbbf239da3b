//! Which requests are accepted, and which are refused.

use std::path::Path;

use hyper::Request;

use super::*;
use crate::admin::operators::file::{self, Rights};
use crate::{clock, state};

const NOW: i64 = 1_800_000_000;
const TOKEN: &str = "0123456789abcdef";

/// The operators with [`TOKEN`] in `token_file`, and those that `add` adds.
fn operators(has_token_file: bool, add: impl FnOnce(&Path)) -> Arc<Operators> {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("token");
    state::write_private(&file, TOKEN.as_bytes()).unwrap();
    add(state.path());
    let file = has_token_file.then_some(file.as_path());
    Operators::open(file, state.path(), clock::now()).unwrap().operators()
}

fn token() -> Arc<Operators> {
    operators(true, |_| ())
}

fn none() -> Arc<Operators> {
    operators(false, |_| ())
}

fn guard(listen: &str, hosts: &[&str]) -> AccessGuard {
    let listen: Endpoint = listen.parse().unwrap();
    let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
    let settings = StatusSettings { listen: listen.clone(), token_file: None, hosts, ..StatusSettings::default() };
    AccessGuard::new(&settings, &listen)
}

fn request(method: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri("/api/phones");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

/// The status with which a local operators' request with `headers` is refused; 0 if it is accepted.
fn refusal(guard: &AccessGuard, token: &Operators, method: &str, headers: &[(&str, &str)]) -> u16 {
    refusal_from(ClientLocation::Local, guard, token, method, headers)
}

fn refusal_from(
    from: ClientLocation,
    guard: &AccessGuard,
    token: &Operators,
    method: &str,
    headers: &[(&str, &str)],
) -> u16 {
    let checked = guard.check(&request(method, headers), from, RouteAccess::Operators, token, NOW);
    checked.err().map_or(0, |refusal| refusal.status.as_u16())
}

/// A session of `guard` in the cookie `name`, as a browser sends it.
fn session(guard: &AccessGuard, token: &Operators, name: &str) -> String {
    let origin = if name.starts_with("__Host-") { "https://localhost" } else { "http://localhost" };
    let cookie = guard.session_cookie(&request("POST", &[("Origin", origin)]));
    assert_eq!(cookie.name, name);
    format!("x=1; {name}={}", token.begin_session(&cookie.scope, TOKEN.as_bytes(), NOW).unwrap())
}

#[test]
fn unknown_host_names_are_refused() {
    let none = none();
    let at = |guard: &AccessGuard, host: &str| {
        let checked =
            guard.check(&request("GET", &[("Host", host)]), ClientLocation::Remote, RouteAccess::Public, &none, NOW);
        checked.err().map_or(0, |refusal| refusal.status.as_u16())
    };
    let loopback = guard("127.0.0.1:8444", &["Provost.Example.com", "other.example.com:99"]);
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
        let probe = |method| {
            let request = request(method, &[("Host", strange)]);
            loopback.check(&request, ClientLocation::Local, RouteAccess::Probe, &none, NOW)
        };
        assert_eq!(probe("GET"), Ok(Principal::default()), "{strange}");
        assert_eq!(probe("POST").map_err(|refused| refused.status.as_u16()), Err(421), "{strange}");
    }
    assert_eq!(refusal(&loopback, &none, "GET", &[]), 421);
    assert_eq!(refusal(&loopback, &none, "GET", &[("Host", "localhost"), ("Host", "localhost")]), 421);
    // A page whose host is an IP address comes from that address: DNS rebinding is impossible.
    let token = token();
    let bearer = ("Authorization", "Bearer 0123456789abcdef");
    let open = guard("0.0.0.0:8444", &[]);
    assert_eq!(refusal(&open, &token, "GET", &[("Host", "192.0.2.1:8444"), bearer]), 0);
    assert_eq!(refusal(&open, &token, "GET", &[("Host", "evil.example.com"), bearer]), 421);
    assert_eq!(refusal(&guard("192.0.2.1:1", &[]), &token, "GET", &[("Host", "192.0.2.1:1"), bearer]), 0);
    assert_eq!(refusal(&guard("[2001:db8::1]:1", &[]), &token, "GET", &[("Host", "[2001:db8::1]:1"), bearer]), 0);
}

#[test]
fn unknown_authority_in_the_target_is_refused() {
    let (guard, none) = (guard("127.0.0.1:8444", &[]), none());
    let at = |uri: &str| {
        let request = Request::builder().uri(uri).header("Host", "localhost").body(()).unwrap();
        guard.check(&request.into_parts().0, ClientLocation::Remote, RouteAccess::Public, &none, NOW).is_ok()
    };
    assert!(at("http://localhost/") && !at("http://evil.example.com/"));
}

#[test]
fn changes_need_the_token_and_the_same_origin() {
    let token = token();
    let guard = guard("127.0.0.1:8444", &[]);
    let host = ("Host", "localhost:8444");
    let bearer = ("Authorization", "Bearer 0123456789abcdef");
    let session = session(&guard, &token, COOKIE_NAME);
    let cookie = ("Cookie", session.as_str());
    let post = |headers: &[(&str, &str)]| refusal(&guard, &token, "POST", &[&[host], headers].concat());
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
    let none = none();
    assert_eq!(refusal(&guard, &none, "POST", &[host, ("Authorization", "Bearer ")]), 403);
}

#[test]
fn reads_need_the_token_from_local_and_remote_clients() {
    let token = token();
    let bearer = ("Authorization", "Bearer 0123456789abcdef");
    for listen in ["0.0.0.0:8444", "127.0.0.1:8444", "[::1]:8444", "unix:s"] {
        let guard = guard(listen, &["provost.example.com"]);
        for peer in [ClientLocation::Local, ClientLocation::Remote] {
            for host in ["127.0.0.1:8444", "localhost", "[::1]", "provost.example.com"] {
                let host = ("Host", host);
                let refusal = |headers: &[(&str, &str)]| refusal_from(peer, &guard, &token, "GET", headers);
                assert_eq!(refusal(&[host]), 401, "{listen} {peer:?} {host:?}");
                assert_eq!(refusal(&[host, ("Authorization", "Bearer wrong")]), 401);
                assert_eq!(refusal(&[host, bearer]), 0, "{listen} {peer:?} {host:?}");
                let seen = guard.check(&request("GET", &[host]), peer, RouteAccess::Public, &token, NOW).unwrap();
                assert_eq!(seen, Principal::default(), "{listen} {peer:?} {host:?}");
            }
        }
    }
}

#[test]
fn without_token_only_local_clients_read_by_loopback_name() {
    let none = none();
    let guard = guard("127.0.0.1:8444", &["provost.example.com"]);
    for (peer, host, status) in [
        (ClientLocation::Local, "localhost:8444", 0),
        (ClientLocation::Local, "127.0.0.1", 0),
        (ClientLocation::Local, "[::1]:8444", 0),
        (ClientLocation::Local, "provost.example.com", 403),
        (ClientLocation::Remote, "localhost:8444", 403),
        (ClientLocation::Remote, "127.0.0.1:8444", 403),
    ] {
        assert_eq!(refusal_from(peer, &guard, &none, "GET", &[("Host", host)]), status, "{peer:?} {host}");
        let public = guard.check(&request("GET", &[("Host", host)]), peer, RouteAccess::Public, &none, NOW).unwrap();
        assert_eq!(public, Principal { operator: None, may_read: status == 0 }, "{peer:?} {host}");
        assert_eq!(refusal_from(peer, &guard, &none, "POST", &[("Host", host)]), 403, "{peer:?} {host}");
    }
}

#[test]
fn token_is_refused_where_none_is_configured() {
    let (guard, none) = (guard("127.0.0.1:8444", &[]), none());
    let shows = request("GET", &[("Host", "localhost"), ("Authorization", "Bearer x")]);
    let refusal = guard.check(&shows, ClientLocation::Local, RouteAccess::Operators, &none, NOW).unwrap_err();
    assert_eq!(refusal.status, StatusCode::FORBIDDEN);
    assert!(refusal.reason.contains("\"token_file\" is not set"), "{refusal:?}");
}

#[test]
fn proxy_headers_and_http_version_do_not_change_access() {
    let token = token();
    let none = none();
    let guard = guard("127.0.0.1:8444", &[]);
    let local = ("Host", "localhost:8444");
    let names = ["Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP"];
    for value in ["127.0.0.1", "for=127.0.0.1;host=localhost", "192.0.2.1", "unix:"] {
        for name in names {
            let mark = (name, value);
            for (token, local_status, remote_status) in [(&token, 401, 401), (&none, 0, 403)] {
                assert_eq!(
                    refusal_from(ClientLocation::Local, &guard, token, "GET", &[local, mark]),
                    local_status,
                    "{mark:?}"
                );
                assert_eq!(
                    refusal_from(ClientLocation::Remote, &guard, token, "GET", &[local, mark]),
                    remote_status,
                    "{mark:?}"
                );
            }
        }
    }
    for version in [hyper::Version::HTTP_10, hyper::Version::HTTP_11] {
        let mut asked = request("GET", &[local]);
        asked.version = version;
        let status = |token: &Operators| {
            guard.check(&asked, ClientLocation::Local, RouteAccess::Operators, token, NOW).map_err(|it| it.status)
        };
        assert_eq!(status(&token).unwrap_err(), 401, "{version:?}");
        assert!(status(&none).is_ok(), "{version:?}");
    }
}

#[test]
fn session_is_bound_to_its_cookie_name_and_listener() {
    let token = token();
    let ours = guard("127.0.0.1:8444", &[]);
    let host = ("Host", "localhost:8444");
    for name in [COOKIE_NAME, SECURE_COOKIE_NAME] {
        let cookie = session(&ours, &token, name);
        assert_eq!(refusal(&ours, &token, "GET", &[host, ("Cookie", &cookie)]), 0, "{name}");
        for other in [COOKIE_NAME, SECURE_COOKIE_NAME, "provost_csrf", "PROVOST_SESSION", "provost_session2"] {
            let renamed = cookie.replacen(name, other, 1);
            let status = if other == name { 0 } else { 401 };
            assert_eq!(refusal(&ours, &token, "GET", &[host, ("Cookie", &renamed)]), status, "{name} as {other}");
        }
        for elsewhere in ["127.0.0.1:8445", "[::1]:8444", "unix:s"] {
            let elsewhere = guard(elsewhere, &[]);
            assert_eq!(refusal(&elsewhere, &token, "GET", &[host, ("Cookie", &cookie)]), 401, "{elsewhere:?}");
        }
    }
}

#[test]
fn cross_site_links_work_and_cross_site_requests_fail() {
    let (guard, none) = (guard("127.0.0.1:8444", &[]), none());
    let asks = |method: &str, site: &str, mode: &str, dest: &str| {
        let fetch = [("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", mode), ("Sec-Fetch-Dest", dest)];
        refusal(&guard, &none, method, &[&[("Host", "localhost")], &fetch[..]].concat())
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

#[test]
fn reads_need_a_token_once_there_is_an_operator() {
    let mut token = String::new();
    let operators = operators(false, |state| {
        token = file::add(state, &"anna".parse().unwrap(), &Rights::default(), NOW, &|_| ()).unwrap();
    });
    let guard = guard("127.0.0.1:8444", &[]);
    let host = ("Host", "localhost:8444");
    let bearer = format!("Bearer {token}");
    assert_eq!(refusal(&guard, &operators, "GET", &[host]), 401);
    assert_eq!(refusal(&guard, &operators, "GET", &[host, ("Authorization", "Bearer 0123456789abcdef")]), 401);
    assert_eq!(refusal(&guard, &operators, "GET", &[host, ("Authorization", "Bearer ")]), 401);
    assert_eq!(refusal(&guard, &operators, "GET", &[host, ("Authorization", &bearer)]), 0);
    let probe = guard.check(&request("GET", &[host]), ClientLocation::Local, RouteAccess::Probe, &operators, NOW);
    assert_eq!(probe, Ok(Principal::default()));
}

#[test]
fn read_only_operator_reads_and_signs_out_and_changes_nothing() {
    let mut token = String::new();
    let operators = operators(true, |state| {
        token =
            file::add(state, &"anna".parse().unwrap(), &Rights { read_only: true, ..Rights::default() }, NOW, &|_| ())
                .unwrap();
    });
    let guard = guard("127.0.0.1:8444", &[]);
    let session = operators.begin_session(&guard.cookie(false).scope, token.as_bytes(), NOW).unwrap();
    let (bearer, cookie) = (format!("Bearer {token}"), format!("{COOKIE_NAME}={session}"));
    for proof in [("Authorization", bearer.as_str()), ("Cookie", cookie.as_str())] {
        let headers = [("Host", "localhost"), ("Origin", "http://localhost"), proof];
        let at = |method, access| {
            let checked = guard.check(&request(method, &headers), ClientLocation::Local, access, &operators, NOW);
            checked.map(|it| it.operator.unwrap().name.clone()).map_err(|refused| refused.status.as_u16())
        };
        assert_eq!(at("GET", RouteAccess::Operators), Ok("anna".to_owned()), "{proof:?}");
        assert_eq!(at("POST", RouteAccess::Operators), Err(403), "{proof:?}");
        assert_eq!(at("DELETE", RouteAccess::Operators), Err(403), "{proof:?}");
        assert_eq!(at("POST", RouteAccess::Session), Ok("anna".to_owned()), "{proof:?}");
    }
}
