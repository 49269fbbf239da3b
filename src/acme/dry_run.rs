//! `certificate renew --dry-run`: the whole flow against another directory. Only the account there is kept.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;

use super::failure::AcmeFailure;
use super::status::AcmeStatus;
use super::store::CertificateStore;
use super::{Parts, Renewer};

impl Renewer {
    /// Obtains each certificate once and discards it. `folder` keeps the account and the journal of DNS records, so
    /// that an interrupted dry run can be cleaned up.
    ///
    /// # Errors
    /// The first failure.
    pub async fn dry_run(
        parts: Parts,
        folder: &Path,
        progress: UnboundedSender<String>,
    ) -> Result<AcmeStatus, AcmeFailure> {
        let mut renewer =
            Self::open(parts, folder, Arc::default()).map_err(|error| AcmeFailure::disk("the dry run", &error))?;
        renewer.is_rehearsal = true;
        renewer.board.listen(progress);
        // Removes the DNS records of an interrupted dry run.
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
        // Removes pending orders too: the next dry run places its own.
        let removed =
            CertificateStore::remove(&folder.join("certs")).map_err(|error| AcmeFailure::disk("the dry run", &error));
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
