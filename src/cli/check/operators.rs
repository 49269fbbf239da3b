//! Findings about the operators of the status page.

use std::io::ErrorKind;

use super::{Finding, FindingLevel};
use crate::admin::operators::file::{self, FILE, OperatorsError};
use crate::config::Config;

pub(super) fn check(config: &Config, findings: &mut Vec<Finding>) {
    let has_operators = match file::read(&config.state) {
        Ok(operators) => {
            for (name, operator) in &operators.0 {
                let names = operator.constituencies.iter().flatten();
                for absent in names.filter(|name| !config.constituencies.join(name.as_str()).is_dir()) {
                    let message = format!("operator {name} is for constituency {absent}, which does not exist");
                    let found = Finding::new(FindingLevel::Warning, FILE, message);
                    findings.push(found.with_remedy(format_args!(
                        "make it (provost constituency add {absent}), or remove the operator and add it for another one"
                    )));
                }
            }
            !operators.0.is_empty()
        }
        Err(error) => {
            // A user who cannot open the state directory cannot know whether there are any.
            let is_hidden =
                matches!(&error, OperatorsError::Folder { source, .. } if source.kind() == ErrorKind::PermissionDenied);
            let level = if is_hidden { FindingLevel::Warning } else { FindingLevel::Error };
            findings.push(match error {
                OperatorsError::File(error) => {
                    Finding::from(error).with_remedy("repair the file, or remove it and add the operators again")
                }
                error => Finding::new(level, FILE, error),
            });
            true
        }
    };
    match &config.status {
        // In local mode, the server makes a token at its start.
        Some(status) if status.token_file.is_none() && !has_operators && !config.is_local() => {
            let message = format!(
                "no \"token_file\" and no operator: every program on this machine, and every client of a proxy on it, \
                 reads everything on {}, and nothing can be changed there",
                status.listen
            );
            let found = Finding::new(FindingLevel::Note, "status", message);
            findings.push(found.with_remedy("run provost operator add NAME"));
        }
        None if has_operators => {
            let message = "no effect: there is no \"status\" in provost.json, so there is no page and no API";
            findings.push(Finding::new(FindingLevel::Note, FILE, message));
        }
        _ => {}
    }
}
