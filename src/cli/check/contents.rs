//! Checks the content of files: XML that phones can read, no secret in a common file, and no file that is served to no
//! phone.

use std::collections::BTreeMap;
use std::ops::Range;

use super::master_configs::ReadMaster;
use super::served_view::report;
use super::served_view::{MAX_BYTES, ServedContent, ServedFile, ServedView, read};
use super::{Finding, FindingLevel};
use crate::constituency::file_names::{ForeignMac, Spelling, mac_spellings};
use crate::constituency::{ClientAuth, CommonNames, MacAddress, PHONES_FILE, POLICY_FILE, PhoneStanding, Phones};
use crate::phone_config::secrets::{FoundSecret, each_secret, private_key};
use crate::phone_config::{Deviation, Text, UnreadableXml, XmlFile};
use crate::serve::path::ServedPath;
use crate::wording::counted;

/// The most secrets of one file that are listed one by one.
const SECRETS: usize = 10;
/// The most characters of a parameter's name that are shown.
const NAME: usize = 80;

/// Checks `files`, all files of the folder. Polycom's XML rules apply if it `is_for_polycom`.
pub(super) fn check(
    view: &ServedView<'_>,
    is_for_polycom: bool,
    files: &[String],
    named: &ReadMaster,
    findings: &mut Vec<Finding>,
) {
    let mut found = Vec::new();
    let mut unread: BTreeMap<MacAddress, Vec<&str>> = BTreeMap::new();
    for file in files {
        match reader(view, file) {
            Ok(reader) if is_read(file, named) => {
                check_content(view, file, reader, is_for_polycom.then_some(named), &mut found);
            }
            Ok(reader) => check_for_key(view, file, reader, &mut found),
            Err(foreign) => unread.entry(foreign.mac()).or_default().push(file),
        }
    }
    report(view, found, "findings about files", findings);
    findings.extend(unread.into_iter().map(|(mac, files)| not_served(view, mac, &files)));
    findings.extend(ineffective_common(view));
}

/// The reader of `file`: every phone (`None`), or the phone whose MAC address is in the path. If no phone can read the
/// file, the error has that address.
fn reader(view: &ServedView<'_>, file: &str) -> Result<Option<MacAddress>, ForeignMac> {
    let constituency = view.constituency;
    let rules = view.rules();
    let Err(foreign) = rules.check(file, None) else { return Ok(None) };
    if constituency.policy.tls.client_auth == ClientAuth::None {
        return Err(foreign);
    }
    let is_reader =
        |mac: &MacAddress| constituency.standing(*mac) == PhoneStanding::Known && rules.check(file, Some(*mac)).is_ok();
    let spelled = file.split('/').flat_map(mac_spellings).map(|spelling| spelling.mac);
    spelled.filter(is_reader).map(Some).next().ok_or(foreign)
}

/// The finding that `files`, whose paths contain `mac`, are served to no phone.
fn not_served(view: &ServedView<'_>, mac: MacAddress, files: &[&str]) -> Finding {
    let constituency = view.constituency;
    let name = &constituency.name;
    let asks = constituency.policy.tls.client_auth;
    let elsewhere = || view.registry.served().find(|other| other.lists(mac)).map(|other| &other.name);
    let digest = if asks == ClientAuth::Digest { " --digest" } else { "" };
    let allow = format!("provost allow {mac} --constituency {name}{digest}");
    let patterns: Vec<String> = files.iter().map(|file| format!("{:?}", CommonNames::pattern_for(file))).collect();
    let (them, belong) = if files.len() == 1 { ("it", "it belongs") } else { ("them", "they belong") };
    let for_all = format!("to serve {them} to every client, add {} to \"common\"", patterns.join(", "));
    let (level, why, remedy) = match constituency.standing(mac) {
        PhoneStanding::Denied => (FindingLevel::Note, format!("{mac} is denied"), None),
        PhoneStanding::DeniedEverywhere => (FindingLevel::Note, format!("{mac} is denied everywhere"), None),
        _ if asks == ClientAuth::None && constituency.lists(mac) => {
            (FindingLevel::Warning, format!("{belong} to {mac}, and \"client_auth\" is \"none\""), None)
        }
        PhoneStanding::Known if constituency.lists(mac) => {
            (FindingLevel::Warning, format!("{belong} to {mac}, and the path also holds another MAC address"), None)
        }
        _ => match elsewhere() {
            Some(other) if asks == ClientAuth::None => {
                (FindingLevel::Warning, format!("{mac} is a phone of {other}"), Some(for_all))
            }
            Some(other) => (
                FindingLevel::Warning,
                format!("{mac} is a phone of {other}"),
                Some(format!("to serve {them} to it here too, run {allow}; {for_all}")),
            ),
            None if asks != ClientAuth::None && is_phones(mac, files) => {
                let remedy = format!("if it is a phone, run {allow}; {for_all}");
                (FindingLevel::Warning, format!("{mac} is on no list"), Some(remedy))
            }
            None => (FindingLevel::Warning, format!("the path holds {mac}, a MAC address on no list"), Some(for_all)),
        },
    };
    let finding = view.finding(level, "", format!("served to no phone: {}: {why}", files.join(", ")));
    Finding { remedy, ..finding }
}

/// Whether `mac` is a valid phone address, the only one in the paths of `files`, and never a part of a longer number.
/// Otherwise its digits may not be an address.
fn is_phones(mac: MacAddress, files: &[&str]) -> bool {
    let segments = files.iter().flat_map(|file| file.split('/'));
    let spelled: Vec<_> =
        segments.flat_map(|segment| mac_spellings(segment).into_iter().map(move |it| (segment, it))).collect();
    let is_alone = |(segment, it): &(&str, Spelling)| it.mac == mac && !is_part_of_number(segment, &it.span);
    mac.check_phone().is_ok() && !spelled.is_empty() && spelled.iter().all(is_alone)
}

/// Whether decimal digits precede or follow `span`, directly or behind one separator: `20` in `20261130_063015`.
fn is_part_of_number(segment: &str, span: &Range<usize>) -> bool {
    let before = segment.get(..span.start).unwrap_or_default();
    let after = segment.get(span.end..).unwrap_or_default();
    let is_digit = |letter: Option<char>| letter.is_some_and(|letter| letter.is_ascii_digit());
    let separators = ['-', ':', '.', '_', ' '];
    let [behind, ahead] = [before.strip_suffix(separators), after.strip_prefix(separators)];
    is_digit(before.chars().next_back())
        || is_digit(after.chars().next())
        || is_digit(behind.and_then(|text| text.chars().next_back()))
        || is_digit(ahead.and_then(|text| text.chars().next()))
}

/// Policy entries that have less effect than they seem to have.
fn ineffective_common<'a>(view: &'a ServedView<'_>) -> impl Iterator<Item = Finding> + 'a {
    let constituency = view.constituency;
    let of_phones = constituency.policy.common.spelled().filter(|mac| constituency.lists(*mac));
    let of_phones = of_phones.map(|mac| {
        let message =
            format!("\"common\": no effect: {mac} is on a list, so only that phone gets its files; remove the pattern");
        view.finding(FindingLevel::Warning, POLICY_FILE, message)
    });
    let unassigned = constituency.listed_phones().filter(|mac| mac.has_zero_prefix()).map(|mac| {
        let message = format!(
            "invalid phone {mac}: no phone has a MAC address that begins with 000000, and files of that name are common; remove the line"
        );
        let file = if constituency.phone_list().contains(mac) { PHONES_FILE } else { POLICY_FILE };
        view.finding(FindingLevel::Warning, file, message)
    });
    of_phones.chain(unassigned)
}

/// Whether `file` can be a configuration file of some vendor.
fn is_read(file: &str, named: &ReadMaster) -> bool {
    let name = file.rsplit('/').next().unwrap_or_default();
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    matches!(extension.as_deref(), None | Some("cfg" | "xml" | "htm" | "html" | "txt" | "conf" | "boot"))
        || named.named.contains_key(file)
}

/// Whether Polycom phones read `text` as XML.
fn is_xml(file: &str, text: &str, named: &ReadMaster) -> bool {
    let extension = file.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    let is_yealinks = text.trim_start().starts_with("#!version");
    named.named.contains_key(file) || matches!(extension.as_deref(), Some("cfg" | "xml")) && !is_yealinks
}

/// Checks one file. `named` is given if Polycom's rules apply.
fn check_content(
    view: &ServedView<'_>,
    file: &str,
    reader: Option<MacAddress>,
    named: Option<&ReadMaster>,
    found: &mut Vec<Finding>,
) {
    let Ok(path) = ServedPath::parse(&format!("/{}", file.replace('%', "%25"))) else {
        found.push(view.finding(FindingLevel::Warning, file, "no phone can request a file of this name"));
        return;
    };
    let opened = match view.find(&path, reader) {
        ServedFile::Regular(opened) => opened,
        ServedFile::NotServed(reason) => return found.push(view.finding(FindingLevel::Warning, file, reason)),
        // It was just removed.
        ServedFile::Absent => return,
    };
    let bytes = match read(opened) {
        ServedContent::Bytes(bytes) => bytes,
        ServedContent::TooLarge => {
            let is_configuration = named.is_some_and(|named| is_xml(file, "", named));
            let message = format!("larger than {} MiB: not checked", MAX_BYTES >> 20);
            return found.extend(is_configuration.then(|| view.finding(FindingLevel::Note, file, message)));
        }
        ServedContent::Unreadable(error) => {
            return found.push(view.finding(FindingLevel::Warning, file, format!("cannot read it: {error}")));
        }
    };
    let text = match Text::decode(&bytes) {
        Ok(text) => text,
        Err(error) => {
            found.extend(key_to_be_read(view, file, reader, &bytes));
            let named = named.filter(|named| is_xml(file, "", named));
            return found.extend(named.and_then(|named| unreadable(view, file, &error, named)));
        }
    };
    let read = XmlFile::read(&text);
    let mut secrets = Secrets::default();
    if reader.is_none() {
        each_secret(&text, read.as_ref(), |name, kind, line| secrets.add(name, kind, line));
    }
    if secrets.count == 0 {
        found.extend(key_to_be_read(view, file, reader, &bytes));
    }
    found.extend(readable_by_others(view, file, &secrets));
    if let Some(named) = named.filter(|named| is_xml(file, text.as_str(), named)) {
        match &read {
            Err(error) => found.extend(unreadable(view, file, error, named)),
            Ok(read) => {
                found.extend(read.broken_off.as_ref().and_then(|error| unreadable(view, file, error, named)));
                let deviates =
                    |it: &Deviation| view.finding(FindingLevel::Warning, &format!("{file}:{}", it.place), &it.message);
                found.extend(read.deviations.iter().map(deviates));
            }
        }
    }
}

/// The secrets in one file: the first few, and their number.
#[derive(Default)]
struct Secrets {
    first: Vec<(String, FoundSecret, u32)>,
    count: usize,
}

impl Secrets {
    fn add(&mut self, name: &str, kind: FoundSecret, line: u32) {
        if self.first.len() < SECRETS {
            self.first.push((name.chars().take(NAME).collect(), kind, line));
        }
        self.count += 1;
    }
}

/// Searches a file that is not a configuration for a private key, unless it is too large for one.
fn check_for_key(view: &ServedView<'_>, file: &str, reader: Option<MacAddress>, found: &mut Vec<Finding>) {
    const LARGEST_WITH_KEY: u64 = 1 << 20;
    let Ok(path) = ServedPath::parse(&format!("/{}", file.replace('%', "%25"))) else { return };
    let ServedFile::Regular(opened) = view.find(&path, reader) else { return };
    if opened.metadata().is_ok_and(|metadata| metadata.len() <= LARGEST_WITH_KEY)
        && let ServedContent::Bytes(bytes) = read(opened)
    {
        found.extend(key_to_be_read(view, file, reader, &bytes));
    }
}

/// The finding that a served file contains a private key.
fn key_to_be_read(view: &ServedView<'_>, file: &str, reader: Option<MacAddress>, bytes: &[u8]) -> Option<Finding> {
    let line = private_key(bytes)?;
    let (level, who) = match reader {
        None => others(view),
        Some(_) => (FindingLevel::Note, "its phone"),
    };
    let finding = view.finding(level, &format!("{file}:{line}"), format!("holds a private key that {who} can read"));
    Some(finding.with_remedy("move it out of the folder, and replace it if others may have read it"))
}

/// Who can read a common file, and the level of a secret in it.
fn others(view: &ServedView<'_>) -> (FindingLevel, &'static str) {
    let policy = &view.constituency.policy;
    match (policy.tls.client_auth, &policy.phones) {
        (ClientAuth::None, _) => (FindingLevel::Error, "any client"),
        _ if view.over_plain_http => (FindingLevel::Error, "any client in the networks of \"plain_http\""),
        (_, Phones::Any) => (FindingLevel::Warning, "every phone with a valid certificate"),
        (_, Phones::Listed(_)) => (FindingLevel::Warning, "every phone of the constituency"),
    }
}

/// The finding that a file cannot be read, or not to its end. For a master configuration it was reported before.
fn unreadable(view: &ServedView<'_>, file: &str, error: &UnreadableXml, named: &ReadMaster) -> Option<Finding> {
    let level = if named.named.contains_key(file) { FindingLevel::Error } else { FindingLevel::Warning };
    (!named.masters.contains(file)).then(|| view.finding(level, file, error))
}

/// The findings that a common file contains `secrets`. Values are not shown.
fn readable_by_others(view: &ServedView<'_>, file: &str, secrets: &Secrets) -> Vec<Finding> {
    let (level, who) = others(view);
    let advice = "put it into a file with the phone's MAC address in its name: only that phone gets that";
    let one = |(name, kind, line): &(String, FoundSecret, u32)| {
        let what = match kind {
            FoundSecret::Value => "a secret",
            FoundSecret::InUrl => "a URL with a password",
            FoundSecret::InRule => "a rule with a password",
        };
        let finding =
            view.finding(level, &format!("{file}:{line}"), format!("{name} holds {what} that {who} can read"));
        finding.with_remedy(advice)
    };
    let mut all: Vec<Finding> = secrets.first.iter().map(one).collect();
    if secrets.count > SECRETS {
        let message = format!("{} that {who} can read", counted(secrets.count - SECRETS, "more secret"));
        all.push(view.finding(level, file, message));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_dates_and_numbers_are_not_advised_as_phones() {
        for (file, mac, expected) in [
            ("00005e0053aa.cfg", "00005e0053aa", true),
            ("phone00005e0053aa.cfg", "00005e0053aa", false),
            ("polycom/00:00:5e:00:53:aa/user.cfg", "00005e0053aa", true),
            ("20261130_063015.log", "261130063015", false),
            ("backup-2026-11-30_06-30-15.tgz", "261130063015", false),
            ("00005e0053aa1.cfg", "00005e0053aa", false),
            ("1_00005e0053aa.cfg", "00005e0053aa", false),
            ("00005e0053aa-00005e0053ab.cfg", "00005e0053aa", false),
        ] {
            assert_eq!(is_phones(mac.parse().unwrap(), &[file]), expected, "{file}");
        }
    }
}
