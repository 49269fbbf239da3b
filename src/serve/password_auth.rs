//! Authenticates phones by password, per request.

use std::sync::atomic::Ordering;

use hyper::header::{HeaderValue, USER_AGENT};
use hyper::http::request::Parts;

use super::access_control::Denial;
use super::connection_limits::ConnectionKind;
use super::request::HttpClient;
use crate::constituency::{ConstituencyName, MacAddress, PhoneStanding};
use crate::identity::digest::{LoginAttempt, LoginFailure};

/// How many failed logins on one connection get another challenge. The next failure ends the connection, so that guesses
/// cost handshakes. The protection against guessing is that a password has 128 bits.
const ALLOWED_FAILURES: u32 = 10;

impl HttpClient {
    /// The phone whose password this request proves, or the denial; `None` if the constituency uses no passwords.
    pub(super) fn check_password(&self, head: &Parts) -> Option<Result<MacAddress, Denial>> {
        // Over plain HTTP send no challenge: a client would answer it without TLS.
        let peer = self.peer.as_ref()?;
        let realm = peer.generation.realm.as_deref()?;
        let constituency = &peer.constituency;
        let attempt =
            LoginAttempt { constituency, realm, method: &head.method, target: &head.uri, headers: &head.headers };
        let proven = self.server.authenticator.authenticate(&attempt);
        Some(
            proven
                .map_err(|unproven| self.challenge_denial(constituency, realm, head, &unproven))
                .and_then(|mac| self.promote_permit(constituency, mac)),
        )
    }

    fn challenge_denial(
        &self,
        constituency: &ConstituencyName,
        realm: &str,
        head: &Parts,
        unproven: &LoginFailure,
    ) -> Denial {
        let reason = unproven.why.to_string();
        let claimed = unproven.why.claimed();
        if !unproven.is_routine() && self.failed_logins.fetch_add(1, Ordering::Relaxed) >= ALLOWED_FAILURES {
            return Denial::TooManyAttempts { reason, claimed };
        }
        let agent = head.headers.get(USER_AGENT).map(HeaderValue::as_bytes);
        let md5_first = !agent.is_some_and(knows_sha256);
        let challenges = self.server.authenticator.challenge(constituency, realm, unproven.is_stale, md5_first);
        Denial::Unauthenticated { reason, claimed, is_routine: unproven.is_routine(), challenges: Box::new(challenges) }
    }

    /// Moves the connection of a known phone out of the share of unauthenticated connections.
    fn promote_permit(&self, name: &ConstituencyName, mac: MacAddress) -> Result<MacAddress, Denial> {
        let mut permit = self.permit();
        if permit.kind() == ConnectionKind::Proven {
            return Ok(mac);
        }
        let site = self.server.site.load();
        let constituency = site.get(name).map(|(constituency, _)| constituency);
        if constituency.is_some_and(|constituency| constituency.standing(mac) == PhoneStanding::Known) {
            let phone = (name.clone(), mac);
            permit
                .set_kind(ConnectionKind::Proven, Some(phone))
                .map_err(|full| Denial::ConnectionLimit(full.to_string()))?;
        }
        Ok(mac)
    }
}

/// Whether this user agent answers a SHA-256 challenge: curl since 7.57.
///
/// Many clients answer only the first challenge. Phone firmware, libcurl before 7.57 (seen with 7.39, 7.51 and 7.54)
/// and Python's urllib give up if that is SHA-256; later versions of curl do not look for a better one either.
fn knows_sha256(agent: &[u8]) -> bool {
    let version = || {
        let text = std::str::from_utf8(agent.strip_prefix(b"curl/")?).ok()?;
        let mut parts = text.split(|byte: char| !byte.is_ascii_digit());
        Some((parts.next()?.parse::<u32>().ok()?, parts.next()?.parse::<u32>().ok()?))
    };
    version().is_some_and(|version| version >= (7, 57))
}
