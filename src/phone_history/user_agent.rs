//! Parses model and firmware from the User-Agent. They are information only, never identity. Pure.

use crate::constituency::MacAddress;

/// The longest model or version that is kept, in bytes.
const MAX_LENGTH: usize = 40;

/// The model and firmware of a phone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserAgent<'a> {
    /// The model, for example `VVX_500`.
    pub model: &'a str,
    /// The firmware, for example `5.9.7.4477`. `None` for the updater, which has a version of its own.
    pub firmware: Option<&'a str>,
}

impl<'a> UserAgent<'a> {
    /// Parses `FileTransport PolycomVVX-VVX_500-UA/5.9.7.4477 Type/Application` and its variants, and the headers of
    /// other vendors' phones. Ignores MAC addresses in it, which prove nothing.
    #[must_use]
    pub fn parse(header: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(header).ok()?;
        if text.split(' ').any(|word| word.contains("-UA/")) {
            return polycom(text);
        }
        let (model, firmware) =
            yealink(text).or_else(|| snom(text)).or_else(|| grandstream(text)).or_else(|| cisco(text))?;
        Some(Self { model: plain(model)?, firmware: firmware.and_then(version) })
    }

    /// Whether it is from the updater: a separate program with its own TLS, which boots the phone.
    #[must_use]
    pub fn is_of_updater(header: &[u8]) -> bool {
        std::str::from_utf8(header).is_ok_and(|text| text.split(' ').any(is_updater))
    }
}

fn polycom(text: &str) -> Option<UserAgent<'_>> {
    let mut words = text.split(' ');
    let (name, version) = words.find_map(|word| word.split_once("-UA/"))?;
    let (_, model) = name.split_once('-')?;
    let is_updater = words.any(is_updater);
    Some(UserAgent { model: plain(model)?, firmware: plain(version).filter(|_| !is_updater) })
}

fn is_updater(word: &str) -> bool {
    word == "Type/Updater"
}

/// `Yealink SIP-T46G 28.83.0.120 00:15:65:4a:a9:37`, `Yealink W60B 77.81.0.35 …`, `Yealink-T46G 28.71.0.81 …`
fn yealink(text: &str) -> Option<(&str, Option<&str>)> {
    let rest = without_name(text, "yealink").filter(|rest| rest.starts_with([' ', '-']))?;
    let mut words = rest.trim_start_matches('-').split_whitespace().filter(|word| !is_mac(word)).peekable();
    let mut model = words.next()?;
    // `SIP VP-T49G`
    while let Some(word) = words.next_if(|word| !is_version(word)) {
        model = word;
    }
    Some((model, words.next()))
}

/// `Mozilla/4.0 (compatible; snomD785-SIP 10.1.33.33 … 000413922D24 …)`, `… Snom M900 05.20.0001 …`, `snomD785/10.1.159.12`
fn snom(text: &str) -> Option<(&str, Option<&str>)> {
    let mut words = text.split([' ', '(', ')', ';', '/']).filter(|word| !word.is_empty());
    let word = words.find(|word| without_name(word, "snom").is_some())?;
    let model = match word.strip_suffix("-SIP").unwrap_or(word) {
        name if name.eq_ignore_ascii_case("snom") => words.next()?,
        model => model,
    };
    // Without a version, it may not be a phone.
    words.next().filter(|word| is_version(word)).map(|version| (model, Some(version)))
}

/// `Grandstream Model HW GXV3240 V1.6B SW 1.0.1.27 DevId 000b82632815`, `Grandstream GXP1400 1.0.4.13`
fn grandstream(text: &str) -> Option<(&str, Option<&str>)> {
    let rest = text.strip_prefix("Grandstream ")?;
    let behind = |name: &str| rest.split_whitespace().skip_while(move |word| *word != name).nth(1);
    match behind("HW") {
        Some(model) => Some((model, behind("SW"))),
        None => {
            let mut words = rest.split_whitespace();
            Some((words.next()?, words.next().filter(|word| is_version(word))))
        }
    }
}

/// `Cisco-CP-8841-3PCC/11.3.1 (00562b043615)`, `Cisco-CP7945G/8.4.0`, `Cisco/SPA504G-7.6.2c (…)`, `Linksys/SPA-942-6.1.5(a) (…)`
fn cisco(text: &str) -> Option<(&str, Option<&str>)> {
    let first = text.split(' ').next()?;
    if let Some(rest) = first.strip_prefix("Cisco-") {
        return rest.split_once('/').map(|(model, version)| (model, Some(version)));
    }
    let rest = ["Cisco/", "Linksys/", "Sipura/"].iter().find_map(|brand| first.strip_prefix(brand))?;
    let before_version = |at: &usize| rest.get(at + 1..).is_some_and(is_version);
    // An ATA's version has hyphens instead of dots: `ATA191-MPP-11-1-0-MSR4`.
    let at = rest.match_indices('-').map(|(at, _)| at).find(before_version).or_else(|| rest.find('-'));
    match at.and_then(|at| rest.split_at_checked(at)) {
        Some((model, version)) => Some((model, version.get(1..))),
        None => Some((rest, None)),
    }
}

/// `text` after `name`, case-insensitive.
fn without_name<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(name.len())?;
    head.eq_ignore_ascii_case(name).then_some(rest)
}

/// Digits with dots, possibly with a letter: `7.6.2c`.
fn is_version(word: &str) -> bool {
    word.split_once('.').is_some_and(|(first, _)| !first.is_empty() && first.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_mac(word: &str) -> bool {
    word.parse::<MacAddress>().is_ok()
}

/// A version without the MAC address that some versions carry: `12.0.3_dcf719f39350_…`.
fn version(word: &str) -> Option<&str> {
    let mut end = 0;
    for part in word.split_inclusive('_') {
        if is_mac(part.trim_end_matches('_')) {
            break;
        }
        end += part.len();
    }
    let word = word.get(..end)?.trim_end_matches('_');
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'(' | b')');
    ((1..=MAX_LENGTH).contains(&word.len()) && word.bytes().all(is_plain)).then_some(word)
}

/// A short word of letters, digits, `_`, `.` and `-`, which is not a MAC address.
fn plain(word: &str) -> Option<&str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let is_short = (1..=MAX_LENGTH).contains(&word.len());
    (is_short && word.bytes().all(is_plain) && !is_mac(word)).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polycom_user_agents_are_parsed() {
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

    /// Public code that distinguishes phones quotes all of these.
    #[test]
    fn user_agents_of_other_vendors_are_parsed() {
        let cases = [
            ("Yealink SIP-T46G 28.83.0.120 00:15:65:4a:a9:37", "SIP-T46G", Some("28.83.0.120")),
            ("Yealink SIP-T56A  58.80.0.25 001565f429a4", "SIP-T56A", Some("58.80.0.25")),
            ("yealink SIP-T28P 2.60.0.110 00:15:65:13:ae:0b", "SIP-T28P", Some("2.60.0.110")),
            ("Yealink SIP VP-T49G 51.80.0.10 00:15:65:9b:5a:44", "VP-T49G", Some("51.80.0.10")),
            ("Yealink SIP-T19P_E2 53.80.0.3 00:15:65:4c:4c:26", "SIP-T19P_E2", Some("53.80.0.3")),
            ("Yealink W60B 77.81.0.35 80:5e:c0:09:ab:dc", "W60B", Some("77.81.0.35")),
            ("Yealink-T46G 28.71.0.81 28.1.0.128.0.0.0", "T46G", Some("28.71.0.81")),
            ("Yealink SIP-T54W", "SIP-T54W", None),
            ("Mozilla/4.0 (compatible; snomD345-SIP 10.1.46.16 000413A1B2C3)", "snomD345", Some("10.1.46.16")),
            (
                "Mozilla/4.0 (compatible; snomD785-SIP 10.1.169.16 2010.12-00001-gd311851f1 (Feb 25 2019 - 14:19:43) \
                 00041396D9B4 SXM:0 UXM:0 UXMC:0)",
                "snomD785",
                Some("10.1.169.16"),
            ),
            (
                "Mozilla/4.0 (compatible; snom320-SIP 6.5.20; snom320 jffs2 v3.36; snom320 linux 3.38)",
                "snom320",
                Some("6.5.20"),
            ),
            ("Mozilla/4.0 (compatible; snomPA1-SIP 8.4.35 1.1.3-s)", "snomPA1", Some("8.4.35")),
            ("Mozilla/4.0 (compatible; Snom M900 05.20.0001 000413b60680)", "M900", Some("05.20.0001")),
            ("Mozilla/4.0 (compatible; snom m9 9.1.43)", "m9", Some("9.1.43")),
            ("snom-m3-SIP/02.11//18-Aug-10 15:36", "snom-m3", Some("02.11")),
            ("Grandstream Model HW GXP2160 SW 1.0.9.132 DevId 000b82462d97", "GXP2160", Some("1.0.9.132")),
            ("Grandstream Model HW GXV3240 V1.6B SW 1.0.1.27 DevId 000b82632815", "GXV3240", Some("1.0.1.27")),
            ("Grandstream Model HW GXV3350  V1.3A SW 1.0.1.8 DevId c074ad150b88", "GXV3350", Some("1.0.1.8")),
            ("Grandstream GXP2000 (gxp2000e.bin:1.2.5.3/boot55e.bin:1.1.6.9) DevId 000b822726c8", "GXP2000", None),
            ("Grandstream GXP1400 1.0.4.13", "GXP1400", Some("1.0.4.13")),
            ("Cisco/SPA504G-7.6.2c (649EF3788E6A)(CCQ162306EA)", "SPA504G", Some("7.6.2c")),
            ("Cisco/SPA525G2-7.6.1(ES_RC01)", "SPA525G2", Some("7.6.1(ES_RC01)")),
            ("Linksys/SPA-942-6.1.5(a) (88019FA42805)", "SPA-942", Some("6.1.5(a)")),
            ("Cisco/ATA191-MPP-11-1-0-MSR4 (FCH2443D9R4)", "ATA191", Some("MPP-11-1-0-MSR4")),
            ("Cisco-CP-8841-3PCC/11.3.1 (00562b043615)", "CP-8841-3PCC", Some("11.3.1")),
            ("Cisco-CP-7832-3PCC/11.0.1 (00562b043615)", "CP-7832-3PCC", Some("11.0.1")),
            ("Cisco-CP-8851-3PCC/11.3.7_MPP_0001", "CP-8851-3PCC", Some("11.3.7_MPP_0001")),
            ("Cisco-CP-8865-3PCC/12.0.3_dcf719f39350_d4e6994b-60bc", "CP-8865-3PCC", Some("12.0.3")),
            ("Cisco-CP7945G/8.4.0", "CP7945G", Some("8.4.0")),
        ];
        for (header, model, firmware) in cases {
            assert_eq!(UserAgent::parse(header.as_bytes()), Some(UserAgent { model, firmware }), "{header}");
        }
        assert_eq!(cases.len(), 29);
    }

    #[test]
    fn mac_address_is_neither_model_nor_firmware() {
        for header in [
            "Yealink 001565f429a4",
            "Yealink SIP-T46G 00:15:65:4a:a9:37",
            "Yealink 00:15:65:4a:a9:37 28.83.0.120",
            "Mozilla/4.0 (compatible; snom 000413b60680 1.2)",
            "Mozilla/4.0 (compatible; snom lid 3605)",
            "Grandstream Model HW 000b82462d97 SW 000b82462d97 DevId 000b82462d97",
            "Grandstream 000b82462d97",
            "Cisco-CP-8841-3PCC/00562b043615",
            "Cisco/00562B043615-7.6.2",
            "Cisco/SPA504G-00562B043615",
        ] {
            if let Some(agent) = UserAgent::parse(header.as_bytes()) {
                let parsed = [Some(agent.model), agent.firmware];
                assert!(
                    parsed.into_iter().flatten().all(|word| !word.is_empty() && !is_mac(word)),
                    "{header}: {agent:?}"
                );
            }
        }
    }

    #[test]
    fn unknown_user_agents_have_no_model() {
        let long = format!("X-{}-UA/1", "a".repeat(41));
        for header in ["", "curl/8.1", "-UA/", "X-\x1b[2J-UA/1", "X-ä-UA/1", &long] {
            assert_eq!(UserAgent::parse(header.as_bytes()), None, "{header:?}");
        }
        assert_eq!(UserAgent::parse(b"X-m-UA/1\xff"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_header_is_parsed_without_panic_to_plain_text(header: Vec<u8>, word in "[ -~]{0,60}") {
            let brands = ["", "Yealink ", "snom", "Grandstream Model HW ", "Cisco/", "Cisco-"];
            let headers = brands.map(|brand| format!("{brand}{word}").into_bytes());
            for header in [header, format!("{word}-UA/{word}").into_bytes()].into_iter().chain(headers) {
                if let Some(agent) = UserAgent::parse(&header) {
                    let both = format!("{}{}", agent.model, agent.firmware.unwrap_or_default());
                    proptest::prop_assert!(both.len() <= 80 && both.bytes().all(|byte| byte.is_ascii_graphic()));
                }
            }
        }
    }
}
