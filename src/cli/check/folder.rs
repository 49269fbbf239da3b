//! What `check` finds in a constituency's folder: links that are not followed, names that differ in case alone, and
//! firmware that is named but not there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{Finding, Level};
use crate::constituency::{ClientAuth, Constituency, MacAddress, Registry};
use crate::phone::Phone;
use crate::phone::master::MasterConfiguration;
use crate::serve::decision::check_shared;
use crate::serve::links;
use crate::serve::path::{self, ServedPath};

/// Looks at the folder of `constituency` in `root`.
pub(super) fn check(root: &Path, constituency: &Constituency, registry: &Registry, findings: &mut Vec<Finding>) {
    let Ok(root) = root.canonicalize() else { return };
    let look = Look { folder: root.join(constituency.name.as_str()), root: &root, constituency, registry };
    look.at(&look.folder, findings);
    look.at_masters(findings);
}

struct Look<'a> {
    root: &'a Path,
    folder: PathBuf,
    constituency: &'a Constituency,
    registry: &'a Registry,
}

impl Look<'_> {
    fn at(&self, folder: &Path, findings: &mut Vec<Finding>) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        let mut spellings: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(kind) = entry.file_type() else { continue };
            let name = entry.file_name().to_string_lossy().into_owned();
            if path::macs_in(&name).next().is_some()
                && let Ok(served) = ServedPath::parse(&format!("/{name}"))
            {
                spellings.entry(served.lower_case_macs()).or_default().push(name);
            }
            if kind.is_symlink() {
                if let Err(problem) = self.follow(&path) {
                    findings.push(self.finding(&path, Level::Warning, problem));
                }
            } else if kind.is_dir() {
                self.at(&path, findings);
            }
        }
        for names in spellings.values_mut().filter(|names| names.len() > 1) {
            names.sort();
            let message = format!(
                "{} differ only in the case of the MAC address; a phone gets the one it spells, else the lower-case one",
                names.join(" and ")
            );
            findings.push(self.finding(folder, Level::Warning, message));
        }
    }

    /// Whether phones can be served through the link at `path`.
    fn follow(&self, path: &Path) -> Result<(), String> {
        let real = links::check_text(self.root, path)?;
        let below_root = real.strip_prefix(self.root).unwrap_or(&real);
        let mut parts = below_root.components();
        let owner = parts.next().map(|owner| owner.as_os_str().to_string_lossy().into_owned()).unwrap_or_default();
        if owner == self.constituency.name.as_str() {
            return Ok(());
        }
        let Some(other) = self.registry.served().find(|other| other.name.as_str() == owner) else {
            return Err(format!("the link leads into {owner}, which is no constituency that is served"));
        };
        let mut shared = parts.as_path().to_string_lossy().into_owned();
        if real.is_dir() {
            // What counts is what lies in it.
            shared.push_str("/file");
        }
        check_shared(&shared, other).map_err(|denial| denial.to_string())
    }

    /// Master configurations, and the firmware that they name. It is Polycom's and does not ship: that it is missing is a
    /// note, not an error.
    fn at_masters(&self, findings: &mut Vec<Finding>) {
        let (mut missing, mut without_master) = (BTreeSet::new(), 0);
        let phones = self.constituency.known_phones();
        for mac in phones.iter().copied().chain(phones.is_empty().then_some(MacAddress::NOBODY)) {
            let own = self.folder.join(format!("{mac}.cfg"));
            let file = if own.is_file() { own } else { self.folder.join("000000000000.cfg") };
            let text = match fs::read(&file) {
                Ok(text) => text,
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    without_master += 1;
                    continue;
                }
                Err(error) => {
                    findings.push(self.finding(&file, Level::Warning, error));
                    continue;
                }
            };
            match MasterConfiguration::parse(&text, &Phone::new(mac)) {
                Ok(master) => missing.extend(master.firmware.filter(|path| !self.has_firmware(path))),
                Err(error) => findings.push(self.finding(&file, Level::Warning, error)),
            }
        }
        if without_master > 0 && self.constituency.policy.tls.client_auth != ClientAuth::None {
            let message =
                "there is no 000000000000.cfg, and phones without a file of their own find nothing to begin with";
            findings.push(Finding::new(Level::Note, &self.constituency.name, message));
        }
        for path in missing {
            let message = format!("the firmware {path} is not here; phones keep the one they have");
            findings.push(Finding::new(Level::Note, &self.constituency.name, message));
        }
    }

    /// Whether the image itself or a split one (`<part number>.sip.ld`) stands where the master configuration says.
    fn has_firmware(&self, path: &str) -> bool {
        if path.contains("://") {
            return true;
        }
        let path = self.folder.join(path.trim_start_matches('/'));
        let name = path.file_name().map(|name| format!(".{}", name.to_string_lossy())).unwrap_or_default();
        let is_split = |entry: fs::DirEntry| entry.file_name().to_string_lossy().ends_with(&name);
        path.is_file()
            || path
                .parent()
                .and_then(|folder| fs::read_dir(folder).ok())
                .is_some_and(|entries| entries.flatten().any(is_split))
    }

    fn finding(&self, path: &Path, level: Level, message: impl Display) -> Finding {
        let shown = path.strip_prefix(self.root).unwrap_or(path);
        Finding::new(level, shown.display(), message)
    }
}
