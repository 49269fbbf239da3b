//! The page's layout and contrast, on a desktop and a telephone, in light and dark mode; and the README's screenshot.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rusqlite::Connection;
use serde_json::{Value, json};

use super::{rows, sign_in, site_with_operators};
use crate::harness::browser::{Browser, Viewport};
use crate::harness::eventually;
use crate::harness::operators::Operators;
use crate::harness::pki::{DAY, FACTORY, Identity, SERVER_CA, device_params, valid};
use crate::harness::site::{DOMAIN, Running, Site};

/// A phone of the screenshot: constituency, address, note, User-Agent, source address, and seconds since its last
/// request.
type Phone = (&'static str, &'static str, &'static str, &'static str, &'static str, i64);

const PHONES: [Phone; 11] = [
    ("ucs-5-9", "00005e00530c", "the kitchen", "PolycomVVX-VVX_500-UA/5.9.7.4477", "198.51.100.12", 42),
    ("ucs-5-9", "00005e0053c7", "front desk", "PolycomVVX-VVX_550-UA/5.9.7.4477", "198.51.100.12", 190),
    (
        "ucs-5-9",
        "00005e005318",
        "the workshop",
        "PolycomSoundPointIP-SPIP_550-UA/4.0.15.1047",
        "198.51.100.91",
        345_600,
    ),
    ("ote", "00005e005330", "test bench 1", "PolyEdge-Edge_E450-UA/8.0.0.15602", "2001:db8:4:1::30", 700),
    ("ote", "00005e005331", "test bench 2", "PolyCCX-CCX_600-UA/8.0.2.3267", "2001:db8:4:1::31", 1900),
    ("household", "00005e005340", "Grandmother's hall", "PolycomVVX-VVX_250-UA/6.4.6.2453", "203.0.113.9", 10_900),
    ("household", "00005e005341", "upstairs", "PolycomVVX-VVX_250-UA/6.4.6.2453", "203.0.113.9", 18_200),
    ("household", "00005e005342", "the garden studio", "PolycomVVX-VVX_411-UA/6.4.6.2453", "203.0.113.9", 3_700),
    ("ucs-5-9", "00005e005321", "Dr Okafor, reception", "PolycomVVX-VVX_601-UA/5.9.7.4477", "198.51.100.24", 410),
    ("ote", "00005e0053aa", "", "PolycomVVX-VVX_450-UA/6.4.6.2453", "203.0.113.77", 130),
    ("household", "00005e0053b1", "", "PolycomSoundStationIP-SSIP_6000-UA/4.0.15.1047", "198.51.100.180", 5_000),
];

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// A site with the history of a longer time.
fn site_with_history() -> Site {
    let site = site_with_operators();
    std::fs::remove_dir_all(site.served("ote")).unwrap();
    let described = [
        ("household", "Friends and family"),
        ("ote", "Trial of firmware 6 and 8"),
        ("ucs-5-9", "UC Software 5.9, production"),
    ];
    for (name, description) in described {
        let known = PHONES.iter().filter(|visitor| visitor.0 == name && !visitor.2.is_empty());
        let mut phones: serde_json::Map<String, Value> =
            known.map(|visitor| (visitor.1.to_owned(), visitor.2.into())).collect();
        if name == "ucs-5-9" {
            phones.insert("00005e005319".to_owned(), "Ms Lindqvist, from December".into());
        }
        site.constituency(name, &json!({ "trust": ["factory"], "phones": phones, "description": description }));
        site.file(&format!("{name}/site.cfg"), "<site/>");
    }
    site.file("Museum/constituency.json", "{}");
    for (file, is_rsa) in [("rsa", true), ("ec", false)] {
        let mut params = rcgen::CertificateParams::new([format!("*.{DOMAIN}")]).unwrap();
        valid(&mut params, SystemTime::now() - 45 * DAY, SystemTime::now() + 45 * DAY);
        let identity = if is_rsa { SERVER_CA.issue_rsa(&params) } else { SERVER_CA.issue(&params) };
        identity.write(&site.path(""), file);
    }
    site
}

/// Lets every phone send a request, then changes times and source addresses in the history.
fn with_requests(site: &Site) -> Running {
    let server = site.start();
    for (constituency, mac, note, agent, _, _) in PHONES {
        let phone = server.client(constituency, &FACTORY.device(mac));
        let agent = format!("User-Agent: FileTransport {agent} Type/Application\r\n");
        let status = phone.request("GET", "/site.cfg", &agent, b"").unwrap().status;
        assert_eq!(status, if note.is_empty() { 403 } else { 200 }, "{mac}");
    }
    // Another phone's file, which is refused although it is listed.
    let curious = server.client("ucs-5-9", &FACTORY.device("00005e005321"));
    assert_eq!(curious.get("/00005e00530c.cfg").unwrap().status, 403);
    server.client("ucs-5-9", &Identity::self_signed(&device_params("00005e00530c"))).get("/").unwrap_err();
    let operators = Operators::of(&server);
    eventually("the phone history to contain them all", || {
        let overview = operators.json("/api/overview");
        let lengths = ["waiting", "unproven"].map(|list| overview[list].as_array().unwrap().len());
        (lengths == [2, 1] && overview["counts"]["refused"] == 1 && overview["counts"]["known"] == 10).then_some(())
    });
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait().success());

    let ledger = Connection::open(site.path("state/ledger/ledger.sqlite")).unwrap();
    for (_, mac, _, _, address, ago) in PHONES {
        let seen = (now() - ago) * 1000;
        let sql = "UPDATE phone SET last_seen = ?1, refusal_at = iif(refusal IS NULL, NULL, ?1), address = ?2,
                   first_seen = ?1 - 8640000000 WHERE mac = ?3";
        assert_eq!(ledger.execute(sql, (seen, address, mac)).unwrap(), 1, "{mac}");
    }
    let claimed = (now() - 7_300) * 1000;
    let sql = "UPDATE claim SET last_seen = ?1, address = '192.0.2.66', count = 41";
    assert_eq!(ledger.execute(sql, [claimed]).unwrap(), 1);
    fill_day(&ledger);
    drop(ledger);
    site.start()
}

/// A day of an office: quiet at night, a peak when phones restart, some refusals.
fn fill_day(ledger: &Connection) {
    const STEP_S: i64 = 600;
    let last = now() / STEP_S;
    for step in last - 143..=last {
        let hour = step.rem_euclid(144) / 6;
        let wobble = (step.wrapping_mul(2_654_435_761) >> 9).rem_euclid(31);
        let served = match hour {
            7..=8 => 52 + wobble,
            9..=17 => 96 + 2 * wobble,
            18..=21 => 38 + wobble,
            _ => 12 + wobble / 4,
        };
        let refused = if step % 5 == 0 { wobble / 4 } else { 0 };
        let sql = "INSERT OR REPLACE INTO activity (step, served, refused, handshakes) VALUES (?, ?, ?, ?)";
        ledger.execute(sql, [step, served, refused, served / 4 + refused]).unwrap();
    }
}

/// Texts whose contrast is below WCAG 2.2 AA.
const LOW_CONTRAST: &str = "
    const channels = (color) => {
        const parts = color.match(/[\\d.]+/g).map(Number);
        return color.startsWith('color(') ? [...parts.slice(0, 3).map((part) => part * 255), parts[3] ?? 1]
            : [...parts.slice(0, 3), parts[3] ?? 1];
    };
    const luminance = (color) => color.slice(0, 3).map((part) => part / 255)
        .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
    const ground = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const color = channels(getComputedStyle(at).backgroundColor);
            if (color[3] === 1) return color;
        }
        return [255, 255, 255, 1];
    };
    const faint = [];
    let seen = 0;
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest('title')) continue;
        const style = getComputedStyle(element);
        const color = channels(element.closest('svg') ? style.fill : style.color);
        const pair = [luminance(color), luminance(ground(element.closest('svg') ?? element))].sort((a, b) => b - a);
        const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
        seen += 1;
        if (contrast < 4.5) faint.push(`${walker.currentNode.data.trim()}: ${contrast.toFixed(2)}`);
    }
    return [seen, faint];";

/// Elements that extend beyond the page's right edge.
const OVERFLOWING: &str = "
    const width = document.documentElement.clientWidth;
    const isHidden = (element) => element.closest('.unseen, .skip, svg, thead, .command') !== null;
    const wide = [...document.body.querySelectorAll('*')].filter((element) => !isHidden(element)
        && element.getBoundingClientRect().right > width + 1).map((element) => element.outerHTML.slice(0, 80));
    return [document.documentElement.scrollWidth - width, wide];";

#[test]
fn page_fits_and_has_contrast_on_desktop_and_mobile() {
    let test = "page_fits_and_has_contrast_on_desktop_and_mobile";
    let Some(browser) = Browser::start(test) else { return };
    let site = site_with_history();
    let server = with_requests(&site);
    let base = Operators::of(&server).base;
    sign_in(&browser, &base);
    assert_eq!(rows(&browser).len(), PHONES.len() + 1);
    eventually("the day before the restart", || (browser.texts(".legend li").len() == 4).then_some(()));
    let looks = [Viewport::DESK, Viewport::DESK.dark(), Viewport::TELEPHONE, Viewport::TELEPHONE.dark()];
    for (page, path) in [("overview", "/"), ("phone", "/phones/ote/00005e0053aa"), ("sign-in", "/sign-in")] {
        for viewport in looks {
            browser.set_viewport(viewport);
            browser.open(&format!("{base}{path}"));
            let name = format!("{page}-{}-{}", viewport.width, if viewport.is_dark { "dark" } else { "light" });
            let color = browser.run("return getComputedStyle(document.documentElement).backgroundColor");
            assert_eq!(color == "rgb(18, 21, 23)", viewport.is_dark, "{name}: {color}");
            assert_eq!(browser.run(OVERFLOWING), json!([0, []]), "{name} is wider than its screen");
            let contrast = browser.run(LOW_CONTRAST);
            assert!(contrast[0].as_u64().unwrap() > if page == "sign-in" { 5 } else { 50 }, "{name}: {contrast}");
            assert_eq!(contrast[1], json!([]), "{name} has faint texts");
            keep(&format!("{name}.png"), &browser.picture(None));
        }
    }
    assert_eq!(browser.console_errors(), Vec::<String>::new());

    // The screenshot of the README.
    browser.set_viewport(Viewport::DESK);
    browser.open(&format!("{base}/"));
    let picture = browser.picture(Some(PICTURE.1));
    assert_is_picture(&picture);
    if std::env::var_os("PROVOST_NEW_PICTURE").is_some() {
        std::fs::write(picture_path(), &picture).unwrap();
    }
}

/// Stores a screenshot in the folder that the environment names, if any.
fn keep(name: &str, picture: &[u8]) {
    if let Some(folder) = std::env::var_os("PROVOST_PICTURES") {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(Path::new(&folder).join(name), picture).unwrap();
    }
}

/// The size of the README's screenshot.
const PICTURE: (u32, u32) = (1280, 1070);

fn picture_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operators-page.png")
}

#[track_caller]
fn assert_is_picture(bytes: &[u8]) {
    assert_eq!(&bytes[..16], b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR");
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((number(16), number(20)), PICTURE);
    assert!(bytes.len() < 150_000, "{} bytes", bytes.len());
}

#[test]
fn readme_shows_a_screenshot_of_the_page() {
    let picture = std::fs::read(picture_path()).unwrap();
    assert_is_picture(&picture);
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    assert!(readme.contains("](docs/operators-page.png)"));
}
