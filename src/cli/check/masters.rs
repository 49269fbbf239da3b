//! What each phone is told to fetch, and whether it would get it: every master configuration, for every model that it
//! names, for every phone that begins with it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::sync::Arc;

use super::few::{report, some_of};
use super::secrets::has_password_in_url;
use super::shelf::{Content, Found, LARGEST, Shelf, read};
use super::{Finding, Level};
use crate::constituency::{ClientAuth, MacAddress, Phones, Standing};
use crate::phone::master::{self, MasterError, Named, in_directory, with_mac, with_model};
use crate::serve::decision::upload_name::UploadName;
use crate::serve::path::ServedPath;

/// The master configuration of phones that have none of their own.
const COMMON: &str = "000000000000.cfg";
/// What a phone puts its address for.
const MAC_PLACES: [&str; 2] = ["[PHONE_MAC_ADDRESS]", "[MACADDRESS]"];
/// What only the phone knows.
const PART_PLACE: &str = "[PHONE_PART_NUMBER]";
const MODEL_PLACE: &str = "[PHONE_MODEL]";

/// The files that phones begin with, and those that these name.
#[derive(Default)]
pub(super) struct Read {
    pub(super) masters: BTreeSet<String>,
    pub(super) named: BTreeSet<String>,
}

/// Reads as every phone would, `files` being all that lies in the folder, and `url` where phones find it.
pub(super) fn check(shelf: &Shelf<'_>, url: &str, files: &[String], findings: &mut Vec<Finding>) -> Read {
    let mut reading = Reading {
        shelf,
        url,
        files,
        in_any_case: files.iter().map(|file| (file.to_lowercase(), file.as_str())).collect(),
        masters: HashMap::new(),
        looked: HashMap::new(),
        read: Read::default(),
        missing: BTreeMap::new(),
        firmware: BTreeSet::new(),
        found: Vec::new(),
    };
    let phones = phones(shelf);
    let mut without_master = 0_usize;
    for phone in &phones {
        if !reading.as_phone(*phone) {
            without_master += 1;
        }
    }
    if without_master > 0 && shelf.constituency.policy.tls.client_auth != ClientAuth::None {
        let message =
            format!("there is no {COMMON}, and phones without a file of their own find nothing to begin with");
        findings.push(shelf.finding(Level::Note, "", message));
    }
    reading.finish(phones.len(), findings)
}

/// The phones that are let in by name; where none is, somebody without a name.
fn phones(shelf: &Shelf<'_>) -> Vec<Option<MacAddress>> {
    let constituency = shelf.constituency;
    let known = constituency.known_phones().into_iter().filter(|mac| constituency.standing(*mac) == Standing::Known);
    let known: Vec<_> = known.map(Some).collect();
    let is_open = constituency.policy.tls.client_auth == ClientAuth::None || constituency.policy.phones == Phones::Any;
    if known.is_empty() || is_open { vec![None] } else { known }
}

/// Something that a master configuration names and phones do not get.
#[derive(Debug, Default)]
struct Missing {
    phones: Vec<MacAddress>,
}

/// Where something is missing: the master configuration, the line, the attribute, what stands there, and why.
type Place = (String, u32, String, String, String);

struct Reading<'a> {
    shelf: &'a Shelf<'a>,
    url: &'a str,
    files: &'a [String],
    /// The files in the folder, by their names in lower case.
    in_any_case: HashMap<String, &'a str>,
    /// What each master configuration names; nothing if it cannot be read.
    masters: HashMap<String, Arc<Vec<Named>>>,
    /// What became of paths that are the same for every phone.
    looked: HashMap<String, Option<String>>,
    read: Read,
    missing: BTreeMap<Place, Missing>,
    firmware: BTreeSet<String>,
    found: Vec<Finding>,
}

impl Reading<'_> {
    /// Follows one phone; gives whether there is something for it to begin with.
    fn as_phone(&mut self, phone: Option<MacAddress>) -> bool {
        let own = phone.map(|mac| format!("{mac}.cfg"));
        for file in own.into_iter().chain([COMMON.to_owned()]) {
            let known = self.masters.get(&file).cloned();
            let Some(named) = known.or_else(|| self.open(&file, phone)) else { continue };
            self.masters.insert(file.clone(), Arc::clone(&named));
            self.follow(&file, &named, phone);
            return true;
        }
        false
    }

    /// What `file` names, if it is there: nothing where it cannot be read, and that is said.
    fn open(&mut self, file: &str, phone: Option<MacAddress>) -> Option<Arc<Vec<Named>>> {
        let path = ServedPath::parse(&format!("/{file}")).ok()?;
        let named = match self.shelf.find(&path, phone) {
            Found::Absent => return None,
            Found::NotServed(reason) => Err((Level::Warning, format!("phones do not get it: {reason}"))),
            Found::Regular(opened) => {
                let spelling = self.spelling(file).to_owned();
                self.read.masters.insert(spelling);
                everything_named(opened)
            }
        };
        let said = |(level, message)| self.found.push(self.shelf.finding(level, file, message));
        Some(Arc::new(named.map_err(said).unwrap_or_default()))
    }

    /// How `file` is spelt in the folder.
    fn spelling<'b>(&'b self, file: &'b str) -> &'b str {
        match self.files.binary_search_by(|other| other.as_str().cmp(file)) {
            Ok(_) => file,
            Err(_) => self.in_any_case.get(&file.to_lowercase()).copied().unwrap_or(file),
        }
    }

    fn follow(&mut self, file: &str, named: &[Named], phone: Option<MacAddress>) {
        let models: BTreeSet<&str> = named.iter().filter_map(|named| named.model.as_deref()).collect();
        for one in named {
            // Who speaks to all speaks to those models for which nobody speaks.
            let has_own = |model: &str| {
                named.iter().any(|other| other.attribute == one.attribute && other.model.as_deref() == Some(model))
            };
            let models: Vec<&str> = match &one.model {
                Some(model) => vec![model],
                None => models.iter().copied().filter(|model| !has_own(model)).collect(),
            };
            for path in &one.paths {
                match one.attribute.as_str() {
                    "CONFIG_FILES" => self.entry(file, one, path, &models, phone),
                    "APP_FILE_PATH" if path.contains('[') => {}
                    "APP_FILE_PATH" => drop(self.firmware.insert(path.clone())),
                    _ => self.directory(file, one, path, phone),
                }
            }
        }
    }

    /// One entry of `CONFIG_FILES`.
    fn entry(&mut self, file: &str, named: &Named, path: &str, models: &[&str], phone: Option<MacAddress>) {
        if path.contains(PART_PLACE) {
            return;
        }
        let paths: Vec<String> = if path.contains(MODEL_PLACE) {
            models.iter().map(|model| with_model(path, model)).collect()
        } else {
            vec![path.to_owned()]
        };
        for path in paths {
            let problem = match (self.here(&path), MAC_PLACES.iter().any(|place| path.contains(place)), phone) {
                (Err(problem), ..) => problem,
                (Ok(here), false, _) => self.look_once(&here, phone),
                (Ok(here), true, Some(mac)) => self.look(&with_mac(&here, mac), phone),
                (Ok(_), true, None) if self.shelf.constituency.policy.tls.client_auth == ClientAuth::None => {
                    Some("which is never served where nobody is asked who they are".to_owned())
                }
                (Ok(_), true, None) => None,
            };
            let Some(problem) = problem else { continue };
            let attribute = attribute(named);
            let shown = if has_password_in_url(&path) { "a URL".to_owned() } else { path };
            let missing = self.missing.entry((file.to_owned(), named.line, attribute, shown, problem)).or_default();
            missing.phones.extend(phone);
        }
    }

    /// The path below our own URL; for one of another server, what is wrong with it, or nothing.
    fn here(&self, path: &str) -> Result<String, Option<String>> {
        if let Some(here) = path.strip_prefix(self.url) {
            return Ok(here.to_owned());
        }
        match path.split_once("://") {
            None => Ok(path.to_owned()),
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => Err(None),
            Some(_) => Err(Some("which whoever is on the way can read and change: it comes without TLS".to_owned())),
        }
    }

    fn look_once(&mut self, path: &str, phone: Option<MacAddress>) -> Option<String> {
        if let Some(known) = self.looked.get(path) {
            return known.clone();
        }
        let problem = self.look(path, phone);
        self.looked.insert(path.to_owned(), problem.clone());
        problem
    }

    /// What is wrong with `path` for `phone`.
    fn look(&mut self, path: &str, phone: Option<MacAddress>) -> Option<String> {
        let served = match ServedPath::parse(&format!("/{path}")) {
            Ok(served) if !served.names_folder() => served,
            Ok(_) => return Some("which is a folder".to_owned()),
            Err(error) => return Some(format!("which cannot be asked for: {error}")),
        };
        match self.shelf.find(&served, phone) {
            Found::Regular(_) => {
                let spelling = self.spelling(served.as_str()).to_owned();
                self.read.named.insert(spelling);
                None
            }
            Found::NotServed(reason) => Some(format!("which phones do not get: {reason}")),
            Found::Absent => Some(match self.in_any_case.get(&served.as_str().to_lowercase()) {
                Some(other) => format!("which is not there, but {other} is: case counts"),
                None => "which is not there".to_owned(),
            }),
        }
    }

    /// A folder in which phones keep their own files: they must be able to upload there.
    fn directory(&mut self, file: &str, named: &Named, directory: &str, phone: Option<MacAddress>) {
        if self.shelf.constituency.policy.uploads.is_none() || directory.contains("://") || directory.contains('[') {
            return;
        }
        let Some(mac) = phone else { return };
        let upload = in_directory(directory, &format!("{mac}-app.log"));
        let problem = match ServedPath::parse(&format!("/{upload}")) {
            Err(error) => error.to_string(),
            Ok(path) => match UploadName::of(&path, mac) {
                Err(error) => error.to_string(),
                Ok(_) => return,
            },
        };
        let problem = format!("where uploads are refused: {problem}");
        let place = (file.to_owned(), named.line, attribute(named), directory.to_owned(), problem);
        self.missing.entry(place).or_default();
    }

    /// Says what was found for `phones` in all.
    fn finish(mut self, phones: usize, findings: &mut Vec<Finding>) -> Read {
        for ((file, line, attribute, path, problem), missing) in std::mem::take(&mut self.missing) {
            let is_own = MAC_PLACES.iter().any(|place| path.contains(place));
            let who = match missing.phones.as_slice() {
                all if all.is_empty() || !is_own => String::new(),
                all if all.len() == phones && phones > 1 => format!(" (for all {phones} phones)"),
                all => format!(" (for {})", some_of(all)),
            };
            let message = format!("{attribute} names {path}, {problem}{who}");
            self.found.push(self.shelf.finding(Level::Warning, &format!("{file}:{line}"), message));
        }
        report(self.shelf, std::mem::take(&mut self.found), "findings about master configurations", findings);
        for path in self.firmware.iter().filter(|path| !self.has_firmware(path)) {
            let message = format!("the firmware {path} is not here; phones keep the one they have");
            findings.push(self.shelf.finding(Level::Note, "", message));
        }
        self.read
    }

    /// Whether the image itself or a split one (`<part number>.sip.ld`) stands where the master configuration says. It is
    /// Polycom's and does not ship: that it is missing is a note, not an error.
    fn has_firmware(&self, path: &str) -> bool {
        if path.contains("://") {
            return true;
        }
        let path = self.shelf.folder().join(path.trim_start_matches('/'));
        let name = path.file_name().map(|name| format!(".{}", name.to_string_lossy())).unwrap_or_default();
        let is_split = |entry: fs::DirEntry| entry.file_name().to_string_lossy().ends_with(&name);
        path.is_file()
            || path
                .parent()
                .and_then(|folder| fs::read_dir(folder).ok())
                .is_some_and(|entries| entries.flatten().any(is_split))
    }
}

/// What the master configuration `opened` names, or how bad it is that nobody knows.
fn everything_named(opened: File) -> Result<Vec<Named>, (Level, String)> {
    match read(opened) {
        Content::Unreadable(error) => Err((Level::Warning, format!("cannot be read: {error}"))),
        Content::TooLarge => {
            Err((Level::Error, format!("is larger than {} MiB, which is no master configuration", LARGEST >> 20)))
        }
        Content::Bytes(bytes) => master::everything_named(&bytes).map_err(|error| {
            let level = if matches!(error, MasterError::NotText(_)) { Level::Warning } else { Level::Error };
            (level, format!("{error}; phones that begin with it are not provisioned"))
        }),
    }
}

/// The attribute as it stands there.
fn attribute(named: &Named) -> String {
    named.model.as_ref().map_or_else(|| named.attribute.clone(), |model| format!("{}_{model}", named.attribute))
}
