//! Files that uploads hide. An administrator edits such a file, and its phone keeps getting the upload.
//!
//! Two cases: a file in the folder has the name of an upload, so the first upload will hide it; or an upload hides a
//! file already, perhaps a newer one.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;

use rustix::fs::{FileType, Stat};

use super::master_configs::ReadMaster;
use super::served_view::{ServedFile, ServedView};
use super::served_view::{report, some_of};
use super::{Finding, FindingLevel};
use crate::clock::rfc3339;
use crate::constituency::{ClientAuth, MacAddress, PhoneStanding};
use crate::serve::access_control::upload_name::UploadName;
use crate::serve::path::ServedPath;
use crate::serve::upload::store;
use crate::state::FolderHandle;

/// Checks `files`, all files of the folder, and the constituency's uploads in the state directory `state`.
pub(super) fn check(
    view: &ServedView<'_>,
    files: &[String],
    named: &ReadMaster,
    state: &Path,
    findings: &mut Vec<Finding>,
) {
    let folder = state.join(store::FOLDER).join(view.constituency.name.as_str());
    let mut hidden = Vec::new();
    let mut found = Vec::new();
    // There may be no uploads, or only the server can read them, which is reported elsewhere.
    for (mac, uploads) in FolderHandle::open(&folder).iter().flat_map(phones) {
        for upload in files_of(&uploads) {
            if let Some(finding) = hidden_by(view, mac, &uploads, &upload) {
                found.push(finding);
                hidden.push(upload);
            }
        }
    }
    report(view, found, "files that uploads hide", findings);
    let to_be_hidden = files.iter().filter_map(|file| Overlaid::of(view, file, named));
    let to_be_hidden = to_be_hidden.filter(|it| !hidden.iter().any(|upload| upload.eq_ignore_ascii_case(it.file)));
    findings.extend(before_uploads(view, to_be_hidden));
}

/// The finding that `upload` of `mac` in the folder `uploads` hides a file.
fn hidden_by(view: &ServedView<'_>, mac: MacAddress, uploads: &FolderHandle, upload: &str) -> Option<Finding> {
    let path = ServedPath::parse(&format!("/{upload}")).ok()?;
    if !UploadName::of(&path, mac).ok()?.overrides_folder() {
        return None;
    }
    let ServedFile::Regular(file) = view.find(&path, Some(mac)) else { return None };
    let name = &view.constituency.name;
    let command = format!("to give it this file, run provost uploads remove {mac} {upload} --constituency {name}");
    let message = match newer(&file, uploads, upload) {
        Some((changed, uploaded)) => {
            format!("this file was changed at {changed}, but {mac} still gets its older upload, of {uploaded}")
        }
        None => format!("hidden by an upload: {mac} gets its upload instead"),
    };
    Some(view.finding(FindingLevel::Warning, upload, message).with_remedy(command))
}

/// The time when `file` was changed, and the earlier time when `upload` was stored; `None` if the upload is newer.
fn newer(file: &File, uploads: &FolderHandle, upload: &str) -> Option<(String, String)> {
    let time = |stat: Stat| (stat.st_mtime, stat.st_mtime_nsec);
    let changed = rustix::fs::fstat(file).ok().map(time)?;
    let uploaded =
        uploads.of_file_beneath(Path::new(upload)).and_then(|(folder, name)| folder.stat(name)).ok().map(time)?;
    (changed > uploaded).then(|| (rfc3339(changed.0), rfc3339(uploaded.0)))
}

/// A file in the folder with the name of an upload.
struct Overlaid<'a> {
    file: &'a str,
    mac: MacAddress,
    /// The rest of the name after the MAC address: `-phone.cfg`.
    kind: &'a str,
    /// The place in a master configuration that names it.
    named: Option<&'a str>,
}

impl<'a> Overlaid<'a> {
    /// `file`, if it has such a name, and its phone is known and may upload.
    fn of(view: &ServedView<'_>, file: &'a str, named: &'a ReadMaster) -> Option<Self> {
        let constituency = view.constituency;
        let policy = &constituency.policy;
        if policy.uploads.is_none() || policy.tls.client_auth == ClientAuth::None {
            return None;
        }
        let (digits, kind) = file.rsplit('/').next()?.split_at_checked(12)?;
        let mac = MacAddress::from_hex(digits.as_bytes())
            .filter(|mac| constituency.standing(*mac) == PhoneStanding::Known)?;
        let path = ServedPath::parse(&format!("/{}", file.replace('%', "%25"))).ok()?;
        let lies_over = UploadName::of(&path, mac).ok()?.overrides_folder();
        lies_over.then(|| Self { file, mac, kind, named: named.named.get(file).map(String::as_str) })
    }
}

/// The findings about files that no upload hides yet, one for each kind of file.
fn before_uploads<'a>(view: &ServedView<'_>, all: impl Iterator<Item = Overlaid<'a>>) -> Vec<Finding> {
    let mut kinds: BTreeMap<(&str, bool), Vec<Overlaid<'a>>> = BTreeMap::new();
    for one in all {
        kinds.entry((one.kind, one.named.is_some())).or_default().push(one);
    }
    let finding = |((kind, is_named), all): ((&str, bool), Vec<Overlaid<'a>>)| {
        let remedy = match kind {
            "-phone.cfg" | "-web.cfg" => "give it another name, such as <mac>-user.cfg, and name that in CONFIG_FILES",
            _ => "to remove an upload, run provost uploads remove",
        };
        let named: BTreeSet<&str> = all.iter().filter_map(|one| one.named).collect();
        let named = if is_named {
            format!(", although {} names this file", some_of(&Vec::from_iter(named)))
        } else {
            String::new()
        };
        match all.as_slice() {
            [one] => {
                let mac = one.mac;
                let message = format!(
                    "phones upload files of this name: once {mac} does, it gets its upload instead of this file{named}"
                );
                view.finding(FindingLevel::Warning, one.file, message).with_remedy(remedy)
            }
            all => {
                let files: Vec<&str> = all.iter().map(|one| one.file).collect();
                let message = format!(
                    "phones upload files of these names: {}: once a phone does, it gets its upload instead of the file{named}",
                    some_of(&files)
                );
                view.finding(FindingLevel::Warning, "", message).with_remedy(remedy)
            }
        }
    };
    kinds.into_iter().map(finding).collect()
}

/// The phones with a folder in `folder`, and that folder.
fn phones(folder: &FolderHandle) -> Vec<(MacAddress, FolderHandle)> {
    let entries = folder.entries().unwrap_or_default();
    let phone = |name: &OsStr| Some((MacAddress::from_hex(name.as_encoded_bytes())?, folder.folder(name).ok()?));
    let mut phones: Vec<_> = entries.iter().filter_map(|entry| phone(&entry.name)).collect();
    phones.sort_by_key(|(mac, _)| *mac);
    phones
}

/// The paths of all regular files in the phone's folder `uploads`.
fn files_of(uploads: &FolderHandle) -> Vec<String> {
    let files = uploads.files_beneath().unwrap_or_default().into_iter();
    let regular = files.filter(|(_, kind)| *kind == FileType::RegularFile);
    regular.filter_map(|(path, _)| path.into_os_string().into_string().ok()).collect()
}
