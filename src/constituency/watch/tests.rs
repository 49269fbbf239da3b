//! The watcher, and the order of callbacks and publishing.

use super::*;

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
