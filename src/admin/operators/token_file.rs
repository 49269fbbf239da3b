//! The file with a token that `token_file` in `status` names. The operator chooses the token.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::files::read_regular;

/// The least length of a token, in characters.
const MIN_LENGTH: usize = 16;

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

/// The token in `file`, without surrounding white space.
///
/// # Errors
/// If it cannot be used.
pub fn read(file: &Path) -> Result<Vec<u8>, TokenError> {
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::state;

    #[test]
    fn unreadable_token_file_names_the_remedy() {
        let error = TokenError::from(std::io::Error::from(std::io::ErrorKind::PermissionDenied)).to_string();
        assert!(
            error.contains("run chgrp with the group of the user that runs provost, and chmod 0640, on it"),
            "{error}"
        );
    }

    #[test]
    fn weak_or_world_readable_token_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let error = |text: &str, mode: u32| {
            state::write_private(&file, text.as_bytes()).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            read(&file).unwrap_err().to_string()
        };
        for mode in [0o604, 0o602, 0o601, 0o644] {
            assert!(error("0123456789abcdef", mode).contains("all users of this machine"), "{mode:o}");
        }
        for weak in
            ["", "0123456789abcde", "0123456789abcdef\n0123456789abcdef", "0123456789 abcdef", "0123456789abcdéf"]
        {
            assert!(error(weak, 0o600).contains("at least 16"), "{weak:?}");
        }
        assert!(read(Path::new("/nowhere/at/all")).is_err());
    }
}
