//! Pins as a property: the pinned certificate is valid at any time, and a certificate that differs in any bit is not.

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, UnixTime};

use super::*;
use crate::constituency::{ExpiredDeviceCertificates, Fingerprint, MacAddress, Pins};

const MAC: &str = "00005e00530c";

fn verifier() -> DeviceVerifier {
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
    DeviceVerifier::new([], ExpiredDeviceCertificates::Refuse, algorithms)
}

fn self_signed(mac: &str) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, mac);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    params.self_signed(&key).unwrap().der().clone()
}

fn mac() -> MacAddress {
    MAC.parse().unwrap()
}

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

#[test]
fn pinned_certificate_never_expires_and_fits_one_phone() {
    let (leaf, verifier) = (self_signed(MAC), verifier());
    let pin = Fingerprint::of(&leaf);
    let pins = Pins::from([(mac(), pin)]);
    for seconds in [0, 1_000_000_000, 1_800_000_000, u64::MAX] {
        let device = verifier.verify(std::slice::from_ref(&leaf), &pins, at(seconds)).unwrap();
        assert_eq!((device.mac(), device.pin()), (Ok(mac()), Some(pin)));
        for now in [i64::MIN, 0, i64::MAX] {
            assert_eq!(device.still_valid(now), Ok(()));
        }
    }
    for pins in [Pins::new(), Pins::from([(mac().plus(1), pin)]), Pins::from([(mac(), Fingerprint::of(b""))])] {
        let refusal = verifier.verify(std::slice::from_ref(&leaf), &pins, at(1_800_000_000)).unwrap_err();
        assert!(matches!(refusal, ChainRefusal::SelfSigned { .. }), "{refusal}");
    }
    // The pin applies to the first certificate, whatever follows.
    let other = self_signed(MAC);
    assert!(verifier.verify(&[leaf.clone(), other.clone()], &pins, at(0)).is_ok());
    assert!(verifier.verify(&[other, leaf], &pins, at(0)).is_err());
}

#[test]
fn chain_is_stored_only_if_its_bundle_can_change() {
    let leaf = self_signed(MAC);
    let pins = Pins::from([(mac(), Fingerprint::of(&leaf))]);
    let kept = |bundle: &Bundle| {
        let algorithms = *verifier().algorithms();
        let verifier = DeviceVerifier::new([bundle], ExpiredDeviceCertificates::Refuse, algorithms);
        let device = verifier.verify(std::slice::from_ref(&leaf), &pins, at(1_800_000_000)).unwrap();
        device.chain().map(<[_]>::to_vec)
    };
    assert_eq!(kept(&polycom::bundle().unwrap()), None);
    let house = Bundle::of("house", &[("ca.pem".to_owned(), self_signed("a CA"))], &[]).unwrap();
    assert_eq!(kept(&house), Some(vec![leaf.clone()]));
}

#[test]
fn pinned_certificate_with_one_flipped_bit_is_refused() {
    let (leaf, verifier) = (self_signed(MAC), verifier());
    let pins = Pins::from([(mac(), Fingerprint::of(&leaf))]);
    let mut tried = 0;
    for bit in 0..leaf.len() * 8 {
        let mut other = leaf.to_vec();
        other[bit / 8] ^= 1 << (bit % 8);
        assert!(verifier.verify(&[other.into()], &pins, at(1_800_000_000)).is_err(), "bit {bit}");
        tried += 1;
    }
    assert!(tried > 2000, "{tried}");
}
