//! Reading the TSIG key file, and saying who else could.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::tsig_key::{TsigKey, TsigKeyError};

/// Reads the key `wanted`, or the only one, from the file at `path`; warns if others can read it too.
pub(super) fn read(path: &Path, wanted: Option<&str>) -> Result<(TsigKey, Vec<String>), TsigKeyError> {
    let unreadable = |source| TsigKeyError::Read { path: path.to_owned(), source };
    let text = fs::read_to_string(path).map_err(unreadable)?;
    let mode = fs::metadata(path).map_err(unreadable)?.permissions().mode();
    let key =
        TsigKey::parse(&text, wanted).map_err(|problem| TsigKeyError::Unusable { path: path.to_owned(), problem })?;
    let mut warnings = Vec::new();
    if mode & 0o004 != 0 {
        let path = path.display();
        warnings.push(format!("the TSIG key file {path} can be read by everybody: chmod 640 {path}"));
    }
    Ok((key, warnings))
}
