//! All sources as a graph of modules and imports.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::source::{Mention, Source, files};

/// The tree of modules, with every `use` resolved.
pub(crate) struct ModuleGraph {
    pub(crate) sources: Vec<Source>,
    modules: BTreeSet<Vec<String>>,
    test_modules: BTreeSet<Vec<String>>,
    /// What a `use` binds in a module, re-exports included.
    bindings: BTreeMap<(Vec<String>, String), Vec<String>>,
}

/// A mention of another item of this crate.
pub(crate) struct Import<'a> {
    pub(crate) source: &'a Source,
    pub(crate) mention: &'a Mention,
    /// The path of the item's definition from the crate's root.
    pub(crate) target: Vec<String>,
}

/// For each module, the modules that it imports, and where.
pub(crate) type Edges = BTreeMap<String, BTreeMap<String, String>>;

impl ModuleGraph {
    pub(crate) fn read(root: &Path) -> Self {
        let rust =
            files(root, "src").into_iter().filter(|path| Path::new(path).extension().is_some_and(|it| it == "rs"));
        Self::of(rust.map(|path| Source::read(root, &path)).collect())
    }

    pub(crate) fn of(sources: Vec<Source>) -> Self {
        let own = sources.iter().map(|source| source.module.clone());
        let folders = own.clone().filter(|module| module.len() > 1).map(|module| module[..module.len() - 1].to_vec());
        let inline = sources.iter().flat_map(|source| source.inline_modules.iter().cloned());
        let modules = own.clone().chain(folders).chain(inline).collect();
        let test_modules = sources.iter().flat_map(|source| source.test_modules.iter().cloned()).collect();
        let mut graph = Self { sources, modules, test_modules, bindings: BTreeMap::new() };
        let mentions = graph.sources.iter().flat_map(|source| &source.mentions);
        graph.bindings = mentions
            .filter_map(|mention| {
                let name = mention.binds.clone()?;
                Some(((mention.from.clone(), name), graph.absolute(&mention.from, &mention.path)?))
            })
            .collect();
        graph
    }

    pub(crate) fn imports(&self) -> impl Iterator<Item = Import<'_>> {
        self.sources.iter().flat_map(|source| source.mentions.iter().map(move |mention| (source, mention))).filter_map(
            |(source, mention)| {
                let target = self.defined_at(self.absolute(&mention.from, &mention.path)?);
                Some(Import { source, mention, target })
            },
        )
    }

    /// Whether this is in code that is compiled only for tests.
    pub(crate) fn in_tests(&self, mention: &Mention) -> bool {
        mention.in_tests || self.is_test_module(&mention.from)
    }

    /// Whether only tests see this module or one that contains it.
    pub(crate) fn is_test_module(&self, module: &[String]) -> bool {
        (1..=module.len()).any(|length| self.test_modules.contains(&module[..length]))
    }

    pub(crate) fn is_module(&self, path: &[String]) -> bool {
        self.modules.contains(path)
    }

    /// For every folder, the edges among the modules directly in it. Parent and child may import one another.
    pub(crate) fn sibling_edges(&self) -> BTreeMap<Vec<String>, Edges> {
        let mut folders: BTreeMap<Vec<String>, Edges> = BTreeMap::new();
        for import in self.imports().filter(|import| !self.in_tests(import.mention)) {
            let (from, target) = (&import.mention.from, &import.target);
            let common = from.iter().zip(target).take_while(|(a, b)| a == b).count();
            let (Some(a), Some(b)) = (from.get(common), target.get(common)) else { continue };
            if self.is_module(&target[..=common]) {
                let place = format!("{}:{}", import.source.path, import.mention.line);
                let edges = folders.entry(from[..common].to_vec()).or_default();
                edges.entry(a.clone()).or_default().entry(b.clone()).or_insert(place);
            }
        }
        folders
    }

    /// The path from the crate's root; `None` for another crate, or for a local name whose `use` is already counted.
    fn absolute(&self, from: &[String], path: &[String]) -> Option<Vec<String>> {
        let in_main = from.first().is_some_and(|first| first == "main");
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" if in_main => None,
            "crate" | "provost" => Some(rest.to_vec()),
            "self" => Some([from, rest].concat()),
            "super" => {
                let ups = path.iter().take_while(|segment| *segment == "super").count();
                Some([&from[..from.len().checked_sub(ups)?], &path[ups..]].concat())
            }
            child => self.is_module(&[from, &[child.to_owned()]].concat()).then(|| [from, path].concat()),
        }
    }

    /// Follows re-exports: `constituency::MacAddress` is `constituency::mac::MacAddress`.
    fn defined_at(&self, mut path: Vec<String>) -> Vec<String> {
        // A limit, because a cycle of re-exports, which does not compile, must not hang this test.
        for _ in 0..16 {
            let module = (0..path.len()).take_while(|length| self.is_module(&path[..*length]) || *length == 0).last();
            let Some(length) = module else { break };
            if self.is_module(&path[..=length]) {
                break;
            }
            let Some(bound) = self.bindings.get(&(path[..length].to_vec(), path[length].clone())) else { break };
            path = [bound, &path[length + 1..]].concat();
        }
        path
    }
}

/// A cycle, as `a → b (src/a.rs:3) → a (src/b.rs:7)`; `None` if there is none.
pub(crate) fn cycle(edges: &Edges) -> Option<String> {
    fn walk<'a>(edges: &'a Edges, at: &'a str, trail: &mut Vec<&'a str>, done: &mut BTreeSet<&'a str>) -> bool {
        if trail.contains(&at) {
            trail.push(at);
            return true;
        }
        trail.push(at);
        let next = edges.get(at).into_iter().flat_map(BTreeMap::keys);
        for next in next {
            if !done.contains(next.as_str()) && walk(edges, next, trail, done) {
                return true;
            }
        }
        trail.pop();
        done.insert(at);
        false
    }
    let mut done = BTreeSet::new();
    let mut trail = Vec::new();
    if !edges.keys().any(|start| walk(edges, start, &mut trail, &mut done)) {
        return None;
    }
    let last = trail.last()?;
    let begin = trail.iter().position(|module| module == last)?;
    let steps = trail[begin..].windows(2).map(|step| format!(" → {} ({})", step[1], edges[step[0]][step[1]]));
    Some(format!("{last}{}", steps.collect::<String>()))
}
