//! The routes of the operators' listener.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::http::request::Parts;
use hyper::{Method, Request, StatusCode};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;

use super::access_guard::{ClientLocation, Forbidden, NO_OPERATOR, Principal, RouteAccess};
use super::events::Events;
use super::operators::Scope;
use super::page::{self, Asset, Flash, View};
use super::response::{self, AdminResponse};
use super::snapshot::{PhoneHistoryView, PhonePage, PhoneQuery, SectionQuery};
use super::{AdminChange, AdminData, AdminServer, Author, ChangeRequest, Interface, Readiness, Snapshot};
use crate::audit::AuditReading;
use crate::clock;
use crate::constituency::denials::MAX_NOTE;
use crate::constituency::{ConstituencyName, InvalidMacAddress, InvalidName, MacAddress};
use crate::metrics::Exposition;
use crate::settings;

/// The longest request body, in bytes.
const MAX_BODY: usize = 8 << 10;
/// How many changes the audit page shows, and the most that a query gets.
const AUDIT_LIMIT: usize = 100;
const MAX_AUDIT_LIMIT: usize = 1000;
/// The timeouts for a request body, on operators' routes and on public ones.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const PUBLIC_BODY_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Route {
    Health,
    Ready,
    Metrics,
    Asset(&'static Asset),
    Events,
    Page,
    PhonePage(ConstituencyName, MacAddress),
    SignIn,
    SignOut,
    /// A form that allows (`true`) or denies (`false`) a phone.
    Form(bool),
    /// The audit log as a page, and as JSON.
    AuditPage,
    Audit,
    Overview,
    Phones,
    Phone(ConstituencyName, MacAddress),
    /// The same as [`Route::Form`], as JSON.
    Change(bool),
}

impl Route {
    fn of(path: &str) -> Option<Self> {
        let phone = |rest: &str| -> Option<(ConstituencyName, MacAddress)> {
            let (constituency, mac) = rest.split_once('/')?;
            Some((constituency.parse().ok()?, mac.parse().ok()?))
        };
        Some(match path {
            "/healthz" => Self::Health,
            "/readyz" => Self::Ready,
            "/metrics" => Self::Metrics,
            "/events" => Self::Events,
            "/" => Self::Page,
            "/sign-in" => Self::SignIn,
            "/sign-out" => Self::SignOut,
            "/allow" => Self::Form(true),
            "/deny" => Self::Form(false),
            "/audit" => Self::AuditPage,
            "/api/audit" => Self::Audit,
            "/api/overview" => Self::Overview,
            "/api/phones" => Self::Phones,
            "/api/allow" => Self::Change(true),
            "/api/deny" => Self::Change(false),
            _ => match (path.strip_prefix("/phones/"), path.strip_prefix("/api/phones/")) {
                (Some(rest), _) => phone(rest).map(|(constituency, mac)| Self::PhonePage(constituency, mac))?,
                (_, Some(rest)) => phone(rest).map(|(constituency, mac)| Self::Phone(constituency, mac))?,
                _ => Self::Asset(page::asset(path)?),
            },
        })
    }

    /// The allowed methods.
    fn methods(&self) -> &'static str {
        match self {
            Self::SignIn => "GET, HEAD, POST",
            Self::SignOut | Self::Form(_) | Self::Change(_) => "POST",
            _ => "GET, HEAD",
        }
    }

    fn allows(&self, method: &Method) -> bool {
        self.methods().split(", ").any(|allowed| allowed == method.as_str())
    }

    fn access(&self) -> RouteAccess {
        match self {
            Self::Health | Self::Ready => RouteAccess::Probe,
            Self::Asset(_) | Self::SignIn => RouteAccess::Public,
            Self::SignOut => RouteAccess::Session,
            _ => RouteAccess::Operators,
        }
    }

    /// Whether the response is a page for people.
    fn is_page(&self) -> bool {
        matches!(
            self,
            Self::Page | Self::AuditPage | Self::PhonePage(..) | Self::SignIn | Self::SignOut | Self::Form(_)
        )
    }
}

/// Handles one request from `peer`; `None` is a Unix socket. `streams` limits [`Route::Events`].
pub(super) async fn answer(
    status: &Arc<AdminServer>,
    request: Request<Incoming>,
    peer: Option<IpAddr>,
    streams: &Arc<Semaphore>,
) -> AdminResponse {
    let (head, body) = request.into_parts();
    let route = Route::of(head.uri.path());
    let access = route.as_ref().map_or(RouteAccess::Operators, Route::access);
    let now = clock::unix_seconds(clock::now());
    let principal = match status.access_guard.check(&head, ClientLocation::of(peer), access, &status.operators, now) {
        Ok(principal) => principal,
        Err(forbidden) => return reject(route.as_ref(), &forbidden),
    };
    let Some(route) = route else { return response::problem(StatusCode::NOT_FOUND, "not found") };
    if !route.allows(&head.method) {
        return response::method_not_allowed(route.methods());
    }
    if head.method == Method::POST {
        if route == Route::SignIn && !status.operators.are_required() {
            return sign_in_disabled();
        }
        let timeout = if access.is_restricted() { BODY_TIMEOUT } else { PUBLIC_BODY_TIMEOUT };
        return match read(body, timeout).await {
            // The body may have taken longer than the removal of the operator.
            Ok(_) if access.is_restricted() && !status.operators.still_accept(principal.operator.as_ref()) => {
                reject(Some(&route), &Forbidden::ended())
            }
            Ok(body) => change(status, &route, &head, &body, &principal, peer, now).await,
            Err(answer) => answer,
        };
    }
    let scope = principal.scope();
    match route {
        Route::Health => response::text(StatusCode::OK, "ok"),
        Route::Ready => ready(&status.admin_data.readiness(), &principal),
        Route::Metrics => metrics(status, scope, &head).await,
        Route::Asset(asset) => response::immutable(asset.content_type, asset.content),
        Route::Events => match Arc::clone(streams).try_acquire_owned() {
            Ok(permit) => {
                let body = Events::new(Arc::clone(status), principal.clone(), permit).boxed_unsync();
                response::with_body(StatusCode::OK, "text/event-stream", body)
            }
            Err(_) => {
                response::problem(StatusCode::SERVICE_UNAVAILABLE, "too many open event streams; try again later")
            }
        },
        Route::Overview => {
            response::json(StatusCode::OK, &status.snapshots.current(&status.admin_data, scope).await.snapshot.overview)
        }
        Route::Audit => match audit(status, &principal, &head).await {
            Ok(reading) => response::json(StatusCode::OK, &reading),
            Err((code, reason)) => response::problem(code, &reason),
        },
        Route::AuditPage => match audit(status, &principal, &head).await {
            Ok(reading) => {
                let snapshot = status.snapshots.current(&status.admin_data, scope).await.snapshot;
                let page = page::render_audit(&snapshot.overview, &reading, principal.operator.as_deref());
                response::page(StatusCode::OK, page)
            }
            Err((code, reason)) => response::page(code, page::render_failure("Audit log not available", &reason)),
        },
        Route::Phones => phones(status, scope, &head).await,
        Route::Phone(constituency, mac) => match history(status, scope, constituency, mac).await {
            Ok(history) => response::json(StatusCode::OK, &history),
            Err((code, reason)) => response::problem(code, &reason),
        },
        Route::Page => show(status, &head, &principal).await,
        Route::PhonePage(constituency, mac) => match history(status, scope, constituency, mac).await {
            Ok(history) => {
                let snapshot = status.snapshots.current(&status.admin_data, scope).await.snapshot;
                let operator = principal.operator.as_deref();
                response::page(StatusCode::OK, page::render_phone(&snapshot.overview, &history, operator))
            }
            Err((code, reason)) => response::page(code, page::render_failure("Phone not found", &reason)),
        },
        Route::SignIn => response::page(StatusCode::OK, page::render_sign_in(None)),
        Route::SignOut | Route::Form(_) | Route::Change(_) => response::method_not_allowed(route.methods()),
    }
}

/// Refuses a request: with a sign-in form on pages, with a reason elsewhere.
fn reject(route: Option<&Route>, forbidden: &Forbidden) -> AdminResponse {
    let answer = match route {
        Some(route) if route.is_page() && forbidden.status == StatusCode::UNAUTHORIZED => {
            response::page(forbidden.status, page::render_sign_in(None))
        }
        Some(route) if route.is_page() => {
            response::page(forbidden.status, page::render_failure("Not changed", &forbidden.reason))
        }
        Some(Route::Health | Route::Ready | Route::Metrics) => response::text(forbidden.status, &forbidden.reason),
        _ => response::problem(forbidden.status, &forbidden.reason),
    };
    response::forbidden(forbidden, answer)
}

async fn read(body: Incoming, timeout: Duration) -> Result<Bytes, AdminResponse> {
    match tokio::time::timeout(timeout, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(response::problem(StatusCode::PAYLOAD_TOO_LARGE, &format!("the body is longer than {MAX_BODY} bytes")))
        }
        Ok(Err(_)) => {
            Err(response::problem(StatusCode::BAD_REQUEST, "the body is incomplete: the connection was closed"))
        }
        Err(_) => Err(response::problem(StatusCode::REQUEST_TIMEOUT, "timeout while the body was read")),
    }
}

/// Handles a POST.
async fn change(
    status: &Arc<AdminServer>,
    route: &Route,
    head: &Parts,
    body: &Bytes,
    principal: &Principal,
    peer: Option<IpAddr>,
    now: i64,
) -> AdminResponse {
    let media_type = head.headers.get(CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match route {
        Route::SignOut => {
            response::with_session(response::redirect("/"), &status.access_guard.session_cookie(head), None)
        }
        Route::SignIn => sign_in(status, head, &field(body, "token").unwrap_or_default(), now),
        Route::Form(is_allowed) => {
            let typed = |key: &str| field(body, key).unwrap_or_default();
            let some = |key: &str| Some(typed(key)).filter(|text| !text.is_empty());
            let posted = ChangeBody {
                mac: Some(typed("mac")),
                macs: None,
                constituency: some("constituency"),
                note: some("note"),
            };
            match posted.apply(status, *is_allowed, author(principal, Interface::Page, peer, head)).await {
                Ok((wanted, _)) => {
                    let mac = wanted.macs.first().copied().unwrap_or(MacAddress::ZERO);
                    response::redirect(&Flash { change: wanted.change, mac }.path())
                }
                Err((code, reason)) => response::page(code, page::render_failure("Not changed", &reason)),
            }
        }
        Route::Change(is_allowed) if media_type == "application/json" => {
            let posted = match settings::read_body::<ChangeBody>(body) {
                Ok(posted) => posted,
                Err(reason) => return response::problem(StatusCode::BAD_REQUEST, &reason),
            };
            let is_list = posted.macs.is_some();
            match posted.apply(status, *is_allowed, author(principal, Interface::Api, peer, head)).await {
                Ok((_, macs)) if is_list => {
                    response::json(StatusCode::OK, &json!({ "changed": !macs.is_empty(), "macs": macs }))
                }
                Ok((_, macs)) => response::json(StatusCode::OK, &json!({ "changed": !macs.is_empty() })),
                Err((code, reason)) => response::problem(code, &reason),
            }
        }
        Route::Change(_) => response::problem(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the body must be JSON (Content-Type: application/json)",
        ),
        other => response::method_not_allowed(other.methods()),
    }
}

fn sign_in(status: &AdminServer, head: &Parts, shown: &str, now: i64) -> AdminResponse {
    let cookie = status.access_guard.session_cookie(head);
    match status.operators.begin_session(&cookie.scope, shown.trim().as_bytes(), now) {
        Some(session) => response::with_session(response::redirect("/"), &cookie, Some(&session)),
        None => response::page(StatusCode::UNAUTHORIZED, page::render_sign_in(Some("Wrong token."))),
    }
}

fn sign_in_disabled() -> AdminResponse {
    response::text(StatusCode::FORBIDDEN, &format!("sign-in is disabled: {NO_OPERATOR}"))
}

/// The value of a form's field.
fn field(body: &[u8], key: &str) -> Option<String> {
    form_urlencoded::parse(body).find(|(name, _)| name == key).map(|(_, value)| value.into_owned())
}

/// A request to allow or deny a phone, or several.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeBody {
    mac: Option<String>,
    macs: Option<Vec<String>>,
    constituency: Option<String>,
    note: Option<String>,
}

impl ChangeBody {
    /// The phones, sorted.
    fn phones(&self) -> Result<Vec<MacAddress>, String> {
        let texts = match (&self.mac, &self.macs) {
            (Some(mac), None) => std::slice::from_ref(mac),
            (None, Some(macs)) if !macs.is_empty() => macs,
            (None, Some(_)) => return Err("\"macs\" is empty: it lists the phones".to_owned()),
            (Some(_), Some(_)) => return Err("use one of \"mac\" and \"macs\"".to_owned()),
            (None, None) => {
                return Err("body:1:1: the key \"mac\" is missing, or \"macs\" for several phones".to_owned());
            }
        };
        let mut macs: Vec<MacAddress> = texts
            .iter()
            .map(|text| text.trim().parse())
            .collect::<Result<_, _>>()
            .map_err(|error: InvalidMacAddress| error.to_string())?;
        macs.sort_unstable();
        if let Some([mac, _]) = macs.windows(2).find(|pair| pair.first() == pair.last()) {
            return Err(format!("{mac} occurs twice in \"macs\""));
        }
        if macs.contains(&MacAddress::ZERO) {
            return Err("invalid MAC address 000000000000: no phone has it".to_owned());
        }
        Ok(macs)
    }

    /// Makes the change. Returns the phones that it changed. Later snapshots show it.
    async fn apply(
        self,
        status: &AdminServer,
        is_allowed: bool,
        author: Option<Author>,
    ) -> Result<(ChangeRequest, Vec<MacAddress>), (StatusCode, String)> {
        let bad = |reason: String| (StatusCode::BAD_REQUEST, reason);
        let Some(by) = author else {
            return Err((StatusCode::FORBIDDEN, "a change needs an operator".to_owned()));
        };
        let operator = Arc::clone(&by.operator);
        let macs = self.phones().map_err(bad)?;
        let name = self.constituency.map(|name| name.parse()).transpose();
        let change = match (is_allowed, name.map_err(|error: InvalidName| bad(error.to_string()))?) {
            (true, Some(name)) => AdminChange::Allow(name),
            (true, None) => {
                return Err(bad(
                    "missing key \"constituency\": it names the constituency that allows the phone".to_owned()
                ));
            }
            (false, Some(name)) => AdminChange::Deny(name),
            (false, None) if !operator.scope.is_all() => {
                let reason = "only an administrator may deny a phone on the whole server; name a constituency of yours in \"constituency\"";
                return Err((StatusCode::FORBIDDEN, reason.to_owned()));
            }
            (false, None) => AdminChange::DenyEverywhere,
        };
        let wanted = ChangeRequest { change, macs, note: self.note, by };
        if wanted.note.as_ref().is_some_and(|note| note.len() > MAX_NOTE || note.chars().any(char::is_control)) {
            return Err(bad(format!("invalid note: use one line of at most {MAX_NOTE} bytes")));
        }
        let (changed, wanted) = blocking(status, move |admin_data| (admin_data.change(&wanted), wanted)).await;
        status.snapshots.outdate_for(&operator.scope).await;
        match changed {
            Ok(changed) => Ok((wanted, changed)),
            Err(reason) => Err((StatusCode::CONFLICT, reason)),
        }
    }
}

/// Reports readiness, and the warnings. Load balancers need only the status. The reasons name certificates and
/// constituencies, so only operators get them.
fn ready(readiness: &Readiness, principal: &Principal) -> AdminResponse {
    let (code, first) = match &readiness.not_ready {
        None => (StatusCode::OK, "ready"),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason.as_str()),
    };
    if !principal.may_read || !principal.scope().is_all() {
        return response::empty(code);
    }
    let lines = std::iter::once(first).chain(readiness.warnings.iter().map(String::as_str));
    response::text(code, &lines.collect::<Vec<_>>().join("\n"))
}

async fn metrics(status: &AdminServer, scope: &Scope, head: &Parts) -> AdminResponse {
    let snapshot = status.snapshots.current(&status.admin_data, scope).await.snapshot;
    let accept = head.headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let (exposition, media_type) = if accept.contains("application/openmetrics-text") {
        (Exposition::OpenMetrics, "application/openmetrics-text; version=1.0.0; charset=utf-8")
    } else {
        (Exposition::Plain, "text/plain; version=0.0.4; charset=utf-8")
    };
    let text = blocking(status, move |admin_data| admin_data.metrics(&snapshot, exposition)).await;
    response::of(StatusCode::OK, media_type, text)
}

/// Does `work` on a thread that may wait for a disk.
async fn blocking<T: Send + 'static>(
    status: &AdminServer,
    work: impl FnOnce(&dyn AdminData) -> T + Send + 'static,
) -> T {
    let admin_data = Arc::clone(&status.admin_data);
    match tokio::task::spawn_blocking(move || work(&*admin_data)).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

async fn phones(status: &AdminServer, scope: &Scope, head: &Parts) -> AdminResponse {
    match PhoneQuery::parse(head.uri.query().unwrap_or_default()) {
        Ok(query) => match list(status, scope, &Arc::new(query)).await {
            Ok((page, _)) => response::json(StatusCode::OK, &page),
            Err(reason) => response::problem(StatusCode::SERVICE_UNAVAILABLE, &reason),
        },
        Err(reason) => response::problem(StatusCode::BAD_REQUEST, &reason),
    }
}

/// Reads the last changes: `limit` of them, of `constituency` if the query names one.
async fn audit(
    status: &AdminServer,
    principal: &Principal,
    head: &Parts,
) -> Result<AuditReading, (StatusCode, String)> {
    let (mut constituency, mut limit) = (None, AUDIT_LIMIT);
    for (key, value) in form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes()) {
        match &*key {
            "constituency" => {
                let name = value.parse().map_err(|error: InvalidName| (StatusCode::BAD_REQUEST, error.to_string()))?;
                constituency = Some(name);
            }
            "limit" => {
                let invalid = || (StatusCode::BAD_REQUEST, format!("\"limit\" must be 1 to {MAX_AUDIT_LIMIT}"));
                limit = value.parse().map_err(|_| invalid())?;
                if !(1..=MAX_AUDIT_LIMIT).contains(&limit) {
                    return Err(invalid());
                }
            }
            other => {
                return Err((StatusCode::BAD_REQUEST, format!("unknown key {other:?}; use constituency or limit")));
            }
        }
    }
    let operator = principal.operator.clone();
    blocking(status, move |admin_data| admin_data.audit(operator.as_deref(), constituency.as_ref(), limit))
        .await
        .map_err(|reason| (StatusCode::SERVICE_UNAVAILABLE, reason))
}

/// Who makes a change; `None` without an operator. What a proxy forwards is only claimed.
fn author(principal: &Principal, interface: Interface, peer: Option<IpAddr>, head: &Parts) -> Option<Author> {
    let forwarded = |name: &str| {
        let values = head.headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        Some(values.collect::<Vec<_>>().join(", ")).filter(|text| !text.is_empty())
    };
    Some(Author {
        operator: Arc::clone(principal.operator.as_ref()?),
        interface,
        from: peer.map_or_else(|| "unix".to_owned(), |peer| peer.to_canonical().to_string()),
        claimed_from: forwarded("x-forwarded-for").or_else(|| forwarded("forwarded")),
    })
}

async fn show(status: &AdminServer, head: &Parts, principal: &Principal) -> AdminResponse {
    let asked = head.uri.query().unwrap_or_default();
    let parsed = PhoneQuery::of_page(asked).and_then(|query| Ok((query, SectionQuery::parse(asked)?)));
    let (query, sections) = match parsed {
        Ok(parsed) => parsed,
        Err(reason) => return response::page(StatusCode::BAD_REQUEST, page::render_failure("Invalid query", &reason)),
    };
    let scope = principal.scope();
    // Only a signed-in operator can have made a change.
    let flash = head.uri.query().filter(|_| principal.operator.is_some()).and_then(Flash::parse);
    let query = Arc::new(query);
    match list(status, scope, &query).await {
        Ok((phones, snapshot)) => {
            let (operator, flash) = (principal.operator.as_deref(), flash.as_ref());
            let (overview, phones, query, sections) = (&snapshot.overview, &phones, &*query, &sections);
            let view = View { overview, phones, query, sections, operator, flash };
            response::page(StatusCode::OK, page::render(&view))
        }
        Err(reason) => {
            response::page(StatusCode::SERVICE_UNAVAILABLE, page::render_failure("Phones not available", &reason))
        }
    }
}

/// The phones that match `query`, and a snapshot that is as new: what a client has seen in the list, it also sees in the
/// overview afterwards.
async fn list(
    status: &AdminServer,
    scope: &Scope,
    query: &Arc<PhoneQuery>,
) -> Result<(PhonePage, Arc<Snapshot>), String> {
    let mut snapshot = status.snapshots.current(&status.admin_data, scope).await.snapshot;
    let (of, query) = (Arc::clone(&snapshot), Arc::clone(query));
    let (page, is_current) = blocking(status, move |admin_data| admin_data.phones(&of, &query)).await?;
    if !is_current {
        status.snapshots.outdate(scope).await;
        snapshot = status.snapshots.current(&status.admin_data, scope).await.snapshot;
    }
    Ok((page, snapshot))
}

async fn history(
    status: &AdminServer,
    scope: &Scope,
    constituency: ConstituencyName,
    mac: MacAddress,
) -> Result<PhoneHistoryView, (StatusCode, String)> {
    let (name, wanted) = (constituency.clone(), scope.clone());
    match blocking(status, move |admin_data| admin_data.history(&wanted, &name, mac)).await {
        Ok(Some((history, version))) => {
            // The overview must not be older than what the client has seen of this phone.
            // The version changes with what happens elsewhere, which must not show.
            if !scope.is_all() || status.snapshots.current(&status.admin_data, scope).await.snapshot.version != version
            {
                status.snapshots.outdate(scope).await;
            }
            Ok(history)
        }
        Ok(None) => Err((StatusCode::NOT_FOUND, format!("phone {mac} not found in {constituency}"))),
        Err(reason) => Err((StatusCode::SERVICE_UNAVAILABLE, reason)),
    }
}
