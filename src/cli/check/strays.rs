//! Uploads that their phone no longer gets: it moved to another constituency, or the folder was renamed.

use std::ffi::OsStr;
use std::io;

use rustix::fs::FileType;

use super::served_view::some_of;
use super::{Finding, FindingLevel};
use crate::cli::constituency::folders;
use crate::config::Config;
use crate::constituency::{Constituency, ConstituencyName, MacAddress, PhoneStanding, Registry};
use crate::serve::upload::store;
use crate::state::FolderHandle;
use crate::wording::counted;

const SUBJECT: &str = "uploads";
/// The most phones that are listed, each with a command.
const NAMED: usize = 50;

/// Compares the upload folders with the phone lists of the constituencies in `registry`.
pub(super) fn check(config: &Config, registry: &Registry, findings: &mut Vec<Finding>) {
    // Without the constituencies, nothing is known about uploads. That error is reported elsewhere.
    let Ok(folders) = folders(&config.constituencies) else { return };
    // There may be no uploads yet, or only the server can read them. Root can check those.
    let Ok(uploads) = FolderHandle::open(&config.state.join(store::FOLDER)) else { return };
    let mut moved = Vec::new();
    for from in names(&uploads, |name| name.to_str()?.parse::<ConstituencyName>().ok()) {
        let served = registry.by_folder(from.as_str());
        let place = match served {
            Some(_) => format!("{from}, which does not list it"),
            None if !folders.contains(&from) => format!("{from}, whose folder is missing"),
            // If the policy is invalid, its phones are unknown.
            None => continue,
        };
        let mut unlisted = Vec::new();
        for mac in stray_phones(&uploads, &from, served.map(AsRef::as_ref)) {
            match &listing(registry, mac)[..] {
                [] => unlisted.push(mac),
                [to, others @ ..] => moved.push(moved_phone(mac, &from, &place, to, others)),
            }
        }
        if served.is_none() && !unlisted.is_empty() {
            let phones = counted(unlisted.len(), "phone");
            let message = format!(
                "uploads of {phones} are under {from}, whose folder is missing, and no served constituency lists these phones: {}",
                some_of(&unlisted)
            );
            let remedy = format!("to move a phone's uploads, run provost uploads move MAC --from {from} --to NAME");
            findings.push(Finding::new(FindingLevel::Note, SUBJECT, message).with_remedy(remedy));
        }
    }
    let more = moved.len().saturating_sub(NAMED);
    findings.extend(moved.into_iter().take(NAMED));
    if more > 0 {
        let phones = counted(more, "more phone");
        let message = format!("{phones} with uploads under a constituency that is missing or does not list them");
        findings.push(Finding::new(FindingLevel::Note, SUBJECT, message));
    }
}

fn moved_phone(
    mac: MacAddress,
    from: &ConstituencyName,
    place: &str,
    to: &ConstituencyName,
    others: &[&ConstituencyName],
) -> Finding {
    let or_others: String = others.iter().map(|other| format!(" (or --to {other})")).collect();
    let message = format!("{to} lists {mac}, but its uploads are under {place}");
    let remedy = format!("to move them, run provost uploads move {mac} --from {from} --to {to}{or_others}");
    Finding::new(FindingLevel::Note, SUBJECT, message).with_remedy(remedy)
}

/// The phones with uploads to `from` that it does not list as known.
fn stray_phones(uploads: &FolderHandle, from: &ConstituencyName, served: Option<&Constituency>) -> Vec<MacAddress> {
    let Ok(folder) = uploads.folder(from.as_str()) else { return Vec::new() };
    let is_known = |mac: MacAddress| served.is_some_and(|served| is_listed(served, mac));
    let has_uploads = |mac: MacAddress| -> io::Result<bool> {
        let files = folder.folder(mac.to_string())?.files_beneath()?;
        Ok(files.iter().any(|(_, kind)| *kind == FileType::RegularFile))
    };
    let macs = names(&folder, |name| MacAddress::from_hex(name.as_encoded_bytes()));
    macs.into_iter().filter(|mac| !is_known(*mac) && has_uploads(*mac).unwrap_or(false)).collect()
}

/// The names of the folders in `folder` that `parse` accepts.
fn names<T>(folder: &FolderHandle, parse: impl Fn(&OsStr) -> Option<T>) -> Vec<T> {
    let entries = folder.entries().unwrap_or_default();
    let folders = entries.into_iter().filter(|entry| entry.kind == FileType::Directory);
    folders.filter_map(|entry| parse(&entry.name)).collect()
}

/// The constituencies that list `mac` as known.
fn listing(registry: &Registry, mac: MacAddress) -> Vec<&ConstituencyName> {
    registry.served().filter(|served| is_listed(served, mac)).map(|served| &served.name).collect()
}

/// Whether `constituency` lists `mac` as known. A constituency that accepts any phone lists only those with files of
/// their own.
fn is_listed(constituency: &Constituency, mac: MacAddress) -> bool {
    constituency.lists(mac) && constituency.standing(mac) == PhoneStanding::Known
}
