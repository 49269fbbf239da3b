//! The master configuration: what a phone is told to fetch, and where it keeps its own files. Pure.
//!
//! `<mac>.cfg` or, failing that, `000000000000.cfg` holds an `APPLICATION` element. Its attributes speak to every
//! phone; the same attribute with a model behind it (`CONFIG_FILES_VVX500`), usually on a child element of that model
//! (`APPLICATION_VVX500`), speaks to that model alone and wins. Placeholders such as `[PHONE_MAC_ADDRESS]` are the
//! phone's to fill in.

use super::model::Phone;
use crate::constituency::MacAddress;

/// The most attributes that an element may have: some more than there are parameters.
const MOST_ATTRIBUTES: usize = 10_000;

/// A master configuration as one phone reads it: per-model attributes chosen, placeholders filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterConfiguration {
    /// Where this phone's firmware image lies, if any is named.
    pub firmware: Option<String>,
    /// The parameter files, the strongest first.
    pub config_files: Vec<String>,
    /// The folders, relative to the server's URL, in which the phone keeps its own files.
    pub directories: Directories,
}

/// Where a phone keeps each kind of its own files; an empty text is the folder of the master configuration.
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

/// Why a file is no master configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MasterError {
    /// Not text.
    #[error("it is not UTF-8 text (byte {0}); save it as UTF-8")]
    NotText(usize),
    /// Not XML.
    #[error("it is not well-formed XML: {0}")]
    NotXml(String),
    /// An element that only reading would take ages: each attribute is compared with all others of its element.
    #[error("one of its elements has more than {MOST_ATTRIBUTES} attributes, as no phone's configuration has")]
    Crowded,
    /// XML of another kind, a parameter file perhaps.
    #[error("its root element is {0:?} where a master configuration has APPLICATION")]
    NotMaster(String),
}

impl MasterConfiguration {
    /// Reads `bytes` as `phone` does.
    pub fn parse(bytes: &[u8], phone: &Phone) -> Result<Self, MasterError> {
        let document = parse_master(bytes)?;
        let root = document.root_element();
        let reader = Reader { root, phone, model: phone.configuration_model() };
        Ok(Self {
            firmware: Some(reader.attribute("APP_FILE_PATH"))
                .filter(|path| !path.is_empty())
                .map(|path| firmware_image(&path, &phone.part_number)),
            config_files: split_list(&reader.attribute("CONFIG_FILES")),
            directories: Directories {
                logs: reader.attribute("LOG_FILE_DIRECTORY"),
                overrides: reader.attribute("OVERRIDES_DIRECTORY"),
                contacts: reader.attribute("CONTACTS_DIRECTORY"),
                licenses: reader.attribute("LICENSE_DIRECTORY"),
                call_lists: reader.attribute("CALL_LISTS_DIRECTORY"),
            },
        })
    }
}

/// Whether `bytes` are a parameter file that a phone can read: any well-formed XML is.
pub fn check_parameter_file(bytes: &[u8]) -> Result<(), MasterError> {
    parse_xml(bytes).map(drop)
}

/// Shows `visit` every parameter of a parameter file: name, value, and, for whom it interests, its line.
pub fn each_parameter(bytes: &[u8], mut visit: impl FnMut(&str, &str, &dyn Fn() -> u32)) -> Result<(), MasterError> {
    let document = parse_xml(bytes)?;
    for element in document.descendants() {
        for attribute in element.attributes() {
            let line = || document.text_pos_at(attribute.range().start).row;
            visit(attribute.name(), attribute.value(), &line);
        }
    }
    Ok(())
}

/// What one attribute of a master configuration names, for whichever phone: placeholders stand as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The attribute, without the model: `CONFIG_FILES`.
    pub attribute: String,
    /// The model that it speaks to; `None`: all that have none of their own.
    pub model: Option<String>,
    /// Where it stands.
    pub line: u32,
    /// What it names: one path, or several in `CONFIG_FILES`.
    pub paths: Vec<String>,
}

/// Every attribute of a master configuration that names files or folders.
pub fn everything_named(bytes: &[u8]) -> Result<Vec<Named>, MasterError> {
    let document = parse_master(bytes)?;
    let root = document.root_element();
    let mut all = Vec::new();
    for element in root.descendants() {
        for attribute in element.attributes() {
            let Some((name, model)) = ATTRIBUTES.iter().find_map(|name| {
                let rest = attribute.name().strip_prefix(name)?;
                let model = rest.strip_prefix('_').filter(|model| !model.is_empty()).map(str::to_owned);
                (model.is_some() || rest.is_empty() && element == root).then_some((*name, model))
            }) else {
                continue;
            };
            let paths = match name {
                "CONFIG_FILES" => split_list(attribute.value()),
                _ => Some(attribute.value().trim().to_owned()).filter(|path| !path.is_empty()).into_iter().collect(),
            };
            let line = document.text_pos_at(attribute.range().start).row;
            all.push(Named { attribute: name.to_owned(), model, line, paths });
        }
    }
    Ok(all)
}

/// The attributes that name something, those of uploads last.
const ATTRIBUTES: [&str; 7] = [
    "APP_FILE_PATH",
    "CONFIG_FILES",
    "LOG_FILE_DIRECTORY",
    "OVERRIDES_DIRECTORY",
    "CONTACTS_DIRECTORY",
    "CALL_LISTS_DIRECTORY",
    "COREFILE_DIRECTORY",
];

/// `path` with the phone's own address where a master configuration leaves room for it.
#[must_use]
pub fn with_mac(path: &str, mac: MacAddress) -> String {
    let mac = mac.to_string();
    path.replace("[PHONE_MAC_ADDRESS]", &mac).replace("[MACADDRESS]", &mac)
}

/// `path` with a model where a master configuration leaves room for it.
#[must_use]
pub fn with_model(path: &str, model: &str) -> String {
    path.replace("[PHONE_MODEL]", model)
}

/// `file` in `directory`, as a phone joins them.
#[must_use]
pub fn in_directory(directory: &str, file: &str) -> String {
    match directory {
        "" => file.to_owned(),
        _ if directory.ends_with('/') => format!("{directory}{file}"),
        _ => format!("{directory}/{file}"),
    }
}

/// One phone's view of the elements.
struct Reader<'a, 'input> {
    root: roxmltree::Node<'a, 'input>,
    phone: &'a Phone,
    model: String,
}

impl Reader<'_, '_> {
    /// The attribute that counts for this phone: its model's wherever it stands, else everybody's, else empty.
    fn attribute(&self, name: &str) -> String {
        let for_model = format!("{name}_{}", self.model);
        let of_model = self.root.descendants().find_map(|element| element.attribute(for_model.as_str()));
        self.fill_in(of_model.or_else(|| self.root.attribute(name)).unwrap_or_default().trim())
    }

    fn fill_in(&self, text: &str) -> String {
        with_model(&with_mac(text, self.phone.mac), &self.model).replace("[PHONE_PART_NUMBER]", &self.phone.part_number)
    }
}

fn parse_xml(bytes: &[u8]) -> Result<roxmltree::Document<'_>, MasterError> {
    let text = std::str::from_utf8(bytes).map_err(|error| MasterError::NotText(error.valid_up_to()))?;
    // No `<` stands within a tag.
    let attributes = |tag: &str| tag.bytes().filter(|byte| *byte == b'=').count();
    if text.split('<').any(|tag| attributes(tag) > MOST_ATTRIBUTES) {
        return Err(MasterError::Crowded);
    }
    roxmltree::Document::parse(text).map_err(|error| MasterError::NotXml(error.to_string()))
}

fn parse_master(bytes: &[u8]) -> Result<roxmltree::Document<'_>, MasterError> {
    let document = parse_xml(bytes)?;
    let name = document.root_element().tag_name().name();
    if name != "APPLICATION" {
        return Err(MasterError::NotMaster(name.chars().take(64).collect()));
    }
    Ok(document)
}

fn split_list(list: &str) -> Vec<String> {
    list.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
}

/// Split images are named by part number and stand beside the name that the configuration gives.
fn firmware_image(path: &str, part_number: &str) -> String {
    let file_starts = path.rfind('/').map_or(0, |slash| slash + 1);
    let (folder, file) = path.split_at(file_starts);
    format!("{folder}{part_number}.{file}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASTER: &str = r#"<?xml version="1.0" standalone="yes"?>
        <APPLICATION APP_FILE_PATH="sip.ld" CONFIG_FILES="[PHONE_MAC_ADDRESS]-user.cfg , , site.cfg"
            LOG_FILE_DIRECTORY="logs" OVERRIDES_DIRECTORY="/overrides/" CONTACTS_DIRECTORY="c/[PHONE_MODEL]">
          <APPLICATION_VVX500 APP_FILE_PATH_VVX500="firmware/5.9.7/sip.ld" CONFIG_FILES_VVX501="wrong.cfg"/>
          <APPLICATION_SPIP550 CONFIG_FILES_SPIP550="[MACADDRESS].[PHONE_PART_NUMBER].cfg"/>
        </APPLICATION>"#;

    fn phone(model: &str) -> Phone {
        Phone { model: model.to_owned(), ..Phone::new("00005e00530c".parse().unwrap()) }
    }

    #[test]
    fn a_phone_reads_its_models_part_and_fills_in_its_own_names() {
        let master = MasterConfiguration::parse(MASTER.as_bytes(), &phone("VVX_500")).unwrap();
        assert_eq!(master.firmware.as_deref(), Some("firmware/5.9.7/3111-44500-001.sip.ld"));
        assert_eq!(master.config_files, ["00005e00530c-user.cfg", "site.cfg"]);
        assert_eq!(master.directories.logs, "logs");
        assert_eq!(master.directories.contacts, "c/VVX500");
        assert_eq!(in_directory(&master.directories.overrides, "x"), "/overrides/x");
        assert_eq!(in_directory(&master.directories.logs, "x"), "logs/x");
        assert_eq!(in_directory(&master.directories.licenses, "x"), "x");
    }

    #[test]
    fn another_model_reads_another_part() {
        let master = MasterConfiguration::parse(MASTER.as_bytes(), &phone("SPIP_550")).unwrap();
        assert_eq!(master.firmware.as_deref(), Some("3111-44500-001.sip.ld"));
        assert_eq!(master.config_files, ["00005e00530c.3111-44500-001.cfg"]);
    }

    #[test]
    fn everything_that_is_named_is_listed_with_its_model_and_line() {
        let all = everything_named(MASTER.as_bytes()).unwrap();
        let named: Vec<(&str, Option<&str>, u32)> =
            all.iter().map(|it| (it.attribute.as_str(), it.model.as_deref(), it.line)).collect();
        assert_eq!(
            named,
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
        assert!(everything_named(b"<polycomConfig/>").is_err());
    }

    #[test]
    fn each_parameter_is_seen_once_wherever_it_stands() {
        let mut seen = Vec::new();
        let text = b"<a x.y=\"1\">\n  <b z=\"&amp;2\"/>\n</a>";
        each_parameter(text, |name, value, line| seen.push(format!("{}:{name}={value}", line()))).unwrap();
        assert_eq!(seen, ["1:x.y=1", "2:z=&2"]);
        assert!(each_parameter(b"<a", |_, _, _| ()).is_err());
    }

    #[test]
    fn a_part_number_is_put_before_the_name_even_if_one_is_there() {
        assert_eq!(firmware_image("3111-44500-001.sip.ld", "3111-44500-001"), "3111-44500-001.3111-44500-001.sip.ld");
        assert_eq!(firmware_image("https://h/a/sip.ld", "p"), "https://h/a/p.sip.ld");
    }

    #[test]
    fn an_empty_master_configuration_asks_for_nothing() {
        let master = MasterConfiguration::parse(b"<APPLICATION/>", &phone("VVX_500")).unwrap();
        assert_eq!((master.firmware, master.config_files), (None, vec![]));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let error = |bytes: &[u8]| MasterConfiguration::parse(bytes, &phone("VVX_500")).unwrap_err();
        assert_eq!(error(b"<APPLICATION \xff/>"), MasterError::NotText(13));
        assert!(matches!(error(b"<APPLICATION a=''"), MasterError::NotXml(_)));
        assert!(matches!(error(b"<APPLICATION A='1' A='2'/>"), MasterError::NotXml(_)));
        assert_eq!(error(b"<polycomConfig/>"), MasterError::NotMaster("polycomConfig".to_owned()));
    }

    #[test]
    fn nesting_is_bounded_by_an_error_and_not_by_the_stack() {
        let deep = "<APPLICATION>".repeat(200_000);
        assert!(MasterConfiguration::parse(deep.as_bytes(), &phone("VVX_500")).is_err());
        let deep = "<APPLICATION>".repeat(200_000) + &"</APPLICATION>".repeat(200_000);
        let _ = MasterConfiguration::parse(deep.as_bytes(), &phone("VVX_500"));
    }

    #[test]
    fn an_element_with_too_many_attributes_is_not_read() {
        let of = |count: u32| format!("<a {}/>", (0..count).map(|number| format!("p{number}='' ")).collect::<String>());
        assert_eq!(check_parameter_file(of(9_000).as_bytes()), Ok(()));
        assert_eq!(check_parameter_file(of(10_001).as_bytes()), Err(MasterError::Crowded));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = MasterConfiguration::parse(&bytes, &phone("VVX_500"));
        }

        #[test]
        fn no_attribute_panics(value in r#"[^"<&]{0,60}"#, model in ".{0,12}") {
            let text = format!(r#"<APPLICATION APP_FILE_PATH="{value}" CONFIG_FILES="{value}"/>"#);
            let _ = MasterConfiguration::parse(text.as_bytes(), &phone(&model));
        }
    }
}
