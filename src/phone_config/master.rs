//! Master configurations: the files that phones fetch, and the folders for their own files.
//!
//! A phone reads `<mac>.cfg`, or `000000000000.cfg` if that is missing. The names are attributes, usually of an
//! `APPLICATION` element, but they are valid in any element: phones accept an `APPLICATION` inside another root, and
//! widely used masters spread the names over child elements. An attribute without a model (`CONFIG_FILES`) is for all
//! phones. The same attribute with a model (`CONFIG_FILES_VVX500`) is for that model and takes precedence. The phone
//! fills in placeholders such as `[PHONE_MAC_ADDRESS]`.
//!
//! A file without such names is a parameter file. If it is `<mac>.cfg`, its phone fetches no other configuration.

use super::xml::XmlFile;
use crate::constituency::MacAddress;

/// The kind of thing that an attribute names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReferenceKind {
    /// A firmware image.
    Firmware,
    /// Files, separated by commas, that the phone fetches at boot.
    Files,
    /// A folder to which the phone uploads files of its own.
    UploadDirectory,
    /// A folder from which the phone only reads.
    ReadDirectory,
}

const ATTRIBUTES: [(&str, ReferenceKind); 14] = [
    ("APP_FILE_PATH", ReferenceKind::Firmware),
    ("DECT_FILE_PATH", ReferenceKind::Firmware),
    ("CONFIG_FILES", ReferenceKind::Files),
    ("MISC_FILES", ReferenceKind::Files),
    ("SERVICE_FILES", ReferenceKind::Files),
    ("LOG_FILE_DIRECTORY", ReferenceKind::UploadDirectory),
    ("OVERRIDES_DIRECTORY", ReferenceKind::UploadDirectory),
    ("CONTACTS_DIRECTORY", ReferenceKind::UploadDirectory),
    ("CALL_LISTS_DIRECTORY", ReferenceKind::UploadDirectory),
    ("COREFILE_DIRECTORY", ReferenceKind::UploadDirectory),
    ("CERTIFICATE_DIRECTORY", ReferenceKind::UploadDirectory),
    ("FLK_DIRECTORY", ReferenceKind::UploadDirectory),
    ("USER_PROFILES_DIRECTORY", ReferenceKind::ReadDirectory),
    ("LICENSE_DIRECTORY", ReferenceKind::ReadDirectory),
];

/// One attribute with the paths that it names. Placeholders are not filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileReference {
    /// The attribute, without the model: `CONFIG_FILES`.
    pub attribute: &'static str,
    pub what: ReferenceKind,
    /// The model that it is for; `None`: every model without an attribute of its own.
    pub model: Option<String>,
    /// Its line in the file.
    pub line: u32,
    /// The paths: several for [`ReferenceKind::Files`], else at most one.
    pub paths: Vec<String>,
}

/// The values that a phone fills in for placeholders, if known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PhoneNames {
    /// `[PHONE_MAC_ADDRESS]`, `[MACADDRESS]`
    pub mac: Option<MacAddress>,
    /// `[PHONE_MODEL]`, as master configurations write it: `VVX500`.
    pub model: Option<String>,
    /// `[PHONE_PART_NUMBER]`
    pub part_number: Option<String>,
}

/// A master configuration as one phone reads it: attributes chosen for its model, placeholders filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MasterConfiguration {
    /// The path of this phone's firmware image, if one is named.
    pub firmware: Option<String>,
    /// The parameter files. The first has the highest precedence.
    pub config_files: Vec<String>,
    /// Further files: `MISC_FILES`, then `SERVICE_FILES`.
    pub other_files: Vec<String>,
    /// The folders for the phone's own files.
    pub directories: Directories,
}

/// The folder for each kind of the phone's own files. An empty text is the folder of the master configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directories {
    /// `LOG_FILE_DIRECTORY`
    pub logs: String,
    /// `OVERRIDES_DIRECTORY`
    pub overrides: String,
    /// `CONTACTS_DIRECTORY`
    pub contacts: String,
    /// `LICENSE_DIRECTORY`
    pub licenses: String,
    /// `CALL_LISTS_DIRECTORY`
    pub call_lists: String,
}

impl FileReference {
    /// All names in `file`; empty for a parameter file.
    #[must_use]
    pub fn all_in(file: &XmlFile<'_>) -> Vec<Self> {
        let named = file.attributes.iter().filter_map(|attribute| {
            let (name, what, model) = ATTRIBUTES.iter().find_map(|(name, what)| {
                let rest = attribute.name.strip_prefix(name)?;
                let model = rest.strip_prefix('_').filter(|model| !model.is_empty());
                (rest.is_empty() || model.is_some()).then_some((*name, *what, model))
            })?;
            let value = attribute.value.trim();
            let paths: Vec<&str> = if what == ReferenceKind::Files { value.split(',').collect() } else { vec![value] };
            let paths = paths.into_iter().map(str::trim).filter(|path| !path.is_empty()).map(str::to_owned).collect();
            let line = file.line(attribute.at);
            Some(Self { attribute: name, what, model: model.map(str::to_owned), line, paths })
        });
        named.collect()
    }

    /// Whether it is only for phones of `model`.
    #[must_use]
    pub fn is_for(&self, model: &str) -> bool {
        self.model.as_deref().is_some_and(|own| is_same_model(own, model))
    }

    /// The attribute as written in the file.
    #[must_use]
    pub fn attribute_name(&self) -> String {
        self.model.as_ref().map_or_else(|| self.attribute.to_owned(), |model| format!("{}_{model}", self.attribute))
    }
}

/// Whether two spellings mean the same model. A User-Agent writes `VVX_500`, a master configuration `VVX500`.
#[must_use]
pub fn is_same_model(one: &str, other: &str) -> bool {
    fn letters(model: &str) -> impl Iterator<Item = u8> {
        model.bytes().filter(|byte| *byte != b'_').map(|byte| byte.to_ascii_lowercase())
    }
    letters(one).eq(letters(other))
}

/// The attributes `attribute` for a phone of `model`, in order: those for its model, else those for all models. A file
/// may have several elements with the attribute.
#[must_use]
pub fn references_for<'a>(named: &'a [FileReference], attribute: &str, model: Option<&str>) -> Vec<&'a FileReference> {
    let of_attribute = || named.iter().filter(|it| it.attribute == attribute);
    let of_model: Vec<&FileReference> =
        of_attribute().filter(|it| model.is_some_and(|model| it.is_for(model))).collect();
    if of_model.is_empty() { of_attribute().filter(|it| it.model.is_none()).collect() } else { of_model }
}

impl MasterConfiguration {
    /// The master configuration `named` for a phone with these `own` names. Paths with an unknown placeholder are left
    /// out.
    #[must_use]
    pub fn of(named: &[FileReference], own: &PhoneNames) -> Self {
        let paths = |attribute| {
            let chosen = references_for(named, attribute, own.model.as_deref());
            let named = chosen.into_iter().flat_map(|named| &named.paths).filter_map(|path| own.fill_in(path));
            named.fold(Vec::new(), |mut paths: Vec<String>, path| {
                if !paths.contains(&path) {
                    paths.push(path);
                }
                paths
            })
        };
        let one = |attribute| paths(attribute).into_iter().next();
        let directory = |attribute| one(attribute).unwrap_or_default();
        let part_number = own.part_number.as_deref();
        Self {
            firmware: one("APP_FILE_PATH").map(|path| part_number.map_or(path.clone(), |it| firmware_image(&path, it))),
            config_files: paths("CONFIG_FILES"),
            other_files: [paths("MISC_FILES"), paths("SERVICE_FILES")].concat(),
            directories: Directories {
                logs: directory("LOG_FILE_DIRECTORY"),
                overrides: directory("OVERRIDES_DIRECTORY"),
                contacts: directory("CONTACTS_DIRECTORY"),
                licenses: directory("LICENSE_DIRECTORY"),
                call_lists: directory("CALL_LISTS_DIRECTORY"),
            },
        }
    }
}

impl PhoneNames {
    /// `path` with every placeholder filled in; `None` if a value is unknown.
    #[must_use]
    pub fn fill_in(&self, path: &str) -> Option<String> {
        let mac = self.mac.map(|mac| mac.to_string());
        let placeholders = [
            ("[PHONE_MAC_ADDRESS]", mac.as_deref()),
            ("[MACADDRESS]", mac.as_deref()),
            ("[PHONE_MODEL]", self.model.as_deref()),
            ("[PHONE_PART_NUMBER]", self.part_number.as_deref()),
        ];
        placeholders.into_iter().try_fold(path.to_owned(), |path, (placeholder, value)| match value {
            Some(value) => Some(path.replace(placeholder, value)),
            None => Some(path).filter(|path| !path.contains(placeholder)),
        })
    }
}

/// Whether `path` has a placeholder for the phone's MAC address.
#[must_use]
pub fn holds_mac(path: &str) -> bool {
    ["[PHONE_MAC_ADDRESS]", "[MACADDRESS]"].iter().any(|placeholder| path.contains(placeholder))
}

/// Whether `path` has a placeholder for the phone's model.
#[must_use]
pub fn holds_model(path: &str) -> bool {
    path.contains("[PHONE_MODEL]")
}

/// The path of `file` in `directory`, joined as a phone joins them.
#[must_use]
pub fn in_directory(directory: &str, file: &str) -> String {
    match directory {
        "" => file.to_owned(),
        _ if directory.ends_with('/') => format!("{directory}{file}"),
        _ => format!("{directory}/{file}"),
    }
}

/// The path of a split image. Its name is the part number, a dot, and the name in the configuration.
fn firmware_image(path: &str, part_number: &str) -> String {
    let file_starts = path.rfind('/').map_or(0, |slash| slash + 1);
    let (folder, file) = path.split_at(file_starts);
    format!("{folder}{part_number}.{file}")
}

#[cfg(test)]
mod tests {
    use super::super::text::Text;
    use super::*;

    const MASTER: &str = r#"<?xml version="1.0" standalone="yes"?>
        <APPLICATION APP_FILE_PATH="sip.ld" CONFIG_FILES="[PHONE_MAC_ADDRESS]-user.cfg , , site.cfg"
            LOG_FILE_DIRECTORY="logs" OVERRIDES_DIRECTORY="/overrides/" CONTACTS_DIRECTORY="c/[PHONE_MODEL]">
          <APPLICATION_VVX500 APP_FILE_PATH_VVX500="firmware/5.9.7/sip.ld" CONFIG_FILES_VVX501="wrong.cfg"/>
          <APPLICATION_SPIP550 CONFIG_FILES_SPIP550="[MACADDRESS].[PHONE_PART_NUMBER].cfg"/>
        </APPLICATION>"#;

    fn named(text: &str) -> Vec<FileReference> {
        let text = Text::decode(text.as_bytes()).unwrap();
        FileReference::all_in(&XmlFile::read(&text).unwrap())
    }

    fn names(model: &str) -> PhoneNames {
        let (mac, model) = ("00005e00530c".parse().ok(), Some(model.to_owned()));
        PhoneNames { mac, model, part_number: Some("3111-44500-001".to_owned()) }
    }

    fn master(text: &str, model: &str) -> MasterConfiguration {
        MasterConfiguration::of(&named(text), &names(model))
    }

    #[test]
    fn model_attribute_wins_and_placeholders_are_filled_in() {
        let master = master(MASTER, "VVX500");
        assert_eq!(master.firmware.as_deref(), Some("firmware/5.9.7/3111-44500-001.sip.ld"));
        assert_eq!(master.config_files, ["00005e00530c-user.cfg", "site.cfg"]);
        assert_eq!(master.directories.logs, "logs");
        assert_eq!(master.directories.contacts, "c/VVX500");
        assert_eq!(in_directory(&master.directories.overrides, "x"), "/overrides/x");
        assert_eq!(in_directory(&master.directories.logs, "x"), "logs/x");
        assert_eq!(in_directory(&master.directories.licenses, "x"), "x");
    }

    #[test]
    fn attribute_of_several_elements_is_merged_in_order() {
        let text = r#"<X><APPLICATION APP_FILE_PATH="a.ld" CONFIG_FILES="site.cfg, one.cfg"/>
            <APPLICATION APP_FILE_PATH="b.ld" CONFIG_FILES="two.cfg, site.cfg"/>
            <APPLICATION_VVX500 MISC_FILES_VVX500="x.xml"/><APPLICATION_VVX500 MISC_FILES_VVX500="y.xml"/></X>"#;
        let read = master(text, "VVX500");
        assert_eq!(read.config_files, ["site.cfg", "one.cfg", "two.cfg"]);
        assert_eq!(read.firmware.as_deref(), Some("3111-44500-001.a.ld"));
        assert_eq!(read.other_files, ["x.xml", "y.xml"]);
    }

    #[test]
    fn each_model_gets_its_own_attribute() {
        let master = master(MASTER, "SPIP550");
        assert_eq!(master.firmware.as_deref(), Some("3111-44500-001.sip.ld"));
        assert_eq!(master.config_files, ["00005e00530c.3111-44500-001.cfg"]);
    }

    #[test]
    fn all_references_are_listed_with_model_and_line() {
        let all = named(MASTER);
        let listed: Vec<(&str, Option<&str>, u32)> =
            all.iter().map(|it| (it.attribute, it.model.as_deref(), it.line)).collect();
        assert_eq!(
            listed,
            [
                ("APP_FILE_PATH", None, 2),
                ("CONFIG_FILES", None, 2),
                ("LOG_FILE_DIRECTORY", None, 3),
                ("OVERRIDES_DIRECTORY", None, 3),
                ("CONTACTS_DIRECTORY", None, 3),
                ("APP_FILE_PATH", Some("VVX500"), 4),
                ("CONFIG_FILES", Some("VVX501"), 4),
                ("CONFIG_FILES", Some("SPIP550"), 5),
            ]
        );
        assert_eq!(all[1].paths, ["[PHONE_MAC_ADDRESS]-user.cfg", "site.cfg"]);
        assert_eq!(
            (all[1].attribute_name(), all[6].attribute_name()),
            ("CONFIG_FILES".to_owned(), "CONFIG_FILES_VVX501".to_owned())
        );
    }

    #[test]
    fn references_in_any_element_are_found() {
        let spread = r#"<APPLICATION LOG_FILE_DIRECTORY="LOGS">
            <Software APP_FILE_PATH="FW/5.9/sip.ld" MISC_FILES="a.xml"/>
            <Configuration CONFIG_FILES="all.cfg" CONFIG_FILES_Trio8800="trio.cfg" SERVICE_FILES="b.xml, c.xml"/>
            </APPLICATION>"#;
        let read = master(spread, "VVX500");
        assert_eq!(read.firmware.as_deref(), Some("FW/5.9/3111-44500-001.sip.ld"));
        assert_eq!(
            (read.config_files, read.other_files),
            (vec!["all.cfg".to_owned()], vec!["a.xml".to_owned(), "b.xml".to_owned(), "c.xml".to_owned()])
        );
        assert_eq!(read.directories.logs, "LOGS");
        assert_eq!(master(spread, "TRIO_8800").config_files, ["trio.cfg"]);
        for root in ["polycomConfig", "PHONE", "PHONE_CONFIG", "x:y"] {
            let wrapped = format!("<{root}><APPLICATION CONFIG_FILES='x.cfg'/><z up.warningLevel='2'/></{root}>");
            assert_eq!(master(&wrapped, "VVX500").config_files, ["x.cfg"], "{root}");
            assert_eq!(named(&format!("<{root} reg.1.address='1'/>")), [], "{root}");
        }
    }

    #[test]
    fn empty_list_of_a_model_gives_no_files() {
        let text = "<APPLICATION CONFIG_FILES='a.cfg'><A CONFIG_FILES_SPIP320=''/></APPLICATION>";
        assert_eq!(master(text, "SPIP320").config_files, [""; 0]);
        assert_eq!(master(text, "SPIP321").config_files, ["a.cfg"]);
    }

    #[test]
    fn path_with_unknown_placeholder_is_skipped() {
        let text =
            "<A CONFIG_FILES='[PHONE_MODEL].cfg,[PHONE_MAC_ADDRESS].cfg,[PHONE_PART_NUMBER].cfg,a.cfg,[other].cfg'/>";
        let of = |names: PhoneNames| MasterConfiguration::of(&named(text), &names).config_files;
        assert_eq!(of(PhoneNames::default()), ["a.cfg", "[other].cfg"]);
        let mac = PhoneNames { mac: "00005e00530c".parse().ok(), ..PhoneNames::default() };
        assert_eq!(of(mac), ["00005e00530c.cfg", "a.cfg", "[other].cfg"]);
    }

    #[test]
    fn part_number_is_prefixed_even_if_already_there() {
        assert_eq!(firmware_image("3111-44500-001.sip.ld", "3111-44500-001"), "3111-44500-001.3111-44500-001.sip.ld");
        assert_eq!(firmware_image("https://h/a/sip.ld", "p"), "https://h/a/p.sip.ld");
    }

    #[test]
    fn user_agent_model_matches_master_configuration() {
        for (one, other) in [("VVX_500", "VVX500"), ("Trio_8800", "TRIO8800"), ("SPIP_550", "SPIP550")] {
            assert!(is_same_model(one, other));
        }
        assert!(!is_same_model("VVX_500", "VVX501") && !is_same_model("VVX_500", "VVX50"));
    }

    proptest::proptest! {
        #[test]
        fn no_attribute_panics(value in r#"[^"<&\x00]{0,60}"#, model in ".{0,12}") {
            let text = format!(r#"<APPLICATION APP_FILE_PATH="{value}" CONFIG_FILES="{value}"/>"#);
            let _ = master(&text, &model);
        }
    }
}
