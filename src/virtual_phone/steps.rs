//! The steps of a boot: each sends one or two requests and evaluates the responses.

use bytes::Bytes;
use http::{Method, StatusCode, header};

use super::BootTarget;
use super::address::{Location, ServerUrl};
use super::client::{BodySink, Client, ClientRequest, ClientResponse, ExchangeError};
use super::connect::ClientTlsFacts;
use super::log;
use super::model::{Program, VirtualPhone};
use super::report::{BootFailure, BootObserver, BootStep, IncompleteFiles, Remark, RequestReport};
use crate::clock;
use crate::phone_config::{FileReference, MasterConfiguration, Text, UnreadableXml, XmlFile, in_directory};

/// The size at which a phone starts its log anew (`log.render.file.upload.append.sizeLimit`, 512 KB).
const MAX_LOG: u64 = 512 << 10;

/// The state of a running boot.
pub(super) struct Boot<'a> {
    phone: &'a VirtualPhone,
    url: &'a ServerUrl,
    client: Client<'a>,
    has_password: bool,
    watch: &'a mut dyn BootObserver,
    exchanges: Vec<RequestReport>,
    lacking: IncompleteFiles,
    app_log: Vec<String>,
}

/// A request without its location.
struct StepRequest {
    step: BootStep,
    program: Program,
    method: Method,
    body: Option<Bytes>,
    content_range: Option<String>,
}

impl StepRequest {
    fn get(step: BootStep) -> Self {
        Self { step, program: Program::Application, method: Method::GET, body: None, content_range: None }
    }

    fn put(step: BootStep, program: Program, body: Bytes) -> Self {
        Self { step, program, method: Method::PUT, body: Some(body), content_range: None }
    }
}

impl<'a> Boot<'a> {
    pub(super) fn new(
        phone: &'a VirtualPhone,
        target: &'a BootTarget,
        tls: rustls::ClientConfig,
        watch: &'a mut dyn BootObserver,
    ) -> Self {
        let client = Client::new(target, tls, phone.mac);
        let app_log = vec![log::opening(clock::now(), phone, Program::Application)];
        let has_password = target.password.is_some();
        let (exchanges, lacking) = (Vec::new(), IncompleteFiles::default());
        Self { phone, url: &target.url, client, has_password, watch, exchanges, lacking, app_log }
    }

    pub(super) fn phone(&self) -> &'a VirtualPhone {
        self.phone
    }

    /// The requests, the parameters of the last TLS handshake, and the named files that the phone lacks.
    pub(super) fn finish(self) -> (Vec<RequestReport>, Option<ClientTlsFacts>, IncompleteFiles) {
        let facts = self.client.tls_facts().cloned();
        (self.exchanges, facts, self.lacking)
    }

    /// Uploads the boot log. If the server refuses it, the boot continues.
    pub(super) async fn put_boot_log(&mut self) -> Result<(), BootFailure> {
        let text = log::whole([log::opening(clock::now(), self.phone, Program::Updater)]);
        let ask = StepRequest::put(BootStep::BootLog, Program::Updater, text);
        let file = format!("{}-boot.log", self.phone.mac);
        self.request(ask, &file, log_lost).await.map(drop)
    }

    /// Fetches the phone's own master configuration, or the common one.
    pub(super) async fn get_master(&mut self) -> Result<MasterConfiguration, BootFailure> {
        let mac = self.phone.mac;
        for file in [format!("{mac}.cfg"), "000000000000.cfg".to_owned()] {
            let remark = |answer: &ClientResponse| skipped(answer).or_else(|| remark_on_content(answer));
            let answer = self.request(StepRequest::get(BootStep::Master), &file, remark).await?;
            if answer.status == StatusCode::NOT_FOUND {
                continue;
            }
            let path = self.found(&answer)?;
            let named = named_in(&answer.body).map_err(|source| BootFailure::UnreadableMaster { path, source })?;
            return Ok(MasterConfiguration::of(&named, &self.phone.names()));
        }
        Err(BootFailure::NoMaster { mac })
    }

    /// Fetches the firmware image. The phone can keep its firmware, so only a broken connection ends the boot.
    pub(super) async fn get_firmware(&mut self, image: Option<&str>) -> Result<(), BootFailure> {
        let Some(image) = image else { return Ok(()) };
        let remark = |answer: &ClientResponse| match answer.status {
            status if status.is_success() => None,
            StatusCode::NOT_FOUND => Some(Remark::FirmwareNotOffered),
            status => Some(Remark::FirmwareKept(status)),
        };
        self.request(StepRequest::get(BootStep::Firmware), image, remark).await.map(drop)
    }

    /// Fetches each of `files`, which the master configuration names. The boot continues without a missing file, and
    /// ends at a refused one.
    pub(super) async fn get_named(&mut self, step: BootStep, files: &[String]) -> Result<(), BootFailure> {
        for file in files {
            let remark = |answer: &ClientResponse| match answer.status {
                StatusCode::NOT_FOUND => Some(Remark::Missing),
                // Only the phone's applications can judge further files.
                _ if step == BootStep::Configuration => remark_on_content(answer),
                _ => None,
            };
            let answer = self.request(StepRequest::get(step), file, remark).await?;
            self.found_or_missing(&answer)?;
            match self.exchanges.last().and_then(|exchange| exchange.remark.as_ref()) {
                Some(Remark::Missing) => self.lacking.missing.push(file.clone()),
                Some(Remark::Unreadable(_)) => self.lacking.unreadable.push(file.clone()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Fetches a file that may be missing.
    pub(super) async fn get_optional(
        &mut self,
        step: BootStep,
        directory: &str,
        file: &str,
    ) -> Result<(), BootFailure> {
        let answer = self.request(StepRequest::get(step), &in_directory(directory, file), skipped).await?;
        self.found_or_missing(&answer)
    }

    /// Uploads the whole application log.
    pub(super) async fn put_app_log(&mut self, directory: &str) -> Result<(), BootFailure> {
        self.put_log_part(directory, None).await.map(drop)
    }

    /// Appends to the application log on the server.
    pub(super) async fn append_app_log(&mut self, directory: &str) -> Result<(), BootFailure> {
        let file = self.app_log_file(directory);
        let ask = StepRequest { method: Method::HEAD, ..StepRequest::get(BootStep::AppLog) };
        let head = self.request(ask, &file, skipped).await?;
        let size = Some(&head).filter(|head| head.status.is_success()).and_then(content_length);
        let Some(size) = size.filter(|size| *size < MAX_LOG) else {
            return self.put_app_log(directory).await;
        };
        let answer = self.put_log_part(directory, Some(size)).await?;
        match size_in_conflict(&answer) {
            Some(size) => self.put_log_part(directory, Some(size)).await.map(drop),
            None => Ok(()),
        }
    }

    async fn put_log_part(&mut self, directory: &str, at: Option<u64>) -> Result<ClientResponse, BootFailure> {
        let body = log::whole(std::mem::take(&mut self.app_log));
        let kept = body.clone();
        let content_range = at.and_then(|start| content_range(start, body.len() as u64));
        let ask = StepRequest { content_range, ..StepRequest::put(BootStep::AppLog, Program::Application, body) };
        let file = self.app_log_file(directory);
        let remark = move |answer: &ClientResponse| match (size_in_conflict(answer), at) {
            (Some(size), Some(_)) => Some(Remark::SizeIs(size)),
            (_, Some(at)) if answer.status.is_success() => Some(Remark::AppendedAt(at)),
            _ => log_lost(answer),
        };
        let answer = self.request(ask, &file, remark).await?;
        // A second attempt sends the same text, without the line about the first attempt.
        self.app_log = vec![String::from_utf8_lossy(&kept).into_owned()];
        Ok(answer)
    }

    fn app_log_file(&self, directory: &str) -> String {
        in_directory(directory, &format!("{}-app.log", self.phone.mac))
    }

    /// Sends one request and records it, with the remark that `remark` makes about the response.
    async fn request(
        &mut self,
        ask: StepRequest,
        entry: &str,
        remark: impl FnOnce(&ClientResponse) -> Option<Remark> + Send,
    ) -> Result<ClientResponse, BootFailure> {
        let started = clock::monotonic();
        let location = self.url.locate(entry);
        let path = location.as_ref().map_or_else(|_| entry.escape_debug().to_string(), |location| self.shown(location));
        let result = match location {
            Ok(location) => self.exchange(&ask, &location).await,
            Err(unusable) => Err(unusable.into()),
        };
        let body = ask.body.as_ref().map_or(0, |body| body.len() as u64);
        let (status, sent, received, remark) = match &result {
            Ok(answer) => (Some(answer.status), body, answer.received, remark(answer)),
            Err(error) => (None, 0, 0, Some(Remark::Failed(error.to_string()))),
        };
        let StepRequest { step, method, program, .. } = ask;
        let duration = started.elapsed();
        self.record(RequestReport {
            step,
            method,
            path: path.clone(),
            program,
            status,
            sent,
            received,
            duration,
            remark,
        });
        result.map_err(|source| BootFailure::NoAnswer { path, source })
    }

    async fn exchange(&mut self, ask: &StepRequest, location: &Location) -> Result<ClientResponse, ExchangeError> {
        let request = ClientRequest {
            method: ask.method.clone(),
            location,
            user_agent: &self.phone.user_agent(ask.program),
            body: ask.body.clone(),
            content_range: ask.content_range.clone(),
        };
        let mut progress = |received, expected| self.watch.progress(received, expected);
        let sink = if ask.step == BootStep::Firmware { BodySink::Count(&mut progress) } else { BodySink::Keep };
        self.client.exchange(&request, sink).await
    }

    fn record(&mut self, exchange: RequestReport) {
        self.watch.exchanged(&exchange);
        self.app_log.push(log::request(clock::now(), &exchange));
        self.exchanges.push(exchange);
    }

    fn shown(&self, location: &Location) -> String {
        if location.origin == *self.url.origin() { location.path.clone() } else { location.to_string() }
    }

    fn found_or_missing(&self, answer: &ClientResponse) -> Result<(), BootFailure> {
        if answer.status == StatusCode::NOT_FOUND { Ok(()) } else { self.found(answer).map(drop) }
    }

    /// The path of a complete file, or why the phone cannot continue without it.
    fn found(&self, answer: &ClientResponse) -> Result<String, BootFailure> {
        let path = self.exchanges.last().map(|exchange| exchange.path.clone()).unwrap_or_default();
        match answer.status {
            StatusCode::OK => Ok(path),
            StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS => {
                // For another server, the path is the whole URL.
                let has_password = self.has_password && !path.contains("://");
                Err(BootFailure::Unauthorized { path, has_password })
            }
            StatusCode::FORBIDDEN => Err(BootFailure::Refused { path }),
            StatusCode::MISDIRECTED_REQUEST => Err(BootFailure::Misdirected { path }),
            status if status.is_server_error() => Err(BootFailure::ServerFailed { path, status }),
            status => Err(BootFailure::Unexpected { path, status }),
        }
    }
}

/// The remark about a complete configuration file.
fn remark_on_content(answer: &ClientResponse) -> Option<Remark> {
    if answer.status != StatusCode::OK {
        return None;
    }
    let read = |text: &Text<'_>| {
        let file = XmlFile::read(text)?;
        file.broken_off.map_or(Ok(file.deviations), Err)
    };
    match Text::decode(&answer.body).and_then(|text| read(&text)) {
        Ok(deviations) => deviations.into_iter().next().map(Remark::Deviates),
        Err(error) => Some(Remark::Unreadable(error)),
    }
}

/// The names in the master configuration `bytes`.
fn named_in(bytes: &[u8]) -> Result<Vec<FileReference>, UnreadableXml> {
    let text = Text::decode(bytes)?;
    let file = XmlFile::read(&text)?;
    let named = FileReference::all_in(&file);
    file.broken_off.map_or(Ok(named), Err)
}

fn skipped(answer: &ClientResponse) -> Option<Remark> {
    (answer.status == StatusCode::NOT_FOUND).then_some(Remark::Skipped)
}

fn log_lost(answer: &ClientResponse) -> Option<Remark> {
    (!answer.status.is_success()).then_some(Remark::LogLost(answer.status))
}

/// The value `bytes start-end/total` for `length` bytes at `start`; `None` if the numbers overflow.
fn content_range(start: u64, length: u64) -> Option<String> {
    let total = start.checked_add(length)?;
    Some(format!("bytes {start}-{}/{total}", total.checked_sub(1)?))
}

fn content_length(head: &ClientResponse) -> Option<u64> {
    head.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The size in a 409 response's `Content-Range: bytes */SIZE`: where the server expects the log to continue.
fn size_in_conflict(answer: &ClientResponse) -> Option<u64> {
    let range = Some(answer).filter(|answer| answer.status == StatusCode::CONFLICT)?;
    range.headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes */")?.parse().ok()
}
