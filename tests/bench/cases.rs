//! What is measured, and the required advantage over nginx.

use openssl::ssl::SslVersion;
use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};

use super::site::{FIRMWARE_BYTES, Key};

/// How many connections are idle when their memory is measured.
pub const IDLE_CONNECTIONS: usize = 2000;

/// A power cut: the number of phones that boot at once, and how often.
#[derive(Debug, Clone, Copy)]
pub struct PowerCut {
    pub phones: usize,
    pub rounds: usize,
}

pub const POWER_CUT: PowerCut = PowerCut { phones: 5000, rounds: 3 };

/// The operation that a worker repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A new connection with a full handshake of both sides' certificates, one small file, close.
    FullHandshake,
    /// A new connection that resumes the session of the one before, one small file, close.
    ResumedHandshake,
    /// One small file on an open connection.
    SmallFile,
    /// The firmware on an open connection.
    Firmware,
}

/// What the phones negotiate.
#[derive(Debug, Clone, Copy)]
pub enum Tls {
    /// This version with ECDHE and the preferred suite of both servers.
    Modern(&'static SupportedProtocolVersion),
    /// One suite without ECDHE, by its OpenSSL name.
    Legacy(SslVersion, &'static str),
}

/// The TLS versions that the servers accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsLevel {
    Modern,
    /// Legacy TLS too, down to 1.0.
    Legacy,
}

/// One line of the table.
#[derive(Debug)]
pub struct Case {
    pub name: &'static str,
    pub key: Key,
    pub level: TlsLevel,
    pub tls: Tls,
    pub operation: Operation,
    /// The number of concurrent connections.
    pub workers: usize,
    /// The required ratio of nginx's cost to provost's, if any.
    pub target: Option<f64>,
    pub unit: &'static str,
    /// How many of these units a second has.
    pub scale: f64,
}

impl Case {
    /// The amount of work of so many operations, in the units of the cost.
    pub fn amount(&self, operations: u64) -> f64 {
        let each = if self.operation == Operation::Firmware { FIRMWARE_BYTES as f64 / 1e9 } else { 1.0 };
        operations as f64 * each
    }
}

/// A phone with the usual certificate.
pub const HANDSHAKE: Case = Case {
    name: "",
    key: Key::P256,
    level: TlsLevel::Modern,
    tls: Tls::Modern(&TLS13),
    operation: Operation::FullHandshake,
    workers: 8,
    target: None,
    unit: "µs",
    scale: 1e6,
};

const LEGACY: Case = Case { key: Key::Rsa2048, level: TlsLevel::Legacy, ..HANDSHAKE };

pub const CASES: &[Case] = &[
    Case { name: "full handshake, RSA-2048, TLS 1.3", key: Key::Rsa2048, target: Some(2.7), ..HANDSHAKE },
    Case { name: "full handshake, RSA-2048, TLS 1.2", key: Key::Rsa2048, tls: Tls::Modern(&TLS12), ..HANDSHAKE },
    Case { name: "full handshake, P-256, TLS 1.3", target: Some(4.0), ..HANDSHAKE },
    Case { name: "full handshake, P-256, TLS 1.2", tls: Tls::Modern(&TLS12), ..HANDSHAKE },
    Case { name: "resumed handshake, TLS 1.3", operation: Operation::ResumedHandshake, target: Some(2.0), ..HANDSHAKE },
    Case {
        name: "resumed handshake, TLS 1.2",
        operation: Operation::ResumedHandshake,
        tls: Tls::Modern(&TLS12),
        target: Some(2.0),
        ..HANDSHAKE
    },
    Case {
        name: "keep-alive, 1.8 kB file",
        operation: Operation::SmallFile,
        workers: 32,
        target: Some(1.2),
        ..HANDSHAKE
    },
    Case {
        name: "100 MiB firmware, per GB",
        operation: Operation::Firmware,
        workers: 2,
        target: Some(1.6),
        unit: "ms",
        scale: 1e3,
        ..HANDSHAKE
    },
    Case { name: "legacy TLS enabled: TLS 1.3", ..LEGACY },
    Case {
        name: "legacy: TLS 1.2, DHE-RSA-AES128-GCM",
        tls: Tls::Legacy(SslVersion::TLS1_2, "DHE-RSA-AES128-GCM-SHA256"),
        ..LEGACY
    },
    Case {
        name: "legacy: TLS 1.2, RSA-AES128-GCM",
        tls: Tls::Legacy(SslVersion::TLS1_2, "AES128-GCM-SHA256"),
        ..LEGACY
    },
    Case { name: "legacy: TLS 1.0, RSA-AES128-SHA", tls: Tls::Legacy(SslVersion::TLS1, "AES128-SHA"), ..LEGACY },
];
