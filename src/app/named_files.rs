//! The files that a phone's master configuration names, and those of them that the constituency's folder lacks.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::admin::snapshot::NamedFiles;
use crate::constituency::{ConstituencyName, MacAddress};
use crate::phone_config::{FileReference, MasterConfiguration, PhoneNames, Text, XmlFile, in_directory};
use crate::serve::path::{self, ServedPath};

/// The largest master configuration that is read.
const MAX_MASTER_BYTES: u64 = 4 << 20;

/// The phone whose files are checked.
pub struct Phone<'a> {
    pub constituency: &'a ConstituencyName,
    pub mac: MacAddress,
    /// The model as in the User-Agent, if the phone was seen.
    pub model: Option<&'a str>,
    /// The folder of the phone's master configuration, from the URL path.
    pub directory: &'a str,
}

impl Phone<'_> {
    /// The files that the phone's master configuration names, in the folder `constituencies`. `None` if there is no
    /// master configuration or it names none: a `<mac>.cfg` that names none is a parameter file, and all that the phone
    /// needs.
    #[must_use]
    pub fn named_files(&self, constituencies: &Path) -> Option<NamedFiles> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(constituencies, flags, Mode::empty()).ok()?;
        let masters = [format!("{}.cfg", self.mac), "000000000000.cfg".to_owned()];
        let (master, file) = masters.iter().find_map(|name| {
            let master = in_directory(self.directory, name);
            let file = self.open(root.as_fd(), &master)?;
            Some((master, file))
        })?;
        let read = self.read(file)?;
        // A URL leads to another server, which is not checked.
        let paths = read.config_files.into_iter().chain(read.other_files).filter(|path| !path.contains("://"));
        let files: Vec<String> = paths.map(|path| in_directory(self.directory, path.trim_start_matches('/'))).collect();
        let is_missing = |file: &&String| self.open(root.as_fd(), file).is_none();
        let missing: Vec<String> = files.iter().filter(is_missing).cloned().collect();
        (!files.is_empty()).then_some(NamedFiles { master, files, missing })
    }

    fn read(&self, file: File) -> Option<MasterConfiguration> {
        let mut bytes = Vec::new();
        file.take(MAX_MASTER_BYTES).read_to_end(&mut bytes).ok()?;
        let text = Text::decode(&bytes).ok()?;
        let named = FileReference::all_in(&XmlFile::read(&text).ok()?);
        let model = self.model.map(|model| model.replace('_', ""));
        Some(MasterConfiguration::of(&named, &PhoneNames { mac: Some(self.mac), model, part_number: None }))
    }

    /// The regular file that the server serves to the phone under `asked`.
    fn open(&self, root: BorrowedFd<'_>, asked: &str) -> Option<File> {
        let path = ServedPath::parse(&format!("/{asked}")).ok()?;
        let spellings = [path.as_str().to_owned()].into_iter().chain(path.other_cases(self.mac));
        spellings.filter(|spelling| !path::is_hidden(spelling)).find_map(|spelling| {
            // NONBLOCK: open() of a FIFO would wait for a writer.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
            let opened = openat2(root, format!("{}/{spelling}", self.constituency), flags, Mode::empty(), resolve);
            let file = File::from(opened.ok()?);
            file.metadata().is_ok_and(|metadata| metadata.is_file()).then_some(file)
        })
    }
}

/// The served path of a request target.
#[must_use]
pub fn served_path(target: &str) -> Option<String> {
    ServedPath::parse(target).ok().map(|path| path.as_str().to_owned())
}

/// The folder of the master configuration that the phone `mac` requested last. `paths` are its requests, newest first.
#[must_use]
pub fn directory<'a>(mut paths: impl Iterator<Item = &'a str>, mac: MacAddress) -> Option<&'a str> {
    paths.find_map(|path| {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let own = MacAddress::from_hex(name.strip_suffix(".cfg")?.as_bytes())?;
        (own == mac || own == MacAddress::ZERO).then_some(folder)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: &str = "00005e00530c";

    fn named(files: &[(&str, &str)], model: Option<&str>, directory: &str) -> Option<NamedFiles> {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join("ote").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            #[expect(clippy::disallowed_methods, reason = "files of a test's own")]
            std::fs::write(path, text).unwrap();
        }
        let constituency = "ote".parse().unwrap();
        Phone { constituency: &constituency, mac: MAC.parse().unwrap(), model, directory }.named_files(root.path())
    }

    #[test]
    fn missing_files_come_from_the_phones_own_master() {
        let common = "<APPLICATION CONFIG_FILES='[PHONE_MAC_ADDRESS]-user.cfg, /site.cfg, https://h/x.cfg'>
                      <V CONFIG_FILES_VVX500='v.cfg'/></APPLICATION>";
        let files = [("000000000000.cfg", common), ("site.cfg", "<s/>"), ("a/000000000000.cfg", common)];
        let user = format!("{MAC}-user.cfg");
        let found = named(&files, None, "").unwrap();
        assert_eq!((found.files, found.missing), (vec![user.clone(), "site.cfg".to_owned()], vec![user]));
        let found = named(&files, Some("VVX_500"), "").unwrap();
        assert_eq!(found.text().unwrap(), "all files that 000000000000.cfg names for it are missing: v.cfg");
        let found = named(&files, None, "a").unwrap();
        assert_eq!((found.master.as_str(), found.missing.len()), ("a/000000000000.cfg", 2));
        let upper = [&files[..], &[("00005E00530C-user.cfg", "<u/>")]].concat();
        assert_eq!(named(&upper, None, "").unwrap().text(), None);
        let own = [&files[..], &[("00005e00530c.cfg", "<polycomConfig reg.1.address='1'/>")]].concat();
        assert_eq!(named(&own, None, ""), None, "a parameter file is all that the phone needs");
        assert_eq!(named(&[("site.cfg", "<s/>")], None, ""), None);
    }

    #[test]
    fn directory_is_that_of_the_last_master() {
        let mac = MAC.parse().unwrap();
        let paths = ["x/site.cfg", "a/b/00005E00530C.cfg", "000000000000.cfg"];
        assert_eq!(directory(paths.into_iter(), mac), Some("a/b"));
        assert_eq!(directory(paths[2..].iter().copied(), mac), Some(""));
        assert_eq!(directory(["00005e0053aa.cfg"].into_iter(), mac), None);
    }
}
