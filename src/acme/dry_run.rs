//! The whole way to a certificate, as a rehearsal: against another directory, with nothing kept but the account there.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;

use super::failure::AcmeFailure;
use super::status::AcmeStatus;
use super::store::CertificateStore;
use super::{Parts, Renewer};

impl Renewer {
    /// Obtains each certificate once and forgets it; `folder` keeps what must not be lost if this is cut off.
    ///
    /// # Errors
    /// The first thing that stands in the way.
    pub async fn dry_run(
        parts: Parts,
        folder: &Path,
        progress: UnboundedSender<String>,
    ) -> Result<AcmeStatus, AcmeFailure> {
        let mut renewer =
            Self::open(parts, folder, Arc::default()).map_err(|error| AcmeFailure::disk("the rehearsal", &error))?;
        renewer.is_rehearsal = true;
        renewer.board.listen(progress);
        // What an earlier one left in DNS.
        renewer.clean_up().await;
        let mut result = Ok(());
        for lineage in renewer.lineages() {
            let ca = renewer.ca_for(&lineage);
            result = renewer.renew(&lineage, &ca).await;
            renewer.clean_up().await;
            if result.is_err() {
                break;
            }
        }
        let status = renewer.status();
        // Orders too: the next rehearsal begins with one of its own.
        let removed =
            CertificateStore::remove(&folder.join("certs")).map_err(|error| AcmeFailure::disk("the rehearsal", &error));
        match (result, removed) {
            (Ok(()), removed) => removed.map(|()| status),
            (Err(failure), removed) => {
                if let Err(left) = removed {
                    tracing::error!("{}: {left}; remove it", folder.display());
                }
                Err(failure)
            }
        }
    }
}
