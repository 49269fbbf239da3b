//! The state of a phone, from its constituency's policy and the phone history. Pure.

use serde::Serialize;

use super::summary::{PhoneSummary, SILENT_AFTER};
use crate::constituency::{Listing, PhoneStanding};

/// The state of a phone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PhoneState {
    /// Known, accepted at its last request, and seen during the last two days.
    Well,
    /// Known, and not seen for two days.
    Silent,
    /// Known, and never seen.
    Never,
    /// Refused with valid credentials because it is not on the list. It waits for approval.
    Waiting,
    /// Accepted at its last request, and removed from the list since.
    Removed,
    /// Refused at its last request because it was not on the list, and added since.
    Allowed,
    /// Known, and refused at its last request.
    Refused,
    /// Known, and a client that claims to be this phone was refused since it was last accepted. A claim proves nothing.
    LockedOut,
    /// Denied by the policy.
    Denied,
    /// Its constituency is not served any more.
    Gone,
}

impl PhoneState {
    /// Every state, in the order of lists: those that need an operator first. The index in the database stores the
    /// position; a new order needs a new version of the schema.
    pub const ALL: [Self; 10] = [
        Self::Refused,
        Self::LockedOut,
        Self::Waiting,
        Self::Silent,
        Self::Never,
        Self::Allowed,
        Self::Well,
        Self::Denied,
        Self::Removed,
        Self::Gone,
    ];

    /// The state of `phone` at `now`, in Unix milliseconds.
    #[must_use]
    pub fn of(phone: &PhoneSummary, now: i64) -> Self {
        match (phone.standing, &phone.seen) {
            (None, _) => Self::Gone,
            (Some(PhoneStanding::Denied | PhoneStanding::DeniedEverywhere), _) => Self::Denied,
            // Accepted at its last request, and not on the list now: it was removed from the list since.
            (Some(PhoneStanding::Unknown), Some(seen)) if !seen.is_refused && seen.last_accepted.is_some() => {
                Self::Removed
            }
            (Some(PhoneStanding::Unknown), _) => Self::Waiting,
            (Some(PhoneStanding::Known), Some(_)) if phone.is_refused() => Self::Refused,
            (Some(PhoneStanding::Known), _) if phone.locked_out(now).is_some() => Self::LockedOut,
            (Some(PhoneStanding::Known), None) => Self::Never,
            (Some(PhoneStanding::Known), Some(seen)) if now.saturating_sub(seen.last_seen) >= SILENT_AFTER => {
                Self::Silent
            }
            (Some(PhoneStanding::Known), Some(_)) if phone.is_allowed_since() => Self::Allowed,
            (Some(PhoneStanding::Known), Some(_)) => Self::Well,
        }
    }

    /// The state of a phone that was never seen, by the list that names it.
    #[must_use]
    pub fn of_unseen(listing: Listing) -> Self {
        match listing {
            Listing::Known => Self::Never,
            Listing::Denied => Self::Denied,
        }
    }

    /// The name in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Silent => "silent",
            Self::Never => "never",
            Self::Allowed => "allowed",
            Self::Waiting => "waiting",
            Self::Refused => "refused",
            Self::LockedOut => "locked_out",
            Self::Denied => "denied",
            Self::Removed => "removed",
            Self::Gone => "gone",
        }
    }

    /// Whether the phone is known in a constituency that is served.
    #[must_use]
    pub fn is_known(self) -> bool {
        matches!(self, Self::Well | Self::Silent | Self::Never | Self::Allowed | Self::Refused | Self::LockedOut)
    }

    /// The position in [`PhoneState::ALL`].
    #[must_use]
    pub fn rank(self) -> usize {
        Self::ALL.iter().position(|state| *state == self).unwrap_or(Self::ALL.len())
    }
}
