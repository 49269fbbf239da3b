//! Certificates from files that somebody else writes, followed as they change.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{LiveCertificates, PairError, ServerCertificate};
use crate::files::{Stamp, read_regular};

/// One chain with its key, PEM, as `provost.json` names them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// The server's certificate and those between it and the root, in this order.
    pub chain: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Why a pair of files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file cannot be read.
    #[error("{path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is no PEM of the right kind.
    #[error("{path}: {reason}", path = .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The two do not make a usable pair.
    #[error("{chain} with {key}: {error}", chain = .files.chain.display(), key = .files.key.display())]
    Pair {
        /// The pair.
        files: CertificateFiles,
        /// What is wrong.
        error: PairError,
    },
}

/// What a look at the files came to.
#[derive(Debug)]
pub struct Refreshed {
    /// Whether another set of certificates is in use now.
    pub is_new: bool,
    /// Pairs that cannot be used as they are; the last good one stays.
    pub errors: Vec<FilesError>,
}

/// Follows pairs of files. A pair that does not fit, as between two renames, keeps the last good one.
#[derive(Debug)]
pub struct FilesSource {
    pairs: Vec<Followed>,
}

#[derive(Debug)]
struct Followed {
    files: CertificateFiles,
    seen: Option<[Option<Stamp>; 2]>,
    good: Option<ServerCertificate>,
}

impl FilesSource {
    /// Follows `pairs`.
    #[must_use]
    pub fn new(pairs: Vec<CertificateFiles>) -> Self {
        Self { pairs: pairs.into_iter().map(|files| Followed { files, seen: None, good: None }).collect() }
    }

    /// Reads what has changed and publishes the set if any pair is new.
    pub fn refresh(&mut self, live: &LiveCertificates) -> Refreshed {
        let mut errors = Vec::new();
        let mut is_new = false;
        for pair in &mut self.pairs {
            let stamps = pair.stamps();
            if pair.seen.as_ref() == Some(&stamps) {
                continue;
            }
            match load(&pair.files) {
                Ok(certificate) => {
                    pair.good = Some(certificate);
                    is_new = true;
                }
                Err(error) => errors.push(error),
            }
            pair.seen = Some(stamps);
        }
        if is_new {
            live.publish(self.pairs.iter().filter_map(|pair| pair.good.clone()).collect());
        }
        Refreshed { is_new, errors }
    }

    /// Why phones will refuse the pairs in use: names that are not covered, dates that have passed.
    #[must_use]
    pub fn misfits(&self, domain: &str, now: SystemTime) -> Vec<String> {
        let now = crate::clock::unix_seconds(now);
        let example = format!("name.{domain}");
        let mut misfits = Vec::new();
        for pair in &self.pairs {
            let Some(certificate) = &pair.good else { continue };
            let file = pair.files.chain.display();
            if !certificate.covers(&example) {
                let names = certificate.names.join(", ");
                misfits.push(format!("{file} does not cover *.{domain} (it is for {names}); phones will refuse it"));
            }
            if now > certificate.not_after {
                misfits.push(format!("{file} has expired; phones will refuse it"));
            } else if now < certificate.not_before {
                misfits.push(format!("{file} is not valid yet; phones will refuse it"));
            }
        }
        misfits
    }
}

impl Followed {
    /// What the two files look like now; a missing one is `None`.
    fn stamps(&self) -> [Option<Stamp>; 2] {
        [Stamp::of(&self.files.chain), Stamp::of(&self.files.key)]
    }
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
