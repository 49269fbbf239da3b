//! The audit log: who changed what, from where, and when. One JSON line per change, in the state directory.
//!
//! 1. [`AuditAction`] names every change that provost makes for an operator.
//! 2. [`AuditEntry`] is one line. It holds no secret: no password, no key, no content of a file.
//! 3. [`append`] writes lines, and rotates the file. [`read`] reads the lines of all files, [`read_last`] the last ones, and
//!    [`read_since`] those since a time.
//!
//! The line is written after the change. A change that cannot be logged stays in force: a lost phone must be denied on a
//! full disk too. Its author sees the failure.

mod files;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clock::rfc3339;
use crate::constituency::{ConstituencyName, MacAddress};
use crate::wording::counted;

pub use files::{AuditReading, FILE, append, read, read_last, read_since};

/// The longest text in an entry, in characters.
const MAX_TEXT: usize = 200;
/// The most phones in an entry: a line is read only up to a length.
const MAX_PHONES: usize = 400;
/// The most phones that a line for people names.
const SHOWN_PHONES: usize = 3;

/// A change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditAction {
    /// A phone was put on a list.
    Allowed,
    /// A certificate was pinned for a phone.
    Pinned,
    /// The pin of a phone was removed.
    Unpinned,
    /// A phone was denied: in a constituency, or without one on the whole server.
    Denied,
    /// The denial on the whole server was lifted.
    Undenied,
    PasswordMade,
    PasswordRemoved,
    ConstituencyAdded,
    UploadRemoved,
    /// The uploads of a phone were moved to this constituency.
    UploadsMoved,
    /// A device CA of one's own was made.
    CaMade,
    /// That CA issued a device certificate.
    DeviceCertificateIssued,
    /// That CA revoked a device certificate.
    DeviceCertificateRevoked,
    /// An operator of the page, the API and the metrics was added, removed, or got a new token.
    OperatorAdded,
    OperatorRemoved,
    OperatorRotated,
    /// The server renewed its certificates at an operator's request.
    CertificateRenewed,
    /// The server's certificate was revoked.
    CertificateRevoked,
    /// A policy, or the list of denied phones, was changed by another program.
    FileChanged,
}

impl AuditAction {
    /// Every action.
    pub const ALL: [Self; 19] = [
        Self::Allowed,
        Self::Pinned,
        Self::Unpinned,
        Self::Denied,
        Self::Undenied,
        Self::PasswordMade,
        Self::PasswordRemoved,
        Self::ConstituencyAdded,
        Self::UploadRemoved,
        Self::UploadsMoved,
        Self::CaMade,
        Self::DeviceCertificateIssued,
        Self::DeviceCertificateRevoked,
        Self::OperatorAdded,
        Self::OperatorRemoved,
        Self::OperatorRotated,
        Self::CertificateRenewed,
        Self::CertificateRevoked,
        Self::FileChanged,
    ];

    /// The words of a line for people.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Pinned => "pinned a certificate of",
            Self::Unpinned => "removed the pin of",
            Self::Denied => "denied",
            Self::Undenied => "lifted the denial of",
            Self::PasswordMade => "made a password for",
            Self::PasswordRemoved => "removed the password of",
            Self::ConstituencyAdded => "added the constituency",
            Self::UploadRemoved => "removed an upload of",
            Self::UploadsMoved => "moved the uploads of",
            Self::CaMade => "made a CA",
            Self::DeviceCertificateIssued => "issued a certificate to",
            Self::DeviceCertificateRevoked => "revoked a certificate of",
            Self::OperatorAdded => "added an operator",
            Self::OperatorRemoved => "removed an operator",
            Self::OperatorRotated => "replaced an operator's token",
            Self::CertificateRenewed => "renewed the server's certificates",
            Self::CertificateRevoked => "revoked the server's certificate",
            Self::FileChanged => "file changed",
        }
    }
}

/// The way by which a change was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditSource {
    Page,
    Api,
    Command,
    /// Another program wrote the file.
    File,
}

/// Who made a change, and from where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditActor {
    pub by: AuditSource,
    /// The operator or the user. Empty for a file, whose author is unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub who: String,
    /// `SUDO_USER` of a command. Any program can set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_user: Option<String>,
    /// The peer's address; `unix` for a Unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The address that a proxy forwards. Any client can send it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_from: Option<String>,
}

impl AuditActor {
    /// Another program.
    #[must_use]
    pub fn file() -> Self {
        Self { by: AuditSource::File, who: String::new(), claimed_user: None, from: None, claimed_from: None }
    }

    /// Without control characters, and with bounded texts.
    #[must_use]
    pub fn cleaned(self) -> Self {
        let clean = |text: Option<String>| text.map(|text| harmless(&text)).filter(|text| !text.is_empty());
        Self {
            by: self.by,
            who: harmless(&self.who),
            claimed_user: clean(self.claimed_user),
            from: clean(self.from),
            claimed_from: clean(self.claimed_from),
        }
    }
}

/// A line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// In RFC 3339, UTC.
    pub time: String,
    pub action: AuditAction,
    #[serde(flatten)]
    pub actor: AuditActor,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constituency: Option<ConstituencyName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// The phones, if the change was of several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub macs: Vec<MacAddress>,
    /// What else identifies the change, such as a fingerprint, a serial number, or the counts of a changed file.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl AuditEntry {
    /// An entry at `time`, in Unix seconds.
    #[must_use]
    pub fn new(time: i64, action: AuditAction, actor: AuditActor) -> Self {
        let actor = actor.cleaned();
        Self {
            time: rfc3339(time),
            action,
            actor,
            constituency: None,
            mac: None,
            macs: Vec::new(),
            detail: String::new(),
        }
    }

    /// The same, in this constituency.
    #[must_use]
    pub fn of(mut self, constituency: &ConstituencyName) -> Self {
        self.constituency = Some(constituency.clone());
        self
    }

    /// The same, for this phone.
    #[must_use]
    pub fn phone(mut self, mac: MacAddress) -> Self {
        self.mac = Some(mac);
        self
    }

    /// The same for all of `macs`: one entry for up to [`MAX_PHONES`].
    #[must_use]
    pub fn phones(self, macs: &[MacAddress]) -> Vec<Self> {
        if let [mac] = macs {
            return vec![self.phone(*mac)];
        }
        let parts = macs.chunks(MAX_PHONES);
        let count = parts.len();
        let entry = |(number, part): (usize, &[MacAddress])| {
            let entry = Self { macs: part.to_vec(), ..self.clone() };
            if count > 1 { entry.detail(format_args!("part {} of {count}", number + 1)) } else { entry }
        };
        parts.enumerate().map(entry).collect()
    }

    /// The phones that it is about.
    pub fn all_macs(&self) -> impl Iterator<Item = MacAddress> {
        self.mac.iter().chain(&self.macs).copied()
    }

    /// The phones, for people; `None` if it is about none.
    #[must_use]
    pub fn phones_text(&self) -> Option<String> {
        if self.macs.is_empty() {
            return self.mac.map(|mac| mac.to_string());
        }
        let shown: Vec<String> = self.macs.iter().take(SHOWN_PHONES).map(ToString::to_string).collect();
        let more = match self.macs.len().saturating_sub(SHOWN_PHONES) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!("{} ({}{more})", counted(self.macs.len(), "phone"), shown.join(", ")))
    }

    /// The same, with this detail.
    #[must_use]
    pub fn detail(mut self, detail: impl fmt::Display) -> Self {
        self.detail = harmless(&detail.to_string());
        self
    }
}

/// The line for people.
impl fmt::Display for AuditEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time, action, actor, constituency, mac: _, macs: _, detail } = self;
        let by = match actor.by {
            AuditSource::Page => "page",
            AuditSource::Api => "API",
            AuditSource::Command => "command",
            AuditSource::File => "file",
        };
        write!(f, "{time} {}", action.words())?;
        self.phones_text().iter().try_for_each(|phones| write!(f, " {phones}"))?;
        match (constituency, action) {
            (Some(name), AuditAction::ConstituencyAdded) => write!(f, " {name}")?,
            (Some(name), _) => write!(f, " in {name}")?,
            (None, AuditAction::Denied) => f.write_str(" everywhere")?,
            (None, _) => {}
        }
        if !detail.is_empty() {
            write!(f, " ({detail})")?;
        }
        if actor.by != AuditSource::File {
            write!(f, ", by {} ({by})", actor.who)?;
        }
        actor.claimed_user.iter().try_for_each(|user| write!(f, ", SUDO_USER claims {user}"))?;
        actor.from.iter().try_for_each(|from| write!(f, ", from {from}"))?;
        actor.claimed_from.iter().try_for_each(|from| write!(f, ", forwarded from (claimed) {from}"))
    }
}

/// A text without control characters, and of bounded length.
fn harmless(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> AuditEntry {
        let actor = AuditActor { by: AuditSource::Command, who: "root".to_owned(), ..AuditActor::file() };
        AuditEntry::new(1_795_552_267, AuditAction::Allowed, actor).of(&"ote".parse().unwrap())
    }

    fn macs(count: u64) -> Vec<MacAddress> {
        (0..count).map(|number| "00005e005300".parse::<MacAddress>().unwrap().plus(number)).collect()
    }

    #[test]
    fn entry_names_one_phone_or_the_first_of_several() {
        let shown = |count| entry().phones(&macs(count)).iter().map(ToString::to_string).collect::<Vec<_>>();
        let line = |phones: &str| vec![format!("2026-11-24T20:31:07Z allowed {phones} in ote, by root (command)")];
        assert_eq!(shown(0), [""; 0]);
        assert_eq!(shown(1), line("00005e005300"));
        assert_eq!(shown(2), line("2 phones (00005e005300, 00005e005301)"));
        assert_eq!(shown(5), line("5 phones (00005e005300, 00005e005301, 00005e005302 and 2 more)"));
        let parts = entry().phones(&macs(801));
        let sizes: Vec<usize> = parts.iter().map(|part| part.macs.len()).collect();
        assert_eq!((sizes, parts[2].detail.as_str()), (vec![400, 400, 1], "part 3 of 3"));
        assert_eq!(parts.iter().flat_map(AuditEntry::all_macs).collect::<Vec<_>>(), macs(801));
    }
}
