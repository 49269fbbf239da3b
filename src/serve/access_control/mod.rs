//! Access control: may this client do this now? One pure function, [`decide`], which checks in the order that the
//! contract fixes.
//!
//! 1. Host: the constituency of the request.
//! 2. Method.
//! 3. Path.
//! 4. Phone: certificate or password, list, expiry.
//! 5. Own files only.
//! 6. Names that are never served.
//!
//! Opening a file takes a [`ReadGrant`], storing one takes a [`WriteGrant`]; only this module makes them. A refusal is
//! a value, [`Denial`]: the client sees only its status, the operator its reason.

pub mod content_range;
mod denial;
#[cfg(test)]
mod tests;
pub mod upload_name;

use hyper::Method;

pub use denial::Denial;

use super::host::BadHost;
use super::path::{self, ServedPath};
use crate::constituency::file_names::NameRules;
use crate::constituency::{ClientAuth, Constituency, ListedPhones, MacAddress, PhoneStanding, UploadLimits};
use crate::identity::ClientIdentity;
use upload_name::UploadName;

#[derive(Debug)]
pub struct RequestTarget<'a> {
    /// Whether Host names the constituency of this connection, or why not.
    pub host: Result<(), HostDenial>,
    /// The method.
    pub method: &'a Method,
    /// The path of the request target, as sent.
    pub path: &'a str,
}

/// Why a request's Host does not lead to the connection's constituency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostDenial {
    /// It is malformed.
    Bad(BadHost),
    /// It names something else.
    Elsewhere(String),
}

/// The client of a request, and the state that applies to it.
#[derive(Debug)]
pub struct ClientContext<'a> {
    /// The connection's constituency in its current state; `None` if it was removed.
    pub constituency: Option<&'a Constituency>,
    /// Every phone on any list of this server.
    pub listed: &'a ListedPhones,
    /// Whether the connection was made under the TLS part that is in force.
    pub tls_is_current: bool,
    /// Who the client is, or why its certificate or password is refused.
    pub identity: Result<&'a ClientIdentity, &'a Denial>,
    /// The current time, in Unix seconds.
    pub now: i64,
}

#[derive(Debug)]
pub enum Grant {
    /// Send a file.
    Read(ReadGrant),
    /// Store an upload.
    Write(WriteGrant),
}

/// Permission to open a path for reading.
#[derive(Debug)]
pub struct ReadGrant {
    path: ServedPath,
    reader: Option<MacAddress>,
}

/// Permission to store an upload.
#[derive(Debug)]
pub struct WriteGrant {
    path: ServedPath,
    name: UploadName,
    mac: MacAddress,
    limits: UploadLimits,
}

/// Decides one request.
///
/// # Errors
/// The first reason for a denial, in the order of the contract.
pub fn decide(target: RequestTarget<'_>, client: &ClientContext<'_>) -> Result<Grant, Denial> {
    let is_plain = matches!(client.identity, Ok(ClientIdentity::Plain));
    match target.host {
        Ok(()) => {}
        Err(HostDenial::Bad(bad)) => return Err(Denial::Host(bad)),
        Err(HostDenial::Elsewhere(host)) if is_plain => return Err(Denial::NotPlain { host }),
        Err(HostDenial::Elsewhere(host)) => return Err(Denial::Misdirected { host }),
    }
    let constituency = client.constituency.ok_or(Denial::Gone)?;
    let requires_identity = !is_plain && constituency.policy.tls.client_auth != ClientAuth::None;
    let is_write = check_method(target.method, requires_identity)?;
    let path = ServedPath::parse(target.path)?;
    let phone = if is_plain { None } else { check_phone(constituency, client)? };
    let rules = if is_write { NameRules::writing } else { NameRules::reading };
    check_own_files(path.as_str(), phone, &rules(client.listed, constituency))?;
    match phone {
        Some(mac) if is_write => grant_write(path, mac, constituency).map(Grant::Write),
        _ if path::is_hidden(path.as_str()) => Err(Denial::Hidden),
        _ if path.names_folder() => Err(Denial::Folder),
        reader => Ok(Grant::Read(ReadGrant { path, reader })),
    }
}

/// Whether the method writes. Only constituencies that authenticate their clients allow that.
fn check_method(method: &Method, requires_identity: bool) -> Result<bool, Denial> {
    let allow = if requires_identity { "GET, HEAD, PUT" } else { "GET, HEAD" };
    match *method {
        Method::GET | Method::HEAD => Ok(false),
        Method::PUT if requires_identity => Ok(true),
        _ => Err(Denial::Method { method: method.clone(), allow }),
    }
}

/// The authenticated phone; `None` if the constituency authenticates no clients.
fn check_phone(constituency: &Constituency, client: &ClientContext<'_>) -> Result<Option<MacAddress>, Denial> {
    if !client.tls_is_current {
        return Err(Denial::TlsSettingsChanged);
    }
    let required = constituency.policy.tls.client_auth;
    if required == ClientAuth::None {
        return Ok(None);
    }
    // An identity of another kind than the policy requires counts for nothing.
    match (required, client.identity.map_err(Clone::clone)?) {
        (ClientAuth::Digest, ClientIdentity::Password(mac)) => check_standing(constituency, *mac).map(Some),
        (ClientAuth::Required, ClientIdentity::Certificate(device)) => {
            device.still_valid(client.now).map_err(|refusal| Denial::Certificate(refusal.into()))?;
            let mac = device.mac().map_err(|reason| Denial::NoIdentity(reason.clone()))?;
            check_standing(constituency, mac)?;
            match device.pin().filter(|certificate| !constituency.is_pinned(mac, *certificate)) {
                Some(certificate) => {
                    Err(Denial::Unpinned { mac, constituency: constituency.name.clone(), certificate })
                }
                None => Ok(Some(mac)),
            }
        }
        _ => Err(Denial::NoDevice),
    }
}

/// The phone, if the constituency's list allows it.
fn check_standing(constituency: &Constituency, mac: MacAddress) -> Result<MacAddress, Denial> {
    let name = || constituency.name.clone();
    match constituency.standing(mac) {
        PhoneStanding::Known => Ok(mac),
        PhoneStanding::Unknown => Err(Denial::Unknown { mac, constituency: name() }),
        PhoneStanding::Denied => Err(Denial::Denied { mac, constituency: name() }),
        PhoneStanding::DeniedEverywhere => Err(Denial::DeniedEverywhere { mac, constituency: name() }),
    }
}

fn check_own_files(path: &str, phone: Option<MacAddress>, rules: &NameRules<'_>) -> Result<(), Denial> {
    let refused = if phone.is_some() { Denial::OthersFile } else { Denial::UnprovenMac };
    rules.check(path, phone).map_err(refused)
}

fn grant_write(path: ServedPath, mac: MacAddress, constituency: &Constituency) -> Result<WriteGrant, Denial> {
    let name = UploadName::of(&path, mac)?;
    let limits =
        constituency.policy.uploads.ok_or_else(|| Denial::UploadsOff { constituency: constituency.name.clone() })?;
    Ok(WriteGrant { path, name, mac, limits })
}

impl ReadGrant {
    /// The requested path.
    #[must_use]
    pub fn path(&self) -> &ServedPath {
        &self.path
    }

    /// The requesting phone, if it is authenticated.
    #[must_use]
    pub fn reader(&self) -> Option<MacAddress> {
        self.reader
    }

    /// Checks whether the grant holds for `real` too, the target of symlinks within the same constituency.
    ///
    /// # Errors
    /// The denial that a request for `real` itself would get.
    pub fn covers(&self, real: &str, rules: &NameRules<'_>) -> Result<(), Denial> {
        check_own_files(real, self.reader, rules)?;
        if path::is_hidden(real) { Err(Denial::Hidden) } else { Ok(()) }
    }
}

/// Checks whether a symlink of `rules.asking` may lead to `real` in the folder of `rules.owning`, for the phone
/// `reader`.
///
/// # Errors
/// If `real` lies outside of the folders that the owner shares, is hidden, or is a file of one phone, also of `reader`.
pub fn check_shared(real: &str, reader: Option<MacAddress>, rules: &NameRules<'_>) -> Result<(), Denial> {
    let owner = rules.owning;
    let refused =
        |why: &dyn std::fmt::Display| Err(Denial::Link(format!("the symlink leads to {}/{real}: {why}", owner.name)));
    let top = real.split_once('/').map(|(top, _)| top);
    if !top.is_some_and(|top| owner.policy.shared.contains(top)) {
        return refused(&"it is not in a folder that the other constituency lists in \"shared\"");
    }
    if path::is_hidden(real) {
        return refused(&"a name that is never served");
    }
    if let Some(own) = reader.filter(|own| path::spells(real, *own)) {
        return refused(&format_args!("the path holds the MAC address {own}, and a phone's own file is never shared"));
    }
    rules.check(real, None).or_else(|foreign| refused(&foreign))
}

impl WriteGrant {
    /// The requested path.
    #[must_use]
    pub fn path(&self) -> &ServedPath {
        &self.path
    }

    /// The name under which the upload is stored.
    #[must_use]
    pub fn name(&self) -> &UploadName {
        &self.name
    }

    #[must_use]
    pub fn mac(&self) -> MacAddress {
        self.mac
    }

    /// The quotas in force.
    #[must_use]
    pub fn limits(&self) -> &UploadLimits {
        &self.limits
    }
}
