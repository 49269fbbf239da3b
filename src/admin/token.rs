//! Authenticates operators, by the token in a file or by a session cookie.
//!
//! The token is compared by its hash, in constant time, and never leaves memory. A browser gets a cookie that is signed
//! with a key of this process and this token, so that a new process or a new token ends the session.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use arc_swap::ArcSwap;
use aws_lc_rs::{constant_time, digest, hmac};
use std::sync::Arc;

use crate::files::read_regular;

/// The least length of a token, in characters.
const MIN_LENGTH: usize = 16;
/// How long a browser stays signed in, in seconds.
pub const SESSION_S: i64 = 12 * 3600;

/// Why a token's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot read the token: {source}{}", hint(.source))]
    Read {
        #[from]
        source: std::io::Error,
    },
    /// The mode of the file is too permissive.
    #[error("all users of this machine can read the token (mode {mode:04o}); run chmod o-rwx on it")]
    Open { mode: u32 },
    /// The content of the file is invalid.
    #[error(
        "invalid token: use one line of at least {MIN_LENGTH} visible ASCII characters, such as the output of openssl rand -hex 32"
    )]
    Weak,
}

/// The remedy for a token that cannot be read.
fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            "; run chgrp with the group of the user that runs provost, and chmod 0640, on it (that user needs execute permission on the folders above it)"
        }
        std::io::ErrorKind::NotFound => "; make one with openssl rand -hex 32",
        _ => "",
    }
}

/// The current token. There is none if no file is configured.
pub struct OperatorToken {
    file: Option<PathBuf>,
    secret: ArcSwap<Option<TokenSecret>>,
    /// A new key for each process.
    process: hmac::Key,
}

/// The hash of a token, and the key that signs its sessions.
struct TokenSecret {
    hash: [u8; digest::SHA256_OUTPUT_LEN],
    sessions: hmac::Key,
}

impl fmt::Debug for OperatorToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("file", &self.file).finish_non_exhaustive()
    }
}

impl OperatorToken {
    /// Reads the token in `file`.
    ///
    /// # Errors
    /// If the token cannot be used.
    pub fn open(file: Option<&Path>) -> Result<Self, TokenError> {
        let mut key = [0; digest::SHA256_OUTPUT_LEN];
        aws_lc_rs::rand::fill(&mut key)
            .map_err(|_| std::io::Error::other("the system's random number generator failed"))?;
        let token = Self {
            file: file.map(Path::to_owned),
            secret: ArcSwap::from_pointee(None),
            process: hmac::Key::new(hmac::HMAC_SHA256, &key),
        };
        token.reload().map(|_| token)
    }

    /// Reads the file again. Returns whether the token has changed. A new token ends the sessions of the old one.
    ///
    /// # Errors
    /// If the new token cannot be used. The old one stays in force.
    pub fn reload(&self) -> Result<bool, TokenError> {
        let Some(file) = &self.file else { return Ok(false) };
        let secret = self.secret_of(&read(file)?);
        let is_new = self.secret.load().as_ref().as_ref().is_none_or(|old| old.hash != secret.hash);
        self.secret.store(Arc::new(Some(secret)));
        Ok(is_new)
    }

    /// Whether a token is configured.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.file.is_some()
    }

    /// Whether `shown` is the token.
    #[must_use]
    pub fn matches(&self, shown: &[u8]) -> bool {
        let hash = digest::digest(&digest::SHA256, shown);
        let secret = self.secret.load();
        let secret = secret.as_ref().as_ref();
        secret.is_some_and(|secret| constant_time::verify_slices_are_equal(&secret.hash, hash.as_ref()).is_ok())
    }

    /// The value of a session cookie that begins at `now`, in Unix seconds, and is valid only within `scope`.
    #[must_use]
    pub fn session(&self, scope: &str, now: i64) -> Option<String> {
        let until = (now + SESSION_S).to_string();
        let secret = self.secret.load();
        let tag = hmac::sign(&secret.as_ref().as_ref()?.sessions, signed(scope, &until).as_bytes());
        Some(format!("{until}-{}", hex(tag.as_ref())))
    }

    /// Whether `value` is a session within `scope` that has not expired at `now`.
    #[must_use]
    pub fn verify_session(&self, scope: &str, value: &str, now: i64) -> bool {
        let secret = self.secret.load();
        let (Some(secret), Some((until, tag))) = (secret.as_ref(), value.split_once('-')) else { return false };
        let signed = signed(scope, until);
        let is_ours = bytes(tag).is_some_and(|tag| hmac::verify(&secret.sessions, signed.as_bytes(), &tag).is_ok());
        is_ours && until.parse().is_ok_and(|until: i64| now < until)
    }

    fn secret_of(&self, token: &[u8]) -> TokenSecret {
        let mut hash = [0; digest::SHA256_OUTPUT_LEN];
        hash.copy_from_slice(digest::digest(&digest::SHA256, token).as_ref());
        let sessions = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&self.process, token).as_ref());
        TokenSecret { hash, sessions }
    }
}

/// The message under a session's tag: purpose, scope, expiry. It is unambiguous, because the expiry consists of digits.
fn signed(scope: &str, until: &str) -> String {
    format!("session\0{scope}\0{until}")
}

/// The token in `file`, without surrounding white space.
fn read(file: &Path) -> Result<Vec<u8>, TokenError> {
    // First, because the mode of something else says nothing.
    let bytes = read_regular(file)?;
    let mode = std::fs::metadata(file)?.mode() & 0o7777;
    if mode & 0o007 != 0 {
        return Err(TokenError::Open { mode });
    }
    let token = bytes.trim_ascii();
    let is_good = token.len() >= MIN_LENGTH && token.iter().all(u8::is_ascii_graphic);
    if is_good { Ok(token.to_owned()) } else { Err(TokenError::Weak) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    hex.len().is_multiple_of(2).then(|| hex.as_bytes().chunks(2).map(pair).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    const NOW: i64 = 1_800_000_000;

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        write(&file, text);
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    /// Writes in place, as an editor does.
    fn write(file: &tempfile::NamedTempFile, text: &str) {
        let mut opened = std::fs::File::options().write(true).truncate(true).open(file.path()).unwrap();
        opened.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn unreadable_token_file_names_the_remedy() {
        let error = TokenError::from(std::io::Error::from(std::io::ErrorKind::PermissionDenied)).to_string();
        assert!(
            error.contains("run chgrp with the group of the user that runs provost, and chmod 0640, on it"),
            "{error}"
        );
    }

    #[test]
    fn only_the_exact_token_is_accepted() {
        let file = file("  0123456789abcdef\n", 0o640);
        let token = OperatorToken::open(Some(file.path())).unwrap();
        assert!(token.matches(b"0123456789abcdef"));
        for wrong in ["", "0123456789abcdee", "0123456789abcdef ", "0123456789abcde", "0123456789abcdef0"] {
            assert!(!token.matches(wrong.as_bytes()), "{wrong:?}");
        }
        assert!(!format!("{token:?}").contains("0123456789"));
        assert!(!OperatorToken::open(None).unwrap().matches(b""));
    }

    #[test]
    fn weak_or_world_readable_token_files_are_refused() {
        let error = |text: &str, mode: u32| OperatorToken::open(Some(file(text, mode).path())).unwrap_err().to_string();
        for mode in [0o604, 0o602, 0o601, 0o644] {
            assert!(error("0123456789abcdef", mode).contains("all users of this machine"), "{mode:o}");
        }
        for weak in
            ["", "0123456789abcde", "0123456789abcdef\n0123456789abcdef", "0123456789 abcdef", "0123456789abcdéf"]
        {
            assert!(error(weak, 0o600).contains("at least 16"), "{weak:?}");
        }
        assert!(OperatorToken::open(Some(Path::new("/nowhere/at/all"))).is_err());
    }

    #[test]
    fn session_is_bound_to_name_time_token_and_process() {
        let file = file("0123456789abcdef", 0o600);
        let token = OperatorToken::open(Some(file.path())).unwrap();
        let cookie = token.session("name", NOW).unwrap();
        assert!(!cookie.contains("0123456789abcdef"));
        assert!(
            token.verify_session("name", &cookie, NOW) && token.verify_session("name", &cookie, NOW + SESSION_S - 1)
        );
        assert!(!token.verify_session("name", &cookie, NOW + SESSION_S));
        let later = format!("9{cookie}");
        for forged in [&later, "", "-", "1900000000-", "1900000000-00", "1900000000-é", &cookie[..cookie.len() - 2]] {
            assert!(!token.verify_session("name", forged, NOW), "{forged}");
        }
        for other in ["", "nam", "name ", "other"] {
            assert!(!token.verify_session(other, &cookie, NOW), "{other:?}");
        }
        assert!(!OperatorToken::open(Some(file.path())).unwrap().verify_session("name", &cookie, NOW));
        assert!(!token.reload().unwrap());
        assert!(token.verify_session("name", &cookie, NOW));
        write(&file, "another 0123456789");
        assert!(token.reload().is_err());
        assert!(token.verify_session("name", &cookie, NOW), "an invalid file leaves the last valid token in force");
        write(&file, "another-0123456789");
        assert!(token.reload().unwrap());
        assert!(
            !token.verify_session("name", &cookie, NOW)
                && !token.matches(b"0123456789abcdef")
                && token.matches(b"another-0123456789")
        );
    }
}
