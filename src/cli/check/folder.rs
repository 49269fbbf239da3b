//! Checks a constituency as its phones see it: the files in its folder, the names in its master configurations, the
//! content of those files, and the uploads that replace files.
//!
//! The folder is not trusted: links are followed only if phones are served through them, files are read up to a limit,
//! firmware is not read, and repeated findings are summarized with a count.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FileType, accessat};

use super::served_view::ServedView;
use super::{Finding, FindingLevel, contents, master_configs, overlay, vendors};
use crate::config::Config;
use crate::constituency::file_names::{NameRules, mac_spellings};
use crate::constituency::{Constituency, MacAddress};
use crate::phone_history::StoredPhone;
use crate::serve::access_control::check_shared;
use crate::serve::path::{self, ServedPath};
use crate::serve::site::Site;
use crate::serve::symlink_diagnostics;
use crate::state::Entry;

/// Checks the folder of `constituency`. `seen` are the phones that were seen in any constituency.
pub(super) fn check(
    config: &Config,
    site: &Site,
    constituency: &Constituency,
    seen: &[StoredPhone],
    findings: &mut Vec<Finding>,
) {
    let registry = site.registry();
    let Ok(root) = config.constituencies.canonicalize() else { return };
    let over_plain_http = config.plain_http.is_some() && constituency.policy.plain_http;
    let view = ServedView { root: &root, constituency, registry, over_plain_http };
    let files = Walk { view: &view, findings }.through();
    let is_for_polycom = vendors::is_for_polycom(config, &view, &files);
    let named = if is_for_polycom {
        let here = seen.iter().filter(|phone| phone.constituency == constituency.name);
        let around = master_configs::MasterContext {
            url: &config.url(constituency.name.as_str()),
            is_own_host: &|host| site.by_host(host).is_some_and(|found| found.name == constituency.name),
            models: here.filter_map(|phone| Some((phone.mac, phone.model.clone()?))).collect(),
        };
        master_configs::check(&view, &around, &files, findings)
    } else {
        master_configs::ReadMaster::default()
    };
    contents::check(&view, is_for_polycom, &files, &named, findings);
    overlay::check(&view, &files, &named, &config.state, findings);
}

/// A walk through every name in the folder.
struct Walk<'a> {
    view: &'a ServedView<'a>,
    findings: &'a mut Vec<Finding>,
}

impl Walk<'_> {
    /// Every regular file that can be served, by its path in the folder.
    fn through(mut self) -> Vec<String> {
        let mut files = Vec::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            match self.view.handle().and_then(|top| top.beneath(&folder)?.entries()) {
                Ok(entries) => self.at(&folder, entries, &mut folders, &mut files),
                Err(error) => self.warn(&folder, format!("cannot read the folder: {error}")),
            }
        }
        files.sort_unstable();
        files
    }

    fn at(&mut self, folder: &Path, entries: Vec<Entry>, folders: &mut Vec<PathBuf>, files: &mut Vec<String>) {
        let mut spellings: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for Entry { name, kind } in entries {
            let Some(name) = self.served_name(folder, name) else { continue };
            let path = folder.join(&name);
            spellings.entry(name.to_lowercase()).or_default().push(name);
            match kind {
                FileType::Symlink => {
                    if let Err(problem) = self.follow(&self.view.folder().join(&path)) {
                        self.warn(&path, problem);
                    }
                }
                FileType::Directory => folders.push(path),
                FileType::RegularFile => {
                    let text = path.to_string_lossy().into_owned();
                    let file = self.view.folder().join(&path);
                    if accessat(CWD, file, Access::READ_OK, AtFlags::EACCESS).is_err() {
                        let message = "permission denied for the service's user: phones do not get this file";
                        self.findings.push(self.view.finding(FindingLevel::Error, &text, message));
                    }
                    files.push(text);
                }
                _ => self.warn(&path, "not a regular file: never served"),
            }
        }
        for mut names in spellings.into_values().filter(|names| names.len() > 1) {
            names.sort();
            // The server tries the other case only for the digits of the phone's own MAC address.
            let owner = mac_spellings(&names[0]).into_iter().map(|it| it.mac).find(|mac| are_one_but_for(&names, *mac));
            let message = match owner {
                Some(_) => {
                    "the case of the MAC address; a phone gets the one with its spelling, else the lower-case one"
                }
                None => "case; a phone gets the one with exactly its spelling",
            };
            self.warn(folder, format!("{} differ only in {message}", names.join(" and ")));
        }
    }

    /// The name of an entry, unless it is never served.
    fn served_name(&mut self, folder: &Path, name: OsString) -> Option<String> {
        match name.into_string() {
            Ok(name) if path::is_hidden(&folder.join(&name).to_string_lossy()) => None,
            Ok(name) => Some(name),
            Err(name) => {
                self.warn(&folder.join(name), "the name is not UTF-8, so no phone can request it");
                None
            }
        }
    }

    /// Whether phones can be served through the link at `path`.
    fn follow(&self, path: &Path) -> Result<(), String> {
        let real = symlink_diagnostics::check_text(self.view.root, path)?;
        let below_root = real.strip_prefix(self.view.root).unwrap_or(&real);
        let mut parts = below_root.components();
        let owner = parts.next().map(|owner| owner.as_os_str().to_string_lossy().into_owned()).unwrap_or_default();
        if owner == self.view.constituency.name.as_str() {
            return Ok(());
        }
        let Some(other) = self.view.registry.by_folder(&owner) else {
            return Err(format!("the link leads into {owner}, which is not a served constituency"));
        };
        let mut shared = parts.as_path().to_string_lossy().into_owned();
        if real.is_dir() {
            // The rule is about files in the folder, so try one.
            shared.push_str("/file");
        }
        let rules = NameRules::linked(self.view.registry.listed(), self.view.constituency, other);
        check_shared(&shared, None, &rules).map_err(|denial| denial.to_string())
    }

    fn warn(&mut self, path: &Path, message: impl Display) {
        let path = path.to_string_lossy();
        self.findings.push(self.view.finding(FindingLevel::Warning, &path, message));
    }
}

/// Whether `names` differ only in the case of the digits of `mac`.
fn are_one_but_for(names: &[String], mac: MacAddress) -> bool {
    let lower = |name: &String| Some(ServedPath::parse(&format!("/{name}")).ok()?.with_lower_case(mac));
    names.iter().map(lower).collect::<BTreeSet<_>>().len() == 1
}
