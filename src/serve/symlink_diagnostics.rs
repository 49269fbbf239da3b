//! Why a link is not followed, in words that say what to write instead. Explains only: what is followed, the kernel and
//! the [decision](super::access_control) have said.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// What is wrong with the link at `path`, if by its own text alone it leads nowhere from `root`, the folder of the
/// constituencies: it is dangling, absolute, or leaves `root`. `root` has no links in it.
///
/// # Errors
/// The reason, with the relative link to write where there is one.
pub fn check_text(root: &Path, path: &Path) -> Result<PathBuf, String> {
    let target = fs::read_link(path).map_err(|error| format!("the link cannot be read: {error}"))?;
    let real =
        path.canonicalize().map_err(|error| format!("the link to {} leads nowhere: {error}", target.display()))?;
    if !real.starts_with(root) {
        return Err(format!(
            "the link leads to {}, outside of the folder of the constituencies; it is not followed",
            real.display()
        ));
    }
    if target.is_absolute() {
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok()).unwrap_or_default();
        let relative = relative(&folder, &real);
        return Err(format!("the link is absolute and is not followed; write it as {}", relative.display()));
    }
    Ok(real)
}

/// The first link on the way to `path`, relative to `root`, that is not followed, and why.
#[must_use]
pub fn explain(root: &Path, path: &str) -> Option<String> {
    let mut at = root.to_owned();
    path.split('/').find_map(|segment| {
        at.push(segment);
        let reason = at.is_symlink().then(|| check_text(root, &at).err())??;
        Some(format!("{}: {reason}", at.strip_prefix(root).unwrap_or(&at).display()))
    })
}

/// The way from `folder` to `target`; both absolute and without links.
fn relative(folder: &Path, target: &Path) -> PathBuf {
    let shared = folder.components().zip(target.components()).take_while(|(one, other)| one == other).count();
    let up = folder.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(target.components().skip(shared)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relative_link_to_write_is_shown() {
        let show = |folder: &str, target: &str| relative(Path::new(folder), Path::new(target)).display().to_string();
        assert_eq!(show("/c/ote", "/c/ucs/firmware"), "../ucs/firmware");
        assert_eq!(show("/c/ote/a", "/c/ote/b"), "../b");
    }
}
