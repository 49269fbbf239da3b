//! The path of a request, parsed once: decoded, normalized, and without path traversal (`..`).
//!
//! Pure. Only [`ServedPath::parse`] makes a [`ServedPath`], so code that has one need not check again.

use percent_encoding::percent_decode_str;

use crate::constituency::file_names::mac_spellings;
use crate::constituency::{MacAddress, PHONES_FILE, POLICY_FILE};

/// The longest segment and the longest path that are looked up, in bytes: Linux accepts no longer ones.
const MAX_SEGMENT: usize = 255;
const MAX_PATH: usize = 4096;
/// Endings of the names of copies that editors and package managers leave.
const LEFTOVER_ENDINGS: [&str; 7] = ["~", ".swp", ".swo", ".bak", ".orig", ".rej", ".old"];
/// Parts of such names.
const LEFTOVER_PARTS: [&str; 2] = [".dpkg-", ".rpm"];
/// Folders of version control whose names do not start with a dot.
const VERSION_CONTROL: [&str; 2] = ["cvs", "_darcs"];

/// Why a request's path is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// `*` or an authority instead of a path.
    #[error("the request target is not a path")]
    NotAPath,
    /// `..` as a segment.
    #[error("the path contains \"..\"")]
    ParentSegment,
    /// `%2F`, which would become a separator of segments when it is decoded.
    #[error("the path has an encoded slash")]
    EncodedSlash,
    /// A path separator on other systems.
    #[error("the path has a backslash")]
    Backslash,
    /// NUL, line ends and other control characters.
    #[error("the path has a control character")]
    Control,
    /// Not UTF-8 after decoding.
    #[error("the path is not UTF-8")]
    NotUtf8,
}

/// A path relative to a constituency's folder: no empty, `.` or `..` segments, no encoding left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedPath {
    path: String,
    names_folder: bool,
}

impl ServedPath {
    /// Parses the path of a request target. Percent-decodes exactly once; collapses `//` and `/./`.
    pub fn parse(raw: &str) -> Result<Self, BadPath> {
        let rest = raw.strip_prefix('/').ok_or(BadPath::NotAPath)?;
        let encoded_slash = |window: &[u8]| matches!(window, [b'%', b'2', b'f' | b'F']);
        if rest.as_bytes().windows(3).any(encoded_slash) {
            return Err(BadPath::EncodedSlash);
        }
        let decoded = percent_decode_str(rest).decode_utf8().map_err(|_| BadPath::NotUtf8)?;
        if decoded.contains('\\') {
            return Err(BadPath::Backslash);
        }
        if decoded.chars().any(char::is_control) {
            return Err(BadPath::Control);
        }
        let mut path = String::with_capacity(decoded.len());
        for segment in decoded.split('/') {
            match segment {
                "" | "." => {}
                ".." => return Err(BadPath::ParentSegment),
                segment => {
                    if !path.is_empty() {
                        path.push('/');
                    }
                    path.push_str(segment);
                }
            }
        }
        let last = decoded.rsplit('/').next().unwrap_or_default();
        Ok(Self { names_folder: path.is_empty() || last.is_empty() || last == ".", path })
    }

    /// The path as text, without a leading slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.path
    }

    /// The segments; a single empty one if the path names the constituency's folder itself.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.path.split('/')
    }

    /// Whether the path is written as a folder's: empty, or with a slash (or `/.`) at its end.
    #[must_use]
    pub fn names_folder(&self) -> bool {
        self.names_folder
    }

    /// The path with the digits of `own`, in any spelling of that MAC address, in lower case.
    #[must_use]
    pub fn with_lower_case(&self, own: MacAddress) -> String {
        recased(&self.path, own, u8::to_ascii_lowercase).unwrap_or_else(|| self.path.clone())
    }

    /// The path with the digits of `own` in lower case, then in upper case, without those that equal the path itself.
    pub fn other_cases(&self, own: MacAddress) -> impl Iterator<Item = String> {
        let lower = recased(&self.path, own, u8::to_ascii_lowercase);
        let upper = recased(&self.path, own, u8::to_ascii_uppercase);
        [lower, upper].into_iter().flatten()
    }

    /// Whether a segment spells `mac`.
    #[must_use]
    pub fn spells(&self, mac: MacAddress) -> bool {
        spells(&self.path, mac)
    }
}

/// Whether a segment of `path` spells `mac`.
#[must_use]
pub fn spells(path: &str, mac: MacAddress) -> bool {
    path.split('/').any(|segment| mac_spellings(segment).iter().any(|spelling| spelling.mac == mac))
}

/// Whether `path`, relative to a constituency's folder, is never served: policies, phone lists, dotfiles, leftovers of
/// editors and package managers, folders of version control, and paths that are too long for a file system.
#[must_use]
pub fn is_hidden(path: &str) -> bool {
    // Some file systems ignore case. By way of upper case, `ſ` becomes `s`, as in their comparison.
    let folded = path.to_uppercase().to_lowercase();
    let (folders, _) = folded.rsplit_once('/').unwrap_or_default();
    path.len() > MAX_PATH
        || path.split('/').any(|segment| segment.len() > MAX_SEGMENT)
        || is_copy_of(PHONES_FILE, &folded)
        || folded.split('/').any(is_hidden_name)
        || folders.split('/').any(|folder| VERSION_CONTROL.contains(&folder))
}

/// Whether a segment, in lower case, hides every path that contains it.
fn is_hidden_name(name: &str) -> bool {
    name.starts_with('.')
        || is_copy_of(POLICY_FILE, name)
        || LEFTOVER_ENDINGS.iter().any(|ending| name.ends_with(ending))
        || LEFTOVER_PARTS.iter().any(|part| name.contains(part))
}

/// Whether `name` is the name of a policy file, or of a copy of one, such as an editor's `#phones.csv#`.
fn is_copy_of(file: &str, name: &str) -> bool {
    name.strip_prefix('#').unwrap_or(name).starts_with(file)
}

/// `path` with `case` applied to the digits of `mac` in it, if that changes it.
fn recased(path: &str, mac: MacAddress, case: fn(&u8) -> u8) -> Option<String> {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        let mut bytes = segment.as_bytes().to_vec();
        for spelling in mac_spellings(segment).into_iter().filter(|spelling| spelling.mac == mac) {
            bytes.get_mut(spelling.span)?.iter_mut().for_each(|byte| *byte = case(byte));
        }
        segments.push(String::from_utf8(bytes).ok()?);
    }
    Some(segments.join("/")).filter(|recased| recased != path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(raw: &str) -> Result<String, BadPath> {
        ServedPath::parse(raw).map(|path| path.as_str().to_owned())
    }

    #[test]
    fn spellings_that_phones_use_give_one_path() {
        for raw in ["/logs/x.log", "//logs/x.log", "/./logs/x.log", "/logs//x.log", "/logs/./x.log", "/logs%2e/../x"] {
            if raw.contains("..") {
                assert_eq!(parse(raw), Err(BadPath::ParentSegment));
            } else {
                assert_eq!(parse(raw).unwrap(), "logs/x.log", "{raw}");
            }
        }
        assert_eq!(parse("/a%20b").unwrap(), "a b");
        assert_eq!(parse("/a%2562").unwrap(), "a%62", "decoded exactly once");
        assert_eq!(parse("//etc/passwd").unwrap(), "etc/passwd");
    }

    #[test]
    fn invalid_path_is_rejected() {
        let cases = [
            ("*", BadPath::NotAPath),
            ("", BadPath::NotAPath),
            ("/..", BadPath::ParentSegment),
            ("/a/../b", BadPath::ParentSegment),
            ("/%2e%2e/b", BadPath::ParentSegment),
            ("/a%2fb", BadPath::EncodedSlash),
            ("/a%2F..%2Fb", BadPath::EncodedSlash),
            ("/a%5cb", BadPath::Backslash),
            ("/a\\b", BadPath::Backslash),
            ("/a%00", BadPath::Control),
            ("/a%0d%0aX", BadPath::Control),
            ("/a%7f", BadPath::Control),
            ("/a%c2%85", BadPath::Control),
            ("/a%ff", BadPath::NotUtf8),
            ("/a%c0%ae", BadPath::NotUtf8),
        ];
        for (raw, error) in cases {
            assert_eq!(parse(raw), Err(error), "{raw}");
        }
    }

    #[test]
    fn trailing_slash_marks_a_folder() {
        for raw in ["/", "//", "/a/", "/a/.", "/a//"] {
            assert!(ServedPath::parse(raw).unwrap().names_folder(), "{raw}");
        }
        assert!(!ServedPath::parse("/a").unwrap().names_folder());
    }

    #[test]
    fn hidden_names_match_in_any_case_at_any_depth() {
        let names = [
            "constituency.json",
            "constituency.json.bak",
            "constituency.json5",
            "#constituency.json#",
            ".git",
            ".htaccess",
            "...",
            "site.cfg~",
            "~",
            "site.cfg.swp",
            "site.cfg.swo",
            "site.cfg.bak",
            "site.cfg.orig",
            "site.cfg.rej",
            "site.cfg.old",
            "site.cfg.dpkg-dist",
            "site.cfg.dpkg-new",
            "site.cfg.rpmsave",
            "site.cfg.rpmnew",
        ];
        for name in names {
            for spelled in [name.to_owned(), name.to_uppercase(), name.replace('s', "S"), name.replace('s', "ſ")] {
                for path in [spelled.clone(), format!("a/{spelled}"), format!("{spelled}/b"), format!("a/{spelled}/b")]
                {
                    assert!(is_hidden(&path), "{path}");
                }
            }
        }
        let lists =
            ["phones.csv", "Phones.CSV", "phones.csv.2026", "PHONES.csv~", "phones.csv.d/site.cfg", "#phones.csv#"];
        for list in lists {
            assert!(is_hidden(list), "{list}");
        }
        for folder in ["CVS/Entries", "a/cvs/b", "_darcs/patches", "a/_DARCS/b/c"] {
            assert!(is_hidden(folder), "{folder}");
        }
    }

    #[test]
    fn names_that_only_resemble_hidden_ones_are_served() {
        for served in [
            "a/site.cfg",
            "a/phones.csv",
            "my-phones.csv",
            "##phones.csv",
            "xconstituency.json",
            "##constituency.json",
            "constituency.jso",
            "old/site.cfg",
            "site.old.cfg",
            "site.bak.cfg",
            "siteold",
            "rpm/site.cfg",
            "dpkg-new",
            "CVS",
            "a/_darcs",
            "CVSROOT/x",
        ] {
            assert!(!is_hidden(served), "{served}");
        }
    }

    #[test]
    fn paths_too_long_for_a_file_system_are_hidden() {
        let (longest, deepest) = ("é".repeat(127) + "x", ["a".repeat(255).as_str(); 16].join("/"));
        assert_eq!((longest.len(), deepest.len()), (255, 4095));
        assert!(!is_hidden(&format!("a/{longest}/b")) && !is_hidden(&deepest));
        assert!(is_hidden(&format!("a/{longest}x/b")) && is_hidden(&"\u{212a}".repeat(86)));
        let folders = "a/".repeat(2047);
        assert!(!is_hidden(&format!("{folders}aa")), "4,096 bytes");
        assert!(is_hidden(&format!("{folders}aaa")), "4,097 bytes");
    }

    #[test]
    fn case_fallback_changes_only_own_mac_digits() {
        let own = "00005e00530c".parse().unwrap();
        let cases = |raw: &str| ServedPath::parse(raw).unwrap().other_cases(own).collect::<Vec<_>>();
        assert_eq!(cases("/Logs/00005e00530C-App.log"), ["Logs/00005e00530c-App.log", "Logs/00005E00530C-App.log"]);
        assert_eq!(cases("/00005e00530c.cfg"), ["00005E00530C.cfg"]);
        assert_eq!(cases("/phone00005e00530c.cfg"), ["phone00005E00530C.cfg"]);
        assert_eq!(cases("/00-00-5e-00-53-0C/a"), ["00-00-5e-00-53-0c/a", "00-00-5E-00-53-0C/a"]);
        assert_eq!(cases("/00005e0053ab.cfg"), Vec::<String>::new());
        assert_eq!(cases("/site.cfg"), Vec::<String>::new());
    }

    proptest::proptest! {
        #[test]
        fn parsed_path_has_no_parent_segment_and_is_stable(raw in "/[a-z0-9./%\\\\ -]{0,40}") {
            if let Ok(path) = ServedPath::parse(&raw) {
                let text = path.as_str();
                proptest::prop_assert!(!text.starts_with('/') && !text.contains("//"));
                proptest::prop_assert!(text.is_empty() || path.segments().all(|segment| !matches!(segment, "" | "." | "..")));
                if !text.contains('%') {
                    proptest::prop_assert_eq!(parse(&format!("/{text}")).unwrap(), text);
                }
            }
        }

        #[test]
        fn no_path_panics(raw in "\\PC{0,60}") {
            if let Ok(path) = ServedPath::parse(&raw) {
                let own = "00005e00530c".parse().unwrap();
                let _ = (path.spells(own), path.other_cases(own).count(), is_hidden(path.as_str()));
            }
        }
    }
}
