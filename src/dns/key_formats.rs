//! TSIG keys in the formats of DNS software. Pure.
//!
//! | format | written by |
//! |---|---|
//! | `key "NAME" { algorithm …; secret …; };` | `tsig-keygen`, `ddns-confgen`; in `named.conf` and `dhcpd.conf`, among other statements |
//! | `key:` with `id` or `name`, `algorithm`, `secret` | Knot's `keymgr -t`; in `knot.conf` and `nsd.conf`, among other sections |
//! | `NAME ALGORITHM SECRET` | PowerDNS's `pdnsutil generate-tsig-key` and `list-tsig-keys` |
//! | `ALGORITHM:NAME:SECRET` | the option `-y` of `nsupdate` and `dig` |
//! | `K*.private`, `K*.key` | `dnssec-keygen` of BIND before 9.14 |

use super::key_syntax;
use super::stored_key::{StoredKey, TsigKeyProblem, normal_name};

/// The keys in `text`, the content of the file `file_name`. `wanted` is the name of a key whose file does not have it.
pub(super) fn keys(text: &str, file_name: &str, wanted: Option<&str>) -> Result<Vec<StoredKey>, TsigKeyProblem> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.contains("-----BEGIN ") {
        return Err(TsigKeyProblem::Pem);
    }
    if text.trim_start().starts_with("Private-key-format:") {
        return private_file(text, file_name, wanted).map(|key| vec![key]);
    }
    if text.lines().any(|line| uncommented(line) == "key:") {
        return sections(text);
    }
    match lines(text) {
        Some(keys) => keys,
        None => key_syntax::keys(text),
    }
}

/// The `key:` sections of Knot's and NSD's configuration; other sections are skipped. Knot has a list in one section, NSD
/// a section for each key.
fn sections(text: &str) -> Result<Vec<StoredKey>, TsigKeyProblem> {
    let mut keys: Vec<StoredKey> = Vec::new();
    let mut is_in_section = false;
    for (index, line) in text.lines().enumerate() {
        let content = uncommented(line);
        let is_outermost = !line.starts_with([' ', '\t', '-']);
        if content.is_empty() {
            continue;
        }
        if is_outermost {
            is_in_section = content == "key:";
        }
        if !is_in_section {
            continue;
        }
        let field = content.trim_start();
        if is_outermost || field.starts_with('-') {
            keys.push(StoredKey::new("", "", ""));
        }
        let field = field.trim_start_matches(['-', ' ']);
        let (Some(key), Some((name, value)), false) = (keys.last_mut(), field.split_once(':'), is_outermost) else {
            if is_outermost {
                continue;
            }
            return Err(TsigKeyProblem::Syntax { line: index + 1, expected: "`id:`, `algorithm:` or `secret:`" });
        };
        let value = value.trim().trim_matches(['"', '\'']);
        match name.trim() {
            "id" | "name" => key.name = normal_name(value),
            "algorithm" => key.algorithm = value.to_ascii_lowercase(),
            "secret" => value.clone_into(&mut key.secret),
            _ => {}
        }
    }
    // Knot's section begins before its first key.
    keys.retain(|key| !key.name.is_empty() || !key.algorithm.is_empty() || !key.secret.is_empty());
    Ok(keys)
}

/// A line without its comment.
fn uncommented(line: &str) -> &str {
    let is_comment = |at: &usize| line[..*at].ends_with(char::is_whitespace) || *at == 0;
    let end = line.match_indices('#').map(|(at, _)| at).find(is_comment).unwrap_or(line.len());
    line[..end].trim_end()
}

/// Keys of one line each, if all lines are such keys or comments.
fn lines(text: &str) -> Option<Result<Vec<StoredKey>, TsigKeyProblem>> {
    let lines = text.lines().map(|line| line.split(';').next().unwrap_or_default());
    let lines = lines.map(|line| uncommented(line).trim()).filter(|line| !line.is_empty());
    let keys: Vec<_> = lines.map(line_key).collect::<Option<_>>()?;
    (!keys.is_empty()).then(|| keys.into_iter().collect())
}

fn line_key(line: &str) -> Option<Result<StoredKey, TsigKeyProblem>> {
    let line = line.strip_prefix("Create new TSIG key ").unwrap_or(line);
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    match words[..] {
        [name, algorithm, secret] if is_algorithm(algorithm) => Some(Ok(StoredKey::new(name, algorithm, secret))),
        [one] => {
            let mut parts = one.splitn(3, ':');
            let (algorithm, name, secret) = (parts.next()?, parts.next()?, parts.next()?);
            is_algorithm(algorithm).then(|| Ok(StoredKey::new(name, algorithm, secret)))
        }
        [name, .., "KEY" | "DNSKEY", _, _, number, secret] => Some(StoredKey::numbered(name, number, secret)),
        _ => None,
    }
}

fn is_algorithm(word: &str) -> bool {
    word.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("hmac-"))
}

/// `K*.private`. The key's name is only in the name of the file: `KNAME.+ALGORITHM+TAG.private`.
fn private_file(text: &str, file_name: &str, wanted: Option<&str>) -> Result<StoredKey, TsigKeyProblem> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let number = field("Algorithm").and_then(|value| value.split_ascii_whitespace().next()).unwrap_or_default();
    let of_file = file_name.strip_prefix('K').and_then(|rest| Some(rest.split_once(".+")?.0));
    let mut key = StoredKey::numbered("", number, field("Key").unwrap_or_default())?;
    key.name = normal_name(of_file.or(wanted).ok_or(TsigKeyProblem::Nameless)?);
    Ok(key)
}
