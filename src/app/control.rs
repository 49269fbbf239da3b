//! The control socket: commands to the running server, from those who may use its state directory.
//!
//! One request per connection, a line of JSON; then replies, a line each, until [`Reply::Done`] or [`Reply::Failed`].

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::constituency::ConstituencyName;
use crate::renew::{Command, Lineage, Status};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_REQUEST: u64 = 4096;

/// What may be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// How are the certificates?
    Status,
    /// Renew what is due, or everything.
    Renew {
        /// Everything, due or not.
        all: bool,
        /// Only the certificate for the exact names of this constituency.
        only: Option<ConstituencyName>,
    },
    /// Revoke a certificate.
    Revoke {
        /// Which one.
        certificate: Lineage,
    },
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// So they are.
    Status(Box<Status>),
    /// A step.
    Says(String),
    /// It is done.
    Done,
    /// It came to nothing.
    Failed(String),
}

/// Where the socket is.
#[must_use]
pub fn path(state: &Path) -> PathBuf {
    state.join("control.sock")
}

/// Listens in the state directory, which we hold the lock of; without a socket, all else works.
pub(super) fn listen(state: &Path) -> Option<std::os::unix::net::UnixListener> {
    unlink(state);
    let path = path(state);
    let listening = std::os::unix::net::UnixListener::bind(&path).and_then(|listener| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listening.inspect_err(|error| tracing::warn!("no control socket {}: {error}", path.display())).ok()
}

/// The same listener, for the runtime that this is called in.
pub(super) fn within_runtime(listener: std::os::unix::net::UnixListener) -> Option<UnixListener> {
    UnixListener::from_std(listener).inspect_err(|error| tracing::warn!("no control socket: {error}")).ok()
}

/// Removes the socket; one that a crash left behind too.
pub(super) fn unlink(state: &Path) {
    // Mostly it is not there.
    let _ = std::fs::remove_file(path(state));
}

/// Answers for ever.
pub(super) async fn serve(listener: Option<&UnixListener>, commands: &mpsc::Sender<Command>) {
    let Some(listener) = listener else { return std::future::pending().await };
    let mut conversations = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                conversations.spawn(converse(stream, commands.clone()));
            }
            Err(_) => tokio::time::sleep(REQUEST_TIMEOUT).await,
        }
        while conversations.try_join_next().is_some() {}
    }
}

/// A conversation that breaks off ends; that is all.
async fn converse(stream: UnixStream, commands: mpsc::Sender<Command>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    timeout(REQUEST_TIMEOUT, BufReader::new(reader.take(MAX_REQUEST)).read_line(&mut line)).await??;
    let gone = |_| io::Error::other("the renewal has ended");
    let last = match serde_json::from_str(&line)? {
        Request::Status => {
            let (reply, status) = oneshot::channel();
            commands.send(Command::Status(reply)).await.map_err(io::Error::other)?;
            say(&mut writer, &Reply::Status(Box::new(status.await.map_err(gone)?))).await?;
            Reply::Done
        }
        Request::Renew { all, only } => {
            let (progress, mut said) = mpsc::unbounded_channel();
            commands.send(Command::Renew { all, only, progress }).await.map_err(io::Error::other)?;
            while let Some(step) = said.recv().await {
                say(&mut writer, &Reply::Says(step)).await?;
            }
            Reply::Done
        }
        Request::Revoke { certificate: lineage } => {
            let (done, hears) = oneshot::channel();
            let of = lineage.to_string();
            commands.send(Command::Revoke { lineage, done }).await.map_err(io::Error::other)?;
            match hears.await.map_err(gone)? {
                Ok(()) => {
                    let step = format!("{of}: revoked; another one is being obtained (provost certificate status)");
                    say(&mut writer, &Reply::Says(step)).await?;
                    Reply::Done
                }
                Err(failure) => Reply::Failed(failure.message),
            }
        }
    };
    say(&mut writer, &last).await
}

async fn say(writer: &mut (impl AsyncWriteExt + Unpin), reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_string(reply)?;
    line.push('\n');
    writer.write_all(line.as_bytes()).await
}
