//! An upload's way from the connection into the store. The disk is worked on threads that may block.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{EXPECT, HeaderMap};

use super::store::{Receiving, Stored, UploadStore};
use crate::constituency::Constituency;
use crate::serve::beneath;
use crate::serve::decision::content_range::ContentRange;
use crate::serve::decision::{Denial, WriteGrant};
use crate::serve::pace::{Pace, Phase};

/// How much of a body is gathered before it is written, in bytes.
const GATHERED: usize = 256 << 10;
/// How much of a refused body is read, so that its sender comes to read the answer.
const DISCARDED: u64 = 1 << 20;

/// Receives the `body` of a granted PUT.
///
/// # Errors
/// Why it was not stored. Unless the body broke off, the rest of it is still unread: see [`discard`].
pub async fn receive(
    grant: WriteGrant,
    constituency: Arc<Constituency>,
    store: Arc<UploadStore>,
    headers: &HeaderMap,
    body: &mut Incoming,
    pace: &Pace,
) -> Result<Stored, Denial> {
    let range = ContentRange::of(headers)?;
    let length = body.size_hint().exact();
    let mut receiving = blocking(move || {
        if !grant.name().lies_over_the_folder() && beneath::is_in_folder(grant.path(), &constituency) {
            return Err(Denial::WouldHide);
        }
        store.begin(&grant, &constituency.name, range, length)
    })
    .await?;

    pace.enter(Phase::Body);
    loop {
        let (gathered, end) = gather(body).await;
        receiving = blocking(move || take(receiving, &gathered)).await?;
        match end {
            End::More => {}
            End::Complete => break,
            End::BrokenOff(reason) => {
                blocking(move || {
                    receiving.abandon();
                    Ok(())
                })
                .await?;
                return Err(Denial::BrokenOff(reason));
            }
        }
    }
    pace.enter(Phase::Answering);
    blocking(move || receiving.finish()).await
}

/// Reads on a little after a refusal, so that the peer gets to see it; a peer that waits for `100` need not send at all.
pub async fn discard(headers: &HeaderMap, body: &mut Incoming, pace: &Pace) {
    if headers.contains_key(EXPECT) {
        return;
    }
    pace.enter(Phase::Body);
    let mut left = DISCARDED;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
        if left == 0 {
            break;
        }
    }
    pace.enter(Phase::Answering);
}

enum End {
    More,
    Complete,
    BrokenOff(String),
}

/// Up to [`GATHERED`] bytes of the body, and whether it goes on.
async fn gather(body: &mut Incoming) -> (Bytes, End) {
    let mut gathered = BytesMut::new();
    loop {
        match body.frame().await {
            None => return (gathered.freeze(), End::Complete),
            Some(Err(error)) => return (gathered.freeze(), End::BrokenOff(with_source(&error))),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    gathered.extend_from_slice(&data);
                }
                if gathered.len() >= GATHERED {
                    return (gathered.freeze(), End::More);
                }
            }
        }
    }
}

fn take(mut receiving: Receiving, bytes: &[u8]) -> Result<Receiving, Denial> {
    receiving.write(bytes)?;
    Ok(receiving)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Denial> + Send + 'static) -> Result<T, Denial> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Denial::Failed(format!("the upload's worker failed: {error}"))))
}

/// hyper says what it was doing; its source says what happened.
fn with_source(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
