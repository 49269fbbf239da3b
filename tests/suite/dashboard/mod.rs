//! The operators' page in a real browser, with the real server and phones.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Map, Value, json};

use crate::harness::browser::Browser;
use crate::harness::operators::Operators;
use crate::harness::pki::{FACTORY, Identity, device_params};
use crate::harness::site::{Running, Site};
use crate::harness::{STRANGER, VVX500, VVX550, eventually, within_a_second};

mod figures;
mod screenshots;

const TOKEN: &str = "a-token-for-tests-0123456789";
const AGENT: &str = "User-Agent: FileTransport PolycomVVX-VVX_500-UA/5.9.7.4477 Type/Application\r\n";

/// A site of two phones whose operators may sign in.
fn site_with_operators() -> Site {
    let mut site = Site::with_ote();
    let phones = json!({ VVX500: "the <b>kitchen</b>", VVX550: "the cellar" });
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": phones, "description": "a trial" }));
    std::fs::write(site.path("token"), TOKEN).unwrap();
    std::fs::set_permissions(site.path("token"), std::fs::Permissions::from_mode(0o600)).unwrap();
    site.config["status"] = json!({ "listen": "127.0.0.1:0", "token_file": "token" });
    site
}

/// Requests of a known phone, of an unknown one, and of a client without a certificate that claims a phone's MAC.
fn send_requests(server: &Running) {
    let known = server.client("ote", &FACTORY.device(VVX500));
    assert_eq!(known.request("GET", "/site.cfg", AGENT, b"").unwrap().status, 200);
    assert_eq!(server.client("ote", &FACTORY.device(STRANGER)).get("/site.cfg").unwrap().status, 403);
    server.client("ote", &Identity::self_signed(&device_params(VVX550))).get("/site.cfg").unwrap_err();
    let operators = Operators::of(server);
    eventually("the overview to list them all", || {
        let overview = operators.json("/api/overview");
        let lengths = ["waiting", "unproven"].map(|list| overview[list].as_array().unwrap().len());
        (lengths == [1, 1] && overview["counts"]["well"] == 1).then_some(())
    });
}

/// A browser, a site whose operators may sign in, its server after these requests, and the page's URL; `None` without a
/// browser.
fn open_page(test: &str) -> Option<(Browser, Site, Running, String)> {
    let browser = Browser::start(test)?;
    let site = site_with_operators();
    let server = site.start();
    send_requests(&server);
    let base = Operators::of(&server).base;
    Some((browser, site, server, base))
}

fn sign_in(browser: &Browser, base: &str) {
    browser.open(&format!("{base}/sign-in"));
    browser.type_into("#token", TOKEN);
    browser.click(".sign-in button");
    eventually("to be signed in", || {
        assert_eq!(browser.texts(".outcome.bad"), Vec::<String>::new());
        browser.texts("form.sign button").contains(&"Sign out".to_owned()).then_some(())
    });
}

/// The rows of the page's list of phones, by MAC address.
fn rows(browser: &Browser) -> BTreeMap<String, String> {
    let script = "return Object.fromEntries([...document.querySelectorAll('.phones tbody tr')].map(
        (row) => [row.querySelector('.mac').textContent, row.innerText]))";
    let rows: Map<String, Value> = browser.run(script).as_object().unwrap().clone();
    rows.into_iter().map(|(mac, row)| (mac, row.as_str().unwrap().to_owned())).collect()
}

/// The state of a phone of `ote`, in the list.
fn state(browser: &Browser, mac: &str) -> String {
    browser.texts(&format!("#phone-ote-{mac} .mark")).concat()
}

/// The MAC addresses of the list, in its order.
fn order(browser: &Browser) -> Vec<String> {
    let script = "return [...document.querySelectorAll('.phones tbody .mac')].map((mac) => mac.textContent)";
    browser.run(script).as_array().unwrap().iter().map(|mac| mac.as_str().unwrap().to_owned()).collect()
}

/// Marks the open page, to detect a reload.
fn mark(browser: &Browser) {
    browser.run("window.isMarked = true");
}

#[track_caller]
fn assert_still_marked(browser: &Browser) {
    assert_eq!(browser.run("return window.isMarked === true"), true, "the page was reloaded");
}

/// Asserts that the browser reported no error and sent requests only to the listener.
#[track_caller]
fn assert_no_errors_or_foreign_requests(browser: &Browser, base: &str) {
    assert_eq!(browser.console_errors(), Vec::<String>::new());
    let requests = browser.requests();
    assert!(requests.iter().any(|url| url.contains("/assets/style-")), "{requests:?}");
    let strange: Vec<&String> = requests.iter().filter(|url| !url.starts_with(&format!("{base}/"))).collect();
    assert!(strange.is_empty(), "{strange:?}");
}

#[test]
fn page_shows_the_phone_history() {
    let Some(browser) = Browser::start("page_shows_the_phone_history") else { return };
    let site = site_with_operators();
    let server = site.start();
    send_requests(&server);
    let operators = Operators::of(&server);
    sign_in(&browser, &operators.base);
    assert_eq!(browser.text("h1"), "2 problems need attention", "{:?}", browser.texts(".needs li"));

    let rows = rows(&browser);
    assert_eq!(rows.len(), operators.json("/api/phones")["phones"].as_array().unwrap().len());
    for (mac, words) in [
        (VVX500, ["the <b>kitchen</b>", "well", "ote", "VVX 500", "5.9.7.4477", "127.0.0.1"].as_slice()),
        (STRANGER, &["waiting", "00005e0053aa is not known to ote", "127.0.0.1"]),
        (VVX550, &["the cellar", "locked out?", "claimed, unproven: ", "self-signed"]),
    ] {
        let missing: Vec<_> = words.iter().filter(|word| !rows[mac].contains(**word)).collect();
        assert!(missing.is_empty(), "{mac}: {missing:?} not in {:?}", rows[mac]);
    }
    let unproven = browser.text("#unproven tbody tr");
    let overview = operators.json("/api/overview");
    assert!(unproven.contains(overview["unproven"][0]["certificate_sha256"].as_str().unwrap()), "{unproven}");
    assert_eq!(browser.run("return document.querySelectorAll('#unproven form, #unproven .command').length"), 0);
    assert!(browser.text("#constituencies tbody tr").contains("a trial"));
    assert_eq!(browser.texts("#certificates h3"), ["ECDSA\nvalid", "RSA\nvalid"]);

    browser.click(&format!("#phone-ote-{VVX500} .mac"));
    eventually("the phone's own page", || browser.url().ends_with(&format!("/phones/ote/{VVX500}")).then_some(()));
    assert!(browser.text("#requests tbody tr").contains("GET /site.cfg"));
    assert!(browser.text(".facts").contains("TLS13_AES_128_GCM_SHA256"), "{}", browser.text(".facts"));
    assert_no_errors_or_foreign_requests(&browser, &operators.base);
}

/// A server with a constituency of this many phones, of which every tenth has its own note.
fn large_site(count: u32) -> (Site, Running) {
    let site = site_with_operators();
    let mac = |n: u32| format!("00005e{n:06x}");
    let note = |n: u32| if n.is_multiple_of(10) { format!("room {n}") } else { String::new() };
    let phones: Map<String, Value> = (0..count).map(|n| (mac(n), Value::String(note(n)))).collect();
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": phones }));
    let server = site.start();
    (site, server)
}

#[test]
fn page_searches_sorts_and_pages_fifty_thousand_phones() {
    let test = "page_searches_sorts_and_pages_fifty_thousand_phones";
    let Some(browser) = Browser::start(test) else { return };
    let (_site, server) = large_site(50_000);
    let base = Operators::of(&server).base;
    sign_in(&browser, &base);
    browser.open(&format!("{base}/?sort=name"));
    mark(&browser);
    let found = |what: &str, wanted: &str| {
        let found = || browser.run("return document.getElementById('found').textContent.replaceAll('\\u00a0', ' ')");
        eventually(&format!("{what}, {wanted:?}"), || found().as_str()?.contains(wanted).then_some(()));
    };
    found("the first page", "1–50 of 50\u{202f}000");
    assert_eq!(order(&browser).len(), 50);
    assert!(browser.run("return document.documentElement.outerHTML.length").as_u64().unwrap() < 100_000);

    browser.click("[rel=next]");
    found("the second page", "51–100 of 50\u{202f}000");
    assert_eq!(order(&browser)[0], "00005e000032");
    browser.click("[rel=prev]");
    found("the first page again", "1–50 of");
    // The heading of the sorted column reverses the order.
    browser.click("[aria-sort=ascending] a");
    eventually("the last phone first", || (order(&browser)[0] == "00005e00c34f").then_some(()));
    browser.type_into("#search", "room 4990");
    found("the rooms", "2 phones of 50\u{202f}000");
    assert_eq!(order(&browser).last().unwrap(), "00005e00137e", "still reversed");
    assert!(browser.url().contains("search=room+4990"), "{}", browser.url());
    browser.type_into("#state", "well");
    found("nobody", "No phone matches.");
    browser.click("#found a");
    found("all again", "1–50 of 50\u{202f}000");
    assert_eq!(browser.run("return document.getElementById('search').value"), "");
    browser.run("history.back()");
    found("nobody again", "No phone matches.");
    assert_still_marked(&browser);
    assert_no_errors_or_foreign_requests(&browser, &base);
}

#[test]
fn phone_allowed_on_the_page_is_served_within_a_second() {
    let Some((browser, site, server, base)) = open_page("phone_allowed_on_the_page_is_served_within_a_second") else {
        return;
    };
    sign_in(&browser, &base);
    mark(&browser);
    browser.type_into("#waiting input[name=note]", "Ms O'Neill <attic>");
    browser.click("#waiting .allow button");
    let stranger = server.client("ote", &FACTORY.device(STRANGER));
    within_a_second("the phone to be accepted", || (stranger.get("/site.cfg").unwrap().status == 200).then_some(()));
    let said = within_a_second("the page to say so", || browser.texts("#outcome p").into_iter().next()).0;
    assert_eq!(said, format!("{STRANGER} is on the list of ote. It gets its files at its next request."));
    assert!(browser.text("#waiting").contains("No phone is waiting."));
    eventually("the phone to be well", || (state(&browser, STRANGER) == "well").then_some(()));
    assert!(rows(&browser)[STRANGER].contains("Ms O'Neill <attic>"), "{}", rows(&browser)[STRANGER]);
    assert_still_marked(&browser);
    let policy = std::fs::read_to_string(site.served("ote/constituency.json")).unwrap();
    assert!(policy.contains("Ms O'Neill <attic>"), "{policy}");

    browser.click(".sign button");
    eventually("to be signed out", || (browser.texts("h1") == ["Sign in"]).then_some(()));
    assert!(!browser.text("body").contains(VVX500), "phones are hidden after signing out");
}

#[test]
fn failed_page_action_shows_the_reason_or_the_command() {
    let test = "failed_page_action_shows_the_reason_or_the_command";
    let Some((browser, site, _server, base)) = open_page(test) else { return };
    let command = |site: &Site| {
        let config = site.path("provost.json");
        format!("provost allow {STRANGER} --constituency ote --note \"…\" --config {}", config.display())
    };
    // The policy breaks while the page is open.
    sign_in(&browser, &base);
    mark(&browser);
    std::fs::write(site.served("ote/constituency.json"), "{").unwrap();
    browser.click("#waiting .allow button");
    let said = eventually("the reason", || browser.texts("#outcome .bad").into_iter().next());
    assert!(said.contains("constituency.json"), "{said}");
    assert_still_marked(&browser);
    let console_errors = browser.console_errors();
    assert!(console_errors.iter().all(|line| line.contains("409 (Conflict)")), "{console_errors:?}");

    let mut without = site_with_operators();
    without.config["status"] = json!({ "listen": "127.0.0.1:0" });
    let server = without.start();
    send_requests(&server);
    browser.open(&format!("{}/", Operators::of(&server).base));
    assert_eq!(browser.text("#waiting .command code"), command(&without));
    assert_eq!(browser.texts(".sign"), Vec::<String>::new(), "there is no sign-in form");
}

#[test]
fn open_page_updates_live_and_keeps_typed_text() {
    let Some((browser, site, server, base)) = open_page("open_page_updates_live_and_keeps_typed_text") else {
        return;
    };
    sign_in(&browser, &base);
    mark(&browser);
    browser.type_into("#waiting input[name=note]", "half a no");
    assert_eq!(state(&browser, VVX550), "locked out?");
    assert_eq!(server.client("ote", &FACTORY.device(VVX550)).get("/site.cfg").unwrap().status, 200);
    eventually("the phone that has booted to be well", || (state(&browser, VVX550) == "well").then_some(()));
    let stranger = "00005e0053ab";
    assert_eq!(server.client("ote", &FACTORY.device(stranger)).get("/site.cfg").unwrap().status, 403);
    eventually("another phone to wait", || browser.texts("#waiting .mac").contains(&stranger.to_owned()).then_some(()));
    browser.type_into("#waiting [id$=\"53aa\"] input[name=note]", "te");
    let typed = browser.run("return [document.activeElement.name, document.activeElement.value]");
    assert_eq!(typed, json!(["note", "half a note"]));
    assert_still_marked(&browser);

    site.constituency("new", &json!({ "trust": ["factory"] }));
    eventually("the new constituency", || {
        browser.texts("#constituencies tbody th").iter().any(|name| name.starts_with("new")).then_some(())
    });
    eventually("to be live", || browser.run("return document.documentElement.dataset.live").eq("on").then_some(()));
    drop(server);
    eventually("the page to show that the server is gone", || {
        browser.run("return document.documentElement.dataset.live").eq("lost").then_some(())
    });
    assert_still_marked(&browser);
}

#[test]
fn page_works_without_scripts() {
    let Some((browser, _site, server, base)) = open_page("page_works_without_scripts") else {
        return;
    };
    browser.forbid_scripts();
    sign_in(&browser, &base);
    assert_eq!(browser.texts(".copy").concat(), "", "controls that need a script are hidden");
    browser.type_into("#search", "cellar");
    browser.click(".search button");
    let listed = |count: usize| {
        let listed = || Some(browser.texts(".phones tbody .mac")).filter(|macs| macs.len() == count);
        eventually(&format!("{count} phones"), listed)
    };
    assert_eq!(listed(1), [VVX550]);
    browser.click("#found a");
    let all = listed(3);
    browser.click("[aria-sort] a");
    eventually("the list to be reversed", || browser.url().contains("reverse=1").then_some(()));
    assert_eq!(listed(3), all.into_iter().rev().collect::<Vec<_>>());
    browser.type_into("#waiting input[name=note]", "the attic");
    browser.click("#waiting .allow button");
    let said = eventually("the page to say so", || browser.texts("#outcome p").into_iter().next());
    assert!(said.starts_with(&format!("{STRANGER} is on the list of ote.")), "{said}");
    assert!(browser.text("#waiting").contains("No phone is waiting."));
    assert_eq!(state(&browser, STRANGER), "allowed", "and not the refusal of its last request");
    let stranger = server.client("ote", &FACTORY.device(STRANGER));
    within_a_second("the phone to be accepted", || (stranger.get("/site.cfg").unwrap().status == 200).then_some(()));
    assert_no_errors_or_foreign_requests(&browser, &base);
}
