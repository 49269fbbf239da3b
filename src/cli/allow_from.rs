//! `provost allow --from FILE`: puts the phones of a list on the list of a constituency, all or none.
//!
//! 1. Plan the change. A phone that is denied is an error: a file may be older than the denial.
//! 2. Show the difference, and warn of phones that another constituency knows too.
//! 3. Ask, unless the answer was given.
//! 4. Apply the change, if no other program has changed the files since.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};

use anyhow::{bail, ensure};

use super::audit::{entry, record};
use super::phone_set::first_of;
use super::{note, passwords, print_line, replace_controls, waiting, warn};
use crate::audit::AuditAction;
use crate::clock;
use crate::config::Config;
use crate::constituency::edit::{AllowedPhone, PhoneDiff, PhoneEffect, PolicyChange};
use crate::constituency::edit_file::{self, EditResult, PolicyEdit};
use crate::constituency::last_good::LastGood;
use crate::constituency::scan::Scanner;
use crate::constituency::{ConstituencyName, Listing, MacAddress, PhoneFile, ServerDenials};
use crate::wording::counted;

/// The operator's consent to the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consent {
    Ask,
    Given,
    /// Nothing is to be changed.
    DryRun,
}

/// How many phones a change adds, gives another note, and leaves as they are.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    added: usize,
    noted: usize,
    unchanged: usize,
}

/// Allows the phones of `file` in `name`. `file_name` names the file in messages.
pub(super) fn run(
    config: &Config,
    name: &ConstituencyName,
    file: &PhoneFile,
    file_name: &str,
    consent: Consent,
) -> anyhow::Result<()> {
    let phones: Vec<AllowedPhone<'_>> = file.phones().collect();
    let bundles = config.bundle_names();
    let bundles: Vec<&str> = bundles.iter().map(String::as_str).collect();
    let edit = edit_file::plan(&config.constituencies, name, PolicyChange::Allow(&phones), &bundles)?;
    let check = |edit: &PolicyEdit| check_not_denied(config, name, file, file_name, edit);
    check(&edit)?;
    let counts = Counts::of(&edit);
    let elsewhere = known_elsewhere(config, name, &edit);
    show(name, &phones, &edit, counts, &elsewhere);
    if edit.result == EditResult::Already {
        return Ok(());
    }
    match consent {
        Consent::DryRun => {
            note(&"nothing was changed (--dry-run)");
            return Ok(());
        }
        Consent::Given => {}
        Consent::Ask => ask(name)?,
    }
    check(&edit)?;
    edit.apply(&config.constituencies, name, &waiting)?;
    let changed: Vec<MacAddress> = edit.changed().collect();
    record(&config.state, &entry(AuditAction::Allowed).of(name).phones(&changed));
    print_line(&format_args!("{} in {name} within a second", counts.text(["added", "changed"])));
    let macs: Vec<MacAddress> = phones.iter().map(|phone| phone.mac).collect();
    passwords::warn_of_missing(config, name, &macs, edit.client_auth);
    Ok(())
}

/// Fails if a phone of `file` is denied, in `name` or on the whole server, and names their lines.
fn check_not_denied(
    config: &Config,
    name: &ConstituencyName,
    file: &PhoneFile,
    file_name: &str,
    edit: &PolicyEdit,
) -> anyhow::Result<()> {
    let everywhere = ServerDenials::read(&config.state)?.phones();
    // Of two denials, the one on the whole server is named.
    let mut lines = BTreeMap::new();
    let mut add = |mac, denied: &dyn Fn() -> String| {
        if let Some(line) = file.line(mac) {
            lines.insert(line, format!("{file_name}:{line}: {mac} is {}, or remove the line", denied()));
        }
    };
    for mac in edit.phones.iter().filter(|phone| phone.was_denied).map(|phone| phone.mac) {
        add(mac, &|| format!("denied in {name}; to lift that, run provost allow {mac} --constituency {name}"));
    }
    for (mac, denial) in everywhere.iter() {
        let why = || format!("denied everywhere {}; to lift that, run provost undeny {mac}", denial.explained());
        add(*mac, &why);
    }
    let lines: Vec<String> = lines.into_values().collect();
    if !lines.is_empty() {
        bail!("{}; nothing was changed", first_of(&lines, "\n"));
    }
    Ok(())
}

/// The constituencies that know phones which `edit` adds to `name`.
fn known_elsewhere(
    config: &Config,
    name: &ConstituencyName,
    edit: &PolicyEdit,
) -> BTreeMap<MacAddress, Vec<ConstituencyName>> {
    let is_added = |phone: &&PhoneDiff| phone.effect == PhoneEffect::Added;
    let added: BTreeSet<MacAddress> = edit.phones.iter().filter(is_added).map(|phone| phone.mac).collect();
    let mut elsewhere: BTreeMap<MacAddress, Vec<ConstituencyName>> = BTreeMap::new();
    if added.is_empty() {
        return elsewhere;
    }
    let mut scanner = Scanner::new(config.constituencies.clone(), config.bundle_names())
        .with_last_good(LastGood::of_state(&config.state))
        .without(name.clone());
    for other in scanner.scan(clock::now()).served() {
        let is_known = |mac: &MacAddress| added.contains(mac) && other.listing(*mac) == Some(Listing::Known);
        for mac in other.listed_phones().filter(is_known) {
            elsewhere.entry(mac).or_default().push(other.name.clone());
        }
    }
    elsewhere
}

/// Prints the difference, and warns of phones that other constituencies know too.
fn show(
    name: &ConstituencyName,
    phones: &[AllowedPhone<'_>],
    edit: &PolicyEdit,
    counts: Counts,
    elsewhere: &BTreeMap<MacAddress, Vec<ConstituencyName>>,
) {
    let mut text = String::new();
    // Both are sorted, and have the same phones.
    for (phone, diff) in phones.iter().zip(&edit.phones) {
        let (mac, new) = (phone.mac, replace_controls(phone.note.unwrap_or_default()));
        // Writing to a String does not fail.
        let _ = match &diff.effect {
            PhoneEffect::Noted { before } => {
                writeln!(text, "~ {mac}  {:?} -> {new:?}", replace_controls(before))
            }
            PhoneEffect::Unchanged => Ok(()),
            _ => match elsewhere.get(&mac) {
                None => writeln!(text, "{}", format!("+ {mac}  {new}").trim_end()),
                Some(others) => writeln!(text, "+ {mac}  {new}  (also known in {})", joined(others.iter())),
            },
        };
    }
    let _ = write!(text, "{name}/{}: {}", edit.files().join(" and "), counts.text(["to add", "to change"]));
    print_line(&text);
    if !elsewhere.is_empty() {
        let others: BTreeSet<&ConstituencyName> = elsewhere.values().flatten().collect();
        let these: Vec<String> = elsewhere.keys().map(ToString::to_string).collect();
        warn(&format_args!(
            "another constituency knows {}: {} ({})",
            counted(elsewhere.len(), "added phone"),
            first_of(&these, ", "),
            joined(others.into_iter())
        ));
    }
}

fn joined<'a>(names: impl Iterator<Item = &'a ConstituencyName>) -> String {
    first_of(&names.map(ToString::to_string).collect::<Vec<_>>(), ", ")
}

/// Asks on the terminal whether to apply the change.
fn ask(name: &ConstituencyName) -> anyhow::Result<()> {
    ensure!(
        io::stdin().is_terminal(),
        "standard input is not a terminal, so this cannot ask; nothing was changed; --yes applies the change without asking"
    );
    // Standard output may be a pipe to a pager.
    write!(io::stderr(), "apply this to {name}? [y/N] ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    ensure!(["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()), "nothing was changed");
    Ok(())
}

impl Counts {
    fn of(edit: &PolicyEdit) -> Self {
        let mut counts = Self::default();
        for phone in &edit.phones {
            match phone.effect {
                PhoneEffect::Unchanged => counts.unchanged += 1,
                PhoneEffect::Noted { .. } => counts.noted += 1,
                _ => counts.added += 1,
            }
        }
        counts
    }

    /// The counts, with the words for added phones and changed notes.
    fn text(self, [add, change]: [&str; 2]) -> String {
        let Self { added, noted, unchanged } = self;
        format!("{} {add}, {} {change}, {unchanged} unchanged", counted(added, "phone"), counted(noted, "note"))
    }
}
