//! Compares our choice of clients for OpenSSL with what OpenSSL really accepts.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use proptest::test_runner::{Config, TestRunner};
use tokio::io::AsyncWriteExt;

use super::backends::{certificate, offer};
use crate::certificate::ServerCertificate;
use crate::constituency::TlsLevel;
use crate::serve::openssl::{LegacyTls, LegacyTlsFailure};

static CERTIFICATE: LazyLock<ServerCertificate> = LazyLock::new(|| certificate(&rcgen::PKCS_RSA_SHA256));
static BACKENDS: LazyLock<[(TlsLevel, LegacyTls); 2]> = LazyLock::new(|| {
    [TlsLevel::Compatible, TlsLevel::Legacy].map(|level| (level, LegacyTls::new(level, None).unwrap()))
});

/// Whether OpenSSL answers this hello and waits for more; if not, why.
fn answers(backend: &LegacyTls, raw: Vec<u8>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        // The buffer has room for the server's answer, and nothing follows the hello.
        let (phone, ours) = tokio::io::duplex(1 << 16);
        let (reader, mut writer) = tokio::io::split(phone);
        writer.shutdown().await.unwrap();
        let handshake = backend.accept(ours, raw, &CERTIFICATE, |_| unreachable!("no certificate is requested")).await;
        drop(reader);
        match handshake.result.map_err(|failed| failed.failure) {
            Err(LegacyTlsFailure::Closed) => Ok(()),
            Err(failure) => Err(format!("{failure:?}")),
            Ok(_) => panic!("the handshake cannot finish"),
        }
    })
}

/// At each level, OpenSSL serves exactly the clients that we route to it.
#[test]
fn openssl_serves_exactly_the_clients_routed_to_it() {
    let levels = RefCell::new(BTreeMap::<Option<TlsLevel>, usize>::new());
    let config = Config { cases: 2048, failure_persistence: None, ..Config::default() };
    let tried = TestRunner::new(config).run(&offer(), |mut offer| {
        // OpenSSL ignores the point formats that a client accepts; a client that cannot accept ours has no ECDHE.
        offer.points = offer.points.filter(|points| points.contains(&0));
        let needed = offer.facts().required_level();
        for (level, backend) in &*BACKENDS {
            let answered = answers(backend, offer.raw());
            let is_served = needed.is_some_and(|needed| needed <= *level);
            proptest::prop_assert_eq!(answered.is_ok(), is_served, "{:?}: {:?}", level, answered);
        }
        *levels.borrow_mut().entry(needed).or_default() += 1;
        Ok(())
    });
    tried.unwrap();
    let levels = levels.into_inner();
    assert!(levels.len() == 3 && levels.values().all(|count| *count > 100), "{levels:?}");
}
