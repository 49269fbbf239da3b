//! `provost print dhcp`: what it prints is taken by the real DHCP servers, whatever stands in a note.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::site::Site;
use crate::harness::tool::{Ended, copy_program, provost, run};
use crate::harness::{VVX500, VVX550};

/// Notes that want out of where they stand, in one dialect or another.
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

/// The usual site, whose constituency knows a phone for each hostile note, and one with a very long note.
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

const EVERYTHING: [&str; 8] =
    ["--vlan", "10", "--timezone", "Europe/Berlin", "--offset", "-05:30", "--ntp", "192.0.2.1"];

fn print(site: &Site, format: &str, more: &[&str]) -> Ended {
    provost(&site.path("."), &[&["print", "dhcp", "--constituency", "ote", "--format", format], more].concat())
}

/// What is printed, with everything that can be asked for.
fn printed(site: &Site, format: &str) -> String {
    let ended = print(site, format, &EVERYTHING);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    ended.stdout
}

/// Lets the DHCP server `command` read the file that `text` makes; its name follows the arguments.
///
/// Where `AppArmor` confines these programs, they may not read files anywhere: a copy is not confined.
fn judged(command: &str, arguments: &[&str], text: &str) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("printed.conf");
    std::fs::write(&file, text).unwrap();
    let program = folder.path().join("program");
    let found = run(Command::new("sh").args(["-c", "command -v \"$1\"", "sh", command]));
    copy_program(Path::new(found.stdout.trim()), &program);
    run(Command::new(program).args(arguments).arg(&file).current_dir(folder.path()))
}

fn dhcpd(text: &str) -> Ended {
    judged("dhcpd", &["-t", "-cf"], text)
}

fn dnsmasq(text: &str) -> Ended {
    judged("dnsmasq", &["--test", "-C"], text)
}

fn kea(text: &str) -> Ended {
    judged("kea-dhcp4", &["-t"], text)
}

#[track_caller]
fn is_good(ended: &Ended, text: &str) {
    assert_eq!(ended.code, 0, "{}{}\n{text}", ended.stdout, ended.stderr);
}

#[test]
fn dhcpd_takes_it() {
    let text = printed(&site(), "isc");
    is_good(&dhcpd(&text), &text);
    assert_ne!(dhcpd(&text.replace("code 160 = text", "code 160 = nonsense")).code, 0, "dhcpd would say so");
    let hosts = text.lines().filter(|line| line.trim_start().starts_with("host ")).count();
    assert_eq!(hosts, HOSTILE.len() + 1, "one for each phone that is not denied:\n{text}");
    assert!(!text.contains("host provost-ote-00005e005300 "), "{text}");
    let comments = text.lines().filter(|line| line.trim_start().starts_with('#')).count();
    assert_eq!(comments, 3 + HOSTILE.len() + 1 - 1, "a line each, but for the empty note:\n{text}");
    let ntp = print(&site(), "isc", &["--ntp", "192.0.2.1", "ntp.example.com"]);
    assert!(ntp.stdout.contains("option ntp-servers 192.0.2.1, ntp.example.com;"), "{ntp:?}");
    is_good(&dhcpd(&ntp.stdout), &ntp.stdout);
}

#[test]
fn dnsmasq_takes_it() {
    let text = printed(&site(), "dnsmasq");
    is_good(&dnsmasq(&text), &text);
    assert_ne!(dnsmasq(&text.replace("dhcp-option=tag", "dhcp-opt=tag")).code, 0, "dnsmasq would say so");
    let hosts: Vec<&str> =
        text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("dhcp-opt")).collect();
    assert_eq!(hosts.len(), HOSTILE.len() + 1, "{text}");
    assert!(
        hosts.iter().all(|line| line.starts_with("dhcp-host=00:00:5e:00:53:") && line.ends_with(",set:provost-ote"))
    );
    assert!(text.lines().all(|line| line.len() < 1000), "dnsmasq would take the rest for a line of its own:\n{text}");
}

#[test]
fn kea_takes_it() {
    let text = printed(&site(), "kea");
    is_good(&kea(&text), &text);
    assert_ne!(kea(&text.replace("ntp-servers", "ntp-server")).code, 0, "Kea would say so");
    let json: Value = serde_json::from_str(&text).unwrap();
    let reservations = json["Dhcp4"]["reservations"].as_array().unwrap();
    assert_eq!(reservations.len(), HOSTILE.len() + 1);
    assert!(reservations.iter().all(|it| it["client-classes"] == json!(["provost-ote"])), "{text}");
    assert_eq!(reservations[12]["user-context"]["comment"], HOSTILE[13]);
}

/// No program of MikroTik's runs here, so this is our own reading of its syntax: a menu, or `add` with `key=value`.
#[test]
fn routeros_gets_only_lines_that_it_knows() {
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

/// The pairs of a command; a value is a bare word, or a quoted one of plain characters and escaped bytes.
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
fn nothing_printed_drives_a_terminal_or_deceives_a_reader() {
    let site = site();
    for format in ["isc", "kea", "dnsmasq", "mikrotik"] {
        let text = printed(&site, format);
        let odd =
            |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        assert!(!text.contains(odd), "{format}:\n{}", text.escape_debug());
    }
}

#[test]
fn where_no_phone_is_named_everybody_on_the_network_is_told() {
    let site = site();
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": "any" }));
    for (format, judge) in [("isc", dhcpd as fn(&str) -> Ended), ("dnsmasq", dnsmasq), ("kea", kea)] {
        let text = printed(&site, format);
        is_good(&judge(&text), &text);
        assert!(text.contains("It names no phone, so everybody"), "{text}");
        assert!(!text.contains("provost-ote"), "no host, tag or class:\n{text}");
    }
    let text = printed(&site, "mikrotik");
    assert!(text.contains("set [find] dhcp-option-set=provost-ote") && !text.contains("lease"), "{text}");
}

#[test]
fn what_makes_no_sense_is_refused_with_a_word_on_it() {
    let site = site();
    let refused = |format: &str, more: &[&str], words: &str| {
        let ended = print(&site, format, more);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{more:?}");
        assert!(ended.stderr.contains(words), "{more:?}: {}", ended.stderr);
    };
    refused("kea", &["--ntp", "pool.ntp.org"], "pool.ntp.org is a name");
    refused("isc", &["--timezone", "Europe/Berlim"], "did you mean Europe/Berlin?");
    refused("isc", &["--offset", "1"], "write it as +01:00");
    refused("isc", &["--vlan", "4095"], "4095");
    refused("isc", &["--constituency", "nobody"], "");
    let absent = provost(&site.path("."), &["print", "dhcp", "--format", "isc", "--constituency", "nobody"]);
    assert_eq!(absent.code, 2);
    assert!(absent.stderr.contains("there is no constituency nobody that can be served"), "{}", absent.stderr);
}

#[test]
fn an_alias_and_another_port_are_in_the_url() {
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
    assert!(!Path::new(&site.path("state")).exists(), "nothing is made");
}
