//! Which servers a phone shows its certificate and proves its password to, over TLS.

use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;

use super::*;

/// A CA, and the certificates that it signed for the server `ote.phones.localhost` and for the phone.
struct Pki {
    roots: RootCertStore,
    server: DeviceCertificate,
    device: DeviceCertificate,
}

fn pki(ca_name: &str) -> Pki {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, ca_name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
    let issue = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &ca).unwrap();
        DeviceCertificate { chain: vec![certificate.into()], key: key.serialize_der().try_into().unwrap() }
    };
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    Pki { server: issue("ote.phones.localhost"), device: issue("00005E00530C"), roots }
}

fn server_tls(pki: &Pki, version: &'static rustls::SupportedProtocolVersion) -> ServerConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let roots = Arc::new(pki.roots.clone());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build().unwrap();
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(pki.server.chain.clone(), pki.server.key.clone_key())
        .unwrap()
}

#[tokio::test]
async fn missing_device_certificate_is_reported_as_alert() {
    let (ours, theirs) = (pki("ours"), pki("theirs"));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let server = Arc::new(Server::with_files(&[("/000000000000.cfg", MASTER)]));
        let mut tasks = JoinSet::new();
        let address = listen(&server, Some(server_tls(&ours, version)), &mut tasks).await;
        let url: ServerUrl = format!("https://ote.phones.localhost:{}/", address.port()).parse().unwrap();
        let target = BootTarget { url, server_roots: Arc::new(ours.roots.clone()), resolve: None, password: None };

        let report = boot(&phone(), &target, Some(&ours.device), &mut ()).await;
        assert!(report.is_provisioned(), "{}", report.outcome);
        assert!(report.tls.unwrap().version.starts_with("TLSv1_"));

        // TLS 1.3 has an alert of its own for this (RFC 8446 §4.4.2.4); in TLS 1.2 rustls sends handshake_failure.
        let nothing = boot(&phone(), &target, None, &mut ()).await.outcome.to_string();
        assert!(nothing.contains("certificate_required") || nothing.contains("handshake_failure"), "{nothing}");
        let foreign = boot(&phone(), &target, Some(&theirs.device), &mut ()).await.outcome.to_string();
        assert!(foreign.contains("TLS alert unknown_ca"), "{version:?} {foreign}");

        let target = BootTarget { server_roots: Arc::new(theirs.roots.clone()), ..target };
        let distrust = boot(&phone(), &target, Some(&ours.device), &mut ()).await.outcome.to_string();
        assert!(distrust.contains("not trusted: its issuer"), "{distrust}");
    }
}

#[tokio::test]
async fn password_is_used_only_for_the_own_server_over_tls() {
    let pki = pki("ours");
    let mut tasks = JoinSet::new();
    let other = Arc::new(Server { asks: true, ..Server::default() });
    let elsewhere = listen(&other, Some(server_tls(&pki, &rustls::version::TLS13)), &mut tasks).await;
    let master =
        format!("<APPLICATION CONFIG_FILES=\"site.cfg, https://ote.phones.localhost:{}/site.cfg\"/>", elsewhere.port());
    for is_secure in [true, false] {
        let own =
            Server { asks: true, ..Server::with_files(&[("/000000000000.cfg", &*master), ("/site.cfg", "<a/>")]) };
        let own = Arc::new(own);
        let tls = is_secure.then(|| server_tls(&pki, &rustls::version::TLS13));
        let address = listen(&own, tls, &mut tasks).await;
        let scheme = if is_secure { "https" } else { "http" };
        let target = BootTarget {
            url: format!("{scheme}://ote.phones.localhost:{}/", address.port()).parse().unwrap(),
            server_roots: Arc::new(pki.roots.clone()),
            resolve: None,
            password: Some(Password::new("secret".to_owned())),
        };
        let report = boot(&phone(), &target, Some(&pki.device), &mut ()).await;
        let outcome = report.outcome.to_string();
        if is_secure {
            assert!(proofs(&own) >= 3, "{outcome}");
            assert!(
                outcome.contains(&format!("{}/site.cfg: the server requires a password", elsewhere.port())),
                "{outcome}"
            );
        } else {
            assert_eq!(proofs(&own), 0, "{outcome}");
            assert!(outcome.contains(" /00005e00530c.cfg: the password is wrong"), "{outcome}");
        }
    }
    assert_eq!((proofs(&other), other.requests().len()), (0, 1));
}
