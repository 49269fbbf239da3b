//! The virtual phone: it requests the same files as a Polycom phone in the same order, and reports whether it was
//! provisioned.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::bind::dead_address;
use crate::harness::pki::{FACTORY, OTHER_FACTORY, SERVER_CA};
use crate::harness::site::{DOMAIN, Running, Site, holds};
use crate::harness::tool::{Ended, provost};
use crate::harness::{STRANGER, VVX500};

const VVX_500: &str = include_str!("traces/vvx-500-5.9.7.txt");
const SOUNDPOINT_550: &str = include_str!("traces/soundpoint-550-4.0.15.txt");

/// The shipped constituencies, served to phones of the test factory.
fn shipped() -> Site {
    let site = Site::new();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("constituencies");
    let mut files = 0;
    for name in ["ucs-5-9", "ote"] {
        for entry in std::fs::read_dir(shipped.join(name)).unwrap().flatten().filter(|entry| entry.path().is_file()) {
            site.file(&format!("{name}/{}", entry.file_name().display()), std::fs::read(entry.path()).unwrap());
            files += 1;
        }
        let policy = std::fs::read(site.served(name).join("constituency.json")).unwrap();
        let mut policy: Value = serde_json::from_slice(&policy).unwrap();
        policy["trust"] = json!(["factory"]);
        site.constituency(name, &policy);
    }
    assert!(files >= 12, "{files}");
    site
}

/// Boots a phone with the MAC `mac` at `name`; its files are in a temporary folder.
struct PhoneRunner(tempfile::TempDir);

impl PhoneRunner {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        FACTORY.device(VVX500).write(folder.path(), "device");
        FACTORY.device(STRANGER).write(folder.path(), "stranger");
        OTHER_FACTORY.device(VVX500).write(folder.path(), "other");
        std::fs::write(folder.path().join("ca.pem"), SERVER_CA.pem()).unwrap();
        std::fs::write(folder.path().join("wrong.pem"), FACTORY.root.pem()).unwrap();
        Self(folder)
    }

    fn boot(&self, server: &Running, name: &str, device: &str, more: &[&str]) -> Ended {
        let url = format!("https://{name}.{DOMAIN}:{}/", server.address().port());
        let (certificate, key) = (format!("{device}.pem"), format!("{device}.key"));
        let mac = if device == "stranger" { STRANGER } else { VVX500 };
        let resolve = server.address().to_string();
        let mut args = vec!["phone", "--url", &url, "--mac", mac, "--certificate", &certificate, "--key", &key];
        args.extend(["--resolve", &resolve]);
        if !more.contains(&"--ca") {
            args.extend(["--ca", "ca.pem"]);
        }
        args.extend(more);
        provost(self.0.path(), &args)
    }
}

/// The steps of a trace: method, file, User-Agent's program.
fn steps(trace: &str, config: &[&str]) -> Vec<[String; 3]> {
    let mut steps = Vec::new();
    for line in trace.lines().filter(|line| !line.starts_with('#')) {
        let [method, path, program] = line.split_whitespace().collect::<Vec<_>>().try_into().unwrap();
        let files: Vec<String> = match path {
            "/{config}" => config.iter().map(|&file| file.to_owned()).collect(),
            path => vec![path[1..].replace("{mac}", VVX500)],
        };
        steps.extend(files.into_iter().map(|file| [method.to_owned(), file, program.to_owned()]));
    }
    steps
}

/// The same by the server's log; only the file of each path, because master configurations name folders.
fn logged(server: &Running, count: usize) -> Vec<[String; 3]> {
    let lines = crate::harness::eventually("every request in the log", || {
        Some(server.access_lines()).filter(|lines| lines.len() >= count)
    });
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    lines
        .iter()
        .map(|line| {
            let program = text(&line["user_agent"]).rsplit("Type/").next().unwrap().to_owned();
            [text(&line["method"]), text(&line["path"]).rsplit('/').next().unwrap().to_owned(), program]
        })
        .collect()
}

#[test]
fn vvx_500_requests_follow_its_recorded_trace() {
    let site = shipped();
    let server = site.start();
    let ended = PhoneRunner::new().boot(&server, "ucs-5-9", "device", &[]);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    let expected = steps(VVX_500, &["00005e00530c-user.cfg", "site.cfg"]);
    assert_eq!(expected.len(), 15);
    assert_eq!(logged(&server, expected.len()), expected);
    let line = server.access("the firmware", |line| line["path"].as_str().unwrap().ends_with(".sip.ld"));
    assert_eq!(line["path"], "/firmware/5.9.7.4477/3111-44500-001.sip.ld");
    assert_eq!(line["user_agent"], "FileTransport PolycomVVX-VVX_500-UA/5.9.7.4477 Type/Application");
    assert!(ended.stdout.lines().last().unwrap().starts_with("provisioned (15 requests in "), "{}", ended.stdout);
    assert!(ended.stdout.contains("firmware not offered, keeps its own"), "{}", ended.stdout);
}

#[test]
fn soundpoint_550_requests_follow_its_recorded_trace() {
    let site = shipped();
    let server = site.start();
    let model = ["--model", "SPIP_550", "--firmware", "4.0.15.1047", "--part-number", "2345-12500-001"];
    let ended = PhoneRunner::new().boot(&server, "ucs-5-9", "device", &model);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    let expected = steps(SOUNDPOINT_550, &["00005e00530c-user.cfg", "site.cfg"]);
    assert_eq!(expected.len(), 8);
    assert_eq!(logged(&server, expected.len()), expected);
    let line = server.access("the first", |_| true);
    let agent = line["user_agent"].as_str().unwrap();
    assert!(agent.starts_with("FileTransport PolycomSoundPointIP-SPIP_550-UA/4.0.15.1047"), "{agent}");
}

#[test]
fn paths_equal_the_trace_if_the_master_names_no_folders() {
    let site = Site::with_ote();
    site.file("ote/000000000000.cfg", r#"<APPLICATION APP_FILE_PATH="sip.ld" CONFIG_FILES="site.cfg"/>"#);
    let server = site.start();
    assert_eq!(PhoneRunner::new().boot(&server, "ote", "device", &[]).code, 0);
    let expected = steps(VVX_500, &["site.cfg"]);
    logged(&server, expected.len());
    let paths: Vec<String> =
        server.access_lines().iter().map(|line| line["path"].as_str().unwrap()[1..].to_owned()).collect();
    assert_eq!(paths, expected.into_iter().map(|[_, file, _]| file).collect::<Vec<_>>());
}

#[test]
fn phone_json_has_one_object_per_request_and_an_outcome() {
    let site = shipped();
    let server = site.start();
    let ended = PhoneRunner::new().boot(&server, "ote", "device", &["--json"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let lines: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (outcome, requests) = lines.split_last().unwrap();
    assert!(requests.len() >= 14 && requests.iter().all(|line| line["event"] == "request"), "{}", ended.stdout);
    for line in requests {
        assert!(line["status"].is_u64() && line["path"].is_string() && line["duration_ms"].is_number(), "{line}");
    }
    assert_eq!((&outcome["event"], &outcome["provisioned"]), (&json!("outcome"), &json!(true)));
    assert_eq!((&outcome["mac"], &outcome["requests"]), (&json!(VVX500), &json!(requests.len())));
}

#[test]
fn failed_boot_reports_its_reason() {
    let site = shipped();
    let server = site.start();
    let booth = PhoneRunner::new();
    let not_provisioned = |device: &str, name: &str, more: &[&str], reason: &str| {
        let ended = booth.boot(&server, name, device, more);
        let last = ended.stdout.lines().last().unwrap_or_default();
        assert_eq!(ended.code, 1, "{device} {name}: {}{}", ended.stdout, ended.stderr);
        assert!(last.starts_with("not provisioned: ") && last.contains(reason), "{device} {name}: {last}");
    };
    not_provisioned("stranger", "ucs-5-9", &[], "/00005e0053aa.cfg: refused (403)");
    not_provisioned("other", "ucs-5-9", &[], "unknown_ca");
    not_provisioned("device", "nobody", &[], "unrecognized_name");
    not_provisioned("device", "ucs-5-9", &["--ca", "wrong.pem"], "CA");
    std::fs::remove_file(site.served("ote/000000000000.cfg")).unwrap();
    not_provisioned("device", "ote", &[], "neither 00005e00530c.cfg nor 000000000000.cfg is in the folder");
    let json = booth.boot(&server, "ucs-5-9", "stranger", &["--json"]);
    let last: Value = serde_json::from_str(json.stdout.lines().last().unwrap()).unwrap();
    assert_eq!((json.code, &last["provisioned"]), (1, &json!(false)));
    assert!(last["reason"].as_str().unwrap().contains("403"), "{last}");
}

#[test]
fn connection_refused_is_reported_as_not_provisioned() {
    let dead = dead_address();
    let booth = PhoneRunner::new();
    let url = format!("https://ote.{DOMAIN}/");
    let args = ["phone", "--url", &url, "--mac", VVX500, "--certificate", "device.pem", "--key", "device.key"];
    let ended = provost(booth.0.path(), &[&args[..], &["--ca", "ca.pem", "--resolve", &dead.to_string()]].concat());
    assert_eq!(ended.code, 1, "{}{}", ended.stdout, ended.stderr);
    let last = ended.stdout.lines().last().unwrap();
    assert!(last.starts_with("not provisioned: ") && last.contains("refused"), "{last}");
}

#[test]
fn second_boot_appends_to_the_uploaded_log() {
    let site = shipped();
    let server = site.start();
    let booth = PhoneRunner::new();
    let log = site.uploads("ucs-5-9", VVX500).join("logs").join(format!("{VVX500}-app.log"));
    assert_eq!(booth.boot(&server, "ucs-5-9", "device", &[]).code, 0);
    let first = std::fs::read(&log).unwrap();
    assert!(!first.is_empty());
    let second = booth.boot(&server, "ucs-5-9", "device", &["--json"]);
    assert_eq!(second.code, 0, "{}", second.stdout);
    let grown = std::fs::read(&log).unwrap();
    assert!(grown.len() > first.len() && grown.starts_with(&first), "{} after {}", grown.len(), first.len());
    let continued = second
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .any(|line| line["method"] == "PUT" && line["status"] == 204 && line["sent"] == grown.len() - first.len());
    assert!(continued, "{}", second.stdout);
    server.access("the HEAD before it", |line| line["method"] == "HEAD" && line["status"] == 200);
    assert!(!holds(&log, first));
}

#[test]
fn virtual_phone_without_certificate_boots_if_none_is_required() {
    let site = Site::new();
    site.constituency("public", &json!({ "client_auth": "none" }));
    site.file("public/000000000000.cfg", r#"<APPLICATION CONFIG_FILES="site.cfg"/>"#);
    site.file("public/site.cfg", "<site/>");
    let server = site.start();
    let booth = PhoneRunner::new();
    let (url, resolve) = (format!("https://public.{DOMAIN}/"), server.address().to_string());
    let args = ["phone", "--url", &url, "--mac", VVX500, "--no-certificate", "--ca", "ca.pem", "--resolve", &resolve];
    let one = provost(booth.0.path(), &args);
    assert_eq!(one.code, 0, "{}{}", one.stdout, one.stderr);
    let many = provost(booth.0.path(), &[&args[..], &["--count", "50"]].concat());
    assert_eq!(many.code, 0, "{}{}", many.stdout, many.stderr);
    assert!(many.stdout.lines().last().unwrap().starts_with("50 of 50 provisioned in "), "{}", many.stdout);
}
