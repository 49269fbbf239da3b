//! Writes the database: one batch per transaction, and the limits of what is kept.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, named_params, params};
use rustix::fs::{Mode, OFlags};

use super::activity::ActivityCounts;
use super::batch::{Batch, Claims, Delta, DeltaKey};
use super::phone_event::{PhoneEvent, milliseconds};
use super::queue::TakenBatch;
use super::schema::{self, MIGRATIONS};
use super::upkeep::{self, Policies, Slice, Upkeep};
use super::visits::Visits;
use crate::state;

/// How many requests of a phone are kept.
pub(super) const HISTORY: u8 = 200;
/// How many requests are kept of a phone that was never accepted.
const HISTORY_OF_STRANGER: u8 = 20;
/// How many phones are kept that were never accepted: in all, and per network.
const MAX_REFUSED: u32 = 5_000;
const MAX_REFUSED_OF_NETWORK: u32 = 64;
/// How many claims are kept: in all, and per network.
const MAX_CLAIMS: u32 = 2_000;
const MAX_CLAIMS_OF_NETWORK: u32 = 16;
/// How many client addresses of a claim are kept.
const MAX_ADDRESSES_OF_CLAIM: u32 = 8;
/// The longest text that is kept, in bytes. Longer ones are cut.
const MAX_TEXT: usize = 512;
/// How long SQLite waits for another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the history cannot be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// SQLite failed.
    #[error("cannot write the phone history {path}: {source}", path = .path.display())]
    Database {
        path: PathBuf,
        /// The error of SQLite.
        source: rusqlite::Error,
    },
    /// The file cannot be created or moved.
    #[error("cannot write the phone history {path}: {source}", path = .path.display())]
    File {
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A newer provost wrote the database.
    #[error("unsupported version {found} of the phone history {path}, written by a newer provost; use that one, or move the file away", path = .path.display())]
    Newer { path: PathBuf, found: i64 },
}

impl StoreError {
    /// Whether the file is not a database, or is damaged.
    pub(super) fn is_corrupt(&self) -> bool {
        let Self::Database { source, .. } = self else { return false };
        matches!(source.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
    }
}

#[derive(Debug)]
pub(super) struct HistoryStore {
    connection: Connection,
    path: PathBuf,
    inode: u64,
    upkeep: Upkeep,
}

impl HistoryStore {
    /// Opens the database at `path`, and migrates it to this version. A new file is accessible by the owner only.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let on_file = |source| StoreError::File { path: path.to_owned(), source };
        let on_database = |source| StoreError::Database { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            state::private_folder(folder).map_err(on_file)?;
        }
        let inode = make(path)?.metadata().map_err(on_file)?.ino();
        // It is closed before SQLite opens it: close() releases all locks of the process on that file (fcntl(2)). Without
        // SQLite's locks, another reader that is the last to close the database would delete its WAL.
        let mut connection = Connection::open(path).map_err(on_database)?;
        let found = prepare(&mut connection).map_err(on_database)?;
        if found > schema::version() {
            return Err(StoreError::Newer { path: path.to_owned(), found });
        }
        if let Err(error) = upkeep::make_shrinkable(&connection) {
            tracing::warn!("the phone history {} keeps its size: it cannot be rewritten: {error}", path.display());
        }
        Ok(Self { connection, path: path.to_owned(), inode, upkeep: Upkeep::default() })
    }

    /// Whether the path still leads to the file that was opened.
    pub(super) fn is_in_place(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode)
    }

    /// Moves an unreadable database out of the way. Replaces one that was moved before.
    pub(super) fn move_aside(path: &Path) -> Result<PathBuf, StoreError> {
        let aside = path.with_extension("corrupt");
        let moved = std::fs::rename(path, &aside);
        moved.map_err(|source| StoreError::File { path: path.to_owned(), source })?;
        for suffix in ["-wal", "-shm"] {
            let beside = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
            // There may be none. One that is left would be taken for the new database's.
            let _ = std::fs::rename(beside(path), beside(&aside)).or_else(|_| std::fs::remove_file(beside(path)));
        }
        Ok(aside)
    }

    /// The written steps of the activity.
    pub(super) fn steps(&self) -> Result<Vec<(i64, ActivityCounts)>, StoreError> {
        let sql = "SELECT step, served, refused, handshakes FROM activity";
        let row = |row: &rusqlite::Row<'_>| {
            Ok((row.get(0)?, ActivityCounts { served: row.get(1)?, refused: row.get(2)?, handshakes: row.get(3)? }))
        };
        let steps = self.connection.prepare(sql).and_then(|mut query| query.query_map([], row)?.collect());
        steps.map_err(|source| StoreError::Database { path: self.path.clone(), source })
    }

    /// Takes over `policies`, by which the index of phones is kept.
    pub(super) fn follow(&mut self, policies: Policies) {
        self.upkeep.follow(policies);
    }

    /// Whether the index of phones is not complete yet.
    pub(super) fn is_indexing(&self) -> bool {
        self.upkeep.is_indexing()
    }

    /// Does some of what is left to do besides writing events.
    pub(super) fn run_slice(&mut self, now: SystemTime) -> Result<Slice, StoreError> {
        let done = self.upkeep.run_slice(&mut self.connection, now);
        done.map_err(|source| StoreError::Database { path: self.path.clone(), source })
    }

    /// Writes `taken` in one transaction, and deletes excess rows.
    pub(super) fn write(&mut self, taken: &TakenBatch, now: SystemTime) -> Result<(), StoreError> {
        let written = self.connection.transaction().and_then(|transaction| {
            let batch = Batch::of(&taken.events, HISTORY.into());
            let mut has_strangers = false;
            for (key, delta) in &batch.phones {
                has_strangers |= write_phone(&transaction, *key, delta)?;
            }
            for ((key, fingerprint), claims) in &batch.claims {
                let fingerprint = fingerprint.as_ref().map_or(schema::NO_FINGERPRINT, <[u8; 32]>::as_slice);
                write_claims(&transaction, *key, fingerprint, claims)?;
            }
            for (step, counts) in &taken.steps {
                write_step(&transaction, *step, *counts)?;
            }
            if has_strangers {
                bound(&transaction, NEVER_ACCEPTED, None, MAX_REFUSED)?;
            }
            if !batch.claims.is_empty() {
                bound(&transaction, CLAIM, None, MAX_CLAIMS)?;
            }
            let keys = batch.phones.keys().copied().chain(batch.claims.keys().map(|(key, _)| *key));
            self.upkeep.refresh(&transaction, keys, now)?;
            transaction.commit()
        });
        written.map_err(|source| StoreError::Database { path: self.path.clone(), source })
    }
}

/// Opens the file of the database; makes it if there is none. Fails if it, or a file that SQLite opens beside it, is not
/// a regular file: SQLite would follow a symlink, and its errors do not name the file.
fn make(path: &Path) -> Result<File, StoreError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::File { path, source }
    };
    let folder = state::folder_of(path).map_err(failed(path))?;
    let name = path.file_name().unwrap_or_default();
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut name = name.to_owned();
        name.push(suffix);
        folder.check_regular(&name).map_err(failed(&path.with_file_name(&name)))?;
    }
    // NONBLOCK: opening a FIFO must not wait for its reader. SQLite gives the WAL and the shared memory the same mode.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = folder.act(|folder| Ok(rustix::fs::openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?));
    opened.map(File::from).map_err(failed(path))
}

/// Configures the connection, and migrates the database. Returns its version. Does not write to a newer provost's
/// database.
pub(super) fn prepare(connection: &mut Connection) -> rusqlite::Result<i64> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // SQLite copies the WAL of an earlier process into the database when the last connection closes, and the settings
    // below write to the database too. So the version is checked before the settings, and until then nothing is copied.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    let version = |it: &Connection| it.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
    let found = version(connection)?;
    if found > schema::version() {
        return Ok(found);
    }
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    if found == 0 {
        // Before anything is written: a new database can then return free pages.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    // With these settings, a crash of the process loses nothing. A power failure may lose the last moments, but does
    // not corrupt the database.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "journal_size_limit", 8 << 20)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    let transaction = connection.transaction()?;
    // Another process may have migrated it since.
    let found = version(&transaction)?;
    if found >= schema::version() {
        return Ok(found);
    }
    for migration in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", schema::version())?;
    transaction.commit()?;
    Ok(schema::version())
}

/// Writes the changes of a phone. Returns whether it was never accepted.
fn write_phone(transaction: &Transaction<'_>, key: DeltaKey<'_>, delta: &Delta<'_>) -> rusqlite::Result<bool> {
    let (configuration, configuration_at) = event(delta.configuration, PhoneEvent::configuration);
    let (upload, upload_at) = event(delta.upload, PhoneEvent::upload);
    let (refusal, refusal_at) = event(delta.refusal, PhoneEvent::refusal);
    let ((tls_version, tls_suite), (updater_tls_version, updater_tls_suite)) =
        (delta.tls.unzip(), delta.updater_tls.unzip());
    let visits = visits(transaction, key, delta)?;
    let mut statement = transaction.prepare_cached(
        "INSERT INTO phone (constituency, mac, first_seen, last_seen, last_let_in, is_refused, address, network, model,
             firmware, tls_version, tls_suite, updater_tls_version, updater_tls_suite, certificate_not_after, configuration, configuration_at, upload, upload_at,
             refusal, refusal_at, requests, refusals, uploads, bytes, visits, usual_pause)
         VALUES (:constituency, :mac, :first_seen, :last_seen, :last_let_in, coalesce(:is_refused, FALSE), :address, :network,
             :model, :firmware, :tls_version, :tls_suite, :updater_tls_version, :updater_tls_suite, :certificate_not_after, :configuration, :configuration_at, :upload, :upload_at,
             :refusal, :refusal_at, :requests, :refusals, :uploads, :bytes, :visits, :usual_pause)
         ON CONFLICT (constituency, mac) DO UPDATE SET
             first_seen = min(first_seen, excluded.first_seen),
             last_seen = excluded.last_seen, last_let_in = coalesce(excluded.last_let_in, last_let_in),
             is_refused = coalesce(:is_refused, is_refused),
             address = excluded.address, network = excluded.network,
             model = coalesce(excluded.model, model),
             firmware = CASE WHEN excluded.model IS NOT NULL AND excluded.model IS NOT model THEN excluded.firmware
                             ELSE coalesce(excluded.firmware, firmware) END,
             tls_version = coalesce(excluded.tls_version, tls_version),
             tls_suite = coalesce(excluded.tls_suite, tls_suite),
             updater_tls_version = coalesce(excluded.updater_tls_version, updater_tls_version),
             updater_tls_suite = coalesce(excluded.updater_tls_suite, updater_tls_suite),
             certificate_not_after = excluded.certificate_not_after,
             configuration = coalesce(excluded.configuration, configuration),
             configuration_at = coalesce(excluded.configuration_at, configuration_at),
             upload = coalesce(excluded.upload, upload), upload_at = coalesce(excluded.upload_at, upload_at),
             refusal = coalesce(excluded.refusal, refusal), refusal_at = coalesce(excluded.refusal_at, refusal_at),
             requests = requests + excluded.requests, refusals = refusals + excluded.refusals,
             uploads = uploads + excluded.uploads, bytes = bytes + excluded.bytes,
             visits = excluded.visits, usual_pause = excluded.usual_pause
         RETURNING id, requests, last_let_in IS NULL",
    )?;
    let network = delta.last.network.to_string();
    let values = named_params! {
        ":constituency": key.0.as_str(), ":mac": key.1.to_string(),
        ":first_seen": milliseconds(delta.first.time), ":last_seen": milliseconds(delta.last.end()),
        ":last_let_in": delta.accepted.map(|event| milliseconds(event.end())),
        ":is_refused": delta.is_refused, ":address": delta.last.address.to_string(), ":network": network,
        ":model": delta.model, ":firmware": delta.firmware, ":tls_version": tls_version, ":tls_suite": tls_suite,
        ":updater_tls_version": updater_tls_version, ":updater_tls_suite": updater_tls_suite,
        ":certificate_not_after": delta.not_after.unwrap_or(schema::NO_CERTIFICATE),
        ":configuration": configuration, ":configuration_at": configuration_at,
        ":upload": upload, ":upload_at": upload_at, ":refusal": refusal, ":refusal_at": refusal_at,
        ":requests": delta.count, ":refusals": delta.refusals, ":uploads": delta.uploads, ":bytes": delta.bytes,
        ":visits": visits.count, ":usual_pause": visits.usual_pause,
    };
    let (id, total, is_stranger) = statement.query_one(values, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    write_history(transaction, id, total, delta)?;
    let limit = if is_stranger { HISTORY_OF_STRANGER } else { HISTORY };
    let mut prune = transaction.prepare_cached("DELETE FROM request WHERE phone = ? AND number <= ?")?;
    prune.execute([id, total - i64::from(limit)])?;
    if is_stranger {
        bound(transaction, NEVER_ACCEPTED, Some(&network), MAX_REFUSED_OF_NETWORK)?;
    }
    Ok(is_stranger)
}

/// The phone's visits, with the new ones.
fn visits(transaction: &Transaction<'_>, key: DeltaKey<'_>, delta: &Delta<'_>) -> rusqlite::Result<Visits> {
    let sql = "SELECT last_seen, visits, usual_pause FROM phone WHERE (constituency, mac) = (?, ?)";
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, Visits { count: row.get(1)?, usual_pause: row.get(2)? }));
    let known =
        transaction.prepare_cached(sql)?.query_one(params![key.0.as_str(), key.1.to_string()], row).optional()?;
    let before = known.map_or(Visits::FIRST, |(last_seen, visits): (i64, Visits)| {
        visits.after(milliseconds(delta.first.time).saturating_sub(last_seen))
    });
    Ok(delta.pauses.iter().fold(before, |visits, pause| visits.after(*pause)))
}

/// Writes the counts of a step, and replaces earlier ones.
fn write_step(transaction: &Transaction<'_>, step: i64, counts: ActivityCounts) -> rusqlite::Result<()> {
    let mut statement = transaction.prepare_cached("INSERT OR REPLACE INTO activity VALUES (?, ?, ?, ?)")?;
    statement.execute(params![step, counts.served, counts.refused, counts.handshakes]).map(drop)
}

/// The text and the time of an event.
fn event(
    event: Option<&PhoneEvent>,
    what: for<'a> fn(&'a PhoneEvent) -> Option<&'a str>,
) -> (Option<&str>, Option<i64>) {
    event.and_then(|event| Some((cut(what(event)?), milliseconds(event.end())))).unzip()
}

/// Writes the phone's newest requests, numbered so that the last one has the number `total`.
fn write_history(transaction: &Transaction<'_>, phone: i64, total: i64, delta: &Delta<'_>) -> rusqlite::Result<()> {
    let mut statement = transaction.prepare_cached(
        "INSERT OR REPLACE INTO request (phone, number, time, address, method, target, status, bytes, duration_us, reason)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    for (event, number) in delta.history.iter().rev().zip((0..=total).rev()) {
        let (method, target) = event.request.as_ref().map(|(method, target)| (method.as_str(), cut(target))).unzip();
        statement.execute(params![
            phone,
            number,
            milliseconds(event.time),
            event.address.to_string(),
            method,
            target,
            event.status.map(|status| status.as_u16()),
            event.bytes,
            i64::try_from(event.duration.as_micros()).unwrap_or(i64::MAX),
            event.reason.as_deref().map(cut),
        ])?;
    }
    Ok(())
}

fn write_claims(
    transaction: &Transaction<'_>,
    key: DeltaKey<'_>,
    fingerprint: &[u8],
    claims: &Claims<'_>,
) -> rusqlite::Result<()> {
    let network = claims.last.network.to_string();
    let mut statement = transaction.prepare_cached(
        "INSERT INTO claim (constituency, mac, fingerprint, first_seen, last_seen, address, network, count, refusal)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (constituency, mac, fingerprint) DO UPDATE SET
             first_seen = min(first_seen, excluded.first_seen), last_seen = excluded.last_seen,
             address = excluded.address, network = excluded.network, count = count + excluded.count,
             refusal = excluded.refusal",
    )?;
    statement.execute(params![
        key.0.as_str(),
        key.1.to_string(),
        fingerprint,
        milliseconds(claims.first.time),
        milliseconds(claims.last.end()),
        claims.last.address.to_string(),
        network,
        claims.count,
        claims.last.refusal().map(cut),
    ])?;
    write_addresses(transaction, key, fingerprint, claims)?;
    bound(transaction, CLAIM, Some(&network), MAX_CLAIMS_OF_NETWORK)
}

fn write_addresses(
    transaction: &Transaction<'_>,
    key: DeltaKey<'_>,
    fingerprint: &[u8],
    claims: &Claims<'_>,
) -> rusqlite::Result<()> {
    let (constituency, mac) = (key.0.as_str(), key.1.to_string());
    let mut statement = transaction.prepare_cached(
        "INSERT INTO claim_address (constituency, mac, fingerprint, address, first_seen, last_seen)
         VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT (constituency, mac, fingerprint, address) DO UPDATE SET
             first_seen = min(first_seen, excluded.first_seen), last_seen = excluded.last_seen",
    )?;
    for (address, (first, last)) in &claims.addresses {
        let (first, last) = (milliseconds(first.time), milliseconds(last.end()));
        statement.execute(params![constituency, mac, fingerprint, address.to_string(), first, last])?;
    }
    let mut prune = transaction.prepare_cached(
        "DELETE FROM claim_address WHERE (constituency, mac, fingerprint) = (?1, ?2, ?3) AND address NOT IN
         (SELECT address FROM claim_address WHERE (constituency, mac, fingerprint) = (?1, ?2, ?3)
          ORDER BY last_seen DESC, address LIMIT ?4)",
    )?;
    prune.execute(params![constituency, mac, fingerprint, MAX_ADDRESSES_OF_CLAIM]).map(drop)
}

/// A table, and a condition for those rows that any client can add.
type Bounded = (&'static str, &'static str);
const NEVER_ACCEPTED: Bounded = ("phone", "last_let_in IS NULL");
const CLAIM: Bounded = ("claim", "TRUE");

/// Deletes all but the `limit` rows that were seen last, of one network or in all.
fn bound(
    transaction: &Transaction<'_>,
    (table, among): Bounded,
    network: Option<&str>,
    limit: u32,
) -> rusqlite::Result<()> {
    let of = if network.is_some() { "network = ?2" } else { "?2 IS NULL" };
    let mut statement = transaction.prepare_cached(&format!(
        "DELETE FROM {table} WHERE rowid IN
         (SELECT rowid FROM {table} WHERE {among} AND {of} ORDER BY last_seen DESC LIMIT -1 OFFSET ?1)"
    ))?;
    statement.execute(params![limit, network]).map(drop)
}

/// Cuts untrusted text to [`MAX_TEXT`] bytes.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}
