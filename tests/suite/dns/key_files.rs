//! Key files as the tools of DNS servers write them.

use std::path::Path;
use std::process::Command;

use provost::dns::{Dns, DnsSettings};

use super::{CHALLENGE, example, open, place, values};
use crate::harness::bind::{self, program};
use crate::harness::tool;

/// Settings with a key file of this content.
fn with_key_file(settings: &DnsSettings, folder: &Path, name: &str, content: impl AsRef<[u8]>) -> DnsSettings {
    std::fs::write(folder.join(name), content).unwrap();
    DnsSettings { tsig_key_file: folder.join(name), ..settings.clone() }
}

#[tokio::test]
async fn key_is_read_in_every_format_and_signs_an_update() {
    if !bind::is_here("dns::key_files::key_is_read_in_every_format_and_signs_an_update") {
        return;
    }
    let primary = example();
    let settings = primary.settings("provost.");
    let written = std::fs::read_to_string(&settings.tsig_key_file).unwrap();
    let secret = written.split('"').nth(3).unwrap();
    let confgen =
        tool::run(Command::new(program("ddns-confgen").unwrap()).args(["-k", "provost", "-z", "example.com"]));
    assert_eq!(confgen.code, 0, "{}", confgen.stderr);
    let theirs = confgen.stdout.split('"').find(|part| part.len() == secret.len() && part.ends_with('=')).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut files = vec![
        ("confgen.txt", confgen.stdout.replace(theirs, secret)),
        ("bom.key", format!("\u{feff}{written}")),
        ("pdns.txt", format!("Create new TSIG key provost hmac-sha256 {secret}\n")),
        ("list.txt", format!("provost. hmac-sha256. {secret}\n")),
        (
            "Kprovost.+163+00001.private",
            format!("Private-key-format: v1.3\nAlgorithm: 163 (HMAC_SHA256)\nKey: {secret}\nBits: AAA=\n"),
        ),
        ("Kprovost.+163+00001.key", format!("provost. IN KEY 512 3 163 {secret}\n")),
    ];
    if let Some(keymgr) = program("keymgr") {
        let made = tool::run(Command::new(keymgr).args(["-t", "provost", "hmac-sha256", "256"]));
        assert_eq!(made.code, 0, "{}", made.stderr);
        let theirs = made.stdout.lines().find_map(|line| line.trim().strip_prefix("secret: ")).unwrap();
        files.push(("knot.key", made.stdout.replace(theirs, secret)));
    }
    for (name, content) in &files {
        let dns = open(&with_key_file(&settings, folder.path(), name, content));
        let value = values(&[name]);
        dns.add(&place(), &value).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(primary.txt(CHALLENGE).contains(&(*name).to_owned()), "{name}");
        dns.remove(&place(), &value).await.unwrap();
    }
    assert!(files.len() >= 6, "saw {} formats", files.len());
}

#[test]
fn file_that_is_no_key_is_named_as_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let settings = bind::settings("127.0.0.1:53".parse().unwrap(), Path::new("none"));
    let utf_16: Vec<u8> = "\u{feff}key \"a\"".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let dnssec = "Private-key-format: v1.3\nAlgorithm: 13 (ECDSAP256SHA256)\nPrivateKey: c2VjcmV0\n";
    for (name, content, found) in [
        ("windows.txt", &utf_16[..], "it is no UTF-8 text but UTF-16"),
        ("tls.pem", b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n", "it is a PEM file"),
        ("Kexample.com.+013+00001.private", dnssec.as_bytes(), "it is a DNSSEC key"),
        ("named.conf", b"options { };\ninclude \"/etc/bind/provost.key\";\n", "it holds no key in a known format"),
    ] {
        let error = Dns::open(&with_key_file(&settings, folder.path(), name, content)).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(found), "{error}");
        assert!(!error.contains("c2VjcmV0"), "{error}");
    }
}
