//! Phones with self-signed certificates: a pinned certificate is accepted, and nothing that resembles it.

use std::process::Command;
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::{CertificateParams, KeyUsagePurpose};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{SupportedProtocolVersion, version};
use serde_json::{Value, json};

use crate::harness::operators::Operators;
use crate::harness::pki::{DAY, FACTORY, Identity, ca_params, device_params, named, valid};
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::tls::{Client, alert};
use crate::harness::tool::{Ended, provost, run, s_client};
use crate::harness::{STRANGER, VVX500, VVX550, eventually, within_a_second};

const VERSIONS: [(&str, &SupportedProtocolVersion); 2] = [("1.2", &version::TLS12), ("1.3", &version::TLS13)];

/// A site with the phone VVX500, which has a factory certificate, and `other` besides.
fn site() -> Site {
    let site = Site::with_ote();
    site.constituency("other", &json!({ "trust": ["factory"], "phones": {} }));
    site.file("other/site.cfg", "<other/>");
    site
}

/// The fingerprint of `identity` in openssl's form: pairs with colons.
fn fingerprint(site: &Site, identity: &Identity) -> String {
    let (chain, _) = identity.write(&site.path(""), "fingerprint");
    let said =
        run(Command::new("openssl").args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(chain)).stdout;
    said.trim().split_once('=').unwrap().1.to_owned()
}

fn pin(site: &Site, phones: &[(&str, &str)]) {
    pin_as(site, phones, &[]);
}

/// The same with aliases.
fn pin_as(site: &Site, phones: &[(&str, &str)], aliases: &[&str]) {
    let mut all = json!({ VVX500: "vvx500" });
    for (mac, pin) in phones {
        all[mac] = json!({ "note": "pinned", "certificate_sha256": pin });
    }
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": all, "aliases": aliases }));
}

fn own(mac: &str) -> Identity {
    Identity::self_signed(&device_params(mac))
}

fn command(site: &Site, args: &[&str]) -> Ended {
    provost(&site.path("."), args)
}

fn claims(site: &Site) -> Vec<Value> {
    let listed = command(site, &["phones", "--refused", "--json"]).stdout;
    let lines = listed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["proven"] == false).collect()
}

/// A self-signed certificate with the CN `mac`, made by openssl.
fn made_by_openssl(site: &Site, mac: &str, key: &[&str], extensions: &[&str]) -> Identity {
    let folder = site.path("");
    std::fs::write(folder.join("openssl.cnf"), "[req]\ndistinguished_name = dn\n[dn]\n").unwrap();
    let mut command = Command::new("openssl");
    command.args("req -config openssl.cnf -x509 -noenc -days 30 -out own.pem -keyout own.key".split(' '));
    command.args(["-subj", &format!("/CN={mac}")]).args(key);
    for extension in extensions {
        command.args(["-addext", extension]);
    }
    let ended = run(command.current_dir(&folder));
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(folder.join("own.key")).unwrap();
    Identity::of(vec![CertificateDer::from_pem_file(folder.join("own.pem")).unwrap()], key)
}

/// One GET by curl with `identity`: the status, or curl's error.
fn curl(site: &Site, server: &Running, version: &str, identity: &Identity) -> Result<String, String> {
    let (chain, key) = identity.write(&site.path(""), "curl");
    let (name, port) = (format!("ote.{DOMAIN}"), server.address().port());
    let mut command = Command::new("curl");
    command.args(["-sSk", "-o", "/dev/null", "-w", "%{http_code}", &format!("--tlsv{version}"), "--tls-max", version]);
    // Without these limits, curl presents any certificate.
    let no_limits = "openssl_conf=a\n[a]\nssl_conf=b\n[b]\nsystem_default=c\n[c]\nCipherString=DEFAULT@SECLEVEL=0\n";
    let limits = site.path("limits.cnf");
    std::fs::write(&limits, no_limits).unwrap();
    command.args(["--resolve", &format!("{name}:{port}:127.0.0.1"), &format!("https://{name}:{port}/site.cfg")]);
    let ended = run(command.arg("--cert").arg(chain).arg("--key").arg(key).env("OPENSSL_CONF", limits));
    if ended.code == 0 { Ok(ended.stdout) } else { Err(ended.stderr) }
}

const EC: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
const RSA: &[&str] = &["-newkey", "rsa:2048"];
const CA: &str = "basicConstraints=critical,CA:TRUE";

#[test]
fn pinned_certificate_is_accepted_whatever_its_issuer_or_dates() {
    let site = site();
    let server = site.start();
    let mut expired = device_params(STRANGER);
    valid(&mut expired, SystemTime::now() - 800 * DAY, SystemTime::now() - DAY);
    let mut early = device_params(STRANGER);
    valid(&mut early, SystemTime::now() + 100 * DAY, SystemTime::now() + 200 * DAY);
    let certificates = [
        ("an EC key", made_by_openssl(&site, STRANGER, EC, &["basicConstraints=CA:FALSE"])),
        ("a CA's, EC", made_by_openssl(&site, STRANGER, EC, &[CA])),
        ("a CA's, RSA", made_by_openssl(&site, "00005E0053AA", RSA, &[CA, "keyUsage=digitalSignature,keyCertSign"])),
        ("a server's", made_by_openssl(&site, STRANGER, RSA, &["extendedKeyUsage=serverAuth"])),
        ("SHA-1", made_by_openssl(&site, STRANGER, &[RSA, &["-sha1"]].concat(), &[CA])),
        ("expired", Identity::self_signed(&expired)),
        ("not valid yet", Identity::self_signed(&early)),
        ("from an untrusted CA", crate::harness::pki::OTHER_FACTORY.device(STRANGER)),
    ];
    for (what, identity) in &certificates {
        let refused = || server.access_lines().iter().filter(|line| line["status"].is_null()).count();
        let before = refused();
        for (version, _) in VERSIONS {
            curl(&site, &server, version, identity).unwrap_err();
        }
        eventually("the refusals", || (refused() >= before + 2).then_some(()));
        let spelled = fingerprint(&site, identity);
        pin(&site, &[(STRANGER, &spelled)]);
        for (version, _) in VERSIONS {
            within_a_second(what, || (curl(&site, &server, version, identity).ok()? == "200").then_some(()));
        }
        let line = server.access("the pinned phone", |line| line["mac"] == STRANGER && line["status"] == 200);
        assert_eq!(line["constituency"], "ote", "{what}");
        let (chain, _) = identity.write(&site.path(""), "verify");
        let verified = command(&site, &["trust", "verify", "--constituency", "ote", chain.to_str().unwrap()]);
        assert_eq!(verified.stdout, format!("accepted: {STRANGER} (this certificate is pinned for it)\n"), "{what}");
        let upload = server.client("ote", identity).put(&format!("/{STRANGER}-app.log"), "", b"log").unwrap();
        assert!([201, 204].contains(&upload.status), "{what}: {}", upload.status);
        pin(&site, &[]);
        within_a_second("the end of the pin", || curl(&site, &server, "1.3", identity).is_err().then_some(()));
    }
    assert_eq!(certificates.len(), 8);
}

#[test]
fn certificate_resembling_a_pinned_one_is_refused() {
    let site = site();
    let server = site.start();
    let params = device_params(STRANGER);
    let (real, other_key) = (Identity::self_signed(&params), Identity::self_signed(&params));
    // Signed again: the same name and key, other bytes.
    let signed_again = real.signed_again(&params);
    let of_other = own(VVX550);
    let mut other_name = CertificateParams::default();
    other_name.distinguished_name = named("kitchen phone");
    let nameless = Identity::self_signed(&other_name);
    let small = made_by_openssl(&site, STRANGER, &["-newkey", "rsa:1024"], &[CA]);
    let mut only_signs_certificates = ca_params(STRANGER);
    only_signs_certificates.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let only_signs_certificates = Identity::self_signed(&only_signs_certificates);
    let chained = |identity: &Identity| identity.clone().and(&real.chain[0]);

    // The pin, the presented certificate, and the reason.
    let cases = [
        (&real, other_key.clone(), "is self-signed"),
        (&real, chained(&other_key), "a certificate that is not a CA's signed another one"),
        (&real, signed_again, "is self-signed"),
        (&real, real.clone().forged(), "is self-signed"),
        (&of_other, of_other.clone(), "is self-signed"),
        (&nameless, nameless.clone(), "is self-signed"),
        (&small, small.clone(), "has 1024 bits"),
        (&only_signs_certificates, only_signs_certificates.clone(), "keyUsage without digitalSignature"),
    ];
    for (number, (pinned, comes, reason)) in cases.iter().enumerate() {
        // A new alias shows when the pin applies; for the factory's phone nothing changes.
        pin_as(&site, &[(STRANGER, &fingerprint(&site, pinned))], &[&format!("case-{number}")]);
        let known = server.client(&format!("case-{number}"), &FACTORY.device(VVX500));
        eventually("the pin", || (known.get("/site.cfg").ok()?.status == 200).then_some(()));
        let of_reason = || {
            let all = server.access_lines().into_iter();
            all.filter(|line| line["reason"].as_str().is_some_and(|it| it.contains(reason))).collect::<Vec<_>>()
        };
        let before = of_reason().len();
        for (version, _) in VERSIONS {
            let refused = curl(&site, &server, version, comes).unwrap_err();
            assert!(refused.contains("alert"), "{number} {version}: {refused}");
        }
        let reported = before + VERSIONS.len();
        let said = eventually(&format!("a line for each of case {number}"), || {
            Some(of_reason()).filter(|lines| lines.len() == reported)
        });
        assert!(said.iter().all(|line| line["mac"].is_null() && line["status"].is_null()), "{number}: {said:?}");
    }
    assert_eq!(cases.len(), 8);

    // It is accepted only in the constituency that pins it.
    pin(&site, &[(STRANGER, &fingerprint(&site, &real))]);
    within_a_second("the pin", || server.client("ote", &real).get("/site.cfg").ok());
    assert!(alert(&server.client("other", &real).get("/site.cfg").unwrap_err()).is_some());
    // The certificate without its key is useless.
    for (_, version) in VERSIONS {
        let stolen = CertifiedKey::new(
            real.chain.clone(),
            rustls::crypto::aws_lc_rs::sign::any_supported_type(&other_key.key()).unwrap(),
        );
        let mut thief = server.client("ote", &real).only(version, Some(&real));
        thief.config().client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(stolen));
        assert!(alert(&thief.get("/site.cfg").unwrap_err()).is_some());
    }
}

/// How a pin ends: a name, the action, and the reason logged on an open connection.
type End<'a> = (&'a str, &'a dyn Fn(&str), &'a str);

/// The answers to a pinned phone on an open connection, on a resumed session, and on a new one.
fn open_resumed_and_new(
    client: &Client,
    fresh: &Client,
    open: &mut crate::harness::tls::Connection,
) -> [Option<u16>; 3] {
    let mut resumed = client.connect().unwrap();
    let by_ticket = resumed.get("/site.cfg").unwrap();
    assert!(resumed.is_resumed());
    let status =
        |response: std::io::Result<crate::harness::tls::Response>| response.ok().map(|response| response.status);
    [status(open.get("/site.cfg")), Some(by_ticket.status), status(fresh.get("/site.cfg"))]
}

#[test]
fn removed_or_changed_pin_refuses_its_phone_at_once() {
    let site = site();
    let server = site.start();
    let identity = own(STRANGER);
    let (real, another) = (fingerprint(&site, &identity), fingerprint(&site, &own(STRANGER)));
    let denied = |real: &str| {
        let phones = json!({ VVX500: "", STRANGER: { "certificate_sha256": real } });
        site.constituency("ote", &json!({ "trust": ["factory"], "phones": phones, "denied": [STRANGER] }));
    };
    let unpinned = || {
        let phones = json!({ VVX500: "", STRANGER: "pinned" });
        site.constituency("ote", &json!({ "trust": ["factory"], "phones": phones }));
    };
    let ends: [End<'_>; 4] = [
        ("gone", &|_| pin(&site, &[]), "is not known to ote"),
        ("unpinned", &|_| unpinned(), "no longer pins the certificate"),
        ("changed", &|_| pin(&site, &[(STRANGER, &another)]), "no longer pins the certificate"),
        ("denied", &|real| denied(real), "is denied by ote"),
    ];
    for (_, version) in VERSIONS {
        let bystander = server.client("ote", &FACTORY.device(VVX500));
        let bystander = bystander.only(version, Some(&FACTORY.device(VVX500)));
        let mut by_factory = bystander.connect().unwrap();
        assert_eq!(by_factory.get("/site.cfg").unwrap().status, 200);
        for (what, end, reason) in &ends {
            pin(&site, &[(STRANGER, &real)]);
            let client = server.client("ote", &identity).only(version, Some(&identity));
            within_a_second("the pin", || (client.get("/site.cfg").ok()?.status == 200).then_some(()));
            let fresh = server.client("ote", &identity).only(version, Some(&identity));
            let mut open = client.connect().unwrap();
            assert_eq!(open.get("/site.cfg").unwrap().status, 200);
            assert!(client.resumes(), "{what}");
            let probe = server.client("ote", &identity).only(version, Some(&identity));
            end(&real);
            within_a_second(what, || {
                probe.get("/site.cfg").map_or(true, |response| response.status == 403).then_some(())
            });
            let is_by_chain = *what == "denied";
            let expected = [Some(403), Some(403), is_by_chain.then_some(403)];
            assert_eq!(open_resumed_and_new(&client, &fresh, &mut open), expected, "{what}");
            assert!(open.is_closed(), "{what}");
            server.reason(reason);
            assert_eq!(by_factory.get("/site.cfg").unwrap().status, 200, "{what}: the same connection as ever");
            assert!(bystander.resumes(), "{what}: the same session as ever");
        }
    }
    assert_eq!(ends.len(), 4);
    // Without the pin, the certificate proves nothing.
    let refused = server.reason("no longer pins the certificate");
    assert_eq!(refused["mac"], Value::Null, "{refused}");
    let seen = eventually("the claim", || claims(&site).into_iter().find(|claim| claim["mac"] == STRANGER));
    assert_eq!(seen["certificate_sha256"], real.replace(':', "").to_ascii_lowercase());
}

#[test]
fn openssl_session_of_a_pinned_phone_ends_with_the_pin() {
    let site = site();
    let server = site.start();
    let identity = made_by_openssl(&site, STRANGER, RSA, &[CA]);
    pin(&site, &[(STRANGER, &fingerprint(&site, &identity))]);
    within_a_second("the pin", || server.client("ote", &identity).get("/site.cfg").ok());
    let (chain, key) = identity.write(&site.path(""), "openssl");
    let name = format!("ote.{DOMAIN}");
    let request = format!("GET /site.cfg HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    for version in ["-tls1_2", "-tls1_3"] {
        let session = site.path("session").to_str().unwrap().to_owned();
        let ask = |session_option: &str| {
            let (chain, key) = (chain.to_str().unwrap(), key.to_str().unwrap());
            let arguments = [version, "-servername", &name, "-cert", chain, "-key", key, session_option, &session];
            s_client(server.address(), &arguments, &request).stdout
        };
        let first = ask("-sess_out");
        assert!(first.contains("HTTP/1.1 200") && first.contains("New, "), "{version}: {first}");
        let again = ask("-sess_in");
        assert!(again.contains("HTTP/1.1 200") && again.contains("Reused, "), "{version}: {again}");
        pin(&site, &[]);
        within_a_second("the end of the pin", || {
            server.client("ote", &identity).get("/site.cfg").is_err().then_some(())
        });
        let late = ask("-sess_in");
        assert!(late.contains("HTTP/1.1 403") && late.contains("Reused, "), "{version}: {late}");
        pin(&site, &[(STRANGER, &fingerprint(&site, &identity))]);
        within_a_second("the pin again", || server.client("ote", &identity).get("/site.cfg").ok());
    }
}

#[test]
fn pinned_phone_counts_as_a_known_phone_connection() {
    let mut site = site();
    site.config["limits"]["anonymous_connections"] = json!(0);
    let identity = own(STRANGER);
    pin(&site, &[(STRANGER, &fingerprint(&site, &identity))]);
    let server = site.start();
    for (_, version) in VERSIONS {
        let client = server.client("ote", &identity).only(version, Some(&identity));
        assert_eq!(client.get("/site.cfg").unwrap().status, 200);
        assert!(client.resumes());
        // A session from the time of the pin is that of an unknown phone after its removal.
        pin(&site, &[]);
        within_a_second("the end of the pin", || {
            client.connect().and_then(|mut connection| connection.get("/site.cfg")).is_err().then_some(())
        });
        server.reason("all 0 permits for anonymous connections are in use");
        pin(&site, &[(STRANGER, &fingerprint(&site, &identity))]);
        within_a_second("the pin", || server.client("ote", &identity).get("/site.cfg").ok());
    }
}

#[test]
fn factory_certificate_is_accepted_beside_a_pin() {
    let site = site();
    let server = site.start();
    pin(&site, &[(STRANGER, &fingerprint(&site, &own(STRANGER)))]);
    let by_factory = server.client("ote", &FACTORY.device(STRANGER));
    within_a_second("the list", || (by_factory.get("/site.cfg").unwrap().status == 200).then_some(()));
}

/// The phone and an impostor send requests several times; waits until these are recorded. Returns both, and their
/// claims.
fn phone_and_impostor(site: &Site, server: &Running) -> (Identity, Identity, Vec<Value>) {
    let (phone, impostor) = (own(STRANGER), own(STRANGER));
    for (identity, times) in [(&phone, 3), (&impostor, 2)] {
        for _ in 0..times {
            server.client("ote", identity).get("/site.cfg").unwrap_err();
        }
    }
    let seen = eventually("both", || {
        let claims = claims(site);
        let total: u64 = claims.iter().map(|claim| claim["refusals"].as_u64().unwrap()).sum();
        (total == 5).then_some(claims)
    });
    (phone, impostor, seen)
}

/// A fingerprint in plain digits.
fn plain(site: &Site, identity: &Identity) -> String {
    fingerprint(site, identity).replace(':', "").to_ascii_lowercase()
}

#[test]
fn unproven_claims_list_certificates_and_addresses() {
    let mut site = site();
    site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    let server = site.start();
    let (phone, impostor, seen) = phone_and_impostor(&site, &server);
    let mut prints: Vec<&str> = seen.iter().map(|claim| claim["certificate_sha256"].as_str().unwrap()).collect();
    prints.sort_unstable();
    let mut expected = [plain(&site, &phone), plain(&site, &impostor)];
    expected.sort_unstable();
    assert_eq!(prints, expected);
    for claim in &seen {
        let places = claim["addresses"].as_array().unwrap();
        assert_eq!((places.len(), &places[0]["address"]), (1, &json!("127.0.0.1")), "{claim}");
        assert!(places[0]["first_seen"].as_str() <= places[0]["last_seen"].as_str(), "{claim}");
    }
    let operators = Operators::of(&server);
    let unproven = eventually("both on the operators' page", || {
        let unproven = operators.json("/api/overview")["unproven"].as_array()?.clone();
        (unproven.len() == 2).then_some(unproven)
    });
    for claim in &unproven {
        assert!(expected.iter().any(|print| claim["certificate_sha256"] == **print), "{claim}");
        assert_eq!(claim["addresses"][0]["address"], "127.0.0.1", "{claim}");
        assert_eq!(claim["addresses"][0]["last_seen"], claim["last_seen"], "{claim}");
    }
    let log = command(&site, &["phone-log", STRANGER]).stdout;
    assert_eq!((log.matches("unproven: ").count(), log.matches("\n    from 127.0.0.1, 20").count()), (2, 2), "{log}");
}

/// After deny and allow, the fingerprint has to be compared again.
fn denied_and_allowed_again(site: &Site, server: &Running, phone: &Identity) {
    let print = plain(site, phone);
    let claim = |what: &str, is_let_in_since: bool| {
        eventually(what, || {
            let of_phone = claims(site).into_iter().find(|claim| claim["certificate_sha256"] == print)?;
            (of_phone["let_in_since"].is_string() == is_let_in_since).then_some(())
        });
    };
    claim("that it was let in by its pin", true);
    let denied = command(site, &["deny", STRANGER, "--constituency", "ote"]);
    assert_eq!(denied.code, 0, "{}", denied.stderr);
    within_a_second("the denial", || server.client("ote", phone).get("/site.cfg").is_err().then_some(()));
    claim("that it was refused since", false);
    let again = command(site, &["allow", STRANGER, "--constituency", "ote"]);
    assert_eq!((again.code, again.stdout.lines().count()), (0, 1), "{again:?}");
    let begins = "warning: 00005e0053aa IS STILL REFUSED unless it proves its MAC address, as it last did at 20";
    assert!(again.stderr.starts_with(begins), "{again:?}");
    let since = format!(": since then it sent a certificate that proves nothing (SHA-256 {print}, refused: ");
    assert!(again.stderr.contains(&since) && again.stderr.contains("--certificate-sha256 FINGERPRINT"), "{again:?}");
    let text = std::fs::read_to_string(site.served("ote/constituency.json")).unwrap();
    let policy: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&policy["phones"][STRANGER], &policy["denied"]), (&json!("attic"), &json!([])), "{text}");
}

#[test]
fn allow_pins_a_whole_fingerprint_and_warns_of_others() {
    let site = site();
    let server = site.start();
    let (phone, impostor, _) = phone_and_impostor(&site, &server);
    // allow without a fingerprint pins none, and prints this.
    let allowed = command(&site, &["allow", STRANGER, "--constituency", "ote", "--note", "attic"]);
    assert_eq!((allowed.code, allowed.stdout.lines().count()), (0, 1));
    let pin = "provost allow 00005e0053aa --constituency ote --certificate-sha256";
    for said in ["00005e0053aa IS STILL REFUSED: ", &plain(&site, &phone), ", refused: ", "self-signed", pin] {
        assert!(allowed.stderr.contains(said), "{said}: {}", allowed.stderr);
    }
    // A part of a fingerprint is invalid.
    for part in [&plain(&site, &phone)[..16], &plain(&site, &phone)[..63], "last", ""] {
        let ended = command(&site, &["allow", STRANGER, "--constituency", "ote", "--certificate-sha256", part]);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{part}: {}", ended.stderr);
    }
    let let_in = command(
        &site,
        &["allow", STRANGER, "--constituency", "ote", "--certificate-sha256", &fingerprint(&site, &phone)],
    );
    assert_eq!(let_in.stdout, format!("{STRANGER} is allowed in ote with this certificate within a second\n"));
    assert!(
        let_in.stderr.starts_with("warning: other certificates also claimed to be 00005e0053aa: 1; "),
        "{}",
        let_in.stderr
    );
    within_a_second("the pin", || server.client("ote", &phone).get("/site.cfg").ok());
    assert!(server.client("ote", &impostor).get("/site.cfg").is_err());
    let table = command(&site, &["phones"]).stdout;
    assert!(table.lines().any(|line| line.contains(STRANGER) && line.contains("  known, pinned  ")), "{table}");
    let again = command(&site, &["allow", STRANGER, "--constituency", "ote"]);
    assert_eq!((again.code, again.stderr.as_str()), (0, ""));
    let listed = command(&site, &["phones", "--json"]).stdout;
    let listed = listed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let listed = listed.filter(|line| line["mac"] == STRANGER).collect::<Vec<_>>();
    assert!(
        listed.iter().any(|it| it["note"] == "attic" && it["pinned_certificate_sha256"] == plain(&site, &phone)),
        "{listed:?}"
    );

    denied_and_allowed_again(&site, &server, &phone);
    let unseen =
        command(&site, &["allow", VVX550, "--constituency", "ote", "--certificate-sha256", &plain(&site, &phone)]);
    assert!(
        unseen.stderr.starts_with("warning: this certificate was never seen with 00005e0053c7"),
        "{}",
        unseen.stderr
    );
}

#[test]
fn phone_accepted_since_a_claim_is_allowed_without_warning() {
    let site = site();
    let server = site.start();
    let (by_factory, impostor) = (FACTORY.device(STRANGER), own(STRANGER));
    let allow = |name: &str| {
        let ended = command(&site, &["allow", STRANGER, "--constituency", name]);
        assert_eq!((ended.code, ended.stdout.lines().count()), (0, 1), "{ended:?}");
        ended.stderr
    };
    let known = |what: &str, of_it: &dyn Fn(&Value) -> bool| {
        eventually(what, || {
            let listed = command(&site, &["phones", "--refused", "--json"]).stdout;
            let all = listed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            all.into_iter().find(|line| line["mac"] == STRANGER && of_it(line))
        })
    };
    let is_claim = |count: u64| move |line: &Value| line["proven"] == false && line["refusals"] == count;
    server.client("ote", &impostor).get("/site.cfg").unwrap_err();
    known("the impostor", &is_claim(1));
    // Its certificate is trusted, but it was not listed.
    assert_eq!(server.client("ote", &by_factory).get("/site.cfg").unwrap().status, 403);
    known("the phone", &|line| line["proven"] == true && line["last_let_in"].is_null());
    assert_eq!(allow("ote"), "");
    within_a_second("the list", || {
        (server.client("ote", &by_factory).get("/site.cfg").unwrap().status == 200).then_some(())
    });
    known("that it was let in", &|line| line["let_in_since"].is_string());
    assert_eq!(allow("ote"), "");
    // Where it never sent a request, its proven requests elsewhere count.
    assert_eq!(allow("other"), "");
    server.client("other", &impostor).get("/site.cfg").unwrap_err();
    known("the impostor there", &|line| line["constituency"] == "other" && line["proven"] == false);
    assert!(
        allow("other").starts_with("warning: 00005e0053aa IS STILL REFUSED: it sent a certificate that proves nothing"),
        "no other request was recorded there"
    );
    assert_eq!(allow("ote"), "");
    server.client("ote", &impostor).get("/site.cfg").unwrap_err();
    known("the impostor again", &|line| is_claim(2)(line) && line["let_in_since"].is_null());
    assert!(
        allow("ote")
            .starts_with("warning: 00005e0053aa IS STILL REFUSED unless it proves its MAC address, as it last did at ")
    );
    assert_eq!(command(&site, &["deny", STRANGER, "--constituency", "ote"]).code, 0);
    // With a pin, no proven request is needed.
    let pinned = command(
        &site,
        &["allow", STRANGER, "--constituency", "ote", "--certificate-sha256", &fingerprint(&site, &impostor)],
    );
    assert_eq!(pinned.code, 0, "{pinned:?}");
    assert_eq!(allow("ote"), "");
}

#[test]
fn malformed_pin_is_a_located_error_and_keeps_the_last_policy() {
    let site = site();
    site.write_config();
    let server = site.start();
    let known = server.client("ote", &FACTORY.device(VVX500));
    assert_eq!(known.get("/site.cfg").unwrap().status, 200);
    let whole = format!(
        "{{ \"trust\": [\"factory\"], \"phones\": {{\n \"{VVX500}\": {{ \"certificate_sha256\": \"ab:cd\" }}\n}} }}"
    );
    site.file("ote/constituency.json", whole);
    server.says("constituency.json:2:42: ");
    assert_eq!(known.get("/site.cfg").unwrap().status, 200);
    let checked = command(&site, &["check"]);
    assert_eq!(checked.code, 1);
    assert!(
        checked.stdout.contains(
            "constituency.json:2:42: \"phones.00005e00530c.certificate_sha256\": invalid SHA-256 fingerprint \"ab:cd\""
        ),
        "{}",
        checked.stdout
    );
}
