//! The requests and results of a boot, reported during the boot and at its end.

use std::fmt;
use std::time::Duration;

use http::{Method, StatusCode};

use super::client::ExchangeError;
use super::connect::ClientTlsFacts;
use super::model::{Program, VirtualPhone};
use crate::phone_config::{Deviation, UnreadableXml};

/// The most file names in one message.
const NAMES: usize = 5;

use crate::wording::{counted, tls_error};

/// The purpose of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootStep {
    /// The updater's log.
    BootLog,
    /// `<mac>.cfg` or `000000000000.cfg`.
    Master,
    /// The image for the part number.
    Firmware,
    /// One entry of `CONFIG_FILES`.
    Configuration,
    /// One entry of `MISC_FILES` or `SERVICE_FILES`.
    FurtherFiles,
    /// Settings made on the phone or its web page.
    Overrides,
    /// Licenses of the site or of the phone.
    License,
    /// Call lists: calls made and missed.
    CallLists,
    /// The phone's and the site's contacts.
    Contacts,
    /// The application's log.
    AppLog,
}

/// What to know about a response beyond its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remark {
    /// An optional file does not exist.
    Skipped,
    /// A file that the master configuration names does not exist.
    Missing,
    /// There is no image for this hardware. The phone keeps its firmware.
    FirmwareNotOffered,
    /// The image was refused or failed. The phone keeps its firmware.
    FirmwareKept(StatusCode),
    /// The server refused a log. The phone boots nevertheless.
    LogLost(StatusCode),
    /// A configuration cannot be parsed, or breaks off.
    Unreadable(UnreadableXml),
    /// A configuration that strict XML readers refuse.
    Deviates(Deviation),
    /// The log was appended at this byte.
    AppendedAt(u64),
    /// The server's file has another size than its HEAD response said.
    SizeIs(u64),
    /// There was no complete response, for this reason.
    Failed(String),
}

/// One request and its response.
#[derive(Debug, Clone)]
pub struct RequestReport {
    /// The step that it belongs to.
    pub step: BootStep,
    /// GET, HEAD or PUT.
    pub method: Method,
    /// The path, or the whole URL for another server.
    pub path: String,
    /// The program that sent it.
    pub program: Program,
    /// The response's status; `None` without a complete response.
    pub status: Option<StatusCode>,
    /// The bytes of the request body.
    pub sent: u64,
    /// The bytes of the response body.
    pub received: u64,
    /// The time from sending to the response's last byte, including connecting.
    pub duration: Duration,
    /// Further information.
    pub remark: Option<Remark>,
}

/// How a boot ended.
#[derive(Debug)]
pub enum BootOutcome {
    /// The phone has a configuration. It may lack some of the named files.
    Provisioned(IncompleteFiles),
    /// The phone has no configuration, for this reason.
    NotProvisioned(BootFailure),
}

/// The files that a master configuration names and the phone did not get: as named there, with placeholders filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IncompleteFiles {
    /// Files that do not exist.
    pub missing: Vec<String>,
    /// Files that cannot be read.
    pub unreadable: Vec<String>,
}

/// Why a phone was not provisioned.
#[derive(Debug, thiserror::Error)]
pub enum BootFailure {
    /// The device certificate's chain and key do not match, or cannot be read.
    #[error("the device certificate cannot be used: {}", tls_error(.0))]
    DeviceCertificate(rustls::Error),
    /// A request got no complete response.
    #[error("{path}: {source}")]
    NoAnswer {
        /// The path of the request.
        path: String,
        /// Why there is no response.
        source: ExchangeError,
    },
    /// The response was 401, or 429 after too many of them.
    #[error("{path}: {}", if *has_password {
        "the password is wrong; the server's log says why"
    } else {
        "the server requires a password, and this phone has none for it"
    })]
    Unauthorized {
        /// The path of the request.
        path: String,
        /// Whether the phone has a password for this server.
        has_password: bool,
    },
    /// The response was 403.
    #[error("{path}: refused (403); the server's log says why")]
    Refused {
        /// The path of the request.
        path: String,
    },
    /// The response was 421.
    #[error("{path}: 421: the server serves no constituency of this name on this connection")]
    Misdirected {
        /// The path of the request.
        path: String,
    },
    /// The response was 5xx.
    #[error("{path}: the server failed ({status}); a phone tries again, then goes on with what it has stored")]
    ServerFailed {
        /// The path of the request.
        path: String,
        /// The status.
        status: StatusCode,
    },
    /// The response has a status that phones do not handle.
    #[error("{path}: a phone cannot use a response with status {status}")]
    Unexpected {
        /// The path of the request.
        path: String,
        /// The status.
        status: StatusCode,
    },
    /// Neither master configuration exists.
    #[error("there is no master configuration: neither {mac}.cfg nor 000000000000.cfg is in the folder")]
    NoMaster {
        /// The phone.
        mac: crate::constituency::MacAddress,
    },
    /// The master configuration cannot be read.
    #[error("the master configuration {path} cannot be read: {source}")]
    UnreadableMaster {
        /// Its path.
        path: String,
        /// The error.
        source: UnreadableXml,
    },
}

/// The report of one boot, from its first request to its end.
#[derive(Debug)]
pub struct BootReport {
    /// The phone.
    pub phone: VirtualPhone,
    /// Every request, in order.
    pub exchanges: Vec<RequestReport>,
    /// The parameters of the last TLS handshake, if there was one.
    pub tls: Option<ClientTlsFacts>,
    /// The duration of the boot.
    pub duration: Duration,
    /// The result.
    pub outcome: BootOutcome,
}

/// Observes a boot.
pub trait BootObserver: Send {
    /// Part of a firmware image came: the bytes so far, and the total if the server sent a length.
    fn progress(&mut self, received: u64, expected: Option<u64>) {
        let _ = (received, expected);
    }

    /// A request ended, with a response or an error.
    fn exchanged(&mut self, exchange: &RequestReport) {
        let _ = exchange;
    }

    /// The boot ended.
    fn ended(&mut self, report: &BootReport) {
        let _ = report;
    }
}

/// Observes nothing.
impl BootObserver for () {}

impl BootReport {
    /// Whether the phone has a configuration.
    #[must_use]
    pub fn is_provisioned(&self) -> bool {
        matches!(self.outcome, BootOutcome::Provisioned(_))
    }

    /// Whether it also has every file that its master configuration names.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        matches!(&self.outcome, BootOutcome::Provisioned(lacking) if *lacking == IncompleteFiles::default())
    }

    /// The bytes of all request and response bodies.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        let sum = |bytes: fn(&RequestReport) -> u64| self.exchanges.iter().map(bytes).sum();
        (sum(|exchange| exchange.sent), sum(|exchange| exchange.received))
    }
}

impl BootStep {
    /// The name for messages.
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
            Self::FirmwareKept(status) => write!(f, "firmware unavailable ({status}), keeps its own"),
            Self::LogLost(status) => write!(f, "the server refused this log ({status}); only the log is lost"),
            Self::Missing => write!(f, "missing: the master configuration names it"),
            Self::Unreadable(error) => write!(f, "cannot be read: {error}"),
            Self::Deviates(deviation) => write!(f, "{}: {}", deviation.place, deviation.message),
            Self::AppendedAt(size) => write!(f, "appended at byte {size}"),
            Self::SizeIs(size) => write!(f, "the server's file has {}; appending there", counted(*size, "byte")),
            Self::Failed(reason) => f.write_str(reason),
        }
    }
}

impl fmt::Display for BootOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Provisioned(lacking) => write!(f, "provisioned{lacking}"),
            Self::NotProvisioned(reason) => write!(f, "not provisioned: {reason}"),
        }
    }
}

impl fmt::Display for IncompleteFiles {
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

/// `name`, which comes from a server, with control characters replaced.
fn shown(name: &str) -> String {
    name.replace(char::is_control, "\u{fffd}")
}
