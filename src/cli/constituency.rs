//! `provost constituency`: which ones there are, and a new one.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use serde_json::{Value, json};

use super::{ConfigArg, code, complain, registry_of, say, shown};
use crate::config::Config;
use crate::constituency::file_names::NameRules;
use crate::constituency::scan::NOT_SERVED;
use crate::constituency::{
    ClientAuth, Constituency, ConstituencyName, Fault, ListedPhones, POLICY_FILE, Phones, Registry, Severity, edit,
};
use crate::serve::path::is_hidden;
use crate::wording::counted;

/// Constituencies.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List constituencies with their phones, and what is wrong with folders.
    List {
        /// As JSON, one object per line: `name`, `served` (by a server that starts now), and `problems` with `severity` and
        /// `message`; of one that is served
        /// `url`, `description`, `aliases`, `client_auth`, and `phones` (their number; null if any phone is admitted).
        #[arg(long)]
        json: bool,
    },
    /// Make a new one: a folder, with what is common to all phones of another if one is named.
    Add {
        /// Its name, which is a DNS label.
        #[arg(value_name = "NAME")]
        name: ConstituencyName,
        /// Take policy and files from this one, but none that names a phone; folders that it shares are linked [default: an
        /// empty folder, with the default policy].
        #[arg(long, value_name = "OTHER")]
        from: Option<ConstituencyName>,
    },
}

pub(super) fn run(command: &Command, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    let config = config.find()?;
    // Whom it denies changes neither the list nor what is copied.
    let registry = registry_of(&config, Arc::default());
    Ok(match command {
        Command::List { json } => list(&config, &registry, *json),
        Command::Add { name, from } => code(add(&config, &registry, name, from.as_ref())),
    })
}

fn list(config: &Config, registry: &Registry, as_json: bool) -> ExitCode {
    if as_json {
        list_json(config, registry);
    } else {
        list_text(registry);
    }
    let has_errors = registry.faults().iter().any(|fault| fault.severity == Severity::Error);
    if has_errors { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn list_text(registry: &Registry) {
    let width = registry.served().map(|constituency| constituency.name.as_str().len()).max().unwrap_or(0);
    for constituency in registry.served() {
        let policy = &constituency.policy;
        let phones = match &policy.phones {
            Phones::Any => "any phone".to_owned(),
            Phones::Listed(_) => counted(constituency.known_phones().len(), "phone"),
        };
        let name = constituency.name.as_str();
        say(&format_args!("{}", format!("{name:<width$}  {phones:>12}  {}", shown(&policy.description)).trim_end()));
    }
    for fault in registry.faults() {
        complain(&shown(&format!("{}: {}", fault.subject, explained(fault))));
    }
}

fn list_json(config: &Config, registry: &Registry) {
    let mut problems: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for fault in registry.faults() {
        let severity = match fault.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let problem = json!({ "severity": severity, "message": explained(fault) });
        problems.entry(&fault.subject).or_default().push(problem);
    }
    for constituency in registry.served() {
        let (name, policy) = (constituency.name.as_str(), &constituency.policy);
        let phones = (policy.phones != Phones::Any).then(|| constituency.known_phones().len());
        let client_auth = match policy.tls.client_auth {
            ClientAuth::Required => "required",
            ClientAuth::Digest => "digest",
            ClientAuth::None => "none",
        };
        say(&json!({
            "name": name, "served": true, "url": config.url(name), "description": policy.description,
            "aliases": policy.aliases, "client_auth": client_auth, "phones": phones,
            "problems": problems.remove(name).unwrap_or_default(),
        }));
    }
    for (name, problems) in problems {
        say(&json!({ "name": name, "served": false, "problems": problems }));
    }
}

/// What is wrong. A server that runs may have a policy in memory that does not count at its next start.
fn explained(fault: &Fault) -> String {
    match fault.message.split_once(&format!(" ({NOT_SERVED}")) {
        Some((problem, rest)) => {
            format!(
                "{problem} (a running server keeps the last good policy, if it had one; {NOT_SERVED} after a restart{rest}"
            )
        }
        None => fault.message.clone(),
    }
}

/// Every folder that is a constituency by its name, served or not.
pub(super) fn folders(constituencies: &Path) -> anyhow::Result<Vec<ConstituencyName>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(constituencies).with_context(|| constituencies.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().parse();
        names.extend(name.ok().filter(|_| entry.file_type().is_ok_and(|kind| kind.is_dir())));
    }
    names.sort();
    Ok(names)
}

fn add(
    config: &Config,
    registry: &Registry,
    name: &ConstituencyName,
    from: Option<&ConstituencyName>,
) -> anyhow::Result<()> {
    let root = &config.constituencies;
    if let Some(holder) = registry.find(name.as_str()).filter(|holder| holder.name != *name) {
        bail!("{name} is an alias of {}; remove it there first", holder.name);
    }
    let other = match from {
        None => None,
        Some(from) => Some(
            registry
                .served()
                .find(|other| other.name == *from)
                .with_context(|| format!("there is no constituency {from} that can be served"))?,
        ),
    };
    // Folder by folder by handles: whoever owns them could put links in place of what is copied or made.
    let folder = File::open(root).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            anyhow!("there is no folder of constituencies; make it: mkdir -p {}", root.display())
        }
        _ => anyhow!("{}: {error}", root.display()),
    })?;
    let parent = folder.metadata()?;
    if fs::symlink_metadata(root.join(name.as_str())).is_ok() {
        bail!("there is a constituency {name} already, in {}", root.display());
    }
    // Made beside its place, under a name that is not served, so that no phone sees half of it.
    let staging =
        tempfile::Builder::new().prefix(".new-").tempdir_in(root).with_context(|| root.display().to_string())?;
    let made = staging.path().file_name().map_or(Err(Errno::NOENT), |name| open_folder(&folder, name))?;
    if made.metadata()?.uid() != rustix::process::geteuid().as_raw() {
        bail!("somebody else has taken the place of {}", staging.path().display());
    }
    let filled =
        other.map_or(Ok(0), |other| Copy { other, listed: registry.listed(), owner: &parent }.fill(&folder, &made));
    let count = filled.with_context(|| format!("{} could not be copied", from.map_or("it", |from| from.as_str())))?;
    finish(&folder, staging.path(), &made, name, &parent)
        .with_context(|| format!("{name} cannot be made in {}", root.display()))?;
    // It has another name now, under which nothing is to be removed.
    let _ = staging.keep();
    let files = counted(count, "file");
    let url = config.url(name.as_str());
    say(&format_args!("{url} has {files}; provost allow MAC --constituency {name} lets a phone in"));
    Ok(())
}

/// Gives the folder that was made the mode and owner of those around it, and its name, unless something has that name.
fn finish(folder: &File, staging: &Path, made: &File, name: &ConstituencyName, parent: &Metadata) -> io::Result<()> {
    give(made, parent.mode() & 0o7777, parent)?;
    let staging = staging.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    rustix::fs::renameat_with(folder, staging, folder, name.as_str(), RenameFlags::NOREPLACE)?;
    folder.sync_all()
}

/// Copies what is common to all phones of another constituency.
struct Copy<'a> {
    other: &'a Constituency,
    listed: &'a ListedPhones,
    owner: &'a Metadata,
}

impl Copy<'_> {
    /// Fills the folder `to` from that of the other in `root`, and gives the number of files.
    fn fill(&self, root: &File, to: &File) -> io::Result<usize> {
        let from = open_folder(root, self.other.name.as_str().as_ref())?;
        let count = self.copy(&from, to, "")?;
        let policy = OsStr::new(POLICY_FILE);
        let Some(mut file) = open_regular(&from, policy)? else { return Ok(count) };
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let text = edit::for_others(&text).map_err(io::Error::other)?;
        self.store(&mut text.as_bytes(), file.metadata()?.mode(), to, policy)?;
        Ok(count)
    }

    /// Copies the folder `from`, which lies under `path` in the constituency.
    fn copy(&self, from: &File, to: &File, path: &str) -> io::Result<usize> {
        let mut count = 0;
        for entry in Dir::read_from(from)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            let text = name.to_string_lossy();
            let path = if path.is_empty() { text.clone().into_owned() } else { format!("{path}/{text}") };
            if is_hidden(&path) {
                continue;
            }
            let is_common = NameRules::reading(self.listed, self.other).check(&path, None).is_ok();
            let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink if is_common => {
                    let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                    self.link(Path::new(OsStr::from_bytes(target.as_bytes())), to, name)?;
                }
                FileType::Directory if self.other.policy.shared.contains(&path) => {
                    self.link(&Path::new("..").join(self.other.name.as_str()).join(name), to, name)?;
                }
                FileType::Directory => {
                    let source = open_folder(from, name)?;
                    rustix::fs::mkdirat(to, name, Mode::RWXU)?;
                    let target = open_folder(to, name)?;
                    count += self.copy(&source, &target, &path)?;
                    give(&target, source.metadata()?.mode() & 0o777, self.owner)?;
                    // A phone's own folder: it stays only if it has a file that is common.
                    if !is_common
                        && !matches!(rustix::fs::unlinkat(to, name, AtFlags::REMOVEDIR), Ok(()) | Err(Errno::NOTEMPTY))
                    {
                        return Err(io::Error::other(format!("{path} cannot be removed again")));
                    }
                }
                FileType::RegularFile if is_common => {
                    let Some(mut source) = open_regular(from, name)? else { continue };
                    let mode = source.metadata()?.mode();
                    self.store(&mut source, mode, to, name)?;
                    count += 1;
                }
                _ => {}
            }
        }
        Ok(count)
    }

    /// Makes a file, which nobody can run: a program that changes who runs it would do so for its new owner.
    fn store(&self, source: &mut impl Read, mode: u32, to: &File, name: &OsStr) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut target = File::from(rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?);
        io::copy(source, &mut target)?;
        give(&target, mode & 0o666, self.owner)
    }

    fn link(&self, target: &Path, to: &File, name: &OsStr) -> io::Result<()> {
        rustix::fs::symlinkat(target, to, name)?;
        let made = rustix::fs::statat(to, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if !is_to_be_given((made.st_uid, made.st_gid), self.owner) {
            return Ok(());
        }
        let (user, group) = (Uid::from_raw(self.owner.uid()), Gid::from_raw(self.owner.gid()));
        Ok(rustix::fs::chownat(to, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

/// Opens the folder `name` in `folder`, if it is no link.
fn open_folder(folder: &File, name: &OsStr) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(folder, name, flags, Mode::empty()).map(File::from)
}

/// Opens the file `name` in `folder`; `None` if there is none, or something else.
fn open_regular(folder: &File, name: &OsStr) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::LOOP) => Ok(None),
        opened => {
            let file = File::from(opened?);
            Ok(file.metadata()?.is_file().then_some(file))
        }
    }
}

/// Gives what was made its mode, and makes it the owner's where it is not already: root makes it for others.
fn give(new: &File, mode: u32, owner: &Metadata) -> io::Result<()> {
    let metadata = new.metadata()?;
    if is_to_be_given((metadata.uid(), metadata.gid()), owner) {
        fchown(new, Some(owner.uid()), Some(owner.gid()))?;
    }
    new.set_permissions(Permissions::from_mode(mode))
}

fn is_to_be_given(made: (u32, u32), owner: &Metadata) -> bool {
    made != (owner.uid(), owner.gid()) && rustix::process::geteuid().is_root()
}
