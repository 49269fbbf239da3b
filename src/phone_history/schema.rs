//! The database's tables, by version. Pure. A released version never changes; the next one migrates it.
//!
//! Times are Unix milliseconds, except for a certificate's expiry, which is in seconds. "Last" means written last,
//! whatever the clock said: a clock that was wrong once does no lasting harm.

/// The migration to version n from version n - 1. The first one starts with an empty database.
pub(super) const MIGRATIONS: &[&str] = &[
    "CREATE TABLE phone (
         id INTEGER PRIMARY KEY,
         constituency TEXT NOT NULL,
         mac TEXT NOT NULL,
         first_seen INTEGER NOT NULL,
         last_seen INTEGER NOT NULL,
         last_let_in INTEGER,
         is_refused INTEGER NOT NULL,
         address TEXT NOT NULL,
         network TEXT NOT NULL,
         model TEXT,
         firmware TEXT,
         tls_version TEXT,
         tls_suite TEXT,
         certificate_not_after INTEGER NOT NULL,
         configuration TEXT,
         configuration_at INTEGER,
         upload TEXT,
         upload_at INTEGER,
         refusal TEXT,
         refusal_at INTEGER,
         requests INTEGER NOT NULL,
         refusals INTEGER NOT NULL,
         uploads INTEGER NOT NULL,
         bytes INTEGER NOT NULL,
         UNIQUE (constituency, mac)
     ) STRICT;
     CREATE INDEX phone_by_mac ON phone (mac);
     CREATE INDEX phone_never_let_in ON phone (last_seen) WHERE last_let_in IS NULL;
     CREATE INDEX phone_never_let_in_by_network ON phone (network, last_seen) WHERE last_let_in IS NULL;

     CREATE TABLE request (
         phone INTEGER NOT NULL REFERENCES phone (id) ON DELETE CASCADE,
         number INTEGER NOT NULL,
         time INTEGER NOT NULL,
         address TEXT NOT NULL,
         method TEXT,
         target TEXT,
         status INTEGER,
         bytes INTEGER NOT NULL,
         duration_us INTEGER NOT NULL,
         reason TEXT,
         PRIMARY KEY (phone, number)
     ) STRICT, WITHOUT ROWID;
     CREATE INDEX request_by_time ON request (time);

     CREATE TABLE claim (
         constituency TEXT NOT NULL,
         mac TEXT NOT NULL,
         fingerprint BLOB NOT NULL,
         first_seen INTEGER NOT NULL,
         last_seen INTEGER NOT NULL,
         address TEXT NOT NULL,
         network TEXT NOT NULL,
         count INTEGER NOT NULL,
         refusal TEXT,
         PRIMARY KEY (constituency, mac, fingerprint)
     ) STRICT;
     CREATE INDEX claim_by_mac ON claim (mac);
     CREATE INDEX claim_by_time ON claim (last_seen);
     CREATE INDEX claim_by_network ON claim (network, last_seen);",
    // The addresses of each claim.
    "CREATE TABLE claim_address (
         constituency TEXT NOT NULL,
         mac TEXT NOT NULL,
         fingerprint BLOB NOT NULL,
         address TEXT NOT NULL,
         first_seen INTEGER NOT NULL,
         last_seen INTEGER NOT NULL,
         PRIMARY KEY (constituency, mac, fingerprint, address),
         FOREIGN KEY (constituency, mac, fingerprint) REFERENCES claim (constituency, mac, fingerprint) ON DELETE CASCADE
     ) STRICT, WITHOUT ROWID;
     INSERT INTO claim_address SELECT constituency, mac, fingerprint, address, last_seen, last_seen FROM claim;",
    // The activity, in steps of ten minutes of Unix time.
    "CREATE TABLE activity (
         step INTEGER PRIMARY KEY,
         served INTEGER NOT NULL,
         refused INTEGER NOT NULL,
         handshakes INTEGER NOT NULL
     ) STRICT;",
    // The TLS of the phone's updater, which may differ from that of its application.
    "ALTER TABLE phone ADD COLUMN updater_tls_version TEXT;
     ALTER TABLE phone ADD COLUMN updater_tls_suite TEXT;",
    // How often the phone came, and its usual pause.
    "ALTER TABLE phone ADD COLUMN visits INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE phone ADD COLUMN usual_pause INTEGER;",
    // The index of phones: what the operators' page counts, sorts and searches. It derives from the other tables and from
    // the policies, and is filled and corrected in slices (see `upkeep`). It has a row for each phone that was seen, and
    // for each listed one whose state does not follow from its list alone. `state` and `listing` are positions,
    // `due` is when the row must be derived again. The counts follow by triggers, whatever writes the index.
    "CREATE TABLE phone_index (
         constituency TEXT NOT NULL,
         mac TEXT NOT NULL,
         state INTEGER NOT NULL,
         listing INTEGER NOT NULL,
         is_recent INTEGER NOT NULL,
         last_seen INTEGER,
         model TEXT,
         firmware TEXT,
         tls INTEGER,
         usual_pause INTEGER,
         is_overdue INTEGER NOT NULL,
         due INTEGER,
         text TEXT NOT NULL,
         PRIMARY KEY (constituency, mac)
     ) STRICT, WITHOUT ROWID;
     CREATE INDEX phone_index_by_state ON phone_index (state, last_seen DESC);
     CREATE INDEX phone_index_by_constituency ON phone_index (constituency, state, last_seen DESC);
     CREATE INDEX phone_index_by_model ON phone_index (model IS NULL, model, firmware, state);
     CREATE INDEX phone_index_by_due ON phone_index (due) WHERE due IS NOT NULL;
     CREATE INDEX phone_index_overdue ON phone_index (constituency) WHERE is_overdue = 1;

     CREATE TABLE phone_count (
         constituency TEXT NOT NULL,
         state INTEGER NOT NULL,
         listing INTEGER NOT NULL,
         phones INTEGER NOT NULL,
         recent INTEGER NOT NULL,
         PRIMARY KEY (constituency, state, listing)
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE negotiated_tls (
         id INTEGER PRIMARY KEY,
         name TEXT NOT NULL UNIQUE
     ) STRICT;
     CREATE TABLE tls_count (
         constituency TEXT NOT NULL,
         tls INTEGER NOT NULL,
         phones INTEGER NOT NULL,
         PRIMARY KEY (constituency, tls)
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE index_version (number INTEGER NOT NULL) STRICT;
     INSERT INTO index_version VALUES (1);
     CREATE TRIGGER phone_index_inserted AFTER INSERT ON phone_index BEGIN
         UPDATE index_version SET number = number + 1;
         INSERT INTO phone_count VALUES (new.constituency, new.state, new.listing, 1, new.is_recent)
             ON CONFLICT DO UPDATE SET phones = phones + 1, recent = recent + excluded.recent;
         INSERT INTO tls_count SELECT new.constituency, new.tls, 1 WHERE new.tls IS NOT NULL
             ON CONFLICT DO UPDATE SET phones = phones + 1;
     END;
     CREATE TRIGGER phone_index_deleted AFTER DELETE ON phone_index BEGIN
         UPDATE index_version SET number = number + 1;
         UPDATE phone_count SET phones = phones - 1, recent = recent - old.is_recent
             WHERE (constituency, state, listing) = (old.constituency, old.state, old.listing);
         DELETE FROM phone_count
             WHERE (constituency, state, listing) = (old.constituency, old.state, old.listing) AND phones = 0;
         UPDATE tls_count SET phones = phones - 1 WHERE (constituency, tls) = (old.constituency, old.tls);
         DELETE FROM tls_count WHERE (constituency, tls) = (old.constituency, old.tls) AND phones = 0;
     END;
     CREATE TRIGGER phone_index_counted AFTER UPDATE OF state, listing, is_recent ON phone_index
         WHEN (old.state, old.listing, old.is_recent) <> (new.state, new.listing, new.is_recent) BEGIN
         UPDATE index_version SET number = number + 1;
         UPDATE phone_count SET phones = phones - 1, recent = recent - old.is_recent
             WHERE (constituency, state, listing) = (old.constituency, old.state, old.listing);
         INSERT INTO phone_count VALUES (new.constituency, new.state, new.listing, 1, new.is_recent)
             ON CONFLICT DO UPDATE SET phones = phones + 1, recent = recent + excluded.recent;
         DELETE FROM phone_count
             WHERE (constituency, state, listing) = (old.constituency, old.state, old.listing) AND phones = 0;
     END;
     CREATE TRIGGER phone_index_tls_counted AFTER UPDATE OF tls ON phone_index WHEN old.tls IS NOT new.tls BEGIN
         UPDATE tls_count SET phones = phones - 1 WHERE (constituency, tls) = (old.constituency, old.tls);
         DELETE FROM tls_count WHERE (constituency, tls) = (old.constituency, old.tls) AND phones = 0;
         INSERT INTO tls_count SELECT new.constituency, new.tls, 1 WHERE new.tls IS NOT NULL
             ON CONFLICT DO UPDATE SET phones = phones + 1;
     END;
     CREATE TRIGGER phone_deleted AFTER DELETE ON phone BEGIN
         UPDATE phone_index SET due = 0 WHERE (constituency, mac) = (old.constituency, old.mac);
     END;",
];

/// The stored fingerprint of a claim by password.
pub(super) const NO_FINGERPRINT: &[u8] = &[];

/// The stored expiry of a phone that authenticated by password.
pub(super) const NO_CERTIFICATE: i64 = i64::MIN;

/// The version that this provost writes.
pub(super) fn version() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}
