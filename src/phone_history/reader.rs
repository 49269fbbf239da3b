//! Reading the ledger, also while a server writes it: no lock is taken, and nothing is left behind.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};
use rusqlite::{Connection, OpenFlags, Row};
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::schema;
use super::visits::Visits;
use crate::constituency::{ConstituencyName, MacAddress, TlsLevel};
use crate::state::FolderHandle;

/// How long to wait for a writer.
const PATIENCE: Duration = Duration::from_secs(5);
/// What stands for itself in the path of a URI.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'-').remove(b'_');

/// Why the ledger cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The database says so.
    #[error("the ledger {path} cannot be read: {source}", path = .path.display())]
    Database {
        /// The database's file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The system does not let us look.
    #[error("the ledger {path} cannot be read: {source}; run this as the user that serves, or as root", path = .path.display())]
    File {
        /// The database's file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Of another version than this provost's.
    #[error("the ledger {path} is of version {found}, this provost reads version {}; use the provost that serves", schema::version(), path = .path.display())]
    Version {
        /// The database's file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
}

/// The ledger, open for reading.
#[derive(Debug)]
pub struct HistoryReader {
    connection: Connection,
    path: PathBuf,
    /// In which root acts as its owner.
    folder: FolderHandle,
}

/// Something that happened, and when, in Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// What.
    pub what: String,
    /// When.
    pub at: i64,
}

/// What is known of a phone that proved who it is. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPhone {
    /// The constituency that it asked.
    pub constituency: ConstituencyName,
    /// Its address.
    pub mac: MacAddress,
    /// When it was first seen.
    pub first_seen: i64,
    /// When it was last seen.
    pub last_seen: i64,
    /// When it was last let in, if it ever was.
    pub last_let_in: Option<i64>,
    /// Whether it was refused when it last asked.
    pub is_refused: bool,
    /// From where it came last.
    pub address: String,
    /// Its model, as it calls itself.
    pub model: Option<String>,
    /// Its firmware, as it calls itself.
    pub firmware: Option<String>,
    /// TLS version and cipher suite: of those that its application and its updater last spoke, the older.
    pub tls: Option<(String, String)>,
    /// When its certificate expires, in Unix seconds; `None` if a password proved it.
    pub certificate_not_after: Option<i64>,
    /// The configuration that it last fetched.
    pub configuration: Option<StoredEvent>,
    /// The upload that it last stored.
    pub upload: Option<StoredEvent>,
    /// Why it was last refused.
    pub refusal: Option<StoredEvent>,
    /// How many requests it made.
    pub requests: u64,
    /// How many of them were refused.
    pub refusals: u64,
    /// How many uploads were stored.
    pub uploads: u64,
    /// How many bytes of body it was sent.
    pub bytes: u64,
    /// How often it came, and how long it usually stays away, in milliseconds.
    pub visits: Visits,
}

impl StoredPhone {
    /// How old that TLS is, if it spoke any.
    #[must_use]
    pub fn tls_level(&self) -> Option<TlsLevel> {
        self.tls.as_ref().map(|(version, suite)| TlsLevel::of(version, suite))
    }
}

/// One request of a phone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRequest {
    /// The constituency that it asked.
    pub constituency: ConstituencyName,
    /// When, in Unix milliseconds.
    pub time: i64,
    /// From where.
    pub address: String,
    /// Method and target, if it was read.
    pub asked: Option<(String, String)>,
    /// The answer's status.
    pub status: Option<u16>,
    /// Bytes of body that were sent.
    pub bytes: u64,
    /// How long it took.
    pub duration: Duration,
    /// Why it was refused or broke off.
    pub reason: Option<String>,
}

/// A certificate that says it is a phone's and proves nothing, or passwords that were wrong. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredClaim {
    /// The constituency that was asked.
    pub constituency: ConstituencyName,
    /// The claimed address.
    pub mac: MacAddress,
    /// The SHA-256 of the certificate; `None`: there were passwords instead.
    pub fingerprint: Option<[u8; 32]>,
    /// When it was first seen.
    pub first_seen: i64,
    /// When it was last seen.
    pub last_seen: i64,
    /// From where it came last.
    pub address: String,
    /// From where it came: the addresses that were seen last, in that order.
    pub addresses: Vec<ClaimAddress>,
    /// How often it came.
    pub count: u64,
    /// Why it was refused.
    pub refusal: Option<String>,
}

/// An address from which such a claim came. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimAddress {
    /// The address.
    pub address: String,
    /// When it first came from there.
    pub first_seen: i64,
    /// When it last came from there.
    pub last_seen: i64,
}

impl HistoryReader {
    /// Opens the ledger in the state directory `state`; `None` if there is none yet.
    ///
    /// # Errors
    /// If it cannot be read, or is of another version.
    pub fn open(state: &Path) -> Result<Option<Self>, ReadError> {
        let path = super::database(&state.join(super::FOLDER));
        let on_file = |source| ReadError::File { path: path.clone(), source };
        let Some((folder, at_rest)) = find(&path).map_err(on_file)? else { return Ok(None) };
        let on_database = |source| ReadError::Database { path: path.clone(), source };
        let opened = folder.act(|_| {
            let version = |it: &Connection| it.pragma_query_value(None, "user_version", |row| row.get(0));
            Ok(connect(&path, at_rest).and_then(|it| Ok((version(&it)?, it))))
        });
        match opened.map_err(on_file)?.map_err(on_database)? {
            // A server is making it right now.
            (0, _) => Ok(None),
            (found, _) if found != schema::version() => Err(ReadError::Version { path, found }),
            (_, connection) => Ok(Some(Self { connection, path, folder })),
        }
    }

    /// Every phone that proved who it is, in order.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn phones(&self) -> Result<Vec<StoredPhone>, ReadError> {
        self.query("SELECT * FROM phone ORDER BY constituency, mac", [], phone)
    }

    /// Everything that claims to be a phone's, in order.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn claims(&self) -> Result<Vec<StoredClaim>, ReadError> {
        let mut claims = self.query("SELECT * FROM claim ORDER BY constituency, mac, last_seen", [], claim)?;
        let sql = "SELECT * FROM claim_address ORDER BY last_seen DESC, address";
        let mut addresses: HashMap<_, Vec<ClaimAddress>> = HashMap::new();
        for (key, address) in self.query(sql, [], claim_address)? {
            addresses.entry(key).or_default().push(address);
        }
        for claim in &mut claims {
            let key = (claim.constituency.clone(), claim.mac, claim.fingerprint);
            claim.addresses = addresses.remove(&key).unwrap_or_default();
        }
        Ok(claims)
    }

    /// The requests of a phone that are kept, in all constituencies, oldest first.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn requests(&self, mac: MacAddress) -> Result<Vec<StoredRequest>, ReadError> {
        let sql = "SELECT phone.constituency, request.* FROM request JOIN phone ON phone.id = request.phone
                   WHERE phone.mac = ? ORDER BY time, number";
        self.query(sql, [mac.to_string()], request)
    }

    fn query<T>(
        &self,
        sql: &str,
        values: impl rusqlite::Params,
        read: fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, ReadError> {
        let query = || self.connection.prepare(sql)?.query_map(values, read)?.collect();
        let rows: rusqlite::Result<_> =
            self.folder.act(|_| Ok(query())).map_err(|source| ReadError::File { path: self.path.clone(), source })?;
        rows.map_err(|source| ReadError::Database { path: self.path.clone(), source })
    }
}

/// The folder of the database at `path`, and whether the database is at rest; `None` if there is none.
///
/// SQLite finds files by their paths, and follows links. Root acts as the folder's owner meanwhile, so that a link shows no
/// more than its owner can read anyway. It is said here what SQLite would not say.
fn find(path: &Path) -> io::Result<Option<(FolderHandle, bool)>> {
    let (folder, name) = match FolderHandle::of_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found?,
    };
    if !folder.has(&name)? {
        return Ok(None);
    }
    let beside = |suffix: &str| format!("{}{suffix}", name.display());
    for file in ["", "-wal", "-shm"].map(beside) {
        match folder.open_file(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("{file}: {error}"))),
            Ok(_) => {}
        }
    }
    folder.act(|_| {
        let readable = accessat(CWD, path, Access::READ_OK, AtFlags::EACCESS);
        let reason = "the folder's owner, as whom root reads it, does not reach it by this path";
        readable.map_err(|errno| io::Error::other(format!("{reason}: {errno}")))
    })?;
    let is_at_rest = !folder.has(beside("-wal"))?;
    Ok(Some((folder, is_at_rest)))
}

/// A database without a log beside it is not being written: it is read as it lies, and no file is made for it.
fn connect(path: &Path, is_at_rest: bool) -> rusqlite::Result<Connection> {
    let encoded = percent_encode(path.as_os_str().as_encoded_bytes(), IN_PATH);
    let uri = format!("file:{encoded}?mode=ro{}", if is_at_rest { "&immutable=1" } else { "" });
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri, flags)?;
    connection.busy_timeout(PATIENCE)?;
    Ok(connection)
}

fn phone(row: &Row<'_>) -> rusqlite::Result<StoredPhone> {
    let event = |what: &str, at: &str| -> rusqlite::Result<Option<StoredEvent>> {
        let event: (Option<String>, Option<i64>) = (row.get(what)?, row.get(at)?);
        Ok(event.0.zip(event.1).map(|(what, at)| StoredEvent { what, at }))
    };
    let tls = |version: &str, suite: &str| -> rusqlite::Result<Option<(String, String)>> {
        let spoken: (Option<String>, Option<String>) = (row.get(version)?, row.get(suite)?);
        Ok(spoken.0.zip(spoken.1))
    };
    let (tls, updater_tls) = (tls("tls_version", "tls_suite")?, tls("updater_tls_version", "updater_tls_suite")?);
    Ok(StoredPhone {
        constituency: row.get("constituency")?,
        mac: row.get("mac")?,
        first_seen: row.get("first_seen")?,
        last_seen: row.get("last_seen")?,
        last_let_in: row.get("last_let_in")?,
        is_refused: row.get("is_refused")?,
        address: row.get("address")?,
        model: row.get("model")?,
        firmware: row.get("firmware")?,
        // Of two that are as old, the application's, which comes last.
        tls: updater_tls.into_iter().chain(tls).max_by_key(|(version, suite)| TlsLevel::of(version, suite)),
        certificate_not_after: Some(row.get("certificate_not_after")?).filter(|end| *end != schema::NO_CERTIFICATE),
        configuration: event("configuration", "configuration_at")?,
        upload: event("upload", "upload_at")?,
        refusal: event("refusal", "refusal_at")?,
        requests: row.get("requests")?,
        refusals: row.get("refusals")?,
        uploads: row.get("uploads")?,
        bytes: row.get("bytes")?,
        visits: Visits { count: row.get("visits")?, usual_pause: row.get("usual_pause")? },
    })
}

fn claim(row: &Row<'_>) -> rusqlite::Result<StoredClaim> {
    Ok(StoredClaim {
        constituency: row.get("constituency")?,
        mac: row.get("mac")?,
        fingerprint: fingerprint(row)?,
        first_seen: row.get("first_seen")?,
        last_seen: row.get("last_seen")?,
        address: row.get("address")?,
        addresses: Vec::new(),
        count: row.get("count")?,
        refusal: row.get("refusal")?,
    })
}

/// Of nothing where a claim was made by a password.
fn fingerprint(row: &Row<'_>) -> rusqlite::Result<Option<[u8; 32]>> {
    let bytes: Vec<u8> = row.get("fingerprint")?;
    Ok(bytes.try_into().ok())
}

/// Which claim an address belongs to.
type ClaimKey = (ConstituencyName, MacAddress, Option<[u8; 32]>);

fn claim_address(row: &Row<'_>) -> rusqlite::Result<(ClaimKey, ClaimAddress)> {
    let key = (row.get("constituency")?, row.get("mac")?, fingerprint(row)?);
    let (address, first_seen, last_seen) = (row.get("address")?, row.get("first_seen")?, row.get("last_seen")?);
    Ok((key, ClaimAddress { address, first_seen, last_seen }))
}

fn request(row: &Row<'_>) -> rusqlite::Result<StoredRequest> {
    let asked: (Option<String>, Option<String>) = (row.get("method")?, row.get("target")?);
    Ok(StoredRequest {
        constituency: row.get("constituency")?,
        time: row.get("time")?,
        address: row.get("address")?,
        asked: asked.0.zip(asked.1),
        status: row.get("status")?,
        bytes: row.get("bytes")?,
        duration: Duration::from_micros(row.get("duration_us")?),
        reason: row.get("reason")?,
    })
}

impl FromSql for MacAddress {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str()?.parse().map_err(FromSqlError::other)
    }
}

impl FromSql for ConstituencyName {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str()?.parse().map_err(FromSqlError::other)
    }
}
