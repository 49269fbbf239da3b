//! Shows in the log the request line of a request that the HTTP parser rejects before it becomes a
//! [request](super::request). Pure.
//!
//! Only the request line is shown: header fields and bodies may hold secrets, and so may the user information of an
//! absolute-form target.

use super::access_log::escaped;

/// How much of a request's start is kept and shown, in bytes.
pub(super) const SHOWN: usize = 200;
/// The maximum length of a method, in bytes.
const METHOD: usize = 32;

/// The request line at the start of `bytes`, quoted and escaped; `None` if they start with anything else.
pub(super) fn shown(bytes: &[u8]) -> Option<String> {
    let begin = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let bytes = bytes.get(begin..)?;
    let end = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
    let line = bytes.get(..end.unwrap_or(bytes.len()).min(SHOWN))?;
    let is_whole = end == Some(line.len());
    let method = line.iter().take(METHOD + 1).take_while(|byte| is_token(**byte)).count();
    if !(1..=METHOD).contains(&method) || line.get(method) != Some(&b' ') {
        return None;
    }
    let (method, rest) = line.split_at_checked(method + 1)?;
    let (before, hidden, after) = without_user(rest, is_whole);
    let (method, before, after) = (escaped(method), escaped(before), escaped(after));
    let (hidden, cut) = (if hidden { "..." } else { "" }, if is_whole { "" } else { "..." });
    Some(format!("\"{method}{before}{hidden}{after}{cut}\""))
}

/// Whether the line has more spaces than the two around its target.
pub(super) fn has_raw_space(shown: &str) -> bool {
    shown
        .trim_end_matches('"')
        .rsplit_once(' ')
        .is_some_and(|(before, version)| version.starts_with("HTTP/") && before.matches(' ').count() > 1)
}

/// Splits a target around its user information, and returns whether there is any. A target cut off within its authority
/// may be all user information.
fn without_user(target: &[u8], is_whole: bool) -> (&[u8], bool, &[u8]) {
    if target.starts_with(b"/") {
        return (target, false, b"");
    }
    let scheme = target.windows(3).position(|part| part == b"://").map_or(0, |at| at + 3);
    let (scheme, rest) = target.split_at_checked(scheme).unwrap_or((b"", target));
    let authority = rest.iter().position(|byte| *byte == b'/');
    let (authority, path) = rest.split_at_checked(authority.unwrap_or(rest.len())).unwrap_or((rest, b""));
    let is_cut = path.is_empty() && !is_whole;
    match authority.iter().rposition(|byte| *byte == b'@') {
        _ if is_cut => (scheme, true, b""),
        Some(at) => (scheme, true, rest.get(at..).unwrap_or_default()),
        None => (target, false, b""),
    }
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_request_line_is_shown() {
        for (bytes, line) in [
            ("GET /a b HTTP/1.1\r\nAuthorization: x\r\n\r\n", r#""GET /a b HTTP/1.1""#),
            ("\r\n\nGET /a\n", r#""GET /a""#),
            ("GET /a\rX: y", r#""GET /a""#),
            ("GET /a", r#""GET /a...""#),
            ("GET /\u{1b}[2J\"\\ \r\n", r#""GET /\x1B[2J\x22\x5C ""#),
            ("CONNECT a:443 HTTP/1.1\r\n", r#""CONNECT a:443 HTTP/1.1""#),
            ("GET http://a/b@c HTTP/1.1\r\n", r#""GET http://a/b@c HTTP/1.1""#),
        ] {
            assert_eq!(shown(bytes.as_bytes()).as_deref(), Some(line), "{bytes:?}");
        }
        for bytes in ["", "\r\n", "GET", "Authorization: Basic x\r\n", "{\"a\": 1}", " GET / HTTP/1.1\r\n", "\0 /\r\n"]
        {
            assert_eq!(shown(bytes.as_bytes()), None, "{bytes:?}");
        }
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(1000));
        assert_eq!(shown(long.as_bytes()).unwrap(), format!("\"GET /{}...\"", "a".repeat(SHOWN - 5)));
    }

    #[test]
    fn user_information_is_never_shown() {
        for bytes in [
            "GET http://me:pass@a/ HTTP/1.1\r\n",
            "GET http://me:pass word@a/x y HTTP/1.1\r\n",
            "GET http://me:p@ss@a HTTP/1.1\r\n",
            "CONNECT me:pass@a:443 HTTP/1.1\r\n",
            "GET http://me:pass",
            "CONNECT me:pass",
        ] {
            let line = shown(bytes.as_bytes()).unwrap();
            assert!(line.contains("...") && !line.contains("pass") && !line.contains("ss"), "{bytes:?}: {line}");
        }
        let long = format!("GET http://me:pass{}@a/ HTTP/1.1\r\n", "x".repeat(SHOWN));
        assert_eq!(shown(long.as_bytes()).unwrap(), "\"GET http://......\"");
    }

    #[test]
    fn raw_space_in_the_target_is_detected() {
        for (line, is_there) in [
            ("\"GET /a b HTTP/1.1\"", true),
            ("\"GET /a  HTTP/1.1\"", true),
            ("\"GET /a HTTP/1.1\"", false),
            ("\"GET /a b...\"", false),
            ("\"GET /a\"", false),
        ] {
            assert_eq!(has_raw_space(line), is_there, "{line}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_or_reach_the_terminal_raw(bytes: Vec<u8>) {
            if let Some(line) = shown(&bytes) {
                proptest::prop_assert!(line.chars().all(|c| c == ' ' || c.is_ascii_graphic()));
            }
        }
    }
}
