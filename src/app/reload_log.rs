//! Logs changes for the operator: each once when it begins, and once when it ends.

use std::sync::Arc;

use crate::admin::operators::OperatorChanges;
use crate::admin::operators::file::FILE as OPERATORS;
use crate::config::Config;
use crate::constituency::denials::{DenialChanges, FILE as DENIALS};
use crate::constituency::scan::LAST_GOOD;
use crate::constituency::{ConstituencyName, Fault, PHONES_FILE, Severity};
use crate::identity::digest::passwords::PasswordsError;
use crate::identity::trust::{Bundle, BundleError};
use crate::serve::site::Site;
use crate::settings::SettingsError;
use crate::wording::counted;

/// Logs new, changed and removed constituencies, and faults that began or ended.
pub(super) fn log_folders(old: &Site, new: &Site) {
    let (before, after) = (old.registry(), new.registry());
    for constituency in after.served() {
        let name = &constituency.name;
        match before.find(name.as_str()).filter(|before| before.name == *name) {
            None => tracing::info!(constituency = %name, "{name} is served"),
            Some(before) if Arc::ptr_eq(before, constituency) => {}
            Some(_) if ends_connections(old, new, name) => {
                tracing::info!(constituency = %name, "{name}: the TLS part of the policy changed; open connections are closed at their next request");
            }
            Some(before) if before.policy != constituency.policy => {
                tracing::info!(constituency = %name, "{name}: the policy changed");
            }
            Some(before) if before.phone_list() != constituency.phone_list() => {
                let phones = counted(constituency.phone_list().len(), "phone");
                tracing::info!(constituency = %name, "{name}: {PHONES_FILE} changed: {phones}");
            }
            Some(before) if before.known_phones() != constituency.known_phones() => {
                tracing::info!(constituency = %name, "{name}: the known phones changed: those with a <mac>.cfg");
            }
            Some(_) => {}
        }
    }
    for constituency in before.served() {
        let name = &constituency.name;
        if after.find(name.as_str()).is_none_or(|new| new.name != *name) {
            tracing::info!(constituency = %name, "{name} was removed");
        }
    }
    let logged = |faults: &[Fault], fault: &Fault| faults.contains(fault);
    for fault in after.faults().iter().filter(|fault| !logged(before.faults(), fault)) {
        match fault.severity {
            Severity::Error => tracing::error!(constituency = fault.subject, "{}: {}", fault.subject, fault.message),
            Severity::Warning => tracing::warn!(constituency = fault.subject, "{}: {}", fault.subject, fault.message),
        }
    }
    for fault in before.faults().iter().filter(|fault| !logged(after.faults(), fault)) {
        let is_kept = |fault: &Fault| fault.message.contains(LAST_GOOD);
        let is_still_kept = after.faults().iter().any(|other| other.subject == fault.subject && is_kept(other));
        if is_kept(fault) && !is_still_kept && after.find(&fault.subject).is_some() {
            tracing::info!(constituency = fault.subject, "{}: its policy is valid again and in force", fault.subject);
        } else {
            tracing::info!(constituency = fault.subject, "{}: resolved: {}", fault.subject, fault.message);
        }
    }
}

/// Whether connections of `name` end, because the TLS part of the policy changed.
fn ends_connections(old: &Site, new: &Site, name: &ConstituencyName) -> bool {
    let generations = old.get(name).zip(new.get(name));
    generations.is_some_and(|((_, before), (_, after))| !after.has_policy_of(before))
}

/// Logs constituencies whose policy is valid but which cannot be served, and those that are served again.
pub(super) fn log_unusable(before: &Site, after: &Site) {
    for (name, reason) in after.unusable() {
        if !before.unusable().any(|old| old == (name, reason)) {
            tracing::error!(constituency = %name, "{name} is not served: {reason}");
        }
    }
    for (name, _) in before.unusable() {
        if after.get(name).is_some() {
            tracing::info!(constituency = %name, "{name} is served");
        }
    }
}

/// Logs phones that are denied server-wide, or no longer.
pub(super) fn log_denials(changes: &DenialChanges) {
    for (mac, denial) in &changes.denied {
        tracing::info!(mac = %mac, "{mac} is denied everywhere {}", denial.explained());
    }
    for mac in changes.lifted.keys() {
        if changes.is_removed {
            tracing::warn!(mac = %mac, "{mac} is no longer denied everywhere: {DENIALS} was removed");
        } else {
            tracing::info!(mac = %mac, "{mac} is no longer denied everywhere");
        }
    }
}

/// Logs once that the file of the denials is invalid, and once that it is valid again. `logged` is the last logged
/// error.
pub(super) fn log_denials_error(logged: &mut Option<String>, error: Option<&str>) {
    if logged.as_deref() == error {
        return;
    }
    match error {
        Some(error) => tracing::error!("{error}; the last valid denials stay in force"),
        None => tracing::info!("{DENIALS} is valid again and in force"),
    }
    *logged = error.map(str::to_owned);
}

/// Logs operators that were added, removed or changed.
pub(super) fn log_operators(changes: &OperatorChanges) {
    for name in &changes.added {
        tracing::info!("operator {name} was added");
    }
    for name in &changes.removed {
        tracing::info!("operator {name} was removed; its sessions have ended");
    }
    for name in &changes.changed {
        tracing::info!("operator {name} has a new token or other rights; its sessions with the old token have ended");
    }
}

/// Logs once that the file of the operators cannot be used, and once that it can again. `logged` is the last logged error.
pub(super) fn log_operators_error(logged: &mut Option<String>, error: Option<String>) {
    if *logged == error {
        return;
    }
    match &error {
        Some(error) => tracing::error!("{error}; until then, no token is accepted but that in \"token_file\""),
        None => tracing::info!("{OPERATORS} is valid again and in force"),
    }
    *logged = error;
}

/// Logs once that the limit of open files is too low for the known phones, and once that it is high enough.
pub(super) fn log_file_shortage(before: Option<&str>, after: Option<&str>) {
    match (before, after) {
        (None, Some(shortage)) => tracing::warn!("{shortage}"),
        (Some(_), None) => tracing::info!("the limit of open files is enough for all known phones again"),
        _ => {}
    }
}

/// Logs a trust bundle that cannot be used. `is_kept`: the last valid one stays in force.
pub(super) fn log_bundle(name: &str, bundle: &Result<Arc<Bundle>, Arc<BundleError>>, is_kept: bool) {
    if let Err(error) = bundle {
        let consequence = if is_kept { "; the last valid one stays in force" } else { "" };
        tracing::error!("invalid trust bundle \"{name}\": {error}{consequence}");
    }
}

/// Logs passwords that cannot be read. At the start there are no last valid ones.
pub(super) fn log_passwords(errors: &[PasswordsError], is_start: bool) {
    let consequence = if is_start {
        "phones that need them are refused until then"
    } else {
        "the last valid ones stay in force, if there were any"
    };
    for error in errors {
        tracing::error!("cannot read passwords: {error}; {consequence}");
    }
}

/// Logs trust bundles that `provost.json` no longer names.
pub(super) fn log_bundles_gone(running: &Config, read: &Config) {
    for name in running.trust.keys().filter(|name| !read.trust.contains_key(*name)) {
        tracing::warn!(
            "provost.json: \"trust\" no longer has \"{name}\"; policies that name it use it until provost is restarted"
        );
    }
}

/// Logs the end of a reload, and an error in `provost.json`.
pub(super) fn log_reloaded(read: &Result<(), SettingsError>) {
    match read {
        Ok(()) => tracing::info!("SIGHUP: configuration, trust bundles and folders reloaded"),
        Err(error) => tracing::error!(
            "SIGHUP: {error}; the old configuration stays in force, its trust bundles and folders are reloaded"
        ),
    }
}

/// Logs changed settings that need a restart.
pub(super) fn log_restart_needed(running: &Config, read: &Config) {
    let changed = [
        ("domain", running.domain != read.domain),
        ("listen", running.listen != read.listen),
        ("plain_http", running.plain_http != read.plain_http),
        ("proxy_protocol", running.load_balancers != read.load_balancers),
        ("constituencies", running.constituencies != read.constituencies),
        ("state", running.state != read.state),
        ("certificate", running.certificate != read.certificate),
        ("log", running.log != read.log),
        ("limits", running.limits != read.limits),
        ("status", running.status != read.status),
        ("notify", running.notify != read.notify),
    ];
    for (key, _) in changed.iter().filter(|(_, is_changed)| *is_changed) {
        tracing::warn!("provost.json: \"{key}\" changed; restart provost to apply it");
    }
}
