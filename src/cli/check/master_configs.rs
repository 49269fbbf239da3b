//! Checks whether phones get the files that master configurations name. It reads every master configuration, for every
//! phone that uses it and for every model that it names.
//!
//! URLs with a path are common (`https://…/app/provision/`), so masters are searched in every folder, and their names
//! are relative to that folder. A `<mac>.cfg` without names is a parameter file. It is not known whether a phone with
//! one also reads `000000000000.cfg`, so the names in that are checked for the phone, too.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::sync::Arc;

use super::served_view::{MAX_BYTES, ServedContent, ServedFile, ServedView, read};
use super::served_view::{report, some_of};
use super::{Finding, FindingLevel};
use crate::constituency::{ClientAuth, MacAddress, PhoneStanding, Phones};
use crate::phone_config::master::{holds_mac, holds_model, is_same_model, references_for};
use crate::phone_config::secrets::has_password_in_url;
use crate::phone_config::{FileReference, PhoneNames, ReferenceKind, Text, XmlFile, in_directory};
use crate::serve::access_control::upload_name::UploadName;
use crate::serve::path::ServedPath;
use crate::virtual_phone::{InvalidUrl, ServerUrl};

/// The master configuration of phones without their own.
const COMMON: &str = "000000000000.cfg";

/// What is known besides the folder.
pub(super) struct MasterContext<'a> {
    /// The URL of the folder.
    pub(super) url: &'a str,
    /// Whether a host name belongs to this constituency.
    pub(super) is_own_host: &'a dyn Fn(&str) -> bool,
    /// The models of phones that were seen here, as in User-Agents.
    pub(super) models: HashMap<MacAddress, String>,
}

/// The master configurations, and the files that they name.
#[derive(Default)]
pub(super) struct ReadMaster {
    pub(super) masters: BTreeSet<String>,
    /// Each named file, with the place that names it: `000000000000.cfg:2 in CONFIG_FILES`.
    pub(super) named: BTreeMap<String, String>,
}

/// Reads the master configurations as every phone does. `files` are all files of the folder.
pub(super) fn check(
    view: &ServedView<'_>,
    around: &MasterContext<'_>,
    files: &[String],
    findings: &mut Vec<Finding>,
) -> ReadMaster {
    let mut reading = MasterWalk {
        view,
        around,
        files,
        in_any_case: files.iter().map(|file| (file.to_lowercase(), file.as_str())).collect(),
        masters: HashMap::new(),
        checked: HashMap::new(),
        read: ReadMaster::default(),
        missing: BTreeMap::new(),
        firmware: BTreeSet::new(),
        found: Vec::new(),
    };
    let phones = phones(view);
    let folders = folders(files);
    let mut begun: BTreeMap<(String, String), Vec<Option<MacAddress>>> = BTreeMap::new();
    let mut without_master = 0_usize;
    for phone in &phones {
        let masters: Vec<(String, String)> = folders
            .iter()
            .flat_map(|folder| reading.masters_of(*phone, folder).into_iter().map(|file| (folder.clone(), file)))
            .collect();
        without_master += usize::from(masters.is_empty());
        for master in masters {
            begun.entry(master).or_default().push(*phone);
        }
    }
    for ((folder, file), phones) in &begun {
        reading.follow(folder, file, phones);
    }
    if without_master > 0 && view.constituency.policy.tls.client_auth != ClientAuth::None {
        let message = format!("no {COMMON}: phones without a master configuration of their own get none");
        findings.push(view.finding(FindingLevel::Note, "", message));
    }
    reading.finish(phones.len(), findings)
}

/// The known phones. If there are none, or any phone is accepted, one without an address (`None`).
fn phones(view: &ServedView<'_>) -> Vec<Option<MacAddress>> {
    let constituency = view.constituency;
    let known =
        constituency.known_phones().into_iter().filter(|mac| constituency.standing(*mac) == PhoneStanding::Known);
    let known: Vec<_> = known.map(Some).collect();
    let is_open = constituency.policy.tls.client_auth == ClientAuth::None || constituency.policy.phones == Phones::Any;
    if known.is_empty() || is_open { vec![None] } else { known }
}

/// The folders in which phones may look for a master configuration, each with a trailing slash: the top folder, and
/// those with a file that can be one.
fn folders(files: &[String]) -> BTreeSet<String> {
    let can_be_master =
        |name: &str| name.strip_suffix(".cfg").is_some_and(|stem| MacAddress::from_hex(stem.as_bytes()).is_some());
    let split = files.iter().filter_map(|file| file.rsplit_once('/')).filter(|(_, name)| can_be_master(name));
    split.map(|(folder, _)| format!("{folder}/")).chain([String::new()]).collect()
}

/// The phones for which a named file is missing.
#[derive(Debug, Default)]
struct Missing {
    phones: Vec<MacAddress>,
}

/// A missing file: level, master configuration, line, attribute, path, reason.
type NamedPlace = (FindingLevel, String, u32, String, String, String);

/// The problem with a named path.
type Problem = (FindingLevel, String);

struct MasterWalk<'a> {
    view: &'a ServedView<'a>,
    around: &'a MasterContext<'a>,
    files: &'a [String],
    /// The files in the folder, by their lower-case paths.
    in_any_case: HashMap<String, &'a str>,
    /// The names in each possible master configuration; `None`: it does not exist.
    masters: HashMap<String, Option<Arc<Vec<FileReference>>>>,
    /// The results for paths that are the same for every phone.
    checked: HashMap<String, Option<Problem>>,
    read: ReadMaster,
    missing: BTreeMap<NamedPlace, Missing>,
    firmware: BTreeSet<String>,
    found: Vec<Finding>,
}

impl MasterWalk<'_> {
    /// The master configurations in `folder` that `phone` reads.
    fn masters_of(&mut self, phone: Option<MacAddress>, folder: &str) -> Vec<String> {
        let mut masters = Vec::new();
        if let Some(mac) = phone {
            let own = format!("{folder}{mac}.cfg");
            match self.named_in(&own, phone) {
                Some(named) if !named.is_empty() => return vec![own],
                Some(_) => masters.push(own),
                None => {}
            }
        }
        let common = format!("{folder}{COMMON}");
        masters.extend(self.named_in(&common, phone).map(|_| common));
        masters
    }

    /// The names in `file`, if it exists.
    fn named_in(&mut self, file: &str, phone: Option<MacAddress>) -> Option<Arc<Vec<FileReference>>> {
        if let Some(known) = self.masters.get(file) {
            return known.clone();
        }
        let named = self.open(file, phone).map(Arc::new);
        self.masters.insert(file.to_owned(), named.clone());
        named
    }

    /// The names in `file`, if it exists. If it is malformed, those before the error; the error becomes a finding.
    fn open(&mut self, file: &str, phone: Option<MacAddress>) -> Option<Vec<FileReference>> {
        let path = ServedPath::parse(&format!("/{}", file.replace('%', "%25"))).ok()?;
        let (named, problem) = match self.view.find(&path, phone) {
            ServedFile::Absent => return None,
            ServedFile::NotServed(reason) => {
                (vec![], Some((FindingLevel::Warning, format!("phones do not get it: {reason}"))))
            }
            ServedFile::Regular(opened) => {
                let spelling = self.spelling(file).to_owned();
                self.read.masters.insert(spelling);
                all_named(opened)
            }
        };
        self.found.extend(problem.map(|(level, message)| self.view.finding(level, file, message)));
        Some(named)
    }

    /// The spelling of `file` in the folder.
    fn spelling<'b>(&'b self, file: &'b str) -> &'b str {
        match self.files.binary_search_by(|other| other.as_str().cmp(file)) {
            Ok(_) => file,
            Err(_) => self.in_any_case.get(&file.to_lowercase()).copied().unwrap_or(file),
        }
    }

    /// Checks all names in `file` in `folder`, for the `phones` that read it.
    fn follow(&mut self, folder: &str, file: &str, phones: &[Option<MacAddress>]) {
        let Some(named) = self.masters.get(file).cloned().flatten() else { return };
        let models: BTreeSet<&str> = named.iter().filter_map(|one| one.model.as_deref()).collect();
        let (seen, unseen_models): (Vec<&str>, Vec<&str>) =
            models.into_iter().partition(|model| self.is_seen(phones, model));
        let is_read = |one: &&FileReference| one.model.as_deref().is_none_or(|model| seen.contains(&model));
        for one in named.iter().filter(is_read) {
            let readers = self.readers(&named, one, phones);
            self.check_named(folder, file, one, &readers);
        }
        let mut unseen = Unseen::default();
        for model in unseen_models {
            self.count_for_unseen(folder, file, &named, model, &mut unseen);
        }
        let may_apply = phones.iter().any(|phone| phone.is_none_or(|mac| !self.around.models.contains_key(&mac)));
        self.found.extend(unseen.problem(may_apply).map(|(level, message)| self.view.finding(level, file, message)));
    }

    /// Those of `phones` that read the attribute `one`: the phones of its model, or those whose model has no attribute
    /// of its own.
    fn readers(
        &self,
        named: &[FileReference],
        one: &FileReference,
        phones: &[Option<MacAddress>],
    ) -> Vec<Option<MacAddress>> {
        let has_own = |model: &str| named.iter().any(|other| other.attribute == one.attribute && other.is_for(model));
        let reads = |phone: &&Option<MacAddress>| {
            let model = phone.and_then(|mac| self.around.models.get(&mac));
            match &one.model {
                Some(_) => model.is_some_and(|model| one.is_for(model)),
                None => model.is_none_or(|model| !has_own(model)),
            }
        };
        phones.iter().filter(reads).copied().collect()
    }

    /// Whether one of `phones`, where `None` is any phone, is known to be of `model`.
    fn is_seen(&self, phones: &[Option<MacAddress>], model: &str) -> bool {
        let is_any = phones.contains(&None);
        let mut seen = self.around.models.iter().filter(|(mac, _)| is_any || phones.contains(&Some(**mac)));
        seen.any(|(_, seen)| is_same_model(seen, model))
    }

    fn check_named(&mut self, folder: &str, file: &str, one: &FileReference, readers: &[Option<MacAddress>]) {
        for path in &one.paths {
            match one.what {
                ReferenceKind::Files => self.entry(folder, file, one, path, readers),
                ReferenceKind::Firmware if path.contains('[') => {}
                ReferenceKind::Firmware => drop(self.firmware.insert(located(folder, path))),
                ReferenceKind::UploadDirectory => self.upload_directory(folder, file, one, path, readers),
                ReferenceKind::ReadDirectory => {}
            }
        }
    }

    /// Checks one of several files.
    fn entry(&mut self, folder: &str, file: &str, one: &FileReference, path: &str, readers: &[Option<MacAddress>]) {
        let at = at(file, one);
        if !holds_mac(path) && !holds_model(path) {
            // The path is the same for every phone.
            let names = PhoneNames::default();
            if let Some(path) = names.fill_in(path)
                && let Some(problem) = self.check_path_once(folder, &path, readers.first().copied().flatten(), &at)
            {
                self.add(file, one, &path, problem, None);
            }
            return;
        }
        if readers.is_empty() || readers.contains(&None) {
            let is_open = self.view.constituency.policy.tls.client_auth == ClientAuth::None;
            if is_open && holds_mac(path) {
                let problem = "which is never served without client authentication".to_owned();
                self.add(file, one, path, (FindingLevel::Warning, problem), None);
            }
        }
        for mac in readers.iter().copied().flatten() {
            let model = self.around.models.get(&mac).map(|model| model.replace('_', ""));
            let names = PhoneNames { mac: Some(mac), model: model.clone(), part_number: None };
            let Some(filled) = names.fill_in(path) else { continue };
            if let Some(problem) = self.check_path(folder, &filled, Some(mac), &at) {
                // Show the path as it is for all phones of a model.
                let shown = model.map_or_else(|| path.to_owned(), |model| path.replace("[PHONE_MODEL]", &model));
                self.add(file, one, &shown, problem, Some(mac));
            }
        }
    }

    fn add(&mut self, file: &str, one: &FileReference, path: &str, problem: Problem, phone: Option<MacAddress>) {
        let (level, why) = problem;
        let shown = if has_password_in_url(path) { "a URL".to_owned() } else { path.to_owned() };
        let place = (level, file.to_owned(), one.line, one.attribute_name(), shown, why);
        self.missing.entry(place).or_default().phones.extend(phone);
    }

    /// Collects the files that are missing for `model` only. No phone seen here is of this model.
    fn count_for_unseen(
        &mut self,
        folder: &str,
        file: &str,
        named: &[FileReference],
        model: &str,
        unseen: &mut Unseen,
    ) {
        let own = PhoneNames { model: Some(model.to_owned()), ..PhoneNames::default() };
        let attributes: BTreeSet<&str> = named.iter().map(|one| one.attribute).collect();
        for one in attributes.into_iter().flat_map(|attribute| references_for(named, attribute, Some(model))) {
            let of_model = one.paths.iter().filter(|path| one.model.is_some() || holds_model(path));
            let at = at(file, one);
            for path in of_model.filter_map(|path| own.fill_in(path)) {
                let is_missing = match one.what {
                    ReferenceKind::Files => {
                        matches!(self.check_path_once(folder, &path, None, &at), Some((FindingLevel::Warning, _)))
                    }
                    ReferenceKind::Firmware => {
                        let image = located(folder, &path);
                        !self.firmware.contains(&image) && self.firmware_problem(&image).is_some()
                    }
                    ReferenceKind::UploadDirectory | ReferenceKind::ReadDirectory => false,
                };
                if is_missing {
                    unseen.models.insert(model.to_owned());
                    let missing =
                        if one.what == ReferenceKind::Files { &mut unseen.files } else { &mut unseen.firmware };
                    missing.insert(path);
                }
            }
        }
    }

    /// The path below our own URL of a name in a file in `folder`. For another server, the error is the problem, if
    /// any.
    fn here(&self, folder: &str, path: &str) -> Result<String, Option<Problem>> {
        if !path.contains("://") {
            return Ok(format!("/{}{path}", folder.replace('%', "%25")));
        }
        let unprotected = || {
            Some((
                FindingLevel::Warning,
                "which is transferred without TLS: an attacker on the path can read and change it".to_owned(),
            ))
        };
        let Ok(own) = self.around.url.parse::<ServerUrl>() else { return Err(None) };
        match own.locate(path) {
            Ok(location) if !location.origin.secure => Err(unprotected()),
            Ok(location) => {
                if (self.around.is_own_host)(&location.origin.host) {
                    Ok(location.path)
                } else {
                    Err(Some((FindingLevel::Note, "on another server, so it was not checked".to_owned())))
                }
            }
            Err(InvalidUrl::Scheme(_)) => Err(unprotected()),
            // The password in the URL is reported as a secret.
            Err(InvalidUrl::UserName) => Err(None),
            Err(InvalidUrl::NotAUrl(_)) => Err(Some((FindingLevel::Warning, "which is not a URL".to_owned()))),
        }
    }

    fn check_path_once(&mut self, folder: &str, path: &str, phone: Option<MacAddress>, at: &str) -> Option<Problem> {
        let key = format!("{folder}\n{path}");
        if let Some(known) = self.checked.get(&key) {
            return known.clone();
        }
        let problem = self.check_path(folder, path, phone, at);
        self.checked.insert(key, problem.clone());
        problem
    }

    /// The problem with `path` for `phone`.
    fn check_path(&mut self, folder: &str, path: &str, phone: Option<MacAddress>, at: &str) -> Option<Problem> {
        let here = match self.here(folder, path) {
            Ok(here) => here,
            Err(problem) => return problem,
        };
        let warning = |why: String| Some((FindingLevel::Warning, why));
        // The server ignores a query.
        let asked = here.split('?').next().unwrap_or_default();
        let served = match ServedPath::parse(asked) {
            Ok(served) if !served.names_folder() => served,
            Ok(_) => return warning("which is a folder".to_owned()),
            Err(error) => return warning(format!("which cannot be requested: {error}")),
        };
        match self.view.find(&served, phone) {
            ServedFile::Regular(_) => {
                let spelling = self.spelling(served.as_str()).to_owned();
                self.read.named.entry(spelling).or_insert_with(|| at.to_owned());
                None
            }
            ServedFile::NotServed(reason) => warning(format!("which phones do not get: {reason}")),
            ServedFile::Absent => warning(match self.in_any_case.get(&served.as_str().to_lowercase()) {
                Some(other) => format!("which is not found, but {other} is: names are case-sensitive"),
                None => "which is not found".to_owned(),
            }),
        }
    }

    /// Checks a folder to which phones upload: the server must accept uploads there.
    fn upload_directory(
        &mut self,
        folder: &str,
        file: &str,
        one: &FileReference,
        directory: &str,
        readers: &[Option<MacAddress>],
    ) {
        let Some(mac) = readers.iter().copied().flatten().next() else { return };
        let names = PhoneNames { mac: Some(mac), ..PhoneNames::default() };
        let Some(filled) = names.fill_in(directory).filter(|filled| !filled.contains("://")) else { return };
        if self.view.constituency.policy.uploads.is_none() {
            return;
        }
        let upload = format!("/{folder}{}", in_directory(&filled, &format!("{mac}-app.log")));
        let problem = match ServedPath::parse(&upload) {
            Err(error) => error.to_string(),
            Ok(path) => match UploadName::of(&path, mac) {
                Err(error) => error.to_string(),
                Ok(_) => return,
            },
        };
        self.add(file, one, directory, (FindingLevel::Warning, format!("where uploads are refused: {problem}")), None);
    }

    /// Reports the findings. `phones` is the number of all phones.
    fn finish(mut self, phones: usize, findings: &mut Vec<Finding>) -> ReadMaster {
        for ((level, file, line, attribute, path, problem), missing) in std::mem::take(&mut self.missing) {
            let who = match missing.phones.as_slice() {
                [] => String::new(),
                all if all.len() == phones && phones > 1 => format!(" (for all {phones} phones)"),
                all => format!(" (for {})", some_of(all)),
            };
            let message = format!("{attribute} names {path}, {problem}{who}");
            self.found.push(self.view.finding(level, &format!("{file}:{line}"), message));
        }
        report(self.view, std::mem::take(&mut self.found), "findings about master configurations", findings);
        for (path, problem) in self.firmware.iter().filter_map(|path| Some((path, self.firmware_problem(path)?))) {
            let message = format!("firmware {path} {problem}; phones keep their firmware");
            findings.push(self.view.finding(FindingLevel::Note, "", message));
        }
        self.read
    }

    /// Why phones get neither the image nor a split one (`<part number>.sip.ld`); `None` if they get one. Images belong
    /// to Polycom and are not shipped, so a missing one is a note, not an error.
    fn firmware_problem(&self, path: &str) -> Option<String> {
        if path.contains("://") {
            return None;
        }
        let absent = || Some("is not here".to_owned());
        let Ok(served) = ServedPath::parse(&format!("/{}", path.trim_start_matches('/'))) else { return absent() };
        match self.view.find(&served, None) {
            ServedFile::Regular(_) => None,
            ServedFile::NotServed(reason) => Some(format!("is not served: {reason}")),
            ServedFile::Absent => {
                let (folder, name) = served.as_str().rsplit_once('/').unwrap_or((".", served.as_str()));
                let ending = format!(".{name}");
                let names = self.view.names_in(folder);
                if names.iter().any(|name| name.to_string_lossy().ends_with(&ending)) { None } else { absent() }
            }
        }
    }
}

/// The missing files of one master configuration, for models that no phone seen here has. The vendor's own master
/// configuration names files for some twenty models.
#[derive(Default)]
struct Unseen {
    models: BTreeSet<String>,
    files: BTreeSet<String>,
    firmware: BTreeSet<String>,
}

impl Unseen {
    /// One problem for all of them. If the model of a phone is unknown, it may be one of these.
    fn problem(&self, may_apply: bool) -> Option<Problem> {
        let models: Vec<&String> = self.models.iter().collect();
        let missing: Vec<&String> = self.files.iter().chain(&self.firmware).collect();
        let level = if may_apply && !self.files.is_empty() { FindingLevel::Warning } else { FindingLevel::Note };
        let message = format!(
            "it names missing files for models that no known phone has ({}): {}",
            some_of(&models),
            some_of(&missing)
        );
        (!missing.is_empty()).then_some((level, message))
    }
}

/// The place of an attribute, for messages.
fn at(file: &str, one: &FileReference) -> String {
    format!("{file}:{} in {}", one.line, one.attribute_name())
}

/// The path in the constituency's folder of `path`, which a file in `folder` names.
fn located(folder: &str, path: &str) -> String {
    if path.contains("://") || folder.is_empty() {
        path.to_owned()
    } else {
        format!("{folder}{}", path.trim_start_matches('/'))
    }
}

/// The names in `opened`, and the error that ended reading.
fn all_named(opened: File) -> (Vec<FileReference>, Option<Problem>) {
    let bytes = match read(opened) {
        ServedContent::Bytes(bytes) => bytes,
        ServedContent::Unreadable(error) => {
            return (vec![], Some((FindingLevel::Warning, format!("cannot read it: {error}"))));
        }
        ServedContent::TooLarge => {
            let problem = format!("larger than {} MiB: not a master configuration", MAX_BYTES >> 20);
            return (vec![], Some((FindingLevel::Error, problem)));
        }
    };
    let named = |text: &Text<'_>| {
        let file = XmlFile::read(text)?;
        Ok((FileReference::all_in(&file), file.broken_off))
    };
    let (named, error) = match Text::decode(&bytes).and_then(|text| named(&text)) {
        Ok(read) => read,
        Err(error) => (vec![], Some(error)),
    };
    (named, error.map(|error| (FindingLevel::Error, format!("{error}; phones cannot read this master configuration"))))
}
