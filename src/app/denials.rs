//! Follows the server-wide denials, so that one counts within a second.
//!
//! On a thread of its own: whatever disk the constituencies, certificates or trust bundles lie on, and however long that
//! takes to answer, a lost phone is refused.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::reload_log;
use crate::clock;
use crate::constituency::denials::DenialsFile;

/// How often the file is looked at.
const PERIOD: Duration = Duration::from_millis(250);

/// The thread that follows them; when this and its clones are dropped, it ends.
#[derive(Debug, Clone)]
pub(super) struct DenialsFollower(Sender<Sender<()>>);

impl DenialsFollower {
    /// Starts the thread.
    pub(super) fn start(mut file: DenialsFile) -> std::io::Result<Self> {
        let (questions, asked) = channel::<Sender<()>>();
        std::thread::Builder::new().name("denials".to_owned()).spawn(move || {
            let mut told = None;
            loop {
                match asked.recv_timeout(PERIOD) {
                    // Whoever asked may have gone.
                    Ok(answer) => drop(answer.send(())),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                let followed = catch_unwind(AssertUnwindSafe(|| {
                    let changes = file.refresh(clock::now());
                    reload_log::log_denials(&changes);
                    reload_log::log_denials_error(&mut told, file.error());
                }));
                if followed.is_err() {
                    tracing::error!("following the server-wide denials failed by a defect of provost (a panic)");
                }
            }
        })?;
        Ok(Self(questions))
    }

    /// Asks the thread to answer when it comes round; `None` if it has ended.
    pub(super) fn ask(&self) -> Option<Receiver<()>> {
        let (answer, answered) = channel();
        self.0.send(answer).ok().map(|()| answered)
    }
}
