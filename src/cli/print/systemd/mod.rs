//! The systemd units of provost: templates beside this file, filled in for one `provost.json`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::cli::ConfigArg;
use crate::config::Config;

/// The configuration that the units use.
pub(in crate::cli) const CONFIG: &str = "/etc/provost/provost.json";
/// The constituencies in the example configuration.
pub(in crate::cli) const CONSTITUENCIES: &str = "/srv/provost/constituencies";
/// The state directory, unless `provost.json` names another.
pub(in crate::cli) const STATE: &str = "/var/lib/provost";

const SERVICE: &str = include_str!("provost.service");
const SOCKET: &str = include_str!("provost.socket");

/// The values for the units' placeholders.
#[derive(Debug)]
pub(in crate::cli) struct UnitValues {
    /// The binary.
    pub(in crate::cli) program: PathBuf,
    config: PathBuf,
    listen: Vec<SocketAddr>,
    constituencies: PathBuf,
    state: PathBuf,
}

/// The values from the named configuration, or else the service's. If it does not exist, those of the example.
pub(super) fn fit(config: &ConfigArg) -> anyhow::Result<UnitValues> {
    UnitValues::of(std::env::current_exe()?, &config.named().unwrap_or_else(|| CONFIG.into()))
}

impl UnitValues {
    /// The values from the configuration `file`. If it does not exist, those of the example.
    fn of(program: PathBuf, file: &Path) -> anyhow::Result<Self> {
        let file = std::path::absolute(file)?;
        // A line break in a path would start another line of the unit.
        for path in [&program, &file] {
            let path = path.to_string_lossy();
            let has_controls = path.chars().any(char::is_control);
            anyhow::ensure!(!has_controls, "{path:?}: a unit cannot hold a path with a control character; rename it");
        }
        if file.exists() {
            let config = Config::read(&file)?;
            return Ok(Self::of_config(program, file, config));
        }
        Ok(Self::usual(program, file))
    }

    /// The values from `config`, which was read from `file`.
    pub(in crate::cli) fn of_config(program: PathBuf, file: PathBuf, config: Config) -> Self {
        let Config { mut listen, plain_http, constituencies, state, .. } = config;
        listen.extend(plain_http.into_iter().flat_map(|plain| plain.listen));
        Self { program, config: file, listen, constituencies, state }
    }

    /// The values of the example.
    pub(in crate::cli) fn usual(program: PathBuf, config: PathBuf) -> Self {
        let listen = Config::default_listen();
        Self { program, config, listen, constituencies: CONSTITUENCIES.into(), state: STATE.into() }
    }

    /// The service unit.
    pub(in crate::cli) fn service(&self) -> String {
        SERVICE
            .replace("{program}", &word(&self.program))
            .replace("{config}", &word(&self.config))
            .replace("{constituencies}", &word(&self.constituencies))
            .replace("{state}", &self.state())
    }

    /// The socket unit.
    pub(in crate::cli) fn socket(&self) -> String {
        let streams: Vec<String> = self.listen.iter().map(|address| format!("ListenStream={address}")).collect();
        SOCKET.replace("{streams}", &streams.join("\n"))
    }

    fn state(&self) -> String {
        match self.state.strip_prefix("/var/lib") {
            Ok(folder) => format!("StateDirectory={}\nStateDirectoryMode=0700", word(folder)),
            // systemd creates state directories only in /var/lib.
            Err(_) => format!("# It must exist and belong to provost.\nReadWritePaths={}", word(&self.state)),
        }
    }
}

/// A path as one word of a unit (systemd.syntax(7), systemd.service(5)).
fn word(path: &Path) -> String {
    let text = path.to_string_lossy().replace('%', "%%").replace('$', "$$");
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+:@%$".contains(c);
    if text.chars().all(is_plain) { text } else { format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_escaped_as_one_word() {
        assert_eq!(word(Path::new("/usr/bin/provost")), "/usr/bin/provost");
        assert_eq!(word(Path::new("/opt/a b/100%$")), "\"/opt/a b/100%%$$\"");
    }

    #[test]
    fn unit_has_state_directory_or_read_write_path() {
        let usual = UnitValues::usual("/usr/bin/provost".into(), CONFIG.into());
        assert!(usual.service().contains("\nStateDirectory=provost\nStateDirectoryMode=0700\n"));
        let elsewhere = UnitValues { state: "/data/provost".into(), ..usual };
        let unit = elsewhere.service();
        assert!(unit.contains("\nReadWritePaths=/data/provost\n") && !unit.contains("StateDirectory"), "{unit}");
        assert!(!unit.contains('{') && !elsewhere.socket().contains('{'), "everything is filled in");
    }
}
