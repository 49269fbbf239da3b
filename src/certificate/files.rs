//! Certificates from files that another program writes, reloaded when they change.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{CertificateFiles, ExactNames, FilePair, LiveCertificates, PairError, ServerCertificate};
use crate::files::{WatchedFiles, read_regular};

/// Why a pair of files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file cannot be read.
    #[error("{path}: {source}", path = .path.display())]
    Read { path: PathBuf, source: io::Error },
    /// A file is not PEM of the right kind.
    #[error("{path}: {reason}", path = .path.display())]
    Pem { path: PathBuf, reason: String },
    /// Certificate and key do not form a usable pair.
    #[error("{chain} with {key}: {error}", chain = .files.chain.display(), key = .files.key.display())]
    Pair { files: CertificateFiles, error: PairError },
}

/// The result of a refresh.
#[derive(Debug)]
pub struct Refreshed {
    /// Whether other certificates are in use now.
    pub is_new: bool,
    /// Pairs that are unusable now; the last good version stays in use.
    pub errors: Vec<FilesError>,
    /// Wanted exact names that no pair covers, new since the last refresh: problem and remedy.
    pub lacking: Vec<String>,
}

/// Reloads pairs of files. If a pair does not match, as between two renames, the last good version stays in use.
#[derive(Debug)]
pub struct FilesSource {
    pairs: Vec<WatchedPair>,
    domain: String,
    exact: ExactNames,
    lacking: BTreeSet<String>,
}

#[derive(Debug)]
struct WatchedPair {
    files: CertificateFiles,
    /// Chain and key.
    watched: WatchedFiles,
    /// Why the last read failed, or why the pair could not be used.
    error: Option<String>,
    good: Option<ServerCertificate>,
}

impl FilesSource {
    /// Reloads `pairs`, which are for names one label below `domain`.
    #[must_use]
    pub fn new(pairs: Vec<CertificateFiles>, domain: &str) -> Self {
        let watched = |files| WatchedPair { files, watched: WatchedFiles::default(), error: None, good: None };
        let pairs = pairs.into_iter().map(watched).collect();
        Self { pairs, domain: domain.to_owned(), exact: ExactNames::default(), lacking: BTreeSet::new() }
    }

    /// Reads changed files, and publishes the certificates if a pair or the wanted exact names changed.
    pub fn refresh(&mut self, live: &LiveCertificates, exact: &ExactNames) -> Refreshed {
        let mut errors = Vec::new();
        let (mut is_new, before) = (false, self.errors());
        for pair in &mut self.pairs {
            match pair.refresh() {
                Some(Ok(())) => is_new = true,
                Some(Err(error)) => errors.push(error),
                None => {}
            }
        }
        let is_other = is_new || self.exact != *exact;
        if is_other {
            self.exact.clone_from(exact);
            self.publish(live);
        }
        if is_other || self.errors() != before {
            live.publish_pairs(self.pairs());
        }
        let lacking = self.lacking();
        let before = std::mem::replace(&mut self.lacking, lacking);
        Refreshed { is_new, errors, lacking: self.lacking.difference(&before).cloned().collect() }
    }

    /// Publishes the pairs. A pair for exact names alone is presented only for these, unless there is no other pair.
    fn publish(&self, live: &LiveCertificates) {
        let exact = self.exact.iter().map(|(constituency, names)| {
            let own = self.good().filter(|pair| is_for_any(pair, names));
            (constituency.clone(), own.cloned().collect::<Vec<_>>())
        });
        let exact: BTreeMap<_, _> = exact.filter(|(_, pairs)| !pairs.is_empty()).collect();
        let (own, common): (Vec<_>, Vec<_>) = self.good().cloned().partition(|pair| self.is_exact_only(pair));
        live.publish(if common.is_empty() { own } else { common });
        live.publish_exact(exact);
    }

    fn errors(&self) -> Vec<Option<String>> {
        self.pairs.iter().map(|pair| pair.error.clone()).collect()
    }

    fn good(&self) -> impl Iterator<Item = &ServerCertificate> {
        self.pairs.iter().filter_map(|pair| pair.good.as_ref())
    }

    fn is_exact_only(&self, pair: &ServerCertificate) -> bool {
        let is_wanted = self.exact.iter().any(|(_, names)| is_for_any(pair, names));
        is_wanted && !pair.names.iter().any(|name| name.starts_with("*."))
    }

    fn lacking(&self) -> BTreeSet<String> {
        let lack = |(constituency, names): (_, &[String])| {
            let missing: Vec<&str> = names
                .iter()
                .filter(|name| !self.good().any(|pair| pair.names.contains(name)))
                .map(String::as_str)
                .collect();
            (!missing.is_empty()).then(|| {
                let missing = missing.join(", ");
                format!(
                    "{constituency}: \"certificate_names\" is \"exact\", but no certificate file is for exactly {missing}, \
                     so phones get the wildcard certificate; add a pair for {missing} to \"files\""
                )
            })
        };
        self.exact.iter().filter_map(lack).collect()
    }

    /// Each pair, as it is now.
    #[must_use]
    pub fn pairs(&self) -> Vec<FilePair> {
        let example = format!("name.{}", self.domain);
        let is_misfit = |pair: &ServerCertificate| !pair.covers(&example) && !self.is_exact_only(pair);
        let pair = |pair: &WatchedPair| FilePair {
            files: pair.files.clone(),
            certificate: pair.good.clone(),
            error: pair.error.clone(),
            uncovered: pair.good.as_ref().is_some_and(is_misfit).then(|| format!("*.{}", self.domain)),
        };
        self.pairs.iter().map(pair).collect()
    }
}

impl WatchedPair {
    /// Reads the pair if it changed or could not be read before. `None`: nothing new.
    fn refresh(&mut self) -> Option<Result<(), FilesError>> {
        if !self.watched.is_due(&[self.files.chain.clone(), self.files.key.clone()]) {
            return None;
        }
        let loaded = load(&self.files);
        self.error = loaded.as_ref().err().map(ToString::to_string);
        let unread = self.error.clone().filter(|_| matches!(loaded, Err(FilesError::Read { .. })));
        let is_news = self.watched.note_read(unread);
        match loaded {
            Ok(certificate) => {
                self.good = Some(certificate);
                Some(Ok(()))
            }
            Err(error) => is_news.then_some(Err(error)),
        }
    }
}

fn is_for_any(certificate: &ServerCertificate, names: &[String]) -> bool {
    names.iter().any(|name| certificate.names.contains(name))
}

fn load(files: &CertificateFiles) -> Result<ServerCertificate, FilesError> {
    let read = |path: &Path| read_regular(path).map_err(|source| FilesError::Read { path: path.to_owned(), source });
    let chain = CertificateDer::pem_slice_iter(&read(&files.chain)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| FilesError::Pem { path: files.chain.clone(), reason: format!("is damaged PEM ({error})") })?;
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?).map_err(|error| FilesError::Pem {
        path: files.key.clone(),
        reason: format!("holds no private key in PEM ({error})"),
    })?;
    ServerCertificate::new(chain, &key).map_err(|error| FilesError::Pair { files: files.clone(), error })
}
