//! The shape of the house, as tests: who may import whom, what is pure, how large things may grow.
//!
//! The rules are the tables at the top; adding a module or an impure file is one line there. Every message says file,
//! line and rule. What the code names is read with a real parser, so that a path in a function's body or in a macro
//! counts as much as one in a `use`.

#[path = "architecture/house.rs"]
mod house;
#[path = "architecture/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::path::PathBuf;

use house::{House, Import, cycle};
use source::{Source, files, lines_with_token};

/// A storey of the house.
struct Layer {
    /// The top-level modules that live here.
    modules: &'static [&'static str],
    /// Whether they may import one another (never in a circle).
    neighbours: bool,
    /// The layers from which they may import, by one of their modules' layer name.
    below: &'static [&'static Layer],
}

const FOUNDATION: Layer = Layer { modules: &["clock", "files", "settings", "state"], neighbours: true, below: &[] };
/// Nouns know things and do nothing by themselves.
const NOUNS: Layer = Layer {
    modules: &["ca", "certificate", "constituency", "digest", "dns", "ledger", "metrics", "trust"],
    neighbours: true,
    below: &[&FOUNDATION],
};
/// Verbs do things and do not know one another: they meet in `app`.
const VERBS: Layer =
    Layer { modules: &["phone", "renew", "serve", "status"], neighbours: false, below: &[&FOUNDATION, &NOUNS] };
/// The sum of everybody's settings, so only those above may read it.
const CONFIG: Layer = Layer { modules: &["config"], neighbours: false, below: &[&FOUNDATION, &NOUNS, &VERBS] };
const APP: Layer = Layer { modules: &["app"], neighbours: false, below: &[&FOUNDATION, &NOUNS, &VERBS, &CONFIG] };
const CLI: Layer = Layer { modules: &["cli"], neighbours: false, below: &[&FOUNDATION, &NOUNS, &VERBS, &CONFIG, &APP] };
const MAIN: Layer = Layer { modules: &["main"], neighbours: false, below: &[&APP, &CLI] };
/// `lib.rs` declares modules and explains them; it re-exports nothing, so that a module has one name.
const LIB: Layer = Layer { modules: &["lib"], neighbours: false, below: &[] };

const HOUSE: [&Layer; 8] = [&FOUNDATION, &NOUNS, &VERBS, &CONFIG, &APP, &CLI, &MAIN, &LIB];

/// The only files that may touch sockets, disk, tasks or the clock, each with what for.
const IMPURE_FILES: &[(&str, &str)] = &[
    ("src/clock.rs", "reads the clock, for everybody"),
    ("src/app.rs", "holds the listeners"),
    ("src/app/heart.rs", "beats on the runtime"),
    ("src/app/passed.rs", "takes sockets that were passed"),
    ("src/app/signals.rs", "listens to signals"),
    ("src/app/sockets.rs", "opens the listeners"),
    ("src/app/supervisor.rs", "tells systemd on a thread of its own"),
    ("src/app/control.rs", "answers on its socket"),
    ("src/app/renewal.rs", "gives renewal a thread"),
    ("src/app/knowledge.rs", "looks at clock and folders for the picture"),
    ("src/app/status.rs", "gives operators a thread"),
    ("src/app/source.rs", "asks what time it is"),
    ("src/app/upkeep.rs", "looks at files on a thread of its own"),
    ("src/ca.rs", "keeps its key in a file"),
    ("src/ca/device.rs", "keeps its list in a file"),
    ("src/ca/record.rs", "keeps its record in a file"),
    ("src/cli/ca.rs", "asks what time it is"),
    ("src/cli/ca/issue.rs", "reads a password"),
    ("src/cli/certificate.rs", "speaks to the running server"),
    ("src/cli/check/folder.rs", "looks at folders"),
    ("src/cli/check/live.rs", "is interrupted in order"),
    ("src/cli/check/masters.rs", "looks for firmware"),
    ("src/cli/check/mod.rs", "asks what time it is"),
    ("src/cli/check/overlay.rs", "looks at uploads"),
    ("src/cli/check/shelf.rs", "reads as phones do"),
    ("src/cli/constituency.rs", "makes folders"),
    ("src/cli/demo.rs", "has a folder to throw away"),
    ("src/cli/diagnostics.rs", "writes on a thread of its own"),
    ("src/cli/install/mod.rs", "makes a user, and talks to systemd"),
    ("src/cli/install/place.rs", "writes what is installed"),
    ("src/cli/journal.rs", "sends to the journal"),
    ("src/cli/local.rs", "reads the local CAs"),
    ("src/cli/mod.rs", "makes the runtime"),
    ("src/cli/passwords.rs", "asks what time it is"),
    ("src/cli/phone.rs", "reads a password"),
    ("src/cli/phones.rs", "asks what time it is"),
    ("src/cli/pins.rs", "asks what time it is"),
    ("src/cli/print/mod.rs", "asks what time it is"),
    ("src/cli/trust.rs", "reads the chain to judge"),
    ("src/cli/uploads.rs", "reads uploads, and removes them"),
    ("src/config.rs", "reads provost.json"),
    ("src/constituency/edit_file.rs", "changes policies"),
    ("src/constituency/policy_file.rs", "reads policies"),
    ("src/constituency/scan.rs", "reads folders"),
    ("src/constituency/watch.rs", "watches folders"),
    ("src/digest/gate.rs", "dates its nonces"),
    ("src/digest/passwords.rs", "stores passwords"),
    ("src/dns/exchange.rs", "speaks to name servers"),
    ("src/dns/key_file.rs", "reads the TSIG key"),
    ("src/dns/mod.rs", "dates its updates"),
    ("src/dns/propagation.rs", "asks all authorities at once, again and again"),
    ("src/dns/resolve.rs", "finds the system's resolvers and hosts"),
    ("src/ledger/keeper.rs", "writes on a thread of its own"),
    ("src/ledger/reader.rs", "reads the database"),
    ("src/ledger/store.rs", "writes the database"),
    ("src/files.rs", "reads files"),
    ("src/phone/client.rs", "speaks to servers"),
    ("src/phone/connect.rs", "speaks to servers"),
    ("src/phone/mod.rs", "measures boots"),
    ("src/phone/rack.rs", "boots many at once"),
    ("src/phone/steps.rs", "dates its logs"),
    ("src/phone/upload.rs", "waits for 100 Continue"),
    ("src/renew/acme/account.rs", "keeps the account's key"),
    ("src/renew/acme/http.rs", "speaks to CAs"),
    ("src/renew/memory.rs", "reads what it wrote"),
    ("src/renew/run.rs", "waits for what is next"),
    ("src/renew/store.rs", "stores certificates"),
    ("src/renew/system.rs", "reads the clock for the flow"),
    ("src/serve/access.rs", "writes on threads of its own"),
    ("src/serve/access/writing.rs", "lets records gather"),
    ("src/serve/answer.rs", "sends files"),
    ("src/serve/beneath.rs", "opens files"),
    ("src/serve/body.rs", "reads files"),
    ("src/serve/content.rs", "follows links"),
    ("src/serve/conversation.rs", "puts peers to rest"),
    ("src/serve/exchange.rs", "measures requests"),
    ("src/serve/handshake.rs", "judges as of now"),
    ("src/serve/handshake/old.rs", "judges as of now"),
    ("src/serve/kept.rs", "looks at files"),
    ("src/serve/linger.rs", "keeps a deadline"),
    ("src/serve/links.rs", "reads links, to explain them"),
    ("src/serve/listener.rs", "accepts connections"),
    ("src/serve/pace/mod.rs", "keeps deadlines"),
    ("src/serve/request.rs", "decides as of now"),
    ("src/serve/upload/book.rs", "counts what is stored"),
    ("src/serve/upload/budget.rs", "asks what space is free"),
    ("src/serve/upload/receive.rs", "works the disk on threads that may block"),
    ("src/serve/upload/sink.rs", "stores files"),
    ("src/serve/upload/store.rs", "opens uploads"),
    ("src/state.rs", "stores files"),
    ("src/status/events.rs", "looks again every second"),
    ("src/status/listener.rs", "accepts operators' connections"),
    ("src/status/pictures.rs", "has pictures taken, once a second"),
    ("src/status/routes.rs", "waits for bodies and disks"),
    ("src/status/token.rs", "reads the token"),
];

/// What makes a file impure, wherever in a path it stands.
const IMPURE_PATHS: &[&str] = &[
    // sockets
    "tokio::net",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::net::ToSocketAddrs",
    "std::os::unix::net",
    "rustix::net",
    "socket2",
    // disk
    "std::fs",
    "tokio::fs",
    "rustix::fs",
    "File::open",
    "File::create",
    "OpenOptions",
    "tempfile",
    "notify",
    "rusqlite",
    // tasks, threads and processes
    "tokio::spawn",
    "tokio::task",
    "tokio::process",
    "tokio::signal",
    "tokio::runtime",
    "tokio::main",
    "task::spawn_blocking",
    "std::thread",
    "std::process::Command",
    // the clock
    "SystemTime::now",
    "Instant::now",
    "OffsetDateTime::now_utc",
    "clock::now",
    "clock::monotonic",
    "tokio::time",
];

/// Crates that only one place in the house knows, so that it can be built without them.
const CONFINED: &[(&str, &str)] = &[("openssl", "src/serve/old_tls/"), ("tokio_openssl", "src/serve/old_tls/")];

const FILE_LINES: usize = 400;
const FUNCTION_LINES: usize = 60;
const MEDIAN_FUNCTION_LINES: usize = 12;

/// Names that say nothing, so that everything ends up there.
const FORBIDDEN_FILES: [&str; 6] = ["util.rs", "types.rs", "common.rs", "error.rs", "prelude.rs", "helpers.rs"];

/// What the project's files are, apart from those that git or cargo make.
const TREE: [&str; 6] = ["src", "tests", "constituencies", ".ci", "README.md", "Cargo.toml"];

/// A rule that saw nothing proves nothing. Raise these as the house grows.
mod at_least {
    pub(crate) const SOURCES: usize = 130;
    pub(crate) const FUNCTIONS: usize = 400;
    pub(crate) const IMPORTS: usize = 100;
    pub(crate) const TREE_FILES: usize = 230;
}

fn root() -> PathBuf {
    // Where cargo runs the test, which may be another folder than where it was built.
    std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).into()
}

fn house() -> House {
    let house = House::read(&root());
    saw(house.sources.len(), at_least::SOURCES, "source files");
    house
}

fn saw(count: usize, minimum: usize, what: &str) {
    assert!(count >= minimum, "saw only {count} {what}, {minimum} expected: does this test look in the right place?");
}

fn none(violations: &[String]) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

fn layer_of(module: &str) -> Option<&'static Layer> {
    HOUSE.into_iter().find(|layer| layer.modules.contains(&module))
}

/// The rule that an import breaks, if it does.
fn forbidden(house: &House, import: &Import<'_>) -> Option<String> {
    let from = import.mention.from.first().map_or("lib", String::as_str);
    let to = import.target.first().map(String::as_str)?;
    if !house.is_module(&import.target[..1]) {
        return Some(format!("crate::{to} is no module: name the module that defines it"));
    }
    let (Some(layer), Some(target)) = (layer_of(from), layer_of(to)) else {
        return None; // each_top_level_module_has_its_place speaks of it
    };
    let below = || layer.below.iter().any(|below| below.modules == target.modules);
    let neighbour = layer.modules == target.modules && layer.neighbours;
    (from != to && !below() && !neighbour).then(|| format!("{from} must not import {to}"))
}

fn import_violations(house: &House) -> Vec<String> {
    let broken = house.imports().filter_map(|import| {
        let rule = forbidden(house, &import)?;
        Some(format!("{}:{}: {rule} ({})", import.source.path, import.mention.line, import.mention.path.join("::")))
    });
    broken.collect::<BTreeSet<String>>().into_iter().collect()
}

/// Where a file first touches the world, outside its tests.
fn first_impurity(house: &House, source: &Source) -> Option<(usize, &'static str)> {
    let touches = |path: &[String], pattern: &str| {
        let pattern: Vec<&str> = pattern.split("::").collect();
        path.windows(pattern.len()).any(|window| window.iter().zip(&pattern).all(|(a, b)| a == b))
    };
    let mentions = source.mentions.iter().filter(|mention| !house.in_tests(mention));
    mentions
        .filter_map(|mention| {
            let pattern = IMPURE_PATHS.iter().find(|pattern| touches(&mention.path, pattern))?;
            Some((mention.line, *pattern))
        })
        .min()
}

#[test]
fn each_top_level_module_has_its_place() {
    let house = house();
    let homeless = house.sources.iter().filter_map(|source| {
        let module = source.module.first().map_or("lib", String::as_str);
        layer_of(module)
            .is_none()
            .then(|| format!("{}: add the module `{module}` to a layer in tests/architecture.rs", source.path))
    });
    none(&homeless.collect::<Vec<String>>());
}

#[test]
fn imports_point_downwards() {
    let house = house();
    saw(house.imports().count(), at_least::IMPORTS, "imports");
    none(&import_violations(&house));
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let house = house();
    let folders = house.sibling_edges();
    let circles = folders.iter().filter_map(|(folder, edges)| {
        let place = if folder.is_empty() { "src".to_owned() } else { format!("src/{}", folder.join("/")) };
        Some(format!("{place}: a circle of imports: {}", cycle(edges)?))
    });
    none(&circles.collect::<Vec<String>>());
}

#[test]
fn only_the_listed_files_touch_the_world() {
    let house = house();
    let listed = |path: &str| IMPURE_FILES.iter().any(|(listed, _)| *listed == path);
    let mut violations = Vec::new();
    for source in &house.sources {
        match (first_impurity(&house, source), listed(&source.path)) {
            (Some((line, what)), false) => violations.push(format!(
                "{}:{line}: touches {what}: take it as an argument, or add to IMPURE_FILES",
                source.path
            )),
            (None, true) => violations.push(format!("{}: is pure: take it off IMPURE_FILES", source.path)),
            _ => {}
        }
    }
    let exists = |path: &str| house.sources.iter().any(|source| source.path == path);
    let gone = IMPURE_FILES.iter().filter(|(path, _)| !exists(path));
    violations.extend(gone.map(|(path, _)| format!("{path}: is not there: take it off IMPURE_FILES")));
    none(&violations);
}

#[test]
fn confined_crates_stay_where_they_are() {
    let house = house();
    for (confined, place) in CONFINED {
        let knows =
            |source: &&Source| source.mentions.iter().any(|it| it.path.first().is_some_and(|it| it == confined));
        let (inside, outside): (Vec<&Source>, Vec<&Source>) =
            house.sources.iter().filter(knows).partition(|source| source.path.starts_with(place));
        saw(inside.len(), 1, &format!("files that know {confined}"));
        none(&outside.iter().map(|it| format!("{}: only {place} knows {confined}", it.path)).collect::<Vec<String>>());
    }
}

#[test]
fn files_and_functions_stay_small() {
    let house = house();
    let mut violations = Vec::new();
    for source in &house.sources {
        let lines = source.text.lines().count();
        if lines > FILE_LINES {
            violations.push(format!("{}:{lines}: a file has up to {FILE_LINES} lines", source.path));
        }
        for function in source.functions.iter().filter(|function| function.lines > FUNCTION_LINES) {
            let (line, name, lines) = (function.line, &function.name, function.lines);
            let rule = format!("a function has up to {FUNCTION_LINES} lines, {name} has {lines}");
            violations.push(format!("{}:{line}: {rule}", source.path));
        }
    }
    none(&violations);
}

#[test]
fn the_median_function_is_short() {
    let house = house();
    let mut lines: Vec<usize> = house.sources.iter().flat_map(|source| &source.functions).map(|it| it.lines).collect();
    saw(lines.len(), at_least::FUNCTIONS, "functions");
    lines.sort_unstable();
    let median = lines[lines.len() / 2];
    assert!(
        median < MEDIAN_FUNCTION_LINES,
        "src: the median function has {median} lines, not under {MEDIAN_FUNCTION_LINES}"
    );
}

#[test]
fn no_file_has_a_name_that_says_nothing() {
    let nameless = house().sources.into_iter().filter_map(|source| {
        let name = source.path.rsplit('/').next()?;
        FORBIDDEN_FILES.contains(&name).then(|| format!("{}: name it after what it holds", source.path))
    });
    none(&nameless.collect::<Vec<String>>());
}

#[test]
fn nothing_is_unsafe() {
    let house = house();
    let lines = |source: &Source| lines_with_token(&source.text, "unsafe");
    let places = house.sources.iter().flat_map(|source| lines(source).into_iter().map(|line| (&source.path, line)));
    none(&places.map(|(path, line)| format!("{path}:{line}: no `unsafe` in this house")).collect::<Vec<String>>());
}

#[test]
fn the_project_speaks_of_itself_alone() {
    // Taken apart, so that this file does not mention it either.
    let outside = concat!("..", "/shared").as_bytes();
    let paths: Vec<String> = TREE.iter().flat_map(|entry| files(&root(), entry)).collect();
    saw(paths.len(), at_least::TREE_FILES, "files");
    let mut violations = Vec::new();
    for path in &paths {
        let bytes = std::fs::read(root().join(path)).unwrap();
        let lines = bytes.split(|byte| *byte == b'\n').zip(1..);
        let found = lines.filter(|(line, _)| line.windows(outside.len()).any(|window| window == outside));
        violations.extend(found.map(|(_, line)| format!("{path}:{line}: names a folder outside the project")));
    }
    none(&violations);
}

#[path = "architecture/rules_bite.rs"]
mod rules_bite;
