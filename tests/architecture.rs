//! The structure of the code, as tests: layers, cycles, confined crates, names of types.
//!
//! The rules are the tables at the top; a new module is one line there. Each message names file, line and rule. Imports
//! are parsed, so a path in a function body or in a macro counts like one in a `use`.

#[path = "architecture/module_graph.rs"]
mod module_graph;
#[path = "architecture/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::path::PathBuf;

use module_graph::{Import, ModuleGraph, cycle};
use source::Source;

/// A layer of the top-level modules.
struct Layer {
    modules: &'static [&'static str],
    /// Whether they may import one another, without a cycle.
    siblings: bool,
    /// The lower layers from which they may import.
    below: &'static [&'static Layer],
}

const FOUNDATION: Layer =
    Layer { modules: &["background", "clock", "files", "settings", "state", "wording"], siblings: true, below: &[] };
/// Modules of data and pure functions.
const DATA: Layer = Layer {
    modules: &[
        "audit",
        "ca",
        "certificate",
        "constituency",
        "dns",
        "identity",
        "metrics",
        "phone_config",
        "phone_history",
    ],
    siblings: true,
    below: &[&FOUNDATION],
};
/// Modules that act: they do not import one another, and only `app` combines them.
const ACTIONS: Layer = Layer {
    modules: &["acme", "admin", "notify", "serve", "virtual_phone"],
    siblings: false,
    below: &[&FOUNDATION, &DATA],
};
/// The settings of all modules, which only higher layers may read.
const CONFIG: Layer = Layer { modules: &["config"], siblings: false, below: &[&FOUNDATION, &DATA, &ACTIONS] };
const APP: Layer = Layer { modules: &["app"], siblings: false, below: &[&FOUNDATION, &DATA, &ACTIONS, &CONFIG] };
const CLI: Layer = Layer { modules: &["cli"], siblings: false, below: &[&FOUNDATION, &DATA, &ACTIONS, &CONFIG, &APP] };
const MAIN: Layer = Layer { modules: &["main"], siblings: false, below: &[&APP, &CLI] };
/// `lib.rs` declares modules and explains them; it re-exports nothing, so that a module has one name.
const LIB: Layer = Layer { modules: &["lib"], siblings: false, below: &[] };

const LAYERS: [&Layer; 8] = [&FOUNDATION, &DATA, &ACTIONS, &CONFIG, &APP, &CLI, &MAIN, &LIB];

/// Crates that only one folder may use, so that the project can be built without them.
const CONFINED: &[(&str, &str)] = &[("openssl", "src/serve/openssl/"), ("tokio_openssl", "src/serve/openssl/")];

/// Minimum counts: a rule that has read nothing proves nothing. Raise them as the project grows.
mod at_least {
    pub(crate) const SOURCES: usize = 300;
    pub(crate) const IMPORTS: usize = 2000;
}

fn root() -> PathBuf {
    // Cargo may run the test in another folder than it was built in.
    std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).into()
}

fn graph() -> ModuleGraph {
    let graph = ModuleGraph::read(&root());
    assert_at_least(graph.sources.len(), at_least::SOURCES, "source files");
    graph
}

fn assert_at_least(count: usize, minimum: usize, what: &str) {
    assert!(count >= minimum, "found only {count} {what}, {minimum} expected: does this test read the right folder?");
}

fn assert_none(violations: &[String]) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

fn layer_of(module: &str) -> Option<&'static Layer> {
    LAYERS.into_iter().find(|layer| layer.modules.contains(&module))
}

/// The rule that an import breaks, if it does.
fn forbidden(graph: &ModuleGraph, import: &Import<'_>) -> Option<String> {
    let from = import.mention.from.first().map_or("lib", String::as_str);
    let to = import.target.first().map(String::as_str)?;
    if !graph.is_module(&import.target[..1]) {
        return Some(format!("crate::{to} is no module: name the module that defines it"));
    }
    let (Some(layer), Some(target)) = (layer_of(from), layer_of(to)) else {
        return None; // every_top_level_module_belongs_to_a_layer reports it
    };
    let below = || layer.below.iter().any(|below| below.modules == target.modules);
    let sibling = layer.modules == target.modules && layer.siblings;
    (from != to && !below() && !sibling).then(|| format!("{from} must not import {to}"))
}

fn import_violations(graph: &ModuleGraph) -> Vec<String> {
    let broken = graph.imports().filter_map(|import| {
        let rule = forbidden(graph, &import)?;
        Some(format!("{}:{}: {rule} ({})", import.source.path, import.mention.line, import.mention.path.join("::")))
    });
    broken.collect::<BTreeSet<String>>().into_iter().collect()
}

#[test]
fn every_top_level_module_belongs_to_a_layer() {
    let graph = graph();
    let missing = graph.sources.iter().filter_map(|source| {
        let module = source.module.first().map_or("lib", String::as_str);
        layer_of(module)
            .is_none()
            .then(|| format!("{}: add the module `{module}` to a layer in tests/architecture.rs", source.path))
    });
    assert_none(&missing.collect::<Vec<String>>());
}

#[test]
fn imports_point_to_lower_layers_only() {
    let graph = graph();
    assert_at_least(graph.imports().count(), at_least::IMPORTS, "imports");
    assert_none(&import_violations(&graph));
}

#[test]
fn no_modules_form_an_import_cycle() {
    let graph = graph();
    let folders = graph.sibling_edges();
    let cycles = folders.iter().filter_map(|(folder, edges)| {
        let place = if folder.is_empty() { "src".to_owned() } else { format!("src/{}", folder.join("/")) };
        Some(format!("{place}: an import cycle: {}", cycle(edges)?))
    });
    assert_none(&cycles.collect::<Vec<String>>());
}

#[test]
fn confined_crates_are_used_only_in_their_folder() {
    let graph = graph();
    for (confined, place) in CONFINED {
        let knows =
            |source: &&Source| source.mentions.iter().any(|it| it.path.first().is_some_and(|it| it == confined));
        let (inside, outside): (Vec<&Source>, Vec<&Source>) =
            graph.sources.iter().filter(knows).partition(|source| source.path.starts_with(place));
        assert_at_least(inside.len(), 1, &format!("files that use {confined}"));
        assert_none(
            &outside.iter().map(|it| format!("{}: only {place} may use {confined}", it.path)).collect::<Vec<String>>(),
        );
    }
}

#[path = "architecture/rule_tests.rs"]
mod rule_tests;

#[path = "architecture/type_names.rs"]
mod type_names;
