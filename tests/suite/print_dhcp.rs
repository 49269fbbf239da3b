//! `provost print dhcp`: real DHCP servers accept its output, whatever the notes contain, and offer the options to
//! phones besides the site's own reservations.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::lan::{self, DhcpServer, Program};
use crate::harness::namespace;
use crate::harness::site::Site;
use crate::harness::tool::{Ended, copy_program, provost, run};
use crate::harness::{VVX500, VVX550, is_here, not_run};

/// Notes that try to break out of a string or comment of some format.
const HOSTILE: [&str; 16] = [
    "\"; } host evil { hardware ethernet 00:00:5e:00:53:ff; } #",
    "'; /quit; \"",
    "line\nhost evil { }",
    "line\r\ndhcp-script=/bin/false",
    "next\u{85}line\u{2028}and\u{2029}more",
    "*/ /* // # -- <!-- -->",
    "\\",
    "\\\" } }",
    "$(reboot) $[/system reboot] `reboot` ${x}",
    "<?include \"/etc/passwd\"?>",
    "{ \"Dhcp4\": {} }",
    "\u{1b}]0;owned\u{7}\u{1b}[2J",
    "\u{202e}drawkcab\u{2066}",
    "ä ö ü ß — “quoted” 電話 📞",
    "?\t\0\u{7f}",
    "",
];

/// The usual site, whose constituency lists a phone for each hostile note, and one with a very long note.
fn site() -> Site {
    let mut site = Site::with_ote();
    site.config["listen"] = json!(["127.0.0.1:443"]);
    site.write_config();
    let long = format!("{}\nconf-file=/etc/shadow", "x".repeat(1100));
    let longer = format!("{}conf-file=/etc/shadow", "x".repeat(1022));
    let notes = HOSTILE.iter().copied().chain([long.as_str(), &longer]);
    let phones: serde_json::Map<String, Value> =
        notes.enumerate().map(|(number, note)| (format!("00005e0053{number:02x}"), note.into())).collect();
    assert_eq!(phones.len(), HOSTILE.len() + 2);
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": phones, "denied": ["00005e005300"] }));
    site
}

const ALL_OPTIONS: [&str; 8] =
    ["--vlan", "10", "--timezone", "Europe/Berlin", "--offset", "-05:30", "--ntp", "192.0.2.1"];

fn print(site: &Site, format: &str, more: &[&str]) -> Ended {
    provost(&site.path("."), &[&["print", "dhcp", "--constituency", "ote", "--format", format], more].concat())
}

/// The output with every option.
fn printed(site: &Site, format: &str) -> String {
    let ended = print(site, format, &ALL_OPTIONS);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    ended.stdout
}

/// Lets the DHCP server `command` check a file with `text`, whose name follows the arguments.
///
/// `AppArmor` may confine these programs to some folders; a copy is not confined.
fn checked_by_server(command: &str, arguments: &[&str], text: &str) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("printed.conf");
    std::fs::write(&file, text).unwrap();
    let program = folder.path().join("program");
    let found = run(Command::new("sh").args(["-c", "command -v \"$1\"", "sh", command]));
    copy_program(Path::new(found.stdout.trim()), &program);
    run(Command::new(program).args(arguments).arg(&file).current_dir(folder.path()))
}

fn dhcpd(text: &str) -> Ended {
    checked_by_server("dhcpd", &["-t", "-cf"], text)
}

fn dnsmasq(text: &str) -> Ended {
    checked_by_server("dnsmasq", &["--test", "-C"], text)
}

fn kea(text: &str) -> Ended {
    checked_by_server("kea-dhcp4", &["-t"], text)
}

#[track_caller]
fn is_good(ended: &Ended, text: &str) {
    assert_eq!(ended.code, 0, "{}{}\n{text}", ended.stdout, ended.stderr);
}

#[test]
fn dhcpd_accepts_the_printed_configuration() {
    let text = printed(&site(), "isc");
    is_good(&dhcpd(&text), &text);
    assert_ne!(dhcpd(&text.replace("code 160 = text", "code 160 = nonsense")).code, 0, "dhcpd would say so");
    let members = text.lines().filter(|line| line.starts_with("subclass \"provost-ote\" 1:00:00:5e:00:53:")).count();
    assert_eq!(members, HOSTILE.len() + 1, "one for each phone that is not denied:\n{text}");
    assert!(!text.contains("1:00:00:5e:00:53:00;"), "{text}");
    let outside = text.lines().filter(|line| {
        let known = ["#", "option ", "class ", "subclass ", "  ", "}"];
        !known.iter().any(|start| line.starts_with(start))
    });
    assert_eq!(outside.collect::<Vec<_>>(), Vec::<&str>::new(), "{text}");
    let ntp = print(&site(), "isc", &["--ntp", "192.0.2.1", "ntp.example.com"]);
    assert!(ntp.stdout.contains("option ntp-servers 192.0.2.1, ntp.example.com;"), "{ntp:?}");
    is_good(&dhcpd(&ntp.stdout), &ntp.stdout);
}

#[test]
fn dnsmasq_accepts_the_printed_configuration() {
    let text = printed(&site(), "dnsmasq");
    is_good(&dnsmasq(&text), &text);
    assert_ne!(dnsmasq(&text.replace("dhcp-option=tag", "dhcp-opt=tag")).code, 0, "dnsmasq would say so");
    let phones: Vec<&str> =
        text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("dhcp-opt")).collect();
    assert_eq!(phones.len(), HOSTILE.len() + 1, "{text}");
    assert!(phones.iter().all(|line| line.starts_with("dhcp-mac=set:provost-ote,00:00:5e:00:53:")), "{text}");
    assert!(text.lines().all(|line| line.len() < 1000), "dnsmasq would read the rest as another line:\n{text}");
}

#[test]
fn kea_accepts_the_printed_configuration() {
    let text = printed(&site(), "kea");
    is_good(&kea(&text), &text);
    assert_ne!(kea(&text.replace("ntp-servers", "ntp-server")).code, 0, "Kea would say so");
    let json: Value = serde_json::from_str(&text).unwrap();
    let class = &json["Dhcp4"]["client-classes"][0];
    assert_eq!(class["name"], "provost-ote");
    let tests: Vec<&str> = class["test"].as_str().unwrap().split(" or ").collect();
    assert_eq!(tests.len(), HOSTILE.len() + 1, "{text}");
    assert!(tests.iter().all(|test| test.starts_with("pkt4.mac == 0x00005e0053")), "{text}");
    assert_eq!(class["user-context"]["phones"]["00005e00530d"], HOSTILE[13]);
    assert!(json["Dhcp4"].get("reservations").is_none(), "{text}");
}

/// MikroTik's software is not available here, so this is our own parser of its syntax: a menu, or `add` with
/// `key=value`.
#[test]
fn printed_routeros_lines_use_only_known_keys() {
    let text = printed(&site(), "mikrotik");
    let mut menu = "";
    let mut leases = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(path) = line.strip_prefix("/ip dhcp-server ") {
            menu = path;
            continue;
        }
        let words = words(line.strip_prefix("add ").unwrap_or_else(|| panic!("{line}")));
        let keys: Vec<&str> = words.iter().map(|(key, _)| key.as_str()).collect();
        match menu {
            "option" => {
                assert_eq!(keys, ["name", "code", "value"], "{line}");
                assert!(words[2].1.strip_prefix("0x").unwrap().bytes().all(|byte| byte.is_ascii_hexdigit()), "{line}");
            }
            "option sets" => assert_eq!(keys, ["name", "options"], "{line}"),
            "lease" => {
                assert_eq!(keys, ["address", "mac-address", "dhcp-option-set", "comment"], "{line}");
                assert_eq!(words[2].1, "provost-ote");
                leases += 1;
            }
            _ => panic!("{menu}: {line}"),
        }
    }
    assert_eq!(leases, HOSTILE.len() + 1, "{text}");
    let url: String = "https://ote.phones.example.com/".bytes().map(|byte| format!("{byte:02x}")).collect();
    for line in [
        format!("add name=provost-ote-160 code=160 value=0x{url}"),
        "add name=provost-ote-2 code=2 value=0xffffb2a8".to_owned(),
        "add name=provost-ote-42 code=42 value=0xc0000201".to_owned(),
        "add name=provost-ote options=provost-ote-160,provost-ote-66,provost-ote-128,provost-ote-100,provost-ote-101,\
         provost-ote-2,provost-ote-42"
            .to_owned(),
    ] {
        assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    }
}

/// The pairs of a command; a value is a bare word, or a quoted string of plain characters and escaped bytes.
fn words(line: &str) -> Vec<(String, String)> {
    let mut rest = line;
    let mut words = Vec::new();
    while !rest.is_empty() {
        let (key, value) = rest.split_once('=').unwrap_or_else(|| panic!("{line}"));
        assert!(key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{key:?} in {line}");
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or_else(|| panic!("no end in {line}")),
            None => value.split_at(value.find(' ').unwrap_or(value.len())),
        };
        let mut bytes = value.bytes();
        while let Some(byte) = bytes.next() {
            if byte == b'\\' {
                assert!((0..2).all(|_| bytes.next().is_some_and(|digit| digit.is_ascii_hexdigit())), "{line}");
            }
            assert!(byte.is_ascii_graphic() || byte == b' ', "{line}");
            assert!(!matches!(byte, b'$' | b'?' | b'[' | b']' | b'{' | b'}' | b'`'), "{line}");
        }
        words.push((key.to_owned(), value.to_owned()));
        rest = after.strip_prefix(' ').unwrap_or(after);
        assert!(after.is_empty() || after.starts_with(' '), "{line}");
    }
    words
}

#[test]
fn printed_dhcp_contains_no_control_or_bidi_characters() {
    let site = site();
    for format in ["isc", "kea", "dnsmasq", "mikrotik"] {
        let text = printed(&site, format);
        let odd =
            |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        assert!(!text.contains(odd), "{format}:\n{}", text.escape_debug());
    }
}

#[test]
fn dhcp_options_apply_to_all_clients_if_any_phone_is_allowed() {
    let site = site();
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": "any" }));
    for (format, judge) in [("isc", dhcpd as fn(&str) -> Ended), ("dnsmasq", dnsmasq), ("kea", kea)] {
        let text = printed(&site, format);
        is_good(&judge(&text), &text);
        assert!(text.contains("It lists no phone, so every client"), "{text}");
        assert!(!text.contains("provost-ote"), "no host, tag or class:\n{text}");
    }
    let text = printed(&site, "mikrotik");
    assert!(text.contains("set [find] dhcp-option-set=provost-ote") && !text.contains("lease"), "{text}");
}

#[test]
fn invalid_dhcp_options_are_refused_with_a_reason() {
    let site = site();
    let refused = |format: &str, more: &[&str], words: &str| {
        let ended = print(&site, format, more);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{more:?}");
        assert!(ended.stderr.contains(words), "{more:?}: {}", ended.stderr);
    };
    for format in ["kea", "dnsmasq", "mikrotik"] {
        refused(format, &["--ntp", "ntp.invalid"], "cannot resolve the NTP server ntp.invalid");
    }
    refused("isc", &["--address", "00005e005301"], "use MAC=IP");
    refused("isc", &["--address", "00005e0053=192.0.2.30"], "00005e0053");
    refused("isc", &["--address", "00005e005301=2001:db8::1"], "invalid IPv4 address");
    for address in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        refused("isc", &["--address", &format!("00005e005301={address}")], "a phone cannot have it");
    }
    let twice = &["--address", "00005e005301=192.0.2.30", "--address", "00005e005302=192.0.2.30"];
    refused("isc", twice, "192.0.2.30 is reserved for both 00005e005301 and 00005e005302");
    let two = &["--address", "00005e005301=192.0.2.30", "00:00:5E:00:53:01=192.0.2.31"];
    refused("isc", two, "00005e005301 has two addresses, 192.0.2.30 and 192.0.2.31");
    let unknown =
        "00005e0053aa is not known to ote; to put it on the list, run provost allow 00005e0053aa --constituency ote";
    refused("isc", &["--address", "00005e0053aa=192.0.2.30"], unknown);
    refused("isc", &["--address", "00005e005300=192.0.2.30"], "00005e005300 is denied by ote");
    for time in ["0", "-1", "60", "4294967296", "soon", "", "172800 seconds ago"] {
        refused("isc", &[&format!("--lease={time}")], "--lease");
    }
    refused("isc", &["--lease", "2d", "--max-lease", "1d"], "--lease 172800 is longer than --max-lease 86400");
    refused("isc", &["--max-lease", "1d"], "--lease");
    refused("isc", &["--plain-http"], "\"plain_http\" is not set in provost.json; add for example \"plain_http\"");
    refused("isc", &["--timezone", "Europe/Berlim"], "did you mean Europe/Berlin?");
    refused("isc", &["--offset", "1"], "use for example +01:00");
    refused("isc", &["--vlan", "4095"], "4095");
    refused("isc", &["--constituency", "nobody"], "");
    let absent = provost(&site.path("."), &["print", "dhcp", "--format", "isc", "--constituency", "nobody"]);
    assert_eq!(absent.code, 2);
    assert!(absent.stderr.contains("constituency nobody not found, or not served"), "{}", absent.stderr);
}

#[test]
fn printed_dhcp_url_contains_alias_and_port() {
    let mut site = Site::with_ote();
    site.config["listen"] = json!(["127.0.0.1:8443"]);
    site.constituency(
        "ote",
        &json!({ "trust": ["factory"], "phones": { VVX500: "", VVX550: "" }, "aliases": ["trial"] }),
    );
    site.write_config();
    let args = ["print", "dhcp", "--format", "isc", "--constituency", "trial"];
    let ended = provost(&site.path("."), &args);
    assert!(ended.stdout.contains("option polycom-server \"https://trial.phones.example.com:8443/\";"), "{ended:?}");
    assert!(!Path::new(&site.path("state")).exists(), "nothing is created");
}

#[test]
fn dhcp_for_a_constituency_without_phones_is_refused() {
    let site = site();
    for policy in [
        json!({ "trust": ["factory"], "phones": {} }),
        json!({ "trust": ["factory"], "phones": { VVX500: "" }, "denied": [VVX500] }),
    ] {
        site.constituency("ote", &policy);
        for format in FORMATS {
            let ended = print(&site, format, &[]);
            assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{ended:?}");
            assert!(
                ended.stderr.contains(
                    "no known phone in ote; to put one on its list, run provost allow MAC --constituency ote"
                ),
                "{ended:?}"
            );
        }
    }
}

#[test]
fn dhcp_with_plain_http_needs_a_port_and_a_policy() {
    let mut site = site();
    site.config["plain_http"] = json!({ "listen": "192.168.1.5:8080", "networks": ["192.168.0.0/16"] });
    site.write_config();
    let closed = print(&site, "isc", &["--plain-http"]);
    assert_eq!((closed.code, closed.stdout.as_str()), (2, ""), "{closed:?}");
    assert!(closed.stderr.contains("add \"plain_http\": true to its constituency.json"), "{closed:?}");
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { VVX500: "" }, "plain_http": true }));
    for format in FORMATS {
        let open = print(&site, format, &["--plain-http"]);
        assert_eq!(open.code, 0, "{open:?}");
        assert!(open.stdout.contains("http://ote.phones.example.com:8080/"), "{open:?}");
        assert!(!open.stdout.contains("https:"), "{open:?}");
        assert!(open.stderr.contains("must resolve to 192.168.1.5"), "{open:?}");
    }
    site.config["plain_http"]["listen"] = json!(["0.0.0.0:80"]);
    site.write_config();
    let usual = print(&site, "isc", &["--plain-http"]);
    assert!(usual.stdout.contains("option polycom-server \"http://ote.phones.example.com/\";"), "{usual:?}");
    assert_eq!(usual.stderr, "");
}

#[test]
fn limits_of_a_dhcp_server_are_printed_as_notes() {
    let site = two_phones();
    let times = ["--lease", "172800", "--max-lease", "604800"];
    for (format, limits) in [
        ("isc", &[][..]),
        ("kea", &[]),
        ("dnsmasq", &["--lease affects only the phones of --address", "dnsmasq has no maximum lease time"]),
        ("mikrotik", &["RouterOS has no maximum lease time"]),
    ] {
        let ended = print(&site, format, &[&times[..], &["--address", &format!("{VVX500}=192.0.2.30")]].concat());
        assert_eq!(ended.code, 0, "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), limits.len(), "{ended:?}");
        for limit in limits {
            assert!(ended.stderr.contains(limit) && ended.stdout.contains(limit), "{ended:?}");
        }
    }
    let all = [format!("{VVX500}=192.0.2.30"), format!("{VVX550}=192.0.2.31")];
    let ended = print(&site, "dnsmasq", &["--lease", "2d", "--address", &all[0], &all[1]]);
    assert_eq!(ended.stderr, "", "every phone gets its lease time");
    let leases = ended.stdout.lines().filter(|line| line.starts_with("dhcp-host=") && line.ends_with(",172800"));
    assert_eq!(leases.count(), 2, "{ended:?}");
    let ended = print(&site, "mikrotik", &["--lease", "90061", "--address", &all[0]]);
    let lease = "add address=192.0.2.30 mac-address=00:00:5E:00:53:0C dhcp-option-set=provost-ote lease-time=1d1h1m1s";
    assert!(ended.stdout.contains(lease), "{ended:?}");
    let other = "add address=0.0.0.0 mac-address=00:00:5E:00:53:C7 dhcp-option-set=provost-ote lease-time=1d1h1m1s";
    assert!(ended.stdout.contains(other), "{ended:?}");
}

#[test]
fn phone_listed_in_two_constituencies_is_a_dhcp_warning() {
    let site = two_phones();
    site.constituency("prod", &json!({ "trust": ["factory"], "phones": { VVX550: "" } }));
    let ended = print(&site, "isc", &[]);
    assert!(ended.code == 0 && ended.stderr.contains("00005e0053c7 is on the lists of ote and of prod"), "{ended:?}");
    site.constituency("prod", &json!({ "trust": ["factory"], "phones": { VVX550: "" }, "denied": [VVX550] }));
    assert_eq!(print(&site, "isc", &[]).stderr, "");
}

const FORMATS: [&str; 4] = ["isc", "kea", "dnsmasq", "mikrotik"];
/// The options that a phone requests.
const ASKED: [u8; 9] = [1, 2, 42, 51, 66, 100, 101, 128, 160];
/// A device that is not a listed phone.
const PRINTER: &str = "00005e0053fe";
const VVX601: &str = "00005e0053ee";

/// `ote` lists two phones.
fn two_phones() -> Site {
    let site = site();
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { VVX500: "the kitchen", VVX550: "" } }));
    site
}

/// Creates a LAN in the namespace; outside, the test is run inside.
fn lan(test: &str, program: &str) -> bool {
    if !namespace::is_inside(test, &[]) {
        return false;
    }
    if !lan::create() {
        not_run(test, "virtual Ethernet devices are not available (ip link add … type veth)");
        return false;
    }
    is_here(test, program)
}

/// The output of `print dhcp` for `constituency`, which must succeed.
fn printed_for(site: &Site, format: &str, constituency: &str, more: &[&str]) -> String {
    let words = [&["print", "dhcp", "--format", format, "--constituency", constituency], more].concat();
    let ended = provost(&site.path("."), &words);
    assert_eq!(ended.code, 0, "{ended:?}");
    ended.stdout
}

/// Kea's configuration of the LAN, with the lists of the output appended to the lists of the same names.
fn merge(mut config: Value, printed: &[String]) -> String {
    for text in printed {
        let printed: Value = serde_json::from_str(text).unwrap();
        for (key, value) in printed["Dhcp4"].as_object().unwrap() {
            match (&mut config["Dhcp4"][key], value) {
                (Value::Array(there), Value::Array(more)) => there.extend(more.iter().cloned()),
                (there, value) => *there = value.clone(),
            }
        }
    }
    config.to_string()
}

/// A phone with a reservation keeps its address; a phone without one and another constituency's get theirs from the
/// pool.
#[track_caller]
fn assert_adds_options(mut server: DhcpServer) {
    for (mac, address, url) in [
        (VVX500, Some("192.0.2.30"), Some("https://ote.phones.example.com/")),
        (VVX550, None, Some("https://ote.phones.example.com/")),
        (VVX601, Some("192.0.2.32"), Some("https://prod.phones.example.com/")),
        (PRINTER, Some("192.0.2.33"), None),
    ] {
        let offer = server.offer(mac, &ASKED);
        match address {
            Some(address) => assert_eq!(offer.address.to_string(), address, "{mac}: {offer:?}"),
            None => assert!(offer.address.octets()[3] >= 100, "{mac}: {offer:?}"),
        }
        assert_eq!((offer.text(160).as_deref(), offer.text(66).as_deref()), (url, url), "{mac}: {offer:?}");
        let is_everything = [2, 42, 100, 101, 128].iter().all(|code| offer.options.contains_key(code));
        assert_eq!(is_everything, url == Some("https://ote.phones.example.com/"), "{mac}: {offer:?}");
    }
    let offer = server.offer(VVX500, &ASKED);
    assert_eq!(offer.text(128).unwrap(), "VLAN-A=10;");
    assert_eq!(offer.options[&42], [192, 0, 2, 1]);
    assert_eq!(offer.options[&2], (-19_800_i32).to_be_bytes());
    assert_eq!(offer.text(100).unwrap(), "CET-1CEST,M3.5.0,M10.5.0/3");
    assert_eq!(offer.text(101).unwrap(), "Europe/Berlin");
}

/// A second constituency with a phone that the first does not list.
fn with_prod() -> Site {
    let site = two_phones();
    site.constituency("prod", &json!({ "trust": ["factory"], "phones": { VVX601: "the \"lab\"; }" } }));
    site
}

#[test]
fn dhcpd_adds_options_to_reservations() {
    if !lan("print_dhcp::dhcpd_adds_options_to_reservations", "dhcpd") {
        return;
    }
    let site = with_prod();
    let own = "option polycom-server code 160 = text;  option polycom-vlan code 128 = text;
        option PCode code 100 = text;         option TCode code 101 = text;
        host a { hardware ethernet 00:00:5e:00:53:0c; fixed-address 192.0.2.30; }
        group { host b { hardware ethernet 00:00:5e:00:53:ee; fixed-address 192.0.2.32; } }
        host printer { hardware ethernet 00:00:5e:00:53:fe; fixed-address 192.0.2.33; }";
    let ote = |more: &[&str]| printed_for(&site, "isc", "ote", &[&ALL_OPTIONS, more].concat());
    let prod = |more: &[&str]| printed_for(&site, "isc", "prod", more);
    let without = &["--without-definitions"][..];
    for (own, ote, prod) in [
        // The site's own definitions, with and without ours besides, in either order.
        (own.to_owned(), ote(without), prod(without)),
        (own.to_owned(), ote(&[]), prod(&[])),
        // No own definition, or one with another name.
        (own.replace("option polycom", "# "), ote(&[]), prod(without)),
        (own.replace("polycom-server", "provision-url"), ote(&[]), prod(without)),
    ] {
        let text = lan::config(Program::Dhcpd, &format!("{own}\n{ote}\n{prod}"));
        assert_adds_options(DhcpServer::start(Program::Dhcpd, &text));
    }
    assert!(!ote(without).contains(" code 1"), "{}", ote(without));
    // As the output's comment says.
    assert!(ote(&[]).contains("A phone's own host declaration and its group override this"));
    let old = own.replace("host a {", "host a { option polycom-server \"https://old.example.com/\";");
    let url = |config: &str| {
        let mut server = DhcpServer::start(Program::Dhcpd, &lan::config(Program::Dhcpd, config));
        server.offer(VVX500, &ASKED).text(160).unwrap()
    };
    assert_eq!(url(&format!("{old}\n{}", ote(without))), "https://old.example.com/");
    assert!(ote(&[]).contains("the first one wins: include this before the others"));
    let class =
        "class \"all\" { match if substring(hardware, 1, 3) = 00:00:5e; option polycom-server \"https://old/\"; }";
    assert_eq!(url(&format!("{own}\n{}\n{class}", ote(without))), "https://ote.phones.example.com/");
    assert_eq!(url(&format!("{own}\n{class}\n{}", ote(without))), "https://old/");
}

#[test]
fn kea_adds_options_to_reservations() {
    if !lan("print_dhcp::kea_adds_options_to_reservations", "kea-dhcp4") {
        return;
    }
    let site = with_prod();
    let mut own = lan::kea_config();
    own["Dhcp4"]["subnet4"][0]["reservations"] = json!([
        { "hw-address": "00:00:5e:00:53:0c", "ip-address": "192.0.2.30" },
        { "hw-address": "00:00:5e:00:53:ee", "ip-address": "192.0.2.32" },
        { "hw-address": "00:00:5e:00:53:fe", "ip-address": "192.0.2.33" },
    ]);
    let ote = |more: &[&str]| printed_for(&site, "kea", "ote", &[&ALL_OPTIONS, more].concat());
    let prod = |more: &[&str]| printed_for(&site, "kea", "prod", more);
    let without = &["--without-definitions"][..];
    let mut defined = own.clone();
    defined["Dhcp4"]["option-def"] = json!([
        { "name": "provision-url", "code": 160, "type": "string", "space": "dhcp4" },
        { "name": "polycom-vlan", "code": 128, "type": "string", "space": "dhcp4" },
    ]);
    for (own, printed) in [(&own, [ote(&[]), prod(without)]), (&defined, [prod(without), ote(without)])] {
        let text = merge(own.clone(), &printed);
        assert_adds_options(DhcpServer::start(Program::Kea, &text));
    }
    assert!(!ote(without).contains("option-def"), "{}", ote(without));
    // As the output's comment says.
    assert!(ote(&[]).contains("A subnet, a pool and a reservation override this"));
    assert!(ote(&[]).contains("the first one wins: put this before the others"));
    let class = json!({
        "name": "all", "test": "substring(pkt4.mac, 0, 3) == 0x00005e",
        "option-data": [{ "code": 160, "csv-format": false, "data": "'https://old/'", "always-send": true }],
    });
    for (place, url) in [(0, "https://old/"), (1, "https://ote.phones.example.com/")] {
        let mut config: Value = serde_json::from_str(&merge(own.clone(), &[ote(&[])])).unwrap();
        config["Dhcp4"]["client-classes"].as_array_mut().unwrap().insert(place, class.clone());
        let mut server = DhcpServer::start(Program::Kea, &config.to_string());
        assert_eq!(server.offer(VVX500, &ASKED).text(160).unwrap(), url);
    }
    own["Dhcp4"]["subnet4"][0]["option-data"] = json!([{ "name": "time-offset", "data": "3600" }]);
    let mut server = DhcpServer::start(Program::Kea, &merge(own, &[ote(&[])]));
    assert_eq!(server.offer(VVX500, &ASKED).options[&2], 3600_i32.to_be_bytes());
}

#[test]
fn dnsmasq_adds_options_to_reservations() {
    if !lan("print_dhcp::dnsmasq_adds_options_to_reservations", "dnsmasq") {
        return;
    }
    let site = with_prod();
    let own = "dhcp-host=00:00:5e:00:53:0c,192.0.2.30
dhcp-host=00:00:5e:00:53:ee,set:lab,192.0.2.32
dhcp-host=00:00:5e:00:53:fe,192.0.2.33,set:lab
dhcp-option=tag:lab,3";
    let ote = printed_for(&site, "dnsmasq", "ote", &ALL_OPTIONS);
    let prod = printed_for(&site, "dnsmasq", "prod", &["--without-definitions"]);
    for text in [format!("{own}\n{ote}\n{prod}"), format!("{prod}\n{ote}\n{own}")] {
        assert_adds_options(DhcpServer::start(Program::Dnsmasq, &lan::config(Program::Dnsmasq, &text)));
    }
    let old = "dhcp-option=160,\"https://old.example.com/\"";
    let text = lan::config(Program::Dnsmasq, &format!("{ote}\n{own}\n{old}"));
    let mut server = DhcpServer::start(Program::Dnsmasq, &text);
    assert_eq!(server.offer(VVX500, &ASKED).text(160).unwrap(), "https://ote.phones.example.com/");
    assert_eq!(server.offer(PRINTER, &ASKED).text(160).unwrap(), "https://old.example.com/");
}

/// Asserts all that an ISC dhcpd site gets for its phones from one output; and, of the lease times, what the server
/// supports.
#[track_caller]
fn reserves_addresses(mut server: DhcpServer, url: &str, longest: Option<u32>) {
    for (mac, address) in [(VVX500, "192.0.2.30"), (VVX550, "192.0.2.31")] {
        let offer = server.offer(mac, &ASKED);
        assert_eq!(offer.address.to_string(), address, "{offer:?}");
        assert_eq!(offer.text(160).unwrap(), url);
        assert_eq!(offer.text(101).unwrap(), "US/Eastern");
        assert_eq!(offer.lease(), 172_800);
    }
    if let Some(longest) = longest {
        assert_eq!(server.offer_for(VVX500, &ASKED, Some(10_000_000)).lease(), longest);
    }
    let other = server.offer(PRINTER, &ASKED);
    assert!(other.address.octets()[3] >= 100 && other.lease() != 172_800, "{other:?}");
    assert_eq!(other.text(160), None);
}

#[test]
fn printed_dhcp_reserves_addresses_and_sets_lease_times() {
    if !lan("print_dhcp::printed_dhcp_reserves_addresses_and_sets_lease_times", "dhcpd") {
        return;
    }
    let mut site = two_phones();
    site.config["plain_http"] = json!({ "listen": "192.168.1.5:80", "networks": ["192.168.0.0/16"] });
    site.write_config();
    let phones = json!({ VVX500: "the kitchen", VVX550: "" });
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": phones, "plain_http": true }));
    let addresses = [format!("{VVX500}=192.0.2.30"), "00:00:5E:00:53:C7=192.0.2.31".to_owned()];
    let common = ["--lease", "172800", "--max-lease", "604800", "--timezone", "US/Eastern"];
    for (more, url) in
        [(&[][..], "https://ote.phones.example.com/"), (&["--plain-http"], "http://ote.phones.example.com/")]
    {
        let words = [&common, &["--address", &addresses[0], "--address", &addresses[1]][..], more].concat();
        let print = |format: &str| printed_for(&site, format, "ote", &words);
        for format in FORMATS {
            let said = "Reserved addresses: 2. These phones must have no other reservation at the site.";
            assert!(print(format).contains(said), "{format}");
        }
        let dhcpd = lan::config(Program::Dhcpd, &print("isc"));
        reserves_addresses(DhcpServer::start(Program::Dhcpd, &dhcpd), url, Some(604_800));
        let kea = merge(lan::kea_config(), &[print("kea")]);
        reserves_addresses(DhcpServer::start(Program::Kea, &kea), url, Some(604_800));
        let dnsmasq = lan::config(Program::Dnsmasq, &print("dnsmasq"));
        reserves_addresses(DhcpServer::start(Program::Dnsmasq, &dnsmasq), url, None);
    }
}

#[test]
fn ntp_names_are_resolved_for_servers_that_need_addresses() {
    let test = "print_dhcp::ntp_names_are_resolved_for_servers_that_need_addresses";
    if !namespace::is_inside(test, &[]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    let names = "192.0.2.8 ntp.example.com\n192.0.2.7 ntp.example.com\n2001:db8::7 ntp.example.com six.example.com\n\
                127.0.1.1 here.example.com\n";
    std::fs::write(&hosts, names).unwrap();
    namespace::bind_mount(&hosts, Path::new("/etc/hosts"));
    let site = two_phones();
    let ntp = ["--ntp", "ntp.example.com", "192.0.2.7", "192.0.2.9"];
    for (format, value) in [
        ("kea", "\"data\": \"192.0.2.7, 192.0.2.8, 192.0.2.9\""),
        ("dnsmasq", "dhcp-option=tag:provost-ote,42,192.0.2.7,192.0.2.8,192.0.2.9"),
        ("mikrotik", "code=42 value=0xc0000207c0000208c0000209"),
    ] {
        let ended = print(&site, format, &ntp);
        assert_eq!(ended.code, 0, "{ended:?}");
        assert!(ended.stdout.contains(value), "{ended:?}");
        let said = "ntp.example.com resolved to 192.0.2.7, 192.0.2.8 when this was printed";
        assert!(ended.stdout.contains(said) && ended.stderr.contains(said), "{ended:?}");
        for (name, why) in
            [("six.example.com", "no IPv4 address"), ("here.example.com", "it resolves to 127.0.1.1 here")]
        {
            let refused = print(&site, format, &["--ntp", name]);
            assert_eq!((refused.code, refused.stdout.as_str()), (2, ""), "{refused:?}");
            assert!(refused.stderr.contains(why) && refused.stderr.contains("use addresses"), "{refused:?}");
        }
    }
    let isc = print(&site, "isc", &ntp);
    assert!(isc.stdout.contains("option ntp-servers ntp.example.com, 192.0.2.7, 192.0.2.9;"), "{isc:?}");
    assert_eq!(isc.stderr, "");
}
