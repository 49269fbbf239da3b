//! `provost constituency`: lists constituencies, and makes new ones.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use rustix::fs::{FileType, Stat};
use serde_json::{Value, json};

use super::audit::{entry, record};
use super::{ConfigArg, code, print_error, print_json, print_line, registry_of, replace_controls};
use crate::audit::AuditAction;
use crate::clock;
use crate::config::Config;
use crate::constituency::file_names::NameRules;
use crate::constituency::scan::NOT_SERVED;
use crate::constituency::{
    ClientAuth, Constituency, ConstituencyName, Fault, ListedPhones, POLICY_FILE, Phones, Registry, Severity, edit,
};
use crate::serve::path::is_hidden;
use crate::state::{Draft, Entry, FolderHandle, draft_name};
use crate::wording::counted;

/// The name prefix of a new constituency until it is complete.
const STAGING: &str = ".new-";

/// Constituencies.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List constituencies with the number of their phones, and faulty folders.
    List {
        /// Print JSON, one object per line: `name`, `served` (by a server that starts now), and `problems` with `severity` and
        /// `message`; for a served one also `url`, `description`, `aliases`, `client_auth`, and `phones` (their number; null if
        /// any phone is accepted).
        #[arg(long)]
        json: bool,
    },
    /// Make a constituency: a folder, empty or with the common files of another constituency.
    Add {
        /// The name, a DNS label.
        #[arg(value_name = "NAME")]
        name: ConstituencyName,
        /// Copy policy and files of this constituency, except those that name a phone; link its shared folders [default: an
        /// empty folder, with the default policy].
        #[arg(long, value_name = "OTHER")]
        from: Option<ConstituencyName>,
    },
}

pub(super) fn run(command: &Command, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    let config = config.find()?;
    // Server-wide denials affect neither the list nor the copy.
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
            Phones::Listed(_) => counted(constituency.count_known_phones(), "phone"),
        };
        let name = constituency.name.as_str();
        print_line(&format_args!(
            "{}",
            format!("{name:<width$}  {phones:>12}  {}", replace_controls(&policy.description)).trim_end()
        ));
    }
    for fault in registry.faults() {
        print_error(&replace_controls(&format!("{}: {}", fault.subject, explained(fault))));
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
        let phones = (policy.phones != Phones::Any).then(|| constituency.count_known_phones());
        let client_auth = match policy.tls.client_auth {
            ClientAuth::Required => "required",
            ClientAuth::Digest => "digest",
            ClientAuth::None => "none",
        };
        print_json(&json!({
            "name": name, "served": true, "url": config.url(name), "description": policy.description,
            "aliases": policy.aliases, "client_auth": client_auth, "phones": phones,
            "problems": problems.remove(name).unwrap_or_default(),
        }));
    }
    for (name, problems) in problems {
        print_json(&json!({ "name": name, "served": false, "problems": problems }));
    }
}

/// The fault's message. A running server may still have a valid policy in memory, which a restart loses.
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

/// Every folder whose name is a constituency name, served or not.
pub(super) fn folders(constituencies: &Path) -> anyhow::Result<Vec<ConstituencyName>> {
    let mut names = Vec::new();
    let entries = FolderHandle::open_through_links(constituencies).and_then(|folder| folder.entries());
    for Entry { name, kind } in entries.with_context(|| constituencies.display().to_string())? {
        let name = name.to_str().and_then(|name| name.parse().ok());
        names.extend(name.filter(|_| kind == FileType::Directory));
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
                .by_folder(from.as_str())
                .with_context(|| format!("constituency {from} not found, or not served"))?,
        ),
    };
    let cannot = || format!("cannot make {name} in {}", root.display());
    let all = FolderHandle::open_through_links(root).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            anyhow!("no folder of constituencies; make it with mkdir -p {}", root.display())
        }
        _ => anyhow!("{}: {error}", root.display()),
    })?;
    if all.has(name.as_str())? {
        bail!("constituency {name} already exists in {}", root.display());
    }
    all.sweep(STAGING, clock::now());
    // Made in the same folder under a name that is not served, so that no phone sees an incomplete constituency.
    let staging = draft_name(STAGING);
    let made = all.make_folder(&staging).with_context(cannot)?;
    let filled = other.map_or(Ok(0), |other| Copy { other, listed: registry.listed() }.fill(&all, &made));
    let filled = filled.with_context(|| format!("cannot copy {}", from.map_or("it", |from| from.as_str())));
    let finished = filled.and_then(|count| {
        made.set_mode(all.mode()?).and_then(|()| all.rename_to_new(&staging, name.as_str())).with_context(cannot)?;
        all.sync().with_context(cannot)?;
        Ok(count)
    });
    let count = finished.inspect_err(|_| drop(all.remove_all(&staging)))?;
    let detail = from.map(|from| format!("as {from}")).unwrap_or_default();
    record(&config.state, &[entry(AuditAction::ConstituencyAdded).of(name).detail(detail)]);
    let files = counted(count, "file");
    let url = config.url(name.as_str());
    print_line(&format_args!("{url} has {files}; to allow a phone, run provost allow MAC --constituency {name}"));
    Ok(())
}

/// Copies the files that are common to all phones of another constituency.
struct Copy<'a> {
    other: &'a Constituency,
    listed: &'a ListedPhones,
}

impl Copy<'_> {
    /// Fills the folder `to` from the other constituency's folder in `all`. Returns the number of files.
    fn fill(&self, all: &FolderHandle, to: &FolderHandle) -> io::Result<usize> {
        let from = all.folder(self.other.name.as_str())?;
        let count = self.copy(&from, to, "")?;
        let is_there = from.stat(POLICY_FILE).is_ok_and(|stat| kind_of(&stat) == FileType::RegularFile);
        if is_there {
            let mut file = from.open_file(POLICY_FILE).map_err(within(POLICY_FILE))?;
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            let text = edit::template(&text).map_err(io::Error::other)?;
            store(&mut text.as_bytes(), file.metadata()?.mode(), to, POLICY_FILE.as_ref())?;
        }
        Ok(count)
    }

    /// Copies the folder `from`, whose path in the constituency is `path`. Returns the number of files.
    fn copy(&self, from: &FolderHandle, to: &FolderHandle, path: &str) -> io::Result<usize> {
        let mut count = 0;
        for Entry { name, kind } in from.entries()? {
            let text = name.to_string_lossy();
            let path = if path.is_empty() { text.clone().into_owned() } else { format!("{path}/{text}") };
            if is_hidden(&path) {
                continue;
            }
            let is_common = NameRules::reading(self.listed, self.other).check(&path, None).is_ok();
            match kind {
                FileType::Symlink if is_common => to.put_link(from.link_target(&name)?, &name)?,
                FileType::Directory if self.other.policy.shared.contains(&path) => {
                    to.put_link(Path::new("..").join(self.other.name.as_str()).join(&name), &name)?;
                }
                FileType::Directory => {
                    let source = from.folder(&name)?;
                    let target = to.make_folder(&name)?;
                    let copied = self.copy(&source, &target, &path)?;
                    count += copied;
                    target.set_mode(source.mode()? & 0o777)?;
                    // A phone's own folder is kept only if it contains a common file.
                    if !is_common && copied == 0 && target.entries()?.is_empty() {
                        to.remove_all(&name)?;
                    }
                }
                FileType::RegularFile if is_common => {
                    let mut source = from.open_file(&name).map_err(within(&path))?;
                    let mode = source.metadata()?.mode();
                    store(&mut source, mode, to, &name)?;
                    count += 1;
                }
                _ => {}
            }
        }
        Ok(count)
    }
}

/// Writes a file without execute and setuid bits: a setuid program would run as its new owner.
fn store(source: &mut impl Read, mode: u32, to: &FolderHandle, name: &OsStr) -> io::Result<()> {
    let mut draft = Draft::new(to, STAGING)?;
    io::copy(source, &mut draft.file)?;
    draft.set_mode(mode & 0o666)?;
    draft.put(name)
}

fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Adds `path` to an error.
fn within(path: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", replace_controls(path)))
}
