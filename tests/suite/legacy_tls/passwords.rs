//! Digest authentication over legacy TLS: no certificate is requested.

use super::*;
use crate::digest::allow;
use crate::harness::VVX550;
use crate::harness::site::holds;
use crate::harness::tool::{Ended, run};

/// curl with a suite from before ECDHE, and with `user` and `password`.
fn curl(site: &Site, server: &Running, version: &str, (user, password): (&str, &str), rest: &[&str]) -> Ended {
    let mut curl = Command::new("curl");
    curl.args(["-sSv", &format!("--tlsv{version}"), "--tls-max", version, "--ciphers", "AES128-SHA:@SECLEVEL=0"]);
    curl.args(["--digest", "--user", &format!("{user}:{password}"), "--cacert", "server-ca.pem"]);
    curl.args(["--connect-to", &format!("::{}", server.address()), "--write-out", "%{stderr}status %{http_code}\n"]);
    // Debian's own restrictions do not apply.
    run(curl.args(rest).env("OPENSSL_CONF", "/dev/null").current_dir(site.path("")))
}

#[test]
fn digest_over_legacy_tls_serves_only_the_own_files() {
    let site = site_with_each_setting();
    site.write_config();
    site.constituency("pw", &json!({ "client_auth": "digest", "tls": "legacy", "phones": { VVX550: "no password" } }));
    let (own, theirs) = (format!("{VVX500}-user.cfg"), format!("{VVX550}-user.cfg"));
    site.file(&format!("pw/{own}"), "<mine/>");
    site.file(&format!("pw/{theirs}"), "<theirs/>");
    let password = allow(&site.path(""), VVX500, "pw");
    let server = site.start();
    let (right, wrong) = ((VVX500, password.as_str()), (VVX500, "guess"));
    let url = |path: &str| format!("https://pw.{DOMAIN}/{path}");
    std::fs::write(site.path("log"), "a log").unwrap();
    let log = format!("{VVX500}-app.log");
    let mut seen = 0;
    for (version, shown) in [("1.0", "TLSv1.0"), ("1.1", "TLSv1.1"), ("1.2", "TLSv1.2")] {
        let agreed = format!("{shown}/TLS_RSA_WITH_AES_128_CBC_SHA");
        for (who, path, status, body) in [
            (right, &own, 200, "<mine/>"),
            (wrong, &own, 401, "Unauthorized\n"),
            (right, &theirs, 403, "Forbidden\n"),
            ((VVX550, password.as_str()), &theirs, 401, "Unauthorized\n"),
        ] {
            let ended = curl(&site, &server, version, who, &[&url(path)]);
            assert_eq!((ended.code, ended.stdout.as_str()), (0, body), "{version}: {ended:?}");
            assert!(ended.stderr.contains(&format!("status {status}\n")), "{version}: {ended:?}");
            // The challenge and its response use one connection, and no certificate is requested.
            assert_eq!(ended.stderr.matches("< HTTP/1.1 ").count(), 2, "{version}: {ended:?}");
            assert_eq!(ended.stderr.matches("SSL connection using").count(), 1, "{version}: {ended:?}");
            assert!(!ended.stderr.contains("Request CERT"), "{version}: {ended:?}");
            seen += 2;
            let lines = eventually("two lines", || Some(server.access_lines()).filter(|lines| lines.len() >= seen));
            let [.., first, second] = &lines[..] else { panic!("{lines:?}") };
            assert_eq!(
                (&first["status"], &first["mac"], &second["status"]),
                (&json!(401), &Value::Null, &json!(status))
            );
            let mac = if status == 401 { Value::Null } else { VVX500.into() };
            assert_eq!((&second["mac"], &second["lane"], &second["tls"]), (&mac, &json!("old"), &json!(agreed)));
        }
        let ended = curl(&site, &server, version, right, &["-T", "log", &url(&log)]);
        assert!(ended.code == 0 && ended.stderr.contains("status 20"), "{version}: {ended:?}");
        assert!(holds(&site.uploads("pw", VVX500).join(&log), "a log"));
        std::fs::remove_file(site.uploads("pw", VVX500).join(&log)).unwrap();
        seen += 2;
    }
    assert_eq!(seen, 30);
}
