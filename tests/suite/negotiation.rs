//! The negotiated certificate, cipher suite and protocol, depending on the client's offer.

use std::sync::LazyLock;

use crate::harness::VVX500;
use crate::harness::pki::{FACTORY, Identity, SERVER_CA, device_params};
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::tool::s_client;
use crate::uploads::curl;

/// The phone with a key of either type; generating an RSA key takes long.
static RSA: LazyLock<Identity> = LazyLock::new(|| FACTORY.issuing.issue_rsa(&device_params(VVX500)));
static ECDSA: LazyLock<Identity> = LazyLock::new(|| FACTORY.device(VVX500));

/// openssl's report of a connection, with the content of `site.cfg` if it succeeded.
struct Negotiated {
    text: String,
}

impl Negotiated {
    fn is_served(&self) -> bool {
        self.text.contains("<site/>")
    }

    /// The type of the server's signature: `RSA`, `RSA-PSS` or `ECDSA`.
    fn signature(&self) -> &str {
        self.after("Peer signature type: ")
    }

    fn suite(&self) -> &str {
        self.after("Cipher is ")
    }

    fn after(&self, label: &str) -> &str {
        let found = self.text.lines().find_map(|line| Some(line.split_once(label)?.1.trim()));
        found.unwrap_or_else(|| panic!("no {label:?} in {}", self.text))
    }
}

/// Connects as the phone VVX500 with the `arguments` of `openssl s_client` to a server whose certificate must verify.
fn connect(site: &Site, server: &Running, arguments: &str) -> Negotiated {
    // openssl shows no certificate of a type whose signatures it does not offer to verify.
    let takes_rsa = !arguments.contains("-sigalgs") || arguments.to_lowercase().contains("rsa");
    let device = if takes_rsa { &*RSA } else { &*ECDSA };
    let (chain, key) = device.write(&site.path(""), "device");
    let ca = site.path("server-ca.pem");
    std::fs::write(&ca, SERVER_CA.pem()).unwrap();
    let name = format!("ote.{DOMAIN}");
    let common = [
        ["-servername", &name],
        ["-verify_hostname", &name],
        ["-CAfile", ca.to_str().unwrap()],
        ["-cert", chain.to_str().unwrap()],
        ["-key", key.to_str().unwrap()],
    ];
    let mut all = common.as_flattened().to_vec();
    all.push("-verify_return_error");
    all.extend(arguments.split_whitespace());
    let request = format!("GET /site.cfg HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    let ended = s_client(server.address(), &all, &request);
    Negotiated { text: ended.stdout + &ended.stderr }
}

#[test]
fn certificate_fits_the_signature_schemes_and_suites() {
    let site = Site::with_ote();
    let server = site.start();
    let cases = [
        // In TLS 1.3, the schemes alone decide.
        ("-tls1_3", "ECDSA"),
        ("-tls1_3 -sigalgs ECDSA+SHA256", "ECDSA"),
        ("-tls1_3 -sigalgs rsa_pss_rsae_sha256", "RSA-PSS"),
        ("-tls1_3 -sigalgs rsa_pss_rsae_sha256:ECDSA+SHA256", "ECDSA"),
        // In TLS 1.2, schemes and suites decide.
        ("-tls1_2", "ECDSA"),
        ("-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256", "ECDSA"),
        ("-tls1_2 -cipher ECDHE-RSA-AES128-GCM-SHA256", "RSA-PSS"),
        ("-tls1_2 -cipher ECDHE-RSA-AES128-GCM-SHA256 -sigalgs ECDSA+SHA256:RSA+SHA256", "RSA"),
        ("-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256 -sigalgs RSA+SHA256", "RSA"),
        ("-tls1_2 -cipher ECDHE-RSA-CHACHA20-POLY1305:AES128-SHA -sigalgs RSA+SHA512", "RSA"),
        // TLS 1.3 suites in the offer do not matter for TLS 1.2.
        ("-cipher ECDHE-RSA-AES128-GCM-SHA256 -sigalgs rsa_pss_rsae_sha256:ECDSA+SHA256", "ECDSA"),
    ];
    for (arguments, signature) in cases {
        let agreed = connect(&site, &server, arguments);
        assert!(agreed.is_served(), "{arguments}: {}", agreed.text);
        assert_eq!(agreed.signature(), signature, "{arguments}");
    }
}

#[test]
fn client_without_a_usable_certificate_is_refused_and_logged() {
    let mut site = Site::with_ote();
    site.config["certificate"]["files"].as_array_mut().unwrap().pop();
    let server = site.start();
    for arguments in ["-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256", "-tls1_3 -sigalgs ECDSA+SHA256"] {
        let agreed = connect(&site, &server, arguments);
        assert!(!agreed.is_served(), "{arguments}");
        assert!(agreed.text.contains("alert handshake failure"), "{}", agreed.text);
    }
    server.reason("offered TLS 1.2 with ECDHE-ECDSA key exchange");
    server.reason("offered TLS 1.3");
    let agreed = connect(&site, &server, "-tls1_2");
    assert_eq!((agreed.is_served(), agreed.signature()), (true, "RSA-PSS"));
}

#[test]
fn aes_128_is_preferred_over_the_client_order() {
    let site = Site::with_ote();
    let server = site.start();
    let cases = [
        ("-tls1_3 -ciphersuites TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"),
        ("-tls1_3 -ciphersuites TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384"),
        ("-tls1_3 -ciphersuites TLS_CHACHA20_POLY1305_SHA256", "TLS_CHACHA20_POLY1305_SHA256"),
        ("-tls1_2 -cipher ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256"),
        (
            "-tls1_2 -cipher ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES128-GCM-SHA256",
            "ECDHE-ECDSA-AES128-GCM-SHA256",
        ),
        ("-tls1_2 -cipher ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384"),
    ];
    for (arguments, suite) in cases {
        let agreed = connect(&site, &server, arguments);
        assert!(agreed.is_served(), "{arguments}: {}", agreed.text);
        assert_eq!(agreed.suite(), suite, "{arguments}");
    }
    let line = server.access("AES-128 in TLS 1.3", |line| line["tls"].to_string().contains("TLS13_AES_128_GCM_SHA256"));
    assert!(line["tls"].to_string().contains("TLSv1_3") || line["tls"].to_string().contains("1.3"), "{line}");
}

#[test]
fn newest_tls_version_is_negotiated() {
    let site = Site::with_ote();
    let server = site.start();
    for (arguments, version) in [("", "TLSv1.3"), ("-no_tls1_3", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let agreed = connect(&site, &server, arguments);
        assert!(agreed.is_served(), "{arguments}: {}", agreed.text);
        assert!(agreed.text.contains(&format!("New, {version}")), "{arguments}: {}", agreed.text);
    }
}

#[test]
fn alpn_negotiates_http_1_1_or_http_1_0() {
    let site = Site::with_ote();
    let server = site.start();
    for (arguments, said) in [
        ("-alpn http/1.1", "ALPN protocol: http/1.1"),
        ("-alpn h2,http/1.1", "ALPN protocol: http/1.1"),
        ("-alpn http/1.0", "ALPN protocol: http/1.0"),
        ("-alpn http/0.9,http/1.0", "ALPN protocol: http/1.0"),
        ("-alpn http/1.0,http/1.1", "ALPN protocol: http/1.1"),
        ("", "No ALPN negotiated"),
    ] {
        let agreed = connect(&site, &server, arguments);
        assert!(agreed.is_served() && agreed.text.contains(said), "{arguments}: {}", agreed.text);
    }
    for (arguments, reason) in [
        ("-alpn h2", "offered only h2 as application protocol"),
        ("-alpn http/0.9 -tls1_2", "offered only http/0.9 as application protocol"),
        ("-alpn h2,h3", "offered only h2 and h3 as application protocol"),
    ] {
        let agreed = connect(&site, &server, arguments);
        assert!(!agreed.is_served() && agreed.text.contains("no application protocol"), "{}", agreed.text);
        server.reason(reason);
    }
}

#[test]
fn curl_over_http_1_0_is_served() {
    let site = Site::with_ote();
    let server = site.start();
    for version in ["--http1.0", "--http1.1"] {
        let ended = curl(&site, &server, "/site.cfg", &[version, "-v"]);
        assert_eq!(ended.stdout, "200", "{version}: {}", ended.stderr);
    }
    server.access("a request of HTTP/1.0", |line| line["path"] == "/site.cfg" && line["status"] == 200);
}

/// A first key share of an unsupported group costs a client a round trip (`HelloRetryRequest`), not the connection.
#[test]
fn unsupported_key_share_gets_a_hello_retry_request() {
    let site = Site::with_ote();
    let server = site.start();
    for (arguments, group) in [
        ("-tls1_3 -groups P-521:P-256", "ECDH, prime256v1, 256 bits"),
        ("-tls1_3 -groups P-521:X25519", "X25519, 253 bits"),
        ("-tls1_3 -groups P-384", "ECDH, secp384r1, 384 bits"),
        ("-tls1_2 -groups P-521:P-256", "ECDH, prime256v1, 256 bits"),
    ] {
        let agreed = connect(&site, &server, arguments);
        assert!(agreed.is_served(), "{arguments}: {}", agreed.text);
        assert_eq!(agreed.after("Server Temp Key: "), group, "{arguments}");
    }
    assert!(!connect(&site, &server, "-tls1_3 -groups P-521").is_served());
    server.reason("offered no group that is served (secp521r1)");
}
