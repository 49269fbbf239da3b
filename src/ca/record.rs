//! The record of a device CA: one JSON line per event, in order, append-only.
//!
//! Each event rewrites the file atomically, so that no line is ever incomplete.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aws_lc_rs::rand;
use serde::{Deserialize, Serialize};

use super::{CaError, file_error};
use crate::constituency::MacAddress;
use crate::settings::{self, SettingsError};
use crate::state;

/// The serial number of a certificate, without leading zeroes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(Vec<u8>);

/// The text is not a serial number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is neither a MAC address nor a serial number in hex")]
pub struct InvalidSerial;

impl Serial {
    /// 16 random bytes, as a positive number of constant length.
    pub(super) fn random() -> Result<Self, CaError> {
        let mut bytes = [0; 16];
        rand::fill(&mut bytes)
            .map_err(|_| CaError::Unusable("the system's random number generator failed".to_owned()))?;
        bytes[0] = bytes[0] & 0x3f | 0x40;
        Ok(Self(bytes.to_vec()))
    }

    /// Reads a big-endian number.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let zeroes = bytes.iter().take_while(|byte| **byte == 0).count();
        Self(bytes.get(zeroes..).unwrap_or_default().to_vec())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

impl FromStr for Serial {
    type Err = InvalidSerial;

    /// Reads hex digits of either case, also in pairs separated by colons, as openssl prints them.
    fn from_str(text: &str) -> Result<Self, InvalidSerial> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
        let pairs = digits.chunks_exact(2);
        if digits.is_empty() || !pairs.remainder().is_empty() {
            return Err(InvalidSerial);
        }
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
        let bytes: Option<Vec<u8>> = pairs.map(byte).collect();
        bytes.filter(|_| is_hex).map(|bytes| Self::from_bytes(&bytes)).ok_or(InvalidSerial)
    }
}

impl Serialize for Serial {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Serial {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An event in the CA's record. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event", deny_unknown_fields)]
pub enum RecordEvent {
    /// It issued a certificate.
    Issued {
        /// When.
        at: i64,
        serial: Serial,
        /// The phone that it names.
        mac: MacAddress,
        /// Its last second.
        not_after: i64,
        /// The SHA-256 of the certificate, in hex.
        sha256: String,
    },
    /// It revoked a certificate.
    Revoked {
        /// When.
        at: i64,
        serial: Serial,
    },
}

/// The current status of an issued certificate. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedStatus {
    pub serial: Serial,
    /// The phone that it names.
    pub mac: MacAddress,
    /// When it was issued.
    pub issued: i64,
    /// Its last second.
    pub not_after: i64,
    /// The SHA-256 of the certificate, in hex.
    pub sha256: String,
    /// When it was revoked, if it was.
    pub revoked: Option<i64>,
}

impl IssuedStatus {
    /// Whether it is neither revoked nor expired at `now`.
    #[must_use]
    pub fn is_valid(&self, now: i64) -> bool {
        self.revoked.is_none() && now <= self.not_after
    }
}

/// The record, in memory as on disk.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    text: String,
    events: usize,
    certificates: Vec<IssuedStatus>,
}

impl Record {
    /// Reads the record at `path`.
    pub(super) fn read(path: &Path) -> Result<Self, CaError> {
        let text = state::read_text(path).map_err(|source| file_error(path, source))?;
        let mut record = Self { path: path.to_owned(), text: String::new(), events: 0, certificates: Vec::new() };
        for (line, number) in text.lines().zip(1..) {
            let event = settings::read_line(path, number, line).map_err(CaError::BadRecord)?;
            let damaged = |reason| CaError::BadRecord(SettingsError::of_line(path, number, reason));
            record.apply(event).map_err(damaged)?;
        }
        record.text = text;
        Ok(record)
    }

    /// The status of every certificate that was issued, in order.
    #[must_use]
    pub fn certificates(&self) -> &[IssuedStatus] {
        &self.certificates
    }

    /// The number of events.
    pub(super) fn len(&self) -> usize {
        self.events
    }

    /// Appends `events`, all of them or none.
    pub(super) fn add(&mut self, events: &[RecordEvent]) -> Result<(), CaError> {
        let mut text = self.text.clone();
        for event in events {
            let line = serde_json::to_string(event).map_err(|error| CaError::Unusable(error.to_string()))?;
            text.push_str(&line);
            text.push('\n');
        }
        if text != self.text {
            state::write_private(&self.path, text.as_bytes()).map_err(|source| file_error(&self.path, source))?;
        }
        self.text = text;
        for event in events {
            self.apply(event.clone()).map_err(CaError::Unusable)?;
        }
        Ok(())
    }

    fn apply(&mut self, event: RecordEvent) -> Result<(), String> {
        self.events += 1;
        match event {
            RecordEvent::Issued { at, serial, mac, not_after, sha256 } => {
                self.certificates.push(IssuedStatus { serial, mac, issued: at, not_after, sha256, revoked: None });
            }
            RecordEvent::Revoked { at, serial } => {
                let revoked = self.certificates.iter_mut().find(|status| status.serial == serial);
                let revoked = revoked.ok_or_else(|| format!("{serial} is revoked but was never issued"))?;
                revoked.revoked.get_or_insert(at);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_number_parses_our_and_openssl_spelling() {
        let serial: Serial = "4a00FF".parse().unwrap();
        assert_eq!(serial, "00:4A:00:ff".parse().unwrap());
        assert_eq!(serial.to_string(), "4a00ff");
        for text in ["", ":", "4", "4a0", "4x", "+4", "-4a", "4a 00"] {
            assert!(text.parse::<Serial>().is_err(), "{text:?}");
        }
        let random: Vec<Serial> = (0..100).map(|_| Serial::random().unwrap()).collect();
        assert!(random.iter().all(|serial| serial.0.len() == 16 && serial.0[0] < 0x80));
        assert_eq!(random.iter().collect::<std::collections::BTreeSet<_>>().len(), 100);
    }

    #[test]
    fn damaged_record_is_reported_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.jsonl");
        let issued = r#"{"event":"issued","at":1,"serial":"4a","mac":"00005e00530c","not_after":2,"sha256":"x"}"#;
        for (bad, expected) in [
            ("{", "2:1: the record of the CA is damaged: the line ends before the closing }"),
            ("", "2:1: the record of the CA is damaged: the line is empty; it must hold at least {}"),
            (r#"{"event":"revoked","at":1,"serial":"4b"}"#, "2: the record of the CA is damaged: "),
            (
                r#"{"event":"lost"}"#,
                "2:10: the record of the CA is damaged: \"event\": must be one of \"issued\", \"revoked\", not \"lost\"; ",
            ),
            (r#"["revoked",1,"4a"]"#, "2:1: the record of the CA is damaged: must be an object, not a list; "),
            ("7", "2:1: the record of the CA is damaged: must be an object, not 7; "),
            (
                r#"{"event":"revoked","at":"1","serial":"4a"}"#,
                "2:1: the record of the CA is damaged: must be a whole number, not a string; ",
            ),
        ] {
            state::write_private(&path, format!("{issued}\n{bad}\n").as_bytes()).unwrap();
            let error = Record::read(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("record.jsonl:{expected}")), "{bad}: {error}");
        }
        state::write_private(&path, format!("{issued}\n").as_bytes()).unwrap();
        assert!(Record::read(&path).unwrap().certificates()[0].is_valid(2));
    }
}
