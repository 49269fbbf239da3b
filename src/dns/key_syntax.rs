//! The `key` statements of BIND's configuration, as `tsig-keygen` and `ddns-confgen` write them. Pure.

use super::stored_key::{StoredKey, TsigKeyProblem, normal_name};

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

    /// Skips the rest of the statement that begins with `first`, its blocks included.
    fn skip_statement(&mut self, first: &ConfToken) {
        let mut depth = 0_usize;
        let mut skip = |word: &ConfToken| {
            match word.text.as_str() {
                "{" if word.is_mark => depth += 1,
                "}" if word.is_mark => depth = depth.saturating_sub(1),
                ";" if word.is_mark && depth == 0 => return true,
                _ => {}
            }
            false
        };
        if !skip(first) {
            self.words.by_ref().find(skip);
        }
    }

    fn mark(&mut self, mark: &'static str) -> Result<(), TsigKeyProblem> {
        let word = self.next(mark)?;
        let is_it = word.is_mark && word.text == mark;
        if is_it { Ok(()) } else { Err(TsigKeyProblem::Syntax { line: word.line, expected: mark }) }
    }
}

/// The keys of the `key` statements in `text`. Other statements are skipped, and so is what `ddns-confgen` prints after
/// them.
pub(super) fn keys(text: &str) -> Result<Vec<StoredKey>, TsigKeyProblem> {
    let words = words(text)?;
    let mut words = ConfTokens { line: words.last().map_or(1, |word| word.line), words: words.into_iter() };
    let mut keys = Vec::new();
    while let Some(first) = words.words.next() {
        words.line = first.line;
        if first.is_mark || !first.text.eq_ignore_ascii_case("key") {
            words.skip_statement(&first);
            continue;
        }
        let name = normal_name(&words.text("the key's name")?);
        keys.push(body(&mut words, name)?);
    }
    Ok(keys)
}

fn body(words: &mut ConfTokens, name: String) -> Result<StoredKey, TsigKeyProblem> {
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
    // dhcpd needs none.
    if words.words.as_slice().first().is_some_and(|word| word.is_mark && word.text == ";") {
        words.mark(";")?;
    }
    let algorithm = algorithm.unwrap_or_default().to_ascii_lowercase();
    Ok(StoredKey { name, algorithm, secret: secret.unwrap_or_default() })
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
