//! Explains the errors of a CA as [`AcmeFailure`]. Pure.

use instant_acme::{Error, Problem};

use super::response_headers::ResponseHeaders;
use crate::acme::failure::{AcmeFailure, FailureKind, Retry};

/// How long to wait, in seconds, if a CA reports a rate limit without Retry-After.
const DEFAULT_WAIT: i64 = 3600;

/// ACME error types that recur until an operator changes something.
const ACTION_REQUIRED: [&str; 10] = [
    "badCSR",
    "badPublicKey",
    "caa",
    "externalAccountRequired",
    "invalidContact",
    "invalidProfile",
    "rejectedIdentifier",
    "unsupportedContact",
    "unsupportedIdentifier",
    "unauthorizedAccount",
];

/// Whether the CA refused only the nonce (RFC 8555 §6.5).
pub(super) fn is_bad_nonce(error: &Error) -> bool {
    matches!(error, Error::Api(problem) if kind(problem) == "badNonce")
}

/// Explains an error of instant-acme. `seen` is the response that it came with.
pub(super) fn explain(error: &Error, seen: &ResponseHeaders) -> AcmeFailure {
    let at_url = |reason: String| if seen.url.is_empty() { reason } else { format!("{}: {reason}", seen.url) };
    match error {
        Error::Api(problem) => explain_problem(problem, seen),
        Error::Timeout(_) => AcmeFailure::retry(at_url(
            "timeout while the CA processed the order; the next attempt resumes it".to_owned(),
        )),
        // No problem document: the response comes from a proxy, or the CA has an outage.
        _ if seen.status >= 400 => of_status(at_url(format!("the CA answered {}", seen.status)), seen.status, seen),
        Error::Json(_) if seen.body.trim_ascii_start().starts_with(b"<") => AcmeFailure::retry(at_url(
            "the answer is a web page, and not what ACME requires; see whether a proxy or a portal on the way answers in the CA's \
             place (`curl -v` with this URL)"
                .to_owned(),
        )),
        Error::Json(error) => AcmeFailure::retry(at_url(format!("the CA's answer is not what ACME requires: {error}"))),
        // Our HTTP client has named the URL.
        Error::Other(source) => AcmeFailure::retry(source.to_string()),
        other => AcmeFailure::retry(at_url(other.to_string())),
    }
}

/// Explains a problem document. The message is the CA's text in full.
pub(super) fn explain_problem(problem: &Problem, seen: &ResponseHeaders) -> AcmeFailure {
    let text = problem.to_string();
    let text = text.strip_prefix("API error: ").unwrap_or(&text).to_owned();
    let status = problem.status.unwrap_or(seen.status);
    match kind(problem) {
        "accountDoesNotExist" => AcmeFailure::retry(text).with_kind(FailureKind::AccountUnknown),
        "unauthorized" if is_deactivation(problem) => {
            AcmeFailure::retry(text).with_kind(FailureKind::AccountDeactivated)
        }
        // The order is as good as before: a later attempt resumes it.
        "badNonce" | "orderNotReady" => AcmeFailure::retry(text),
        "userActionRequired" => {
            let page = seen.user_action_url().map_or_else(
                || "; the CA names no page for it: sign in there, or ask its support".to_owned(),
                |url| format!("; do what {url} asks"),
            );
            AcmeFailure::action_required(text + &page).with_kind(FailureKind::Refused)
        }
        // With 503 the service is overloaded; we have not reached a limit.
        "rateLimited" if status == 429 => of_status(text, 429, seen).with_kind(FailureKind::RateLimited),
        "rateLimited" => of_status(text, 429, seen),
        recurring if ACTION_REQUIRED.contains(&recurring) => {
            AcmeFailure::action_required(text).with_kind(FailureKind::Refused)
        }
        _ => of_status(text, status, seen),
    }
}

pub(super) fn of_status(text: String, status: u16, seen: &ResponseHeaders) -> AcmeFailure {
    let failure = AcmeFailure::retry(text);
    match status {
        429 => failure.after(Some(seen.retry_after.unwrap_or(DEFAULT_WAIT))),
        500.. => failure.after(seen.retry_after),
        _ => AcmeFailure { retry: seen.retry_after.map_or(Retry::Backoff, Retry::After), ..failure }
            .with_kind(FailureKind::Refused),
    }
}

/// Whether the CA says that our account is deactivated. RFC 8555 §7.3.6 has no error type of its own for it. Let's
/// Encrypt: `Account is not valid, has status "deactivated"`, and at the registration `An account with the provided
/// public key exists but is deactivated`. `ZeroSSL`: `The account has been deactivated`. Authorizations can be deactivated,
/// too.
fn is_deactivation(problem: &Problem) -> bool {
    let detail = problem.detail.as_deref().unwrap_or_default().to_ascii_lowercase();
    detail.contains("account") && detail.contains("deactivated") && !detail.contains("authorization")
}

/// Whether the CA was asked to finalize an order before the order was ready (RFC 8555 §7.4).
pub(super) fn is_not_ready(error: &Error) -> bool {
    matches!(error, Error::Api(problem) if kind(problem) == "orderNotReady")
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

    fn seen(status: u16, retry_after: Option<i64>) -> ResponseHeaders {
        ResponseHeaders { status, retry_after, ..ResponseHeaders::default() }
    }

    #[test]
    fn each_acme_error_maps_to_its_retry_and_failure_kind() {
        let explained = |kind, status, retry_after| {
            let failure = explain(&problem(kind, status), &seen(status, retry_after));
            assert!(failure.message.contains("the reason") && failure.message.contains("the part"), "{failure}");
            (failure.retry, failure.kind)
        };
        assert_eq!(explained("rateLimited", 429, Some(90)), (Retry::After(90), FailureKind::RateLimited));
        assert_eq!(explained("rateLimited", 429, None), (Retry::After(3600), FailureKind::RateLimited));
        assert_eq!(explained("rateLimited", 503, Some(7)), (Retry::After(7), FailureKind::Unclear));
        assert_eq!(explained("serverInternal", 503, Some(5)), (Retry::After(5), FailureKind::Unclear));
        assert_eq!(explained("serverInternal", 500, None), (Retry::Backoff, FailureKind::Unclear));
        assert_eq!(explained("unauthorized", 403, None), (Retry::Backoff, FailureKind::Refused));
        assert_eq!(explained("caa", 403, None), (Retry::ActionRequired, FailureKind::Refused));
        assert_eq!(explained("accountDoesNotExist", 400, None), (Retry::Backoff, FailureKind::AccountUnknown));
        assert_eq!(explained("alreadyReplaced", 409, None), (Retry::Backoff, FailureKind::Refused));
        assert_eq!(explained("orderNotReady", 403, None), (Retry::Backoff, FailureKind::Unclear));
        assert!(is_bad_nonce(&problem("badNonce", 400)));
    }

    #[test]
    fn deactivated_account_is_recognized_in_the_words_of_each_ca() {
        let explained = |kind: &str, detail: &str| {
            let problem = serde_json::json!({ "type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail });
            explain(&Error::Api(serde_json::from_value(problem).unwrap()), &seen(403, None)).kind
        };
        for detail in [
            "Account is not valid, has status \"deactivated\"",
            "Unable to validate JWS :: Account is not valid, has status \"deactivated\"",
            "An account with the provided public key exists but is deactivated",
            "The account has been deactivated",
            "Account has been deactivated",
        ] {
            assert_eq!(explained("unauthorized", detail), FailureKind::AccountDeactivated, "{detail}");
        }
        for detail in ["Account is not valid, has status \"revoked\"", "authorization of this account is deactivated"] {
            assert_eq!(explained("unauthorized", detail), FailureKind::Refused, "{detail}");
        }
        assert_eq!(explained("malformed", "The account has been deactivated"), FailureKind::Refused);
    }

    #[test]
    fn the_page_for_a_user_action_is_named() {
        let error = problem("userActionRequired", 403);
        let with = |body: &'static str, terms: Option<&str>| {
            let seen =
                ResponseHeaders { body: body.into(), terms_of_service: terms.map(str::to_owned), ..seen(403, None) };
            let failure = explain(&error, &seen);
            assert_eq!((failure.retry, failure.kind), (Retry::ActionRequired, FailureKind::Refused));
            failure.message
        };
        let instance = r#"{ "instance": "https://ca.example/agree?token=1" }"#;
        assert!(
            with(instance, Some("https://ca.example/tos")).ends_with("; do what https://ca.example/agree?token=1 asks")
        );
        assert!(with("{}", Some("https://ca.example/tos")).ends_with("; do what https://ca.example/tos asks"));
        assert!(with(r#"{ "instance": 7 }"#, None).contains("names no page"));
    }

    #[test]
    fn html_error_page_is_an_outage_and_its_retry_after_is_kept() {
        let html = Error::Json(serde_json::from_str::<u8>("<html>").unwrap_err());
        let failure = explain(&html, &seen(503, Some(120)));
        assert_eq!((failure.retry, failure.message.as_str()), (Retry::After(120), "the CA answered 503"));
    }

    #[test]
    fn web_page_in_place_of_an_answer_is_named() {
        let json = Error::Json(serde_json::from_str::<u8>("<html>").unwrap_err());
        let seen =
            ResponseHeaders { url: "https://ca.example/dir".to_owned(), body: "\n<html>".into(), ..seen(200, None) };
        let failure = explain(&json, &seen);
        assert!(failure.message.starts_with("https://ca.example/dir: the answer is a web page"), "{failure}");
        assert!(failure.message.contains("a proxy or a portal") && !failure.message.contains("line 1"), "{failure}");
    }

    #[test]
    fn failure_without_a_problem_document_names_the_url() {
        let json = || Error::Json(serde_json::from_str::<u8>("<html>").unwrap_err());
        let rows = [
            (json(), 503, "https://ca.example/order/1: the CA answered 503"),
            (
                json(),
                200,
                "https://ca.example/order/1: the CA's answer is not what ACME requires: expected value at line 1",
            ),
            (
                Error::Timeout(None),
                200,
                "https://ca.example/order/1: timeout while the CA processed the order; the next attempt resumes it",
            ),
            (
                Error::Str("no certificate URL found"),
                200,
                "https://ca.example/order/1: missing data: no certificate URL found",
            ),
        ];
        for (error, status, start) in rows {
            let seen = ResponseHeaders { url: "https://ca.example/order/1".to_owned(), ..seen(status, None) };
            let failure = explain(&error, &seen);
            assert!(failure.message.starts_with(start), "{failure}");
        }
    }
}
