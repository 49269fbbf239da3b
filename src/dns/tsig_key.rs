//! TSIG keys (RFC 8945), in the format of `tsig-keygen` and BIND. Pure: text in, key out.
//!
//! Messages quote only names and algorithms, since all else in a key file may be the secret.

use std::fmt;
use std::io;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hickory_net::proto::rr::rdata::tsig::TsigAlgorithm;
use hickory_net::proto::rr::{Name, TSigner};

use super::name;

/// How many seconds the primary's clock and ours may differ, as RFC 8945 recommends.
pub(super) const FUDGE_S: u16 = 300;

/// A key that signs our updates. `Debug` does not print its secret.
#[derive(Clone)]
pub struct TsigKey {
    signer: TSigner,
}

/// Why the key cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum TsigKeyError {
    /// The file cannot be read.
    #[error("the TSIG key file {path} cannot be read: {source}", path = .path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The file holds no usable key.
    #[error("the TSIG key file {path}: {problem}", path = .path.display())]
    Unusable { path: PathBuf, problem: TsigKeyProblem },
}

/// What is wrong with a key file's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TsigKeyProblem {
    #[error("line {line}: {expected} expected; the file must be as `tsig-keygen` writes it")]
    Syntax { line: usize, expected: &'static str },
    #[error("it holds no key; make one with `tsig-keygen -a hmac-sha256 provost.`")]
    NoKey,
    #[error("it holds several keys ({}); say which in \"tsig_key_name\"", .0.join(", "))]
    Several(Vec<String>),
    #[error("it holds no key named {wanted:?}, only {}", .held.join(", "))]
    NotThere { wanted: String, held: Vec<String> },
    #[error("it holds two keys named {0:?}")]
    Twice(String),
    #[error(
        "the key {key:?} is for {algorithm}; hmac-sha256, hmac-sha384 and hmac-sha512 will do: make a new one with `tsig-keygen -a hmac-sha256 {key}`"
    )]
    Algorithm { key: String, algorithm: String },
    #[error("the secret of the key {0:?} is empty or no base64")]
    Secret(String),
    #[error("the key {0:?} has a name that is no domain name")]
    Name(String),
}

impl TsigKey {
    /// Finds the key `wanted`, or the only one, in the `text` of a key file.
    pub fn parse(text: &str, wanted: Option<&str>) -> Result<Self, TsigKeyProblem> {
        let mut statements = statements(text)?;
        let held: Vec<String> = statements.iter().map(|statement| statement.name.clone()).collect();
        if let Some(twice) = held.iter().enumerate().find_map(|(at, name)| held[..at].contains(name).then_some(name)) {
            return Err(TsigKeyProblem::Twice(twice.clone()));
        }
        let index = match wanted.map(normal_name) {
            Some(wanted) => {
                let index = held.iter().position(|name| *name == wanted);
                index.ok_or(TsigKeyProblem::NotThere { wanted, held })?
            }
            None if held.len() > 1 => return Err(TsigKeyProblem::Several(held)),
            None if held.is_empty() => return Err(TsigKeyProblem::NoKey),
            None => 0,
        };
        statements.swap_remove(index).key()
    }

    /// Its name with the last dot, as the primary's configuration has it.
    #[must_use]
    pub fn name(&self) -> String {
        self.signer.signer_name().to_ascii()
    }

    /// Its algorithm, `hmac-sha256` for example.
    #[must_use]
    pub fn algorithm(&self) -> String {
        self.signer.algorithm().to_string()
    }

    /// Signs and verifies. hickory does not wipe its copy of the secret, so wiping ours would gain nothing.
    pub(super) fn signer(&self) -> &TSigner {
        &self.signer
    }
}

impl fmt::Debug for TsigKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TsigKey")
            .field("name", &self.name())
            .field("algorithm", &self.algorithm())
            .finish_non_exhaustive()
    }
}

/// One `key "name" { algorithm …; secret "…"; };`
struct Statement {
    name: String,
    algorithm: String,
    secret: String,
}

impl Statement {
    fn key(self) -> Result<TsigKey, TsigKeyProblem> {
        let Self { name: key, algorithm, secret } = self;
        let supported = match algorithm.trim_end_matches('.') {
            "hmac-sha256" => TsigAlgorithm::HmacSha256,
            "hmac-sha384" => TsigAlgorithm::HmacSha384,
            "hmac-sha512" => TsigAlgorithm::HmacSha512,
            known if known.starts_with("hmac-") => return Err(TsigKeyProblem::Algorithm { key, algorithm }),
            _ => return Err(TsigKeyProblem::Algorithm { key, algorithm: "an unknown algorithm".to_owned() }),
        };
        let unusable = || TsigKeyProblem::Secret(key.clone());
        let secret: String = secret.split_ascii_whitespace().collect();
        let bytes = STANDARD.decode(secret).ok().filter(|bytes| !bytes.is_empty()).ok_or_else(unusable)?;
        let name: Name = name::parse(&key).map_err(|_| TsigKeyProblem::Name(key.clone()))?;
        let signer = TSigner::new(bytes, supported, name, FUDGE_S).map_err(|_| unusable())?;
        Ok(TsigKey { signer })
    }
}

fn normal_name(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// A token of a file in BIND's syntax, with its line.
struct ConfToken {
    text: String,
    /// Whether it is an unquoted `{`, `}` or `;`.
    is_mark: bool,
    line: usize,
}

/// The tokens of a file, in order.
struct ConfTokens {
    words: std::vec::IntoIter<ConfToken>,
    line: usize,
}

impl ConfTokens {
    fn next(&mut self, expected: &'static str) -> Result<ConfToken, TsigKeyProblem> {
        let word = self.words.next().ok_or(TsigKeyProblem::Syntax { line: self.line, expected })?;
        self.line = word.line;
        Ok(word)
    }

    fn text(&mut self, expected: &'static str) -> Result<String, TsigKeyProblem> {
        let word = self.next(expected)?;
        if word.is_mark { Err(TsigKeyProblem::Syntax { line: word.line, expected }) } else { Ok(word.text) }
    }

    fn mark(&mut self, mark: &'static str) -> Result<(), TsigKeyProblem> {
        let word = self.next(mark)?;
        let is_it = word.is_mark && word.text == mark;
        if is_it { Ok(()) } else { Err(TsigKeyProblem::Syntax { line: word.line, expected: mark }) }
    }
}

fn statements(text: &str) -> Result<Vec<Statement>, TsigKeyProblem> {
    let words = words(text)?;
    let mut words = ConfTokens { line: words.last().map_or(1, |word| word.line), words: words.into_iter() };
    let mut statements = Vec::new();
    while words.words.len() > 0 {
        let keyword = words.text("a `key` statement")?;
        if !keyword.eq_ignore_ascii_case("key") {
            return Err(TsigKeyProblem::Syntax { line: words.line, expected: "a `key` statement" });
        }
        let name = normal_name(&words.text("the key's name")?);
        statements.push(body(&mut words, name)?);
    }
    Ok(statements)
}

fn body(words: &mut ConfTokens, name: String) -> Result<Statement, TsigKeyProblem> {
    const CLAUSE: &str = "`algorithm …;` or `secret …;`";
    let (mut algorithm, mut secret) = (None, None);
    words.mark("{")?;
    while algorithm.is_none() || secret.is_none() {
        let clause = words.text(CLAUSE)?;
        let slot = match clause.to_ascii_lowercase().as_str() {
            "algorithm" if algorithm.is_none() => &mut algorithm,
            "secret" if secret.is_none() => &mut secret,
            _ => return Err(TsigKeyProblem::Syntax { line: words.line, expected: CLAUSE }),
        };
        *slot = Some(words.text(CLAUSE)?);
        words.mark(";")?;
    }
    words.mark("}")?;
    words.mark(";")?;
    let algorithm = algorithm.unwrap_or_default().to_ascii_lowercase();
    Ok(Statement { name, algorithm, secret: secret.unwrap_or_default() })
}

/// Splits a text as BIND does: words, quoted words, `{ } ;`. Skips BIND's three kinds of comments.
fn words(text: &str) -> Result<Vec<ConfToken>, TsigKeyProblem> {
    let mut words = Vec::new();
    let mut rest = text;
    let line_of = |rest: &str| 1 + text[..text.len() - rest.len()].matches('\n').count();
    while let Some(first) = rest.chars().next() {
        let line = line_of(rest);
        let unended = |expected| TsigKeyProblem::Syntax { line, expected };
        if first.is_whitespace() {
            rest = &rest[first.len_utf8()..];
        } else if first == '#' || rest.starts_with("//") {
            rest = rest.find('\n').map_or("", |end| &rest[end..]);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = &comment[comment.find("*/").ok_or_else(|| unended("the comment's end"))? + 2..];
        } else if let Some(quoted) = rest.strip_prefix('"') {
            let end = quoted.find(['"', '\n']).filter(|end| quoted[*end..].starts_with('"'));
            let end = end.ok_or_else(|| unended("the closing quotation mark"))?;
            words.push(ConfToken { text: quoted[..end].to_owned(), is_mark: false, line });
            rest = &quoted[end + 1..];
        } else {
            let is_mark = matches!(first, '{' | '}' | ';');
            let is_end = |it: char| it.is_whitespace() || matches!(it, '{' | '}' | ';' | '"' | '#');
            let end = if is_mark { 1 } else { rest.find(is_end).unwrap_or(rest.len()) };
            words.push(ConfToken { text: rest[..end].to_owned(), is_mark, line });
            rest = &rest[end..];
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTMyYnk=";

    fn statement(name: &str, algorithm: &str) -> String {
        format!("key \"{name}\" {{\n\talgorithm {algorithm};\n\tsecret \"{SECRET}\";\n}};\n")
    }

    fn problem(text: &str, wanted: Option<&str>) -> TsigKeyProblem {
        TsigKey::parse(text, wanted).map(|key| key.name()).unwrap_err()
    }

    #[test]
    fn tsig_keygen_output_is_parsed() {
        for algorithm in ["hmac-sha256", "hmac-sha384", "hmac-sha512"] {
            let key = TsigKey::parse(&statement("provost.", algorithm), None).unwrap();
            assert_eq!((key.name().as_str(), key.algorithm().as_str()), ("provost.", algorithm));
            assert_eq!(key.signer().key(), b"secret-secret-secret-secret-32by");
        }
    }

    #[test]
    fn hand_edited_key_file_is_parsed() {
        let text = format!(
            "# ours\n// two\n/* three\nlines */KEY Provost{{secret {SECRET};# x\n algorithm \"HMAC-SHA256.\"; }} ;"
        );
        assert_eq!(TsigKey::parse(&text, None).unwrap().name(), "provost.");
    }

    #[test]
    fn key_must_be_named_when_the_file_holds_several() {
        let text = statement("a.", "hmac-md5") + &statement("B.example", "hmac-sha512");
        assert_eq!(TsigKey::parse(&text, Some("b.example.")).unwrap().algorithm(), "hmac-sha512");
        assert_eq!(problem(&text, None), TsigKeyProblem::Several(vec!["a".to_owned(), "b.example".to_owned()]));
        assert!(matches!(problem(&text, Some("c")), TsigKeyProblem::NotThere { .. }));
        assert!(matches!(problem(&text, Some("a")), TsigKeyProblem::Algorithm { .. }));
        assert_eq!(
            problem(&(statement("A", "x") + &statement("a.", "y")), None),
            TsigKeyProblem::Twice("a".to_owned())
        );
    }

    #[test]
    fn key_file_syntax_error_names_the_line() {
        assert_eq!(problem("# nothing\n", None), TsigKeyProblem::NoKey);
        for (text, line) in [
            ("options { };", 1),
            ("key \"a\" {\n algorithm hmac-sha256;\n};", 3),
            ("key \"a\" {\n algorithm hmac-sha256;\n secret \"abc;\n};", 3),
            ("key \"a\"\n{ algorithm hmac-sha256; secret", 2),
            ("\n/* never closed", 2),
            ("key { }", 1),
        ] {
            let TsigKeyProblem::Syntax { line: found, .. } = problem(text, None) else { panic!("{text}") };
            assert_eq!(found, line, "{text}");
        }
        assert_eq!(
            problem("key a { algorithm hmac-sha256; secret \"!\"; };", None),
            TsigKeyProblem::Secret("a".to_owned())
        );
        assert_eq!(
            problem("key a { algorithm hmac-sha256; secret \"\"; };", None),
            TsigKeyProblem::Secret("a".to_owned())
        );
    }

    #[test]
    fn secret_is_absent_from_debug_and_errors() {
        let good = statement("provost.", "hmac-sha256");
        let debug = format!("{:?}", TsigKey::parse(&good, None).unwrap());
        assert_eq!(debug, "TsigKey { name: \"provost.\", algorithm: \"hmac-sha256\", .. }");
        // Wherever the file is broken, the message does not contain its text.
        let mut seen = 0;
        for at in (0..good.len()).filter(|at| good.is_char_boundary(*at)) {
            for broken in [format!("{}}}{}", &good[..at], &good[at..]), good[..at].to_owned(), good[at..].to_owned()] {
                if let Err(problem) = TsigKey::parse(&broken, None) {
                    assert!(!problem.to_string().contains(&SECRET[..8]), "{problem}");
                    seen += 1;
                }
            }
        }
        assert!(seen > 100, "saw {seen} problems");
    }

    proptest::proptest! {
        #[test]
        fn key_file_parser_accepts_any_text_without_panic(text in "(key|[a-z{};\"#/* \n\u{e4}]){0,60}") {
            let _ = TsigKey::parse(&text, None);
        }
    }
}
