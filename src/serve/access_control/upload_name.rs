//! The names that a phone may give its uploads, and the purpose of each kind of upload. Pure.

use crate::constituency::MacAddress;
use crate::serve::path::ServedPath;

/// The maximum length of a path segment, in bytes.
const MAX_SEGMENT: usize = 128;
/// The maximum number of folders above an upload.
const MAX_FOLDERS: usize = 4;

/// Why a name is invalid for an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadUploadName {
    /// It does not start with the phone's own MAC address, or it is the phone's configuration file.
    #[error("an upload must be named <own MAC>-SOMETHING or <own MAC>.csr")]
    NotOwn,
    /// A character, a length or a depth that is not allowed.
    #[error(
        "an upload's path may have up to {MAX_FOLDERS} folders, each of up to {MAX_SEGMENT} characters of A-Z a-z 0-9 . _ -"
    )]
    Form,
}

/// The path of an upload below its phone's folder: as sent, with the MAC address in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UploadName(String);

impl UploadName {
    /// The name under which `mac` may upload to `path`.
    pub fn of(path: &ServedPath, mac: MacAddress) -> Result<Self, BadUploadName> {
        let own = mac.to_string();
        let is_plain = |segment: &str| {
            segment.len() <= MAX_SEGMENT
                && !segment.starts_with('.')
                && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        };
        if path.names_folder() || path.segments().count() > MAX_FOLDERS + 1 || !path.segments().all(is_plain) {
            return Err(BadUploadName::Form);
        }
        let file = path.segments().last().unwrap_or_default();
        let (head, rest) = file.split_at_checked(own.len()).ok_or(BadUploadName::NotOwn)?;
        let is_upload = matches!(rest.strip_prefix('-'), Some(something) if !something.is_empty()) || rest == ".csr";
        if !head.eq_ignore_ascii_case(&own) || !is_upload {
            return Err(BadUploadName::NotOwn);
        }
        Ok(Self::stored(path, mac))
    }

    /// The name under which an upload of `mac` to this path is stored, whether or not that upload is allowed.
    #[must_use]
    pub fn stored(path: &ServedPath, mac: MacAddress) -> Self {
        Self(path.with_lower_case(mac))
    }

    /// The path below the phone's folder.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this upload overrides a file of the folder, for its own phone only: the kinds that phones read back.
    #[must_use]
    pub fn overrides_folder(&self) -> bool {
        matches!(self.kind(), "-phone.cfg" | "-web.cfg" | "-directory.xml" | "-calls.xml")
    }

    /// Whether this upload is never served, not even to its own phone: private keys, certificate requests, core dumps.
    #[must_use]
    pub fn is_write_only(&self) -> bool {
        let kind = self.kind().to_ascii_lowercase();
        let is_core = |word: &str| word.starts_with("core");
        kind.ends_with("-private.pem") || kind == ".csr" || kind.split(['-', '.', '_']).any(is_core)
    }

    /// The part of the file name after the MAC address.
    fn kind(&self) -> &str {
        let file = self.0.rsplit('/').next().unwrap_or_default();
        file.get(12..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: &str = "00005e00530c";

    fn name(raw: &str) -> Result<String, BadUploadName> {
        let path = ServedPath::parse(raw).unwrap();
        UploadName::of(&path, MAC.parse().unwrap()).map(|name| name.as_str().to_owned())
    }

    #[test]
    fn upload_named_after_the_own_mac_is_accepted() {
        assert_eq!(name("/00005e00530c-app.log").unwrap(), "00005e00530c-app.log");
        assert_eq!(name("/Logs/00005E00530C-App.log").unwrap(), "Logs/00005e00530c-App.log");
        assert_eq!(name("/00005E00530C.csr").unwrap(), "00005e00530c.csr");
        assert_eq!(name("/a/b/c/d/00005e00530c-x").unwrap(), "a/b/c/d/00005e00530c-x");
    }

    #[test]
    fn upload_with_any_other_name_is_rejected() {
        for raw in [
            "/00005e00530c.cfg",
            "/00005e00530c",
            "/00005e00530c-",
            "/00005e0053c7-app.log",
            "/site.cfg",
            "/x00005e00530c-app.log",
            "/00005e00530c.csr.x",
            "/00005e00530c1-x",
        ] {
            assert_eq!(name(raw), Err(BadUploadName::NotOwn), "{raw}");
        }
        let long = format!("/{MAC}-{}", "x".repeat(116));
        for raw in [
            "/a/b/c/d/e/00005e00530c-x",
            "/a%20b/00005e00530c-x",
            "/00005e00530c-%c3%a4",
            "/.a/00005e00530c-x",
            "/00005e00530c-x/",
            &long,
        ] {
            assert_eq!(name(raw), Err(BadUploadName::Form), "{raw}");
        }
    }

    #[test]
    fn uploads_that_phones_read_back_override_the_folder() {
        let of = |raw: &str| UploadName::of(&ServedPath::parse(raw).unwrap(), MAC.parse().unwrap()).unwrap();
        for kind in ["-phone.cfg", "-web.cfg", "-directory.xml", "-calls.xml"] {
            assert!(of(&format!("/x/{MAC}{kind}")).overrides_folder(), "{kind}");
        }
        for kind in ["-app.log", "-user.cfg", "-my-phone.cfg", "-license.cfg"] {
            assert!(!of(&format!("/x/{MAC}{kind}")).overrides_folder(), "{kind}");
        }
        for kind in ["-private.pem", ".csr", "-core.gz", "-app-core-1.tar", "-x-private.pem", "-CoreDump"] {
            assert!(of(&format!("/{MAC}{kind}")).is_write_only(), "{kind}");
        }
        for kind in ["-app.log", "-score.xml", "-phone.cfg"] {
            assert!(!of(&format!("/{MAC}{kind}")).is_write_only(), "{kind}");
        }
    }

    proptest::proptest! {
        #[test]
        fn stored_name_never_leaves_its_folder(raw in "/[a-zA-Z0-9./_-]{0,30}00005e00530c-[a-z./]{1,10}") {
            if let Ok(path) = ServedPath::parse(&raw)
                && let Ok(name) = UploadName::of(&path, MAC.parse().unwrap()) {
                proptest::prop_assert!(name.as_str().split('/').all(|segment| !segment.is_empty() && !segment.starts_with('.')));
            }
        }
    }
}
