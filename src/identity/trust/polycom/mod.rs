//! Polycom's factory PKI: the four CA certificates that the vendor publishes for the device certificates in its phones.
//! A test checks their SHA-256 fingerprints.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::bundle::{Bundle, BundleError};
use crate::constituency::POLYCOM;

const CERTIFICATES: [(&str, &str); 4] = [
    ("Polycom Root CA", include_str!("polycom_root_ca.pem")),
    ("Polycom Equipment Policy CA", include_str!("polycom_equipment_policy_ca.pem")),
    ("Polycom Equipment Issuing CA 1", include_str!("polycom_equipment_issuing_ca_1.pem")),
    ("Polycom Equipment Issuing CA 2", include_str!("polycom_equipment_issuing_ca_2.pem")),
];

/// The built-in bundle.
pub(super) fn bundle() -> Result<Bundle, BundleError> {
    let certificates = CERTIFICATES
        .iter()
        .map(|(name, pem)| {
            let unusable =
                |error| BundleError::Unusable { source_name: (*name).to_owned(), reason: format!("{error}") };
            Ok(((*name).to_owned(), CertificateDer::from_pem_slice(pem.as_bytes()).map_err(unusable)?))
        })
        .collect::<Result<Vec<_>, BundleError>>()?;
    Bundle::of(POLYCOM, &certificates, &[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;

    #[test]
    fn all_four_polycom_cas_are_built_in_anchors() {
        let bundle = bundle().unwrap();
        let sha256 = TLS13_AES_128_GCM_SHA256.tls13().unwrap().common.hash_provider;
        let fingerprints: Vec<String> = bundle
            .anchors
            .iter()
            .map(|anchor| sha256.hash(&anchor.certificate).as_ref().iter().map(|byte| format!("{byte:02X}")).collect())
            .collect();
        assert_eq!(
            fingerprints,
            [
                "5A9A1F57090208B9ACDA4F239510153977AEA210897915014D431EFF06601EBE",
                "77F0CF45BC5DC4A71F7420BD4DADE9C7ABAD61C68E914C58227875AC95FA8A7A",
                "2DFD3E9E4557AB4F6FD17B45053919610E8E771E6A78239B08D47C815325A068",
                "90B57CFF4C681E539E5D131EB5F98D2B48AB9ABECC1E9F0DDAF2562AB47AF006",
            ]
        );
        assert!(bundle.known.is_empty());
        let years: Vec<i64> = bundle.anchors.iter().map(|anchor| 1970 + anchor.not_after / 31_556_952).collect();
        assert_eq!(years, [2044, 2039, 2039, 2039]);
    }
}
