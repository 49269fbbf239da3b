//! Digest authentication with real curl, whose library the phones use.

use std::process::Command;

use crate::digest::site;
use crate::harness::VVX500;
use crate::harness::pki::SERVER_CA;
use crate::harness::site::{DOMAIN, Running, Site, holds};
use crate::harness::tool::{Ended, run};

/// The User-Agent of a phone.
const PHONE: &str = "FileTransport PolycomVVX-VVX_500-UA/5.9.7.4477 Type/Application";

fn curl(site: &Site, server: &Running, password: &str, path: &str, arguments: &[&str]) -> Ended {
    std::fs::write(site.path("server-ca.pem"), SERVER_CA.pem()).unwrap();
    let name = format!("pw.{DOMAIN}");
    let connect = format!("{name}:443:{}", server.address());
    let user = format!("{VVX500}:{password}");
    let scheme = if arguments.contains(&"--basic") { "--basic" } else { "--digest" };
    let mut command = Command::new("curl");
    command.args(["-sSv", scheme, "-u", &user, "--cacert", "server-ca.pem", "--connect-to", &connect]);
    command.args(["-w", "%{stderr}status %{http_code}\n"]).args(arguments).arg(format!("https://{name}{path}"));
    run(command.current_dir(site.path("")))
}

/// The algorithms that were offered, in order, and those that curl used.
fn algorithms(ended: &Ended) -> (Vec<String>, Vec<String>) {
    let of = |start: &str| {
        let lines = ended.stderr.lines().filter(|line| line.to_lowercase().starts_with(start));
        lines
            .map(|line| line.split("algorithm=").nth(1).unwrap().split(',').next().unwrap().trim().to_owned())
            .collect()
    };
    (of("< www-authenticate: "), of("> authorization: "))
}

#[test]
fn md5_is_offered_first_unless_curl_knows_sha_256() {
    let (site, password) = site();
    let server = site.start();
    let (sha256_first, md5_first) = (("SHA-256", "MD5"), ("MD5", "SHA-256"));
    let agents = [
        ("curl/7.57.0", sha256_first),
        ("curl/8.5.0", sha256_first),
        ("curl/7.56.1", md5_first),
        ("curl/7.9", md5_first),
        ("curl/", md5_first),
        ("curl", md5_first),
        ("curl/7.88.1 FileTransport", sha256_first),
        ("libcurl-agent/1.0", md5_first),
        ("Python-urllib/3.11", md5_first),
        ("Microbrowser/1.1 PolycomSoundPointIP-SPIP_550-UA/4.0.15.1047 Type/Application", md5_first),
        ("OBIHAI/OBi1062-5.1.11.4858", md5_first),
        ("Yealink SIP-T46S 66.84.0.15", md5_first),
        ("Grandstream Model HW GXP2160 SW 1.0.9.108", md5_first),
        ("Mozilla/4.0 (compatible; snomD345-SIP 10.1.54.13 SPEAr300 SNOM 12.00.10)", md5_first),
        ("Cisco/SPA504G-7.6.2", md5_first),
        ("Fanvil X4 2.12.1", md5_first),
        (PHONE, md5_first),
        ("", md5_first),
    ];
    for (agent, (first, second)) in agents {
        let ended = curl(&site, &server, &password, "/site.cfg", &["-A", agent]);
        assert_eq!((ended.code, ended.stdout.as_str()), (0, "<pw/>"), "{agent:?}: {ended:?}");
        let (offered, used) = algorithms(&ended);
        assert_eq!(offered, [first, second], "{agent:?}");
        assert_eq!(used, [first], "{agent:?}");
    }
}

#[test]
fn curl_uses_the_first_offered_digest_algorithm() {
    let (site, password) = site();
    let server = site.start();
    for (arguments, first, second) in [(&[][..], "SHA-256", "MD5"), (&["-A", PHONE][..], "MD5", "SHA-256")] {
        let ended = curl(&site, &server, &password, "/site.cfg?version=1", arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (0, "<pw/>"), "{ended:?}");
        let (offered, used) = algorithms(&ended);
        assert_eq!(offered, [first, second]);
        assert_eq!(used, [first], "{ended:?}");
    }
    let wrong = curl(&site, &server, "guess", "/site.cfg", &[]);
    assert!(wrong.stderr.contains("status 401") && wrong.stdout == "Unauthorized\n", "{wrong:?}");
    let basic = curl(&site, &server, &password, "/site.cfg", &["--basic"]);
    assert!(basic.stderr.contains("status 401"), "{basic:?}");
}

#[test]
fn curl_uploads_and_resumes_an_upload_with_digest() {
    let (site, password) = site();
    let server = site.start();
    let stored = site.uploads("pw", VVX500).join(format!("{VVX500}-app.log"));
    let path = format!("/{VVX500}-app.log");
    let large = vec![b'x'; 2 << 20];
    std::fs::write(site.path("log"), &large).unwrap();
    for arguments in [&[][..], &["-A", PHONE][..], &["--expect100-timeout", "20", "-H", "Expect: 100-continue"][..]] {
        let ended = curl(&site, &server, &password, &path, &[&["-T", "log"], arguments].concat());
        assert!(ended.code == 0 && ended.stderr.contains("status 20"), "{ended:?}");
        assert!(holds(&stored, &large));
    }
    std::fs::write(site.path("log"), [&large[..], b"more"].concat()).unwrap();
    let offset = large.len().to_string();
    let ended = curl(&site, &server, &password, &path, &["-T", "log", "-C", &offset]);
    assert!(ended.code == 0 && ended.stderr.contains("status 204"), "{ended:?}");
    assert!(ended.stderr.contains(&format!("Content-Range: bytes {offset}-{}/{}", large.len() + 3, large.len() + 4)));
    assert_eq!(std::fs::metadata(&stored).unwrap().len(), large.len() as u64 + 4);
}

#[test]
fn curl_fetches_files_with_digest_on_one_connection() {
    let (site, password) = site();
    let server = site.start();
    let name = format!("https://pw.{DOMAIN}/site.cfg");
    let ended = curl(&site, &server, &password, "/site.cfg", &[&name, &name]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "<pw/><pw/><pw/>"), "{ended:?}");
    // Each request is challenged again; the refusals do not close the connection.
    assert_eq!(ended.stderr.matches("< HTTP/1.1 401").count(), 3, "{ended:?}");
    assert_eq!(ended.stderr.matches("SSL connection using").count(), 1, "{ended:?}");
}
