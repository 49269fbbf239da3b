//! The names in the API, the schemas and the command line.

use std::path::Path;

use serde_json::{Value, json};

use super::{DENIED, LOST};
use crate::commands::subcommands;
use crate::harness::golden::{Lines, paths};
use crate::harness::operators::Operators;
use crate::harness::pki::Identity;
use crate::harness::tool::provost;
use crate::harness::{STRANGER, VVX500, eventually};

/// Keys with enumerated values in `/api/overview` and `/api/phones`.
const ENUMERATED: [&str; 7] = ["key", "level", "source", "state", "tls_level", "method", "error"];

/// The SHA-256 of a certificate, in hexadecimal.
pub fn sha256(identity: &Identity) -> String {
    provost::constituency::Fingerprint::of(&identity.chain[0]).to_string()
}

/// Paths with their methods, and the keys of the answers.
pub fn api(operators: &Operators) -> Vec<String> {
    let phone = format!("/api/phones/ote/{VVX500}");
    let page = format!("/phones/ote/{VVX500}");
    let delete = operators.with(&["-X", "DELETE"]);
    let mut found = vec!["[paths]".to_owned()];
    for path in [
        "/healthz",
        "/readyz",
        "/metrics",
        "/events",
        "/",
        &page,
        "/sign-in",
        "/sign-out",
        "/allow",
        "/deny",
        "/api/overview",
        "/api/phones",
        &phone,
        "/api/allow",
        "/api/deny",
    ] {
        let answer = delete.get(path);
        assert_eq!(answer.status, 405, "{path}: {answer:?}");
        found.push(format!("{}: {}", path.replace(VVX500, "MAC"), answer.headers["allow"]));
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        let answer = operators.get(path);
        let first = answer.body.lines().next().unwrap();
        let first = if path == "/metrics" { "" } else { first };
        found.push(
            format!("GET {path}: {} {} {first}", answer.status, answer.headers["content-type"]).trim_end().to_owned(),
        );
    }
    let answers = [
        ("/api/overview", vec![operators.json("/api/overview")]),
        ("/api/phones", vec![operators.json("/api/phones")]),
        (
            "/api/phones/CONSTITUENCY/MAC",
            vec![operators.json(&phone), operators.json(&format!("/api/phones/old/{VVX500}"))],
        ),
    ];
    for (path, values) in &answers {
        found.push(format!("[GET {path}]"));
        found.extend(paths(values, &ENUMERATED, &[]));
    }
    found
}

/// The keys of POST requests and their answers.
pub fn changes(operators: &Operators) -> Vec<String> {
    let mut found = Vec::new();
    let bodies = [
        ("/api/allow", json!({ "mac": STRANGER, "constituency": "own", "note": "hall" })),
        ("/api/allow", json!({ "mac": STRANGER, "constituency": "own" })),
        ("/api/allow", json!({ "mac": STRANGER })),
        ("/api/allow", json!({ "mac": STRANGER, "constituency": "own", "frobnicate": 1 })),
        ("/api/allow", json!({ "mac": LOST, "constituency": "own" })),
        ("/api/deny", json!({ "mac": STRANGER, "constituency": "own", "note": "hall" })),
        ("/api/deny", json!({ "mac": DENIED, "note": "again" })),
        ("/api/deny", json!({ "mac": "nonsense" })),
        ("/api/allow", json!({ "macs": [STRANGER, VVX500], "constituency": "own" })),
        ("/api/deny", json!({ "macs": [STRANGER, VVX500], "constituency": "own" })),
    ];
    for (path, body) in bodies {
        let answer = operators.post(path, &body);
        let keys = paths([&body], &[], &[]);
        let keys: Vec<&str> = keys.iter().map(|line| line.split(':').next().unwrap()).collect();
        let answered = paths([&answer.json()], &[], &[]).into_iter().collect::<Vec<_>>().join(", ");
        found.push(format!("POST {path} {{{}}}: {} {answered}", keys.join(", "), answer.status));
    }
    for (what, answer) in [
        ("without a token", operators.without_token().get("/api/overview")),
        ("of an unknown phone", operators.get("/api/phones/ote/00005e0053fe")),
        ("of an unknown path", operators.get("/api/frobnicate")),
    ] {
        let answered = paths([&answer.json()], &[], &[]).into_iter().collect::<Vec<_>>().join(", ");
        found.push(format!("GET {what}: {} {answered}", answer.status));
    }
    found
}

/// Keys and values of queries and forms, and their results.
pub fn queries(operators: &Operators) -> Vec<String> {
    let mut found = Vec::new();
    let total = operators.json("/api/phones")["total"].clone();
    let counts = operators.json("/api/overview")["counts"].clone();
    let states = counts.as_object().unwrap().keys().map(|state| format!("state={state}"));
    let others = [
        "search=vvx",
        "search=nothing-like-it",
        "constituency=ote",
        "constituency=absent",
        "state=frobnicate",
        "sort=state",
        "sort=last_seen",
        "sort=name",
        "sort=model",
        "sort=frobnicate",
        "reverse=1",
        "reverse=true",
        "reverse=on",
        "reverse=yes",
        "offset=1",
        "offset=x",
        "limit=1",
        "limit=x",
        "frobnicate=1",
    ];
    let names = |answer: &Value| -> Vec<String> {
        let name = |phone: &Value| format!("{} {}", phone["constituency"], phone["mac"]);
        answer["phones"].as_array().unwrap().iter().map(name).collect()
    };
    let unfiltered = || (names(&operators.json("/api/phones")), operators.json("/api/overview")["counts"].clone());
    for query in states.chain(others.map(str::to_owned)) {
        let page = operators.get(&format!("/?{query}"));
        // The last requests are recorded late, and change order and states.
        let ((all, counts), api) = eventually("the phones to stay as they are", || {
            let (before, api) = (unfiltered(), operators.get(&format!("/api/phones?{query}")));
            (before == unfiltered()).then_some((before, api))
        });
        let effect = match api.status {
            200 => {
                let answer = api.json();
                let names = names(&answer);
                let state = query.strip_prefix("state=").map(|state| answer["matching"] == counts[state]);
                match (state, answer["matching"] == total, names == all) {
                    (Some(is_counted), ..) => {
                        if is_counted {
                            "selects"
                        } else {
                            "is not what is counted"
                        }
                    }
                    (None, false, _) => "selects",
                    (None, true, _) if names.len() < all.len() => "selects a page",
                    (None, true, is_same) => {
                        if is_same {
                            "changes nothing"
                        } else {
                            "sorts"
                        }
                    }
                }
            }
            _ => "is refused",
        };
        found.push(format!("{query}: API {}, page {}, {effect}", api.status, page.status));
    }
    let form = |path: &str, fields: &str| operators.with(&["--data", fields]).get(path);
    for (path, fields) in [
        ("/allow", format!("mac={STRANGER}&constituency=own&note=hall")),
        ("/deny", format!("mac={STRANGER}&constituency=own")),
        ("/deny", format!("mac={DENIED}")),
        ("/sign-in", "token=of-a-test-of-outputs".to_owned()),
        ("/sign-out", String::new()),
    ] {
        let answer = form(path, &fields);
        let keys: Vec<&str> = fields.split('&').map(|field| field.split('=').next().unwrap()).collect();
        let header = |name: &str| answer.headers.get(name).map_or("", String::as_str);
        let cookie = header("set-cookie").split('=').next().unwrap();
        found.push(format!("POST {path} {}: {} {} {cookie}", keys.join(", "), answer.status, header("location")));
    }
    found.iter().map(|line| line.trim_end().to_owned()).collect()
}

/// Every setting of a file by its schema.
pub fn settings(file: &str) -> Lines {
    let printed = provost(Path::new("/"), &["schema", file]);
    assert_eq!(printed.code, 0, "{printed:?}");
    let root: Value = serde_json::from_str(&printed.stdout).unwrap();
    let mut found = Lines::new();
    describe(&root, &root, "", &mut found);
    found
}

fn describe(root: &Value, schema: &Value, path: &str, found: &mut Lines) {
    if let Some(reference) = schema["$ref"].as_str() {
        return describe(root, root.pointer(reference.strip_prefix('#').unwrap()).unwrap(), path, found);
    }
    let list = |key: &str| schema[key].as_array().into_iter().flatten();
    for one in list("anyOf").chain(list("oneOf")) {
        describe(root, one, path, found);
    }
    for value in list("enum").chain(schema.get("const")) {
        found.insert(format!("{path} = {value}"));
    }
    if schema.get("enum").is_none() && schema.get("const").is_none() {
        let kinds = list("type").chain(schema.get("type")).filter_map(Value::as_str);
        found.extend(kinds.filter(|kind| !path.is_empty() && *kind != "null").map(|kind| format!("{path}: {kind}")));
    }
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        describe(root, inner, &below(key), found);
    }
    found.extend(list("required").map(|key| format!("{} is required", below(key.as_str().unwrap()))));
    if schema["additionalProperties"].is_object() {
        describe(root, &schema["additionalProperties"], &below("*"), found);
    }
    if schema["items"].is_object() {
        describe(root, &schema["items"], &format!("{path}[]"), found);
    }
}

/// Commands, options, positional arguments and their values by the help, and environment variables.
pub fn command_line() -> Lines {
    let mut found = Lines::new();
    // Hidden commands, which still work, are in no help.
    let hidden = ["certificate", "rehearse"].map(str::to_owned).to_vec();
    let mut open: Vec<Vec<String>> = vec![Vec::new(), hidden];
    while let Some(command) = open.pop() {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let help = provost(Path::new("/"), &[&words[..], &["--help"]].concat());
        assert_eq!(help.code, 0, "{help:?}");
        let title = [&["provost"], &words[..]].concat().join(" ");
        found.insert(title.clone());
        // These occur in every help text.
        let is_own =
            |option: &String| words.is_empty() || !["-V, ", "-c, ", "-h, "].iter().any(|it| option.starts_with(it));
        found.extend(options(&help.stdout).into_iter().filter(is_own).map(|option| format!("{title} {option}")));
        open.extend(subcommands(&words).into_iter().map(|next| [&command[..], &[next]].concat()));
    }
    let manual = provost(Path::new("/"), &["print", "man"]).stdout;
    let is_name = |it: char| it.is_ascii_uppercase() || it == '_';
    let words = manual.split(|it| !is_name(it)).filter_map(|word| word.find("PROVOST_").map(|at| &word[at..]));
    found.extend(words.map(str::to_owned));
    found
}

/// The options and positional arguments in a help text, with their values.
fn options(help: &str) -> Vec<String> {
    let mut found = Vec::new();
    let (mut section, mut name) = ("", String::new());
    for line in help.lines() {
        let trimmed = line.trim_start();
        if line.ends_with(':') && trimmed == line {
            section = line;
            continue;
        }
        let indent = line.len() - trimmed.len();
        let is_option = section.ends_with("ptions:") && indent <= 6 && trimmed.starts_with('-');
        let is_argument = section == "Arguments:" && indent == 2 && trimmed.starts_with(['<', '[']);
        if is_option && !trimmed.starts_with("- ") {
            let (words, value) = trimmed
                .split("  ")
                .next()
                .unwrap()
                .split_once([' ', '[', '='])
                .map_or_else(|| (trimmed.split("  ").next().unwrap(), ""), |(words, rest)| (words, rest));
            // Both forms: `-V, --version`.
            let (words, value) = match words.strip_suffix(',') {
                Some(short) => {
                    let (long, value) = value.split_once([' ', '[', '=']).unwrap_or((value, ""));
                    (format!("{short}, {long}"), value)
                }
                None => (words.to_owned(), value),
            };
            name = if value.is_empty() { words } else { format!("{words} VALUE") };
            found.push(name.clone());
        } else if is_argument {
            let many = if trimmed.contains("...") { "..." } else { "" };
            name = if trimmed.starts_with('<') { format!("ARGUMENT{many}") } else { format!("[ARGUMENT]{many}") };
            found.push(name.clone());
        } else if let Some(value) = trimmed.strip_prefix("- ").filter(|_| indent > 6) {
            found.push(format!("{name} = {}", value.split(':').next().unwrap()));
        } else if let Some((_, values)) = trimmed.split_once("[possible values: ") {
            found.extend(values.trim_end_matches(']').split(", ").map(|value| format!("{name} = {value}")));
        }
    }
    found
}

/// The names of the printed Prometheus alerts.
pub fn alerts() -> Lines {
    let printed = provost(Path::new("/"), &["print", "prometheus-alerts"]);
    assert_eq!(printed.code, 0, "{printed:?}");
    printed.stdout.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned).collect()
}
