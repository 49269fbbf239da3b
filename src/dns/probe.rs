//! Tests the DNS flow: a probe record takes all steps of a challenge's, and is removed in any case.

use super::failure::DnsError;
use super::{Dns, RecordLocation, name};

/// The result of a probe.
#[derive(Debug)]
pub struct Probe {
    /// The location of the record.
    pub place: RecordLocation,
    /// Whether every authoritative server had it; `Ok` lists what may still fail at a CA.
    pub seen: Result<Vec<String>, DnsError>,
    /// Whether it is gone, from every authoritative server that had it.
    pub gone: Result<(), DnsError>,
}

/// Adds a TXT record under `challenge_name`, waits until every authoritative server has it, removes it, and waits until
/// it is gone. Reports progress to `say`. When `stop` completes, it removes the record and waits no longer.
///
/// # Errors
/// If the record has no location, so that nothing was tried.
pub async fn probe(
    dns: &Dns,
    challenge_name: &str,
    say: &(dyn Fn(String) + Send + Sync),
    stop: impl Future<Output = ()>,
) -> Result<Probe, DnsError> {
    let place = dns.locate(challenge_name).await?;
    let word = name::random_word().ok_or_else(|| DnsError::Values("there is no randomness".to_owned()))?;
    let values = [format!("provost probe {word}")];
    let mut stop = std::pin::pin!(stop);
    let stopped = || DnsError::Stopped { name: place.name.clone() };
    let seen = tokio::select! {
        seen = publish(dns, &place, &values, say) => seen,
        () = &mut stop => Err(stopped()),
    };
    // In any case, even if adding failed: it may have been done, and only the answer lost.
    let removed = dns.remove(&place, &values).await;
    let gone = match removed {
        Ok(()) if seen.is_ok() => {
            say(format!("{}: the probe record was removed", place.name));
            tokio::select! {
                gone = dns.wait_until_gone(&place, &values, say) => gone,
                () = &mut stop => Err(stopped()),
            }
        }
        Err(_) if seen.as_ref().is_err_and(was_not_added) => Ok(()),
        Err(error) => {
            let (name, [value]) = (place.name.clone(), values);
            Err(DnsError::ProbeLeft { name, value, reason: error.to_string() })
        }
        Ok(()) => Ok(()),
    };
    Ok(Probe { place, seen, gone })
}

async fn publish(
    dns: &Dns,
    place: &RecordLocation,
    values: &[String],
    say: &(dyn Fn(String) + Send + Sync),
) -> Result<Vec<String>, DnsError> {
    dns.add(place, values).await?;
    say(format!("{}: a probe record was added in zone {}", place.name, place.zone));
    dns.wait_until_visible(place, values, say).await
}

/// Whether an error means that the record does not exist, so that its removal would only fail for the same reason.
fn was_not_added(error: &DnsError) -> bool {
    matches!(error, DnsError::Refused(_) | DnsError::PrimaryUnreachable { .. } | DnsError::NoAddress { .. })
}
