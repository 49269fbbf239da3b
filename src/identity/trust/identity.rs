//! Reads the phone's MAC address from a device certificate. Chain validation accepts any name, so this check is
//! provost's own.
//!
//! Pure: DER in, MAC address or the exact reason out. Reads the subject as DER, not as the string of a distinguished
//! name, in which one name can be made to look like another.

use x509_parser::asn1_rs::Tag;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use super::family::Family;
use crate::constituency::{MacAddress, NotAPhone};

/// Why a certificate that chains to a trusted CA names no phone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoIdentity {
    /// The subject lacks the attribute.
    #[error("the device certificate's subject has no {0}")]
    Missing(&'static str),
    /// The attribute occurs more than once, which is ambiguous.
    #[error("the device certificate's subject has {count} {attribute}s, exactly one is allowed")]
    Several {
        /// The attribute.
        attribute: &'static str,
        /// The number of occurrences.
        count: usize,
    },
    /// The attribute shares its RDN with another one.
    #[error("the device certificate's {0} is in a multi-valued RDN")]
    MultiValuedRdn(&'static str),
    /// The value is neither `UTF8String` nor `PrintableString`.
    #[error(
        "the device certificate's {attribute} is a string of ASN.1 type {tag}, only UTF8String and PrintableString are allowed"
    )]
    StringType {
        /// The attribute.
        attribute: &'static str,
        /// The ASN.1 type.
        tag: String,
    },
    /// The text does not name a single phone. Many phones may share such a certificate.
    #[error("the device certificate's {attribute} {text:?} is not {expected}{}", hint(*.family))]
    NotMacAddress {
        /// The attribute.
        attribute: &'static str,
        /// The text.
        text: String,
        /// A description of the expected text.
        expected: &'static str,
        /// The family of the form.
        family: Family,
    },
    /// A MAC address that no phone can have.
    #[error("the device certificate's {attribute} names no phone: {why}")]
    NotAPhone {
        /// The attribute.
        attribute: &'static str,
        /// The reason.
        why: NotAPhone,
    },
}

/// A hint for phones of other families: some have a certificate that a whole series shares.
fn hint(family: Family) -> &'static str {
    if family == Family::Polycom { "" } else { ": it names no single phone, and may be shared by many" }
}

/// Reads the MAC address from a certificate's `subject` in the form of `family`. The attribute must occur exactly once,
/// in an RDN of its own, and have exactly the form.
///
/// # Errors
/// The reason for every other subject.
pub fn mac_address(subject: &X509Name<'_>, family: Family) -> Result<MacAddress, NoIdentity> {
    let form = family.form();
    let attribute = form.name;
    let is_it = |found: &&AttributeTypeAndValue<'_>| *found.attr_type() == form.attribute;
    let mut found = None;
    let mut count = 0;
    for rdn in subject.iter_rdn() {
        for value in rdn.iter().filter(is_it) {
            count += 1;
            found = Some((value, rdn.iter().count()));
        }
    }
    let (only, siblings) = match (found, count) {
        (Some(only), 1) => only,
        (None, _) => return Err(NoIdentity::Missing(attribute)),
        (Some(_), count) => return Err(NoIdentity::Several { attribute, count }),
    };
    if siblings != 1 {
        return Err(NoIdentity::MultiValuedRdn(attribute));
    }
    let value = only.attr_value();
    if !matches!(value.tag(), Tag::Utf8String | Tag::PrintableString) {
        return Err(NoIdentity::StringType { attribute, tag: value.tag().to_string() });
    }
    match (form.read)(value.data) {
        Some(mac) => mac.check_phone().map(|()| mac).map_err(|why| NoIdentity::NotAPhone { attribute, why }),
        None => Err(NoIdentity::NotMacAddress {
            attribute,
            text: String::from_utf8_lossy(value.data).chars().take(64).collect(),
            expected: form.words,
            family,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::FromDer;

    const COMMON_NAME: &[u8] = &[0x06, 3, 0x55, 4, 3];
    const ORGANIZATION: &[u8] = &[0x06, 3, 0x55, 4, 10];

    fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let mut der = vec![tag, u8::try_from(content.len()).unwrap()];
        der.extend(content);
        der
    }

    fn attribute(oid: &[u8], tag: u8, value: &[u8]) -> Vec<u8> {
        tlv(0x30, &[oid, &tlv(tag, &[value])])
    }

    fn identify(rdns: &[Vec<u8>]) -> Result<String, NoIdentity> {
        let rdns: Vec<&[u8]> = rdns.iter().map(Vec::as_slice).collect();
        let der = tlv(0x30, &rdns);
        let (_, name) = X509Name::from_der(&der).unwrap();
        mac_address(&name, Family::Polycom).map(|mac| mac.to_string())
    }

    fn cn(tag: u8, value: &[u8]) -> Vec<u8> {
        tlv(0x31, &[&attribute(COMMON_NAME, tag, value)])
    }

    #[test]
    fn factory_subject_gives_the_mac() {
        let organization = tlv(0x31, &[&attribute(ORGANIZATION, 0x13, b"Polycom Inc.")]);
        assert_eq!(identify(&[cn(0x13, b"0004F28B54F4"), organization.clone()]).unwrap(), "0004f28b54f4");
        assert_eq!(identify(&[organization, cn(0x0c, b"0004f28b54f4")]).unwrap(), "0004f28b54f4");
    }

    #[test]
    fn manipulated_subject_gives_no_identity() {
        let good = || cn(0x13, b"0004F28B54F4");
        assert_eq!(identify(&[]), Err(NoIdentity::Missing("CN")));
        assert_eq!(
            identify(&[good(), cn(0x13, b"0004F28B54F5")]),
            Err(NoIdentity::Several { attribute: "CN", count: 2 })
        );
        let shared = tlv(0x31, &[&attribute(COMMON_NAME, 0x13, b"0004F28B54F4"), &attribute(ORGANIZATION, 0x13, b"x")]);
        assert_eq!(identify(&[shared]), Err(NoIdentity::MultiValuedRdn("CN")));
        let two_in_one = tlv(
            0x31,
            &[&attribute(COMMON_NAME, 0x13, b"0004F28B54F4"), &attribute(COMMON_NAME, 0x13, b"0004F28B54F5")],
        );
        assert_eq!(identify(&[two_in_one]), Err(NoIdentity::Several { attribute: "CN", count: 2 }));
        assert!(matches!(identify(&[cn(0x1e, b"\x000\x004")]), Err(NoIdentity::StringType { .. })));
        assert!(matches!(identify(&[cn(0x14, b"0004F28B54F4")]), Err(NoIdentity::StringType { .. })));
        assert!(matches!(identify(&[cn(0x16, b"0004F28B54F4")]), Err(NoIdentity::StringType { .. })));
        for text in [
            "0004F28B54F4\0",
            "0004F28B54F4 ",
            " 0004F28B54F4",
            "0004F28B54F",
            "00:04:F2:8B:54:F4",
            "0004F28B54FО",
            "",
            "CN=0004F28B54F4",
            "0004F28B54F4\n",
        ] {
            assert!(
                matches!(identify(&[cn(0x0c, text.as_bytes())]), Err(NoIdentity::NotMacAddress { .. })),
                "{text:?}"
            );
        }
        let not_a_phone = |why| Err(NoIdentity::NotAPhone { attribute: "CN", why });
        assert_eq!(identify(&[cn(0x13, b"000000000000")]), not_a_phone(NotAPhone::Fallback));
        for group in ["FFFFFFFFFFFF", "01005e000001"] {
            let why = NotAPhone::Group(group.parse().unwrap());
            assert_eq!(identify(&[cn(0x13, group.as_bytes())]), not_a_phone(why));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_subject_panics(der: Vec<u8>) {
            if let Ok((_, name)) = X509Name::from_der(&der) {
                for family in Family::ALL {
                    let _ = mac_address(&name, family);
                }
            }
        }

        #[test]
        fn only_twelve_hex_digits_are_a_mac(text in proptest::prop_oneof!["\\PC{0,16}", "[0-9a-fA-F]{11,13}"]) {
            let named = identify(&[cn(0x0c, text.as_bytes())]);
            let is_hex = text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            let is_own = is_hex && u8::from_str_radix(&text[..2], 16).unwrap() % 2 == 0 && text != "000000000000";
            proptest::prop_assert_eq!(named.is_ok(), is_own);
        }
    }
}
