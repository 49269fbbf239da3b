//! What a CA's error means. Pure.

use instant_acme::{Error, Problem};

use super::seen::Seen;
use crate::renew::failure::{Cure, Failure, Sign};

/// How long to wait if a CA says "too many" but not until when.
const DEFAULT_WAIT: i64 = 3600;

/// Errors that come again until somebody changes something.
const FOR_HUMANS: [&str; 11] = [
    "badCSR",
    "badPublicKey",
    "caa",
    "externalAccountRequired",
    "invalidContact",
    "invalidProfile",
    "rejectedIdentifier",
    "unsupportedContact",
    "unsupportedIdentifier",
    "userActionRequired",
    "unauthorizedAccount",
];

/// Whether only the nonce was wrong (RFC 8555 §6.5).
pub(super) fn is_bad_nonce(error: &Error) -> bool {
    matches!(error, Error::Api(problem) if kind(problem) == "badNonce")
}

/// An error of the library, with what HTTP saw.
pub(super) fn explain(error: &Error, seen: &Seen) -> Failure {
    match error {
        Error::Api(problem) => explain_problem(problem, seen),
        Error::Timeout(_) => Failure::retry("the CA is still at it; looking again later"),
        // No problem document: a proxy, or an outage.
        _ if seen.status >= 400 => of_status(format!("the CA answered {}", seen.status), seen.status, seen),
        Error::Other(source) => Failure::retry(source.to_string()),
        other => Failure::retry(other.to_string()),
    }
}

/// The CA's own words, whole.
pub(super) fn explain_problem(problem: &Problem, seen: &Seen) -> Failure {
    let text = problem.to_string();
    let text = text.strip_prefix("API error: ").unwrap_or(&text).to_owned();
    let status = problem.status.unwrap_or(seen.status);
    match kind(problem) {
        "accountDoesNotExist" => Failure::retry(text).with_sign(Sign::AccountUnknown),
        "badNonce" => Failure::retry(text),
        // With 503 it is the service that is busy, not we who want too much.
        "rateLimited" if status == 429 => of_status(text, 429, seen).with_sign(Sign::Limited),
        "rateLimited" => of_status(text, 429, seen),
        human if FOR_HUMANS.contains(&human) => Failure::human(text).with_sign(Sign::Refused),
        _ => of_status(text, status, seen),
    }
}

pub(super) fn of_status(text: String, status: u16, seen: &Seen) -> Failure {
    let failure = Failure::retry(text);
    match status {
        429 => failure.after(Some(seen.retry_after.unwrap_or(DEFAULT_WAIT))),
        500.. => failure.after(seen.retry_after),
        _ => Failure { cure: seen.retry_after.map_or(Cure::Retry, Cure::Wait), ..failure }.with_sign(Sign::Refused),
    }
}

fn kind(problem: &Problem) -> &str {
    problem.r#type.as_deref().and_then(|kind| kind.rsplit(':').next()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(kind: &str, status: u16) -> Error {
        let text = format!(
            r#"{{"type": "urn:ietf:params:acme:error:{kind}", "detail": "the reason", "status": {status},
                "subproblems": [{{"type": "urn:ietf:params:acme:error:dns", "detail": "the part",
                                  "identifier": {{"type": "dns", "value": "a.example"}}}}]}}"#
        );
        Error::Api(serde_json::from_str(&text).unwrap())
    }

    fn seen(status: u16, retry_after: Option<i64>) -> Seen {
        Seen { status, retry_after, ..Seen::default() }
    }

    #[test]
    fn each_error_knows_what_helps() {
        let explained = |kind, status, retry_after| {
            let failure = explain(&problem(kind, status), &seen(status, retry_after));
            assert!(failure.message.contains("the reason") && failure.message.contains("the part"), "{failure}");
            (failure.cure, failure.sign)
        };
        assert_eq!(explained("rateLimited", 429, Some(90)), (Cure::Wait(90), Sign::Limited));
        assert_eq!(explained("rateLimited", 429, None), (Cure::Wait(3600), Sign::Limited));
        assert_eq!(explained("rateLimited", 503, Some(7)), (Cure::Wait(7), Sign::Unclear));
        assert_eq!(explained("serverInternal", 503, Some(5)), (Cure::Wait(5), Sign::Unclear));
        assert_eq!(explained("serverInternal", 500, None), (Cure::Retry, Sign::Unclear));
        assert_eq!(explained("unauthorized", 403, None), (Cure::Retry, Sign::Refused));
        assert_eq!(explained("caa", 403, None), (Cure::Human, Sign::Refused));
        assert_eq!(explained("accountDoesNotExist", 400, None), (Cure::Retry, Sign::AccountUnknown));
        assert_eq!(explained("alreadyReplaced", 409, None), (Cure::Retry, Sign::Refused));
        assert!(is_bad_nonce(&problem("badNonce", 400)));
    }

    #[test]
    fn a_page_of_html_is_an_outage_and_its_retry_after_counts() {
        let html = Error::Json(serde_json::from_str::<u8>("<html>").unwrap_err());
        let failure = explain(&html, &seen(503, Some(120)));
        assert_eq!((failure.cure, failure.message.as_str()), (Cure::Wait(120), "the CA answered 503"));
    }
}
