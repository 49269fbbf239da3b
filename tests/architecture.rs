//! The structure of the code, as tests: layers, cycles, confined crates, names.
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
use source::{Source, files, lines_with_token};

/// A layer of the top-level modules.
struct Layer {
    modules: &'static [&'static str],
    /// Whether they may import one another, without a cycle.
    siblings: bool,
    /// The lower layers from which they may import.
    below: &'static [&'static Layer],
}

const FOUNDATION: Layer =
    Layer { modules: &["clock", "files", "settings", "state", "wording"], siblings: true, below: &[] };
/// Modules of data and pure functions.
const DATA: Layer = Layer {
    modules: &["ca", "certificate", "constituency", "dns", "identity", "metrics", "phone_config", "phone_history"],
    siblings: true,
    below: &[&FOUNDATION],
};
/// Modules that act: they do not import one another, and only `app` combines them.
const ACTIONS: Layer =
    Layer { modules: &["acme", "admin", "serve", "virtual_phone"], siblings: false, below: &[&FOUNDATION, &DATA] };
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

const MEDIAN_FUNCTION_LINES: usize = 12;

/// File names that describe nothing and attract unrelated code.
const FORBIDDEN_FILES: [&str; 6] = ["util.rs", "types.rs", "common.rs", "error.rs", "prelude.rs", "helpers.rs"];

/// The project's files and folders, apart from those of git and cargo.
const TREE: [&str; 8] = ["src", "tests", "constituencies", "docs", ".ci", ".build", "README.md", "Cargo.toml"];

/// Minimum counts: a rule that has read nothing proves nothing. Raise them as the project grows.
mod at_least {
    pub(crate) const SOURCES: usize = 130;
    pub(crate) const FUNCTIONS: usize = 400;
    pub(crate) const IMPORTS: usize = 100;
    pub(crate) const TREE_FILES: usize = 238;
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

#[test]
fn median_function_is_under_12_lines() {
    let graph = graph();
    let mut lines: Vec<usize> = graph.sources.iter().flat_map(|source| source.functions.iter().copied()).collect();
    assert_at_least(lines.len(), at_least::FUNCTIONS, "functions");
    lines.sort_unstable();
    let median = lines[lines.len() / 2];
    assert!(
        median < MEDIAN_FUNCTION_LINES,
        "src: the median function has {median} lines, not under {MEDIAN_FUNCTION_LINES}"
    );
}

#[test]
fn no_file_has_a_generic_name() {
    let generic = graph().sources.into_iter().filter_map(|source| {
        let name = source.path.rsplit('/').next()?;
        FORBIDDEN_FILES.contains(&name).then(|| format!("{}: name it after its content", source.path))
    });
    assert_none(&generic.collect::<Vec<String>>());
}

#[test]
fn no_unsafe_code() {
    let graph = graph();
    let lines = |source: &Source| lines_with_token(&source.text, "unsafe");
    let places = graph.sources.iter().flat_map(|source| lines(source).into_iter().map(|line| (&source.path, line)));
    assert_none(&places.map(|(path, line)| format!("{path}:{line}: `unsafe` is forbidden")).collect::<Vec<String>>());
}

#[test]
fn no_file_names_a_folder_outside_the_project() {
    // Split, so that this file does not contain it.
    let outside = concat!("..", "/shared").as_bytes();
    let paths: Vec<String> = TREE.iter().flat_map(|entry| files(&root(), entry)).collect();
    assert_at_least(paths.len(), at_least::TREE_FILES, "files");
    let mut violations = Vec::new();
    for path in &paths {
        let bytes = std::fs::read(root().join(path)).unwrap();
        let lines = bytes.split(|byte| *byte == b'\n').zip(1..);
        let found = lines.filter(|(line, _)| line.windows(outside.len()).any(|window| window == outside));
        violations.extend(found.map(|(_, line)| format!("{path}:{line}: names a folder outside the project")));
    }
    assert_none(&violations);
}

#[path = "architecture/rule_tests.rs"]
mod rule_tests;

#[path = "architecture/type_names.rs"]
mod type_names;
