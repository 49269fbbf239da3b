//! What a boot asked for and got, as it happens and in the end.

use std::fmt;
use std::time::Duration;

use http::{Method, StatusCode};

use super::client::ExchangeError;
use super::connect::ClientTlsFacts;
use super::model::{Program, VirtualPhone};
use crate::phone_config::{Departure, UnreadableXml};

/// How many names are shown of several.
const NAMES: usize = 5;

use crate::wording::{counted, tls_error};

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootStep {
    /// The updater's log.
    BootLog,
    /// `<mac>.cfg` or `000000000000.cfg`.
    Master,
    /// The image that fits the part number.
    Firmware,
    /// One entry of `CONFIG_FILES`.
    Configuration,
    /// One entry of `MISC_FILES` or `SERVICE_FILES`.
    FurtherFiles,
    /// Settings made on the phone or its web page.
    Overrides,
    /// Licenses of the site or of the phone.
    License,
    /// Calls made and missed.
    CallLists,
    /// The phone's and the site's contacts.
    Contacts,
    /// The application's log.
    AppLog,
}

/// What a person should know about an answer beyond its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remark {
    /// An optional file that is not there.
    Skipped,
    /// A file that is not there, though the master configuration names it.
    Missing,
    /// No image for this hardware; the phone keeps its own.
    FirmwareNotOffered,
    /// The image was refused or failed; the phone keeps its own.
    FirmwareKept(StatusCode),
    /// A log that the server did not take is lost, and nothing else.
    LogLost(StatusCode),
    /// A configuration that no reader can make sense of, or that breaks off.
    Unreadable(UnreadableXml),
    /// A configuration that strict XML readers refuse.
    Departs(Departure),
    /// A log was continued at this size.
    AppendedAt(u64),
    /// The server's file has another size than it said before.
    SizeIs(u64),
    /// No whole answer came, for this reason.
    Failed(String),
}

/// One request and its answer.
#[derive(Debug, Clone)]
pub struct RequestReport {
    /// What it was for.
    pub step: BootStep,
    /// GET, HEAD or PUT.
    pub method: Method,
    /// The path, or the whole URL where it leads to another server.
    pub path: String,
    /// The program that asked.
    pub program: Program,
    /// The answer's status; none if there was no whole answer.
    pub status: Option<StatusCode>,
    /// Bytes of the request's body.
    pub sent: u64,
    /// Bytes of the answer's body.
    pub received: u64,
    /// From asking to the answer's last byte, connecting included.
    pub duration: Duration,
    /// What else there is to say.
    pub remark: Option<Remark>,
}

/// How a boot ended.
#[derive(Debug)]
pub enum RequestOutcome {
    /// The phone has a configuration. What it lacks of what that names, it goes without.
    Provisioned(Lacking),
    /// It has not, and this is why.
    NotProvisioned(Reason),
}

/// The files that a master configuration names and the phone did not get, as they are named there, placeholders filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lacking {
    /// Those that are not there.
    pub missing: Vec<String>,
    /// Those that cannot be read.
    pub unreadable: Vec<String>,
}

/// Why a phone was not provisioned.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// Chain and key do not fit, or cannot be read.
    #[error("the device certificate cannot be used: {}", tls_error(.0))]
    DeviceCertificate(rustls::Error),
    /// A request without a whole answer.
    #[error("{path}: {source}")]
    NoAnswer {
        /// What was asked for.
        path: String,
        /// Why no answer came.
        source: ExchangeError,
    },
    /// 401, and 429 after too many of them.
    #[error("{path}: {}", if *has_password {
        "the password is wrong; the server's log says why"
    } else {
        "the server asks for a password, and this phone has none for it"
    })]
    Unauthorized {
        /// What was asked for.
        path: String,
        /// Whether the phone has one for this server.
        has_password: bool,
    },
    /// 403.
    #[error("{path}: refused (403): the server does not let this phone have it; the server's log says why")]
    Refused {
        /// What was asked for.
        path: String,
    },
    /// 421.
    #[error("{path}: 421: the server serves no constituency of this name on this connection")]
    Misdirected {
        /// What was asked for.
        path: String,
    },
    /// 5xx.
    #[error("{path}: the server failed ({status}); a phone tries again, then goes on with what it has stored")]
    ServerFailed {
        /// What was asked for.
        path: String,
        /// The answer.
        status: StatusCode,
    },
    /// A status that means nothing to a phone.
    #[error("{path}: a phone has no use for the answer {status}")]
    Unexpected {
        /// What was asked for.
        path: String,
        /// The answer.
        status: StatusCode,
    },
    /// Neither master configuration is there.
    #[error("there is no master configuration: neither {mac}.cfg nor 000000000000.cfg is in the folder")]
    NoMaster {
        /// The phone that looked for it.
        mac: crate::constituency::MacAddress,
    },
    /// A master configuration that cannot be read.
    #[error("the master configuration {path} cannot be read: {source}")]
    UnreadableMaster {
        /// Which of the two.
        path: String,
        /// What is wrong with it.
        source: UnreadableXml,
    },
}

/// A boot from its first request to its end.
#[derive(Debug)]
pub struct BootReport {
    /// Who booted.
    pub phone: VirtualPhone,
    /// Every request, in order.
    pub exchanges: Vec<RequestReport>,
    /// What the last handshake agreed on, if there was one.
    pub tls: Option<ClientTlsFacts>,
    /// How long it took.
    pub duration: Duration,
    /// How it ended.
    pub outcome: RequestOutcome,
}

/// Somebody who wants to see a boot happen.
pub trait Watch: Send {
    /// Part of a firmware image has come: so many bytes, of so many if the server said.
    fn progress(&mut self, received: u64, expected: Option<u64>) {
        let _ = (received, expected);
    }

    /// A request was answered, or failed.
    fn exchanged(&mut self, exchange: &RequestReport) {
        let _ = exchange;
    }

    /// The boot is over.
    fn ended(&mut self, report: &BootReport) {
        let _ = report;
    }
}

/// Nobody watches.
impl Watch for () {}

impl BootReport {
    /// Whether the phone has what it needs.
    #[must_use]
    pub fn is_provisioned(&self) -> bool {
        matches!(self.outcome, RequestOutcome::Provisioned(_))
    }

    /// Whether it also has every file that its master configuration names.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        matches!(&self.outcome, RequestOutcome::Provisioned(lacking) if *lacking == Lacking::default())
    }

    /// Bytes of all bodies: sent, received.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        let sum = |bytes: fn(&RequestReport) -> u64| self.exchanges.iter().map(bytes).sum();
        (sum(|exchange| exchange.sent), sum(|exchange| exchange.received))
    }
}

impl BootStep {
    /// As people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BootLog => "boot log",
            Self::Master => "master configuration",
            Self::Firmware => "firmware",
            Self::Configuration => "configuration",
            Self::FurtherFiles => "further file",
            Self::Overrides => "overrides",
            Self::License => "license",
            Self::CallLists => "call lists",
            Self::Contacts => "contacts",
            Self::AppLog => "application log",
        }
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skipped => write!(f, "not there, skipped"),
            Self::FirmwareNotOffered => write!(f, "firmware not offered, keeps its own"),
            Self::FirmwareKept(status) => write!(f, "firmware not to be had ({status}), keeps its own"),
            Self::LogLost(status) => write!(f, "the server does not take this log ({status}); only the log is lost"),
            Self::Missing => write!(f, "missing: the master configuration names it"),
            Self::Unreadable(error) => write!(f, "cannot be read: {error}"),
            Self::Departs(departure) => write!(f, "{}: {}", departure.place, departure.message),
            Self::AppendedAt(size) => write!(f, "appended at byte {size}"),
            Self::SizeIs(size) => write!(f, "the server's file has {}; appending there", counted(*size, "byte")),
            Self::Failed(reason) => f.write_str(reason),
        }
    }
}

impl fmt::Display for RequestOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Provisioned(lacking) => write!(f, "provisioned{lacking}"),
            Self::NotProvisioned(reason) => write!(f, "not provisioned: {reason}"),
        }
    }
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (files, what) in [(&self.missing, "missing"), (&self.unreadable, "not readable")] {
            match files.as_slice() {
                [] => {}
                [file] => write!(f, ", 1 named file {what}: {}", shown(file))?,
                files => {
                    let shown: Vec<String> = files.iter().take(NAMES).map(|file| shown(file)).collect();
                    let more = match files.len().saturating_sub(NAMES) {
                        0 => String::new(),
                        more => format!(", {more} more"),
                    };
                    write!(f, ", {} named files {what}: {}{more}", files.len(), shown.join(", "))?;
                }
            }
        }
        Ok(())
    }
}

/// A name that a server has given, without what drives a terminal.
fn shown(name: &str) -> String {
    name.replace(char::is_control, "\u{fffd}")
}
