//! Reading the TSIG key file.

use std::path::Path;

use super::stored_key::TsigKeyProblem;
use super::tsig_key::{TsigKey, TsigKeyError};
use crate::files::read_regular;

/// Reads the key `wanted`, or the only one, from the file at `path`.
pub(super) fn read(path: &Path, wanted: Option<&str>) -> Result<TsigKey, TsigKeyError> {
    let bytes = read_regular(path).map_err(|source| TsigKeyError::Read { path: path.to_owned(), source })?;
    let file_name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let key = text(bytes).and_then(|text| TsigKey::parse(&text, file_name, wanted));
    key.map_err(|problem| TsigKeyError::Unusable { path: path.to_owned(), problem })
}

fn text(bytes: Vec<u8>) -> Result<String, TsigKeyProblem> {
    let is_utf_16 = bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]);
    let hint = if is_utf_16 { " but UTF-16, as Windows calls \"Unicode\"; save it as UTF-8" } else { "" };
    String::from_utf8(bytes).map_err(|_| TsigKeyProblem::NotText(hint))
}
