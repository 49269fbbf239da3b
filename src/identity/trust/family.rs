//! Families of devices: where a vendor's factory certificate has the MAC address, and in which form. Pure.
//!
//! A trust bundle belongs to one family. The MAC address is read only in the form of the CA that verified the
//! certificate. Otherwise, a name that one vendor's CA signs for any applicant could pass for a device of another
//! vendor.

use schemars::JsonSchema;
use serde::Deserialize;
use x509_parser::der_parser::Oid;
use x509_parser::oid_registry::{OID_X509_COMMON_NAME, OID_X509_SERIALNUMBER};

use crate::constituency::MacAddress;

/// The vendor whose devices a bundle's CAs certify.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Polycom and Poly, and a CA of your own: the subject's CN, 12 hex digits.
    #[default]
    Polycom,
    /// Yealink: the CN, 12 hex digits or six pairs with `:` or `-`.
    Yealink,
    /// Snom: the CN, 12 hex digits.
    Snom,
    /// Grandstream: the CN, 12 hex digits or six pairs with `:` or `-`.
    Grandstream,
    /// Cisco's phones for third-party servers: the subject's serialNumber, 12 hex digits or six pairs.
    CiscoMpp,
    /// Cisco's phones for its own call manager: in the CN, `CP-8845-SEP` and 12 hex digits.
    Cisco,
}

/// The form of the MAC address in a certificate.
pub(super) struct NameForm {
    /// The attribute of the subject.
    pub(super) attribute: Oid<'static>,
    /// The name of the attribute.
    pub(super) name: &'static str,
    /// A description of the value.
    pub(super) words: &'static str,
    /// Parses the value strictly.
    pub(super) read: fn(&[u8]) -> Option<MacAddress>,
}

const IN_HEX: &str = "a MAC address of 12 hex digits";
const IN_HEX_OR_PAIRS: &str = "a MAC address of 12 hex digits, or of six pairs with : or - between";

impl Family {
    /// All families.
    pub const ALL: [Self; 6] =
        [Self::Polycom, Self::Yealink, Self::Snom, Self::Grandstream, Self::CiscoMpp, Self::Cisco];

    /// The name in settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Polycom => "polycom",
            Self::Yealink => "yealink",
            Self::Snom => "snom",
            Self::Grandstream => "grandstream",
            Self::CiscoMpp => "cisco-mpp",
            Self::Cisco => "cisco",
        }
    }

    pub(super) fn form(self) -> NameForm {
        let in_name = |words, read| NameForm { attribute: OID_X509_COMMON_NAME, name: "CN", words, read };
        match self {
            Self::Polycom | Self::Snom => in_name(IN_HEX, MacAddress::from_hex),
            Self::Yealink | Self::Grandstream => in_name(IN_HEX_OR_PAIRS, hex_or_pairs),
            Self::CiscoMpp => NameForm {
                attribute: OID_X509_SERIALNUMBER,
                name: "serialNumber",
                words: IN_HEX_OR_PAIRS,
                read: hex_or_pairs,
            },
            Self::Cisco => in_name("CP-<model>-SEP<12 hex digits>", behind_a_model),
        }
    }

    /// A description of the form, for messages.
    #[must_use]
    pub fn explained(self) -> String {
        let form = self.form();
        format!("{}: the subject's {} is {}", self.name(), form.name, form.words)
    }
}

/// `00155D00530C`, `00:15:5d:00:53:0c` or `00-15-5D-00-53-0C`.
fn hex_or_pairs(text: &[u8]) -> Option<MacAddress> {
    if text.len() != 17 {
        return MacAddress::from_hex(text);
    }
    let separator = *text.get(2).filter(|byte| matches!(byte, b':' | b'-'))?;
    let pairs: Vec<&[u8]> = text.split(|byte| *byte == separator).collect();
    let is_pairs = pairs.len() == 6 && pairs.iter().all(|pair| pair.len() == 2);
    MacAddress::from_hex(&pairs.concat()).filter(|_| is_pairs)
}

/// `CP-8845-SEP00155D00530C`.
fn behind_a_model(text: &[u8]) -> Option<MacAddress> {
    let (head, digits) = text.split_at_checked(text.len().checked_sub(12)?)?;
    let model = head.strip_prefix(b"CP-")?.strip_suffix(b"-SEP")?;
    let is_model = !model.is_empty() && model.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    MacAddress::from_hex(digits).filter(|_| is_model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_accepts_only_its_own_name_form() {
        let forms = [
            ("00005E00530C", [true, true, true, true, true, false]),
            ("00005e00530c", [true, true, true, true, true, false]),
            ("00:00:5E:00:53:0C", [false, true, false, true, true, false]),
            ("00-00-5e-00-53-0c", [false, true, false, true, true, false]),
            ("CP-8845-SEP00005E00530C", [false, false, false, false, false, true]),
            ("CP-DX650-K9-SEP00005e00530c", [false, false, false, false, false, true]),
        ];
        for (text, wanted) in forms {
            let read = Family::ALL.map(|family| (family.form().read)(text.as_bytes()));
            assert_eq!(read.map(|mac| mac.is_some()), wanted, "{text}");
            assert!(read.into_iter().flatten().all(|mac| mac.to_string() == "00005e00530c"), "{text}");
        }
        for text in [
            "",
            "Yealink",
            "00005E00530",
            "00005E00530C0",
            "00:00-5E:00-53:0C",
            "00:00:5E:00:53:0C:",
            "0:000:5E:00:53:0C",
            "00.00.5E.00.53.0C",
            "CP--SEP00005E00530C",
            "CP-SEP00005E00530C",
            "cp-8845-SEP00005E00530C",
            "CP-8845-sep00005E00530C",
            "CP-8845-SEP00:00:5E:00:53:0C",
            "CP-8845 -SEP00005E00530C",
            "SEP00005E00530C",
            "CP-8845-SEP00005E00530C ",
            "PID:CP-8845 SN:00005E00530C",
        ] {
            for family in Family::ALL {
                assert_eq!((family.form().read)(text.as_bytes()), None, "{text:?} {}", family.name());
            }
        }
    }
}
