//! Finds parameters with secret values, which must not be in a file that others can read. Values are examined and never
//! stored.
//!
//! The file's format decides which rules apply, not its constituency. Attributes are Polycom's parameters. Element
//! texts are those of Snom (`<user_pass idx="1">`), Grandstream (`<P34>`, `<item name="…">`) and Cisco
//! (`<Password_1_>`). Lines are those of Yealink (`account.1.password = …`), Grandstream (`P34=…`) and Snom
//! (`user_pass1!: …`).

use super::faults::UnreadableXml;
use super::text::Text;
use super::xml::XmlFile;

/// A parameter is secret if the last word of its name ends with one of these: `reg.1.auth.password`,
/// `device.auth.localAdminPassword`, `device.wifi.psk.passphrase`.
const ENDINGS: [&str; 6] = ["password", "passwd", "passphrase", "psk", "secret", "pincode"];

/// A parameter is secret if one of these words is anywhere in its name: private keys
/// (`device.sec.TLS.customDeviceKey1`).
const WORDS: [&str; 3] = ["customdevicekey", "privatekey", "devicekey"];

/// A name that ends with `.key` is secret if it contains one of these: `device.sec.configEncryption.key`.
const KEYS_OF: [&str; 4] = ["encryption", "wifi", "wep", "psk"];

/// Like `ENDINGS`, for other vendors: `Admin_Passwd`, `http_pass`, `features.xml_browser.pwd`, `RegisterPswd`.
const SETTING_ENDINGS: [&str; 10] =
    ["password", "passwd", "passphrase", "pswd", "pwd", "psk", "pskkey", "secret", "pincode", "passcode"];
/// A parameter of another vendor is secret if the last word of its name is one of these.
const SETTING_WORDS: [&str; 4] = ["pass", "pin", "lockpin", "hash"];
/// Like `KEYS_OF`, for other vendors' names that end with `key`.
const SETTING_KEYS_OF: [&str; 6] = ["encryption", "wifi", "wep", "psk", "encode", "private"];

/// Grandstream's parameters are numbered. These are the passwords of the web interface (2, 196), of accounts (34, 406
/// …), of the provisioning server (1, 1359, 1361, 6714, 6769, 6777), of networks and directories, and private keys.
const NUMBERED: [u32; 33] = [
    1, 2, 34, 83, 196, 279, 281, 406, 506, 606, 706, 734, 806, 906, 1359, 1361, 1706, 1806, 4244, 4245, 4505, 4512,
    6714, 6769, 6777, 7829, 7830, 7903, 8024, 8221, 10457, 10463, 22019,
];
/// Passwords of accounts with consecutive numbers: FXS ports, accounts 7 to 32, 33 to 48, and of the GXV3350.
const NUMBERED_RANGES: [(u32, u32); 4] = [(3120, 3123), (4120, 4149), (21_128, 21_143), (24_130, 24_145)];

/// How a parameter contains a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundSecret {
    /// The value is a secret.
    Value,
    /// The value is a URL with a password.
    InUrl,
    /// The value is a rule with a password, as in Cisco's profile rules: `[--uid a --pwd b]https://…`.
    InRule,
}

/// Calls `visit` for every parameter in `text` that contains a secret, with its name, kind and line. `file` is the same
/// text, read as XML.
pub fn each_secret(
    text: &Text<'_>,
    file: Result<&XmlFile<'_>, &UnreadableXml>,
    mut visit: impl FnMut(&str, FoundSecret, u32),
) {
    match file {
        Ok(file) if !is_lines(text.as_str()) => {
            for attribute in &file.attributes {
                if let Some(kind) = of_parameter(attribute.name, &attribute.value) {
                    visit(attribute.name, kind, file.line(attribute.at));
                }
            }
            for element in &file.texts {
                let names = [element.label.as_deref(), Some(element.element)];
                let secret =
                    names.into_iter().flatten().find_map(|name| Some((name, of_setting(name, &element.text)?)));
                if let Some((name, kind)) = secret {
                    visit(name, kind, file.line(element.at));
                }
            }
        }
        _ => {
            for (line, number) in text.as_str().lines().zip(1..) {
                if let Some((name, value)) = setting(line)
                    && let Some(kind) = of_setting(name, value)
                {
                    visit(name, kind, number);
                }
            }
        }
    }
}

/// Whether a file consists of lines. Snom's lines can be inside `<html><pre>`.
fn is_lines(text: &str) -> bool {
    let begin: String = text.trim_start().chars().take(5).collect::<String>().to_ascii_lowercase();
    !begin.starts_with('<') || begin == "<html" || begin.starts_with("<pre")
}

/// The name and value in a line: `NAME = VALUE`, `NAME: VALUE`.
fn setting(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    let at = line.find(['=', ':']).filter(|_| !line.starts_with(['#', ';', '<', '/']))?;
    let (name, value) = (line.get(..at)?.trim(), line.get(at + 1..)?.trim());
    let is_name = !name.is_empty() && !name.contains(char::is_whitespace);
    is_name.then_some((name, value.trim_matches(['"', '\''])))
}

/// Whether a Polycom parameter with this name and value contains a secret.
fn of_parameter(name: &str, value: &str) -> Option<FoundSecret> {
    if is_secret(name) && !is_placeholder(value) { Some(FoundSecret::Value) } else { within(value) }
}

/// Whether another vendor's parameter with this name and value contains a secret.
fn of_setting(name: &str, value: &str) -> Option<FoundSecret> {
    if is_secret_setting(name) && !is_placeholder(value) { Some(FoundSecret::Value) } else { within(value) }
}

fn within(value: &str) -> Option<FoundSecret> {
    if has_password_in_url(value) {
        Some(FoundSecret::InUrl)
    } else if has_password_in_rule(value) {
        Some(FoundSecret::InRule)
    } else {
        None
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let mut words = name.split('.').map(|word| word.trim_end_matches(|c: char| c.is_ascii_digit()));
    let last = words.clone().rfind(|word| !word.is_empty()).unwrap_or_default();
    let is_key = last == "key" && KEYS_OF.iter().any(|of| name.contains(of));
    // `device.x.set` is a switch: the phone applies `device.x` if it is 1.
    last != "set"
        && (last == "pin"
            || is_key
            || ENDINGS.iter().any(|ending| last.ends_with(ending))
            || words.any(|word| WORDS.contains(&word)))
}

fn is_secret_setting(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    if let Some(number) = name.strip_prefix('p').and_then(|digits| digits.parse().ok()) {
        return NUMBERED.contains(&number)
            || NUMBERED_RANGES.iter().any(|(first, last)| (*first..=*last).contains(&number));
    }
    // `user_pass1!`, `Password_1_`, `%SUBSCR_1_UA_DATA_AUTH_PASS%`
    let is_mark = |c: char| c.is_ascii_digit() || matches!(c, '_' | '!' | '&' | '$' | '?' | '%');
    let name = name.trim_end_matches(is_mark).trim_start_matches('%');
    let name = name.strip_suffix("_confirm").unwrap_or(name);
    // Cisco's PSK_1 is a programmable softkey. Yealink's input methods say how passwords are typed, and contain none.
    if name == "psk" || name.contains("input_method") {
        return false;
    }
    let words = || name.split(['.', '_', '-']).map(|word| word.trim_end_matches(|c: char| c.is_ascii_digit()));
    let last = words().next_back().unwrap_or_default();
    SETTING_ENDINGS.iter().any(|ending| last.ends_with(ending))
        || SETTING_WORDS.contains(&last)
        || last.ends_with("key") && SETTING_KEYS_OF.iter().any(|of| name.contains(of))
        // `static.auto_provision.aes_key_16.mac`
        || words().zip(words().skip(1)).any(|two| two == ("aes", "key"))
}

/// Whether a value cannot be a secret: empty, a switch, or a mask of asterisks.
fn is_placeholder(value: &str) -> bool {
    let value = value.trim().to_ascii_lowercase();
    matches!(value.as_str(), "0" | "1" | "true" | "false" | "%null%") || value.bytes().all(|byte| byte == b'*')
}

/// The number of the line on which a private key in PEM begins (RFC 7468 §10 and its older forms).
#[must_use]
pub fn private_key(bytes: &[u8]) -> Option<usize> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    const KEY: &[u8] = b"PRIVATE KEY-----";
    // The label can begin with RSA, EC, ENCRYPTED, OPENSSH and the like.
    const LONGEST: usize = 32;
    let begins = |line: &[u8]| {
        let starts = line.windows(BEGIN.len()).enumerate().filter(|(_, window)| *window == BEGIN);
        let labels = starts.filter_map(|(at, _)| line.get(at + BEGIN.len()..));
        let mut labels = labels.map(|rest| rest.get(..LONGEST).unwrap_or(rest));
        labels.any(|label| label.windows(KEY.len()).any(|window| window == KEY))
    };
    bytes.split(|byte| *byte == b'\n').position(begins).map(|line| line + 1)
}

/// Whether `value` has a password in a URL, as in `https://user:password@host/`.
#[must_use]
pub fn has_password_in_url(value: &str) -> bool {
    let authorities = value.split("://").skip(1).filter_map(|rest| rest.split(['/', ' ', ',', ';']).next());
    authorities
        .filter_map(|authority| authority.rsplit_once('@'))
        .any(|(user, _)| user.split_once(':').is_some_and(|(_, password)| !password.is_empty()))
}

/// Whether `value` has a password as in `[--uid user --pwd password]` or `--key key`.
fn has_password_in_rule(value: &str) -> bool {
    let mut words = value.split([' ', '[', ']', '\t', '\n']).filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        if matches!(word, "--pwd" | "--key") {
            return words.next().is_some_and(|word| !word.starts_with("--"));
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let text = Text::decode(text.as_bytes()).unwrap();
        let file = XmlFile::read(&text);
        let mut found = Vec::new();
        each_secret(&text, file.as_ref(), |name, _, line| found.push(format!("{line}:{name}")));
        found
    }

    #[test]
    fn secret_parameters_are_recognized_by_name() {
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
            assert_eq!(of_parameter(name, "s3cret"), Some(FoundSecret::Value), "{name}");
            assert_eq!(of_parameter(name, ""), None, "{name}");
        }
    }

    #[test]
    fn similar_names_are_not_secrets() {
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
            assert_eq!(of_parameter(name, "s3cret"), None, "{name}");
        }
        assert_eq!(of_parameter("feature.x.requirePassword", "1"), None, "a switch");
    }

    #[test]
    fn yealink_secrets_are_found_line_by_line() {
        let secret = [
            "account.1.password = s3cret",
            "account.16.password=s3cret",
            "static.auto_provision.server.password = s3cret",
            "auto_provision.server.password = s3cret",
            "static.security.user_password = admin:s3cret",
            "account.1.xsi.password = s3cret",
            "account.1.hoteling.pin=4711",
            "phone_setting.phone_lock.unlock_pin = 4711",
            "features.xml_browser.pwd = s3cret",
            "static.network.802_1x.md5_password = s3cret",
            "static.auto_provision.aes_key_16.mac = s3cret",
            "auto_provision.aes_key_16.com = s3cret",
            "account.1.signal_encode_key = s3cret",
            "linekey.1.value = https://user:s3cret@host/",
            "remote_phonebook.data.1.url = http://user:s3cret@host/x.xml",
            "  ldap.password = \"s3cret\"",
        ];
        let plain = [
            "#!version:1.0.0.1",
            "#account.1.password = s3cret",
            "account.1.password =",
            "account.1.password = %NULL%",
            "account.1.password = ******",
            "account.1.auth_name = 100",
            "features.password_dial.enable = 1",
            "features.password_dial.length = 3",
            "features.factory_pwd_enable = 1",
            "static.auto_provision.aes_key_in_file = 0",
            "default_input_method.xsi_password = abc",
            "features.send_pound_key = 2",
            "linekey.1.value = 100",
            "local_time.time_zone = +1",
            "The password is: ask Anna",
        ];
        let text = [&secret[..], &plain[..]].concat().join("\r\n");
        let lines: Vec<String> = found(&text).iter().map(|it| it.split(':').next().unwrap().to_owned()).collect();
        assert_eq!(lines, (1..=secret.len()).map(|line| line.to_string()).collect::<Vec<_>>());
        assert_eq!(found(&text)[0], "1:account.1.password");
    }

    #[test]
    fn snom_secrets_are_found_in_both_formats() {
        let xml = "<?xml version='1.0'?>\n<settings><phone-settings>\n<user_pass idx='1' perm=''>s3cret</user_pass>\n\
                   <http_pass perm='R'>s3cret</http_pass>\n<admin_mode_password perm=''>s3cret</admin_mode_password>\n\
                   <admin_mode_password_confirm>s3cret</admin_mode_password_confirm>\n<wifi_wpapsk>s3cret</wifi_wpapsk>\n\
                   <user_hash idx='1'>0123456789abcdef0123456789abcdef</user_hash>\n<hoteling_lockpin idx='1'>47</hoteling_lockpin>\n\
                   <user_pass idx='2' perm=''></user_pass>\n<user_name idx='1'>100</user_name>\n\
                   <edit_mode_for_passwords>on</edit_mode_for_passwords><encrypt_secrets>on</encrypt_secrets>\n\
                   </phone-settings></settings>";
        let expected = [
            "3:user_pass",
            "4:http_pass",
            "5:admin_mode_password",
            "6:admin_mode_password_confirm",
            "7:wifi_wpapsk",
            "8:user_hash",
            "9:hoteling_lockpin",
        ];
        assert_eq!(found(xml), expected);
        let lines = "user_pass1!: s3cret\nhttp_pass&: s3cret\nadmin_mode_password: s3cret\nuser_name1: 100\nuser_pass2!:\n\
                     %SUBSCR_1_UA_DATA_AUTH_PASS%:\"s3cret\"\n";
        let expected = ["user_pass1!", "http_pass&", "admin_mode_password", "%SUBSCR_1_UA_DATA_AUTH_PASS%"];
        let names =
            |text: &str| found(text).iter().map(|it| it.split_once(':').unwrap().1.to_owned()).collect::<Vec<_>>();
        assert_eq!(names(lines), expected);
        assert_eq!(names(&format!("<html>\n<pre>\n# x\n{lines}</pre></html>")), expected);
    }

    #[test]
    fn grandstream_secrets_are_found_in_all_formats() {
        let lines = "# x\nP2 = s3cret\nP34=s3cret\nP196=s3cret\nP406 = s3cret\nP4149=s3cret\nP35=100\nP47=host\nP341=1x\nP3 = a\nP2=\n";
        assert_eq!(found(lines), ["2:P2", "3:P34", "4:P196", "5:P406", "6:P4149"]);
        let xml = "<gs_provision version='1'><config version='1'>\n<P2>s3cret</P2><P34 para='x'>s3cret</P34><P35>100</P35>\n\
                   <P99999 para='Account7_AuthenticatePassword'>s3cret</P99999>\n</config></gs_provision>";
        assert_eq!(found(xml), ["2:P2", "2:P34", "3:Account7_AuthenticatePassword"]);
        let v2 = "<gs_provision version='1'><config version='2'>\n<item name='users.admin.password'>s3cret</item>\n\
                  <item name='account.1.sip.subscriber.password'>s3cret</item><item name='provisioning.config.filePassword'>s3cret</item>\n\
                  <item name='users.testPasswordStrength.enable'>No</item><item name='account.1.call.hidePassword.length'>4</item>\n\
                  <item name='network.wifi.ap.1.password'></item></config></gs_provision>";
        assert_eq!(
            found(v2),
            ["2:users.admin.password", "3:account.1.sip.subscriber.password", "3:provisioning.config.filePassword"]
        );
    }

    #[test]
    fn cisco_secrets_are_found_in_both_families() {
        let mpp = "<flat-profile>\n<Password_1_ ua='na'>s3cret</Password_1_>\n<Admin_Passwd ua='na'>s3cret</Admin_Passwd>\n\
                   <User_Password ua='rw'>s3cret</User_Password>\n<Auth_Page_Password_1_>s3cret</Auth_Page_Password_1_>\n\
                   <pskKey_1_>s3cret</pskKey_1_>\n<Web_Login_Admin_Password>s3cret</Web_Login_Admin_Password>\n\
                   <Profile_Rule>[--uid u --pwd s3cret]https://host/$MA.cfg</Profile_Rule>\n\
                   <PSK_1 ua='na'>fnc=sd;ext=100</PSK_1><Password_2_ ua='na'/><Auth_ID_1_>100</Auth_ID_1_>\n\
                   <Profile_Rule_B>https://host/$MA.cfg</Profile_Rule_B><FAX_Passthru_Codec_1_>G711u</FAX_Passthru_Codec_1_>\n\
                   <Use_Auth_ID_1_>No</Use_Auth_ID_1_><Auth_INVITE_1_>No</Auth_INVITE_1_></flat-profile>";
        let expected = [
            "2:Password_1_",
            "3:Admin_Passwd",
            "4:User_Password",
            "5:Auth_Page_Password_1_",
            "6:pskKey_1_",
            "7:Web_Login_Admin_Password",
            "8:Profile_Rule",
        ];
        assert_eq!(found(mpp), expected);
        let enterprise = "<device>\n<sshUserId>admin</sshUserId>\n<sshPassword>s3cret</sshPassword>\n<sipLines><line button='1'>\n\
                          <authName>100</authName><authPassword>s3cret</authPassword></line></sipLines>\n\
                          <phonePassword>s3cret</phonePassword><authenticationURL>http://host/x</authenticationURL></device>";
        assert_eq!(found(enterprise), ["3:sshPassword", "5:authPassword", "6:phonePassword"]);
        let lines = "image_version: P0S3-8-12-00\nline1_authname: \"100\"\nline1_password: \"s3cret\"\n";
        assert_eq!(found(lines), ["3:line1_password"]);
    }

    #[test]
    fn password_in_a_url_is_a_secret() {
        for value in ["https://user:s3cret@host/x", "a, ftp://PlcmSpIp:PlcmSpIp@h", "http://h/x https://:p@h"] {
            assert_eq!(of_parameter("mb.main.home", value), Some(FoundSecret::InUrl), "{value}");
        }
        for value in
            ["https://host:8443/a@b:c", "https://user@host/", "mailto:a:b@c", "sip:1:2@h", "https://u:@h", "://"]
        {
            assert_eq!(of_parameter("mb.main.home", value), None, "{value}");
        }
    }

    #[test]
    fn private_key_is_recognized_by_its_first_line() {
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
            let _ = (of_parameter(&name, &value), of_setting(&name, &value));
            let _ = found(&format!("{name}={value}\n{name}:{value}"));
            let _ = private_key(format!("{name}-----BEGIN {value}").as_bytes());
        }
    }
}
