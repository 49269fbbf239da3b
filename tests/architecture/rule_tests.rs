//! Each rule is tested with a small crate that breaks it.

use super::*;

fn small_graph(files: &[(&str, &str)]) -> ModuleGraph {
    ModuleGraph::of(files.iter().map(|(path, text)| Source::parse(path, text)).collect())
}

/// The violations if `text` is `src/serve/door.rs` in a crate with two acting modules, a data module and its re-export.
fn violations(text: &str) -> Vec<String> {
    import_violations(&small_graph(&[
        ("src/lib.rs", "pub mod acme; pub mod serve; pub mod identity; pub mod app;"),
        ("src/app.rs", "pub struct App;"),
        ("src/acme/mod.rs", "pub mod order;"),
        ("src/acme/order.rs", "pub struct Order;"),
        ("src/identity.rs", "pub struct Anchor;"),
        ("src/serve/mod.rs", "mod door; use crate::identity::Anchor;"),
        ("src/serve/door.rs", text),
    ]))
}

#[test]
fn forbidden_import_is_found_wherever_it_is_written() {
    for text in [
        "use crate::acme::order::Order;",
        "use crate::{identity, acme::{order as o}};",
        "use provost::acme as other;",
        "fn f() { crate::acme::order::start() }",
        "fn f() -> super::super::acme::Order { todo!() }",
        "fn f() { let _ = vec![crate::acme::order::Order]; }",
        "fn f() { select! { _ = x => { use crate::{identity::{self}, acme::order}; } } }",
        "mod inner { use super::super::super::acme; }",
        "pub struct A(Vec<crate::acme::Order>);",
        "#[derive(crate::acme::Derive)] pub struct A;",
        "impl crate::acme::Order for u8 {}",
    ] {
        let found = violations(text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].starts_with("src/serve/door.rs:1: serve must not import acme"), "{found:?}");
    }
}

#[test]
fn allowed_imports_pass() {
    for text in [
        "use crate::identity::Anchor; use super::Anchor as Other; use std::acme::order;",
        "fn f() { acme::order(); } // crate::acme",
        "/// See [`crate::acme`].\npub(crate) struct A(&'static str, pub(in crate::serve) u8);",
    ] {
        assert_eq!(violations(text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn upward_import_and_lib_reexport_are_forbidden() {
    assert!(violations("use crate::app::App;")[0].contains("serve must not import app"));
    assert!(violations("use crate::App;")[0].contains("crate::App is no module"));
}

#[test]
fn import_cycle_is_reported_with_files_and_lines() {
    let graph = small_graph(&[
        ("src/lib.rs", "pub mod serve;"),
        ("src/serve/mod.rs", "mod a; mod b; mod c;\npub use b::B;"),
        ("src/serve/a.rs", "use super::B;"),
        ("src/serve/b.rs", "\nuse crate::serve::c::C; pub struct B;"),
        ("src/serve/c.rs", "\n\npub struct C(super::a::A); #[cfg(test)] mod tests { use crate::serve::b::B; }"),
    ]);
    let folders = graph.sibling_edges();
    let found = cycle(&folders[&vec!["serve".to_owned()]]).expect("a cycle");
    assert_eq!(found, "a → b (src/serve/a.rs:1) → c (src/serve/b.rs:2) → a (src/serve/c.rs:3)");
}

#[test]
fn parent_child_and_test_imports_are_not_a_cycle() {
    let graph = small_graph(&[
        ("src/lib.rs", "pub mod serve;"),
        ("src/serve/mod.rs", "mod a; mod b; pub use a::A; pub struct Parent; #[cfg(test)] mod tests;"),
        ("src/serve/a.rs", "use super::Parent; #[cfg(test)] mod tests { use crate::serve::b::B; }"),
        ("src/serve/b.rs", "use super::{A, Parent};"),
        ("src/serve/tests.rs", "use super::b::B;"),
    ]);
    assert!(graph.sibling_edges().values().all(|edges| cycle(edges).is_none()));
}
