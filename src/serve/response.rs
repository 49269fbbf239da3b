//! Responses, for files and for denials.
//!
//! All denials with the same status are identical to the byte, whatever the reason.

use std::fs::File;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::header::{
    ACCEPT_RANGES, ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName, HeaderValue,
    LAST_MODIFIED, RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::{Method, Response, StatusCode};

use super::access_control::Denial;
use super::body::{self, FileBody};
use super::conditional::{self, Representation, Selection};
use super::open_beneath::OpenFile;
use super::request_log::RequestLog;
use super::upload::store::UploadResult;

/// Files up to this size, in bytes, are read at once and sent together with the header.
const SMALL: u64 = 64 << 10;

#[derive(Debug)]
pub enum ResponseContent {
    /// Bytes in memory, until they are sent.
    Bytes(Bytes),
    /// A part of a file; boxed, because every response has room for it.
    File(Box<FileBody>),
}

/// A body that owns its request log: the access-log line is written when the body was sent, or cannot be sent.
#[derive(Debug)]
pub struct LoggedBody {
    content: ResponseContent,
    request_log: RequestLog,
}

impl ResponseContent {
    fn empty() -> Self {
        Self::Bytes(Bytes::new())
    }
}

/// The response to a read of `file` at `path`, by the request's method and conditions.
///
/// # Errors
/// If the file cannot be read.
pub fn of_file(
    file: OpenFile,
    path: &str,
    method: &Method,
    headers: &hyper::HeaderMap,
) -> Result<Response<ResponseContent>, Denial> {
    let etag = file.etag.to_str().unwrap_or_default();
    let facts = Representation { etag, modified: file.modified, size: file.size };
    let (status, first, length) = match conditional::select(method, headers, &facts) {
        Selection::Whole => (StatusCode::OK, 0, file.size),
        Selection::Part { first, length } => (StatusCode::PARTIAL_CONTENT, first, length),
        Selection::NotModified => (StatusCode::NOT_MODIFIED, 0, 0),
        Selection::PreconditionFailed => return Ok(plain(StatusCode::PRECONDITION_FAILED)),
        Selection::Unsatisfiable => {
            let mut response = plain(StatusCode::RANGE_NOT_SATISFIABLE);
            set(&mut response, CONTENT_RANGE, &format!("bytes */{}", file.size));
            return Ok(response);
        }
    };
    let has_content = method != Method::HEAD && status != StatusCode::NOT_MODIFIED;
    let content = if has_content { read(file.file, first, length)? } else { ResponseContent::empty() };
    let mut response = Response::new(content);
    *response.status_mut() = status;
    response.headers_mut().insert(ETAG, file.etag);
    response.headers_mut().insert(LAST_MODIFIED, file.last_modified);
    if status != StatusCode::NOT_MODIFIED {
        response.headers_mut().insert(CONTENT_TYPE, content_type(path));
        response.headers_mut().insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    if status == StatusCode::PARTIAL_CONTENT {
        set(&mut response, CONTENT_RANGE, &format!("bytes {first}-{}/{}", first + length - 1, file.size));
    }
    Ok(response)
}

/// The response to a stored upload.
#[must_use]
pub fn of_upload(stored: UploadResult) -> Response<ResponseContent> {
    let mut response = Response::new(ResponseContent::empty());
    *response.status_mut() = match stored {
        UploadResult::Created => StatusCode::CREATED,
        UploadResult::Changed => StatusCode::NO_CONTENT,
    };
    response
}

/// The response to a denied request.
#[must_use]
pub fn of_denial(denial: &Denial) -> Response<ResponseContent> {
    let mut response = plain(denial.status());
    match denial {
        Denial::Method { allow, .. } => set(&mut response, ALLOW, allow),
        Denial::Unauthenticated { challenges, .. } => {
            let values = challenges.iter().filter_map(|challenge| HeaderValue::from_str(challenge).ok());
            values.for_each(|value| {
                response.headers_mut().append(WWW_AUTHENTICATE, value);
            });
        }
        Denial::Gap { size, .. } => set(&mut response, CONTENT_RANGE, &format!("bytes */{size}")),
        _ => {}
    }
    if let Some(seconds) = denial.retry_after() {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    if denial.closes() {
        close(&mut response);
    }
    response
}

/// Sets `Connection: close`.
pub fn close(response: &mut Response<ResponseContent>) {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
}

/// Whether the connection ends with this response.
#[must_use]
pub fn closes(response: &Response<ResponseContent>) -> bool {
    response.headers().contains_key(CONNECTION)
}

/// A response with a status and its reason phrase, nothing else.
fn plain(status: StatusCode) -> Response<ResponseContent> {
    let text = format!("{}\n", status.canonical_reason().unwrap_or("refused"));
    let mut response = Response::new(ResponseContent::Bytes(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Reads `length` bytes of a file: small ones at once if they are in the page cache, others in chunks.
fn read(file: Arc<File>, first: u64, length: u64) -> Result<ResponseContent, Denial> {
    if length > 0 && length <= SMALL {
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        let cached = body::read_cached(&file, &mut bytes, first)
            .map_err(|error| Denial::Failed(format!("the file cannot be read: {error}")))?;
        if cached == Some(bytes.len()) {
            return Ok(ResponseContent::Bytes(bytes.into()));
        }
    }
    Ok(ResponseContent::File(Box::new(FileBody::new(file, first, length))))
}

/// The MIME type by the file extension. Polycom's configuration files are XML under other extensions.
fn content_type(path: &str) -> HeaderValue {
    let ending = path.rsplit('/').next().and_then(|file| file.rsplit_once('.')).map_or("", |(_, ending)| ending);
    match ending.to_ascii_lowercase().as_str() {
        "cfg" | "xml" => HeaderValue::from_static("text/xml"),
        "ld" | "sip" | "" => HeaderValue::from_static("application/octet-stream"),
        "log" => HeaderValue::from_static("text/plain"),
        _ => HeaderValue::from_static(mime_guess::from_path(path).first_raw().unwrap_or("application/octet-stream")),
    }
}

fn set(response: &mut Response<ResponseContent>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// Moves the request log into the `response`; it ends when the response is sent. A response to HEAD has the
/// Content-Length of the one to GET (RFC 9110 §8.6), for denials too.
pub fn logged(
    mut response: Response<ResponseContent>,
    is_head: bool,
    mut request_log: RequestLog,
) -> Response<LoggedBody> {
    let status = response.status().as_u16();
    if let Some(length) = response.body().size_hint().exact().filter(|length| is_head && *length > 0) {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    response.map(|content| {
        request_log.set_response(status, content.size_hint().exact().filter(|_| !is_head));
        LoggedBody { content: if is_head { ResponseContent::empty() } else { content }, request_log }
    })
}

impl Body for ResponseContent {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Bytes(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Bytes(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::File(file) => Pin::new(file).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::File(file) => file.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::File(file) => file.size_hint(),
        }
    }
}

impl Body for LoggedBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.content).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => this.request_log.sent(frame.data_ref().map_or(0, Bytes::len)),
            Poll::Ready(Some(Err(error))) => this.request_log.note(error),
            Poll::Ready(None) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}
