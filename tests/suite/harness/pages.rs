//! The manual: README.md and the pages of `docs`, with their sections and blocks.

use std::path::Path;
use std::sync::LazyLock;

/// Every page's path from the project's folder and its text, sorted.
///
/// They are read at run time, so that an edited page needs no new build of the tests.
pub static PAGES: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    pages_in(root)
});

/// Every page in `folder`: README.md, and the Markdown files in `docs`.
pub fn pages_in(folder: &Path) -> Vec<(String, String)> {
    let docs = std::fs::read_dir(folder.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = docs.filter(|path| path.extension() == Some("md".as_ref()));
    let mut names: Vec<String> =
        pages.map(|path| format!("docs/{}", path.file_name().unwrap().to_str().unwrap())).collect();
    names.push("README.md".to_owned());
    names.sort();
    names.into_iter().map(|name| (name.clone(), std::fs::read_to_string(folder.join(name)).unwrap())).collect()
}

pub fn page(name: &str) -> &'static str {
    &PAGES.iter().find(|page| page.0 == name).unwrap_or_else(|| panic!("no page {name}")).1
}

/// The lines of `text` outside of fenced blocks.
pub fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_fenced = false;
    text.lines().filter(move |line| {
        let is_fence = line.starts_with("```");
        is_fenced ^= is_fence;
        !is_fenced && !is_fence
    })
}

/// The section of the page `name` under `heading`, with its subsections.
pub fn section(name: &str, heading: &str) -> &'static str {
    let level = heading.chars().take_while(|letter| *letter == '#').count();
    let (_, text) =
        page(name).split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("{name} has no {heading:?}"));
    let ends = |line: &&str| line.split(' ').next().is_some_and(|marks| (1..=level).any(|n| marks == "#".repeat(n)));
    let end = prose(text).find(ends).map_or(text.len(), |line| line.as_ptr().addr() - text.as_ptr().addr());
    &text[..end]
}

/// All fenced blocks in `text`: language and content.
pub fn fences(text: &str) -> Vec<(&str, &str)> {
    let parts: Vec<&str> = text.split("```").collect();
    parts.iter().skip(1).step_by(2).map(|fence| fence.split_once('\n').unwrap()).collect()
}

/// The code spans in `text`, outside of fenced blocks.
pub fn code_spans(text: &str) -> Vec<String> {
    let prose = prose(text).collect::<Vec<&str>>().join("\n");
    prose.split('`').skip(1).step_by(2).map(|span| span.replace('\n', " ")).collect()
}

/// The anchor of a heading, as Markdown readers make it.
pub fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches(['#', ' ']).to_lowercase().replace(' ', "-");
    kept.chars().filter(|it| it.is_alphanumeric() || matches!(it, '-' | '_')).collect()
}

/// The internal links of `text`: path and anchor, either of which may be empty.
pub fn internal_links(text: &str) -> Vec<(String, String)> {
    let prose = prose(text).collect::<Vec<&str>>().join("\n");
    let targets = prose.split("](").skip(1).map(|rest| rest.split(')').next().unwrap().to_owned());
    let internal = targets.filter(|target| !target.contains("://"));
    internal
        .map(|target| match target.split_once('#') {
            Some((path, anchor)) => (path.to_owned(), anchor.to_owned()),
            None => (target, String::new()),
        })
        .collect()
}

/// The target of `link` on the page `from`, relative to the project's folder.
pub fn resolved(from: &str, link: &str) -> String {
    if link.is_empty() {
        return from.to_owned();
    }
    let folder = Path::new(from).parent().unwrap();
    let mut path = Vec::new();
    for part in folder.join(link).components() {
        match part.as_os_str().to_str().unwrap() {
            ".." => drop(path.pop()),
            part => path.push(part.to_owned()),
        }
    }
    path.join("/")
}
