//! Style, script and icon. They are built in, and named by a hash of their content, so that browsers cache them for
//! good. Pure.

use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};

#[derive(Debug, PartialEq, Eq)]
pub struct Asset {
    /// The URL path. It changes with the content.
    pub path: String,
    /// The `Content-Type`.
    pub content_type: &'static str,
    pub content: &'static str,
}

pub(super) static STYLE: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("style", "css", "text/css; charset=utf-8", include_str!("style.css")));
pub(super) static SCRIPT: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("script", "js", "text/javascript; charset=utf-8", include_str!("script.js")));
pub(super) static ICON: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("icon", "svg", "image/svg+xml", include_str!("icon.svg")));

/// The asset at `path`. It may be cached for good (`Cache-Control: immutable`).
#[must_use]
pub fn asset(path: &str) -> Option<&'static Asset> {
    [&STYLE, &SCRIPT, &ICON].into_iter().map(|asset| &**asset).find(|asset| asset.path == path)
}

impl Asset {
    fn new(name: &str, ending: &str, content_type: &'static str, content: &'static str) -> Self {
        let hash = digest(&SHA256, content.as_bytes());
        let hash: String = hash.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self { path: format!("/assets/{name}-{hash}.{ending}"), content_type, content }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assets_are_found_by_the_names_in_the_page() {
        for wanted in [&STYLE, &SCRIPT, &ICON] {
            assert!(std::ptr::eq(asset(&wanted.path).unwrap(), &raw const **wanted));
        }
        assert!(asset("/assets/style.css").is_none() && asset("/assets/").is_none());
    }
}
