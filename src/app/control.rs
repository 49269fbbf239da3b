//! The control socket: commands to the running server, from users who may access its state directory.
//!
//! A connection carries one request, a line of JSON. Replies follow, a line each, until [`ControlReply::Done`] or
//! [`ControlReply::Failed`].

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::renewal_thread::RenewalHandle;
use crate::acme::{AcmeStatus, Lineage, RenewalCommand};
use crate::constituency::ConstituencyName;
use crate::dns::{DnsError, RecordLocation, Responder};
use crate::phone_history::HistoryHealth;
use crate::serve::access_log::AccessLog;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_REQUEST: u64 = 4096;

/// A request to the running server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlRequest {
    /// Report the state of the certificates.
    Status,
    /// Renew the certificates that are due, or all.
    Renew {
        /// All certificates, due or not.
        all: bool,
        /// Only the certificate for the exact names of this constituency.
        only: Option<ConstituencyName>,
    },
    /// Revoke a certificate.
    Revoke {
        /// The certificate to revoke.
        certificate: Lineage,
    },
    /// Add the values of a dry run's challenge to the zone of the DNS responder.
    AddChallenge { location: RecordLocation, values: Vec<String> },
    /// Remove them.
    RemoveChallenge { location: RecordLocation, values: Vec<String> },
    /// Write all events so far into the phone history.
    Flush,
}

/// What requests act on.
#[derive(Debug, Clone)]
pub(super) struct Control {
    pub(super) renewal: RenewalHandle,
    /// The DNS responder, if that publishes challenges.
    pub(super) responder: Option<Arc<Responder>>,
    pub(super) access: AccessLog,
    pub(super) history: Arc<HistoryHealth>,
}

/// A reply to a request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlReply {
    /// The state of the certificates.
    Status(Box<AcmeStatus>),
    /// A line about progress.
    #[serde(rename = "says")]
    Progress(String),
    /// The request is done.
    Done,
    /// The request failed, with the reason.
    Failed(String),
}

/// The name of the control socket in the state directory.
pub(super) const SOCKET: &str = "control.sock";

/// The path of the control socket.
#[must_use]
pub fn path(state: &Path) -> PathBuf {
    state.join(SOCKET)
}

/// Listens in the state directory, whose lock the caller holds. Needs a runtime. Returns `None` if it cannot listen;
/// all else works without the socket.
pub(super) fn listen(state: &Path) -> Option<UnixListener> {
    unlink(state);
    let path = path(state);
    let listening = UnixListener::bind(&path).and_then(|listener| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    });
    let warn = |error: &io::Error| {
        tracing::warn!(
            "cannot listen on the control socket {}: {error}; provost certificate renew cannot reach this server, and the \
             output of provost phones is up to a second old",
            path.display()
        );
    };
    listening.inspect_err(warn).ok()
}

/// Removes the socket, also one left by a crash.
pub(super) fn unlink(state: &Path) {
    // Usually there is none.
    let _ = std::fs::remove_file(path(state));
}

/// Accepts connections until it is dropped.
pub(super) async fn serve(listener: UnixListener, control: Control) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(serve_connection(stream, control.clone()));
            }
            Err(_) => tokio::time::sleep(REQUEST_TIMEOUT).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Serves one connection. An error only ends the connection.
async fn serve_connection(stream: UnixStream, control: Control) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    timeout(REQUEST_TIMEOUT, BufReader::new(reader.take(MAX_REQUEST)).read_line(&mut line)).await??;
    let gone = |_| io::Error::other("the renewal thread has ended");
    let command = async |command| match control.renewal.commands.load_full() {
        Some(renewal) => renewal.send(command).await.map_err(io::Error::other),
        None => Err(io::Error::other("the certificates do not come from ACME")),
    };
    let last = match serde_json::from_str(&line)? {
        ControlRequest::Flush => control.flush().await,
        ControlRequest::AddChallenge { location, values } => {
            control.change_challenge(|responder| responder.add(&location, &values))
        }
        ControlRequest::RemoveChallenge { location, values } => {
            control.change_challenge(|responder| responder.remove(&location, &values))
        }
        ControlRequest::Status => {
            let (reply, status) = oneshot::channel();
            command(RenewalCommand::Status(reply)).await?;
            send_reply(&mut writer, &ControlReply::Status(Box::new(status.await.map_err(gone)?))).await?;
            ControlReply::Done
        }
        ControlRequest::Renew { all, only } => {
            let (progress, mut steps) = mpsc::unbounded_channel();
            command(RenewalCommand::Renew { all, only, progress }).await?;
            while let Some(step) = steps.recv().await {
                send_reply(&mut writer, &ControlReply::Progress(step)).await?;
            }
            ControlReply::Done
        }
        ControlRequest::Revoke { certificate: lineage } => {
            let (done, revoked) = oneshot::channel();
            let of = lineage.to_string();
            command(RenewalCommand::Revoke { lineage, done }).await?;
            match revoked.await.map_err(gone)? {
                Ok(()) => {
                    let step = format!("{of}: revoked; ordering a new one (see provost certificate status)");
                    send_reply(&mut writer, &ControlReply::Progress(step)).await?;
                    ControlReply::Done
                }
                Err(failure) => ControlReply::Failed(failure.message),
            }
        }
    };
    send_reply(&mut writer, &last).await
}

impl Control {
    fn change_challenge(&self, change: impl FnOnce(&Responder) -> Result<(), DnsError>) -> ControlReply {
        let Some(responder) = &self.responder else {
            return ControlReply::Failed("the running server has no DNS responder; restart it".to_owned());
        };
        let fault = responder.fault().borrow().clone();
        match fault {
            Some(fault) => ControlReply::Failed(fault),
            None => {
                change(responder).map_or_else(|error| ControlReply::Failed(error.to_string()), |()| ControlReply::Done)
            }
        }
    }

    /// Flushes the access log first, because it feeds the phone history.
    async fn flush(&self) -> ControlReply {
        if self.access.flush().await.is_err() {
            return ControlReply::Failed("the queue of the access log is full".to_owned());
        }
        match self.history.flush().await {
            Ok(true) => ControlReply::Done,
            Ok(false) => {
                let why = self.history.failure().unwrap_or_default();
                ControlReply::Failed(format!("cannot write the phone history: {why}"))
            }
            Err(_) => ControlReply::Failed("the server is shutting down".to_owned()),
        }
    }
}

async fn send_reply(writer: &mut (impl AsyncWriteExt + Unpin), reply: &ControlReply) -> io::Result<()> {
    let mut line = serde_json::to_string(reply)?;
    line.push('\n');
    writer.write_all(line.as_bytes()).await
}
