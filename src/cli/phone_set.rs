//! The phones that a command is about: those on the command line, or those of a file in the format of `phones.csv`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{print_line, replace_controls};
use crate::constituency::edit::AllowedPhone;
use crate::constituency::{MacAddress, PhoneFile};
use crate::wording::counted;

/// The file name that stands for standard input.
const STANDARD_INPUT: &str = "-";
/// How many phones a message names.
const NAMED: usize = 10;

/// The phones of a command, as typed.
#[derive(Debug, clap::Args)]
pub(super) struct PhoneArgs {
    /// The phones.
    #[arg(value_name = "MAC", required_unless_present = "from")]
    pub(super) macs: Vec<MacAddress>,
    /// Take the phones from this list instead, in the format of phones.csv; - is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "macs")]
    pub(super) from: Option<PathBuf>,
}

/// The phones of a command, sorted and without duplicates.
pub(super) enum PhoneSet {
    Typed(Vec<MacAddress>),
    File(PhoneFile),
}

impl PhoneArgs {
    /// Reads the file if there is one.
    pub(super) fn read(&self) -> anyhow::Result<PhoneSet> {
        let name = self.file_name();
        match &self.from {
            Some(file) if file == Path::new(STANDARD_INPUT) => {
                Ok(PhoneSet::File(PhoneFile::read(io::stdin().lock(), name.as_ref())?))
            }
            Some(file) => {
                let opened = File::open(file).with_context(|| format!("{name}: cannot be read"))?;
                Ok(PhoneSet::File(PhoneFile::read(opened, name.as_ref())?))
            }
            None => {
                let mut macs = self.macs.clone();
                macs.sort_unstable();
                macs.dedup();
                Ok(PhoneSet::Typed(macs))
            }
        }
    }

    /// The name of the file in messages.
    pub(super) fn file_name(&self) -> String {
        match &self.from {
            Some(file) if file != Path::new(STANDARD_INPUT) => replace_controls(&file.display().to_string()),
            _ => "standard input".to_owned(),
        }
    }
}

impl PhoneSet {
    /// The phones, each with `note`, else with its note in the file.
    pub(super) fn phones<'a>(&'a self, note: Option<&'a str>) -> Vec<AllowedPhone<'a>> {
        match self {
            Self::Typed(macs) => macs.iter().map(|mac| AllowedPhone { mac: *mac, note }).collect(),
            Self::File(file) => {
                file.phones().map(|phone| AllowedPhone { note: note.or(phone.note), ..phone }).collect()
            }
        }
    }
}

/// A phone, or a number of phones.
pub(super) fn phones_text(macs: &[MacAddress]) -> String {
    match macs {
        [mac] => mac.to_string(),
        macs => counted(macs.len(), "phone"),
    }
}

/// The first of `items`, and how many more there are.
pub(super) fn first_of(items: &[String], separator: &str) -> String {
    let mut first: Vec<String> = items.iter().take(NAMED).cloned().collect();
    let more = items.len().saturating_sub(NAMED);
    first.extend((more > 0).then(|| format!("and {more} more")));
    first.join(separator)
}

/// Prints a line for each phone.
pub(super) fn print_each(macs: &[MacAddress], line: impl Fn(MacAddress) -> String) {
    if !macs.is_empty() {
        let lines: Vec<String> = macs.iter().map(|mac| replace_controls(&line(*mac))).collect();
        print_line(&lines.join("\n"));
    }
}
