//! The whole way to a certificate, as a rehearsal: against another directory, with nothing kept but the account there.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;

use super::failure::Failure;
use super::status::Status;
use super::store::Store;
use super::{Parts, Renewer};

impl Renewer {
    /// Obtains each certificate once and forgets it; `folder` keeps what must not be lost if this is cut off.
    ///
    /// # Errors
    /// The first thing that stands in the way.
    pub async fn rehearse(parts: Parts, folder: &Path, progress: UnboundedSender<String>) -> Result<Status, Failure> {
        let mut renewer =
            Self::open(parts, folder, Arc::default()).map_err(|error| Failure::disk("the rehearsal", &error))?;
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
        let removed = Store::remove(&folder.join("certs")).map_err(|error| Failure::disk("the rehearsal", &error));
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
