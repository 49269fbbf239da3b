//! Files of single phones: MACs in file names, in every spelling and by every path.

use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::pki::FACTORY;
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::tls::Client;
use crate::harness::tool::{provost, run};
use crate::harness::{STRANGER, VVX500, VVX550, eventually, within_a_second};

/// Names of a phone's file in common spellings; `MAC` stands for 12 digits.
const SPELLINGS: [&str; 22] = [
    "MAC.cfg",
    "phoneMAC.cfg",
    "spaMAC.xml",
    "deviceMAC.cfg",
    "lineMAC.cfg",
    "extenMAC",
    "cfgMAC.xml",
    "SEPMAC.cnf.xml",
    "hipve-MAC.cfg",
    "MACext.cfg",
    "MACcopy.cfg",
    "MACbackup.cfg",
    "MAC",
    "phoneMAC/user.cfg",
    "a/deviceMACb/c.cfg",
    "AA-BB-CC-DD-EE-FF.cfg",
    "AA:BB:CC:DD:EE:FF.cfg",
    "AA_BB_CC_DD_EE_FF.cfg",
    "AA.BB.CC.DD.EE.FF.cfg",
    "AA BB CC DD EE FF.cfg",
    "AABB.CCDD.EEFF",
    "AABBCC-DDEEFF.cfg",
];

/// `spelling` with the digits of `mac`.
fn spelled(spelling: &str, mac: &str) -> String {
    let pairs = ["AA", "BB", "CC", "DD", "EE", "FF"];
    let name = spelling.replace("MAC", mac);
    pairs.iter().enumerate().fold(name, |name, (index, pair)| name.replace(pair, &mac[index * 2..index * 2 + 2]))
}

/// Two constituencies: `ote` lists one phone, and `ucs` alone lists the other. Both have files of both phones.
fn site() -> Site {
    let mut site = Site::new();
    site.config["plain_http"] = json!({ "listen": "127.0.0.1:0", "networks": ["127.0.0.0/8"] });
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { VVX500: "" }, "plain_http": true }));
    site.constituency("ucs", &json!({ "trust": ["factory"], "phones": {}, "denied": [VVX550], "shared": ["all"] }));
    site.constituency("open", &json!({ "client_auth": "none" }));
    for folder in ["ote", "open", "ucs/all"] {
        site.file(&format!("{folder}/site.cfg"), "<site/>");
        for mac in [VVX500, VVX550] {
            for spelling in SPELLINGS {
                site.file(&format!("{folder}/{}", spelled(spelling, mac)), format!("secret of {mac}"));
            }
        }
    }
    site
}

fn start(site: &Site) -> Running {
    Running::start(site.command(), 2)
}

fn phone(server: &Running) -> Client {
    server.client("ote", &FACTORY.device(VVX500))
}

fn anonymous(server: &Running) -> Client {
    Client::new(server.address(), Some(&format!("open.{DOMAIN}")))
}

fn path(name: &str) -> String {
    format!("/{}", name.replace(' ', "%20"))
}

fn plain_status(server: &Running, host: &str, path: &str) -> u16 {
    let address: SocketAddr = server.addresses[1];
    let name = format!("{host}.{DOMAIN}:{}", address.port());
    let resolve = format!("{name}:127.0.0.1");
    let url = format!("http://{name}{path}");
    let mut curl = Command::new("curl");
    let ended =
        run(curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--globoff", "--resolve", &resolve, &url]));
    ended.stdout.parse().unwrap_or_else(|_| panic!("{path}: {ended:?}"))
}

#[test]
fn file_of_another_phone_is_refused_in_every_spelling() {
    let site = site();
    let server = start(&site);
    let device = phone(&server);
    let mut connection = device.connect().unwrap();
    for spelling in SPELLINGS {
        let (own, others) = (path(&spelled(spelling, VVX500)), path(&spelled(spelling, VVX550)));
        assert_eq!(connection.get(&own).unwrap().text(), format!("secret of {VVX500}"), "{own}");
        for other in [&others, &others.to_uppercase(), &others.replace("00005e", "00005E")] {
            let got = device.get(other).unwrap();
            assert_eq!((got.status, got.text().contains("secret")), (403, false), "{other}");
        }
        assert_eq!(device.put(&others, "", b"x").unwrap().status, 403, "{others}");
        assert_eq!(device.request("HEAD", &others, "", b"").unwrap().status, 403, "{others}");
    }
}

#[test]
fn phone_file_is_not_found_without_a_proven_mac() {
    let site = site();
    let server = start(&site);
    let open = anonymous(&server);
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    assert_eq!(plain_status(&server, "ote", "/site.cfg"), 200);
    for spelling in SPELLINGS {
        for mac in [VVX500, VVX550] {
            let path = path(&spelled(spelling, mac));
            assert_eq!(open.get(&path).unwrap().status, 404, "{path}");
            assert_eq!(plain_status(&server, "ote", &path), 404, "{path}");
        }
    }
}

#[test]
fn symlink_to_another_phones_file_is_refused() {
    let site = site();
    for (index, spelling) in SPELLINGS.iter().enumerate() {
        let link =
            |name: &str, target: String| symlink(target, site.served(&format!("ote/{name}{index}.txt"))).unwrap();
        link("within", spelled(spelling, VVX550));
        link("shared", format!("../ucs/all/{}", spelled(spelling, VVX550)));
        link("own-shared", format!("../ucs/all/{}", spelled(spelling, VVX500)));
        link("own", spelled(spelling, VVX500));
    }
    let server = start(&site);
    let device = phone(&server);
    for index in 0..SPELLINGS.len() {
        assert_eq!(device.get(&format!("/within{index}.txt")).unwrap().status, 403, "{index}");
        assert_eq!(device.get(&format!("/shared{index}.txt")).unwrap().status, 404, "{index}");
        assert_eq!(device.get(&format!("/own-shared{index}.txt")).unwrap().status, 404, "a phone's file is not shared");
        assert_eq!(device.get(&format!("/own{index}.txt")).unwrap().text(), format!("secret of {VVX500}"), "{index}");
    }
}

#[test]
fn copied_constituency_contains_no_phone_files() {
    let site = site();
    site.write_config();
    let from_ote = provost(&site.path("."), &["constituency", "add", "new", "--from", "ote"]);
    assert_eq!(from_ote.code, 0, "{}", from_ote.stderr);
    let copied =
        run(Command::new("find").args([".", "-mindepth", "1", "-printf", "%P\n"]).current_dir(site.served("new")));
    let mut copied: Vec<&str> = copied.stdout.lines().collect();
    copied.sort_unstable();
    assert_eq!(copied, ["a", "constituency.json", "site.cfg"]);
}

#[test]
fn phone_file_in_the_other_case_is_found() {
    let site = site();
    site.file("ote/phone00005E00530C-x.cfg", "upper");
    site.file("ote/ring-00-00-5E-00-53-0C.wav", "upper");
    let server = start(&site);
    let device = phone(&server);
    for name in ["/phone00005e00530c-x.cfg", "/ring-00-00-5e-00-53-0c.wav"] {
        assert_eq!(device.get(name).unwrap().text(), "upper", "{name}");
    }
}

#[test]
fn yealink_common_model_file_is_served_to_every_client() {
    let site = site();
    site.write_config();
    for constituency in ["ote", "open"] {
        site.file(&format!("{constituency}/y000000000028.cfg"), "#!version:1.0.0.1\n");
    }
    let server = start(&site);
    assert_eq!(phone(&server).get("/y000000000028.cfg").unwrap().status, 200);
    assert_eq!(anonymous(&server).get("/y000000000028.cfg").unwrap().status, 200);
    assert_eq!(plain_status(&server, "ote", "/y000000000028.cfg"), 200);
    let said = provost(&site.path("."), &["check"]).stdout;
    assert!(!said.contains("allow 000000000028") && !said.contains("served to no phone: y0"), "{said}");
    // If it is listed, the file belongs to no phone, and check names the entry.
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { VVX500: "", "000000000028": "" } }));
    eventually("the new list", || (phone(&server).get("/y000000000028.cfg").unwrap().status == 200).then_some(()));
    let said = provost(&site.path("."), &["check"]).stdout;
    assert!(said.contains("warning: ote/constituency.json: invalid phone 000000000028: no phone has"), "{said}");
}

#[test]
fn common_pattern_serves_exactly_the_matching_files() {
    let site = Site::with_ote();
    let files =
        [&format!("{STRANGER}.bin"), "fw/11beefdead11-5.9.ld", "fw/11beefdead11-6.0.ld", "x/11beefdead11-5.9.ld"];
    for name in files {
        site.file(&format!("ote/{name}"), name);
    }
    let server = site.start();
    let status = |name: &str| phone(&server).get(&format!("/{name}")).unwrap().status;
    assert_eq!(files.map(status), [403; 4]);

    // check names each file and the line that makes it common.
    let found = provost(&site.path("."), &["check"]).stdout;
    for (name, advice) in
        [(files[0], "if it is a phone, run provost allow 00005e0053aa --constituency ote"), (files[1], "11beefdead11")]
    {
        let line = found.lines().find(|line| line.contains("served to no phone: ") && line.contains(name));
        let line = line.unwrap_or_else(|| panic!("{name}: {found}"));
        assert!(
            line.contains(advice) && line.contains(&format!("{name:?}")) && line.ends_with("to \"common\""),
            "{line}"
        );
    }
    // 11beefdead11 has the multicast bit set, so it is no phone's MAC.
    assert!(!found.contains("allow 11beefdead11"), "{found}");

    let policy = |common: Value| json!({ "trust": ["factory"], "phones": { VVX500: "" }, "common": common });
    site.constituency("ote", &policy(json!([files[0], "fw/11beefdead11-*.ld"])));
    within_a_second("`common` to apply", || (files.map(status) == [200, 200, 200, 403]).then_some(()));
    assert_eq!(phone(&server).put(&format!("/{STRANGER}.bin"), "", b"x").unwrap().status, 403, "not for an upload");
    let found = provost(&site.path("."), &["check"]).stdout;
    assert_eq!(found.matches("served to no phone").count(), 1, "{found}");

    // The file of a listed phone stays private.
    let mut listed = policy(json!([files[0], "fw/11beefdead11-*.ld"]));
    listed["phones"][STRANGER] = json!("");
    site.constituency("ote", &listed);
    within_a_second("the phone's file", || (files.map(status) == [403, 200, 200, 403]).then_some(()));
    let found = provost(&site.path("."), &["check"]).stdout;
    assert!(found.contains(&format!("\"common\": no effect: {STRANGER} is on a list")), "{found}");

    // A wildcard for the digits is an error, and the last good policy stays in use.
    site.constituency("ote", &policy(json!(["*.bin"])));
    let refused = provost(&site.path("."), &["check"]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.stdout.contains("\"common\": invalid pattern \"*.bin\": it contains no MAC address"),
        "{}",
        refused.stdout
    );
    assert_eq!(files.map(status), [403, 200, 200, 403]);
}

#[test]
fn listing_a_phone_anywhere_protects_its_files_at_once() {
    let site = Site::with_ote();
    site.file("ote/log-202611300630.txt", "a date");
    site.file(&format!("ote/{VVX500}-{VVX550}.txt"), "the own name in front");
    let server = site.start();
    let status = |path: &str| phone(&server).get(path).unwrap().status;
    let named = format!("/{VVX500}-{VVX550}.txt");
    assert_eq!((status("/log-202611300630.txt"), status(&named)), (200, 200));
    // Another constituency lists both; whether digits are a date depends only on the lists of the requested
    // constituency.
    let phones = json!({ VVX550: "", "202611300630": "" });
    site.constituency("ucs", &json!({ "trust": ["factory"], "phones": phones }));
    within_a_second("the list to apply", || (status(&named) == 403).then_some(()));
    assert_eq!(status("/log-202611300630.txt"), 200);
    site.constituency("ucs", &json!({ "trust": ["factory"], "phones": {} }));
    within_a_second("the list is empty again", || (status(&named) == 200).then_some(()));
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { VVX500: "", "202611300630": "" } }));
    within_a_second("its own list to apply", || (status("/log-202611300630.txt") == 403).then_some(()));
}
