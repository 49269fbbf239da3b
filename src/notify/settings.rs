//! `"notify"` in `provost.json`. Pure.

use std::path::Path;

use schemars::JsonSchema;
use serde::Deserialize;

/// A command that reports the headlines of the page.
///
/// ```
/// let text = r#"{ "command": ["/usr/local/bin/provost-notify", "--to", "ops@example.com"] }"#;
/// let settings: provost::notify::NotifySettings = serde_json::from_str(text)?;
/// assert!(settings.check().is_ok());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NotifySettings {
    /// The absolute path of a program, and its arguments. provost runs it, without a shell, when a headline of the page
    /// appears, changes its kind or goes away. It reads JSON from standard input.
    pub command: Vec<String>,
}

impl NotifySettings {
    /// Checks the form of the command.
    ///
    /// # Errors
    /// If there is no absolute path, or an argument contains NUL.
    pub fn check(&self) -> Result<(), String> {
        match self.command.first() {
            None => Err("\"command\" is empty; name a program, such as [\"/usr/local/bin/provost-notify\"]".to_owned()),
            Some(program) if !Path::new(program).is_absolute() => Err(format!(
                "\"command\": {program:?} is not an absolute path; write the whole path of the program, such as \
                 \"/usr/local/bin/provost-notify\""
            )),
            Some(_) if self.command.iter().any(|word| word.contains('\0')) => {
                Err("\"command\" contains a NUL character, which no argument can have".to_owned())
            }
            Some(_) => Ok(()),
        }
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> &Path {
        Path::new(self.command.first().map_or("", String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_without_an_absolute_path_is_refused() {
        let check = |command: &[&str]| {
            NotifySettings { command: command.iter().map(|word| (*word).to_owned()).collect() }.check()
        };
        assert!(check(&[]).unwrap_err().contains("is empty"));
        for relative in ["mail", "./notify", "bin/notify", "", "~/notify"] {
            assert!(check(&[relative]).unwrap_err().contains("is not an absolute path"), "{relative}");
        }
        assert!(check(&["/bin/notify", "a\0b"]).unwrap_err().contains("NUL"));
        assert_eq!(check(&["/bin/notify", "an argument"]), Ok(()));
    }
}
