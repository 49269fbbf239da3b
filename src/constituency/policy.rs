//! A constituency's policy: the checked content of `constituency.json`.
//!
//! Pure: text in, [`Policy`] out. A missing file gives [`Policy::default`]: client certificates required, Polycom's
//! factory CAs, listed phones only. Everything that the policy does not allow is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use schemars::JsonSchema;
use serde::Deserialize;

use super::phones::{PhonesInput, PhonesSchema, UniqueAddresses};
use super::{CommonNames, ConstituencyName, MacAddress, Phones, Pins, TlsLevel};
use crate::settings::{self, SettingsError};

/// The name of the built-in trust bundle: Polycom's factory PKI.
pub const POLYCOM: &str = "polycom";

/// The name of the policy file, which is never served.
pub const POLICY_FILE: &str = "constituency.json";

/// A checked policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// A description for operators.
    pub description: String,
    /// The TLS part: the settings that the TLS handshake depends on. A change makes a new TLS configuration with its
    /// own sessions.
    pub tls: TlsPolicy,
    /// The listed phones. Phones with a `<mac>.cfg` in the folder are known too.
    pub phones: Phones,
    /// Pinned certificates, each for one phone.
    pub pins: Pins,
    /// Phones that are refused, whatever else the policy says.
    pub denied: BTreeSet<MacAddress>,
    /// Further DNS labels of this constituency.
    pub aliases: BTreeSet<ConstituencyName>,
    /// Top-level folders into which other constituencies may have symlinks.
    pub shared: BTreeSet<String>,
    /// Files that every phone may read although their paths spell a MAC address.
    pub common: CommonNames,
    /// Whether files without a MAC address in their path are served over plain HTTP too.
    pub plain_http: bool,
    /// The quotas of uploads; `None` refuses all uploads.
    pub uploads: Option<UploadLimits>,
}

/// The TLS part of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TlsPolicy {
    /// How clients authenticate.
    pub client_auth: ClientAuth,
    /// The names of the trust bundles whose device certificates are valid.
    pub trust: Vec<String>,
    /// Whether expired device certificates are valid.
    pub expired_device_certificates: ExpiredDeviceCertificates,
    /// The oldest TLS that is accepted; `None` uses the level of `provost.json`.
    pub level: Option<TlsLevel>,
    /// The names in the server certificate that phones get.
    pub certificate_names: CertificateNames,
}

/// The names of the server certificate that phones are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CertificateNames {
    /// The wildcard certificate, for all constituencies.
    #[default]
    Wildcard,
    /// A certificate for this constituency's name and aliases, for firmware that refuses wildcards. The names become public.
    Exact,
}

/// How phones prove their MAC address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    /// Only phones with a device certificate that the constituency trusts.
    #[default]
    Required,
    /// Only phones with a password (RFC 7616), for phones without a usable certificate.
    Digest,
    /// Any client: for firmware and public files.
    None,
}

/// Whether an expired device certificate is valid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExpiredDeviceCertificates {
    /// An expired device certificate is refused.
    #[default]
    Refuse,
    /// The expiry of the device certificate itself is ignored. CA dates, notBefore and signatures are still checked.
    Accept,
}

/// Quotas of uploads, in bytes and files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UploadLimits {
    /// The largest file that a phone may upload.
    pub max_file_bytes: u64,
    /// All files of one phone together.
    pub max_phone_bytes: u64,
    /// The number of files of one phone.
    pub max_phone_files: u64,
    /// All files of the constituency together. Default: unlimited.
    pub max_constituency_bytes: Option<u64>,
    /// What one phone may make the disk write in an hour. Default: ten times `max_phone_bytes`.
    pub max_phone_write_bytes_per_hour: Option<u64>,
}

impl Default for UploadLimits {
    fn default() -> Self {
        Self {
            max_file_bytes: 4 << 20,
            max_phone_bytes: 64 << 20,
            max_phone_files: 256,
            max_constituency_bytes: None,
            max_phone_write_bytes_per_hour: None,
        }
    }
}

impl UploadLimits {
    /// The bytes that one phone may write to the disk per hour.
    #[must_use]
    pub fn write_bytes_per_hour(&self) -> u64 {
        self.max_phone_write_bytes_per_hour.unwrap_or_else(|| self.max_phone_bytes.saturating_mul(10))
    }
}

impl Policy {
    /// The phones that this policy lists, or denies, and `other` does not.
    pub(super) fn changed_phones<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = MacAddress> + 'a {
        let (mine, theirs) = (self.phones.listed(), other.phones.listed());
        let is_new = move |mac: &&MacAddress| !theirs.is_some_and(|theirs| theirs.contains_key(*mac));
        let known = mine.into_iter().flat_map(|mine| mine.keys()).filter(is_new);
        known.chain(self.denied.difference(&other.denied)).copied()
    }

    /// Whether `other` differs at most in its lists: known phones, pins and denials.
    #[must_use]
    pub fn has_settings_of(&self, other: &Self) -> bool {
        let Self { description, tls, phones, pins: _, denied: _, aliases, shared, common, plain_http, uploads } = self;
        let accepts_any = |phones: &Phones| *phones == Phones::Any;
        *description == other.description
            && *tls == other.tls
            && accepts_any(phones) == accepts_any(&other.phones)
            && *aliases == other.aliases
            && *shared == other.shared
            && *common == other.common
            && *plain_http == other.plain_http
            && *uploads == other.uploads
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            description: String::new(),
            tls: TlsPolicy {
                client_auth: ClientAuth::Required,
                trust: vec![POLYCOM.to_owned()],
                expired_device_certificates: ExpiredDeviceCertificates::Refuse,
                level: None,
                certificate_names: CertificateNames::Wildcard,
            },
            phones: Phones::Listed(BTreeMap::new()),
            pins: Pins::new(),
            denied: BTreeSet::new(),
            aliases: BTreeSet::new(),
            shared: BTreeSet::new(),
            common: CommonNames::default(),
            plain_http: false,
            uploads: Some(UploadLimits::default()),
        }
    }
}

/// The policy of a constituency. Every key is optional.
///
/// ```
/// # use provost::constituency::{Policy, Phones};
/// let text = r#"{ "phones": { "00:00:5E:00:53:0C": "vvx500 #1" }, "denied": ["00005e0053ff"] }"#;
/// let policy = Policy::parse("constituency.json".as_ref(), text, &["polycom"])?;
/// assert!(matches!(policy.phones, Phones::Listed(phones) if phones.len() == 1));
/// # Ok::<(), provost::settings::SettingsError>(())
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "constituency.json")]
pub struct PolicyFile {
    /// A description for operators.
    #[serde(default)]
    description: String,
    /// How phones prove their MAC address. Default: `required`.
    client_auth: Option<ClientAuth>,
    /// The trust bundles whose device certificates are valid here. Default: `["polycom"]`.
    trust: Option<Vec<String>>,
    /// Whether an expired device certificate is valid. Default: `refuse`.
    expired_device_certificates: Option<ExpiredDeviceCertificates>,
    /// The oldest TLS that is accepted. Default: as in `provost.json`.
    tls: Option<TlsLevel>,
    /// Which server certificate phones are shown. Default: `wildcard`.
    certificate_names: Option<CertificateNames>,
    /// The known phones: MAC addresses, each with a note, or with an object of `note` and `certificate_sha256`. The phones
    /// of a `phones.csv` beside this file, and those with a `<mac>.cfg` in the folder, are known too. Or `"any"`: every
    /// phone with a valid certificate. Default: none.
    #[schemars(with = "Option<PhonesSchema>")]
    phones: Option<PhonesInput>,
    /// MAC addresses that are refused, whatever else the policy says. `provost deny MAC` denies a phone on the whole server.
    /// Default: none.
    #[schemars(with = "Option<Vec<String>>")]
    denied: Option<UniqueAddresses>,
    /// Further names of this constituency, each one DNS label.
    #[serde(default)]
    aliases: BTreeSet<ConstituencyName>,
    /// Top-level folders into which other constituencies may have symbolic links.
    #[serde(default)]
    shared: BTreeSet<String>,
    /// Files for every phone although their paths hold a MAC address that is on no list: glob patterns for the whole path.
    /// `*` and `?` match neither `/` nor the digits of a MAC address: write those digits.
    #[serde(default)]
    common: Vec<String>,
    /// Whether files without a MAC address in their path are served over plain HTTP too, to the networks of `plain_http` in
    /// `provost.json`.
    #[serde(default)]
    plain_http: bool,
    /// Quotas of uploads. Default: those below; no uploads if `phones` is `"any"`.
    uploads: Option<UploadLimits>,
}

impl TlsPolicy {
    /// Whether sessions that were made under `self` may be resumed under `other`. This ignores [`TlsPolicy::level`]:
    /// its effective value depends on `provost.json` too, so code that knows both compares it.
    pub(super) fn accepts_sessions_of(&self, other: &Self) -> bool {
        Self { level: None, ..self.clone() } == Self { level: None, ..other.clone() }
    }
}

impl Policy {
    /// The phones that are both listed and denied. The denial has precedence.
    pub(super) fn listed_and_denied(&self) -> Vec<MacAddress> {
        let Phones::Listed(listed) = &self.phones else { return Vec::new() };
        self.denied.iter().filter(|mac| listed.contains_key(mac)).copied().collect()
    }

    /// Parses and checks the `text` of `file`. `bundles` are the names of the existing trust bundles.
    ///
    /// # Errors
    /// The first error, with its line and key.
    pub fn parse(file: &Path, text: &str, bundles: &[&str]) -> Result<Self, SettingsError> {
        let typed: PolicyFile = settings::read(file, text)?;
        let wrong = |key: &str, reason: String| SettingsError::of_key(file, text, key, reason);
        typed.check_without_certificates().map_err(|(key, reason)| wrong(key, reason))?;
        typed.check_shared().map_err(|reason| wrong("shared", reason))?;
        let common = CommonNames::parse(&typed.common).map_err(|pattern| wrong("common", pattern.to_string()))?;
        if let Some(trust) = &typed.trust {
            check_trust(trust, bundles).map_err(|reason| wrong("trust", reason))?;
        }
        Ok(typed.into_policy(common))
    }
}

impl PolicyFile {
    /// Rejects keys that need a client certificate, or a client identity, if the policy does not ask for one. They
    /// would have no effect, and a reader would expect one.
    fn check_without_certificates(&self) -> Result<(), (&'static str, String)> {
        let client_auth = match self.client_auth {
            None | Some(ClientAuth::Required) => return Ok(()),
            Some(ClientAuth::Digest) => "digest",
            Some(ClientAuth::None) => "none",
        };
        let is_none = client_auth == "none";
        if let (false, Some(phones)) = (is_none, &self.phones) {
            phones.check_with_passwords().map_err(|reason| ("phones", reason))?;
        }
        let without_effect = [
            ("phones", is_none && self.phones.is_some()),
            ("denied", is_none && self.denied.is_some()),
            ("trust", self.trust.is_some()),
            ("uploads", is_none && self.uploads.is_some()),
            ("expired_device_certificates", self.expired_device_certificates.is_some()),
        ];
        match without_effect.iter().find(|(_, is_set)| *is_set) {
            Some((key, _)) => {
                Err((key, format!("has no effect with \"client_auth\": \"{client_auth}\"; remove one of the two")))
            }
            None => Ok(()),
        }
    }

    fn check_shared(&self) -> Result<(), String> {
        let bad = self.shared.iter().find(|name| name.is_empty() || name.contains('/') || name.starts_with('.'));
        bad.map_or(Ok(()), |name| {
            Err(format!("invalid folder name {name:?}: write the name of a top-level folder, without \"/\""))
        })
    }

    fn into_policy(self, common: CommonNames) -> Policy {
        let default = Policy::default();
        let client_auth = self.client_auth.unwrap_or_default();
        let PhonesInput { phones, pins } =
            self.phones.unwrap_or(PhonesInput { phones: default.phones, pins: default.pins });
        // With `"any"`, uploads are off unless the policy sets their quotas.
        let default_uploads = (phones != Phones::Any).then(UploadLimits::default);
        let trust = match client_auth {
            ClientAuth::Required => self.trust.unwrap_or(default.tls.trust),
            ClientAuth::Digest | ClientAuth::None => Vec::new(),
        };
        Policy {
            description: self.description,
            tls: TlsPolicy {
                client_auth,
                trust,
                expired_device_certificates: self.expired_device_certificates.unwrap_or_default(),
                level: self.tls,
                certificate_names: self.certificate_names.unwrap_or_default(),
            },
            phones,
            pins,
            denied: self.denied.map(|UniqueAddresses(denied)| denied).unwrap_or_default(),
            aliases: self.aliases,
            shared: self.shared,
            common,
            plain_http: self.plain_http,
            uploads: self.uploads.or(default_uploads).filter(|_| client_auth != ClientAuth::None),
        }
    }
}

fn check_trust(trust: &[String], bundles: &[&str]) -> Result<(), String> {
    if trust.is_empty() {
        return Err(
            "is empty, so every phone would be refused; name a trust bundle, or remove the key to trust Polycom's CAs"
                .to_owned(),
        );
    }
    let Some(unknown) = trust.iter().find(|name| !bundles.contains(&name.as_str())) else { return Ok(()) };
    let hint = match settings::nearest(unknown, bundles) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("known bundles: {}", bundles.join(", ")),
    };
    Err(format!("unknown trust bundle \"{unknown}\"; {hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Policy, String> {
        Policy::parse(Path::new("constituency.json"), text, &["polycom", "acme-corp"])
            .map_err(|error| error.to_string())
    }

    #[test]
    fn empty_policy_equals_missing_policy() {
        assert_eq!(parse("{}").unwrap(), Policy::default());
    }

    #[test]
    fn every_documented_key_is_known() {
        let policy = parse(
            r#"{ "description": "d", "client_auth": "required", "trust": ["polycom"], "expired_device_certificates": "accept", "tls": "modern",
                 "phones": { "00005e00530c": "a", "00:00:5E:00:53:C7": "b" }, "denied": ["00005e0053ff"],
                 "aliases": ["old-name"], "shared": ["firmware"], "common": ["fw/00005e0053aa.ld"], "certificate_names": "exact", "plain_http": true,
                 "uploads": { "max_file_bytes": 1, "max_phone_bytes": 2, "max_phone_files": 3, "max_constituency_bytes": 4,
                              "max_phone_write_bytes_per_hour": 5 } }"#,
        )
        .unwrap();
        let tls = (policy.tls.expired_device_certificates, policy.tls.certificate_names);
        assert_eq!(tls, (ExpiredDeviceCertificates::Accept, CertificateNames::Exact));
        let uploads = policy.uploads.unwrap();
        assert_eq!((uploads.max_constituency_bytes, uploads.write_bytes_per_hour()), (Some(4), 5));
        assert_eq!(UploadLimits { max_phone_write_bytes_per_hour: None, ..uploads }.write_bytes_per_hour(), 20);
        assert!(policy.common.match_path("fw/00005e0053aa.ld"));
        let Phones::Listed(phones) = policy.phones else { panic!("listed") };
        assert_eq!(phones.into_values().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn duplicate_and_invalid_entries_are_reported_with_line() {
        let twice = parse("{\"phones\": {\n \"00005e00530c\": \"a\",\n \"00:00:5E:00:53:0C\": \"b\"\n}}").unwrap_err();
        assert!(twice.starts_with("constituency.json:3:2: ") && twice.contains("is listed twice"), "{twice}");
        let nonsense = parse("{\"phones\": {\n \"vvx500\": \"a\"}}").unwrap_err();
        assert!(
            nonsense.starts_with("constituency.json:2:2: ") && nonsense.contains("invalid MAC address \"vvx500\""),
            "{nonsense}"
        );
        assert!(parse(r#"{"phones": {"000000000000": "x"}}"#).unwrap_err().contains("not the MAC address of a phone"));
        assert!(parse(r#"{"denied": ["00005e0053ff", "00005E0053FF"]}"#).unwrap_err().contains("twice"));
        assert!(parse(r#"{"phones": "all"}"#).unwrap_err().contains("or \"any\""));
        assert!(parse(r#"{"phones": {}, "phones": {}}"#).unwrap_err().contains("duplicate key"));
    }

    #[test]
    fn value_of_an_undocumented_form_is_rejected() {
        let all_by_position =
            r#"["d", "required", ["polycom"], null, null, null, null, null, [], [], [], false, null]"#;
        let table = [
            ("[]", "1:1: must be an object, not a list"),
            (all_by_position, "1:1: must be an object, not a list"),
            (
                r#"{"client_auth": {"none": null}}"#,
                "1:17: \"client_auth\": must be one of \"required\", \"digest\", \"none\", not an object",
            ),
            (
                r#"{"client_auth": ["none"]}"#,
                "1:17: \"client_auth\": must be one of \"required\", \"digest\", \"none\", not a list",
            ),
            (
                r#"{"client_auth": true}"#,
                "1:17: \"client_auth\": must be one of \"required\", \"digest\", \"none\", not true",
            ),
            (r#"{"tls": 1}"#, "1:9: \"tls\": must be one of \"modern\", \"compatible\", \"legacy\", not 1"),
            (
                r#"{"expired_device_certificates": {"accept": null}}"#,
                "1:33: \"expired_device_certificates\": must be one of \"refuse\", \"accept\", not an object",
            ),
            (
                r#"{"certificate_names": {"exact": null}}"#,
                "1:23: \"certificate_names\": must be one of \"wildcard\", \"exact\", not an object",
            ),
            (r#"{"uploads": [1, 2, 3]}"#, "1:13: \"uploads\": must be an object, not a list"),
            (
                r#"{"phones": {"00005e00530c": ["note"]}}"#,
                "1:29: \"phones.00005e00530c\": must be a note, or an object",
            ),
            (r#"{"phones": ["00005e00530c"]}"#, "1:12: \"phones\": must be an object of MAC addresses with notes, or"),
            (r#"{"trust": {"polycom": null}}"#, "1:11: \"trust\": must be a list, not an object"),
            (r#"{"aliases": {}}"#, "1:13: \"aliases\": must be a list, not an object"),
            (r#"{"denied": {"00005e00530c": ""}}"#, "1:12: \"denied\": must be a list of MAC addresses, not an object"),
        ];
        for (text, expected) in table {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(&format!("constituency.json:{expected}")), "{text}: {error}");
        }
        assert_eq!(table.len(), 14);
    }

    #[test]
    fn phone_can_have_a_pinned_certificate() {
        let (hex, colons) = ("ab".repeat(32), ["AB"; 32].join(":"));
        let one = |spelled: &str| {
            parse(&format!(
                r#"{{"phones": {{"00005e00530c": {{"note": "a", "certificate_sha256": "{spelled}"}}, "00005e0053c7": "b"}}}}"#
            ))
        };
        let policy = one(&hex).unwrap();
        assert_eq!(policy.pins.len(), 1);
        assert_eq!(policy.pins[&"00005e00530c".parse().unwrap()].to_string(), hex);
        assert!(matches!(&policy.phones, Phones::Listed(notes) if notes.values().eq(["a", "b"])));
        assert_eq!(one(&colons).unwrap(), policy);
        let unpinned = parse(r#"{"phones": {"00005e00530c": {"note": "a"}, "00005e0053c7": {}}}"#).unwrap();
        assert!(unpinned.pins.is_empty() && unpinned.tls == policy.tls);

        let wrong = |entry: &str| parse(&format!("{{\"phones\": {{\n\"00005e00530c\": {entry}}}}}")).unwrap_err();
        for spelled in ["", "ab", &hex[1..], &colons[1..], &colons.replace(':', "-"), &format!("{}xy", &hex[2..])] {
            let error = wrong(&format!("{{\"certificate_sha256\": \"{spelled}\"}}"));
            assert!(
                error.starts_with("constituency.json:2:40: \"phones.00005e00530c.certificate_sha256\": "),
                "{error}"
            );
            assert!(error.contains("invalid SHA-256 fingerprint"), "{error}");
        }
        let misspelt = wrong("{\"certificate_sha\": \"\"}");
        assert!(misspelt.contains("did you mean \"certificate_sha256\"?"), "{misspelt}");
        assert!(wrong("[]").contains("a note, or an object of \"note\" and \"certificate_sha256\""), "{}", wrong("[]"));
        let twice = format!(
            "{{\"certificate_sha256\": \"{hex}\"}}, \"00005e0053c7\": {{\"certificate_sha256\": \"{colons}\"}}"
        );
        let twice = wrong(&twice);
        assert!(twice.contains("00005e00530c and 00005e0053c7 have the same certificate_sha256"), "{twice}");
    }

    #[test]
    fn key_without_effect_is_an_error() {
        for (key, value) in [("phones", "{}"), ("denied", "[]"), ("trust", "[\"polycom\"]"), ("uploads", "{}")] {
            let error = parse(&format!("{{\"client_auth\": \"none\",\n\"{key}\": {value}}}")).unwrap_err();
            assert!(error.starts_with(&format!("constituency.json:2: \"{key}\": has no effect")), "{error}");
        }
        assert!(parse(r#"{"trust": []}"#).unwrap_err().contains("is empty, so every phone would be refused"));
        assert!(parse(r#"{"trust": ["acme-crop"]}"#).unwrap_err().contains("did you mean \"acme-corp\""));
    }

    #[test]
    fn uploads_are_off_by_default_with_phones_any() {
        assert_eq!(parse(r#"{"phones": "any"}"#).unwrap().uploads, None);
        assert_eq!(parse(r#"{"phones": "any", "uploads": {}}"#).unwrap().uploads, Some(UploadLimits::default()));
        assert_eq!(parse(r#"{"client_auth": "none"}"#).unwrap().uploads, None);
    }

    #[test]
    fn shared_folder_is_a_single_name() {
        assert!(parse(r#"{"shared": ["a/b"]}"#).is_err());
        assert!(parse(r#"{"shared": [".."]}"#).is_err());
        assert!(parse(r#"{"aliases": ["Bad"]}"#).is_err());
    }

    #[test]
    fn wildcard_for_a_mac_in_common_is_an_error() {
        let error = parse("{\"common\": [\n\"fw/00005e0053aa.ld\", \"*.cfg\"]}").unwrap_err();
        assert!(error.starts_with("constituency.json:1: \"common\": invalid pattern \"*.cfg\": "), "{error}");
    }
}
