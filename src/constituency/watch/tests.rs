//! The watcher, and the order of callbacks and publishing.

use super::super::scan::SCANNED;
use super::*;
use crate::state;

#[test]
fn watcher_survives_a_panic_and_publishes_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut scanner = Scanner::new(folder.path().to_owned(), Vec::new());
    let first = scanner.scan(clock::now());
    let (sender, published) = channel();
    let mut is_first = true;
    let handle = spawn_watcher(scanner, first, move |after| {
        assert!(!std::mem::replace(&mut is_first, false), "the test panics here");
        sender.send(after.served().count()).unwrap();
    })
    .unwrap();
    std::fs::create_dir(folder.path().join("ote")).unwrap();
    assert_eq!(published.recv_timeout(Duration::from_secs(20)), Ok(1));
    handle.stop();
}

#[test]
fn rescan_callback_runs_after_publishing() {
    let folder = tempfile::tempdir().unwrap();
    let mut scanner = Scanner::new(folder.path().to_owned(), Vec::new());
    let first = scanner.scan(clock::now());
    let (publishing, events) = channel();
    let done = publishing.clone();
    let handle =
        spawn_watcher(scanner, first, move |after| publishing.send(Some(after.served().count())).unwrap()).unwrap();
    std::fs::create_dir(folder.path().join("ote")).unwrap();
    handle.rescan_with(Vec::new(), move || done.send(None).unwrap());
    let soon = Duration::from_secs(20);
    assert_eq!((events.recv_timeout(soon), events.recv_timeout(soon)), (Ok(Some(1)), Ok(None)));
    handle.stop();
}

#[test]
fn edit_in_one_folder_scans_no_other() {
    const FOLDERS: usize = 50;
    let root = tempfile::tempdir().unwrap();
    for number in 0..FOLDERS {
        std::fs::create_dir(root.path().join(format!("c{number}"))).unwrap();
    }
    let mut scanner = Scanner::new(root.path().to_owned(), Vec::new());
    let first = scanner.scan(clock::now());
    let (sender, published) = channel();
    // Runs on the thread that scans.
    let publish = move |after: Registry| sender.send((SCANNED.get(), after.find("alias").is_some())).unwrap();
    let handle = spawn_watcher(scanner, first, publish).unwrap();
    let next = || published.recv_timeout(Duration::from_secs(20)).unwrap();
    let mut last = None;
    let mut scanned = Vec::new();
    // Every ten seconds everything is scanned, on a busy machine perhaps between two edits.
    for round in 0..40 {
        let policy = if round % 2 == 0 { r#"{ "aliases": ["alias"] }"# } else { "{}" };
        state::write_private(&root.path().join("c7/constituency.json"), policy.as_bytes()).unwrap();
        let (all, has_alias) = next();
        assert_eq!(has_alias, round % 2 == 0);
        scanned.extend(last.replace(all).map(|before| all - before));
        if scanned.last().is_some_and(|folders| *folders < 5) {
            break;
        }
    }
    assert!(scanned.last().is_some_and(|folders| *folders < 5), "{scanned:?}");
    // A new folder still takes a scan of everything.
    std::fs::create_dir(root.path().join("alias")).unwrap();
    assert!(next().1);
    handle.stop();
}
