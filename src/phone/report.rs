//! What a boot asked for and got, as it happens and in the end.

use std::fmt;
use std::time::Duration;

use http::{Method, StatusCode};

use super::client::ExchangeError;
use super::connect::TlsFacts;
use super::master::MasterError;
use super::model::{Phone, Program};

use crate::wording::{counted, tls_error};

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The updater's log.
    BootLog,
    /// `<mac>.cfg` or `000000000000.cfg`.
    Master,
    /// The image that fits the part number.
    Firmware,
    /// One entry of `CONFIG_FILES`.
    Configuration,
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
    /// No image for this hardware; the phone keeps its own.
    FirmwareNotOffered,
    /// The image was refused or failed; the phone keeps its own.
    FirmwareKept(StatusCode),
    /// A log that the server did not take is lost, and nothing else.
    LogLost(StatusCode),
    /// Not XML: a phone passes over the whole file.
    NotAParameterFile(MasterError),
    /// A log was continued at this size.
    AppendedAt(u64),
    /// The server's file has another size than it said before.
    SizeIs(u64),
    /// No whole answer came, for this reason.
    Failed(String),
}

/// One request and its answer.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// What it was for.
    pub step: Step,
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
pub enum Outcome {
    /// The phone has all that its master configuration names.
    Provisioned,
    /// It has not, and this is why.
    NotProvisioned(Reason),
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
    /// A master configuration that is none.
    #[error("the master configuration {path} is malformed: {source}")]
    MalformedMaster {
        /// Which of the two.
        path: String,
        /// What is wrong with it.
        source: MasterError,
    },
}

/// A boot from its first request to its end.
#[derive(Debug)]
pub struct Report {
    /// Who booted.
    pub phone: Phone,
    /// Every request, in order.
    pub exchanges: Vec<Exchange>,
    /// What the last handshake agreed on, if there was one.
    pub tls: Option<TlsFacts>,
    /// How long it took.
    pub duration: Duration,
    /// How it ended.
    pub outcome: Outcome,
}

/// Somebody who wants to see a boot happen.
pub trait Watch: Send {
    /// Part of a firmware image has come: so many bytes, of so many if the server said.
    fn progress(&mut self, received: u64, expected: Option<u64>) {
        let _ = (received, expected);
    }

    /// A request was answered, or failed.
    fn exchanged(&mut self, exchange: &Exchange) {
        let _ = exchange;
    }

    /// The boot is over.
    fn ended(&mut self, report: &Report) {
        let _ = report;
    }
}

/// Nobody watches.
impl Watch for () {}

impl Report {
    /// Whether the phone has what it needs.
    #[must_use]
    pub fn is_provisioned(&self) -> bool {
        matches!(self.outcome, Outcome::Provisioned)
    }

    /// Bytes of all bodies: sent, received.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        let sum = |bytes: fn(&Exchange) -> u64| self.exchanges.iter().map(bytes).sum();
        (sum(|exchange| exchange.sent), sum(|exchange| exchange.received))
    }
}

impl Step {
    /// As people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BootLog => "boot log",
            Self::Master => "master configuration",
            Self::Firmware => "firmware",
            Self::Configuration => "configuration",
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
            Self::NotAParameterFile(error) => write!(f, "a phone passes over this file: {error}"),
            Self::AppendedAt(size) => write!(f, "appended at byte {size}"),
            Self::SizeIs(size) => write!(f, "the server's file has {}; appending there", counted(*size, "byte")),
            Self::Failed(reason) => f.write_str(reason),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Provisioned => write!(f, "provisioned"),
            Self::NotProvisioned(reason) => write!(f, "not provisioned: {reason}"),
        }
    }
}
