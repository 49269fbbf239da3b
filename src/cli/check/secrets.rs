//! Which parameters hold a secret: what must not stand in a file that others can read. Pure; values are looked at and
//! never shown.

/// What the last word of a parameter's name ends with where its value is a secret: `reg.1.auth.password`,
/// `device.auth.localAdminPassword`, `device.wifi.psk.passphrase`.
const ENDINGS: [&str; 6] = ["password", "passwd", "passphrase", "psk", "secret", "pincode"];

/// Words that say so by themselves, anywhere in a name: private keys (`device.sec.TLS.customDeviceKey1`).
const WORDS: [&str; 3] = ["customdevicekey", "privatekey", "devicekey"];

/// Of a name that ends with `.key`, what makes it a secret one: `device.sec.configEncryption.key`.
const KEYS_OF: [&str; 4] = ["encryption", "wifi", "wep", "psk"];

/// What a parameter has that others should not see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Secret {
    /// Its value is one.
    Value,
    /// Its value is a URL with a password in it.
    InUrl,
}

/// Whether a parameter of this name and value holds a secret.
pub(super) fn secret(name: &str, value: &str) -> Option<Secret> {
    if is_secret(name) && !says_nothing(value) {
        Some(Secret::Value)
    } else if has_password_in_url(value) {
        Some(Secret::InUrl)
    } else {
        None
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let mut words = name.split('.').map(|word| word.trim_end_matches(|c: char| c.is_ascii_digit()));
    let last = words.clone().rfind(|word| !word.is_empty()).unwrap_or_default();
    let is_key = last == "key" && KEYS_OF.iter().any(|of| name.contains(of));
    // `device.x.set` says only that `device.x` counts.
    last != "set"
        && (last == "pin"
            || is_key
            || ENDINGS.iter().any(|ending| last.ends_with(ending))
            || words.any(|word| WORDS.contains(&word)))
}

/// A switch, or nothing at all.
fn says_nothing(value: &str) -> bool {
    matches!(value.trim().to_ascii_lowercase().as_str(), "" | "0" | "1" | "true" | "false")
}

/// The line on which a private key begins (RFC 7468 §10 and its older forms), as text.
pub(super) fn private_key(bytes: &[u8]) -> Option<usize> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    const KEY: &[u8] = b"PRIVATE KEY-----";
    // RSA, EC, ENCRYPTED, OPENSSH and the like may stand before it.
    const LONGEST: usize = 32;
    let begins = |line: &[u8]| {
        let starts = line.windows(BEGIN.len()).enumerate().filter(|(_, window)| *window == BEGIN);
        let labels = starts.filter_map(|(at, _)| line.get(at + BEGIN.len()..));
        let mut labels = labels.map(|rest| rest.get(..LONGEST).unwrap_or(rest));
        labels.any(|label| label.windows(KEY.len()).any(|window| window == KEY))
    };
    bytes.split(|byte| *byte == b'\n').position(begins).map(|line| line + 1)
}

/// `https://user:password@host/`
pub(super) fn has_password_in_url(value: &str) -> bool {
    let authorities = value.split("://").skip(1).filter_map(|rest| rest.split(['/', ' ', ',', ';']).next());
    authorities
        .filter_map(|authority| authority.rsplit_once('@'))
        .any(|(user, _)| user.split_once(':').is_some_and(|(_, password)| !password.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_known_by_their_names() {
        for name in [
            "reg.1.auth.password",
            "reg.12.auth.loginPassword",
            "device.auth.localAdminPassword",
            "device.auth.localUserPassword",
            "device.prov.password",
            "device.net.dot1x.password",
            "dir.corp.password",
            "apps.push.password",
            "apps.statePolling.password",
            "device.tr069.acs.password",
            "device.wifi.wpa2Ent.password",
            "device.wifi.psk.key",
            "device.wifi.psk.passphrase",
            "device.sec.configEncryption.key",
            "device.sec.TLS.customDeviceKey1",
            "sec.TLS.customDeviceKey.1",
            "httpd.cfg.adminPassword",
            "REG.1.AUTH.PASSWORD",
            "reg.1.auth.pin",
        ] {
            assert_eq!(secret(name, "s3cret"), Some(Secret::Value), "{name}");
            assert_eq!(secret(name, ""), None, "{name}");
        }
    }

    #[test]
    fn what_only_sounds_like_one_is_none() {
        for name in [
            "device.auth.localAdminPassword.set",
            "device.sec.TLS.customDeviceKey1.set",
            "reg.1.auth.userId",
            "reg.1.auth.useLoginCredentials",
            "sec.pwd.length.admin",
            "httpd.cfg.enabled",
            "httpd.cfg.port",
            "key.1.function.prim",
            "softkey.1.action",
            "up.pinning",
            "sec.TLS.customCaCert.1",
            "",
            ".",
            "password.length",
        ] {
            assert_eq!(secret(name, "s3cret"), None, "{name}");
        }
        assert_eq!(secret("feature.x.requirePassword", "1"), None, "a switch");
    }

    #[test]
    fn a_password_in_a_url_is_one() {
        for value in ["https://user:s3cret@host/x", "a, ftp://PlcmSpIp:PlcmSpIp@h", "http://h/x https://:p@h"] {
            assert_eq!(secret("mb.main.home", value), Some(Secret::InUrl), "{value}");
        }
        for value in
            ["https://host:8443/a@b:c", "https://user@host/", "mailto:a:b@c", "sip:1:2@h", "https://u:@h", "://"]
        {
            assert_eq!(secret("mb.main.home", value), None, "{value}");
        }
    }

    #[test]
    fn a_private_key_is_known_by_its_first_line() {
        for kind in ["", "RSA ", "EC ", "ENCRYPTED ", "OPENSSH "] {
            let text = format!("a certificate\n<x key=\"-----BEGIN {kind}PRIVATE KEY-----&#10;MII\"/>");
            assert_eq!(private_key(text.as_bytes()), Some(2), "{kind}");
        }
        for other in ["", "-----BEGIN CERTIFICATE-----", "-----BEGIN PUBLIC KEY-----", "-----END PRIVATE KEY-----"] {
            assert_eq!(private_key(other.as_bytes()), None, "{other}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(name in "\\PC{0,40}", value in "\\PC{0,60}") {
            let _ = secret(&name, &value);
            let _ = private_key(format!("{name}-----BEGIN {value}").as_bytes());
        }
    }
}
