//! Explains why a symlink is not followed, and what to write instead. Does not decide that: the kernel and
//! [`access_control`](super::access_control) do.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Checks the symlink at `path` itself, not the access to its target: it must not be dangling, absolute, or lead out of
/// `root`, the folder of the constituencies. `root` contains no symlinks. Returns the canonical target.
///
/// # Errors
/// The reason, with the relative symlink to write if there is one.
pub fn check_text(root: &Path, path: &Path) -> Result<PathBuf, String> {
    let target = fs::read_link(path).map_err(|error| format!("the symlink cannot be read: {error}"))?;
    let real =
        path.canonicalize().map_err(|error| format!("the symlink to {} is broken: {error}", target.display()))?;
    if !real.starts_with(root) {
        return Err(format!(
            "the symlink leads to {}, outside the folder of the constituencies, and is not followed",
            real.display()
        ));
    }
    if target.is_absolute() {
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok()).unwrap_or_default();
        let relative = relative(&folder, &real);
        return Err(format!("the symlink is absolute and is not followed; make it relative: {}", relative.display()));
    }
    Ok(real)
}

/// The first symlink in `path`, relative to `root`, that is not followed, and the reason.
#[must_use]
pub fn explain(root: &Path, path: &str) -> Option<String> {
    let mut at = root.to_owned();
    path.split('/').find_map(|segment| {
        at.push(segment);
        let reason = at.is_symlink().then(|| check_text(root, &at).err())??;
        Some(format!("{}: {reason}", at.strip_prefix(root).unwrap_or(&at).display()))
    })
}

/// The relative path from `folder` to `target`; both are absolute and without symlinks.
fn relative(folder: &Path, target: &Path) -> PathBuf {
    let shared = folder.components().zip(target.components()).take_while(|(one, other)| one == other).count();
    let up = folder.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(target.components().skip(shared)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_symlink_is_suggested() {
        let show = |folder: &str, target: &str| relative(Path::new(folder), Path::new(target)).display().to_string();
        assert_eq!(show("/c/ote", "/c/ucs/firmware"), "../ucs/firmware");
        assert_eq!(show("/c/ote/a", "/c/ote/b"), "../b");
    }
}
