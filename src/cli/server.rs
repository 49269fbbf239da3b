//! The running server: sends it requests, and opens the phone history that it writes.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use socket2::{Domain, SockAddr, Socket, Type};

use super::warn;
use crate::app::control::{self, ControlReply, ControlRequest};
use crate::config::Config;
use crate::phone_history::{HistoryReader, ReadError};
use crate::state;

/// The timeout for connecting to the server, and for its flush of the phone history.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The most bytes of replies that are read.
const MAX_REPLIES: u64 = 64 << 20;

/// Sends `request` to the server that runs on the state directory `state`; `None` if none runs. `timeout` applies to
/// each reply.
pub(super) fn ask(
    state: &Path,
    request: &ControlRequest,
    timeout: Option<Duration>,
) -> anyhow::Result<Option<impl Iterator<Item = anyhow::Result<ControlReply>> + use<>>> {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    let path = control::path(state);
    let mut stream = match connect(&path) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(error).with_context(|| format!("{}: run this as the service's user", path.display()));
        }
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    stream.set_read_timeout(timeout)?;
    stream.set_write_timeout(timeout)?;
    writeln!(stream, "{}", serde_json::to_string(request)?)?;
    let lines = BufReader::new(stream.take(MAX_REPLIES)).lines();
    Ok(Some(lines.map(|line| Ok(serde_json::from_str(&line?)?))))
}

/// Connects with a timeout: the accept queue of a hung server is full, and a blocking connect would wait forever.
fn connect(path: &Path) -> io::Result<UnixStream> {
    state::folder_of(path)?.at_socket(path.file_name().unwrap_or_default(), |path| {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.connect_timeout(&SockAddr::unix(path)?, TIMEOUT)?;
        Ok(OwnedFd::from(socket).into())
    })
}

/// The phone history until now; `None` if there is none yet. Has a running server flush its events first, and warns if
/// that fails.
pub(super) fn phone_history(config: &Config) -> Result<Option<HistoryReader>, ReadError> {
    let flushed = match ask(&config.state, &ControlRequest::Flush, Some(TIMEOUT)) {
        Ok(None) => Ok(()),
        Ok(Some(mut replies)) => match replies.next() {
            Some(Ok(ControlReply::Done)) => Ok(()),
            Some(Ok(ControlReply::Failed(reason))) => Err(reason),
            Some(Err(error)) => Err(format!("the server did not answer: {error:#}")),
            Some(Ok(_)) | None => Err("the server does not know this request; it may be another version".to_owned()),
        },
        Err(error) => {
            let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
            // An error of our own says what is in the way of the socket.
            let is_own = kind == Some(io::ErrorKind::Other);
            Err(if is_own { format!("{error:#}") } else { format!("the server did not answer: {error:#}") })
        }
    };
    if let Err(why) = flushed {
        warn(&format_args!("phone events of the last second may be missing: {why}"));
    }
    HistoryReader::open(&config.state)
}
