//! What the responder keeps in the state directory: the key of its proofs, and the name of its zone.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::state;

/// The file in the state directory.
pub const FILE: &str = "responder.json";

/// The contents of the file. `Debug` does not print the key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Memory {
    /// A secret. Only this server and commands on its state directory know it.
    pub(super) proof_key: String,
    /// The zone that the parent's name servers delegate, if they were asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) zone: Option<String>,
}

impl Memory {
    /// Reads the file in `state`, or makes it. One that cannot be read is only logged: it holds nothing that lasts.
    pub(super) fn open(state: &Path) -> io::Result<Self> {
        match Self::read(state) {
            Ok(Some(memory)) => return Ok(memory),
            Ok(None) => {}
            Err(error) => tracing::error!("{error}; a new one is made"),
        }
        let mut secret = [0; 32];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| io::Error::other("the system gives no random numbers"))?;
        let memory = Self { proof_key: secret.iter().map(|byte| format!("{byte:02x}")).collect(), zone: None };
        memory.write(state);
        Ok(memory)
    }

    /// Reads the file in `state`; `None` if it does not exist.
    pub(super) fn read(state: &Path) -> io::Result<Option<Self>> {
        let file = state.join(FILE);
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{} {what}: {error}", file.display()))
        };
        if !state::exists(&file).map_err(|error| failed("cannot be read", &error))? {
            return Ok(None);
        }
        let bytes = state::read(&file).map_err(|error| failed("cannot be read", &error))?;
        // serde_json's error would quote the key.
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|_| failed("is damaged", &"it holds no key of the DNS responder"))
    }

    /// Keeps the name of the zone, if it is new.
    pub(super) fn keep_zone(&self, state: &Path, zone: &str) {
        if Self::read(state).is_ok_and(|kept| kept.is_some_and(|kept| kept.zone.as_deref() == Some(zone))) {
            return;
        }
        Self { zone: Some(zone.to_owned()), ..self.clone() }.write(state);
    }

    fn write(&self, state: &Path) {
        let file = state.join(FILE);
        let text = serde_json::to_vec(self).map_err(io::Error::other);
        if let Err(error) = text.and_then(|text| state::write_private(&file, &text)) {
            tracing::warn!("{} cannot be written: {error}; {}", file.display(), state::remedy(&error));
        }
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").field("zone", &self.zone).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "files of a test's own")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn key_and_zone_survive_a_restart_and_are_private() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(Memory::read(state.path()).unwrap(), None);
        let first = Memory::open(state.path()).unwrap();
        first.keep_zone(state.path(), "acme.example.com");
        let second = Memory::open(state.path()).unwrap();
        assert_eq!((&second.proof_key, second.zone.as_deref()), (&first.proof_key, Some("acme.example.com")));
        let mode = std::fs::metadata(state.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{first:?}").contains(&first.proof_key));
        assert!(first.proof_key.len() == 64, "{}", first.proof_key.len());
    }

    #[test]
    fn a_damaged_file_is_replaced_and_never_quoted() {
        let state = tempfile::tempdir().unwrap();
        std::fs::write(state.path().join(FILE), r#"{ "proof_key": 12345678 }"#).unwrap();
        let error = Memory::read(state.path()).unwrap_err().to_string();
        assert!(error.contains("is damaged") && !error.contains("12345678"), "{error}");
        let made = Memory::open(state.path()).unwrap();
        assert_eq!(Memory::read(state.path()).unwrap(), Some(made));
    }
}
