//! Who is served by the old lane: what we say, and what OpenSSL really does.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use proptest::test_runner::{Config, TestRunner};
use tokio::io::AsyncWriteExt;

use super::lanes::{certificate, offer};
use crate::certificate::ServerCertificate;
use crate::constituency::TlsLevel;
use crate::serve::openssl::{LegacyTls, LegacyTlsFailure};

static CERTIFICATE: LazyLock<ServerCertificate> = LazyLock::new(|| certificate(&rcgen::PKCS_RSA_SHA256));
static LANES: LazyLock<[(TlsLevel, LegacyTls); 2]> = LazyLock::new(|| {
    [TlsLevel::Compatible, TlsLevel::Legacy].map(|level| (level, LegacyTls::new(level, None).unwrap()))
});

/// Whether OpenSSL answers this hello, and waits for what comes behind it; if not, why not.
fn answers(lane: &LegacyTls, raw: Vec<u8>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        // What the server says has room, and behind the hello there is nothing.
        let (phone, ours) = tokio::io::duplex(1 << 16);
        let (heard, mut said) = tokio::io::split(phone);
        said.shutdown().await.unwrap();
        let (outcome, _) = lane.accept(ours, raw, &CERTIFICATE, |_| unreachable!("nobody is asked")).await;
        drop(heard);
        match outcome {
            Err((LegacyTlsFailure::Closed, _)) => Ok(()),
            Err(failure) => Err(format!("{failure:?}")),
            Ok(_) => panic!("half a handshake is none"),
        }
    })
}

/// The promise of the old lane: OpenSSL serves at each level whom we say it does, and nobody else.
#[test]
fn openssl_serves_exactly_those_who_are_promised_it() {
    let promises = RefCell::new(BTreeMap::<Option<TlsLevel>, usize>::new());
    let config = Config { cases: 2048, failure_persistence: None, ..Config::default() };
    let tried = TestRunner::new(config).run(&offer(), |mut offer| {
        // OpenSSL passes over what kinds of points somebody takes; whoever cannot take ours has no ECDHE.
        offer.points = offer.points.filter(|points| points.contains(&0));
        let needed = offer.facts().required_level();
        for (level, lane) in &*LANES {
            let answered = answers(lane, offer.raw());
            let is_promised = needed.is_some_and(|needed| needed <= *level);
            proptest::prop_assert_eq!(answered.is_ok(), is_promised, "{:?}: {:?}", level, answered);
        }
        *promises.borrow_mut().entry(needed).or_default() += 1;
        Ok(())
    });
    tried.unwrap();
    let promises = promises.into_inner();
    assert!(promises.len() == 3 && promises.values().all(|count| *count > 100), "{promises:?}");
}
