//! The user of the service. Root can read more than that user, so `check` run as root becomes that user first.
//!
//! 1. `User=` in `provost.service`, if that unit uses this configuration. The unit and its drop-ins are read by the
//!    rules of systemd.unit(5), because systemd may not be running.
//! 2. Else the owner of the state directory.
//! 3. Else the user is unknown, and root checks as root.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Result as IoResult;
use rustix::thread::{Gid, Uid, set_thread_gid, set_thread_groups, set_thread_uid};

use crate::config::Config;

/// The folders in which systemd looks for units. The first that has one wins.
const UNIT_FOLDERS: [&str; 5] = [
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];
const UNIT: &str = "provost.service";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServiceUser {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    /// Where the user was found.
    pub(super) source: String,
    /// Folders that the unit hides from the service, each with the setting.
    pub(super) hidden: Vec<(&'static str, String)>,
}

impl ServiceUser {
    /// The user of the service of `config`; `None` if unknown, or root. `root` is the root of the file system.
    ///
    /// # Errors
    /// If the unit names a user or a group that does not exist.
    pub(super) fn find(root: &Path, config: &Config) -> Result<Option<Self>, String> {
        if let Some(unit) = Unit::read(root).filter(|unit| unit.is_of(config)) {
            return unit.user();
        }
        let Ok(state) = fs::metadata(&config.state) else { return Ok(None) };
        let source = format!("the owner of {}", config.state.display());
        let user = Account::find(&state.uid().to_string()).map_or_else(
            || Self {
                name: state.uid().to_string(),
                uid: state.uid(),
                gid: state.gid(),
                groups: vec![state.gid()],
                source: source.clone(),
                hidden: Vec::new(),
            },
            |account| account.service_user(account.gid, &[], source.clone()),
        );
        Ok(Some(user).filter(|user| user.uid != 0))
    }

    /// Makes this thread, and threads that it starts later, run as this user.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn assume(&self) -> IoResult<()> {
        let groups: Vec<Gid> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        set_thread_groups(&groups)?;
        set_thread_gid(Gid::from_raw(self.gid))?;
        set_thread_uid(Uid::from_raw(self.uid))
    }
}

/// A user of the system's databases (passwd(5), or the sources in nsswitch.conf(5)).
struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

impl Account {
    /// Finds a user by name or number.
    fn find(key: &str) -> Option<Self> {
        let fields = entry("passwd", key)?;
        Some(Self { name: fields[0].clone(), uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? })
    }

    /// The user of a service with this group and these supplementary groups.
    fn service_user(&self, gid: u32, supplementary: &[u32], source: String) -> ServiceUser {
        let own = output("id", &["-G", "--", &self.name]).unwrap_or_default();
        let own = own.split_whitespace().filter_map(|gid| gid.parse().ok());
        // systemd sets the group of Group= instead of the user's own.
        let mut groups: Vec<u32> = own.filter(|own| *own != self.gid).chain([gid]).collect();
        groups.extend(supplementary);
        groups.sort_unstable();
        groups.dedup();
        ServiceUser { name: self.name.clone(), uid: self.uid, gid, groups, source, hidden: Vec::new() }
    }
}

/// The name of a user, or else its number.
pub(super) fn user_name(uid: u32) -> String {
    Account::find(&uid.to_string()).map_or_else(|| uid.to_string(), |account| account.name)
}

/// The name of a group, or else its number.
pub(super) fn group_name(gid: u32) -> String {
    entry("group", &gid.to_string()).map_or_else(|| gid.to_string(), |fields| fields[0].clone())
}

fn group_number(name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| entry("group", name)?.get(2)?.parse().ok())
}

/// The fields of a database entry, at least one.
fn entry(database: &str, key: &str) -> Option<Vec<String>> {
    let line = output("getent", &["--", database, key])?;
    Some(line.lines().next()?.split(':').map(str::to_owned).collect())
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let ended = Command::new(program).args(arguments).output().ok()?;
    ended.status.success().then(|| String::from_utf8_lossy(&ended.stdout).into_owned())
}

/// The settings in the `[Service]` section of a unit and its drop-ins. Later settings override earlier ones.
#[derive(Debug)]
struct Unit {
    path: PathBuf,
    settings: Vec<(String, String)>,
}

impl Unit {
    fn read(root: &Path) -> Option<Self> {
        let folders = || UNIT_FOLDERS.iter().map(|folder| root.join(folder));
        let path = folders().map(|folder| folder.join(UNIT)).find(|path| path.is_file())?;
        let mut texts = vec![fs::read_to_string(&path).ok()?];
        for of in ["service.d".to_owned(), format!("{UNIT}.d")] {
            // Of two drop-ins with the same name, the one in the first folder wins.
            let mut drop_ins: BTreeMap<_, PathBuf> = BTreeMap::new();
            for entry in folders().filter_map(|folder| fs::read_dir(folder.join(&of)).ok()).flatten().flatten() {
                if entry.path().extension().is_some_and(|extension| extension == "conf") {
                    drop_ins.entry(entry.file_name()).or_insert_with(|| entry.path());
                }
            }
            texts.extend(drop_ins.values().filter_map(|path| fs::read_to_string(path).ok()));
        }
        Some(Self { path, settings: texts.iter().flat_map(|text| settings(text)).collect() })
    }

    /// The last value of `key`.
    fn value(&self, key: &str) -> Option<&str> {
        self.values(key).last().copied()
    }

    /// The values of `key`. An empty value resets the list.
    fn values(&self, key: &str) -> Vec<&str> {
        let mut values = Vec::new();
        for (_, value) in self.settings.iter().filter(|(own, _)| own == key) {
            if value.is_empty() { values.clear() } else { values.push(value.as_str()) }
        }
        values
    }

    /// Whether the unit starts the server with this configuration.
    fn is_of(&self, config: &Config) -> bool {
        let Some(file) = config.file.as_ref().and_then(|file| file.canonicalize().ok()) else { return false };
        let words = self.value("ExecStart").and_then(shlex::split).unwrap_or_default();
        let pairs = words.iter().zip(words.iter().skip(1));
        let after = pairs.filter(|(word, _)| *word == "--config").map(|(_, file)| file.as_str());
        let joined = words.iter().filter_map(|word| word.strip_prefix("--config="));
        let named = after.chain(joined).next().map(|named| named.replace("%%", "%").replace("$$", "$"));
        named.and_then(|named| Path::new(&named).canonicalize().ok()).is_some_and(|named| named == file)
    }

    fn user(&self) -> Result<Option<ServiceUser>, String> {
        let path = self.path.display();
        let Some(name) = self.value("User") else { return Ok(None) };
        let absent =
            |what: &str, name: &str| format!("unknown {what} {name} in {path}; run provost install, or create it");
        let account = Account::find(name).ok_or_else(|| absent("user", name))?;
        let group = |name: &str| group_number(name).ok_or_else(|| absent("group", name));
        let gid = self.value("Group").map_or(Ok(account.gid), group)?;
        let supplementary = self.values("SupplementaryGroups");
        let supplementary = supplementary.iter().flat_map(|names| names.split_whitespace());
        let supplementary = supplementary.map(group).collect::<Result<Vec<u32>, String>>()?;
        let found = account.service_user(gid, &supplementary, format!("User= in {path}"));
        Ok(Some(ServiceUser { hidden: self.hidden(), ..found }).filter(|user| user.uid != 0))
    }

    fn hidden(&self) -> Vec<(&'static str, String)> {
        let is_on = |key: &str, words: &[&str]| {
            self.value(key).is_some_and(|value| words.iter().any(|word| value.eq_ignore_ascii_case(word)))
        };
        let mut hidden = Vec::new();
        if is_on("ProtectHome", &["yes", "true", "on", "1", "tmpfs"]) {
            hidden.extend(["/home", "/root", "/run/user"].map(|folder| ("ProtectHome=", folder.to_owned())));
        }
        if is_on("PrivateTmp", &["yes", "true", "on", "1", "disconnected"]) {
            hidden.extend(["/tmp", "/var/tmp"].map(|folder| ("PrivateTmp=", folder.to_owned())));
        }
        for list in self.values("InaccessiblePaths") {
            let paths = list.split_whitespace().map(|path| path.trim_start_matches(['-', '+']));
            hidden.extend(paths.map(|path| ("InaccessiblePaths=", path.to_owned())));
        }
        hidden
    }
}

/// The settings in the `[Service]` section of the text of a unit.
fn settings(text: &str) -> Vec<(String, String)> {
    let text = text.replace("\\\n", " ");
    let mut is_service = false;
    let mut settings = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if line.starts_with('[') {
            is_service = line == "[Service]";
        } else if let Some((key, value)) = line.split_once('=').filter(|_| is_service) {
            settings.push((key.trim().to_owned(), value.trim().to_owned()));
        }
    }
    settings
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "units of a test's own")]
mod tests {
    use super::*;

    /// A root with these files, and a configuration in it.
    fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, Config) {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{ "domain": "phones.example.com", "certificate": { "local_ca": {} }, "state": "state" }"#;
        let config = folder.path().join("provost.json");
        fs::write(&config, text).unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content.replace("CONFIG", &config.display().to_string())).unwrap();
        }
        let config = Config::read(&config).unwrap();
        (folder, config)
    }

    fn unit(user: &str) -> String {
        format!("[Unit]\nUser=another\n[Service]\nExecStart=/usr/bin/provost serve \\\n  --config CONFIG\n{user}\n")
    }

    #[test]
    fn unit_with_drop_ins_names_user_and_groups() {
        let (folder, config) = root(&[
            ("usr/lib/systemd/system/provost.service", &unit("User=root")),
            ("etc/systemd/system/provost.service", &unit("User=daemon\nProtectHome=yes\nPrivateTmp=yes")),
            (
                "etc/systemd/system/provost.service.d/20.conf",
                "[Service]\nSupplementaryGroups=adm\nProtectHome=read-only\n",
            ),
            (
                "run/systemd/system/provost.service.d/10.conf",
                "[Service]\nUser=\nUser=nobody\nSupplementaryGroups=tty\n",
            ),
            ("usr/lib/systemd/system/provost.service.d/20.conf", "[Service]\nUser=root\n"),
        ]);
        let user = ServiceUser::find(folder.path(), &config).unwrap().unwrap();
        assert_eq!((user.name.as_str(), user.uid), ("nobody", 65534));
        let has = |name: &str| user.groups.contains(&group_number(name).unwrap());
        assert!(has("adm") && has("tty") && user.groups.contains(&user.gid), "{user:?}");
        assert!(user.source.ends_with("etc/systemd/system/provost.service"), "{user:?}");
        let hidden: Vec<&str> = user.hidden.iter().map(|(_, folder)| folder.as_str()).collect();
        assert_eq!(hidden, ["/tmp", "/var/tmp"]);
    }

    #[test]
    fn unit_of_another_configuration_is_ignored() {
        let other = unit("User=nobody").replace("CONFIG", "/etc/hostname");
        let (folder, config) = root(&[("etc/systemd/system/provost.service", &other)]);
        assert_eq!(ServiceUser::find(folder.path(), &config), Ok(None), "there is no state yet");
        fs::create_dir(&config.state).unwrap();
        let owner = fs::metadata(&config.state).unwrap().uid();
        let found = ServiceUser::find(folder.path(), &config).unwrap();
        assert_eq!(found.map(|user| user.uid), Some(owner).filter(|uid| *uid != 0));
    }

    #[test]
    fn unknown_user_or_group_of_the_unit_is_an_error() {
        for setting in ["User=no-such-user", "User=nobody\nGroup=no-such-group"] {
            let (folder, config) = root(&[("etc/systemd/system/provost.service", &unit(setting))]);
            let error = ServiceUser::find(folder.path(), &config).unwrap_err();
            assert!(error.contains("no-such-") && error.contains("provost install"), "{error}");
        }
        let (folder, config) = root(&[("etc/systemd/system/provost.service", &unit("User=0"))]);
        assert_eq!(ServiceUser::find(folder.path(), &config), Ok(None), "root needs no other");
    }
}
