//! Checks whether the user of the service can read each file that `provost.json` names, and prints commands that give
//! access.
//!
//! The kernel decides: access is tried as that user. But only root sees the whole path to a file, so root computes the
//! remedies first, from owner, group and mode.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::service::{ServiceUser, group_name, user_name};
use super::{Finding, FindingLevel};
use crate::config::Config;

/// The kernel's limit of symlinks in a path (ELOOP).
const MAX_SYMLINKS: usize = 40;

/// A folder on the path to a file, or the file itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PathComponent {
    path: PathBuf,
    wanted: NeededAccess,
}

/// The access that a component needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum NeededAccess {
    Search,
    Read,
    /// Read a folder and its files.
    List,
}

impl NeededAccess {
    fn access(self) -> Access {
        match self {
            Self::Search => Access::EXEC_OK,
            Self::Read => Access::READ_OK,
            Self::List => Access::READ_OK | Access::EXEC_OK,
        }
    }

    /// The access as mode bits.
    fn bits(self) -> u32 {
        match self {
            Self::Search => 0o1,
            Self::Read => 0o4,
            Self::List => 0o5,
        }
    }

    /// The access in the notation of chmod(1).
    fn letters(self) -> &'static str {
        match self {
            Self::Search => "x",
            Self::Read => "r",
            Self::List => "rx",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Search => "enter the folder",
            Self::Read => "read the file",
            Self::List => "read the folder",
        }
    }
}

/// The commands that give access to each file that the service's user cannot read. Only root can compute them.
#[derive(Debug, Default)]
pub(super) struct Remedies(Vec<(PathBuf, String)>);

/// The files of `config` that this process cannot read.
#[derive(Debug, Default)]
pub(super) struct Unreachable(BTreeSet<PathBuf>);

impl Unreachable {
    pub(super) fn contains(&self, path: &Path) -> bool {
        self.0.contains(path)
    }
}

/// As root: the commands that let `user` read the files of `config`.
pub(super) fn remedies(config: &Config, user: &ServiceUser) -> Remedies {
    let remedy = |path: &Path| Some((path.to_owned(), commands(&components_of(path), user)?));
    Remedies(config.files_named().into_iter().filter_map(remedy).collect())
}

/// Checks access to each file of `config`. `user` is the service's user, if this process runs as it.
pub(super) fn check(
    config: &Config,
    user: Option<&ServiceUser>,
    remedies: &Remedies,
    findings: &mut Vec<Finding>,
) -> Unreachable {
    let mut unreachable = Unreachable::default();
    for path in config.files_named().into_iter().chain([&*config.state]) {
        if let Some((setting, folder)) = user.and_then(|user| inaccessible_by_unit(&user.hidden, path)) {
            let message = format!("the unit makes {folder} inaccessible to the service ({setting})");
            let remedy = "move it, for example to /etc/provost, and change the path in provost.json";
            findings.push(Finding::new(FindingLevel::Error, path.display(), message).with_remedy(remedy));
        }
    }
    for path in config.files_named() {
        let Some(component) = components_of(path).into_iter().find(|component| !is_passable(component)) else {
            continue;
        };
        let who = user.map_or("this user".to_owned(), |user| format!("the service's user {}", user.name));
        let message = format!(
            "permission denied: {who} may not {} {}{}",
            component.wanted.words(),
            component.path.display(),
            permissions_text(&component.path)
        );
        let found = remedies.0.iter().find(|(own, _)| own == path).map(|(_, commands)| commands.clone());
        let remedy =
            found.unwrap_or_else(|| "run provost check as root to print the commands that give access".to_owned());
        findings
            .push(Finding::new(FindingLevel::Error, path.display(), message).with_remedy(remedy).in_file(path, None));
        unreachable.0.insert(path.to_owned());
    }
    unreachable
}

fn inaccessible_by_unit<'a>(hidden: &'a [(&'static str, String)], path: &Path) -> Option<(&'static str, &'a str)> {
    let real = path.canonicalize();
    let lies_in = |folder: &str| path.starts_with(folder) || real.as_ref().is_ok_and(|real| real.starts_with(folder));
    hidden.iter().find(|(_, folder)| lies_in(folder)).map(|(setting, folder)| (*setting, folder.as_str()))
}

/// The components to `path` with symlinks resolved, as far as this process can see them.
fn components_of(path: &Path) -> Vec<PathComponent> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut rest: Vec<PathBuf> = parts(&absolute);
    let (mut at, mut links) = (PathBuf::from("/"), 0);
    let mut components = vec![PathComponent { path: at.clone(), wanted: NeededAccess::Search }];
    while let Some(part) = rest.pop() {
        if part == Path::new("..") {
            at.pop();
            continue;
        }
        let next = at.join(&part);
        let Ok(found) = fs::symlink_metadata(&next) else { break };
        if found.is_symlink() {
            links += 1;
            let Ok(target) = fs::read_link(&next) else { break };
            if links > MAX_SYMLINKS {
                break;
            }
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            rest.extend(parts(&target));
        } else {
            at = next;
            let wanted = match (found.is_dir(), rest.is_empty()) {
                (true, false) => NeededAccess::Search,
                (true, true) => NeededAccess::List,
                (false, _) => NeededAccess::Read,
            };
            components.push(PathComponent { path: at.clone(), wanted });
        }
    }
    components
}

/// The segments of a path in reverse order.
fn parts(path: &Path) -> Vec<PathBuf> {
    let names = path.components().filter(|part| !matches!(part, Component::RootDir | Component::CurDir));
    names.map(|part| PathBuf::from(part.as_os_str())).collect::<Vec<_>>().into_iter().rev().collect()
}

fn is_passable(component: &PathComponent) -> bool {
    accessat(CWD, &component.path, component.wanted.access(), AtFlags::EACCESS).is_ok()
}

/// The commands that give `user` access to all components, by owner, group and mode; `None` if it has access.
fn commands(components: &[PathComponent], user: &ServiceUser) -> Option<String> {
    let mut groups = BTreeSet::new();
    let mut given: BTreeMap<NeededAccess, Vec<String>> = BTreeMap::new();
    for component in components {
        let Ok(found) = fs::metadata(&component.path) else { continue };
        let wanted = component.wanted.bits();
        if may(&found, user, wanted) {
            continue;
        }
        // A group that exists for this purpose, such as ssl-cert.
        if found.mode() >> 3 & wanted == wanted && found.gid() != 0 {
            groups.insert(group_name(found.gid()));
        } else {
            given.entry(component.wanted).or_default().push(quoted(&component.path));
        }
    }
    let mut commands = Vec::new();
    if !given.is_empty() {
        let all: Vec<&str> = given.values().flatten().map(String::as_str).collect();
        commands.push(format!("chgrp {} {}", group_name(user.gid), all.join(" ")));
    }
    commands.extend(given.iter().map(|(wanted, paths)| format!("chmod g+{} {}", wanted.letters(), paths.join(" "))));
    if !groups.is_empty() {
        let groups = groups.into_iter().collect::<Vec<_>>().join(",");
        commands.push(format!("usermod --append --groups {groups} {} && systemctl restart provost", user.name));
    }
    let is_certbot = components.iter().any(|component| component.path.starts_with("/etc/letsencrypt"));
    let hook = if is_certbot { ", or let certbot copy them by the deploy hook in docs/operating.md" } else { "" };
    (!commands.is_empty()).then(|| format!("run {}{hook}", commands.join(" && ")))
}

/// Whether the file's mode gives `user` the three bits `wanted`.
fn may(found: &Metadata, user: &ServiceUser, wanted: u32) -> bool {
    let shift = if found.uid() == user.uid {
        6
    } else if user.groups.contains(&found.gid()) {
        3
    } else {
        0
    };
    found.mode() >> shift & wanted == wanted
}

fn quoted(path: &Path) -> String {
    let path = path.to_string_lossy();
    shlex::try_quote(&path).map_or_else(|_| path.to_string(), std::borrow::Cow::into_owned)
}

/// Mode, owner and group of a file for messages; empty if they are unknown.
fn permissions_text(path: &Path) -> String {
    let Ok(found) = fs::symlink_metadata(path) else { return String::new() };
    let mode = found.permissions().mode() & 0o7777;
    format!(" (mode {mode:04o}, {}:{})", user_name(found.uid()), group_name(found.gid()))
}
