//! Every linked figure leads to exactly the phones that it counts, on a site with phones in every state.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::Connection;
use serde_json::json;

use super::{sign_in, site_with_operators};
use crate::harness::browser::Browser;
use crate::harness::eventually;
use crate::harness::operators::Operators;
use crate::harness::pki::{FACTORY, Identity, device_params};
use crate::harness::site::{Running, Site};

/// The number of phones in each state in the first constituency. All numbers differ.
const STATES: [(&str, u32); 10] = [
    ("well", 3),
    ("silent", 4),
    ("never", 5),
    ("allowed", 1),
    ("waiting", 6),
    ("refused", 2),
    ("locked_out", 10),
    ("denied", 7),
    ("removed", 8),
    ("gone", 9),
];

/// The phones in `state` of the constituency `name`.
fn macs(name: &str, state: &str) -> Vec<String> {
    let (index, count) =
        STATES.iter().enumerate().find_map(|(index, it)| (it.0 == state).then_some((index, it.1))).unwrap();
    let of = u32::from(name == "lab");
    (0..if name == "lab" { 1 } else { count }).map(|number| format!("00005e{of:02x}{index:02x}{number:02x}")).collect()
}

/// Writes the policy of the constituency `name` with the phones in `known` and in `denied`.
fn list(site: &Site, name: &str, known: &[&str], denied: &[&str]) {
    let all = |states: &[&str]| states.iter().flat_map(|state| macs(name, state)).collect::<Vec<String>>();
    let phones: BTreeMap<String, &str> = all(known).into_iter().map(|mac| (mac, "")).collect();
    site.constituency(name, &json!({ "trust": ["factory"], "phones": phones, "denied": all(denied) }));
}

/// Requests `path` as each phone in `state`.
fn ask(server: &Running, name: &str, state: &str, path: &str, status: u16) {
    for mac in macs(name, state) {
        assert_eq!(
            server.client(name, &FACTORY.device(&mac)).get(path).unwrap().status,
            status,
            "{name} {state} {mac}"
        );
    }
}

/// A site that has phones in every state, and its server.
fn site_with_every_state() -> (Site, Running) {
    let site = site_with_operators();
    for name in ["ote", "lab"] {
        list(&site, name, &["well", "silent", "never", "refused", "denied", "removed", "locked_out"], &[]);
        site.file(&format!("{name}/site.cfg"), "<site/>");
    }
    site.constituency("old", &json!({ "trust": ["factory"], "phones": "any" }));
    let server = site.start();
    for name in ["ote", "lab"] {
        for state in ["well", "silent", "denied", "removed", "locked_out"] {
            ask(&server, name, state, "/site.cfg", 200);
        }
        for state in ["waiting", "allowed"] {
            ask(&server, name, state, "/site.cfg", 403);
        }
        ask(&server, name, "refused", "/00005e00530c.cfg", 403);
    }
    for mac in macs("ote", "gone") {
        assert_eq!(server.client("old", &FACTORY.device(&mac)).get("/nothing.cfg").unwrap().status, 404);
    }
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait().success());
    for name in ["ote", "lab"] {
        list(&site, name, &["well", "silent", "never", "refused", "denied", "allowed", "locked_out"], &["denied"]);
    }
    std::fs::remove_dir_all(site.served("old")).unwrap();
    let ledger = Connection::open(site.path("state/ledger/ledger.sqlite")).unwrap();
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    for mac in ["ote", "lab"].iter().flat_map(|name| macs(name, "silent")) {
        let sql = "UPDATE phone SET last_seen = ?1, last_let_in = ?1 WHERE mac = ?2";
        assert_eq!(ledger.execute(sql, (now - 3 * 86_400_000, &mac)).unwrap(), 1, "{mac}");
    }
    drop(ledger);
    let server = site.start();
    for name in ["ote", "lab"] {
        for mac in macs(name, "locked_out") {
            server.client(name, &Identity::self_signed(&device_params(&mac))).get("/site.cfg").unwrap_err();
        }
    }
    let operators = Operators::of(&server);
    eventually("the claims", || (operators.json("/api/overview")["counts"]["locked_out"] == 11).then_some(()));
    (site, server)
}

/// The links with a figure: place, text, target.
const FIGURES: &str = "return [...document.querySelectorAll('#summary a, #constituencies td a, #waiting > p a')]
    .filter((link) => /[0-9]/.test(link.textContent))
    .map((link) => [link.closest('td')?.dataset.label ?? link.parentElement.previousElementSibling?.textContent ?? '',
        link.textContent, link.getAttribute('href')])";

/// The number of phones that the open page shows: cards, or the count above the list.
const SHOWN: &str = "
    if (location.hash === '#waiting') return document.querySelectorAll('#waiting .card').length;
    const found = document.getElementById('found').textContent.replaceAll(/[\\u00a0\\u202f]/g, '');
    if (found.startsWith('Nophonematches') || found.startsWith('No phone')) return 0;
    const page = found.match(/^[0-9]+–[0-9]+ of ([0-9]+)/) ?? found.match(/^([0-9]+)/);
    return Number(page[1])";

#[test]
fn every_linked_figure_opens_the_phones_that_it_counts() {
    let Some(browser) = Browser::start("every_linked_figure_opens_the_phones_that_it_counts") else { return };
    let (_site, server) = site_with_every_state();
    let operators = Operators::of(&server);
    let counts = operators.json("/api/overview")["counts"].clone();
    let known = ["well", "silent", "never", "allowed", "refused", "locked_out"];
    for (state, count) in STATES {
        // The second constituency has one more in each state, except phones that are no longer served.
        let count = count + u32::from(state != "gone");
        assert_eq!(counts[state], count, "{state}: {counts}");
        let listed = operators.json(&format!("/api/phones?state={state}&limit=1000"));
        assert_eq!(listed["matching"], count, "{state}");
        assert!(listed["phones"].as_array().unwrap().iter().all(|phone| phone["state"] == state), "{listed}");
    }
    let all_known: u32 = STATES.iter().filter(|it| known.contains(&it.0)).map(|it| it.1 + 1).sum();
    assert_eq!(
        (&counts["known"], &operators.json("/api/phones?state=known")["matching"]),
        (&json!(all_known), &json!(all_known))
    );

    let figures = |browser: &Browser| browser.run(FIGURES).as_array().unwrap().clone();
    sign_in(&browser, &operators.base);
    browser.open(&format!("{}/", operators.base));
    let seen = figures(&browser);
    for (index, figure) in seen.iter().enumerate() {
        let [place, words, link] = [0, 1, 2].map(|part| figure[part].as_str().unwrap());
        let digits: String = words.chars().filter(char::is_ascii_digit).collect();
        let number: u64 = digits.parse().unwrap();
        browser.open("about:blank");
        browser.open(&format!("{}/", operators.base));
        assert_eq!(figures(&browser)[index], *figure, "the page does not change without a request");
        let script = format!(
            "[...document.querySelectorAll('#summary a, #constituencies td a, #waiting > p a')]
            .filter((link) => /[0-9]/.test(link.textContent))[{index}].click()"
        );
        browser.run(&script);
        eventually(&format!("{link} to open"), || browser.url().ends_with(link).then_some(()));
        let shown = || browser.run(SHOWN);
        let agrees = || (shown().as_u64() == Some(number)).then_some(());
        eventually(&format!("{place:?} {words:?} to open {number} phones at {link}, not {}", shown()), agrees);
    }
    // Seven in the summary, three headlines, four for each of two constituencies.
    assert_eq!(seen.len(), 18, "{seen:?}");
    assert_eq!(browser.console_errors(), Vec::<String>::new());
}
