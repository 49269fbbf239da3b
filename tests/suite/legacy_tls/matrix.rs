//! Every version, key exchange and suite at every setting, with and without a certificate.

use super::*;

/// A suite by its OpenSSL name; whether rustls supports it, and whether it is older than TLS 1.2.
const SUITES: [(&str, bool, bool); 20] = [
    ("ECDHE-RSA-AES128-GCM-SHA256", true, false),
    ("ECDHE-RSA-AES256-GCM-SHA384", true, false),
    ("ECDHE-RSA-CHACHA20-POLY1305", true, false),
    ("ECDHE-ECDSA-AES128-GCM-SHA256", true, false),
    ("DHE-RSA-AES128-GCM-SHA256", false, false),
    ("DHE-RSA-AES256-GCM-SHA384", false, false),
    ("ECDHE-RSA-AES128-SHA256", false, false),
    ("ECDHE-RSA-AES256-SHA384", false, false),
    ("ECDHE-RSA-AES128-SHA", false, true),
    ("ECDHE-RSA-AES256-SHA", false, true),
    ("DHE-RSA-AES128-SHA256", false, false),
    ("DHE-RSA-AES256-SHA256", false, false),
    ("DHE-RSA-AES128-SHA", false, true),
    ("DHE-RSA-AES256-SHA", false, true),
    ("AES128-GCM-SHA256", false, false),
    ("AES256-GCM-SHA384", false, false),
    ("AES128-SHA256", false, false),
    ("AES256-SHA256", false, false),
    ("AES128-SHA", false, true),
    ("AES256-SHA", false, true),
];

/// A client with one version and one suite: its arguments, the lowest setting that serves it, and the logged hint.
struct Client {
    arguments: String,
    setting: &'static str,
    version: &'static str,
    suite: &'static str,
}

fn clients() -> Vec<Client> {
    let mut clients = Vec::new();
    for (suite, is_modern, is_old) in SUITES {
        for (flag, version) in [("tls1", "TLSv1.0"), ("tls1_1", "TLSv1.1"), ("tls1_2", "TLSv1.2")] {
            if version != "TLSv1.2" && !is_old {
                continue;
            }
            let setting = match version {
                "TLSv1.2" if is_modern => "modern",
                "TLSv1.2" => "compatible",
                _ => "legacy",
            };
            clients.push(Client { arguments: only(flag, suite), setting, version, suite });
        }
    }
    for suite in ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"] {
        let arguments = format!("-tls1_3 -ciphersuites {suite}");
        clients.push(Client { arguments, setting: "modern", version: "TLSv1.3", suite });
    }
    clients
}

fn rank(setting: &str) -> usize {
    SETTINGS.iter().position(|known| *known == setting).unwrap()
}

#[test]
fn each_version_and_suite_is_served_from_its_setting_up() {
    let site = site_with_each_setting();
    let server = site.start();
    let clients = clients();
    assert_eq!(clients.len(), 20 + 6 + 6 + 3);
    let (mut good, mut bad) = (0, 0);
    for client in &clients {
        for setting in SETTINGS {
            let case = format!("{} at {setting}", client.arguments);
            let before = server.access_lines().len();
            let found = attempt(&site, &server, setting, Some(&PHONE), &client.arguments);
            let line = server_line(&server, before);
            if rank(setting) < rank(client.setting) {
                bad += 1;
                assert!(!found.is_served(), "{case}: {}", found.text);
                let alert = if client.version == "TLSv1.2" { "handshake failure" } else { "protocol version" };
                assert_eq!(found.alert(), Some(alert), "{case}: {}", found.text);
                let help = format!("; \"tls\": \"{}\" of {setting} would accept it", client.setting);
                assert!(line["reason"].as_str().unwrap().ends_with(&help), "{case}: {line}");
                assert_eq!(line["constituency"], setting, "{case}");
            } else {
                good += 1;
                assert!(found.text.contains(&format!("<{setting}/>")), "{case}: {}", found.text);
                assert_eq!(found.agreed().map(|(_, suite)| suite), Some(client.suite), "{case}");
                let by = if client.setting == "modern" { Value::Null } else { "old".into() };
                assert_eq!(
                    (&line["lane"], &line["mac"], &line["status"]),
                    (&by, &VVX500.into(), &200.into()),
                    "{case}"
                );
                assert!(line["tls"].as_str().unwrap().starts_with(client.version), "{case}: {line}");
            }
        }
    }
    assert_eq!((good, bad), (7 * 3 + 16 * 2 + 12, 16 + 12 * 2));
}

#[test]
fn missing_certificate_is_refused_unless_client_auth_is_none() {
    let site = site_with_each_setting();
    let server = site.start();
    let clients = [
        ("legacy", only("tls1", "AES128-SHA")),
        ("legacy", only("tls1_1", "DHE-RSA-AES256-SHA")),
        ("compatible", only("tls1_2", "AES256-GCM-SHA384")),
        ("compatible", only("tls1_2", "ECDHE-RSA-AES128-SHA")),
        ("modern", "-tls1_2".to_owned()),
        ("modern", "-tls1_3".to_owned()),
    ];
    for (setting, arguments) in clients {
        let before = server.access_lines().len();
        let found = attempt(&site, &server, setting, None, &arguments);
        assert_eq!((found.status(), found.is_served()), (None, false), "{arguments}: {}", found.text);
        let line = server_line(&server, before);
        assert_eq!(line["reason"], "no client certificate was presented", "{arguments}");
        assert!(found.alert().is_some(), "{arguments}: {}", found.text);
        let before = server.access_lines().len();
        let found = attempt(&site, &server, "open", None, &arguments);
        assert_eq!(server_line(&server, before)["status"], 200, "{arguments}");
        assert!(found.text.contains("<open/>"), "{arguments}: {}", found.text);
    }
}

/// No 3DES, RC4, EXPORT, NULL or anonymous suite, and none that is neither in rustls nor in our list.
#[test]
fn broken_cipher_suites_are_served_at_no_setting() {
    let site = site_with_each_setting();
    let server = site.start();
    let broken = ["DES-CBC3-SHA", "RC4-SHA", "NULL-SHA256", "aNULL", "AES128-CCM8", "CAMELLIA128-SHA", "PSK", "SRP"];
    let mut refused = 0;
    for version in ["tls1", "tls1_2"] {
        for ciphers in broken {
            let found = attempt(&site, &server, "legacy", Some(&PHONE), &only(version, ciphers));
            if found.text.contains("no cipher match") || found.text.contains("no ciphers available") {
                continue; // This openssl does not have it either.
            }
            refused += 1;
            assert_eq!(found.alert(), Some("handshake failure"), "{version} {ciphers}: {}", found.text);
        }
    }
    assert!(refused >= 6, "openssl could offer only {refused}");
    assert!(server.access_lines().iter().all(|line| line["status"].is_null()));
}

#[test]
fn server_suite_order_is_preferred() {
    let site = site_with_each_setting();
    let server = site.start();
    for (arguments, suite) in [
        ("AES256-SHA:AES128-SHA", "AES128-SHA"),
        ("AES128-GCM-SHA256:DHE-RSA-AES256-SHA", "DHE-RSA-AES256-SHA"),
        ("ECDHE-RSA-AES128-SHA:DHE-RSA-AES128-GCM-SHA256", "DHE-RSA-AES128-GCM-SHA256"),
        ("AES128-SHA:AES256-GCM-SHA384", "AES256-GCM-SHA384"),
        ("ALL:!ECDHE:!DHE", "AES128-GCM-SHA256"),
    ] {
        let found = attempt(&site, &server, "compatible", Some(&PHONE), &only("tls1_2", arguments));
        assert_eq!(found.agreed().map(|(_, suite)| suite), Some(suite), "{arguments}: {}", found.text);
    }
    // The highest version, too.
    let found = attempt(&site, &server, "legacy", Some(&PHONE), "-no_tls1_3 -cipher AES128-SHA:@SECLEVEL=0");
    assert_eq!(found.agreed(), Some(("TLSv1.2", "AES128-SHA")), "{}", found.text);
    let found = attempt(&site, &server, "legacy", Some(&PHONE), "-no_tls1_3 -no_tls1_2 -cipher ALL:@SECLEVEL=0");
    assert_eq!(found.agreed(), Some(("TLSv1.1", "ECDHE-RSA-AES128-SHA")), "{}", found.text);
}

#[test]
fn dhe_uses_2048_bits_and_ecdhe_the_common_curves() {
    let site = site_with_each_setting();
    let server = site.start();
    for (arguments, key) in [
        (only("tls1", "DHE-RSA-AES128-SHA"), "DH, 2048 bits"),
        (only("tls1_2", "DHE-RSA-AES128-GCM-SHA256"), "DH, 2048 bits"),
        (only("tls1", "ECDHE-RSA-AES128-SHA"), "X25519, 253 bits"),
        (only("tls1_2", "ECDHE-RSA-AES128-SHA") + " -groups P-521:P-256", "ECDH, prime256v1, 256 bits"),
    ] {
        let found = attempt(&site, &server, "legacy", Some(&PHONE), &arguments);
        assert!(found.text.contains(&format!("Server Temp Key: {key}")), "{arguments}: {}", found.text);
    }
}

/// The line of the access log after `before` others.
fn server_line(server: &Running, before: usize) -> Value {
    crate::harness::eventually("a line", || server.access_lines().get(before).cloned())
}
