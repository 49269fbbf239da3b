//! A type that another top-level module uses has a unique name, so that a search for the name finds one thing.
//!
//! Private types, types of tests, and types that only their own top-level module uses are exempt, and so are names that
//! are usual in every module.

use std::collections::{BTreeMap, BTreeSet};

use super::{ModuleGraph, Source, assert_at_least, assert_none, graph};

/// Names that say what they are only together with their module.
const USUAL: [&str; 3] = ["Args", "Command", "Error"];

/// How many types other top-level modules use, at least.
const USED_ELSEWHERE: usize = 150;

/// Where a type is defined: the module's path, then the name.
type Definition = Vec<String>;

/// The types that a top-level module other than their own uses, outside of tests.
fn used_elsewhere(graph: &ModuleGraph) -> BTreeSet<Definition> {
    let defined: BTreeSet<Definition> = definitions(graph).into_keys().collect();
    let imports = graph.imports().filter(|import| !graph.in_tests(import.mention));
    let imports = imports.filter(|import| import.mention.from.first() != import.target.first());
    imports
        .filter_map(|import| {
            (1..=import.target.len()).find_map(|length| defined.get(&import.target[..length]).cloned())
        })
        .collect()
}

/// All types that are not private, with their place.
fn definitions(graph: &ModuleGraph) -> BTreeMap<Definition, String> {
    let of = |source: &Source| {
        let types = source.types.iter().filter(|it| !it.in_tests && !graph.is_test_module(&it.module));
        let place = |line: usize| format!("{}:{line}", source.path);
        let named = types.map(|it| ([it.module.as_slice(), std::slice::from_ref(&it.name)].concat(), place(it.line)));
        named.collect::<Vec<(Definition, String)>>()
    };
    graph.sources.iter().flat_map(of).collect()
}

/// The names that a type used elsewhere shares with another type.
fn shared_names(graph: &ModuleGraph) -> Vec<String> {
    let used = used_elsewhere(graph);
    let mut by_name: BTreeMap<String, Vec<(Definition, String)>> = BTreeMap::new();
    for (definition, place) in definitions(graph) {
        let Some(name) = definition.last().filter(|name| !USUAL.contains(&name.as_str())) else { continue };
        by_name.entry(name.clone()).or_default().push((definition, place));
    }
    let shared = by_name.into_iter().filter(|(_, all)| all.len() > 1 && all.iter().any(|(it, _)| used.contains(it)));
    let places =
        |all: Vec<(Definition, String)>| all.into_iter().map(|(_, place)| place).collect::<Vec<_>>().join(", ");
    shared.map(|(name, all)| format!("{name} names several types: {}", places(all))).collect()
}

#[test]
fn types_of_other_modules_have_unique_names() {
    let graph = graph();
    assert_at_least(used_elsewhere(&graph).len(), USED_ELSEWHERE, "types that other top-level modules use");
    assert_none(&shared_names(&graph));
}

#[test]
fn shared_type_name_is_found() {
    let violations = |serve: &str, acme: &str| {
        let files = [
            ("src/lib.rs", "pub mod app; pub mod serve; pub mod acme;"),
            ("src/app.rs", "use crate::serve::{Reader, Error}; #[cfg(test)] mod tests { use crate::acme::Stage; }"),
            ("src/serve.rs", serve),
            ("src/acme.rs", acme),
        ];
        shared_names(&ModuleGraph::of(files.map(|(path, text)| Source::parse(path, text)).into()))
    };
    let serve = "pub struct Reader; pub enum Error {}";
    for other in
        ["pub struct Reader;", "pub(crate) enum Reader {}", "mod a { pub trait Reader {} }", "pub type Reader = u8;"]
    {
        let found = violations(serve, other);
        assert!(found.len() == 1 && found[0].contains("src/acme.rs:1, src/serve.rs:1"), "{other}: {found:?}");
    }
    for other in
        ["struct Reader;", "pub enum Error {}", "#[cfg(test)] mod tests { pub struct Reader; }", "pub struct Stage;"]
    {
        assert_eq!(violations(serve, other), Vec::<String>::new(), "{other}");
    }
    assert_eq!(violations("pub struct Writer;", "pub struct Writer;"), Vec::<String>::new(), "used in no other module");
}
