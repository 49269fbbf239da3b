//! Decides whether a constituency's phones are Polycom's, because its rules for files do not apply to other vendors.

use super::served_view::{ServedContent, ServedFile, ServedView, read};
use crate::config::Config;
use crate::constituency::{ClientAuth, MacAddress};
use crate::identity::trust::Family;
use crate::serve::path::ServedPath;

/// The most files that are examined.
const FILES: usize = 50;

/// Whether Polycom's rules apply: if a trust bundle of its family is allowed. Without device certificates, they apply
/// unless the files are another vendor's.
pub(super) fn is_for_polycom(config: &Config, view: &ServedView<'_>, files: &[String]) -> bool {
    let policy = &view.constituency.policy.tls;
    match policy.client_auth {
        ClientAuth::Required => {
            // Names that are not in provost.json are built-in bundles.
            let family = |name: &String| config.trust.get(name).map_or(Family::Polycom, |bundle| bundle.family);
            config.is_local() || policy.trust.iter().any(|name| family(name) == Family::Polycom)
        }
        ClientAuth::Digest | ClientAuth::None => {
            let has_common = files.iter().any(|file| file.rsplit('/').next() == Some("000000000000.cfg"));
            let ends = |file: &&String| file.rsplit_once('.').is_some_and(|(_, end)| matches!(end, "cfg" | "xml"));
            let configurations = files.iter().filter(ends);
            has_common || !configurations.take(FILES).any(|file| is_of_another_vendor(view, file))
        }
    }
}

/// Whether `file` has a format that only another vendor's phones read.
fn is_of_another_vendor(view: &ServedView<'_>, file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or_default();
    // Yealink's files for all phones of a model, and Cisco's for one phone.
    let is_yealinks = name.len() == 17 && name.starts_with("y0000000000");
    let is_ciscos = name.ends_with(".cnf.xml");
    is_yealinks || is_ciscos || begins_as_another_vendors(&beginning(view, file))
}

fn beginning(view: &ServedView<'_>, file: &str) -> Vec<u8> {
    let Ok(path) = ServedPath::parse(&format!("/{}", file.replace('%', "%25"))) else { return Vec::new() };
    let name = file.rsplit('/').next().unwrap_or_default();
    let stem = name.split('.').next().unwrap_or_default();
    match view.find(&path, MacAddress::from_hex(stem.as_bytes())) {
        ServedFile::Regular(opened) => match read(opened) {
            ServedContent::Bytes(bytes) => bytes,
            ServedContent::TooLarge | ServedContent::Unreadable(_) => Vec::new(),
        },
        ServedFile::Absent | ServedFile::NotServed(_) => Vec::new(),
    }
}

/// Detects Yealink's first line, and the root elements of Cisco, Grandstream and Snom.
fn begins_as_another_vendors(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes.get(..4096).unwrap_or(bytes));
    let mut text = text.trim_start_matches('\u{feff}').trim_start();
    // Skip declarations and comments before the root element.
    for (begin, end) in [("<?", "?>"), ("<!--", "-->"), ("<!", ">")].into_iter().cycle().take(12) {
        if text.starts_with(begin) {
            text = text.split_once(end).map_or("", |(_, behind)| behind).trim_start();
        }
    }
    let root = text.strip_prefix('<').and_then(|tag| tag.split([' ', '\t', '\r', '\n', '>', '/']).next());
    let roots = ["flat-profile", "device", "gs_provision", "settings", "phone-settings", "setting-files"];
    text.starts_with("#!version") || root.is_some_and(|root| roots.contains(&root))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_other_vendors_are_detected_by_their_start() {
        for text in [
            "#!version:1.0.0.1\naccount.1.enable = 1",
            "<?xml version='1.0'?>\n<!-- x -->\n<flat-profile>",
            "<device>",
            "<gs_provision version=\"1\">",
            "\u{feff}<settings><phone-settings>",
            "<phone-settings e=\"2\">",
        ] {
            assert!(begins_as_another_vendors(text.as_bytes()), "{text}");
        }
        for text in ["", "<APPLICATION/>", "<PHONE>", "<devices/>", "<a><device/></a>", "x = 1", "<!-- <device> -->"] {
            assert!(!begins_as_another_vendors(text.as_bytes()), "{text}");
        }
    }
}
