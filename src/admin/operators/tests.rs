//! Which tokens and sessions are accepted, and which files.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::file::{FILE, InvalidOperatorName, OperatorName, OperatorsError, Rights, add, read, remove, rotate};
use super::*;
use crate::{clock, state};

const NOW: i64 = 1_800_000_000;
const TOKEN: &str = "0123456789abcdef";

type Damage = fn(&Path);

fn quiet(message: &str) {
    panic!("{message}");
}

fn name(text: &str) -> OperatorName {
    text.parse().unwrap()
}

fn new(state: &Path, text: &str) -> String {
    add(state, &name(text), &Rights::default(), NOW, &quiet).unwrap()
}

fn open(state: &Path) -> OperatorsWatcher {
    Operators::open(None, state, clock::now()).unwrap()
}

/// Reads the file again, as long after its last change as needed.
fn refresh(watcher: &mut OperatorsWatcher) -> OperatorChanges {
    watcher.refresh(clock::now() + Duration::from_mins(1))
}

fn name_of(operators: &Operators, token: &str) -> Option<String> {
    operators.authenticate(token.as_bytes()).map(|operator| operator.name.clone())
}

#[test]
fn operator_is_stored_hashed_and_private() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    assert!(read(&state).unwrap().0.is_empty());
    assert!(matches!(remove(&state, &name("anna"), &quiet), Err(OperatorsError::NotFound(_))));
    assert!(matches!(rotate(&state, &name("anna"), NOW, &quiet), Err(OperatorsError::NotFound(_))));
    assert!(!state.exists(), "removing and rotating make nothing");
    let first = add(&state, &name("anna"), &Rights { read_only: true, ..Rights::default() }, NOW, &quiet).unwrap();
    assert!(first.len() >= 26, "128 bits in Base32");
    let text = std::fs::read_to_string(state.join(FILE)).unwrap();
    assert!(!text.contains(&first) && text.contains("\"read_only\": true") && text.contains("2027-01-15T08:00:00Z"));
    assert_eq!(std::fs::metadata(state.join(FILE)).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(add(&state, &name("anna"), &Rights::default(), NOW, &quiet), Err(OperatorsError::Exists(_))));
    assert_eq!(std::fs::read_to_string(state.join(FILE)).unwrap(), text);
    let second = rotate(&state, &name("anna"), NOW + 1, &quiet).unwrap();
    let stored = read(&state).unwrap().0.remove(&name("anna")).unwrap();
    assert_eq!((stored.read_only, stored.created, stored.rotated), (true, Some(NOW), Some(NOW + 1)));
    assert!(first != second && stored.token_sha256 == TokenHash::of(second.as_bytes()));
    assert!(!format!("{stored:?}").contains(&hex(stored.token_sha256.bytes())));
    new(&state, "b");
    assert_eq!(remove(&state, &name("anna"), &quiet).unwrap(), 1);
    assert_eq!(read(&state).unwrap().0.keys().map(OperatorName::as_str).collect::<Vec<_>>(), ["b"]);
}

#[test]
fn operator_names_are_short_plain_words() {
    let longest = "a".repeat(32);
    for good in ["anna", "0", "a.b_c-d", "anna.", &longest] {
        assert_eq!(good.parse::<OperatorName>().unwrap().as_str(), good);
    }
    let too_long = "a".repeat(33);
    for bad in ["", "Anna", "-a", ".a", "_a", "a b", "a:b", "a/b", "a\0", "a\n", "ä", "a%62", &too_long] {
        assert!(matches!(bad.parse::<OperatorName>(), Err(InvalidOperatorName::Character(_))), "{bad:?}");
    }
    assert_eq!("token_file".parse::<OperatorName>(), Err(InvalidOperatorName::Reserved));
}

#[test]
fn invalid_operators_file_is_refused_with_its_line() {
    let hash = "0".repeat(64);
    let other = "1".repeat(64);
    let entry = |hash: &str| format!("{{\"token_sha256\": \"{hash}\"}}");
    let one = entry(&hash);
    let cases = [
        (String::new(), "the file is empty"),
        ("[]".to_owned(), "must be an object"),
        (format!("{{\"anna\": {one},\n\"anna\": {}}}", entry(&other)), ":2:"),
        (format!("{{\"anna\": {one},\n\"anna\": {}}}", entry(&other)), "operator \"anna\" occurs twice"),
        (format!("{{\"anna\": {one},\n\"\\u0061nna\": {one}}}"), "operator \"anna\" occurs twice"),
        (format!("{{\"anna\": {one},\n\"berta\": {one}}}"), "\"anna\" and \"berta\" have the same token"),
        (format!("{{\"Anna\": {one}}}"), "invalid operator name \"Anna\""),
        (format!("{{\"token_file\": {one}}}"), "invalid operator name \"token_file\""),
        (format!("{{\"anna\": {{\"token_sha256\": \"{hash}\", \"token_sha256\": \"{other}\"}}}}"), "duplicate key"),
        (format!("{{\"anna\": {{\"token_sha256\": \"{hash}\", \"admin\": true}}}}"), "\"admin\""),
        (format!("{{\"anna\": {{\"token_sha256\": \"{hash}\", \"read_only\": \"yes\"}}}}"), "read_only"),
        (format!("{{\"anna\": {}}}", entry(&hash[1..])), "64 hexadecimal digits"),
        (format!("{{\"anna\": {}}}", entry(&hash.replacen("00", "+0", 1))), "64 hexadecimal digits"),
        ("{\"anna\": {}}".to_owned(), "token_sha256"),
        ("{\"anna\": null}".to_owned(), "anna"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(FILE);
    for (text, expected) in &cases {
        state::write_private(&file, text.as_bytes()).unwrap();
        let error = read(folder.path()).unwrap_err().to_string();
        assert!(error.contains(expected) && error.starts_with(&file.display().to_string()), "{text}: {error}");
        let operators = open(folder.path()).operators();
        assert!(operators.are_required() && operators.error().as_deref() == Some(error.as_str()), "{text}");
        for change in [
            add(folder.path(), &name("new"), &Rights::default(), NOW, &quiet).map(drop),
            rotate(folder.path(), &name("anna"), NOW, &quiet).map(drop),
            remove(folder.path(), &name("anna"), &quiet).map(drop),
        ] {
            assert_eq!(change.unwrap_err().to_string(), error, "{text}");
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), *text);
    }
}

#[test]
fn only_the_exact_token_of_an_operator_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path();
    state::write_private(&state.join("token"), format!("  {TOKEN}\n").as_bytes()).unwrap();
    let (anna, berta) = (new(state, "anna"), new(state, "berta"));
    let operators = Operators::open(Some(&state.join("token")), state, clock::now()).unwrap().operators();
    for (token, owner) in [(TOKEN, "token_file"), (&*anna, "anna"), (&*berta, "berta")] {
        assert_eq!(name_of(&operators, token).as_deref(), Some(owner));
        let longer = format!("{token}0");
        for wrong in [&token[1..], &token[..token.len() - 1], &longer, &token.to_uppercase()] {
            assert_eq!(name_of(&operators, wrong), None, "{wrong:?}");
        }
    }
    let hash = hex(TokenHash::of(anna.as_bytes()).bytes());
    let huge = "0".repeat(1 << 20);
    for wrong in ["", " ", "anna", "token_file", &hash, &huge, &format!("{anna}{berta}"), &format!("anna:{anna}")] {
        assert_eq!(name_of(&operators, wrong), None);
    }
    assert!(!format!("{operators:?}").contains(TOKEN));
    let nothing = tempfile::tempdir().unwrap();
    let none = open(nothing.path()).operators();
    assert!(name_of(&none, "").is_none() && !none.are_required() && operators.are_required());
}

#[test]
fn session_is_bound_to_scope_time_operator_and_process() {
    let folder = tempfile::tempdir().unwrap();
    let (anna, berta) = (new(folder.path(), "anna"), new(folder.path(), "berta"));
    let operators = open(folder.path()).operators();
    let cookie = operators.begin_session("name", anna.as_bytes(), NOW).unwrap();
    assert!(!cookie.contains(&anna));
    let owner = |operators: &Operators, scope: &str, value: &str, now| {
        operators.verify_session(scope, value, now).map(|operator| operator.name.clone())
    };
    for now in [NOW, NOW + SESSION_S - 1] {
        assert_eq!(owner(&operators, "name", &cookie, now).as_deref(), Some("anna"));
    }
    assert_eq!(owner(&operators, "name", &cookie, NOW + SESSION_S), None);
    let forged = [
        cookie.replacen("anna", "berta", 1),
        cookie.replacen("anna", "Anna", 1),
        cookie.replacen("anna", "token_file", 1),
        cookie.replacen("anna", "anna:berta", 1),
        cookie.replacen("anna:", "", 1),
        cookie.replacen("anna:", "anna:9", 1),
        cookie.replacen('-', "-+", 1),
        cookie[..cookie.len() - 2].to_owned(),
        format!("{cookie}00"),
        String::new(),
        ":-".to_owned(),
        "anna:1900000000-".to_owned(),
        "anna:1900000000-00".to_owned(),
        "anna:1900000000-é".to_owned(),
    ];
    for forged in &forged {
        assert_eq!(owner(&operators, "name", forged, NOW), None, "{forged}");
    }
    for other in ["", "nam", "name ", "other"] {
        assert_eq!(owner(&operators, other, &cookie, NOW), None, "{other:?}");
    }
    assert_eq!(owner(&open(folder.path()).operators(), "name", &cookie, NOW), None, "another process");
    assert_eq!(operators.begin_session("name", b"wrong", NOW), None);
    assert_ne!(operators.begin_session("name", berta.as_bytes(), NOW), Some(cookie));
}

#[test]
fn removal_and_rotation_end_only_the_operators_own_sessions() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path();
    let tokens = ["anna", "berta", "carla"].map(|name| new(state, name));
    let mut watcher = open(state);
    let operators = watcher.operators();
    let sessions = tokens.each_ref().map(|token| operators.begin_session("s", token.as_bytes(), NOW).unwrap());
    let known = tokens.each_ref().map(|token| operators.authenticate(token.as_bytes()).unwrap());
    remove(state, &name("anna"), &quiet).unwrap();
    let new = rotate(state, &name("berta"), NOW, &quiet).unwrap();
    let changes = refresh(&mut watcher);
    assert_eq!((changes.removed, changes.changed, changes.added), (vec!["anna".into()], vec!["berta".into()], vec![]));
    assert_eq!(tokens.each_ref().map(|token| name_of(&operators, token).is_some()), [false, false, true]);
    assert_eq!(sessions.each_ref().map(|it| operators.verify_session("s", it, NOW).is_some()), [false, false, true]);
    assert_eq!(known.each_ref().map(|it| operators.still_accept(Some(it))), [false, false, true]);
    assert_eq!(name_of(&operators, &new).as_deref(), Some("berta"));
    // An operator of the same name is another one.
    let again = add(state, &name("anna"), &Rights::default(), NOW, &quiet).unwrap();
    assert_eq!(refresh(&mut watcher).added, ["anna"]);
    assert!(operators.verify_session("s", &sessions[0], NOW).is_none() && name_of(&operators, &again).is_some());
    assert_eq!(refresh(&mut watcher), OperatorChanges::default());
}

#[test]
fn changed_rights_apply_to_open_sessions() {
    let folder = tempfile::tempdir().unwrap();
    let token = new(folder.path(), "anna");
    let mut watcher = open(folder.path());
    let operators = watcher.operators();
    let session = operators.begin_session("s", token.as_bytes(), NOW).unwrap();
    let known = operators.authenticate(token.as_bytes()).unwrap();
    let file = folder.path().join(FILE);
    let text = std::fs::read_to_string(&file).unwrap().replace("\"created\"", "\"read_only\": true, \"created\"");
    state::write_private(&file, text.as_bytes()).unwrap();
    assert_eq!(refresh(&mut watcher).changed, ["anna"]);
    assert!(
        operators.verify_session("s", &session, NOW).unwrap().is_read_only && !operators.still_accept(Some(&known))
    );
}

#[test]
fn unusable_or_removed_file_leaves_only_the_token_file() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path();
    state::write_private(&state.join("token"), TOKEN.as_bytes()).unwrap();
    let anna = new(state, "anna");
    let file = state.join(FILE);
    let good = std::fs::read(&file).unwrap();
    let mut watcher = Operators::open(Some(&state.join("token")), state, clock::now()).unwrap();
    let operators = watcher.operators();
    let session = operators.begin_session("s", anna.as_bytes(), NOW).unwrap();
    let damages: [(&str, Damage); 3] = [
        ("the file ends before", |file| state::write_private(file, b"{").unwrap()),
        ("symbolic link", |file| {
            std::fs::rename(file, file.with_extension("aside")).unwrap();
            std::os::unix::fs::symlink(file.with_extension("aside"), file).unwrap();
        }),
        ("was removed while provost runs", |file| std::fs::remove_file(file).unwrap()),
    ];
    for (expected, damage) in damages {
        damage(&file);
        assert_eq!(refresh(&mut watcher), OperatorChanges::default());
        let error = operators.error().unwrap();
        assert!(error.contains(expected), "{error}");
        assert!(name_of(&operators, &anna).is_none() && operators.verify_session("s", &session, NOW).is_none());
        assert!(operators.are_required() && name_of(&operators, TOKEN).as_deref() == Some("token_file"));
        state::write_private(&file, &good).unwrap();
        refresh(&mut watcher);
        assert_eq!((operators.error(), name_of(&operators, &anna).as_deref()), (None, Some("anna")));
        assert!(operators.verify_session("s", &session, NOW).is_some());
    }
    // With the last operator, the need for a token ends.
    remove(state, &name("anna"), &quiet).unwrap();
    let mut without = open(state);
    assert!(!without.operators().are_required());
    std::fs::remove_file(&file).unwrap();
    refresh(&mut without);
    assert!(without.operators().are_required(), "the file was there, and it is unknown who removed it");
}

#[test]
fn new_token_file_ends_its_sessions_and_an_invalid_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    state::write_private(&file, TOKEN.as_bytes()).unwrap();
    let operators = Operators::open(Some(&file), folder.path(), clock::now()).unwrap().operators();
    let cookie = operators.begin_session("name", TOKEN.as_bytes(), NOW).unwrap();
    assert!(!operators.reload_token_file().unwrap());
    state::write_private(&file, b"another 0123456789").unwrap();
    assert!(operators.reload_token_file().is_err());
    assert!(operators.verify_session("name", &cookie, NOW).is_some(), "the last valid token stays in force");
    state::write_private(&file, b"another-0123456789").unwrap();
    assert!(operators.reload_token_file().unwrap());
    assert!(operators.verify_session("name", &cookie, NOW).is_none() && name_of(&operators, TOKEN).is_none());
    assert!(name_of(&operators, "another-0123456789").is_some());
}
