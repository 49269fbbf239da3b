//! Reading the TSIG key file.

use std::fs;
use std::path::Path;

use super::tsig_key::{TsigKey, TsigKeyError};

/// Reads the key `wanted`, or the only one, from the file at `path`.
pub(super) fn read(path: &Path, wanted: Option<&str>) -> Result<TsigKey, TsigKeyError> {
    let text = fs::read_to_string(path).map_err(|source| TsigKeyError::Read { path: path.to_owned(), source })?;
    TsigKey::parse(&text, wanted).map_err(|problem| TsigKeyError::Unusable { path: path.to_owned(), problem })
}
