//! Reads the database, also while a server writes it. Takes no lock, and creates no file.

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
use crate::state::{self, FolderHandle};

/// How long SQLite waits for a writer.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The bytes to percent-encode in the path of a URI.
const PATH_ENCODE_SET: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'-').remove(b'_');

/// Why the history cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// SQLite failed.
    #[error("cannot read the phone history {path}: {source}", path = .path.display())]
    Database {
        path: PathBuf,
        /// The error of SQLite.
        source: rusqlite::Error,
    },
    /// The file is inaccessible.
    #[error("cannot read the phone history {path}: {source}{}", hint(.source), path = .path.display())]
    File {
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The database has another version than this provost reads.
    #[error("unsupported version {found} of the phone history {path}: this provost reads version {}; use the provost that runs the server", schema::version(), path = .path.display())]
    Version { path: PathBuf, found: i64 },
}

/// The remedy for an error that does not name its own.
fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::Other { "" } else { "; run this as the service's user, or as root" }
}

/// The database, open for reading.
#[derive(Debug)]
pub struct HistoryReader {
    connection: Connection,
    path: PathBuf,
    /// The database's folder. Root reads it as the folder's owner.
    folder: FolderHandle,
}

/// An event, and its time in Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    pub what: String,
    pub at: i64,
}

/// An authenticated phone. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPhone {
    pub constituency: ConstituencyName,
    pub mac: MacAddress,
    pub first_seen: i64,
    pub last_seen: i64,
    /// When it was last accepted, if ever.
    pub last_accepted: Option<i64>,
    /// Whether its last request was refused.
    pub is_refused: bool,
    /// The last client address.
    pub address: String,
    /// The model from the User-Agent.
    pub model: Option<String>,
    /// The firmware version from the User-Agent.
    pub firmware: Option<String>,
    /// TLS version and cipher suite. Of the last ones of its application and of its updater, the older.
    pub tls: Option<(String, String)>,
    /// When its certificate expires, in Unix seconds. `None` if it used a password.
    pub certificate_not_after: Option<i64>,
    /// The last configuration that it fetched.
    pub configuration: Option<StoredEvent>,
    /// The last upload that was stored.
    pub upload: Option<StoredEvent>,
    /// Why it was last refused.
    pub refusal: Option<StoredEvent>,
    pub requests: u64,
    pub refusals: u64,
    /// How many uploads were stored.
    pub uploads: u64,
    /// How many bytes of response bodies it was sent.
    pub bytes: u64,
    /// How often it came, and its usual pause, in milliseconds.
    pub visits: Visits,
}

impl StoredPhone {
    /// The level of its TLS, if known.
    #[must_use]
    pub fn tls_level(&self) -> Option<TlsLevel> {
        self.tls.as_ref().map(|(version, suite)| TlsLevel::of(version, suite))
    }
}

/// A request of a phone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRequest {
    pub constituency: ConstituencyName,
    /// In Unix milliseconds.
    pub time: i64,
    /// The client address.
    pub address: String,
    /// Method and target. `None` if no request was read.
    pub request: Option<(String, String)>,
    pub status: Option<u16>,
    /// Bytes of the response body that were sent.
    pub bytes: u64,
    pub duration: Duration,
    /// Why it was refused or aborted.
    pub reason: Option<String>,
}

/// A claim to be a phone: a certificate that proves nothing, or wrong passwords. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredClaim {
    pub constituency: ConstituencyName,
    /// The claimed MAC address.
    pub mac: MacAddress,
    /// The SHA-256 of the certificate. `None` if the client used passwords.
    pub fingerprint: Option<[u8; 32]>,
    pub first_seen: i64,
    pub last_seen: i64,
    /// The last client address.
    pub address: String,
    /// The client addresses, the last seen first.
    pub addresses: Vec<ClaimAddress>,
    /// How often the claim was made.
    pub count: u64,
    /// Why it was last refused.
    pub refusal: Option<String>,
}

/// A client address of a claim. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimAddress {
    pub address: String,
    pub first_seen: i64,
    pub last_seen: i64,
}

impl HistoryReader {
    /// Opens the database in the state directory `state`. `None` if there is none yet.
    ///
    /// # Errors
    /// If it cannot be read, or is of another version.
    pub fn open(state: &Path) -> Result<Option<Self>, ReadError> {
        let path = super::database(&state.join(super::FOLDER));
        let on_file = |source| ReadError::File { path: path.clone(), source };
        let Some((folder, is_idle)) = find(&path).map_err(on_file)? else { return Ok(None) };
        let on_database = |source| ReadError::Database { path: path.clone(), source };
        let opened = folder.act(|_| {
            let version = |it: &Connection| it.pragma_query_value(None, "user_version", |row| row.get(0));
            Ok(connect(&path, is_idle).and_then(|it| Ok((version(&it)?, it))))
        });
        match opened.map_err(on_file)?.map_err(on_database)? {
            // A server is creating it right now.
            (0, _) => Ok(None),
            (found, _) if found != schema::version() => Err(ReadError::Version { path, found }),
            (_, connection) => Ok(Some(Self { connection, path, folder })),
        }
    }

    /// Every authenticated phone, sorted by constituency and MAC address.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn phones(&self) -> Result<Vec<StoredPhone>, ReadError> {
        self.query(PHONES, [], phone)
    }

    /// The authenticated phone `mac` in each constituency where it was seen, sorted by constituency.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn phones_of(&self, mac: MacAddress) -> Result<Vec<StoredPhone>, ReadError> {
        self.query(PHONES_BY_MAC, [mac.to_string()], phone)
    }

    /// Every claim, sorted by constituency, MAC address and time.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn claims(&self) -> Result<Vec<StoredClaim>, ReadError> {
        let claims = self.query("SELECT * FROM claim ORDER BY constituency, mac, last_seen", [], claim)?;
        let sql = "SELECT * FROM claim_address ORDER BY last_seen DESC, address";
        Ok(with_addresses(claims, self.query(sql, [], claim_address)?))
    }

    /// The claims to be the phone `mac`, sorted by constituency and time.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn claims_of(&self, mac: MacAddress) -> Result<Vec<StoredClaim>, ReadError> {
        let sql = "SELECT * FROM claim WHERE mac = ? ORDER BY constituency, last_seen";
        let claims = self.query(sql, [mac.to_string()], claim)?;
        // CROSS JOIN: SQLite takes the claims of this phone first, and their addresses by primary key.
        let sql = "SELECT claim_address.* FROM claim CROSS JOIN claim_address USING (constituency, mac, fingerprint)
                   WHERE claim.mac = ? ORDER BY claim_address.last_seen DESC, claim_address.address";
        Ok(with_addresses(claims, self.query(sql, [mac.to_string()], claim_address)?))
    }

    /// The stored requests of a phone, in all constituencies, oldest first.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn requests(&self, mac: MacAddress) -> Result<Vec<StoredRequest>, ReadError> {
        let sql = "SELECT phone.constituency, request.* FROM request JOIN phone ON phone.id = request.phone
                   WHERE phone.mac = ? ORDER BY time, number";
        self.query(sql, [mac.to_string()], request)
    }

    pub(super) fn query<T>(
        &self,
        sql: &str,
        values: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, ReadError> {
        self.run(|connection| {
            let mut statement = connection.prepare(sql)?;
            let rows = statement.query_map(values, read)?.collect();
            #[cfg(test)]
            count_steps(&statement);
            rows
        })
    }

    /// Runs `work` on the database as a user who may read it.
    pub(super) fn run<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, ReadError> {
        let done = self.folder.act(|_| Ok(work(&self.connection)));
        done.map_err(|source| ReadError::File { path: self.path.clone(), source })?
            .map_err(|source| ReadError::Database { path: self.path.clone(), source })
    }
}

#[cfg(test)]
thread_local! {
    /// How many steps SQLite has taken for the queries of this thread: tests count work by it.
    pub(crate) static STEPS: std::cell::Cell<i32> = const { std::cell::Cell::new(0) };
}

/// Adds the steps of `statement` since the last call.
#[cfg(test)]
pub(super) fn count_steps(statement: &rusqlite::Statement<'_>) {
    STEPS.set(STEPS.get() + statement.reset_status(rusqlite::StatementStatus::VmStep));
}

/// The `claims`, each with its addresses.
pub(super) fn with_addresses(
    mut claims: Vec<StoredClaim>,
    addresses: Vec<(ClaimKey, ClaimAddress)>,
) -> Vec<StoredClaim> {
    let mut by_claim: HashMap<ClaimKey, Vec<ClaimAddress>> = HashMap::new();
    for (key, address) in addresses {
        by_claim.entry(key).or_default().push(address);
    }
    for claim in &mut claims {
        let key = (claim.constituency.clone(), claim.mac, claim.fingerprint);
        claim.addresses = by_claim.remove(&key).unwrap_or_default();
    }
    claims
}

/// The folder of the database at `path`, and whether no process writes the database (there is no WAL). `None` if there
/// is no database.
///
/// SQLite opens files by path and follows symlinks. So root acts as the folder's owner meanwhile, and a symlink reveals
/// only what the owner can read anyway. This function reports errors that SQLite would not explain.
fn find(path: &Path) -> io::Result<Option<(FolderHandle, bool)>> {
    let folder = match state::folder_of(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        folder => folder?,
    };
    let name = path.file_name().unwrap_or_default().to_owned();
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
        let reason = "permission denied for the folder's owner, as whom root reads it";
        readable.map_err(|errno| io::Error::other(format!("{reason}: {errno}")))
    })?;
    let is_idle = !folder.has(beside("-wal"))?;
    Ok(Some((folder, is_idle)))
}

/// Connects read-only. A database without a WAL is not being written: it is opened as immutable, so that SQLite creates
/// no file.
fn connect(path: &Path, is_idle: bool) -> rusqlite::Result<Connection> {
    let encoded = percent_encode(path.as_os_str().as_encoded_bytes(), PATH_ENCODE_SET);
    let uri = format!("file:{encoded}?mode=ro{}", if is_idle { "&immutable=1" } else { "" });
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // For a search, which reads the whole index of phones: up to 16 MiB, while it runs.
    connection.pragma_update(None, "cache_size", -16_384)?;
    Ok(connection)
}

/// A query for phones, with the columns that [`phone`] reads.
macro_rules! phones {
    ($rest:literal) => {
        concat!(
            "SELECT constituency, mac, first_seen, last_seen, last_let_in, is_refused, address, model, firmware,
                 tls_version, tls_suite, updater_tls_version, updater_tls_suite, certificate_not_after,
                 configuration, configuration_at, upload, upload_at, refusal, refusal_at,
                 requests, refusals, uploads, bytes, visits, usual_pause
             FROM phone ",
            $rest
        )
    };
}

pub(super) const PHONE_BY_KEY: &str = phones!("WHERE (constituency, mac) = (?, ?)");
const PHONES_BY_MAC: &str = phones!("WHERE mac = ? ORDER BY constituency");
const PHONES: &str = phones!("ORDER BY constituency, mac");

/// Reads a phone by the positions of its columns: to look up a column by its name costs more than to read it.
pub(super) fn phone(row: &Row<'_>) -> rusqlite::Result<StoredPhone> {
    let event = |what: usize| -> rusqlite::Result<Option<StoredEvent>> {
        let event: (Option<String>, Option<i64>) = (row.get(what)?, row.get(what + 1)?);
        Ok(event.0.zip(event.1).map(|(what, at)| StoredEvent { what, at }))
    };
    let tls = |version: usize| -> rusqlite::Result<Option<(String, String)>> {
        let spoken: (Option<String>, Option<String>) = (row.get(version)?, row.get(version + 1)?);
        Ok(spoken.0.zip(spoken.1))
    };
    let (tls, updater_tls) = (tls(9)?, tls(11)?);
    Ok(StoredPhone {
        constituency: row.get(0)?,
        mac: row.get(1)?,
        first_seen: row.get(2)?,
        last_seen: row.get(3)?,
        last_accepted: row.get(4)?,
        is_refused: row.get(5)?,
        address: row.get(6)?,
        model: row.get(7)?,
        firmware: row.get(8)?,
        // Of two with the same level, the application's, which comes last.
        tls: updater_tls.into_iter().chain(tls).max_by_key(|(version, suite)| TlsLevel::of(version, suite)),
        certificate_not_after: Some(row.get(13)?).filter(|end| *end != schema::NO_CERTIFICATE),
        configuration: event(14)?,
        upload: event(16)?,
        refusal: event(18)?,
        requests: row.get(20)?,
        refusals: row.get(21)?,
        uploads: row.get(22)?,
        bytes: row.get(23)?,
        visits: Visits { count: row.get(24)?, usual_pause: row.get(25)? },
    })
}

pub(super) fn claim(row: &Row<'_>) -> rusqlite::Result<StoredClaim> {
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

/// An empty value stands for a claim by password.
fn fingerprint(row: &Row<'_>) -> rusqlite::Result<Option<[u8; 32]>> {
    let bytes: Vec<u8> = row.get("fingerprint")?;
    Ok(bytes.try_into().ok())
}

/// The key of a claim.
pub(super) type ClaimKey = (ConstituencyName, MacAddress, Option<[u8; 32]>);

pub(super) fn claim_address(row: &Row<'_>) -> rusqlite::Result<(ClaimKey, ClaimAddress)> {
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
        request: asked.0.zip(asked.1),
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
