//! Authentication of clients: a device certificate ([`trust`]) or a password ([`digest`]) proves a MAC address. The
//! constituency's policy decides what that address may access.

use std::sync::Arc;

use crate::constituency::MacAddress;

pub mod digest;
pub mod trust;

/// Who a client is. Access control, the access log and the phone history decide by this alone.
#[derive(Debug, Clone)]
pub enum ClientIdentity {
    /// Plain HTTP, over which no client can authenticate.
    Plain,
    /// TLS, with neither a device certificate nor a password.
    Anonymous,
    /// A device certificate, valid when it was verified.
    Certificate(Arc<trust::VerifiedDevice>),
    /// The right password of this phone, sent with the request.
    Password(MacAddress),
    /// A refused certificate or password: an identity that is only claimed.
    Claimed(trust::ClaimedIdentity),
}

impl ClientIdentity {
    /// The phone that the client has proven to be.
    #[must_use]
    pub fn mac(&self) -> Option<MacAddress> {
        match self {
            Self::Certificate(device) => device.mac().ok(),
            Self::Password(mac) => Some(*mac),
            Self::Plain | Self::Anonymous | Self::Claimed(_) => None,
        }
    }

    /// The verified device, if the client has a certificate.
    #[must_use]
    pub fn device(&self) -> Option<&trust::VerifiedDevice> {
        match self {
            Self::Certificate(device) => Some(device),
            _ => None,
        }
    }
}
