//! `provost constituency`: which ones there are, and a new one.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use rustix::fs::{CWD, RenameFlags};

use super::{ConfigArg, code, complain, say, shown};
use crate::clock;
use crate::config::Config;
use crate::constituency::scan::Scanner;
use crate::constituency::{Constituency, ConstituencyName, POLICY_FILE, Phones, Registry, Severity, edit};
use crate::serve::path::{is_hidden, macs_in};
use crate::state;

/// Constituencies.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List constituencies with their phones, and what is wrong with folders.
    List {
        #[command(flatten)]
        config: ConfigArg,
    },
    /// Make a new one: a folder, with what is common to all phones of another if one is named.
    Add {
        /// Its name, which is a DNS label.
        #[arg(value_name = "NAME")]
        name: ConstituencyName,
        #[command(flatten)]
        config: ConfigArg,
        /// Take policy and files from this one, but none that names a phone; folders that it shares are linked.
        #[arg(long, value_name = "OTHER")]
        from: Option<ConstituencyName>,
    },
}

pub(super) fn run(command: &Command) -> anyhow::Result<ExitCode> {
    let (Command::List { config } | Command::Add { config, .. }) = command;
    let config = Config::find(config.config.as_deref())?;
    let registry = Scanner::new(config.constituencies.clone(), config.bundle_names()).scan(clock::now());
    Ok(match command {
        Command::List { .. } => list(&registry),
        Command::Add { name, from, .. } => code(add(&config, &registry, name, from.as_ref())),
    })
}

fn list(registry: &Registry) -> ExitCode {
    let width = registry.served().map(|constituency| constituency.name.as_str().len()).max().unwrap_or(0);
    for constituency in registry.served() {
        let policy = &constituency.policy;
        let phones = match (&policy.phones, constituency.known_phones().len()) {
            (Phones::Any, _) => "any phone".to_owned(),
            (Phones::Listed(_), 1) => "1 phone".to_owned(),
            (Phones::Listed(_), count) => format!("{count} phones"),
        };
        let name = constituency.name.as_str();
        say(&format_args!("{}", format!("{name:<width$}  {phones:>12}  {}", shown(&policy.description)).trim_end()));
    }
    for fault in registry.faults() {
        complain(&shown(&format!("{}: {}", fault.subject, fault.message)));
    }
    let has_errors = registry.faults().iter().any(|fault| fault.severity == Severity::Error);
    if has_errors { ExitCode::FAILURE } else { ExitCode::SUCCESS }
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
    let parent = fs::metadata(root).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            anyhow!("there is no folder of constituencies; make it: mkdir -p {}", root.display())
        }
        _ => anyhow!("{}: {error}", root.display()),
    })?;
    if fs::symlink_metadata(root.join(name.as_str())).is_ok() {
        bail!("there is a constituency {name} already, in {}", root.display());
    }
    // Made beside its place, under a name that is not served, so that no phone sees half of it.
    let staging =
        tempfile::Builder::new().prefix(".new-").tempdir_in(root).with_context(|| root.display().to_string())?;
    let filled = other.map_or(Ok(0), |other| Copy { root, other, owner: &parent }.fill(staging.path()));
    let count = filled.with_context(|| format!("{} could not be copied", from.map_or("it", |from| from.as_str())))?;
    finish(staging.path(), &root.join(name.as_str()), &parent)
        .with_context(|| format!("{name} cannot be made in {}", root.display()))?;
    // It has another name now, under which nothing is to be removed.
    let _ = staging.keep();
    let files = if count == 1 { "1 file".to_owned() } else { format!("{count} files") };
    let url = config.url(name.as_str());
    say(&format_args!("{url} has {files}; provost allow MAC --constituency {name} lets a phone in"));
    Ok(())
}

/// Gives the folder that was made the mode and owner of those around it, and its name, unless something has that name.
fn finish(staging: &Path, place: &Path, parent: &Metadata) -> io::Result<()> {
    fs::set_permissions(staging, parent.permissions())?;
    give(staging, parent)?;
    rustix::fs::renameat_with(CWD, staging, CWD, place, RenameFlags::NOREPLACE)?;
    state::sync_folder(place.parent().unwrap_or(Path::new(".")))
}

/// Copies what is common to all phones of another constituency.
struct Copy<'a> {
    root: &'a Path,
    other: &'a Constituency,
    owner: &'a Metadata,
}

impl Copy<'_> {
    /// Fills the folder `to`, and gives the number of files.
    fn fill(&self, to: &Path) -> io::Result<usize> {
        let from = self.root.join(self.other.name.as_str());
        let count = self.copy(&from, to, true)?;
        let Ok(policy) = fs::read_to_string(from.join(POLICY_FILE)) else { return Ok(count) };
        let policy = edit::for_others(&policy).map_err(io::Error::other)?;
        let file = to.join(POLICY_FILE);
        fs::copy(from.join(POLICY_FILE), &file)?;
        fs::File::options()
            .write(true)
            .truncate(true)
            .open(&file)
            .and_then(|mut file| io::Write::write_all(&mut file, policy.as_bytes()))?;
        give(&file, self.owner)?;
        Ok(count)
    }

    fn copy(&self, from: &Path, to: &Path, is_top: bool) -> io::Result<usize> {
        let mut count = 0;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_hidden(&name) || macs_in(&name).next().is_some() {
                continue;
            }
            let (source, target) = (entry.path(), to.join(entry.file_name()));
            let kind = entry.file_type()?;
            if kind.is_symlink() {
                symlink(fs::read_link(&source)?, &target)?;
            } else if kind.is_dir() && is_top && self.other.policy.shared.contains(&name) {
                symlink(PathBuf::from("..").join(self.other.name.as_str()).join(&name), &target)?;
            } else if kind.is_dir() {
                fs::create_dir(&target)?;
                count += self.copy(&source, &target, false)?;
                fs::set_permissions(&target, entry.metadata()?.permissions())?;
            } else if kind.is_file() {
                fs::copy(&source, &target)?;
                count += 1;
            } else {
                continue;
            }
            give(&target, self.owner)?;
        }
        Ok(count)
    }
}

/// Makes `path` the owner's, where it is not already: root makes it for others.
fn give(path: &Path, owner: &Metadata) -> io::Result<()> {
    let made = fs::symlink_metadata(path)?;
    if made.uid() == owner.uid() && made.gid() == owner.gid() || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    lchown(path, Some(owner.uid()), Some(owner.gid()))
}
