//! Receives an upload from the connection into the store. Disk access runs on blocking threads.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body;
use hyper::header::HeaderMap;

use super::store::{IncomingUpload, UploadResult, UploadStore};
use crate::constituency::Constituency;
use crate::serve::access_control::content_range::ContentRange;
use crate::serve::access_control::{Denial, WriteGrant};
use crate::serve::discard::RequestBody;
use crate::serve::open_beneath;
use crate::serve::timeouts::{Phase, TimeoutControl};

/// How many bytes of a body are buffered before a write. With the last frame this is at most 64 KiB, because a slow
/// client pins the buffer for as long as it sends.
const GATHERED: usize = 48 << 10;

/// The body of a request, as it arrives.
#[derive(Debug)]
pub struct UploadBody<'a> {
    body: RequestBody,
    timeouts: &'a TimeoutControl,
}

/// How [`UploadBody::gather`] ended.
enum UploadEnd {
    More,
    Complete,
    BrokenOff(String),
}

/// Receives the `body` of a granted PUT.
///
/// # Errors
/// Why it was not stored. Unless the body broke off, its rest is still unread: see [`UploadBody::into_rest`].
pub async fn receive(
    grant: WriteGrant,
    constituency: Arc<Constituency>,
    store: Arc<UploadStore>,
    headers: &HeaderMap,
    body: &mut UploadBody<'_>,
) -> Result<UploadResult, Denial> {
    let range = ContentRange::of(headers)?;
    let length = body.body.incoming.size_hint().exact();
    let mut receiving = blocking(move || {
        if !grant.name().overrides_folder() && open_beneath::is_in_folder(grant.path(), grant.mac(), &constituency)? {
            return Err(Denial::HidesFile);
        }
        store.begin(&grant, &constituency.name, range, length)
    })
    .await?;
    loop {
        let (gathered, end) = body.gather().await;
        match end {
            UploadEnd::More => receiving = blocking(move || receiving.write(&gathered)).await?,
            UploadEnd::Complete => return blocking(move || receiving.write(&gathered)?.finish()).await,
            UploadEnd::BrokenOff(reason) => {
                blocking(move || receiving.write(&gathered).map(IncomingUpload::abort)).await?;
                return Err(Denial::Incomplete(reason));
            }
        }
    }
}

impl<'a> UploadBody<'a> {
    #[must_use]
    pub fn new(body: RequestBody, timeouts: &'a TimeoutControl) -> Self {
        Self { body, timeouts }
    }

    /// The unread rest of the body.
    #[must_use]
    pub fn into_rest(self) -> RequestBody {
        self.body
    }

    /// Reads about [`GATHERED`] bytes. Also returns whether more follow.
    async fn gather(&mut self) -> (Bytes, UploadEnd) {
        self.body.is_held_back = false;
        self.timeouts.enter(Phase::Body);
        let mut gathered = BytesMut::new();
        let end = loop {
            match self.body.incoming.frame().await {
                None => break UploadEnd::Complete,
                Some(Err(error)) => break UploadEnd::BrokenOff(with_source(&error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        gathered.extend_from_slice(&data);
                    }
                    if gathered.len() >= GATHERED {
                        return (gathered.freeze(), UploadEnd::More);
                    }
                }
            }
        };
        self.timeouts.enter(Phase::Responding);
        (gathered.freeze(), end)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Denial> + Send + 'static) -> Result<T, Denial> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Denial::Failed(format!("the upload's worker failed: {error}"))))
}

/// hyper's message names the operation; its source names the cause.
fn with_source(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
