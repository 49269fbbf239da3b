//! Model and firmware as phones name them in their User-Agent: information only, never identity. Pure.

/// The longest model or version that is kept, in bytes.
const LONGEST: usize = 40;

/// What a User-Agent says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserAgent<'a> {
    /// The model, for example `VVX_500`.
    pub model: &'a str,
    /// The firmware, for example `5.9.7.4477`; absent where the updater speaks, which has a version of its own.
    pub firmware: Option<&'a str>,
}

impl<'a> UserAgent<'a> {
    /// Reads `FileTransport PolycomVVX-VVX_500-UA/5.9.7.4477 Type/Application` and its relatives.
    #[must_use]
    pub fn parse(header: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(header).ok()?;
        let mut words = text.split(' ');
        let (name, version) = words.find_map(|word| word.split_once("-UA/"))?;
        let (_, model) = name.split_once('-')?;
        let is_updater = words.any(is_updater);
        Some(Self { model: plain(model)?, firmware: plain(version).filter(|_| !is_updater) })
    }

    /// Whether it is the updater that speaks: a program of its own, with TLS of its own, that boots the phone.
    #[must_use]
    pub fn is_of_updater(header: &[u8]) -> bool {
        std::str::from_utf8(header).is_ok_and(|text| text.split(' ').any(is_updater))
    }
}

fn is_updater(word: &str) -> bool {
    word == "Type/Updater"
}

/// A word that is short and of letters, digits, `_`, `.` and `-` alone.
fn plain(word: &str) -> Option<&str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (1..=LONGEST).contains(&word.len()).then_some(word).filter(|word| word.bytes().all(is_plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_phone_is_read() {
        let cases = [
            ("FileTransport PolycomVVX-VVX_500-UA/5.9.7.4477 Type/Application", "VVX_500", Some("5.9.7.4477")),
            ("FileTransport PolycomVVX-VVX_500-UA/5.9.7.47435 Type/Updater", "VVX_500", None),
            (
                "FileTransport PolycomSoundPointIP-SPIP_550-UA/4.0.15.1047 (SN:0004a11a1a1a) Type/Application",
                "SPIP_550",
                Some("4.0.15.1047"),
            ),
            ("FileTransport PolycomSoundPointIP-SPIP_335-UA/3.2.1.0078", "SPIP_335", Some("3.2.1.0078")),
            ("FileTransport PolycomSoundStationIP-SSIP_6000-UA/5.0.3.1667 Type/Updater", "SSIP_6000", None),
            ("FileTransport PolyEdge-Edge_E450-UA/8.0.0.15602 Type/Application", "Edge_E450", Some("8.0.0.15602")),
            (
                "FileTransport PolyCCX-CCX_600-UA/8.0.2.3267 (SN:482567b5313f) Type/Application",
                "CCX_600",
                Some("8.0.2.3267"),
            ),
            (
                "Microbrowser/1.1 PolycomSoundPointIP-SPIP_550-UA/4.0.15.1047 Type/Application",
                "SPIP_550",
                Some("4.0.15.1047"),
            ),
        ];
        for (header, model, firmware) in cases {
            assert_eq!(UserAgent::parse(header.as_bytes()), Some(UserAgent { model, firmware }), "{header}");
        }
    }

    #[test]
    fn what_is_no_phone_has_no_model() {
        let long = format!("X-{}-UA/1", "a".repeat(41));
        for header in ["", "curl/8.1", "-UA/", "X-\x1b[2J-UA/1", "X-ä-UA/1", &long] {
            assert_eq!(UserAgent::parse(header.as_bytes()), None, "{header:?}");
        }
        assert_eq!(UserAgent::parse(b"X-m-UA/1\xff"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_header_panics_and_what_is_read_is_plain(header: Vec<u8>, word in "[ -~]{0,60}") {
            for header in [header, format!("{word}-UA/{word}").into_bytes()] {
                if let Some(agent) = UserAgent::parse(&header) {
                    let both = format!("{}{}", agent.model, agent.firmware.unwrap_or_default());
                    proptest::prop_assert!(both.len() <= 80 && both.bytes().all(|byte| byte.is_ascii_graphic()));
                }
            }
        }
    }
}
