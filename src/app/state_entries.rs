//! The entries of the state directory: what each is, and what does not work without it.

use rustix::fs::Access;

use super::admin_thread::LOCAL_TOKEN;
use super::control::SOCKET;
use super::{LOCAL_DEVICE_CA, LOCAL_SERVER_CA};
use crate::admin::operators::file::FILE as OPERATORS;
use crate::audit;
use crate::config::{CertificateSource, Config};
use crate::constituency::{denials, last_good};
use crate::dns::responder;
use crate::identity::digest::passwords;
use crate::notify;
use crate::phone_history;
use crate::serve::upload::store;
use crate::state::LOCK;

/// An entry of the state directory.
#[derive(Debug)]
pub(super) struct StateEntry {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    pub(super) kind: EntryKind,
    /// What does not work if it cannot be used.
    pub(super) effect: &'static str,
    pub(super) user: EntryUser,
}

/// What an entry is.
#[derive(Debug, Clone, Copy)]
pub(super) enum EntryKind {
    /// A regular file, and the access that the server needs. A file that is replaced as a whole is not written to.
    File(Access),
    /// A folder, the access that the server needs to the files in it, and their description.
    Folder(Access, &'static str),
    /// A folder with a folder for each constituency.
    Uploads,
    Socket,
}

/// Who uses an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryUser {
    Server,
    /// The server, if its certificates come from ACME.
    Acme,
    /// The server, if its DNS responder publishes the challenges.
    Responder,
    /// The server, if its certificates come from the local CA.
    LocalCa,
    /// The server in local mode.
    LocalMode,
    /// The server, if it has a `notify` command.
    Notify,
    /// Only commands.
    Commands,
}

impl StateEntry {
    /// Whether it is a folder that the server writes to.
    pub(super) fn is_written_folder(&self) -> bool {
        let is_folder = matches!(self.kind, EntryKind::Folder(..) | EntryKind::Uploads);
        is_folder && matches!(self.user, EntryUser::Server | EntryUser::Acme)
    }

    /// Whether the server of `config` uses it.
    pub(super) fn is_used(&self, config: &Config) -> bool {
        match self.user {
            EntryUser::Server => true,
            EntryUser::Acme => matches!(config.certificate, CertificateSource::Acme(_)),
            EntryUser::Responder => {
                matches!(&config.certificate, CertificateSource::Acme(settings) if settings.dns.responder().is_some())
            }
            EntryUser::LocalCa => matches!(config.certificate, CertificateSource::LocalCa(_)),
            EntryUser::LocalMode => config.is_local(),
            EntryUser::Notify => config.notify.is_some(),
            EntryUser::Commands => false,
        }
    }
}

const READ: EntryKind = EntryKind::File(Access::READ_OK);
const NO_CERTIFICATES: &str = "no certificate is obtained or renewed";

const fn entry(
    name: &'static str,
    what: &'static str,
    kind: EntryKind,
    user: EntryUser,
    effect: &'static str,
) -> StateEntry {
    StateEntry { name, what, kind, effect, user }
}

const fn folder(what_in_it: &'static str) -> EntryKind {
    EntryKind::Folder(Access::READ_OK, what_in_it)
}

/// Every entry. A test compares it with what a server and commands leave there.
pub(super) const STATE_ENTRIES: [StateEntry; 20] = [
    entry(store::FOLDER, "the folder of uploads", EntryKind::Uploads, EntryUser::Server, "uploads are refused"),
    entry(
        phone_history::FOLDER,
        "the folder of the phone history",
        // SQLite writes to its files.
        EntryKind::Folder(Access::READ_OK.union(Access::WRITE_OK), "the phone history"),
        EntryUser::Server,
        "the phone history is not kept",
    ),
    entry(
        last_good::FOLDER,
        "the folder of last good policies",
        folder("a last good policy"),
        EntryUser::Server,
        "the last good policies are not kept for the next start",
    ),
    entry(
        passwords::FOLDER,
        "the folder of phones' passwords",
        folder("phones' passwords"),
        EntryUser::Server,
        "passwords cannot be changed",
    ),
    entry(
        denials::FILE,
        "the list of denied phones",
        READ,
        EntryUser::Server,
        "a change of the server-wide denials has no effect, and the next start fails",
    ),
    entry(
        OPERATORS,
        "the list of operators",
        READ,
        EntryUser::Server,
        "no operator's token is accepted but that in \"token_file\"",
    ),
    entry(
        audit::FILE,
        "the audit log",
        EntryKind::File(Access::READ_OK.union(Access::WRITE_OK)),
        EntryUser::Server,
        "changes are not recorded",
    ),
    entry(
        notify::FILE,
        "the record of reported headlines",
        READ,
        EntryUser::Notify,
        "the next start reports all headlines again",
    ),
    entry(
        LOCK,
        "the server's lock",
        // flock(2) on NFS needs a file that is open for writing.
        EntryKind::File(Access::READ_OK.union(Access::WRITE_OK)),
        EntryUser::Server,
        "the next start fails, or does not notice another server on this state",
    ),
    entry(
        SOCKET,
        "the server's socket for commands",
        EntryKind::Socket,
        EntryUser::Server,
        "commands do not reach the server",
    ),
    entry(
        "certs",
        "the folder of private keys",
        folder("a certificate and its private key"),
        EntryUser::Acme,
        NO_CERTIFICATES,
    ),
    entry(
        "accounts",
        "the folder of keys of accounts at CAs",
        folder("an account at a CA"),
        EntryUser::Acme,
        NO_CERTIFICATES,
    ),
    entry(
        "renewal.json",
        "the record of renewals",
        READ,
        EntryUser::Acme,
        "what is known of failed renewals and rate limits is lost at the next start",
    ),
    entry(
        "dns-journal.json",
        "the journal of DNS records",
        READ,
        EntryUser::Acme,
        "challenge records may stay in DNS after the next start",
    ),
    entry(
        responder::FILE,
        "the DNS responder's key and zone",
        READ,
        EntryUser::Responder,
        "provost check --live cannot prove the delegation, and the next start finds the zone anew",
    ),
    entry(
        "rehearsal",
        "the folder of dry runs",
        folder("a key or record of a dry run"),
        EntryUser::Commands,
        "provost certificate renew --dry-run does not work",
    ),
    entry("ca", "the CA's folder", folder("a record of the CA"), EntryUser::Commands, "provost ca does not work"),
    entry(
        LOCAL_SERVER_CA,
        "the folder of the CA for the server",
        folder("a key or certificate of the CA for the server"),
        EntryUser::LocalCa,
        "the local CA issues no certificate",
    ),
    entry(
        LOCAL_DEVICE_CA,
        "the folder of the CA for test phones",
        folder("a key or certificate of a test phone"),
        EntryUser::LocalMode,
        "test phones are not served",
    ),
    entry(
        LOCAL_TOKEN,
        "the operators' token",
        READ,
        EntryUser::LocalMode,
        "the status page has no token, and changes nothing",
    ),
];
