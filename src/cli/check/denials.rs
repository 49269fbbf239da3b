//! Findings about server-wide denials: the denied phones with operator and reason, and constituencies where denials
//! have no effect.

use std::io::ErrorKind;

use super::{Finding, FindingLevel};
use crate::cli::denials::without_effect;
use crate::config::Config;
use crate::constituency::denials::{DenialsError, FILE};
use crate::constituency::{Registry, ServerDenials};

/// The most phones that are listed.
const NAMED: usize = 50;

/// The denials of `config`'s server. If they cannot be read, adds a finding.
pub(super) fn read(config: &Config, findings: &mut Vec<Finding>) -> ServerDenials {
    ServerDenials::read(&config.state).unwrap_or_else(|error| {
        // A user who cannot open the state directory cannot know whether there are any.
        let is_hidden =
            matches!(&error, DenialsError::Folder { source, .. } if source.kind() == ErrorKind::PermissionDenied);
        let level = if is_hidden { FindingLevel::Warning } else { FindingLevel::Error };
        findings.push(Finding::new(level, FILE, error));
        ServerDenials::default()
    })
}

/// Adds findings about `denials` and the constituencies of `registry`.
pub(super) fn check(config: &Config, denials: &ServerDenials, registry: &Registry, findings: &mut Vec<Finding>) {
    let phones = denials.phones();
    let named = phones.iter().take(NAMED);
    findings.extend(named.map(|(mac, denial)| {
        Finding::new(FindingLevel::Note, FILE, format!("{mac} is denied everywhere {}", denial.explained()))
    }));
    let more = phones.len().saturating_sub(NAMED);
    if more > 0 {
        findings.push(Finding::new(FindingLevel::Note, FILE, format!("{more} more phones are denied everywhere")));
    }
    if phones.is_empty() {
        return;
    }
    findings.extend(without_effect(config, registry).map(|(name, reason)| {
        Finding::new(
            FindingLevel::Note,
            name,
            format!("phones that are denied everywhere are still served here: {reason}"),
        )
    }));
}
